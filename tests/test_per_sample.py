"""clip_per_sample and per_sample_clip_sum: samples one by one, and the bound of each as a theorem."""

import math
import sys
import tracemalloc
from decimal import Context, Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import BFLOAT16, COMPLEX, FORMAT, REAL, element_error, gradient, misaligned, numbers, power_sum, snapshot

import gradclip

KINDS = ["normal", "lognormal", "tiny", "huge", "zeros", "wide"]


def samples(dtype, shape, kind="normal", seed=0):
    """Random values of a shape, of a complex dtype too."""
    dtype = np.dtype(dtype)
    if dtype.kind != "c":
        return gradient(dtype, math.prod(shape), kind, seed).reshape(shape)
    part = np.empty(0, dtype).real.dtype
    return (gradient(part, math.prod(shape), kind, seed) + 1j * gradient(part, math.prod(shape), kind, seed + 50)).reshape(
        shape
    )


def within(arrays, bound, ord=2):
    """Whether the norm of the arrays is at most the bound: rational arithmetic, or where roots are asked for 400 digits."""
    if ord == 2:
        return power_sum(arrays) <= Fraction(bound) ** 2
    if ord in (1, math.inf) and all(a.dtype.kind != "c" for a in arrays):
        return power_sum(arrays, ord) <= Fraction(bound)
    with localcontext(Context(prec=400)):
        found = []
        for a in arrays:
            parts = [Decimal(x) for x in numbers([a])]
            pairs = zip(parts[::2], parts[1::2], strict=True) if a.dtype.kind == "c" else ((x, Decimal(0)) for x in parts)
            found += [(x * x + y * y).sqrt() for x, y in pairs]
        if ord == math.inf:
            return max(found, default=Decimal(0)) <= Decimal(bound)
        power = {0.5: Decimal.sqrt, 1: lambda x: x, 3: lambda x: x**3}[ord]
        return sum(map(power, found), Decimal(0)) <= power(Decimal(bound)) * (1 + Decimal(10) ** -390)


def contributions(leaves, max_norm, **norm):
    """What each sample adds: the sum of the batch of it alone."""
    for i in range(len(leaves[0])):
        yield gradclip.per_sample_clip_sum([a[i : i + 1] for a in leaves], max_norm, **norm)[0]


def sum_error(written, terms):
    """Distance of a sum from the exact sum of some arrays, in ulps of its dtype there."""
    worst = 0.0
    for y, *x in zip(numbers([written]), *(numbers([t]) for t in terms), strict=True):
        exact = sum(map(Fraction, x), Fraction(0))
        if exact == 0:
            assert y == 0
            continue
        bits, least = FORMAT[np.empty(0, written.dtype).real.dtype.name]
        exponent = abs(exact).numerator.bit_length() - abs(exact).denominator.bit_length()
        ulp = Fraction(2) ** max(exponent - bits, least)  # or twice that: errors may come out doubled, not halved
        worst = max(worst, float(abs(Fraction(y) - exact) / (2 * ulp if abs(exact) >= Fraction(2) ** exponent else ulp)))
    return worst


# ---- clip_per_sample --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*REAL, *COMPLEX], ids=str)
def test_each_sample_has_its_norm_over_all_leaves(isa, dtype):
    leaves = [samples(dtype, (6, 700), seed=1), samples(dtype, (6,), seed=2), samples(np.float32, (6, 2, 3), seed=3)]
    before = [a.copy() for a in leaves]
    norms = [gradclip.global_norm([a[i : i + 1] for a in leaves]) for i in range(6)]
    threshold = sorted(norms)[2]
    report = gradclip.clip_per_sample_(leaves, threshold)
    assert report.norms.tolist() == norms
    assert report.scales.tolist() == [min(1.0, threshold / n) for n in norms]
    assert (report.clipped_count, report.size, report.max_norm, report.scale) == (3, 6, threshold, report.scales.min())
    assert report.norm == gradclip.global_norm(before)
    for i, scale in enumerate(report.scales):
        for a, b in zip(leaves, before, strict=True):
            written, original = (x[i : i + 1].ravel().view(np.empty(0, x.dtype).real.dtype) for x in (a, b))
            assert element_error(written, original, scale) <= (0.501 if scale < 1 else 0.0)


def test_layouts_and_threads_change_no_bit(threads):
    a = gradient(np.float32, 40 * 3000, "wide").reshape(40, 3000)
    clipped, report = gradclip.clip_per_sample(a.copy(), 0.5)
    sums, _ = gradclip.per_sample_clip_sum(a, 0.5)
    spaced = np.zeros((80, 3000), np.float32)
    spaced[::2] = a
    packed = np.zeros(40, [("flag", "u1"), ("a", "f4", 3000)])["a"]  # samples begin at odd addresses
    packed[...] = a
    for other in (np.asfortranarray(a), spaced[::2], a[::-1].copy()[::-1], a[:, ::-1].copy()[:, ::-1], packed, misaligned(a)):
        assert gradclip.clip_per_sample(other, 0.5)[0].tobytes() == clipped.tobytes()
        assert gradclip.per_sample_clip_sum(other, 0.5)[0].tobytes() == sums.tobytes()
    there = packed.copy()
    assert gradclip.clip_per_sample_(packed, 0.5).norms.tolist() == report.norms.tolist()
    assert packed.tobytes() == clipped.tobytes() != there.tobytes()


def test_batches_of_none_and_one():
    for empty in ([], [np.zeros((0, 3)), np.zeros(0, np.float16)]):
        report = gradclip.clip_per_sample_(empty, 1.0)
        assert (report.size, report.norm, report.scale, len(report.norms)) == (0, 0.0, 1.0, 0)
    sums, report = gradclip.per_sample_clip_sum([np.zeros((0, 3)), None, np.zeros(0, np.float16)], 1.0)
    assert (sums[0].tolist(), sums[1], sums[2].shape, report.size) == ([0.0] * 3, None, (), 0)
    assert gradclip.per_sample_clip_sum([], 1.0)[0] == []
    assert gradclip.per_sample_clip_sum(np.zeros((5, 0)), 1.0)[0].shape == (0,)
    assert gradclip.clip_per_sample(np.array([[3.0, 4.0]]), 1.0)[0].tolist() == [[3 * 0.2, 4 * 0.2]]


# ---- the sum ----------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    dtype=st.sampled_from([*REAL, *COMPLEX]),
    out=st.sampled_from([None, np.float16, BFLOAT16, np.float32, np.float64]),
    kind=st.sampled_from(KINDS),
    ord=st.sampled_from([2, 2, 1, math.inf, 3, 0.5]),
    grad_scale=st.sampled_from([1.0, 1.0, 1024.0, 3.0, 1e-3]),
    threshold=st.sampled_from([1e-3, 0.3, 0.999, 1.0, 1.001, 7.0, 5e-324, 3e-323, 1e-310, 1e-45, 1e-7, "norm"]),
    size=st.integers(1, 40),
    seed=st.integers(0, 999),
)
def test_no_sample_adds_more_than_the_threshold(dtype, out, kind, ord, grad_scale, threshold, size, seed):
    leaves = [samples(dtype, (3, size), kind, seed), samples(dtype, (3,), kind, seed + 1)]
    norms = gradclip.clip_per_sample(leaves, math.inf, ord=ord, grad_scale=grad_scale)[1].norms
    if threshold == "norm":
        threshold = norms[0]
    elif threshold >= 1e-3:
        threshold *= float(norms.max())
    if threshold == math.inf:
        return
    if out is not None:
        out = [np.zeros(a.shape[1:], np.result_type(out, np.complex64) if dtype in COMPLEX else out) for a in leaves]
    norm = {"ord": ord, "grad_scale": grad_scale}
    terms = []
    for term in contributions(leaves, threshold, out=out, **norm):
        assert all(np.isfinite(t).all() for t in term)
        assert within(term, threshold, ord)
        terms.append([t.copy() for t in term])
    sums, _ = gradclip.per_sample_clip_sum(leaves, threshold, out=out, **norm)
    for i, total in enumerate(sums):
        if np.isfinite(np.abs(total)).all():
            assert sum_error(total, [t[i] for t in terms]) <= 0.501


@pytest.mark.parametrize("ord", [1, 2, 3, math.inf])
@pytest.mark.parametrize(
    ("dtype", "out", "most"),
    [
        (np.float32, np.float16, 65504.0),
        (np.float64, np.float16, 65504.0),
        (np.complex128, np.complex64, float(np.finfo(np.float32).max)),
        (np.float32, BFLOAT16, (2 - 2.0**-7) * 2.0**127),
        (np.float64, np.float32, float(np.finfo(np.float32).max)),
    ],
    ids=str,
)
def test_a_sample_that_the_sum_cannot_hold_is_scaled_until_it_can(dtype, out, most, ord):
    big = min(most * 100, float(np.finfo(dtype).max))
    a = np.array([[big, 1.0, -big / 2], [big / 1000, 2.0, 0.0], [most, 0.0, 1.0]]).astype(dtype)
    b = np.array([1.0, 5.0, 7.0], dtype)
    to = [np.zeros(3, out), np.zeros((), dtype)]
    bound = min(float(np.finfo(np.float64).max), big * 3)
    for i, term in enumerate(contributions([a, b], bound, out=to, ord=ord)):
        assert all(np.isfinite(t).all() for t in term)
        if ord != 3:
            assert within(term, bound, ord)
        if i:  # these fit
            assert [t.tolist() for t in term] == [a[i].astype(out).tolist(), b[i].tolist()]
    _, report = gradclip.per_sample_clip_sum([a, b], bound, out=to, ord=ord)
    assert report.scales.tolist() == [most / big, 1.0, 1.0]
    assert report.clipped_count == (big > most)
    gradclip.per_sample_clip_sum([a, b], math.inf, out=to, ord=ord)  # no bound, none kept
    assert np.isfinite(np.abs(to[0])).tolist() == [big <= most, True, big / 2 <= most]


def test_a_sample_that_unscaling_carries_out_of_range_is_scaled_until_it_is_not():
    a = np.array([[60000.0, 1.0], [3.0, 4.0]], np.float16)
    (term, other) = (t.copy() for (t,) in contributions([a], 1e300, grad_scale=2.0**-3))
    assert term.tolist() == [65504.0, float(np.float16(65504 / 60000))]
    assert other.tolist() == [24.0, 32.0]
    tiny = np.array([[1e-310, 5e-324]])
    (term,) = next(contributions([tiny], 1e300, grad_scale=1e-320, out=[np.zeros(2, np.float32)]))
    assert term[0] == np.float32(1e-310 / 1e-320)
    (term,) = next(contributions([tiny * 1e150], 1e300, grad_scale=1e-320, out=[np.zeros(2, np.float32)]))
    assert term.tolist() == [float(np.finfo(np.float32).max), float(np.float32(5e-324 / 1e-310 * np.finfo(np.float32).max))]
    (term,) = next(contributions([np.array([[1e308, 1.0]])], 1e308, grad_scale=1e-3))
    assert np.isfinite(term).all()
    assert within([term], 1e308)


@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_a_sum_overflows_only_where_its_value_does(isa, layout):
    top = sys.float_info.max
    columns = {
        (1.3e308, 1.27e308, -0.97e308): 1.3e308 + (1.27e308 - 0.97e308),
        (top, top, -top): top,
        (-top, -top, top): -top,
        (top, top, 0.0): math.inf,
        (-top, -top, 1.0): -math.inf,
        (top, math.ulp(top) / 2, -math.ulp(top) / 4): top,
        (top, math.ulp(top) / 2, 0.0): math.inf,
        (top, top, -math.inf): -math.inf,
        (math.inf, -math.inf, top): math.nan,
        (top, math.nan, 1.0): math.nan,
        (1.0, 2.0, 3.0): 6.0,
    }
    a = np.array([*columns]).T.copy(order="C" if layout == "rows" else "F")
    sums, _ = gradclip.per_sample_clip_sum(a, math.inf, nonfinite="propagate")
    assert sums.tolist() == pytest.approx([*columns.values()], rel=0, abs=0, nan_ok=True)
    a = gradient(np.float64, 30 * 1500, "huge").reshape(30, 1500)
    a[:, 7] = abs(a[:, 7])
    sums, _ = gradclip.per_sample_clip_sum(a, math.inf)
    for j, column in enumerate(a.T.tolist()):
        exact = sum(map(Fraction, column))
        try:
            assert sums[j] == float(exact)
        except OverflowError:
            assert sums[j] == (math.inf if exact > 0 else -math.inf)
    assert np.isfinite(sums).mean() > 0.5
    both = gradclip.per_sample_clip_sum(a + 1j * a[:, ::-1], math.inf)[0]
    assert (both.real.tolist(), both.imag.tolist()) == (sums.tolist(), sums[::-1].tolist())


@pytest.mark.parametrize(("dtype", "ord"), [(d, o) for d in REAL for o in (1, 2, math.inf)] + [(d, 2) for d in COMPLEX])
def test_a_sample_at_the_threshold_is_added_as_it_is(dtype, ord):
    a = np.zeros((2, 3), dtype)
    a[0, :2] = 3, 4
    a[1, 1] = 2
    norm = {1: 7.0, 2: 5.0, math.inf: 4.0}[ord]
    sums, report = gradclip.per_sample_clip_sum(a, norm, ord=ord)
    assert not report.clipped
    assert sums.tolist() == [3, 6, 0]
    below = math.nextafter(norm, 0)
    assert gradclip.per_sample_clip_sum(a, below, ord=ord)[1].clipped_count == 1
    assert all(within([term], below, ord) for (term,) in contributions([a], below, ord=ord))


def test_a_norm_that_rounds_to_the_threshold_is_above_it():
    a = np.array([[1.0, 2.0**-30]])
    assert gradclip.global_norm(a) == 1.0
    sums, report = gradclip.per_sample_clip_sum(a, 1.0)
    assert report.clipped
    assert within([sums], 1.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=str)
def test_taking_a_sample_out_changes_a_float64_sum_by_the_threshold(dtype):
    a = gradient(dtype, 20 * 500, "lognormal").reshape(20, 500)
    whole = np.zeros(500)
    gradclip.per_sample_clip_sum(a, 1.0, out=whole)
    for i in range(20):
        rest = np.zeros(500)
        gradclip.per_sample_clip_sum(np.delete(a, i, 0), 1.0, out=rest)
        change = power_sum([whole - rest])  # each of the two sums, and the difference, is rounded once
        assert change <= (1 + Fraction(20 * 3, 2**53)) ** 2


@pytest.mark.parametrize("batch", [7, 8, 9, 24])
def test_sums_are_exact_whatever_they_span(isa, batch):
    """float32 is added plainly where the products of a column span less than 2**26, else by TwoSum."""
    rng = np.random.default_rng(batch)
    reach = np.repeat([0, 24, 25, 26, 27, 28, 40, 90], 13)  # binades
    big, small = rng.choice([1.0, 1 + 2.0**-23, 2 - 2.0**-23, 1.5], (2, batch, len(reach)))
    third = batch // 3
    a = np.float32(np.concatenate([big[:third], -big[:third], small[2 * third :] * 2.0**-reach]))  # large ones cancel
    a[rng.random(len(a)) < 0.2] = 0
    a = rng.permuted(a, axis=0)
    a[:, 5] = 0
    a[:, 30] = rng.integers(-9, 9, batch) * np.float32(1e-45)
    a[0, 31:33] = 3e38, -3e38
    for start in (0, 1):  # columns meet others in a vector
        sums, _ = gradclip.per_sample_clip_sum(a[:, start:], math.inf)
        for j, column in enumerate(a[:, start:].T.tolist()):
            exact = sum(map(Fraction, column), Fraction(0))
            assert sums[j] == np.float32(float(exact))


def test_thresholds_at_the_ends():
    a = np.array([[3.0, 4.0], [1e300, -1e300], [0.0, 0.0]])
    assert gradclip.per_sample_clip_sum(a, 0)[0].tolist() == [0.0, 0.0]
    sums, report = gradclip.per_sample_clip_sum(a, math.inf)
    assert (sums.tolist(), report.clipped, report.scale) == ([1e300, -1e300], False, 1.0)
    sums, report = gradclip.per_sample_clip_sum(a, 1e-310)
    assert np.allclose(sums, [1e-310 * (0.6 + 0.5**0.5), 1e-310 * (0.8 - 0.5**0.5)], rtol=1e-11)
    assert report.clipped_count == 2
    assert gradclip.per_sample_clip_sum(np.ones((1, 4), np.float16), 1e-9)[0].tolist() == [0.0] * 4
    sums, report = gradclip.per_sample_clip_sum(np.ones((1, 3)), 0.1, ord=0.01)  # 3 ** (1 / p) is beyond float64 for more
    assert within([sums], 1.0, 0.5)
    gradclip.per_sample_clip_sum(np.ones((1, 3000)), 0.1, ord=0.01)
    for ord in (0.01, 0.3, 1, 2, 3, math.inf):
        assert gradclip.per_sample_clip_sum(np.ones((2, 1)), sys.float_info.max, ord=ord)[0].tolist() == [2.0]


def test_the_smallest_factor_is_that_of_a_sample_that_counts():
    for call in (gradclip.clip_per_sample, gradclip.per_sample_clip_sum):
        for mask, smallest in (([True, False, True], 2.0), ([False, True, False], 0.5), ([False] * 3, 1.0)):
            x = np.array([[3.0, 4.0], [12.0, 16.0], [0.0, 2.5]])
            report = call([x], 10.0, mask=mask, normalize=True, eps=0.0)[1]
            assert report.scale == pytest.approx(smallest, rel=1e-12)
            assert report.scales == pytest.approx(np.where(mask, [2, 0.5, 4], 1.0), rel=1e-12)
            assert report.table()[0].factor == report.scale


def test_a_scale_that_is_not_a_power_of_two():
    true = gradient(np.float64, 300).reshape(3, 100)
    sums, report = gradclip.per_sample_clip_sum(true * 3.0, math.inf, grad_scale=3.0)
    assert np.allclose(sums, true.sum(0), rtol=1e-13)
    assert report.norms == pytest.approx(np.linalg.norm(true, axis=1), rel=1e-15)
    assert report.scales.tolist() == [1 / 3] * 3


def test_memory_stays_near_the_sum():
    a = np.broadcast_to(gradient(np.float32, 10**6), (64, 10**6))
    tracemalloc.start()
    sums, report = gradclip.per_sample_clip_sum(a, 1.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The lists of work of the read pass and of the other; room of the threads.
    assert peak < sums.nbytes + a.nbytes // 500 + 100_000 + gradclip.get_num_threads() * 2**16
    assert gradclip.global_norm(sums) == pytest.approx(64.0, rel=1e-6)
    assert report.clipped_count == 64


def test_torch_and_jax_samples():
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    sums, _ = gradclip.per_sample_clip_sum({"w": torch.ones(2, 4, dtype=torch.bfloat16), "b": torch.ones(2)}, 9.0)
    assert (sums["w"].dtype, sums["w"].tolist(), sums["b"].tolist()) == (torch.bfloat16, [2.0] * 4, 2.0)
    out = torch.zeros(4, dtype=torch.float64)
    assert gradclip.per_sample_clip_sum(torch.ones(2, 4), 9.0, out=out)[0] is out
    assert out.tolist() == [2.0] * 4
    sums, _ = gradclip.per_sample_clip_sum([jax.numpy.ones((2, 4))], 9.0)
    assert isinstance(sums[0], jax.Array)


# ---- out and errors ---------------------------------------------------------------------------------


def test_out_may_be_strided_wider_or_narrower():
    a = gradient(np.float32, 5 * 2000).reshape(5, 20, 100)
    for dtype in (np.float16, BFLOAT16, np.float32, np.float64):
        plain, spaced = np.ones((20, 100), dtype), np.ones((20, 200), dtype)
        assert gradclip.per_sample_clip_sum(a, 1.0, out=plain)[0] is plain
        for other in (spaced[:, ::2], np.ones((20, 100), dtype, order="F"), misaligned(plain)):
            gradclip.per_sample_clip_sum(a, 1.0, out=other)
            assert np.ascontiguousarray(other).tobytes() == plain.tobytes()
        assert (spaced[:, 1::2] == 1).all()
        assert sum_error(plain[0], [t[0][0].copy() for t in contributions([a], 1.0, out=[np.ones((20, 100), dtype)])]) <= 0.501


@pytest.mark.parametrize(
    ("grads", "options", "error", "message"),
    [
        ({"w": np.ones((2, 3)), "b": np.ones(3)}, {}, ValueError, "^b: a batch of 3, but w has one of 2"),
        ({"w": np.ones((2, 3)), "b": np.ones(())}, {}, ValueError, "^b: an array without dimensions has no batch"),
        ({"w": np.ones((2, 3), int)}, {}, TypeError, "^w: dtype int64"),
        ({"w": np.ones((2, 3))}, {"max_norm": -1.0}, ValueError, "max_norm"),
        ({"w": np.ones((2, 3))}, {"max_norm": math.nan}, ValueError, "max_norm"),
        ({"w": np.ones((2, 3))}, {"max_norm": [1.0, 1.0]}, ValueError, "grads is a dict, max_norm a list"),
        ({"w": np.ones((2, 3))}, {"max_norm": gradclip.thresholds.Quantile()}, TypeError, "clip samples with a number"),
        ({"w": np.ones((2, 3))}, {"axis": 0}, TypeError, "axis"),
    ],
)
def test_bad_input_is_named(grads, options, error, message):
    for clip in (gradclip.clip_per_sample_, gradclip.clip_per_sample, gradclip.per_sample_clip_sum):
        with pytest.raises(error, match=message):
            clip(grads, **{"max_norm": 0.1, **options})
    assert all((a == 1).all() for a in grads.values())


def test_bad_out_is_named_and_untouched():
    a = {"w": np.ones((2, 3)), "b": np.ones(2)}
    for out, error, message in (
        (
            {"w": np.full(2, 7.0), "b": np.array(7.0)},
            ValueError,
            r"^w: samples have shape \(3,\) and dtype float64, out has \(2,\)",
        ),
        ({"w": np.full(3, 7.0), "b": np.full(1, 7.0)}, ValueError, "^b: samples have shape"),
        ({"w": np.full(3, 7.0, complex), "b": np.array(7.0)}, ValueError, "^w: .*complex128"),
        ({"w": np.full(3, 7), "b": np.array(7.0)}, TypeError, "^w: dtype int64"),
        ({"w": np.full(3, 7.0)}, ValueError, "^b: out has no such entry"),
        ({"w": np.broadcast_to(7.0, 3), "b": np.array(7.0)}, ValueError, "^w: read-only"),
    ):
        with pytest.raises(error, match=message):
            gradclip.per_sample_clip_sum(a, 1.0, out=out)
        assert all((np.asarray(o) == 7).all() for o in out.values())
    with pytest.raises(ValueError, match="^w: out shares memory with w of grads"):
        gradclip.per_sample_clip_sum(a, 1.0, out={"w": a["w"][0], "b": np.array(0.0)})
    same = np.zeros(3)
    with pytest.raises(ValueError, match="share memory"):
        gradclip.per_sample_clip_sum([a["w"], a["w"]], 1.0, out=[same, same])
    sparse = pytest.importorskip("scipy.sparse").csr_array(np.eye(3))
    with pytest.raises(TypeError, match="^e: a sparse array"):
        gradclip.per_sample_clip_sum({"e": sparse}, 1.0)


# ---- NaN and Inf ------------------------------------------------------------------------------------


def poisoned(dtype=np.float64):
    a = np.full((4, 3), 2.0, dtype)
    a[1, 2], a[3, 0] = np.nan, -np.inf
    return {"v": np.ones(4), "w": a}


def test_raise_and_skip():
    grads = poisoned()
    before = snapshot(grads.values())
    out = {"v": np.array(7.0), "w": np.full(3, 7.0)}
    for call in (gradclip.clip_per_sample_, lambda g, c: gradclip.per_sample_clip_sum(g, c, out=out)):
        with pytest.raises(gradclip.NonFiniteGradientError, match="w: nan at flat index 5 .*: 2"):
            call(grads, 1.0)
    assert (out["w"] == 7).all()
    report = gradclip.clip_per_sample_(grads, 1.0, nonfinite="skip")
    assert (report.skipped, report.clipped, report.size) == (True, False, 4)
    assert snapshot(grads.values()) == before
    assert snapshot(gradclip.clip_per_sample(grads, 1.0, nonfinite="skip")[0].values()) == before
    for where in (None, out):
        sums, report = gradclip.per_sample_clip_sum(grads, 1.0, nonfinite="skip", out=where)
        assert (report.skipped, report.nonfinite, report.first_nonfinite) == (True, 2, ("w", 5))
        assert (sums["v"].tolist(), sums["w"].tolist()) == (0.0, [0.0] * 3)


@pytest.mark.parametrize("dtype", [*REAL, *COMPLEX], ids=str)
@pytest.mark.parametrize("max_norm", [1.0, math.inf])
@pytest.mark.parametrize("grad_scale", [1.0, 3.0])
def test_zero_leaves_bad_samples_out(isa, dtype, max_norm, grad_scale):
    grads = poisoned(dtype)
    good = {k: v[[0, 2]] for k, v in grads.items()}
    norm = {"nonfinite": "zero", "grad_scale": grad_scale}
    sums, report = gradclip.per_sample_clip_sum(grads, max_norm, **norm)
    expected, _ = gradclip.per_sample_clip_sum(good, max_norm, **norm)
    assert snapshot(sums.values()) == snapshot(expected.values())
    assert (report.nonfinite, report.first_nonfinite) == (2, ("w", 5))
    assert report.scales[[1, 3]].tolist() == [0, 0]
    clipped, _ = gradclip.clip_per_sample(grads, max_norm, **norm)
    assert (clipped["w"][1, 2], clipped["w"][3, 0]) == (0, 0)
    assert clipped["w"][1, 0] != 0


@pytest.mark.parametrize("grad_scale", [1.0, 3.0])
def test_propagate_and_no_sample_poisons_another(grad_scale):
    grads = poisoned()
    clipped, report = gradclip.clip_per_sample(grads, 1.0, nonfinite="propagate", grad_scale=grad_scale)
    assert np.isnan(clipped["w"][1]).all()
    assert np.isnan(clipped["v"][1])
    assert np.isnan(clipped["w"][3]).tolist() == [True, False, False]
    assert math.isnan(report.norms[1])
    assert report.norms[3] == math.inf
    fine = gradclip.clip_per_sample(np.c_[grads["v"], grads["w"]][[0, 2]], 1.0, grad_scale=grad_scale)[0]
    assert clipped["w"][[0, 2]].tolist() == fine[:, 1:].tolist()
    sums, _ = gradclip.per_sample_clip_sum(grads, 1.0, nonfinite="propagate", grad_scale=grad_scale)
    assert np.isnan(sums["w"]).all()
    assert np.isnan(sums["v"])


def test_monitor_takes_their_reports():
    monitor = gradclip.ClipMonitor()
    monitor.record(gradclip.clip_per_sample(np.array([[3.0, 4.0]]), 1.0)[1])
    monitor.record(gradclip.per_sample_clip_sum(np.array([[0.3, 0.4]]), 1.0)[1])
    monitor.record(gradclip.per_sample_clip_sum(poisoned(), 1.0, nonfinite="skip")[1])
    monitor.record(gradclip.per_sample_clip_sum(poisoned(), 1.0, nonfinite="zero")[1])
    assert (monitor.steps, monitor.summary()["skipped"], monitor.summary()["clipped"]) == (4, 1, 2)
