"""Containers of a user's own, registered with gradclip or with JAX: nestings like lists and dicts."""

import dataclasses
import gc
import math
import re
import sys
import threading
import types
import weakref
from typing import Any

import numpy as np
import pytest
from reference import snapshot

import gradclip
from gradclip._leaves import containers


class Layer:
    """As a class of attrs: named fields, and a constructor that takes them."""

    def __init__(self, weight, bias=None):
        self.weight, self.bias = weight, bias


@dataclasses.dataclass(frozen=True)
class Block:
    first: Any
    second: Any


class Bag:
    """Numbered items; not iterable."""

    def __init__(self, *items):
        self.items = items


class Flat:
    """Two parts of one buffer, which are other objects each time they are asked for."""

    def __init__(self, buffer):
        self.buffer = buffer


def joined(flat, children):
    return Flat(np.concatenate(children))


KNOWN = {
    Layer: (lambda x: ([x.weight, x.bias], ["weight", "bias"]), lambda x, children: Layer(*children)),
    Block: (lambda x: ((x.first, x.second), ("first", "second")), lambda x, children: Block(*children)),
    Bag: (lambda x: (iter(x.items), None), lambda x, children: Bag(*children)),
    Flat: (lambda x: ([x.buffer[:2], x.buffer[2:]], None), joined),
}


@pytest.fixture
def register(monkeypatch):
    """`register_container`; what was registered is forgotten afterwards."""
    monkeypatch.setattr(containers, "_registered", {})
    return gradclip.register_container


@pytest.fixture(autouse=True)
def known(register):
    for kind, (flatten, rebuild) in KNOWN.items():
        register(kind, flatten, rebuild)


def nested():
    return {"block": Block([Layer(np.array([3.0, 0.0])), None], Bag(np.array([4.0]), {"x": np.zeros(1)}))}


PATHS = ["block/first/0/weight", "block/second/0", "block/second/1/x"]


# ---- what it is for ----------------------------------------------------------------------------------------


def test_registered_containers_are_walked_and_rebuilt():
    grads = nested()
    clipped, report = gradclip.clip_by_global_norm(grads, 2.5)
    assert report.norm == 5.0
    layer, nothing = clipped["block"].first
    assert (type(clipped["block"]), type(layer), type(clipped["block"].second), nothing) == (Block, Layer, Bag, None)
    assert (layer.weight.tolist(), layer.bias, clipped["block"].second.items[0].tolist()) == ([1.5, 0.0], None, [2.0])
    assert grads["block"].first[0].weight.tolist() == [3.0, 0.0]
    gradclip.clip_by_global_norm_(grads, 2.5)
    assert grads["block"].first[0].weight.tolist() == [1.5, 0.0]
    assert grads["block"].second.items[0].tolist() == [2.0]


def test_paths_are_made_of_their_keys():
    report = gradclip.clip_by_norm_(nested(), {"block/first/*/weight": 1.5, "*/second/0": 1.0, "*/bias": 1.0, "*/x": 1.0})
    assert report.scales.tolist() == [0.5, 0.25, 1.0]
    for i, path in enumerate(PATHS):
        grads = nested()
        leaves = [grads["block"].first[0].weight, grads["block"].second.items[0], grads["block"].second.items[1]["x"]]
        leaves[i][-1] = math.nan
        with pytest.raises(gradclip.NonFiniteGradientError) as caught:
            gradclip.clip_by_global_norm_(grads, 1.0)
        assert (caught.value.path, caught.value.index) == (path, len(leaves[i]) - 1)
        assert gradclip.measure(grads).first_nonfinite == (path, len(leaves[i]) - 1)


@pytest.mark.parametrize("bad", [np.array([1]), object(), "text"])
def test_leaves_in_them_are_named(bad):
    for call in (gradclip.global_norm, gradclip.normalize, gradclip.normalize_):
        with pytest.raises(TypeError, match="^a/first/1/bias: "):
            call({"a": Block([np.ones(1), Layer(None, bad)], np.ones(1))})


@pytest.mark.parametrize("out", [Layer(np.zeros(2), None), {"bias": None, "weight": np.zeros(2)}])
def test_other_nestings_match_by_key(out):
    grads = [Layer(np.array([3.0, 4.0]))]
    result, _ = gradclip.clip_by_global_norm(grads, 2.5, out=[out])
    assert result[0] is out
    assert (out["weight"] if isinstance(out, dict) else out.weight).tolist() == [1.5, 2.0]
    report = gradclip.clip_by_global_norm_([{"weight": np.array([3.0]), "bias": None}], 1.0)
    assert report.scale == 1 / 3
    gradclip.sgd_step_([{"weight": np.zeros(2), "bias": None}], grads, 1.0)
    assert gradclip.clip_adaptive(grads, [Layer(np.zeros(2), None)])[1].clipped


def test_thresholds_may_be_such_containers():
    grads = Layer(np.array([3.0, 4.0]), np.array([2.0]))
    assert gradclip.clip_by_norm_(grads, Layer(2.5, 1.0)).scales.tolist() == [0.5, 0.5]
    assert gradclip.clip_by_norm_(Bag(np.array([8.0])), [2.0]).scales.tolist() == [0.25]
    with pytest.raises(ValueError, match="^bias: grads and max_norm are nested in different ways"):
        gradclip.clip_by_norm_(grads, Layer(2.5))


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ([np.zeros(2), None], "0: grads is a Layer, out a list"),
        (Bag(np.zeros(2), None), "0: grads is a Layer, out a Bag"),
        ({"weight": np.zeros(2)}, "0/bias: out has no such entry"),
        ({"weight": np.zeros(2), "bias": None, "scale": np.zeros(1)}, "0/scale: out has an entry that grads has not"),
        (Block(np.zeros(2), None), "0/weight: out has no such entry"),
        (Layer(np.zeros(3)), "0/weight: .*shape"),
        (np.zeros(2), "0: grads and out are nested in different ways"),
    ],
)
def test_what_does_not_match_is_named(out, message):
    grads = [Layer(np.array([3.0, 4.0]))]
    with pytest.raises(ValueError, match=f"^{message}"):
        gradclip.clip_by_global_norm(grads, 1.0, out=[out])


def test_children_may_be_other_views_of_the_same_memory():
    grads = Flat(np.array([3.0, 0.0, 4.0]))
    clipped, _ = gradclip.clip_by_global_norm(grads, 2.5)
    assert clipped.buffer.tolist() == [1.5, 0.0, 2.0]
    assert gradclip.clip_by_global_norm_(grads, 2.5).clipped
    assert grads.buffer.tolist() == [1.5, 0.0, 2.0]


def test_sums_of_samples_are_rebuilt_too():
    sums, report = gradclip.per_sample_clip_sum(Layer(np.array([[3.0], [0.5]]), np.array([[4.0], [0.0]])), 2.5)
    assert type(sums) is Layer
    assert (sums.weight.tolist(), sums.bias.tolist()) == (pytest.approx([2.0]), pytest.approx([2.0]))
    assert report.clipped_count == 1


def test_types_derived_from_one_are_their_own(register):
    class Derived(Layer):
        pass

    grads = {"l": Derived(np.array([3.0, 4.0]))}
    with pytest.raises(TypeError, match=r"^l: .*Derived is not an array.*register_container"):
        gradclip.global_norm(grads)
    register(Derived, KNOWN[Layer][0], lambda x, children: Derived(*children))
    assert type(gradclip.clip_by_global_norm(grads, 2.5)[0]["l"]) is Derived


def test_a_type_that_was_known_in_another_way(register):
    """What is registered comes before what a type looks like: a list, a mapping, an array."""

    class Steps(list):
        def __init__(self, items, note):
            super().__init__(items)
            self.note = note

    class Shown(Layer):
        def __array__(self, dtype=None, copy=None):
            raise AssertionError

    register(Steps, lambda x: (tuple(x), None), lambda x, children: Steps(children, x.note))
    register(Shown, KNOWN[Layer][0], lambda x, children: Shown(*children))
    clipped, _ = gradclip.clip_by_global_norm([Steps([np.array([3.0])], "kept"), Shown(np.array([4.0]))], 2.5)
    assert (clipped[0].note, clipped[0][0].tolist(), clipped[1].weight.tolist()) == ("kept", [1.5], [2.0])


def test_an_empty_one_is_no_leaf():
    assert gradclip.global_norm([Bag(), Layer(None, None)]) == 0.0
    assert gradclip.clip_by_global_norm(Bag(), 1.0)[0].items == ()


def test_one_that_holds_itself():
    loop = Layer(np.ones(1))
    loop.bias = loop
    with pytest.raises(ValueError, match="does a container hold itself"):
        gradclip.global_norm(loop)


def test_deep_ones():
    grads = np.array([3.0, 4.0])
    for _ in range(150):
        grads = Bag(grads)
    assert gradclip.clip_by_global_norm(grads, 2.5)[1].clipped


# ---- registering --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("Layer", id, id), TypeError, "type must be a type, not 'Layer'"),
        ((Layer(None), id, id), TypeError, "type must be a type, not <"),
        ((int, None, id), TypeError, "flatten must be callable, not None"),
        ((int, id, [1]), TypeError, r"rebuild must be callable, not \[1\]"),
        ((dict, id, id), ValueError, "builtins.dict is known already"),
        ((list, id, id), ValueError, "builtins.list is known already"),
        ((type(None), id, id), ValueError, "builtins.NoneType is known already"),
        ((np.ndarray, id, id), ValueError, "numpy.ndarray is known already"),
        ((float, id, id), ValueError, "builtins.float is known already"),
        ((bool, id, id), ValueError, "builtins.bool is known already"),
        ((object, id, id), ValueError, "builtins.object is known already"),
        ((np.memmap, id, id), ValueError, "memmap is known already"),
        ((Layer, id, id), ValueError, "test_containers.Layer is registered already"),
    ],
)
def test_what_cannot_be_registered(register, arguments, error, message):
    with pytest.raises(error, match=message):
        register(*arguments)
    assert gradclip.clip_by_global_norm(Layer(np.ones(1)), 0.5)[0].weight.tolist() == [0.5]


def test_threads_register_and_clip_at_once(register):
    kinds = [type(f"Kind{i}", (Layer,), {}) for i in range(200)]
    refused, wrong = [], []
    start = threading.Barrier(4)

    def work():
        start.wait()
        for kind in kinds:
            try:
                register(kind, KNOWN[Layer][0], lambda x, children: type(x)(*children))
            except ValueError:
                refused.append(kind)
            clipped, _ = gradclip.clip_by_global_norm([kind(np.array([3.0]), np.array([4.0]))], 2.5)
            if type(clipped[0]) is not kind or clipped[0].bias.tolist() != [2.0]:
                wrong.append(kind)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert sorted(refused, key=kinds.index) == [kind for kind in kinds for _ in range(3)]  # each by all threads but one


# ---- hostile ones ------------------------------------------------------------------------------------------


class Hostile:
    """Two arrays; what `flatten` and `rebuild` do is chosen by the test."""

    def __init__(self, *items):
        self.items = list(items)


def fails(*arguments):
    raise OSError("no such disk")


def half(x):
    yield x.items[0]
    fails()


FLATTENS = {
    "raises": (fails, r"\(no such disk\)"),
    "raises later": (lambda x: (half(x), None), r"\(no such disk\)"),
    "too many keys": (lambda x: (x.items, ["a", "b", "c"]), "2 children and 3 keys"),
    "too few keys": (lambda x: (x.items, ["a"]), "2 children and 1 keys"),
    "a key twice": (lambda x: (x.items, ["a", "a"]), "a key twice"),
    "a key twice in paths": (lambda x: (x.items, [1, "1"]), "a key twice"),
    "no keys": (lambda x: x.items, r"must return \(children, keys or None\)"),
    "a pair of arrays": (lambda x: tuple(x.items), r"must return \(children, keys or None\)"),
    "a list of two": (lambda x: [x.items, None], r"must return \(children, keys or None\)"),
    "None": (lambda x: None, r"must return \(children, keys or None\)"),
    "no children": (lambda x: (None, None), r"must return \(children, keys or None\)"),
    "an array": (lambda x: (x.items[0], None), r"must return \(children, keys or None\)"),
    "text": (lambda x: (x.items, "ab"), r"must return \(children, keys or None\)"),
    "a number": (lambda x: (2, None), r"must return \(children, keys or None\)"),
}
CALLS = {
    "reading": gradclip.global_norm,
    "in place": lambda grads: gradclip.clip_by_global_norm_(grads, 0.5),
    "new": lambda grads: gradclip.clip_by_global_norm(grads, 0.5),
    "out": lambda grads: gradclip.clip_by_global_norm([np.ones(2), {"h": [np.ones(1), np.ones(1)]}], 0.5, out=grads),
    "thresholds": lambda grads: gradclip.clip_by_norm_([np.ones(2), {"h": [np.ones(1), np.ones(1)]}], grads),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("kind", FLATTENS)
def test_a_flatten_that_is_wrong_is_named_before_anything_is_written(register, kind, call):
    flatten, message = FLATTENS[kind]
    register(Hostile, flatten, lambda x, children: Hostile(*children))
    grads = [np.full(2, 3.0), {"h": Hostile(np.full(1, 4.0), np.full(1, 5.0))}]
    before = snapshot([grads[0], *grads[1]["h"].items])
    with pytest.raises(TypeError, match=f"^1/h: flatten failed for a .*Hostile .*{message}") as caught:
        call(grads)
    assert snapshot([grads[0], *grads[1]["h"].items]) == before
    assert caught.value.__cause__ is not None


def test_a_wrong_leaf_that_stands_before_is_named_first(register):
    register(Hostile, fails, fails)
    with pytest.raises(TypeError, match="^a: dtype int64"):
        gradclip.global_norm({"a": np.ones(1, np.int64), "b": Hostile(), "c": object()})
    with pytest.raises(TypeError, match="^b: flatten failed"):
        gradclip.global_norm({"a": np.ones(1), "b": Hostile(), "c": object()})


REBUILDS = {
    "raises": (fails, "no such disk"),
    "another type": (lambda x, children: Layer(*children), "rebuild returned a test_containers.Layer"),
    "nothing": (lambda x, children: None, "rebuild returned a builtins.NoneType"),
    "itself": (lambda x, children: x, "cannot be made of other items"),
    "itself, changed": (lambda x, children: setattr(x, "items", children) or x, "cannot be made of other items"),
    "fewer": (lambda x, children: Hostile(*children[:1]), "cannot be made of other items"),
    "turned around": (lambda x, children: Hostile(*children[::-1]), "cannot be made of other items"),
    "one twice": (lambda x, children: Hostile(children[0], children[0]), "cannot be made of other items"),
    "other dtypes": (lambda x, children: Hostile(*(c.astype(np.float32) for c in children)), "cannot be made of other items"),
    "other shapes": (lambda x, children: Hostile(*(c[:, None] for c in children)), "cannot be made of other items"),
    "lists": (lambda x, children: Hostile(*(c.tolist() for c in children)), "cannot be made of other items"),
}


@pytest.mark.parametrize("kind", REBUILDS)
def test_a_rebuild_that_is_wrong_is_named_before_anything_is_read(register, kind):
    rebuild, message = REBUILDS[kind]
    register(Hostile, lambda x: (x.items, None), rebuild)
    grads = {"h": Hostile(np.full(2, math.nan), np.full(2, math.nan))}  # to read them is an error
    before = snapshot(grads["h"].items)
    for call in (gradclip.clip_by_global_norm, gradclip.clip_by_norm, gradclip.clip_by_value, gradclip.clip_per_sample):
        with pytest.raises(TypeError, match=rf"^h: a test_containers.Hostile .*{re.escape(message)}"):
            call(grads, 1.0)
    assert snapshot(grads["h"].items) == before
    assert gradclip.clip_by_global_norm_(grads, 1.0, nonfinite="skip").skipped  # which makes no other one


def test_a_rebuild_that_raises_only_for_results(register):
    asked = []

    def rebuild(x, children):
        asked.append(children)
        return fails() if len(asked) > 1 else Hostile(*children)

    register(Hostile, lambda x: (x.items, None), rebuild)
    grads = [Hostile(np.full(2, 3.0), np.full(2, 4.0))]
    before = snapshot(grads[0].items)
    with pytest.raises(TypeError, match=r"^0: a test_containers.Hostile cannot be made of other items \(no such disk\)"):
        gradclip.clip_by_global_norm(grads, 1.0)
    assert len(asked) == 2
    assert snapshot(grads[0].items) == before


def test_one_that_makes_its_children_anew_is_not_written(register):
    register(Hostile, lambda x: (list(map(np.copy, x.items)), None), lambda x, children: Hostile(*children))
    grads = [np.full(2, 3.0), Hostile(np.full(2, 4.0))]
    before = snapshot([grads[0], *grads[1].items])
    with pytest.raises(TypeError, match="^1: Hostile makes its values anew"):
        gradclip.clip_by_global_norm_(grads, 1.0)
    with pytest.raises(TypeError, match="^1: Hostile makes its values anew"):
        gradclip.clip_by_global_norm([np.ones(2), [np.ones(2)]], 1.0, out=grads)
    assert snapshot([grads[0], *grads[1].items]) == before
    assert gradclip.clip_by_global_norm(grads, 1.0)[1].clipped


def test_one_that_has_other_children_each_time(register):
    counts = iter(range(1, 100))
    register(Hostile, lambda x: (x.items * next(counts), None), lambda x, children: Hostile(*children))
    leaf = np.full(2, 3.0)
    with pytest.raises(TypeError, match="^grads: Hostile makes its values anew"):
        gradclip.clip_by_global_norm_(Hostile(leaf), 1.0)
    with pytest.raises(TypeError, match="^grads: a .*Hostile cannot be made of other items"):
        gradclip.clip_by_global_norm(Hostile(leaf), 1.0)
    assert leaf.tolist() == [3.0, 3.0]


def test_the_same_memory_twice_in_them():
    leaf = np.ones(3)
    with pytest.raises(ValueError, match="^0/weight and 1/1/bias share memory"):
        gradclip.clip_by_global_norm_([Layer(leaf), Bag(np.ones(1), Layer(None, leaf[1:]))], 1.0)
    assert leaf.tolist() == [1.0] * 3


def test_interrupts_pass_through(register):
    def interrupted(x):
        raise KeyboardInterrupt

    register(Hostile, interrupted, fails)
    with pytest.raises(KeyboardInterrupt):
        gradclip.global_norm([Hostile()])


def refused(call, grads):
    try:
        call(grads)
    except TypeError:
        return True


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("flatten", [fails, lambda x: (x.items, None)])
def test_nothing_is_kept_and_no_cycle_made(register, flatten, call, uncollected):
    register(Hostile, flatten, lambda x, children: Hostile(*children))
    for expected in (None, 0):  # the first time something may be remembered
        grads = [np.ones(2), {"h": Hostile(np.ones(1), np.ones(1))}]
        if call is CALLS["thresholds"]:
            grads = [1.0, {"h": Hostile(np.array(1.0), 2.0)}]
        kept = [weakref.ref(grads[1]["h"]), weakref.ref(grads[1]["h"].items[0])]
        assert refused(call, grads) is (True if flatten is fails else None)
        del grads
        assert [ref() for ref in kept] == [None, None]
        assert expected is None or gc.collect() == expected
        gc.collect()


# ---- JAX's registry --------------------------------------------------------------------------------------


@pytest.fixture
def jax():
    return pytest.importorskip("jax")


def registered_with_jax(jax, name, **how):
    """A type of which JAX knows two children, in one of the ways in which it can be told."""

    class Made:
        def __init__(self, first, second, note="kept"):
            self.first, self.second, self.note = first, second, note

    Made.__name__ = Made.__qualname__ = name
    tree = jax.tree_util
    if how.get("keys"):
        tree.register_pytree_with_keys(
            Made,
            lambda x: (((tree.GetAttrKey("first"), x.first), (tree.DictKey("second"), x.second)), x.note),
            lambda note, children: Made(*children, note),
        )
    else:
        tree.register_pytree_node(Made, lambda x: ((x.first, x.second), x.note), lambda note, children: Made(*children, note))
    return Made


@pytest.mark.parametrize("keys", [True, False])
def test_containers_that_jax_knows(jax, keys):
    kind = registered_with_jax(jax, "Made", keys=keys)
    first, second = ("first", "second") if keys else ("0", "1")
    grads = {"m": kind(jax.numpy.array([3.0, 4.0]), [None, kind(np.array([0.0]), None, "inner")], "outer")}
    clipped, report = gradclip.clip_by_global_norm(grads, 2.5)
    made = clipped["m"]
    assert (type(made), made.note, made.second[0], made.second[1].note) == (kind, "outer", None, "inner")
    assert isinstance(made.first, jax.Array)
    assert (report.norm, made.first.tolist()) == (5.0, [1.5, 2.0])
    assert gradclip.clip_by_norm(grads, {f"m/{first}": 2.5, f"m/{second}/1/{first}": 1.0})[1].scales.tolist() == [0.5, 1.0]
    with pytest.raises(TypeError, match=f"^m/{second}/1/{second}: dtype int64"):
        gradclip.global_norm({"m": kind(None, [None, kind(None, np.array([2]))])})
    inner = grads["m"].second[1]
    assert gradclip.clip_by_global_norm_([kind(np.array([3.0]), inner)], 1.5).scale == 0.5
    with pytest.raises(ValueError, match=f"^m/{first}: read-only"):
        gradclip.clip_by_global_norm_(grads, 1.0)
    out = {"m": kind(np.zeros(2, np.float32), [None, kind(np.zeros(1), None)])}
    gradclip.clip_by_global_norm(grads, 2.5, out=out)
    assert out["m"].first.tolist() == [1.5, 2.0]


def test_dataclasses_that_jax_knows(jax):
    @dataclasses.dataclass
    class Weights:
        w: Any
        b: Any
        name: str = "layer"

    with pytest.raises(TypeError, match=r"^a: .*Weights is not an array"):
        gradclip.global_norm({"a": Weights(np.ones(1), None)})
    jax.tree_util.register_dataclass(Weights, ["w", "b"], ["name"])
    clipped, _ = gradclip.clip_by_global_norm({"a": Weights(np.array([3.0, 4.0]), None, "head")}, 2.5)
    assert (clipped["a"].w.tolist(), clipped["a"].b, clipped["a"].name) == ([1.5, 2.0], None, "head")


def test_containers_without_children_that_jax_knows(jax):
    class Empty:
        pass

    jax.tree_util.register_pytree_node(Empty, lambda x: ((), None), lambda aux, children: Empty())
    clipped, report = gradclip.clip_by_global_norm([Empty(), np.array([3.0])], 1.5)
    assert (type(clipped[0]), report.norm) == (Empty, 3.0)


def test_what_both_know_is_ours(jax, register):
    kind = registered_with_jax(jax, "Both", keys=True)
    register(kind, lambda x: ([x.second, x.first], ["b", "a"]), lambda x, children: kind(*children[::-1], "ours"))
    clipped, report = gradclip.clip_by_norm([kind(np.array([2.0]), np.array([3.0]))], {"0/b": 1.5, "0/a": 1.0})
    assert (clipped[0].note, report.norms.tolist(), report.scales.tolist()) == ("ours", [3.0, 2.0], [0.5, 0.5])


def test_a_container_of_jax_s_that_holds_itself(jax):
    kind = registered_with_jax(jax, "Loop")
    loop = kind(np.ones(1), None)
    loop.second = loop
    with pytest.raises(ValueError, match="does a container hold itself"):
        gradclip.global_norm(loop)


def test_plain_containers_are_opened_as_without_jax(jax):
    """JAX sorts the keys of a dict; here they keep their order."""
    grads = {"b": np.array([1.0]), "a": np.array([2.0])}
    assert gradclip.clip_by_norm_(grads, 9.0).norms.tolist() == [1.0, 2.0]


def test_a_jax_that_is_being_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", types.ModuleType("jax"))
    assert gradclip.global_norm([Bag(np.array([3.0]))]) == 3.0
    with pytest.raises(TypeError, match="^0: .*SimpleNamespace is not an array"):
        gradclip.global_norm([types.SimpleNamespace()])
