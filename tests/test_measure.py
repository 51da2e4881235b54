"""Measure: merging, pickling, and the two halves apart."""

import copy
import math
import pickle
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from multiprocessing import get_context

import numpy as np
import pytest
from reference import REAL, gradient, norm_error, power_sum, rounded_norm, snapshot

import gradclip


def test_fields():
    m = gradclip.measure({"a": np.array([3.0, np.nan]), "b": np.array([[-4.0, np.inf]], np.float16)})
    assert (m.norm, m.max_abs, m.size, m.nonfinite, m.first_nonfinite, m.ord) == (5.0, 4.0, 4, 2, ("a", 1), 2)
    assert m.norms.tolist() == [3.0, 4.0]
    with pytest.raises(AttributeError):
        m.size = 3


@pytest.mark.parametrize("kind", ["normal", "lognormal", "tiny", "huge", "wide"])
@pytest.mark.parametrize("dtype", REAL, ids=str)
@pytest.mark.parametrize("ord", [1, 2, math.inf])
def test_merging_in_any_order_and_grouping(dtype, kind, ord):
    parts = [gradient(dtype, n, kind, seed=n) for n in (1, 100, 4099, 50, 7, 900)]
    measures = [gradclip.measure(p, ord=ord) for p in parts]
    whole = gradclip.measure(parts, ord=ord)
    merged = sum(measures)
    assert merged.norm == whole.norm
    assert merged.size == whole.size
    assert merged.max_abs == whole.max_abs
    assert merged.norms.tolist() == whole.norms.tolist()
    rng = np.random.default_rng(1)
    for _ in range(5):
        order = list(rng.permutation(len(measures)))
        while len(order) > 1:
            i = int(rng.integers(len(order) - 1))
            a, b = order[i], order.pop(i + 1)
            order[i] = (measures[a] if not isinstance(a, gradclip.Measure) else a) + (
                measures[b] if not isinstance(b, gradclip.Measure) else b
            )
        assert order[0].norm == merged.norm
    if merged.norm < math.inf:
        assert norm_error(merged.norm, power_sum(parts, ord), 2 if ord == 2 else 1) <= 0.501


def test_pickle_is_small():
    rng = np.random.default_rng(0)
    m = gradclip.measure([rng.standard_normal(1000) * 1e300, np.array([5e-324, 1e-200])])
    again = pickle.loads(pickle.dumps(m))
    assert again.norm == m.norm
    assert again.power_sum() == m.power_sum()
    assert len(pickle.dumps(m)) - len(pickle.dumps(m.norms)) < 1024


def test_across_processes():
    parts = [gradient(dtype, 5000, "lognormal", seed=s) for s, dtype in enumerate([*REAL, np.float32, np.float64])]
    clipped, report = gradclip.clip_by_global_norm(parts, 0.7)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(gradclip.measure, parts))
    for order in (found, found[::-1], [found[4] + found[1], found[0], found[5] + (found[3] + found[2])]):
        whole = sum(order)
        assert whole.norm == report.norm
        there = [p.copy() for p in parts]
        assert [gradclip.apply_clip_(p, whole, 0.7).scale for p in there] == [report.scale] * len(parts)
        assert snapshot(there) == snapshot(clipped)


def test_only_alike_measures_merge():
    a = gradclip.measure(np.ones(3))
    with pytest.raises(ValueError, match="different ord"):
        a + gradclip.measure(np.ones(3), ord=1)
    with pytest.raises(ValueError, match="different grad_scale"):
        a + gradclip.measure(np.ones(3), grad_scale=2.0)
    with pytest.raises(TypeError):
        a + 1
    with pytest.raises(ValueError, match="read-only"):
        a.norms[0] = 1.0
    assert repr(a) == "Measure(norm=1.7320508075688772, ord=2, size=3, max_abs=1.0)"
    with pytest.raises(TypeError):
        "x" + a


@pytest.mark.parametrize("ord", [1, 2, math.inf])
@pytest.mark.parametrize("scale", [1.0, 8.0, 3.0])
def test_two_halves_are_the_whole(ord, scale):
    for kind in ("normal", "wide"):
        grads = [gradient(np.float64, n, kind, seed=n) for n in (10, 3000)]
        norm = gradclip.clip_by_global_norm(grads, math.inf, ord=ord, grad_scale=scale)[1].norm
        threshold = norm / 4 if norm < math.inf else 1e300
        expected, report = gradclip.clip_by_global_norm(grads, threshold, ord=ord, grad_scale=scale)
        measured = gradclip.measure(grads, ord=ord, grad_scale=scale)
        assert measured.norm == report.norm
        found, again = gradclip.apply_clip(grads, measured, threshold)
        assert [a.tobytes() for a in found] == [a.tobytes() for a in expected]
        assert (again.norm, again.scale, again.clipped, again.max_abs) == (report.norm, report.scale, True, report.max_abs)
        assert again.norms.tolist() == report.norms.tolist()
        assert len(again.scales) == 2
        gradclip.apply_clip_(grads, measured, threshold)
        assert [a.tobytes() for a in grads] == [a.tobytes() for a in expected]


def test_apply_follows_the_policies():
    bad, good = np.array([3.0, np.nan]), np.array([4.0, 1.0])
    m = gradclip.measure([bad, good])
    with pytest.raises(gradclip.NonFiniteGradientError, match="0: NaN or Inf at flat index 1"):
        gradclip.apply_clip_(good, m, 1.0)
    assert gradclip.apply_clip_(good, m, 1.0, nonfinite="skip").skipped
    assert good.tolist() == [4.0, 1.0]
    gradclip.apply_clip_([bad, good], m, 1.0, nonfinite="zero")
    assert bad.tolist() == [3 / math.sqrt(26), 0.0]
    half = np.ones(2)
    assert math.isnan(gradclip.apply_clip_(half, m, 1.0, nonfinite="propagate").scale)


def test_strict_bounds_the_union():
    parts = [gradient(np.float16, 700, seed=s) for s in range(5)]
    m = sum(gradclip.measure(p) for p in parts)
    for p in parts:
        gradclip.apply_clip_(p, m, 0.7, strict=True)
    assert Fraction(0.69) ** 2 < power_sum(parts) <= Fraction(0.7) ** 2


def test_apply_takes_ord_and_grad_scale_from_the_measure():
    a = np.array([3.0, 4.0])
    m = gradclip.measure(a, ord=1)
    assert gradclip.apply_clip_(a, m, 3.5, ord=1).scale == 0.5
    with pytest.raises(ValueError, match="ord"):
        gradclip.apply_clip_(a, m, 3.5, ord=2)
    with pytest.raises(ValueError, match="grad_scale"):
        gradclip.apply_clip_(a, m, 3.5, grad_scale=2.0)
    with pytest.raises(TypeError, match="Measure"):
        gradclip.apply_clip_(a, 5.0, 1.0)


def test_measure_norm_is_correctly_rounded():
    for seed in range(300):
        a = gradient(np.float64, 1 + seed % 7, "wide", seed)
        m = gradclip.measure(a)
        if 0 < m.norm < math.inf:
            assert norm_error(m.norm, power_sum([a])) <= 0.5


def test_thousands_of_measures_are_merged_in_a_row():
    """Norms of leaves are joined once, when they are asked for: neither copied at each step, nor too deep for a pickle."""
    parts = [gradclip.measure({f"w{i}": np.array([float(i)])}) for i in range(3000)]
    total = sum(parts)
    for same in (pickle.loads(pickle.dumps(total)), copy.deepcopy(total), total, (sum(parts[:7]) + sum(parts[7:]))):
        np.testing.assert_array_equal(same.norms, np.arange(3000.0))
        assert (same.norm, same.size, same.max_abs) == (total.norm, 3000, 2999.0)
    assert total.norms is total.norms
    assert parts[7].norms.tolist() == [7.0]


def test_a_measure_says_whether_its_norm_is_certain():
    """One that is measured at once always is; one that is merged unless its norm may lie in the middle between two float64."""
    x = 0.1
    while (6 * Fraction(x)).numerator.bit_length() != 54:  # a tie
        x = math.nextafter(x, 1.0)
    whole, halves = gradclip.measure(np.full(36, x)), [gradclip.measure(np.full(18, x)) for _ in range(2)]
    assert whole.exact
    assert whole.power_sum() == 36 * Fraction(x) ** 2
    assert whole.norm == float(6 * Fraction(x))
    assert [half.exact for half in halves] == [True, True]
    assert sum(halves).exact is False
    assert sum(halves).norm in (whole.norm, math.nextafter(whole.norm, 0.0), math.nextafter(whole.norm, 1.0))
    assert (whole + gradclip.measure(np.zeros(3))).exact  # sums that are exact stay so
    assert pickle.loads(pickle.dumps(sum(halves))).exact is False
    rng = np.random.default_rng(0)
    assert sum(gradclip.measure(rng.standard_normal(50)) for _ in range(20)).exact
    for exact, measured in (
        (True, gradclip.measure(np.array([1.0, 3.0]), ord=math.inf)),
        (True, gradclip.measure([])),
        (True, gradclip.measure(np.array([1 + 2j, 3.0]))),
        (False, gradclip.measure(np.array([1 + 2j, 3.0]), ord=1)),
        (False, gradclip.measure(np.array([1 + 2j, 3.0]), ord=math.inf)),
        (False, gradclip.measure(np.array([1.0, 3.0]), ord=3)),
    ):
        assert measured.exact is exact
        assert (measured + measured).exact is exact


def test_measures_that_are_exact_have_the_norm_of_exact_arithmetic():
    rng = np.random.default_rng(1)
    for size in range(2, 40):
        a = rng.standard_normal(size) * 2.0 ** rng.integers(-20, 20, size)
        for ord in (1, 2):
            merged = sum(gradclip.measure(part, ord=ord) for part in np.array_split(a, 3))
            assert merged.exact
            assert merged.norm == rounded_norm([a], ord)
            assert gradclip.apply_clip([a], merged, 1.0)[1].norm == merged.norm


def test_a_merged_norm_is_the_one_that_clips():
    """Also where it is a tie, or below the normal numbers: the report shows what the measure does."""
    for parts in ([np.full(18, 0.1)] * 2, [np.full(3, 5e-324)] * 3, [np.array([1.0]), np.array([2.0**-53])]):
        for ord in (1, 2):
            for scale in (1.0, 3.0):
                merged = sum(gradclip.measure(part, ord=ord, grad_scale=scale) for part in parts)
                report = gradclip.apply_clip(parts, merged, merged.norm)[1]
                assert (report.norm, report.clipped) == (merged.norm, False)
                assert merged.norm == rounded_norm(parts, ord, scale) or not merged.exact


def test_a_norm_of_0_exceeds_no_threshold():
    for x in (np.zeros(3), np.zeros(0)):
        report = gradclip.apply_clip_(x, gradclip.measure(x), 0.0, strict=True)
        assert (report.norm, report.scale, report.clipped) == (0.0, 1.0, False)
