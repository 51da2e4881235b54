"""clip_by_value against numpy.clip."""

import copy
import ctypes
import math
import mmap
import pickle

import numpy as np
import pytest
from reference import REAL, gradient, layouts

import gradclip


@pytest.mark.parametrize("bounds", [(0.5,), (-0.25, 0.75), (0.1, math.inf), (-math.inf, 0.3), (0,), (-3e4, 1e30), (0.2, 0.2)])
@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_as_numpy_clips(isa, dtype, bounds):
    low, high = (-bounds[0], bounds[0]) if len(bounds) == 1 else bounds
    with np.errstate(over="ignore"):
        low, high = np.array(low).astype(dtype), np.array(high).astype(dtype)
        for size in (0, 1, 17, 4097):
            for name, view in layouts(gradient(dtype, size)):
                copy, untouched = np.array(view), view.tobytes()
                wanted = np.clip(copy, low, high)
                clipped, report = gradclip.clip_by_value(view, *bounds)
                assert view.tobytes() == untouched
                assert clipped.tolist() == wanted.tolist(), name
                changed = int((wanted != copy).sum())
                assert (report.clipped_count, report.size, report.clipped) == (changed, copy.size, changed > 0)
                assert gradclip.clip_by_value_(view, *bounds).clipped_count == changed
                assert view.tolist() == wanted.tolist(), name
                assert not gradclip.clip_by_value_(view, *bounds).clipped


@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_bounds_are_rounded_as_numpy_rounds_them(isa, dtype):
    """Near the middle of two numbers of the dtype, where rounding to float32 first would end on the other side."""
    step = float(np.nextafter(np.array(1, dtype), np.array(2, dtype))) - 1
    for scale in (1.0, 2.0**-20, 2.0**-130, 2.0**15 * (2 - step / 2)):
        for bound in (1 + step / 2, 1 + step / 2 + 2.0**-40, 1 + 1.5 * step - 2.0**-40, 1 + 1.5 * step):
            with np.errstate(over="ignore", under="ignore"):
                wanted = np.array(bound * scale).astype(dtype)
            grad = np.array([np.inf, -np.inf], dtype)
            gradclip.clip_by_value_(grad, bound * scale)
            assert grad.tolist() == [wanted, -wanted], (scale, bound)


def test_report():
    a = [np.array([-3.0, 0.5]), np.array([4.0], np.float32)]
    report = gradclip.clip_by_value_(a, 1)
    assert a[0].tolist() == [-1.0, 0.5]
    assert (report.max_norm, report.scale, report.max_abs, report.clipped_count, report.size) == (1.0, 1.0, 4.0, 2, 3)
    assert report.norm == pytest.approx(math.sqrt(9.25 + 16))

    text = f"ClipReport(norm={report.norm!r}, max_norm=1.0, clipped_count=2 of 3 elements)"
    assert [repr(r) for r in (report, pickle.loads(pickle.dumps(report)), copy.copy(report))] == [text] * 3
    assert pickle.loads(pickle.dumps(report)).clipped_count == 2
    assert repr(gradclip.clip_by_value_(a, 1.0)).endswith("clipped_count=0 of 3 elements)")


# ---- bounds by leaf ---------------------------------------------------------------------------------------

BY_LEAF = [  # the arguments, and the bounds of each leaf
    (({"a": 0.5, "x/*": 0.25},), [(-0.5, 0.5), (-0.25, 0.25), (-0.25, 0.25)]),
    (({"a": 0.5},), [(-0.5, 0.5), None, None]),
    (({"x/0": 0.0, "*": 2.0},), [(-2.0, 2.0), (-0.0, 0.0), (-2.0, 2.0)]),
    (({"a": 1.0, "x": [0.5, None, 0.25]},), [(-1.0, 1.0), (-0.5, 0.5), (-0.25, 0.25)]),
    (({"a": -1.0, "x": (-0.5, None, 0.1)}, 0.75), [(-1.0, 0.75), (-0.5, 0.75), (0.1, 0.75)]),
    (({"a": -0.5}, {"x/2": 0.5, "a": 0.1}), [(-0.5, 0.1), None, (-math.inf, 0.5)]),
    ((-0.5, {"x/*": 0.5}), [(-0.5, math.inf), (-0.5, 0.5), (-0.5, 0.5)]),
]


@pytest.mark.parametrize(("bounds", "each"), BY_LEAF)
@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_bounds_by_leaf(isa, dtype, bounds, each):
    """Every leaf as if it were clipped alone: short and long, contiguous and strided, with elements that are not finite."""
    sizes = (17, 70_000, 4097)
    leaves = [gradient(dtype, 2 * n, seed=n)[::2] if n == 4097 else gradient(dtype, n, seed=n) for n in sizes]
    leaves[1][5], leaves[1][69_000], leaves[2][4000] = np.inf, np.nan, -np.inf
    grads = {"a": leaves[0], "x": [leaves[1], None, leaves[2]]}
    before = [leaf.copy() for leaf in leaves]
    wanted, changed = [leaf.copy() for leaf in leaves], 0
    for leaf, pair in zip(wanted, each, strict=True):
        changed += 0 if pair is None else gradclip.clip_by_value_(leaf, *pair).clipped_count
    clipped, report = gradclip.clip_by_value(grads, *bounds)
    assert [leaf.tobytes() for leaf in leaves] == [leaf.tobytes() for leaf in before]
    in_place = gradclip.clip_by_value_(grads, *bounds)
    for made in ([clipped["a"], *clipped["x"][::2]], leaves):
        assert [leaf.tobytes() for leaf in made] == [leaf.tobytes() for leaf in wanted]
    for found in (report, in_place):
        assert (found.clipped_count, found.size, found.nonfinite, found.first_nonfinite) == (changed, sum(sizes), 3, ("x/0", 5))
        assert found.max_norm is bounds[-1]


@pytest.mark.skipif(not hasattr(mmap, "PROT_READ"), reason="needs memory that cannot be written")
def test_a_leaf_that_no_pattern_matches_is_not_written():
    memory = mmap.mmap(-1, 8192, prot=mmap.PROT_READ)
    address = np.frombuffer(memory).ctypes.data
    frozen = np.ctypeslib.as_array((ctypes.c_double * 1024).from_address(address))  # NumPy takes it for writable
    grads = {"frozen": frozen, "w": np.full(9, 3.0)}
    assert gradclip.clip_by_value_(grads, {"w": 1.0}).clipped_count == 9
    assert (grads["w"] == 1).all()


def test_complex_leaves_are_refused_whether_they_have_bounds_or_not():
    grads = {"w": np.full(2, 9.0), "z": np.ones(2, np.complex64)}
    with pytest.raises(TypeError, match="^z: complex numbers have no order"):
        gradclip.clip_by_value_(grads, {"w": 1.0})
    assert (grads["w"] == 9).all()


@pytest.mark.parametrize(
    ("bounds", "error", "message"),
    [
        (({"c*": 0.1},), ValueError, r"clip_min has the pattern 'c\*', which matches no path in grads: a, b"),
        ((-1, {"c*": 0.1}), ValueError, r"clip_max has the pattern 'c\*'"),
        (({"a": 0.1, 3: 1.0},), ValueError, "has the key 3, which is neither in grads nor a pattern"),
        (({"a": -0.1},), ValueError, r"clip_min\['a'\] must be at least 0, not -0.1"),
        (({"a": math.nan}, 1.0), ValueError, r"clip_min\['a'\] must be a number, not nan"),
        (({"a": 2.0, "b": 0.0}, 1.0), ValueError, "^a: clip_min 2.0 is above clip_max 1.0"),
        (({"b": "x", "a": 1},), TypeError, "clip_min of b must be a real number"),
        (([1.0, 2.0],), ValueError, "grads is a dict, clip_min a list"),
    ],
)
def test_bad_bounds_by_leaf(bounds, error, message):
    grads = {"a": np.full(2, 9.0), "b": np.full(2, 9.0)}
    with pytest.raises(error, match=message):
        gradclip.clip_by_value_(grads, *bounds)
    assert (grads["a"] == 9).all()


def test_no_leaves_and_one_leaf():
    assert gradclip.clip_by_value_([], [], []).size == 0
    assert gradclip.clip_by_value_({}, {"w*": 1.0}).size == 0
    assert gradclip.clip_by_value(np.array([3.0]), {"grads": 1.0})[0].tolist() == [1.0]


@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_inf_is_clipped_and_nan_stays(isa, dtype):
    a = np.array([np.nan, np.inf, -np.inf, 2.0, -0.0], dtype)
    report = gradclip.clip_by_value_(a, 1.0)
    assert math.isnan(a[0])
    assert a[1:].tolist() == [1.0, -1.0, 1.0, 0.0]
    assert report.nonfinite == 3
    assert report.clipped_count == 3
    assert report.first_nonfinite == ("grads", 0)
    only = np.array([np.nan, 0.5], dtype)
    before = only.tobytes()
    assert not gradclip.clip_by_value_(only, 1.0).clipped
    assert only.tobytes() == before


def test_leaves_without_a_change_are_not_written():
    inside, outside = np.array([0.1, -0.0]), np.array([2.0])
    inside.flags.writeable = True
    gradclip.clip_by_value_([inside, outside], 1.0)
    assert inside.tobytes() == np.array([0.1, -0.0]).tobytes()
    assert outside.tolist() == [1.0]


def test_out():
    a, out = np.array([5.0, -5.0]), np.zeros(2)
    returned, _ = gradclip.clip_by_value(a, -1, 2, out=out)
    assert returned is out
    assert out.tolist() == [2.0, -1.0]
    gradclip.clip_by_value(a, -1, 2, out=a)
    assert a.tolist() == [2.0, -1.0]


@pytest.mark.parametrize(
    ("bounds", "error"),
    [
        ((-1,), ValueError),
        ((math.nan,), ValueError),
        ((2, 1), ValueError),
        ((0, math.nan), ValueError),
        (("a",), TypeError),
        ((None, 1), TypeError),
    ],
)
def test_bad_bounds(bounds, error):
    a = np.ones(3)
    with pytest.raises(error, match="clip_m"):
        gradclip.clip_by_value_(a, *bounds)
    assert a.tolist() == [1.0] * 3


def test_complex_has_no_order():
    with pytest.raises(TypeError, match="^z: complex"):
        gradclip.clip_by_value_({"a": np.ones(2), "z": np.ones(2, complex)}, 0.5)
