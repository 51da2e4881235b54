"""Norms next to the middle between two float64, or in it: correctly rounded, and alike however the elements are summed."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from marks import slow
from reference import COMPLEX, REAL, layouts, power_sum, rounded_norm, snapshot

import gradclip
from gradclip._core.dyadic import clearly_rounded, dyadic, root
from gradclip._cpu import exact, passes
from gradclip._leaves import Leaves


def is_tie(value):
    """Whether a fraction lies in the middle between two float64 of 53 bits."""
    bits = value.numerator.bit_length()
    return bits == 54 and value.numerator % 2 == 1


def ties(k, count, seed=0):
    """Numbers of 53 bits whose k-fold lies in the middle between two float64."""
    rng = np.random.default_rng([seed, k])
    found = []
    while len(found) < count:
        x = float(rng.uniform(0.5, 2))
        if is_tie(k * Fraction(x)):
            found.append(x)
    return found


def splits(x, rng):
    """The same elements in other leaves and orders."""
    n = len(x)
    yield [x]
    for cut in {1, n // 3, n // 2, n - 1} - {0}:
        yield np.split(x, [cut])
    order = rng.permutation(n)
    yield [x[order]]
    yield np.split(x[order], np.sort(rng.integers(0, n, 4)))
    yield [x[i : i + 1] for i in range(n)]


def assert_norms(leaves, ord=2, **options):
    """The norm of all and those of leaves are those of exact arithmetic; returns the first."""
    report = gradclip.clip_by_global_norm(leaves, math.inf, ord=ord, **options)[1]
    scale = options.get("grad_scale", 1.0)
    assert report.norm == rounded_norm(leaves, ord, scale)
    assert report.norms.tolist() == [rounded_norm([a], ord, scale) for a in leaves]
    return report.norm


@pytest.mark.parametrize("scale", [1.0, 2.0**500, 2.0**-400, 2.0**-500])
@pytest.mark.parametrize("k", [3, 6, 10])
def test_equal_elements_whose_norm_is_a_tie(isa, k, scale):
    """Of k * k elements x the norm is k * x."""
    rng = np.random.default_rng(k)
    for x in [0.1, 0.3, 1 / 3, *ties(k, 10)]:
        a = np.full(k * k, x * scale)
        assert {assert_norms(leaves) for leaves in splits(a, rng)} == {float(k * Fraction(x) * Fraction(scale))}


def test_random_equal_elements(isa):
    rng = np.random.default_rng(1)
    for x in rng.standard_normal(100):
        for size in (9, 36, 100):
            a = np.full(size, x)
            found = {assert_norms(leaves) for leaves in ([a], np.split(a, [size // 2]), np.split(a, [1, 2]))}
            assert len(found) == 1


@pytest.mark.parametrize("exponent", [0, 900, -900, 960, -1070])
def test_pythagorean_triples(isa, exponent):
    """[3k, 4k] has the norm 5k, which is a tie if it has 54 bits and is odd."""
    for k in (2**51 + 1, 2**51 + 3, 2**51 + 2**40 + 1):
        assert exponent or is_tie(Fraction(5 * k))
        with np.errstate(under="ignore"):
            a = np.ldexp(np.array([3.0 * k, 4.0 * k]), exponent - 50)
        for leaves in ([a], [a[:1], a[1:]], [a[::-1]]):
            assert_norms(leaves)


def test_norms_one_part_in_2_to_the_120_beside_a_middle(isa):
    for tiny in (0.0, 2.0**-120, -(2.0**-120), 2.0**-900, 5e-324):
        a = np.array([1.0, 2.0**-53, tiny])
        for order in itertools.permutations(range(3)):
            for cut in (0, 1, 2):
                assert_norms(np.split(a[list(order)], [cut]), 1)
        assert gradclip.global_norm(a, 1) == (1.0 if tiny == 0 else math.nextafter(1.0, 2.0))


@pytest.mark.parametrize("ord", [1, 2])
@pytest.mark.parametrize("beside", [0, 1, -1])
def test_powers_of_two_have_a_nearer_neighbour_below(isa, ord, beside):
    """The middle below 1 lies half as far away as the one above."""
    for middle in (Fraction(1) - Fraction(1, 2**54), Fraction(1) + Fraction(1, 2**53)):
        total = middle**ord * (1 + Fraction(beside, 2**110))
        parts, left = [], total
        while left and len(parts) < 12:  # squares of float64 that add up to it, or nearly
            part = math.sqrt(float(left)) if ord == 2 else float(left)
            while Fraction(part) ** ord > left:
                part = math.nextafter(part, 0.0)
            if part == 0:
                break
            parts.append(part)
            left -= Fraction(part) ** ord
        for leaves in ([np.array(parts)], [np.array(parts[::-1])], np.split(np.array(parts), [1, 3])):
            assert_norms(leaves, ord)


@pytest.mark.parametrize("dtype", REAL, ids=str)
@pytest.mark.parametrize("ord", [1, 2])
def test_every_dtype_and_layout(isa, dtype, ord):
    """Elements of few bits, and one that brings the norm to a middle or next to it."""
    rng = np.random.default_rng(3)
    for seed in range(4):
        x = rng.standard_normal(300).astype(dtype)
        norm = rounded_norm([x], ord)
        gap = (Fraction(norm) + Fraction(math.ulp(norm)) / 2) ** ord - power_sum([x], ord)
        parts = []
        while gap > 0 and len(parts) < 6:
            part = float(gap) if ord == 1 else math.sqrt(float(gap))
            while Fraction(part) ** ord > gap:
                part = math.nextafter(part, 0.0)
            parts.append(part)
            gap -= Fraction(part) ** ord
        rest = np.array(parts[: 6 - seed])
        for _, view in layouts(x):
            assert_norms([view, rest], ord)
        assert_norms([x[:7], rest, x[7:]], ord)


@pytest.mark.parametrize("dtype", COMPLEX, ids=str)
def test_complex_numbers(isa, dtype):
    for x in ties(3, 5):
        parts = np.full(18, np.array(x, dtype).real).reshape(9, 2)  # nine numbers, or eighteen
        whole = parts[:, 0].astype(dtype)
        both = (parts[:, 0] + 1j * parts[:, 1]).astype(dtype)
        for a in (whole, whole * dtype.type(1j), both, both[::-1], both.reshape(3, 3).T):
            real = [a.real.copy(), a.imag.copy()]
            report = gradclip.clip_by_global_norm([a, a[:2]], math.inf)[1]
            assert report.norms[0] == rounded_norm(real)
            assert gradclip.global_norm(a) == rounded_norm(real)


@pytest.mark.parametrize("scale", [3.0, 0.1, 1e-3, 2.0**20, 7e200])
def test_gradients_that_are_scaled(isa, scale):
    """The norm of the true gradient is that of the elements over grad_scale, rounded once."""
    rng = np.random.default_rng(5)
    for k in (3, 6):
        for x in ties(k, 5):
            a = np.full(k * k, float(Fraction(x) * Fraction(scale)))  # k * x, and the error of one product
            assert_norms(np.split(a, [k]), grad_scale=scale)
            assert_norms([a], grad_scale=scale)
    for _ in range(50):
        x = float(rng.integers(2**52, 2**53))
        middle = (Fraction(x) + Fraction(1, 2)) * Fraction(scale)  # an exact one, in parts
        a = np.array([float(middle), float(middle - Fraction(float(middle)))])
        a = np.array([*a, float(middle - Fraction(a[0]) - Fraction(a[1]))])
        assert_norms([a[a != 0]], 1, grad_scale=scale)
        assert_norms([a[:1], a[1:]], 1, grad_scale=scale)


def test_norms_below_the_normal_numbers(isa):
    """A sum of squares there has 104 bits, and the middle between two norms is half a unit."""
    rng = np.random.default_rng(6)
    for _ in range(300):
        a = rng.integers(0, 2 ** int(rng.integers(1, 52)), int(rng.integers(1, 12))) * 5e-324
        assert_norms([a, a[:3]])
    for scale in (2.0, 3.0, 2.0**52):
        for _ in range(100):
            a = rng.integers(0, 2**52, 5) * 5e-324
            assert_norms([a, a[1:]], grad_scale=scale)
            assert_norms([a, a[1:]], 1, grad_scale=scale)
    a = np.full(9, 2.0**-1022)
    for scale in (2.0, 4.0, 6.0, math.nextafter(3.0, 4.0), math.nextafter(3.0, 0.0)):
        assert_norms([a, a[:4]], grad_scale=scale)


def test_the_largest_norms(isa):
    top = math.nextafter(math.inf, 0)
    for given in ([top, top * 2.0**-27], [top, top * 2.0**-26.4], [top, math.ulp(top) / 2], [top, 1.0], [top] * 3):
        a = np.array(given)
        for ord in (1, 2):
            assert gradclip.global_norm(a, ord) == rounded_norm([a], ord)
            assert gradclip.global_norm([a[1:], a[:1]], ord) == rounded_norm([a], ord)


@pytest.mark.parametrize("nonfinite", ["zero", "skip"])
def test_finite_elements_alone_count(isa, nonfinite):
    for x in ties(6, 5):
        a = np.full(40, x)
        a[[3, 17, 20, 39]] = [math.nan, math.inf, -math.inf, math.nan]
        for leaves in ([a], np.split(a, [18]), [a[::-1]]):
            report = gradclip.clip_by_global_norm(leaves, math.inf, nonfinite=nonfinite)[1]
            if nonfinite == "zero":
                assert report.norm == float(6 * Fraction(x))
            else:
                assert not math.isfinite(report.norm)
        assert gradclip.measure([a[:18], a[18:]]).nonfinite == 4
        assert gradclip.measure(a).norm == float(6 * Fraction(x))


def tall(dtype=np.float64):
    """A matrix whose rows have norms that are ties: of 9 equal elements each, and 36."""
    nine = np.repeat(np.array(ties(3, 60))[:, None], 9, axis=1)
    return nine.astype(dtype)


@pytest.mark.parametrize("shape", ["rows", "columns", "columns of columns", "every other"])
def test_slices_have_the_same_norms_however_they_lie(isa, shape):
    rows = tall()
    expected = [rounded_norm([row]) for row in rows]
    if shape == "rows":
        a, axis = rows, 1
    elif shape == "columns":
        a, axis = np.ascontiguousarray(rows.T), 0
    elif shape == "columns of columns":
        a, axis = np.asfortranarray(rows), 1
    else:
        a, axis = np.repeat(rows, 2, axis=1)[:, ::2], 1
    report = gradclip.clip_by_norm(a, math.inf, axis=axis)[1]
    assert report.norms.tolist() == expected
    assert report.norm == rounded_norm([rows])
    # a threshold at a norm clips what is above it, and nothing else
    threshold = sorted(expected)[30]
    found, report = gradclip.clip_by_norm(a, threshold, axis=axis)
    assert report.clipped_count == sum(n > threshold for n in expected)
    again = gradclip.clip_by_norm(rows, threshold, axis=1)[0]
    assert np.asarray(found if axis else found.T).tobytes() == again.tobytes()


def test_samples_have_a_part_in_each_leaf(isa):
    rows = tall()
    expected = [rounded_norm([row]) for row in rows]
    for leaves in ([rows], [rows[:, :4], rows[:, 4:]], [rows[:, 5:].copy(), np.asfortranarray(rows[:, :5])]):
        _, report = gradclip.clip_per_sample(leaves, math.inf)
        assert report.norms.tolist() == expected
        assert report.norm == rounded_norm([rows])
        assert gradclip.per_sample_clip_sum(leaves, 1e9)[1].norms.tolist() == expected


def test_adaptive_clipping_by_norms_of_parameters(isa):
    rows = tall()
    weights = np.asfortranarray(rows[::-1])
    norms, limits = [rounded_norm([row], 2, 3.0) for row in rows], [0.5 * rounded_norm([row]) for row in weights]
    found, report = gradclip.clip_adaptive(rows, weights, 0.5, grad_scale=3.0)
    assert report.norms.tolist() == norms
    assert report.norm == rounded_norm([rows], 2, 3.0)
    for row, out, norm, limit in zip(rows, found, norms, limits, strict=True):
        factor = limit / norm / 3.0 if norm > limit else 1 / 3.0
        assert out.tolist() == (row * factor).tolist()


@pytest.mark.parametrize("ord", [1, 2])
def test_the_decision_is_that_of_the_rounded_norm(isa, ord):
    """Whatever the split, norm > max_norm decides; and what is written has the same bits."""
    if ord == 1:
        a = np.array([1.0, 2.0**-53, 2.0**-120, 0.25])
        a = np.array([*a, *a[1:3]])
    else:
        a = np.full(36, ties(6, 1)[0])
    norm, rng = rounded_norm([a], ord), np.random.default_rng(7)
    for threshold in (norm, math.nextafter(norm, 0), math.nextafter(norm, math.inf), norm / 3):
        results = set()
        for order in (np.arange(len(a)), rng.permutation(len(a))):
            for cut in (0, 1, len(a) // 2):
                found, report = gradclip.clip_by_global_norm(np.split(a[order], [cut]), threshold, ord=ord)
                written = np.empty_like(a)
                written[order] = np.concatenate(found)
                results.add((report.clipped, report.scale, written.tobytes()))
        assert len(results) == 1
        assert results.pop()[0] == (norm > threshold)


@pytest.mark.parametrize("value", [*ties(6, 3), 0.3, 1 / 3])
def test_values_are_clipped_beside_a_norm_that_is_right(isa, value):
    a = np.full(36, value)
    norms = [rounded_norm([a]), rounded_norm([a[:9]]), rounded_norm([a, a[:9]])]
    for bound in (0.1, 1e3):  # something is changed, or nothing
        for call in (gradclip.clip_by_value_, lambda g, c: gradclip.clip_by_value(g, c)[1]):
            for g in ([a.copy(), a[:9].copy()], [a.copy().reshape(6, 6).T, a[:9].copy()]):
                report = call(g, bound)
                assert [*report.norms, report.norm] == norms


@pytest.mark.parametrize("bound", [0.1, 1e3])
def test_a_norm_beside_a_middle_is_right_where_values_can_be_read_again(isa, bound):
    x = np.array([1.0, 2.0**-53, 2.0**-120, 2.0**-80])  # next to a middle, and on neither side by the bits of a sum
    for a in (x, -x, np.sqrt(x)):
        report = gradclip.clip_by_value(a, bound)[1]
        assert report.norm == rounded_norm([a])


@pytest.mark.parametrize("dtype", slow(REAL, fast=(np.float16, np.float64)), ids=str)
@pytest.mark.parametrize("ord", [1, 2])
def test_exact_sums_are_those_of_the_reference(isa, threads, dtype, ord):
    """The second reading adds integers: any dtype, size, layout, range and number of threads."""
    rng = np.random.default_rng(8)
    for size in (0, 1, 4095, 4097, 70_001):
        x = rng.standard_normal(size) * 2.0 ** rng.integers(-20, 12, size)
        if dtype == np.float64:
            x = np.ldexp(x, rng.integers(-1090, 1010, size))
        x = x.astype(dtype)
        if size > 100:
            x[[5, 50]] = math.nan, -math.inf
        for leaves in ([x], [x[::-1], x[: size // 3]], np.array_split(x, 7)):
            assert exact.exact_sum(Leaves(list(leaves)), ord) == power_sum(leaves, ord)


def test_exact_sums_are_made_on_any_number_of_threads(threads):
    """Long units are shared out among threads, in pieces of 65,536 elements."""
    x = ties(6, 1)[0]
    rng = np.random.default_rng(9)
    a = rng.standard_normal((3, 300_000)) * np.exp(rng.normal(0, 20, (3, 300_000)))
    expected = [exact.exact_sum(Leaves([row]), 2.0) for row in a]
    assert sum(expected) == exact.exact_sum(Leaves([a]), 2.0)
    a = np.full((4, 6 * 6 * 8192), x)  # the root of 8192 is no fraction: near to no middle
    a[:, 36:] = 0
    report = gradclip.clip_by_norm(a, math.inf, axis=1)[1]
    assert set(report.norms.tolist()) == {float(6 * Fraction(x))}
    assert report.norm == rounded_norm([a[:, :36]])


def test_nothing_is_written_before_the_second_reading(monkeypatch):
    """The exact sum is made of what was given, though the call goes on to clip it."""
    x = ties(6, 1)[0]
    a = np.full((50, 36), x)
    before = snapshot([a])
    expected = float(6 * Fraction(x))
    report = gradclip.clip_by_norm_(a, expected / 2, axis=1)
    assert set(report.norms.tolist()) == {expected}
    assert snapshot([a]) != before
    assert len(set(a.ravel().tolist())) == 1


def test_flush_to_zero_changes_nothing():
    fpenv = pytest.importorskip("gradclip._cpu.plan")
    a = np.array([5, 12, 7]) * 5e-324
    with fpenv.StandardState():
        assert gradclip.global_norm([a[:1], a[1:]]) == rounded_norm([a])


@pytest.mark.parametrize("dtype", REAL, ids=str)
@pytest.mark.parametrize("ord", [1, 2, math.inf])
def test_strict_writes_the_same_bits_for_every_split(dtype, ord):
    rng = np.random.default_rng(10)
    for x in (rng.standard_normal(1000), np.full(900, 0.3), np.full(36, ties(6, 1)[0])):
        a = x.astype(dtype)
        norm = rounded_norm([a], ord)
        for threshold in (norm, math.nextafter(norm, 0.0), 0.7 * norm, 0.1 + 2.0**-30):
            results = set()
            for order in (np.arange(len(a)), rng.permutation(len(a))):
                for cuts in ([], [1], [len(a) // 2], range(1, len(a), 30)):
                    found, report = gradclip.clip_by_global_norm(np.split(a[order], cuts), threshold, ord=ord, strict=True)
                    written = np.empty_like(a)
                    written[order] = np.concatenate(found)
                    results.add((report.scale, written.tobytes()))
            assert len(results) == 1
            assert power_sum([written], ord) <= Fraction(threshold) ** (2 if ord == 2 else 1)


FORMS = {
    "global norm": lambda g, c: gradclip.clip_by_global_norm(g, c, strict=True, nonfinite="zero"),
    "by leaf": lambda g, c: gradclip.clip_by_norm(g, c, strict=True, nonfinite="zero"),
    "by slice": lambda g, c: gradclip.clip_by_norm(g, c, axis=1, strict=True, nonfinite="zero"),
    "by sample": lambda g, c: gradclip.clip_per_sample(g, c, strict=True, nonfinite="zero"),
    "unscaled": lambda g, c: gradclip.clip_by_global_norm(g, c, strict=True, nonfinite="zero", grad_scale=3.0),
}


@pytest.mark.parametrize("form", FORMS)
def test_strict_by_exact_sums_of_what_would_be_written(form, monkeypatch):
    """Where the sum of what would be written does not tell the next factor, an exact one does: to the same bits, usually."""
    from gradclip._core import strict

    rng, asked = np.random.default_rng(11), []
    leaves = [rng.standard_normal((6, n)).astype(dtype) for n, dtype in zip((5, 300, 7), REAL[1:], strict=True)]
    leaves[1][2, 7], leaves[1][4, 8] = math.nan, math.inf
    leaves.append((rng.standard_normal((6, 9)) + 1j).astype(np.complex64)[:, ::2])
    expected, report = FORMS[form](leaves, 0.7)
    known = strict._ratio

    def doubtful(written, unit, *rest):
        asked.append(unit)
        return None if not written.nonfinite(unit) else known(written, unit, *rest)

    monkeypatch.setattr(strict, "_ratio", doubtful)
    found, again = FORMS[form](leaves, 0.7)
    assert asked
    assert snapshot(found) == snapshot(expected)
    assert again.scales.tolist() == report.scales.tolist()


@pytest.mark.parametrize("ord", [1, 2, 3, 0.5, math.inf])
@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200, 0.0])
def test_sums_of_units_as_integers(ord, scale):
    rng = np.random.default_rng(3)
    leaves = Leaves([rng.standard_normal(n) * scale for n in (1, 7, 300, 5000)])
    sums = passes.measure(leaves, float(ord))
    assert sums.dyadics(range(4)) == [dyadic(*sums.scaled(i)) for i in range(4)]


@pytest.mark.parametrize("degree", [1, 2])
def test_what_is_clearly_rounded_is_rounded_alike_within_its_error(degree):
    sure = 0
    for seed in range(500):
        rng = np.random.default_rng(seed)
        middle = (int(rng.integers(2**52, 2**53)) * 2 + 1 << 20) + int(rng.integers(-3, 4)) * int(rng.integers(1, 2**18))
        total, exponent, error = (
            middle**degree,
            int(rng.integers(-800, 800)),
            float(rng.choice([0.0, 2.0**-75, 2.0**-62, 2.0**-55])),
        )
        if clearly_rounded(total, exponent, degree, error):
            value = Fraction(total) * Fraction(2) ** exponent
            assert root(value * (1 - Fraction(error)), degree) == root(value * (1 + Fraction(error)), degree)
            sure += 1
    assert 50 < sure < 450
    assert not clearly_rounded(1, 2000, degree, 0.0)  # near the ends of float64's range it does not tell
    assert clearly_rounded(0, 0, degree, 0.0)
