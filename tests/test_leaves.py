"""The gate: nestings, paths, foreign arrays, and everything that must be refused before the first write."""

import collections
import itertools
import math
import re
import warnings
from types import MappingProxyType

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import snapshot

import gradclip
from gradclip._leaves import Leaves
from gradclip._leaves.overlap import pairs_compared

Layer = collections.namedtuple("Layer", "weight bias")


class Mine(list):
    pass


CLIPS = [
    lambda grads: gradclip.clip_by_global_norm_(grads, 0.1),
    lambda grads: gradclip.clip_by_global_norm_(grads, math.inf),
    lambda grads: gradclip.clip_by_norm_(grads, 0.1),
    lambda grads: gradclip.clip_by_value_(grads, 0.1),
    gradclip.normalize_,
    lambda grads: gradclip.apply_clip_(grads, gradclip.measure(np.ones(9)), 0.1),
]


# ---- nestings -------------------------------------------------------------------------------------------


def test_every_nesting_keeps_its_kind():
    a = np.array([3.0, 4.0])
    grads = {
        "list": [a, None],
        "named": Layer(a.copy(), None),
        "ordered": collections.OrderedDict(x=a.copy()),
        "default": collections.defaultdict(list, {"y": a.copy()}),
        "frozen": MappingProxyType({"z": a.copy()}),
        "empty": [],
        "zero": np.array(0.0),
        "deque": collections.deque(maxlen=5),
        "mine": Mine(),
    }
    clipped, report = gradclip.clip_by_global_norm(grads, math.sqrt(125) / 2)
    assert report.norm == math.sqrt(125)
    assert report.size == 6
    assert list(clipped) == list(grads)
    assert clipped["list"][1] is None
    assert isinstance(clipped["named"], Layer)
    assert isinstance(clipped["ordered"], collections.OrderedDict)
    assert isinstance(clipped["default"], collections.defaultdict)
    assert clipped["default"].default_factory is list
    assert isinstance(clipped["frozen"], MappingProxyType)
    assert clipped["empty"] == []
    assert clipped["zero"].shape == ()
    assert clipped["deque"].maxlen == 5
    assert isinstance(clipped["mine"], Mine)
    assert clipped["named"].weight.tolist() == [1.5, 2.0]


def test_iterators_are_read_once():
    leaves = [np.array([3.0]), np.array([4.0])]
    assert gradclip.clip_by_global_norm_((g for g in leaves), 1.0).norm == 5.0
    assert leaves[0][0] == 3 * 0.2
    grads = {"a": np.array([3.0]), "b": np.array([4.0])}
    assert gradclip.global_norm(grads.values()) == 5.0
    assert gradclip.global_norm(collections.deque(grads.values())) == 5.0
    clipped, _ = gradclip.clip_by_global_norm(map(np.copy, leaves), 0.1)
    assert isinstance(clipped, list)
    assert len(clipped) == 2
    nested, _ = gradclip.clip_by_global_norm([(g for g in leaves), None], 0.1)
    assert isinstance(nested[0], list)


def test_an_iterator_at_two_places_is_read_once():
    leaves = iter([np.array([3.0]), np.array([4.0])])
    grads = {"a": leaves, "b": [leaves, None]}
    clipped, report = gradclip.clip_by_global_norm(grads, 1.0)
    assert report.norm == math.sqrt(50)
    assert [len(clipped["a"]), len(clipped["b"][0])] == [2, 2]
    assert clipped["a"][0] is not clipped["b"][0][0]


def test_used_up_iterator_warns_here():
    empty = iter([])
    with pytest.warns(RuntimeWarning, match="an iterator yielded nothing") as caught:
        report = gradclip.clip_by_global_norm_(empty, 1.0)
    assert report.norm == 0.0
    assert caught[0].filename == __file__
    with pytest.warns(RuntimeWarning, match="an iterator yielded nothing"):
        gradclip.global_norm([np.ones(1), iter([])])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradclip.clip_by_global_norm_([], 1.0)


def test_paths():
    bad = {"layers": [{"weight": np.ones(2)}, Layer(np.ones(1), np.array([1, np.nan]))], 7: np.ones(1)}
    with pytest.raises(gradclip.NonFiniteGradientError) as caught:
        gradclip.clip_by_global_norm_(bad, 1.0)
    assert (caught.value.path, caught.value.index) == ("layers/1/bias", 1)
    with pytest.raises(gradclip.NonFiniteGradientError, match="^grads:"):
        gradclip.clip_by_global_norm_(np.array([np.nan]), 1.0)
    with pytest.raises(gradclip.NonFiniteGradientError, match="^1:"):
        gradclip.clip_by_global_norm_([np.ones(1), np.array([np.inf])], 1.0)


def test_a_nesting_that_holds_itself_is_an_error_and_not_a_crash():
    loop = []
    loop.append(loop)
    with pytest.raises(ValueError, match="does a container hold itself"):
        gradclip.global_norm(loop)
    deep = np.array([3.0, 4.0])
    for _ in range(150):
        deep = [deep]
    assert gradclip.clip_by_global_norm(deep, 1.0)[1].norm == 5.0


trees = st.recursive(
    st.lists(st.floats(-1e3, 1e3, width=32), max_size=5).map(lambda x: np.array(x, np.float32)) | st.none(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3) | st.tuples(inner, inner)
    ),
    max_leaves=8,
)


def flat(node):
    if isinstance(node, dict):
        node = list(node.values())
    if isinstance(node, list | tuple):
        return [leaf for child in node for leaf in flat(child)]
    return [] if node is None else [node]


def shape(node):
    if isinstance(node, dict):
        return {k: shape(v) for k, v in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(shape(v) for v in node)
    return None if node is None else node.shape


@given(trees, st.floats(0, 100))
def test_any_nesting_is_its_flat_list(tree, threshold):
    clipped, report = gradclip.clip_by_global_norm(tree, threshold)
    expected, alone = gradclip.clip_by_global_norm(flat(tree), threshold)
    assert report.norm == alone.norm
    assert shape(clipped) == shape(tree)
    assert [a.tobytes() for a in flat(clipped)] == [a.tobytes() for a in expected]
    assert report.norms.tolist() == [gradclip.global_norm(a) for a in flat(tree)]


@settings(max_examples=200)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=4),
    st.data(),
    st.sampled_from([np.float16, np.float32, np.float64, np.complex64]),
)
def test_any_view_is_its_copy(dims, data, dtype):
    """Steps, reversals and permutations of axes: same norm, same elements, nothing else touched."""
    base = np.arange(1, 1 + math.prod(2 * d + 1 for d in dims)).reshape([2 * d + 1 for d in dims]).astype(dtype)
    slices = [slice(None, None, data.draw(st.sampled_from([1, 2, 3, -1, -2]))) for _ in dims]
    view = base[tuple(slices)].transpose(data.draw(st.permutations(range(len(dims)))))
    copy = np.array(view)
    norm = gradclip.global_norm(copy)
    assert gradclip.global_norm(view) == norm
    untouched = base.copy()
    functional, _ = gradclip.clip_by_global_norm(view, norm / 3)
    assert base.tobytes() == untouched.tobytes()
    into = base.copy()
    target = into[tuple(slices)].transpose(data.draw(st.permutations(range(len(dims)))))
    if target.shape == view.shape:
        gradclip.clip_by_global_norm(view, norm / 3, out=target)
        assert target.tolist() == functional.tolist()
    gradclip.clip_by_global_norm_(view, norm / 3)
    gradclip.clip_by_global_norm_(copy, norm / 3)
    assert view.tolist() == copy.tolist() == functional.tolist()
    mask = np.ones(base.shape, bool)
    mask[tuple(slices)] = False
    assert (base[mask] == untouched[mask]).all()


# ---- bad input --------------------------------------------------------------------------------------------


def masked():
    return np.ma.MaskedArray([1.0, 2.0], [True, False])


BAD_LEAVES = {
    "integers": np.array([1, 2]),
    "booleans": np.array([True]),
    "objects": np.array([1.0, None], object),
    "dates": np.array(["2020-01-01"], "M8[D]"),
    "structured": np.zeros(2, [("x", float)]),
    "long doubles": np.ones(2, np.longdouble),
    "complex long doubles": np.ones(2, np.clongdouble),
    "strings": np.array(["1.0"]),
    "masked": masked(),
    "swapped": np.ones(2, np.dtype(np.float64).newbyteorder()),
    "number": 3.0,
    "text": "abc",
    "bytes": b"abc",
    "scalar": np.float64(3.0),
    "set": {1.0},
    "object": object(),
    "dia": scipy.sparse.dia_array(np.eye(3)),
}


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("kind", BAD_LEAVES)
def test_leaves_that_cannot_be_clipped(clip, kind):
    good = np.array([3.0, 4.0])
    before = good.tobytes()
    with pytest.raises(TypeError, match=r"^b/2: "):
        clip({"a": good, "b": [None, good.copy(), BAD_LEAVES[kind]]})
    with pytest.raises(TypeError, match=r"^grads: |^0"):
        clip(BAD_LEAVES[kind])
    assert good.tobytes() == before


def read_only():
    a = np.ones(3)
    a.flags.writeable = False
    return a


UNWRITABLE = {
    "read-only": (read_only, "read-only"),
    "broadcast": (lambda: np.broadcast_to(np.ones(1), (3,)), "read-only"),
    "writable broadcast": (lambda: np.lib.stride_tricks.as_strided(np.ones(1), (3,), (0,)), "share memory"),
    "windows": (lambda: np.lib.stride_tricks.as_strided(np.ones(5), (3, 3), (8, 8)), "share memory"),
    "unsorted windows": (lambda: np.lib.stride_tricks.as_strided(np.ones(20), (3, 3), (16, 24)), None),
    "bytes apart": (lambda: np.lib.stride_tricks.as_strided(np.ones(5), (3,), (4,)), "share memory"),
}


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("kind", UNWRITABLE)
def test_leaves_that_cannot_be_written(clip, kind):
    make, message = UNWRITABLE[kind]
    good, bad = np.array([3.0, 4.0]), make()
    before = snapshot([good, bad])
    if message is None:  # odd strides, and yet no element twice: (0, 24, 48) + (0, 16, 32)
        assert len(np.unique((np.arange(3)[:, None] * 16 + np.arange(3) * 24).ravel())) == 9
        clip([good, bad])
        return
    with pytest.raises(ValueError, match=f"^1: .*{message}"):
        clip([good, bad])
    assert snapshot([good, bad]) == before
    assert gradclip.global_norm(bad) == pytest.approx(np.linalg.norm(bad))  # reading is fine
    clipped, _ = gradclip.clip_by_global_norm(bad, 0.1)
    assert gradclip.global_norm(clipped) == pytest.approx(0.1)


@pytest.mark.parametrize("clip", CLIPS)
def test_overlapping_leaves_name_both_paths(clip):
    a = np.ones(10)
    for bad in (
        {"x": a, "y": {"z": a}},
        {"x": a[:6], "y": {"z": a[5:]}},
        {"x": a[::2], "y": {"z": a[2:3]}},
        {"x": a[::-1], "y": {"z": a[::3]}},
    ):
        with pytest.raises(ValueError, match="x and y/z share memory"):
            clip(bad)
        with pytest.raises(ValueError, match="y/z and x|x and y/z"):
            clip({"y": bad["y"], "other": np.ones(2), "x": bad["x"]})
    assert a.tolist() == [1.0] * 10


def test_overlap_is_found_as_brute_force_finds_it():
    rng = np.random.default_rng(4)
    seen = [0, 0]
    for _ in range(600):
        base = np.zeros((6, 8), np.float32)
        place = np.arange(48).reshape(6, 8)

        def cut():
            rows, columns = (slice(*sorted(rng.integers(0, n + 1, 2)), int(rng.integers(1, 4))) for n in (6, 8))
            flip = slice(None, None, int(rng.choice([-1, 1]))), slice(None, None, int(rng.choice([-1, 1])))
            return lambda a: a[rows, columns][flip]

        cuts = [cut() for _ in range(3)]
        places = [set(c(place).ravel().tolist()) for c in cuts]
        overlap = any(places[i] & places[j] for i in range(3) for j in range(i))
        seen[overlap] += 1
        if overlap:
            with pytest.raises(ValueError, match="share memory"):
                gradclip.clip_by_global_norm_([c(base) for c in cuts], 1.0)
        else:
            gradclip.clip_by_global_norm_([c(base) for c in cuts], 1.0)
    assert min(seen) > 50


def test_reversed_contiguous_views_overlap_too():
    x = np.ones(10)
    with pytest.raises(ValueError, match="0 and 1 share memory"):
        gradclip.clip_by_global_norm_([x[:3], x[3::-1]], 0.1)
    huge = np.lib.stride_tricks.as_strided(np.ones(1), (10**11,), (0,))
    with pytest.raises(ValueError, match="share memory"):
        gradclip.clip_by_global_norm_(huge, 0.1)


def test_mappings_that_make_their_values_anew(tmp_path):
    np.savez(tmp_path / "g.npz", a=np.array([3.0, 4.0]))
    with np.load(tmp_path / "g.npz") as file:
        with pytest.raises(TypeError, match="NpzFile makes its values anew"):
            gradclip.clip_by_global_norm_(file, 0.1)
        clipped, _ = gradclip.clip_by_global_norm(file, 2.5)
    assert clipped["a"].tolist() == [1.5, 2.0]


def test_interleaved_views_are_fine():
    a = np.ones(12, np.float32)
    gradclip.clip_by_global_norm_([a[::2], a[1::2]], math.sqrt(3))
    assert a.tolist() == [0.5] * 12
    matrix = np.ones((40, 30))
    report = gradclip.clip_by_norm_([matrix[:, i] for i in range(30)], math.sqrt(10))
    assert report.clipped_count == 30
    assert np.allclose(matrix, 0.5)
    blocks = np.ones((4, 4))
    gradclip.clip_by_global_norm_([blocks[:2, :2], blocks[:2, 2:], blocks[2:, :2], blocks[2:, 2:]], 2.0)
    assert np.allclose(blocks, 0.5)
    parts = np.ones(4, np.complex128)
    gradclip.clip_by_global_norm_([parts.real, parts.imag], 1.0)


def test_thousands_of_columns_are_told_apart_at_once():
    matrix = np.ones((3, 5000), np.float32)
    columns = [matrix[:, i] for i in range(5000)]
    assert gradclip.clip_by_norm_(columns, 1.0).clipped_count == 5000
    with pytest.raises(ValueError, match="7 and 5000 share memory"):
        gradclip.clip_by_norm_([*columns, matrix[1:, 7]], 1.0)


@pytest.mark.parametrize("gap", [0, 1, 16, 17, 100])
def test_many_leaves_side_by_side_in_any_order(gap):
    """Neighbours in memory are joined before anything is sorted; a leaf may fall into the gap between two."""
    rng = np.random.default_rng(3)
    base = np.zeros(200 * (10 + gap), np.float32)
    views = [base[i : i + 10] for i in range(0, len(base), 10 + gap)]
    for order in (range(200), range(199, -1, -1), rng.permutation(200), [*range(50, 200), *range(50)]):
        leaves = [views[i] for i in order]
        gradclip.clip_by_global_norm_(leaves, 1.0)
        gradclip.clip_by_global_norm_([np.ones((3, 2), np.float16)[:, 0], *leaves, np.zeros(0)], 1.0)
        if gap:
            between = [base[i + 10 : i + 10 + min(gap, 16)] for i in range(0, len(base), 10 + gap)]
            gradclip.clip_by_global_norm_([*leaves, *between], 1.0)
            gradclip.clip_by_global_norm_([*between[:100], *leaves, *between[100:]], 1.0)
            with pytest.raises(ValueError, match=r"^2\d\d and 400 share memory"):
                gradclip.clip_by_global_norm_([*leaves, *between, between[70][:1]], 1.0)
        for i, j in ((3, 150), (0, 1), (198, 199)):
            first, start = leaves[i], leaves[i].ctypes.data - base.ctypes.data
            leaves[j] = base[start // 4 + 9 : start // 4 + 10]
            with pytest.raises(ValueError, match=f"^{i} and {j} share memory"):
                gradclip.clip_by_global_norm_(leaves, 1.0)
            leaves[j] = views[order[j]]
            assert first is leaves[i]


def test_overlap_among_many_neighbours_is_found_as_brute_force_finds_it():
    rng = np.random.default_rng(11)
    seen = [0, 0]
    for _ in range(400):
        base = np.zeros(2000, np.float32)
        edges = np.cumsum(rng.integers(0, int(rng.choice([2, 12, 40])), 80))
        places = [(a, b) for a, b in itertools.pairwise(edges) if rng.random() < 0.9]
        pieces = [places[i : i + 9] for i in range(0, len(places), 9)]  # some upwards, some downwards, in any order
        pieces = [piece[:: int(rng.choice([-1, 1]))] for piece in pieces]
        if rng.random() < 0.7:
            pieces = [pieces[i] for i in rng.permutation(len(pieces))]
        places = [place for piece in pieces for place in piece]
        for _ in range(int(rng.integers(0, 3))):
            start = int(rng.integers(0, edges[-1] + 1))
            places.insert(int(rng.integers(0, len(places))), (start, start + int(rng.integers(0, 3))))
        elements = [i for a, b in places for i in range(a, b)]
        overlap = len(elements) > len(set(elements))
        seen[overlap] += 1
        if overlap:
            with pytest.raises(ValueError, match="share memory"):
                gradclip.clip_by_global_norm_([base[a:b] for a, b in places], 1.0)
        else:
            gradclip.clip_by_global_norm_([base[a:b] for a, b in places], 1.0)
    assert min(seen) > 50


def test_interleaved_views_are_told_apart_as_brute_force_tells_them():
    """Columns, blocks and rows of some matrices in one memory, in both orders, some of them only read."""
    rng = np.random.default_rng(12)
    seen = [0, 0]
    for _ in range(300):
        base, place = np.zeros(4 * 60, np.float32), np.arange(4 * 60)

        def views(memory, seed):
            rng = np.random.default_rng(seed)
            found = []
            for start in range(0, 240, 60):
                shape = [(6, 10), (3, 2, 10), (5, 12), (60,)][rng.integers(0, 4)]
                matrix = memory[start : start + 60].reshape(shape, order=rng.choice(["C", "F"]))
                cuts = np.unique(rng.integers(0, shape[-1] + 1, 5))
                blocks = [matrix[..., a:b] for a, b in itertools.pairwise(cuts)]
                split = int(rng.integers(0, shape[0]))
                found += [b for block in blocks for b in (block[:split], block[split:][::-1])]
            if rng.random() < 0.4:
                start, stop, step = rng.integers(0, 240), rng.integers(0, 241), rng.integers(1, 50)
                found.append(memory[start:stop:step])
            order = rng.permutation(len(found))
            return [found[i] for i in order if found[i].size]

        seed = int(rng.integers(0, 2**32))
        leaves, places = views(base, seed), [set(v.ravel().tolist()) for v in views(place, seed)]
        written = int(rng.integers(1, len(leaves) + 1)) if rng.random() < 0.5 else len(leaves)
        pairs = [(i, j) for i in range(written) for j in range(len(leaves)) if i != j and places[i] & places[j]]
        seen[bool(pairs)] += 1
        if not pairs:
            Leaves(leaves[:written], True).check_overlap(Leaves(leaves[written:]), False)
            continue
        with pytest.raises(ValueError, match="share") as raised:
            Leaves(leaves[:written], True).check_overlap(Leaves(leaves[written:]), False)
        i, j = map(int, re.findall(r"\d+", str(raised.value))[:2])
        assert (i, j + written if "of grads" in str(raised.value) else j) in pairs
    assert min(seen) > 50


def test_a_view_that_belongs_to_none_does_not_make_all_pairs_be_compared():
    a, b, flat = np.zeros((6, 3000), np.float32), np.zeros((6, 3000), np.float32), np.zeros((4, 5, 900), np.float32)
    columns, others = [a[:, i] for i in range(3000)], [b[:, i] for i in range(3000)]
    lone = np.zeros(10, np.float32)
    before = pairs_compared()
    for leaves in (
        [*columns, lone],
        [lone, *columns[:1000], *others[:1000]],
        [*columns[:1500], a[:, 1500:]],
        [a[:3, 2000:].T, a[3:, 2000:], *columns[:2000]],
        [*(flat[..., i] for i in range(900)), lone],
        [*(flat[:, 0, i] for i in range(900)), flat[:, 1:, ::-1]],
    ):
        gradclip.clip_by_global_norm_(leaves, 1.0)
    gradclip.clip_by_global_norm(columns, 1.0, out=others)
    assert pairs_compared() == before
    gradclip.clip_by_global_norm([*columns, lone], 1.0, out=[*columns, lone])  # each with itself
    gradclip.sgd_step_(columns[:1500], columns[1500:], 0.1)
    assert pairs_compared() <= before + 3001
    with pytest.raises(ValueError, match="^7 and 3000 share memory"):
        gradclip.clip_by_global_norm_([*columns, a[5:, 7:8]], 1.0)


def test_leaves_of_one_list_may_be_unusual_anywhere():
    usual = [np.full(3, 2.0) for _ in range(5)]
    for unusual in (None, [np.ones(2), None], {"a": np.ones(2)}, np.ones(6)[::3], np.ones((2, 1, 1)), memoryview(np.ones(2))):
        for where in range(6):
            grads = [*usual[:where], unusual, *usual[where:]]
            report = gradclip.clip_by_global_norm_(grads, 10.0)
            assert report.norm == math.sqrt(60 + 2 * (unusual is not None))
            assert report.size == 5 + (unusual is not None)
            report = gradclip.clip_by_global_norm([grads, tuple(grads)], 10.0)[1]
            assert report.size == 2 * (5 + (unusual is not None))


def test_functional_input_may_alias():
    a = np.array([3.0])
    clipped, report = gradclip.clip_by_global_norm([a, a], 1.0)
    assert report.norm == pytest.approx(math.sqrt(18))
    assert clipped[0] is not clipped[1]


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ({"a": np.zeros(2)}, "b: out has no such entry"),
        ({"a": np.zeros(2), "b": [np.zeros(3)], "c": np.zeros(1)}, "c: out has an entry"),
        ({"a": np.zeros(2), "b": [np.zeros(4)]}, "b/0: .*shape"),
        ({"a": np.zeros(2), "b": [np.zeros(3, np.complex128)]}, "b/0: .*dtype"),
        ({"a": np.zeros(2), "b": [np.zeros(3), None]}, "b: grads has 1 entries, out has 2"),
        ({"a": np.zeros(2), "b": {"0": np.zeros(3)}}, "b: grads is a list, out a dict"),
        ({"a": np.zeros(2), "b": np.zeros(3)}, "b: grads and out are nested in different ways"),
        ({"a": np.zeros(2), "b": [None]}, "b/0: grads and out are nested in different ways"),
        ([np.zeros(2), np.zeros(3)], "grads: grads is a dict, out a list"),
        ({"a": np.zeros(2), "b": [read_only()]}, "b/0: read-only"),
    ],
)
def test_out_must_match(out, message):
    grads = {"a": np.ones(2), "b": [np.ones(3)]}
    with pytest.raises(ValueError, match=message):
        gradclip.clip_by_global_norm(grads, 0.1, out=out)
    assert all((leaf == leaf.flat[0]).all() for leaf in flat(out))


def test_out_is_matched_by_key():
    grads, out = {"b": np.array([3.0]), "a": np.array([4.0, 0.0])}, {"a": np.zeros(2), "b": np.zeros(1)}
    returned, _ = gradclip.clip_by_global_norm(grads, 2.5, out=out)
    assert returned is out
    assert out["b"].tolist() == [1.5]
    assert out["a"].tolist() == [2.0, 0.0]


def test_out_must_not_overlap_the_input_elsewhere():
    a = np.ones(10)
    with pytest.raises(ValueError, match="out shares memory"):
        gradclip.clip_by_global_norm([a[:5]], 0.1, out=[a[1:6]])
    with pytest.raises(ValueError, match="out shares memory"):
        gradclip.clip_by_global_norm([a[:5]], 0.1, out=[a[4::-1]])
    with pytest.raises(ValueError, match="out shares memory"):
        gradclip.clip_by_global_norm([a[:5], a[5:]], 0.1, out=[a[5:], a[:5]])
    b = np.ones(5)
    with pytest.raises(ValueError, match="0 and 1 share memory"):
        gradclip.clip_by_global_norm([a[:5], a[5:]], 0.1, out=[b, b])
    assert a.tolist() == [1.0] * 10
    gradclip.clip_by_global_norm([a[:5], b], 0.1, out=[a[:5], a[5:]])
    assert a[0] == a[9] < 1
