"""Orders other than 1, 2 and inf: norms against decimal arithmetic of 60 digits, merging, and what is written."""

import math
import pickle
from decimal import Context, Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import BFLOAT16, COMPLEX, REAL, gradient, layouts, numbers

import gradclip

ORDERS = [2.0**-11, 0.01, 0.25, 0.5, 0.7, 1.5, 2.5, 3, 4, 10, 100, 601.25, 1001.5, 1e5, 1e9, 2.0**53, 1e17]
DIGITS = Context(prec=60, Emax=999999, Emin=-999999)
BEYOND = Decimal(2**1024)  # what Inf stands for: the first number that float64 has not


def exact_norm(arrays, p):
    """The p-norm to 60 digits: by logarithms of ratios to the largest magnitude, so that nothing leaves any range."""
    with localcontext(DIGITS):
        found = []
        for a in map(np.asarray, arrays):
            parts = [Decimal(x) for x in numbers([a])]
            pairs = zip(parts[::2], parts[1::2], strict=True) if a.dtype.kind == "c" else ((x, 0) for x in parts)
            found += [(x * x + y * y).sqrt() if y else abs(x) for x, y in pairs]
        found = [x for x in found if x]
        if not found:
            return Decimal("0")
        largest, p = max(found), Decimal(p)
        logs = [p * (x / largest).ln() for x in found]
        return largest * (sum(log.exp() for log in logs if log > -200).ln() / p).exp()


def ulps(norm, exact, p):
    """How far a norm is from the exact one; below p = 1 relative to what a long double allows."""
    with localcontext(DIGITS):
        if norm == math.inf:
            found = float(max(BEYOND - exact, Decimal(0)) / 2**971)
        else:
            found = float(abs(Decimal(norm) - exact) / Decimal(math.ulp(norm)))
    return found * p if p < 1 and np.finfo(np.longdouble).nmant == 52 else found


@pytest.mark.parametrize("kind", ["normal", "lognormal", "tiny", "huge", "wide"])
@pytest.mark.parametrize("dtype", REAL, ids=str)
@pytest.mark.parametrize("p", ORDERS)
def test_norm_is_within_four_ulp(p, dtype, kind):
    for size in (1, 2, 40):
        a = gradient(dtype, size, kind)
        assert ulps(gradclip.global_norm(a, p), exact_norm([a], p), p) <= 4, size


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=12),
    st.floats(2.0**-11, 1e6) | st.sampled_from(ORDERS),
)
def test_norm_of_any_floats(values, p):
    assert ulps(gradclip.global_norm(np.array(values), p), exact_norm([values], p), p) <= 4


@pytest.mark.parametrize("dtype", COMPLEX, ids=str)
@pytest.mark.parametrize("p", [0.01, 0.25, 3, 1001.5])
def test_complex_magnitudes_at_both_ends_of_the_range(p, dtype):
    top, bottom = np.finfo(dtype).max, float(np.finfo(dtype).smallest_subnormal)
    for z in ([bottom * (1 + 1j)] * 9, [top * (1 + 1j)], [top * (1 - 1j), bottom * (1 + 2j), 1], [3 + 4j, bottom * 1j]):
        a = np.array(z, dtype)
        assert ulps(gradclip.global_norm(a, p), exact_norm([a], p), p) <= 4, z


@pytest.mark.parametrize("p", [1e-300, 1e-6, 2.0**-12])
def test_tiny_orders_know_one_number_only(p):
    """Two numbers that are not 0 have a norm beyond float64: at least 2**(1 / p) times the smaller."""
    for x in (1.7, 3e300, 5e-324, 1.0):
        assert ulps(gradclip.global_norm(np.array([0, -x]), p), Decimal(x), p) <= 4
    assert gradclip.global_norm(np.array([5e-324, 5e-324]), p) == math.inf
    a = np.array([1e300, 5e-324])
    assert gradclip.clip_by_global_norm_(a, 1e300, ord=p).clipped
    assert a.tolist() == [0, 0]


@pytest.mark.parametrize("p", [1e18, 1e100, 1.7e308])
def test_enormous_orders_are_the_maximum(p):
    for kind in ("normal", "wide", "tiny", "huge"):
        a = gradient(np.float64, 5000, kind)
        assert gradclip.global_norm(a, p) == gradclip.global_norm(a, math.inf)


@pytest.mark.parametrize("p", [0.01, 0.5, 3, 100, 1e5, 1e15])
def test_equal_elements(p):
    for value in (1e300, 0.3, 5e-324):
        a = np.full(10_001, value)
        with localcontext(DIGITS):
            exact = Decimal(value) * (Decimal(a.size).ln() / Decimal(p)).exp()
        assert ulps(gradclip.global_norm(a, p), exact, p) <= 4


# ---- the same bits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.25, 3, 1e9])
@pytest.mark.parametrize("dtype", [REAL[0], REAL[3]], ids=str)
def test_threads_splits_and_order_change_no_bit(p, dtype, threads):
    a = gradient(dtype, 70_001, "lognormal" if dtype != np.float64 else "wide")
    with gradclip.num_threads(1):
        expected = gradclip.global_norm(a, p)
    assert gradclip.global_norm(a, p) == expected
    rng = np.random.default_rng(3)
    parts = np.split(rng.permutation(a), np.sort(rng.integers(0, len(a), 5)))
    assert gradclip.global_norm(parts, p) == expected
    assert sum(gradclip.measure(x, ord=p) for x in parts).norm == expected


@pytest.mark.parametrize("p", [0.5, 3])
def test_sets_and_layouts_change_no_bit(isa, p):
    a = gradient(np.float32, 5000, "lognormal")
    norm, expected = gradclip.global_norm(a, p), None
    for name, view in layouts(a):
        assert gradclip.global_norm(view, p) == norm, name
        clipped, _ = gradclip.clip_by_global_norm(view, norm / 3, ord=p)
        expected = expected or clipped.tobytes()
        assert np.asarray(clipped).reshape(-1).tobytes() == expected, name


@pytest.mark.parametrize("p", [2.0**-11, 0.3, 3, 1e5, 1e12, 1e300])
def test_measures_merge_in_any_order_and_stay_small(p):
    """Powers of these magnitudes lie up to 2e303 binades apart."""
    rng = np.random.default_rng(1)
    parts = [rng.standard_normal(4) * 2.0**e for e in (-1000, -700, -3, 0, 1, 700, 900)]
    parts += [np.array([5e-324]), np.zeros(2), np.full(3, 1e-310)]
    measures = [gradclip.measure(x, ord=p) for x in parts]
    norm = gradclip.global_norm(parts, p)
    for _ in range(30):
        left = [pickle.loads(pickle.dumps(measures[i])) for i in rng.permutation(len(measures))]
        while len(left) > 1:
            i = int(rng.integers(len(left) - 1))
            left[i : i + 2] = [left[i] + left[i + 1]]
        assert left[0].norm == norm
        assert len(pickle.dumps(left[0])) - len(pickle.dumps(left[0].norms)) < 1024


# ---- what is written -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1024.0, 0.3])
@pytest.mark.parametrize("p", [0.5, 3, 100, 1e5])
@pytest.mark.parametrize("dtype", [*REAL, COMPLEX[0]], ids=str)
def test_strict_keeps_the_bound(p, dtype, scale):
    for seed in range(4):
        a = [gradient(np.dtype(np.float32) if dtype.kind == "c" else dtype, n, seed=seed).astype(dtype) for n in (3, 60)]
        norm = gradclip.clip_by_global_norm(a, math.inf, ord=p, grad_scale=scale)[1].norm
        assert ulps(norm * scale, exact_norm(a, p), p) <= 5
        threshold = norm * (0.03 + 0.3 * seed)
        clipped, report = gradclip.clip_by_global_norm(a, threshold, ord=p, grad_scale=scale, strict=True)
        written = exact_norm(clipped, p)
        assert report.clipped
        assert written <= threshold
        assert gradclip.global_norm(clipped, p) <= threshold
        assert written >= threshold * (0.9 if p < 1 or dtype == BFLOAT16 else 0.98)
        assert not gradclip.clip_by_global_norm_(clipped, threshold, ord=p, strict=True).clipped


@pytest.mark.parametrize("p", [0.5, 3, 1e5])
def test_strict_holds_for_a_union_that_is_clipped_apart(p):
    parts = [gradient(np.float16, 80, seed=s) for s in range(3)]
    whole = sum(gradclip.measure(x, ord=p) for x in parts)
    threshold = whole.norm / 3
    for x in parts:
        gradclip.apply_clip_(x, whole, threshold, strict=True)
    assert Decimal(threshold) * Decimal("0.98") <= exact_norm(parts, p) <= threshold


@pytest.mark.parametrize("p", [0.25, 3, 1001.5])
def test_strict_steps_keep_the_bound(p):
    for kind in ("normal", "wide"):
        grad = gradient(np.float64, 30, kind)
        step, threshold = np.zeros(30), 1e-3
        assert gradclip.sgd_step_(step, grad, 1.0, threshold, ord=p, strict=True).clipped
        assert Decimal(threshold) * Decimal("0.999999") <= exact_norm([step], p) <= threshold


@pytest.mark.parametrize("p", [0.5, 3, 1001.5])
def test_normalize_reaches_its_target(p):
    for kind in ("normal", "tiny", "wide", "huge"):
        a = gradient(np.float64, 50, kind)
        unit, report = gradclip.normalize(a, 2.0, eps=0, ord=p)
        assert report.clipped
        assert gradclip.global_norm(unit, p) == pytest.approx(2.0, rel=1e-14)
    per_leaf, _ = gradclip.normalize([np.full(8, 3.0), np.zeros(2)], eps=0, ord=3, per_leaf=True)
    assert per_leaf[0].tolist() == [0.5] * 8


@pytest.mark.parametrize("p", [0.25, 3, 1e9])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_two_halves_are_the_whole(p, scale):
    grads = [gradient(np.float64, n, "wide", seed=n) for n in (10, 300)]
    expected, report = gradclip.clip_by_global_norm(grads, 1e-5, ord=p, grad_scale=scale)
    measured = gradclip.measure(grads[1], ord=p, grad_scale=scale) + gradclip.measure(grads[0], ord=p, grad_scale=scale)
    assert measured.norm == report.norm
    found, again = gradclip.apply_clip(grads, measured, 1e-5)
    assert [a.tobytes() for a in found] == [a.tobytes() for a in expected]
    assert again.scale == report.scale


@pytest.mark.parametrize("p", [0.5, 3])
def test_nonfinite_elements_stay_out(p):
    a = np.array([2.0, np.nan, np.inf, 2.0])
    measured = gradclip.measure(a, ord=p)
    assert (measured.nonfinite, measured.first_nonfinite) == (2, ("grads", 1))
    assert measured.norm == gradclip.global_norm(np.array([2.0, 2.0]), p)
    assert math.isnan(gradclip.global_norm(a, p))
    assert gradclip.global_norm(a[2:], p) == math.inf
    gradclip.clip_by_global_norm_(a, measured.norm / 4, ord=p, nonfinite="zero")
    assert a.tolist() == [0.5, 0, 0, 0.5]
