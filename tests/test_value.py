"""clip_by_value against numpy.clip."""

import math

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
