"""Functional forms give back what they were given.

Every container and leaf is of its own type, or there is a TypeError before anything is read."""

import array
import collections
import ctypes
import dataclasses
import math
import sys
import warnings
from types import MappingProxyType

import numpy as np
import pytest

import gradclip

BATCH = np.full((2, 2), np.nan)  # to read it is an error

NEW = {
    "global norm": lambda g, **k: gradclip.clip_by_global_norm(g, 1.0, **k),
    "norm": lambda g, **k: gradclip.clip_by_norm(g, 1.0, **k),
    "value": lambda g, **k: gradclip.clip_by_value(g, 1.0, **k),
    "normalize": lambda g, **k: gradclip.normalize(g, 1.0, **k),
    "adaptive": lambda g, **k: gradclip.clip_adaptive(g, g, 0.1, **k),
    "per sample": lambda g, **k: gradclip.clip_per_sample(g, 1.0, **k),
    "sums": lambda g, **k: gradclip.per_sample_clip_sum(g, 1.0, **k),
    "apply": lambda g, **k: gradclip.apply_clip(g, gradclip.measure(np.ones(9)), 1.0, **k),
}


# ---- stand-ins of what JAX's libraries have ---------------------------------------------------------------


class Variable:
    """As of Flax NNX: a leaf that shows its array in every way."""

    def __init__(self, value):
        self.value = value

    def __getattr__(self, name):
        if name in ("value", "__array_struct__"):
            raise AttributeError(name)
        return getattr(self.value, name)

    def __array__(self, dtype=None, copy=None):
        return self.value


class State(collections.abc.MutableMapping):
    """As of Flax NNX: a mapping that makes its inner ones anew."""

    def __init__(self, pairs):
        self.pairs = {k: v.pairs if isinstance(v, State) else v for k, v in pairs.items()}

    def __getitem__(self, key):
        found = self.pairs[key]
        return State(found) if isinstance(found, dict) else found

    def __setitem__(self, key, value):
        self.pairs[key] = value

    def __delitem__(self, key):
        del self.pairs[key]

    def __iter__(self):
        return iter(self.pairs)

    def __len__(self):
        return len(self.pairs)


class Strict(State):
    """Its constructor takes something else."""

    def __init__(self, *, path):
        self.pairs = {"x": path}


class Rounding(State):
    """Keeps something else than it was given."""

    def __init__(self, pairs):
        self.pairs = {k: np.round(v) for k, v in pairs.items()}


class Plain(State):
    """Whose constructor makes something else."""

    def __new__(cls, *args):
        return {} if args else super().__new__(cls)

    def __init__(self):
        self.pairs = {"x": BATCH}


class Counted(list):
    def __init__(self, items, count):
        super().__init__(items)


class Shared(dict):
    def __copy__(self):
        return self


class Bag:
    """Iterable, and nothing else."""

    def __init__(self, first, *rest):
        self.items = [first, *rest]

    def __iter__(self):
        return iter(self.items)


class Layers(collections.UserList):
    pass


class Queue(collections.deque):
    pass


Layer = collections.namedtuple("Layer", "weight bias")


@dataclasses.dataclass(frozen=True)
class Module:
    weight: object


REFUSED = {
    "a leaf": ({"l": {"x": Variable(BATCH)}}, "^l/x: .*Variable"),
    "a leaf in its mapping": (State({"l": State({"x": Variable(BATCH)})}), "^l/x: .*Variable"),
    "a module": ({"l": Module(BATCH)}, "^l: .*Module"),
    "a module as a whole": (Module(BATCH), "^grads: .*Module"),
    "another constructor": ([np.ones((2, 2)), Strict(path=BATCH)], "^1: .*Strict"),
    "other items": ({"a": [Rounding({"x": BATCH})]}, "^a/0: .*Rounding"),
    "another type": ([Plain()], "^0: .*Plain"),
    "a list": ({"l": Counted([BATCH], 1)}, "^l: .*Counted"),
    "a dict": ({"l": Shared(x=BATCH)}, "^l: .*Shared"),
    "an iterable": ({"l": Bag(BATCH, BATCH.copy())}, "^l: .*Bag"),
    "a named tuple": ({"l": tuple.__new__(Layer, [BATCH])}, "^l: .*Layer"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("call", NEW.values(), ids=NEW)
def test_what_cannot_be_rebuilt_is_named_before_anything_is_read(call, kind):
    grads, message = REFUSED[kind]
    with pytest.raises(TypeError, match=rf"{message}.*jax\.tree\.flatten"):
        call(grads)


@pytest.mark.parametrize("kind", [k for k in REFUSED if "module" not in k])
def test_what_cannot_be_rebuilt_can_be_measured(kind):
    grads, _ = REFUSED[kind]
    assert math.isnan(gradclip.global_norm(grads))
    assert gradclip.measure(grads).nonfinite >= 4


def test_out_is_given_back_as_it_is():
    grads, out = State({"x": Variable(np.array([3.0, 4.0]))}), {"x": np.zeros(2)}
    for kept in (out, collections.OrderedDict(out)):
        assert gradclip.clip_by_global_norm(grads, 2.5, out=kept)[0] is kept
        assert kept["x"].tolist() == [1.5, 2.0]


def test_in_place_such_leaves_are_written():
    leaf = Variable(np.array([3.0, 4.0]))
    assert gradclip.clip_by_global_norm_([leaf], 2.5).clipped
    assert leaf.value.tolist() == [1.5, 2.0]


class Copies(list):
    """Hands out copies."""

    def __iter__(self):
        return map(np.copy, super().__iter__())


class CopiesByKey(dict):
    """Hands out copies."""

    def values(self):
        return list(map(np.copy, super().values()))


class Fresh:
    """Makes its arrays anew."""

    def __iter__(self):
        return iter([np.ones(3)])


def test_containers_that_make_their_leaves_anew_are_not_written():
    nested = State({"l": State({"x": np.ones(3)})})
    copies = [Copies([np.ones(3)]), CopiesByKey(x=np.ones(3))]
    for grads, path in ((Fresh(), "grads"), ([None, Fresh()], "1"), (nested, "grads"), ({"a": nested}, "a"), (copies, "[01]")):
        with pytest.raises(TypeError, match=f"^{path}: (Fresh|State|Copies(ByKey)?) makes its values anew"):
            gradclip.clip_by_global_norm_(grads, 0.1)
        plain = gradclip.clip_by_global_norm({"l": {"x": np.ones(3)}}, 0.1)[0]
    for out in (nested, {"l": nested["l"]}):
        if out is nested:
            with pytest.raises(TypeError, match="^grads: State makes its values anew"):
                gradclip.clip_by_global_norm(plain, 0.1, out=out)
        else:
            assert gradclip.clip_by_global_norm(plain, 0.1, out=out)[0] is out
    with pytest.raises(TypeError, match="^grads: State makes its values anew"):
        gradclip.sgd_step_(nested, plain, 0.1)
    assert gradclip.clip_adaptive(plain, nested)[1].clipped  # which are only read


def test_what_can_be_rebuilt_is():
    leaf = np.array([3.0, 4.0])
    ordered = collections.OrderedDict(x=leaf)
    ordered.note = "kept"
    grads = {
        "state": State({"l": State({"x": leaf})}),
        "list": Layers([leaf, None]),
        "queue": Queue([leaf], 3),
        "ordered": ordered,
        "chain": collections.ChainMap({"a": leaf}, {"b": leaf}),
        "user": collections.UserDict(x=leaf),
        "named": Layer(leaf, [leaf]),
        "frozen": MappingProxyType({"x": leaf}),
        "views": ({"x": leaf}.values(), iter([leaf])),
    }
    clipped, report = gradclip.clip_by_global_norm(grads, 5 * math.sqrt(12) / 2)
    assert report.clipped
    for key in grads.keys() - {"views"}:
        assert type(clipped[key]) is type(grads[key])
        assert clipped[key] is not grads[key]
    assert clipped["state"]["l"]["x"].tolist() == pytest.approx([1.5, 2.0])
    assert (clipped["queue"].maxlen, clipped["ordered"].note, list(clipped["chain"])) == (3, "kept", list(grads["chain"]))
    assert [type(view) for view in clipped["views"]] == [list, list]
    assert leaf.tolist() == [3.0, 4.0]


@pytest.mark.parametrize(
    "leaf",
    [array.array("f", [3.0, 4.0]), memoryview(array.array("d", [3.0, 4.0])), (ctypes.c_double * 2)(3.0, 4.0)],
    ids=["array", "memoryview", "ctypes"],
)
def test_buffers_of_the_standard_library_are_rebuilt(leaf):
    clipped, _ = gradclip.clip_by_global_norm([leaf], 2.5)
    assert type(clipped[0]) is type(leaf)
    assert list(clipped[0]) == [1.5, 2.0]
    assert list(leaf) == [3.0, 4.0]


def test_subclasses_of_ndarray_are_what_numpy_makes_of_them(tmp_path):
    class Measured(np.ndarray):
        unit = None

        def __array_finalize__(self, other):
            self.unit = getattr(other, "unit", None)

    measured = np.array([3.0, 4.0]).view(Measured)
    measured.unit = "m"
    mapped = np.memmap(tmp_path / "grad.bin", np.float64, "w+", shape=(2,))
    mapped[:] = 3.0, 4.0
    plain, matrix = np.ndarray, np.ones((2, 2)).view(Measured).T
    for leaf, kind in ((measured, Measured), (matrix, Measured), (mapped, plain), (mapped[:1].reshape(()), plain)):
        (clipped,), _ = gradclip.clip_by_global_norm([leaf], 2.5)
        assert (type(clipped), clipped.shape) == (kind, leaf.shape)
        assert getattr(clipped, "unit", None) == getattr(leaf, "unit", None)
        assert not np.shares_memory(clipped, leaf)


def test_files_of_arrays_are_read_once_and_become_dicts(tmp_path, monkeypatch):
    np.savez(tmp_path / "g.npz", a=np.array([3.0, 0.0]), b=np.array([0.0, 4.0]))
    with np.load(tmp_path / "g.npz") as file:
        read, get = [], type(file).__getitem__
        monkeypatch.setattr(type(file), "__getitem__", lambda self, key: read.append(key) or get(self, key))
        clipped, _ = gradclip.clip_by_global_norm(file, 2.5)
    assert type(clipped) is dict
    assert (clipped["a"].tolist(), clipped["b"].tolist()) == ([1.5, 0.0], [0.0, 2.0])
    assert read == ["a", "b"]


# ---- a nesting that changes during the call ---------------------------------------------------------------


class Changing(gradclip.thresholds.Threshold):
    """Changes the gradients while it is asked."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def next_threshold(self, norm):
        self.change()
        return 1.0

    _next = next_threshold


CHANGES = {
    "grows": (lambda grads: grads["a"].append(np.ones(1)), "^a/2: "),
    "shrinks": (lambda grads: grads["a"].pop(), "^a/1|^b|^grads"),
    "has other leaves": (lambda grads: grads["a"].__setitem__(1, np.ones(2)), "^a/1: "),
    "has other keys": (lambda grads: grads.update(c=grads.pop("a")), "^b: |^a|^c"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_nesting_that_changes_during_the_call_is_an_error_that_says_so(kind):
    change, path = CHANGES[kind]
    grads = {"a": [np.array([3.0]), np.array([4.0])], "b": np.zeros(1)}
    before = [*grads["a"], grads["b"]]
    with pytest.raises(RuntimeError, match=f"({path}).*grads changed during the call"):
        gradclip.clip_by_global_norm(grads, Changing(lambda: change(grads)))
    assert [leaf.tolist() for leaf in before] == [[3.0], [4.0], [0.0]]


def test_thresholds_for_a_nesting_that_grew():
    class Growing(float):
        def __float__(self):
            grads.append(np.ones(1))
            return 1.0

    grads = [np.array([3.0]), np.array([4.0])]
    with pytest.raises(RuntimeError, match="grads changed during the call"):
        gradclip.clip_by_norm_(grads, {"*": Growing()})
    assert grads[:2] == [3.0, 4.0]


def test_a_named_tuple_with_other_fields_than_items_hides_no_error():
    class Odd(Layer):
        _fields = ()

    bad = np.array([1.0, math.nan])
    for odd in (Odd(bad, np.array([2])), tuple.__new__(Layer, [bad, np.ones(1), np.array([2])])):
        with pytest.raises(TypeError, match=f"^l/{len(odd) - 1}: dtype int"):
            gradclip.clip_by_global_norm_({"l": odd}, 1.0)
    odd = Odd(np.array([3.0]), bad)
    with pytest.raises(gradclip.NonFiniteGradientError, match="^l/1: nan at flat index 1"):
        gradclip.clip_by_global_norm_({"l": odd}, 1.0)
    assert odd[0].tolist() == [3.0]


def test_the_error_of_a_leaf_in_a_nesting_that_holds_itself():
    for bad in (np.array([2]), object()):
        loop = [np.ones(1), [bad]]
        loop += [loop, loop]
        for call in (gradclip.global_norm, gradclip.normalize_, gradclip.normalize):
            with pytest.raises(TypeError, match="^1/0: "):
                call({"a": None, "l": loop}["l"])
    loop = [State({"x": np.ones(1)})]
    loop += [Strict(path=loop), loop]
    with pytest.raises(TypeError, match="^1: .*Strict"):
        gradclip.normalize(loop)


# ---- the libraries themselves -----------------------------------------------------------------------------


def test_flax_nnx():
    nnx, jax = pytest.importorskip("flax.nnx"), pytest.importorskip("jax")
    optax = pytest.importorskip("optax")
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    grads = nnx.grad(lambda model: (model(jax.numpy.ones((1, 2))) ** 2).sum())(model)
    norm = gradclip.global_norm(grads)
    assert norm > 0
    assert gradclip.measure(grads).size == 9
    clipped, report = gradclip.clip_by_global_norm(grads, norm / 2)
    assert report.scale == 0.5
    assert type(clipped) is type(grads)
    assert type(clipped["bias"]) is type(grads["bias"])
    nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param).update(model, clipped)
    leaves, tree = jax.tree.flatten(grads)
    again = jax.tree.unflatten(tree, gradclip.clip_by_global_norm(leaves, norm / 2)[0])
    assert all(map(np.array_equal, jax.tree.leaves(clipped), jax.tree.leaves(again)))


def test_flax_struct_and_frozen_dict():
    flax, jax = pytest.importorskip("flax"), pytest.importorskip("jax")

    @flax.struct.dataclass
    class Weights:
        w: jax.Array

    clipped, _ = gradclip.clip_by_global_norm({"a": Weights(jax.numpy.array([3.0, 4.0]))}, 2.5)
    assert type(clipped["a"]) is Weights
    assert clipped["a"].w.tolist() == [1.5, 2.0]
    with pytest.raises(TypeError, match="^a/w: dtype int32"):
        gradclip.global_norm({"a": Weights(jax.numpy.ones(3, int))})
    frozen = flax.core.FrozenDict({"a": {"b": jax.numpy.array([3.0, 4.0])}})
    clipped, _ = gradclip.clip_by_global_norm(frozen, 2.5)
    assert type(clipped) is type(frozen)
    assert clipped["a"]["b"].tolist() == [1.5, 2.0]


def test_equinox():
    eqx, jax = pytest.importorskip("equinox"), pytest.importorskip("jax")
    model = eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0))
    with pytest.raises(TypeError, match=r"^activation: .* is not an array"):
        gradclip.global_norm(model)
    found = eqx.filter_grad(lambda model, x: (model(x) ** 2).sum())(model, jax.numpy.ones(2))
    for grads in (found, eqx.nn.Sequential(found.layers)):
        clipped, report = gradclip.clip_by_norm(grads, {"layers/*/weight": 1e-3})
        assert type(clipped) is type(grads)
        assert len(report.scales) == 4
        assert report.scales[1] == 1.0
        assert gradclip.global_norm([layer.weight for layer in clipped.layers]) == pytest.approx(1e-3 * math.sqrt(2), rel=1e-6)
        assert jax.tree.structure(clipped) == jax.tree.structure(grads)
    layer = eqx.nn.Linear(2, 2, key=jax.random.key(0))
    for call in NEW.values():
        assert type(call(layer)[0]) is type(layer)


class Losing(collections.OrderedDict):
    """A dict that loses an item when it is asked again what it holds."""

    def __getitem__(self, key):
        self.pop("b", None)
        return super().__getitem__(key)


class Growing(collections.OrderedDict):
    """A dict that gets an item while its values are read, as by another thread."""

    def values(self):
        for value in super().values():
            yield value
            self["c"] = value


@pytest.mark.parametrize("kind", [Losing, Growing])
def test_a_dict_that_changes_while_it_is_asked_is_named(kind):
    grads = [np.ones(2), {"inner": kind(a=np.ones(3), b=np.ones(1))}]
    with pytest.raises(RuntimeError, match=r"^1/inner: grads changed during the call$"):
        gradclip.clip_by_global_norm_(grads, 0.5)
    assert grads[0].tolist() == [1, 1]


def test_an_array_whose_dtype_changes_while_it_is_laid_out_is_an_error():
    base = np.ones((4, 6), np.float32)
    strided = base[:, ::2]

    def trace(frame, event, arg):
        if frame.f_code.co_name == "addressed" and strided.dtype != np.int32:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                strided.dtype = np.int32

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with pytest.raises(RuntimeError, match="^1: an array changed during the call"):
            gradclip.clip_by_norm_([np.ones((2, 2)), strided], 0.5, axis=0)
    finally:
        sys.settrace(before)
    assert base.tobytes() == np.ones((4, 6), np.float32).tobytes()
