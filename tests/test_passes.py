"""Every kernel, dtype, instruction set, thread count, size and layout against exact arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest
from marks import slow
from reference import BFLOAT16, COMPLEX, REAL, element_error, gradient, layouts, norm_error, power_sum

import gradclip
from gradclip._cpu import machine

SIZES = [0, 1, 2, 7, 8, 15, 16, 17, 31, 33, 255, 4095, 4096, 4097, 8191, 8193]
KINDS = ["normal", "lognormal", "tiny", "huge", "wide", "zeros"]


def ids(x):
    return str(x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", REAL, ids=ids)
def test_norm_is_exact_to_half_an_ulp(isa, dtype, kind):
    for size in SIZES:
        a = gradient(dtype, size, kind)
        for ord in (2, 1):
            norm = gradclip.global_norm(a, ord)
            exact = power_sum([a], ord)
            if norm == math.inf:
                assert exact >= (Fraction(2) ** 1024 - Fraction(2) ** 970) ** ord
            else:
                assert norm_error(norm, exact, ord) <= 0.501, (size, ord)
        assert Fraction(gradclip.global_norm(a, math.inf)) == power_sum([a], math.inf)


@pytest.mark.parametrize("dtype", REAL, ids=ids)
def test_blocks_far_above_and_below_the_first(isa, dtype):
    """The bound that a group's first elements guess fails upwards, holds loosely, or starts from zeros."""
    rng = np.random.default_rng(2)
    top = 14 if dtype == np.float16 else 60
    for exponents in ([0, 8, -8, top], [top, -top, 0], [-top, top, -20], [3, 4, 5, 6, 7], [0, 0, 0]):
        a = np.concatenate([rng.standard_normal(4096) * 2.0**e for e in exponents])
        a[:100] = 0 if len(exponents) == 3 else a[:100]
        a = np.clip(a, -6e4, 6e4).astype(dtype) if dtype == np.float16 else a.astype(dtype)
        for ord in (1, 2):
            assert norm_error(gradclip.global_norm(a, ord), power_sum([a], ord), ord) <= 0.501, (exponents, ord)


@pytest.mark.parametrize("dtype", REAL, ids=ids)
def test_a_long_leaf_gives_the_bits_of_its_pieces(isa, dtype):
    """Long units in a pass over more than 4 MiB have kernels of their own, which ask for memory ahead; short ones have not."""
    size = (1 << 22) // dtype.itemsize + 4099
    a = np.random.default_rng(3).standard_normal(size, np.float32).astype(dtype)
    pieces = np.split(a, range(10_000, size, 10_000))
    for clip in (lambda x: gradclip.clip_by_global_norm(x, 3.0), lambda x: gradclip.clip_by_value(x, -0.5, 0.0)):
        (whole, report), (parts, other) = clip(a), clip(pieces)
        assert whole.tobytes() == np.concatenate(parts).tobytes()
        assert (report.norm, report.max_abs) == (other.norm, other.max_abs)
    b = a.copy()
    count = gradclip.clip_by_value_(b, -0.5, 0.0).clipped_count
    assert (b.tobytes(), count) == (whole.tobytes(), other.clipped_count)
    a[size // 2] = np.nan
    report = gradclip.clip_by_value_(a, 1.0)
    assert math.isnan(report.norm)
    assert report.first_nonfinite == ("grads", size // 2)


@pytest.mark.parametrize("zeros", [0.0, *slow([0.002]), 0.1])
@pytest.mark.parametrize(
    ("dtype", "top"), [(np.dtype(np.float16), -3), (np.dtype(np.float16), 12), (BFLOAT16, 40), (BFLOAT16, -90)], ids=str
)
def test_short_squares_are_summed_exactly_at_every_span(isa, dtype, top, zeros):
    """Halves choose between three sums, group by group, by their range, zeros and subnormals: all are exact, or nearly."""
    rng = np.random.default_rng(9)
    for span in range(1, 26):
        for size in (1, 63, 64, 65, 4096, 5000):
            exponent = rng.integers(-span, 1, size) + top
            a = (rng.uniform(1, 2, size) * 2.0**exponent * rng.choice([-1, 1], size)).astype(dtype)
            a[rng.random(size) < zeros] = 0
            assert gradclip.measure(a).power_sum() == power_sum([a]), (span, size)


@pytest.mark.parametrize("top", [1.0, 2.0**-3, 2.0**-12])
@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BFLOAT16], ids=ids)
def test_groups_of_halves_at_the_edges_of_their_window(isa, dtype, top):
    """Groups of 128 are added in eights if all but zeros lie in a window that the bound sets.

    Seven large squares and a small one whose bits are all in use lose some just beyond it. Below float16's normal numbers it
    has no lower edge."""
    rng = np.random.default_rng(12)
    high = 4 * top  # the bound is 16 * top, as the first elements are top
    low = high * 2.0 ** -(15 if dtype == np.float16 else 18)
    edges = np.array([low, 2 * low, high, 2 * high], dtype).view(np.uint16)
    edges = [*(edges - 1).view(dtype), *edges.view(dtype), *(edges + 1).view(dtype)]
    special = np.array([0, 0x8000, 1, 3, 0x8001], np.uint16).view(dtype)  # 0 and -0, subnormals
    for large in [*edges, dtype.type(5000.0 * top)]:  # the last is above the bound
        for small in [*edges, *special]:
            a = np.full(5 * 128 + 50, top, dtype)
            a[128:256] = a[512:] = large
            a[128:144] = a[-50:-40] = small
            a[384:512] = rng.choice([small, large], 128)
            exact = power_sum([a])
            assert abs(gradclip.measure(a).power_sum() - exact) <= exact / 2**76, (float(large), float(small))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", REAL, ids=ids)
def test_every_set_gives_the_same_bits(dtype, kind):
    found = []
    before = machine.isa()
    try:
        for name in machine.available_isas():
            machine.set_isa(name)
            a = gradient(dtype, 70_001, kind)
            norms = [gradclip.global_norm(a, ord) for ord in (1, 2, math.inf)]
            with np.errstate(over="ignore"):
                scaled, _ = gradclip.clip_by_global_norm(a, norms[1] * 0.37 if norms[1] < math.inf else 1e307)
            clamped, _ = gradclip.clip_by_value(a, float(abs(a.astype(np.float64)).max() / 3))
            found.append((norms, scaled.tobytes(), clamped.tobytes()))
    finally:
        machine.set_isa(before)
    assert all(f == found[0] for f in found)


@pytest.mark.parametrize("dtype", REAL, ids=ids)
def test_thread_count_changes_no_bit(dtype, threads):
    leaves = [gradient(dtype, n, "lognormal", seed=n) for n in (1, 70_000, 4097, 1_000_003)]
    found, report = gradclip.clip_by_global_norm(leaves, 0.5)
    with gradclip.num_threads(1):
        expected, alone = gradclip.clip_by_global_norm(leaves, 0.5)
    assert report.norm == alone.norm
    assert report.norms.tobytes() == alone.norms.tobytes()
    assert [a.tobytes() for a in found] == [a.tobytes() for a in expected]
    measured = gradclip.measure(leaves)
    assert norm_error(report.norm, measured.power_sum()) <= 0.501


def short_and_long(kind="lognormal"):
    """Leaves that share groups, and some that do not: sizes around what fits the lanes, a block and a group."""
    sizes = [10, 1, 16, 17, 0, 3, 15, 33, 64, 4096, 5, 4097, 2, 70_000, 12, *range(1, 20), 256, 1000, 8, 65_537, 7] * 3
    return [gradient(REAL[i % 4], n, kind, seed=i) for i, n in enumerate(sizes)]


@pytest.mark.parametrize("kind", slow(KINDS, fast=("normal", "lognormal")))
def test_short_leaves_among_long_ones(isa, kind):
    leaves = short_and_long(kind)[: 40 if kind == "wide" else None]
    for ord in (2, 1):
        report = gradclip.clip_by_global_norm(leaves, math.inf, ord=ord)[1]
        for norm, parts in [
            (report.norm, leaves),
            *((float(n), [a]) for n, a in zip(report.norms, leaves, strict=True) if a.size < 300),
        ]:
            assert norm == math.inf or norm_error(norm, power_sum(parts, ord), ord) <= 0.501
    assert gradclip.measure(leaves, ord=math.inf).max_abs == power_sum(leaves, math.inf)


def test_thread_count_changes_no_bit_of_short_leaves(isa, threads):
    leaves = short_and_long() + [gradient(np.float32, 10, seed=i) for i in range(3000)]
    report = gradclip.clip_by_global_norm(leaves, math.inf)[1]
    with gradclip.num_threads(1):
        alone = gradclip.clip_by_global_norm(leaves, math.inf)[1]
    assert report.norm == alone.norm
    assert report.norms.tobytes() == alone.norms.tobytes()
    assert gradclip.measure(leaves).power_sum() == gradclip.measure(list(leaves)).power_sum()


@pytest.mark.parametrize("size", [1, 17, *slow([2, 8, 9, 15, 16])])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", REAL, ids=ids)
def test_nonfinite_elements_of_short_leaves_are_found(isa, dtype, value, size):
    for where in {0, size // 2, size - 1}:
        leaves = [gradient(dtype, 10, seed=i) for i in range(300)]
        leaves[271] = gradient(dtype, size)
        leaves[271][where] = value
        with pytest.raises(gradclip.NonFiniteGradientError, match="271") as error:
            gradclip.clip_by_global_norm_(leaves, 1.0)
        assert (error.value.path, error.value.index, error.value.count) == ("271", where, 1)
        report = gradclip.clip_by_global_norm_(leaves, 1e9, nonfinite="zero")
        assert norm_error(report.norm, power_sum(leaves)) <= 0.501
        assert leaves[271][where] == 0
        assert norm_error(report.norms[271], power_sum([leaves[271]])) <= 0.501


@pytest.mark.parametrize(
    "exponents", [(-1074, -1022), (-540, -420), (-432, -428), (470, 490), (511, 512), (1000, 1023), (-1074, 1023)]
)
def test_float64_of_any_range_in_short_leaves(exponents):
    rng = np.random.default_rng(6)
    sizes = [1, 2, 5, 8, 10, 15, 16, 17, 40]
    leaves = [rng.uniform(1, 2, n) * 2.0 ** rng.integers(*exponents, n, endpoint=True) for n in sizes * 10]
    leaves = [np.clip(a, 0, 1e308) for a in leaves]
    found = set()
    before = machine.isa()
    try:
        for name in machine.available_isas():
            machine.set_isa(name)
            report = gradclip.clip_by_global_norm(leaves, math.inf)[1]
            found.add((report.norm, report.norms.tobytes(), gradclip.measure(leaves).power_sum()))
            for norm, a in zip(report.norms, leaves, strict=True):
                assert norm == math.inf or norm_error(float(norm), power_sum([a])) <= 0.501
    finally:
        machine.set_isa(before)
    assert len(found) == 1
    if report.norm < math.inf:
        assert norm_error(report.norm, power_sum(leaves)) <= 0.501


@pytest.mark.parametrize("kind", ["normal", "lognormal", "wide"])
@pytest.mark.parametrize("dtype", REAL, ids=ids)
def test_splits_and_order_change_no_bit(dtype, kind):
    a = gradient(dtype, 30_000, kind)
    rng = np.random.default_rng(5)
    expected = gradclip.global_norm(a)
    for _ in range(5):
        shuffled = rng.permutation(a)
        cuts = np.sort(rng.integers(0, len(a), 7))
        assert gradclip.global_norm(np.split(shuffled, cuts)) == expected


@pytest.mark.parametrize("size", [1, 16, 30, 4098, 8194])
@pytest.mark.parametrize("dtype", [*REAL, *COMPLEX], ids=ids)
def test_layout_changes_no_bit(isa, dtype, size):
    if dtype.kind == "c":
        part = np.dtype(f"f{dtype.itemsize // 2}")
        a = gradient(part, size) + 1j * gradient(part, size, seed=1)
        a = a.astype(dtype)
    else:
        a = gradient(dtype, size)
    norm = gradclip.global_norm(a)
    expected = gradclip.clip_by_global_norm(a, norm * 0.3)[0]
    for name, view in layouts(a):
        assert gradclip.global_norm(view) == norm, name
        functional, _ = gradclip.clip_by_global_norm(view, norm * 0.3)
        assert np.asarray(functional).reshape(-1).tobytes() == expected.tobytes(), name
        report = gradclip.clip_by_global_norm_(view, norm * 0.3)
        assert report.clipped
        assert view.reshape(-1).tobytes() == expected.tobytes(), name


@pytest.mark.parametrize("factor", [0.3, *slow([1e-3, 1e-7]), 1e-30, 1e-44, 2.0**-60])
@pytest.mark.parametrize("kind", ["normal", "lognormal", "tiny", "huge"])
@pytest.mark.parametrize("dtype", REAL, ids=ids)
def test_elements_are_within_half_an_ulp(isa, dtype, kind, factor):
    a = gradient(dtype, 515, kind)
    threshold = min(gradclip.global_norm(a), 1.7e308) * factor
    clipped, report = gradclip.clip_by_global_norm(a, threshold)
    if threshold > 0:
        assert report.scale == pytest.approx(math.sqrt(Fraction(threshold) ** 2 / power_sum([a])), rel=1e-15)
    assert element_error(clipped, a, report.scale) <= (0.5 if dtype == np.float64 else 0.501)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BFLOAT16], ids=ids)
def test_all_halves_are_written_as_exactly_as_possible(isa, dtype):
    bits = np.arange(65536, dtype=np.uint16)
    a = bits.view(dtype)
    a = a[np.isfinite(a.astype(np.float32))]
    for target in (0.1, 3e-4, 0.9999):
        clipped, report = gradclip.clip_by_global_norm(a, gradclip.global_norm(a) * target)
        assert element_error(clipped, a, report.scale) <= 0.501


def test_overflow_of_the_sum_is_no_overflow_of_the_norm():
    for dtype, value in ((np.float32, 1e20), (np.float32, 3e38), (np.float64, 1e200), (np.float16, 300.0)):
        a = np.full(1_000_000 if dtype == np.float16 else 4, value, dtype)
        expected = float(a[0]) * math.sqrt(len(a))
        report = gradclip.clip_by_global_norm_(a, expected / 2)
        assert report.norm == expected
        assert np.all(a == np.asarray(value, dtype) / 2)


def test_norm_beyond_float64_reports_inf_and_clips_by_its_true_value(isa):
    a = np.full(16, 1e308)
    report = gradclip.clip_by_global_norm_(a, 1.0)
    assert report.norm == math.inf
    assert report.nonfinite == 0
    assert report.clipped
    assert np.allclose(a, 0.25, rtol=1e-15)


@pytest.mark.parametrize(
    ("value", "count", "threshold"),
    [(1e308, 4, 1e-10), (1.7e308, 100, 5e-324), (1e308, 2, 1e-300), (8e307, 1, 3e-310), (5e-324, 9, 5e-324)],
)
def test_factors_outside_float64_are_applied_exactly(isa, value, count, threshold):
    a = np.full(count, value)
    gradclip.clip_by_global_norm_(a, threshold)
    exact = Fraction(threshold) / Fraction(math.isqrt(count)) if math.isqrt(count) ** 2 == count else None
    expected = float(exact) if exact is not None else threshold / math.sqrt(count)
    assert a[0] == pytest.approx(expected, rel=1e-15, abs=5e-324)


def test_enlarging_from_subnormals_is_exact(isa):
    a = np.array([3 * 5e-324, 4 * 5e-324])
    report = gradclip.normalize_(a, 1.0, eps=0)
    assert a.tolist() == pytest.approx([0.6, 0.8], rel=2e-16)
    assert report.norm == 5 * 5e-324


def test_norms_below_the_normal_numbers_are_rounded_once(isa):
    """Such a norm has fewer bits than float64's 53: to round to these first would make 0.75 ulp of 0.5."""
    rng = np.random.default_rng(4)
    for bits in (20, 40, 50, 51) * 20:
        a = rng.integers(1, 2**bits, 3) * 5e-324
        assert norm_error(gradclip.global_norm(a), power_sum([a])) <= 0.501, bits
        report = gradclip.clip_by_global_norm(a * 2.0**600, math.inf, grad_scale=2.0**600)[1]
        assert report.norm == gradclip.global_norm(a)


def test_squares_that_underflow_add_alike_in_every_set():
    """Products of a square's halves underflow where the fused product does not."""
    rng = np.random.default_rng(0)
    before = machine.isa()
    try:
        for _ in range(20):
            a = rng.uniform(1, 2, 4096) * 2.0 ** -rng.integers(515, 545, 4096)
            a[17] = 2.0**-430
            found = set()
            for name in machine.available_isas():
                machine.set_isa(name)
                found.add(gradclip.measure(a).power_sum())
            assert len(found) == 1
    finally:
        machine.set_isa(before)


def test_mixed_ranges_and_dtypes_in_one_call(isa):
    leaves = [
        np.array([1e-200, 5e-324]),
        np.array([3.0], np.float32),
        np.array([1e-45], np.float32),
        np.array([4.0], np.float16),
    ]
    assert gradclip.global_norm(leaves) == 5.0
    leaves.append(np.array([1e250, -1e300]))
    assert norm_error(gradclip.global_norm(leaves), power_sum(leaves)) <= 0.501
    assert gradclip.global_norm(leaves[:1]) == 1e-200


def test_one_ulp_above_the_threshold_clips_and_the_threshold_does_not():
    a = np.array([0.6, 0.8, 1e-9])
    norm = gradclip.global_norm(a)
    before = a.tobytes()
    assert not gradclip.clip_by_global_norm_(a, norm).clipped
    assert a.tobytes() == before
    assert gradclip.clip_by_global_norm_(a, math.nextafter(norm, 0)).clipped


def test_sums_beyond_float64_of_elements_far_below(isa):
    for exponent in (470, 480, 500, 511):
        a = np.full(2**19 + 5, 2.0**exponent)
        leaves = [a] * 40
        exact = len(leaves) * len(a) * Fraction(2) ** (2 * exponent)
        assert norm_error(gradclip.global_norm(leaves), exact) <= 0.501
        assert gradclip.measure(leaves).norm == gradclip.global_norm(leaves)


def test_maximum_norm_and_scale_at_the_ends_of_the_range(isa):
    big, tiny = np.array([1e308]), np.array([2.5e-323])
    assert gradclip.clip_by_global_norm(big, 1.0, ord=math.inf, grad_scale=1024.0)[1].norm == 1e308 / 1024
    clipped, report = gradclip.clip_by_global_norm(big, 1.0, ord=math.inf, grad_scale=0.5)
    assert report.norm == math.inf
    assert clipped.tolist() == pytest.approx([1.0], rel=1e-15)
    scale = 0.75 * 2.0**-200
    report = gradclip.clip_by_global_norm(tiny, math.inf, ord=math.inf, grad_scale=scale)[1]
    assert report.norm == float(Fraction(tiny[0]) / Fraction(scale))
    clipped, _ = gradclip.clip_by_global_norm(np.array([0, 1e-315]), math.inf, grad_scale=1e-310)
    assert clipped.tolist() == pytest.approx([0.0, float(Fraction(1e-315) / Fraction(1e-310))], rel=1e-15)
    m = gradclip.measure(big, ord=math.inf, grad_scale=0.5)
    assert (m.norm, m.max_abs) == (math.inf, math.inf)
    assert gradclip.apply_clip(big, m, 1.0)[0].tolist() == pytest.approx([1.0], rel=1e-15)
    zero, report = gradclip.clip_by_global_norm(np.array([5e-324]), 0.0, grad_scale=1e10, strict=True)
    assert (zero[0], report.scale) == (0.0, 0.0)


def test_halves_under_enormous_factors(isa):
    for dtype in (np.float16, BFLOAT16):
        a = np.array([0, 1e-7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], dtype)
        for enlarged in (gradclip.normalize(a, 1e39)[0], gradclip.clip_by_global_norm(a, math.inf, grad_scale=1e-300)[0]):
            assert enlarged[1] == math.inf
            assert (np.delete(enlarged, 1) == 0).all()


@pytest.mark.skipif(np.finfo(np.longdouble).maxexp <= 1024, reason="long double has float64's range here")
def test_complex_magnitude_beyond_float64(isa):
    z = np.array([1.7e308 + 1.7e308j, 1])
    clipped, report = gradclip.clip_by_global_norm(z, 1.0, ord=math.inf)
    assert report.norm == math.inf
    assert abs(clipped[0]) == pytest.approx(1.0, rel=1e-15)
    assert gradclip.measure(z, ord=math.inf).norm == math.inf
    clipped, report = gradclip.clip_by_norm([z, z / 4], 1.0, ord=math.inf)  # what is kept of a leaf holds it too
    assert report.norms.tolist() == [math.inf, pytest.approx(1.7e308 * math.sqrt(0.125))]
    assert [abs(c[0]) for c in clipped] == pytest.approx([1.0, 1.0], rel=1e-15)


@pytest.mark.parametrize("ord", [1, 2, math.inf])
@pytest.mark.parametrize("dtype", COMPLEX, ids=ids)
def test_complex_norms(isa, dtype, ord):
    rng = np.random.default_rng(3)
    a = (rng.standard_normal(5001) + 1j * rng.standard_normal(5001)).astype(dtype)
    report = gradclip.clip_by_global_norm_(a.copy(), math.inf, ord=ord)
    assert report.norm == pytest.approx(np.linalg.norm(a.astype(np.complex128), ord), rel=1e-14)
    assert report.max_abs == pytest.approx(np.abs(a.astype(np.complex128)).max(), rel=1e-15)
    assert gradclip.global_norm(np.array([1e300 + 1e300j]), ord) == pytest.approx(math.sqrt(2) * 1e300, rel=1e-15)


def test_million_elements_against_fsum(isa):
    a = gradient(np.float32, 1_000_000, "lognormal")
    exact = math.fsum((a.astype(np.float64) ** 2).tolist())  # squares of float32 are exact in float64
    assert gradclip.global_norm(a) == pytest.approx(math.sqrt(exact), rel=2.3e-16)
