"""`strict` on CuPy leaves: decided on the device, by the same rounds as on the processor, and the bound holds exactly."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest
from gpu_leaves import across, assert_same_bits, assert_same_report, flat, is_watched, journal, there, waits
from marks import slow
from reference import BFLOAT16, COMPLEX, REAL, gradient, power_sum

import gradclip

pytestmark = pytest.mark.slow


def equal(dtype, size, seed):
    """Elements that all round the same way."""
    return np.full(size, np.random.default_rng(seed).uniform(0.5, 2)).astype(dtype)


def awkward(dtype, kind, seed=0):
    """Leaves of 2-d samples, from one element to some thousand."""
    sizes = (1, 2, 7, 300, 2000)
    make = equal if kind == "equal" else lambda d, n, s: gradient(d, n, kind, s)
    return [make(dtype, 4 * n, seed + n).reshape(4, n) for n in sizes]


SOME = slow(REAL, fast=(np.float16, np.float64))  # dtypes, the two between them `slow`
FORMS = {  # what to call, and what shares a bound
    "global norm": (gradclip.clip_by_global_norm_, lambda g: [g]),
    "by leaf": (gradclip.clip_by_norm_, lambda g: [[a] for a in g]),
    "by slice": (lambda g, c, **k: gradclip.clip_by_norm_(g, c, axis=1, **k), lambda g: [[row] for a in g for row in a]),
    "per sample": (gradclip.clip_per_sample_, lambda g: [[a[i] for a in g] for i in range(4)]),
    "normalize": (gradclip.normalize_, lambda g: [g]),
    "normalize by leaf": (lambda g, c, **k: gradclip.normalize_(g, c, per_leaf=True, **k), lambda g: [[a] for a in g]),
}
LEAST = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "float64": 5e-324}


def assert_strict(cupy, form, here, bound, devices=1, ord=2, **options):
    """The processor's bits, the exact bound, no wait; and a second call changes nothing."""
    call, sharing = FORMS[form]
    options = {"nonfinite": "skip", "ord": ord, "strict": True, **options}
    gpu = across(cupy, devices, here)
    before = waits(cupy)
    got = call(gpu, bound, **options)
    assert waits(cupy) == before
    want = call(here, bound, **options)
    assert_same_bits(here, gpu)
    assert_same_report(want, got)
    for arrays in sharing(flat(gpu)):
        assert power_sum(arrays, ord) <= Fraction(bound) ** (1 if ord == math.inf else ord)
    if "normalize" not in form:
        assert not call(gpu, bound, **{**options, "grad_scale": 1.0}).clipped
        assert_same_bits(here, gpu)


@pytest.mark.parametrize("devices", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["normal", *slow(["lognormal"]), "tiny", "huge", "wide", "equal"])
@pytest.mark.parametrize("dtype", SOME, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_bits_of_the_processor_and_an_exact_bound(cupy, form, dtype, kind, devices):
    for seed, fraction in enumerate((0.7, 0.1 + 2.0**-30)):
        here = awkward(dtype, kind, seed)
        assert_strict(cupy, form, here, fraction * min(gradclip.global_norm(here), 1e300), devices)


@pytest.mark.parametrize("dtype", REAL, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_what_is_written_is_subnormal(cupy, form, dtype):
    least = LEAST[str(dtype)]
    for bound in (0.6 * least, 7.3 * least, 1000.5 * least):
        assert_strict(cupy, form, awkward(dtype, "normal"), bound)


@pytest.mark.parametrize("target", [136406.09143992668, 1e9])  # beyond the largest element; beyond what all of them hold
def test_norms_beyond_the_largest_element(cupy, target):
    assert_strict(cupy, "normalize", [np.full((1, 285), 8078.1, np.float16)], target)
    assert_strict(cupy, "normalize", [np.ones((1, 10_000), np.float16), np.full((1, 9), 1e3, np.float16)], target, 2)


@pytest.mark.parametrize("form", FORMS)
def test_orders_and_scales(cupy, form):
    for ord in (1, math.inf):
        for scale in (1.0, 3.0, 1e-3):
            assert_strict(cupy, form, awkward(np.float16, "normal"), 0.37, 2, ord, grad_scale=scale)


def test_what_overflows(cupy):
    """Brought down to what the dtype holds; by halves where dtypes are mixed, which the processor is not."""
    for target in (1e5, 1e6, 1e30, 1e300):
        assert_strict(cupy, "normalize", awkward(np.float16, "normal"), target)
        for dtype in (np.float16, np.float32):
            assert_strict(cupy, "normalize by leaf", awkward(dtype, "equal"), target)
        gpu = there(cupy, awkward(np.float16, "equal") + awkward(np.float32, "equal"))
        gradclip.normalize_(gpu, target, per_leaf=True, strict=True, nonfinite="skip")
        for a in flat(gpu):
            assert power_sum([a]) <= Fraction(target) ** 2
            assert (np.isfinite(a) & (a != 0)).all()


@pytest.mark.parametrize("dtype", SOME, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_the_last_resort(cupy, form, dtype, monkeypatch):
    """A factor that is safe without having been measured."""
    from gradclip._core import strict as host
    from gradclip._gpu import strict

    monkeypatch.setattr(host, "ROUNDS", 1)
    monkeypatch.setattr(strict, "ROUNDS", 1)
    for seed, bound in enumerate((0.3125, 1.75, 2.0**-17)):  # of few bits: what is brought to them exactly shows that it is
        assert_strict(cupy, form, awkward(dtype, "normal", seed), bound, 2)
        assert_strict(cupy, form, awkward(dtype, "equal", seed), bound)


def test_mixed_dtypes(cupy):
    here = [a for dtype in REAL for a in awkward(dtype, "normal")]
    for form in FORMS:
        assert_strict(cupy, form, [a.copy() for a in here], 1.3, 2)


@pytest.mark.parametrize("dtype", COMPLEX, ids=str)
def test_complex_numbers(cupy, dtype):
    for form in FORMS:
        here = [
            (a + 1j * b).astype(dtype) for a, b in zip(awkward(np.float32, "normal"), awkward(np.float32, "equal"), strict=True)
        ]
        assert_strict(cupy, form, here, 0.7, 2)


@pytest.mark.parametrize("ord", [0.5, 3])
def test_other_orders(cupy, ord):
    """Their powers differ in the last bits, and so may factors."""
    for bound in (0.3, 7.0):
        here = awkward(np.float32, "normal")
        gpu = there(cupy, here)
        want = gradclip.clip_by_global_norm_(here, bound, ord=ord, strict=True)
        got = gradclip.clip_by_global_norm_(gpu, bound, ord=ord, strict=True)
        assert got.scale == pytest.approx(want.scale, rel=1e-6)
        assert gradclip.global_norm(flat(gpu), ord) <= bound
        assert not gradclip.clip_by_global_norm_(gpu, bound, ord=ord, strict=True).clipped


@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_adaptive(cupy, dtype):
    here, params = awkward(dtype, "normal"), awkward(np.float32, "lognormal", 1)
    gpu, weights = across(cupy, 2, here), across(cupy, 2, params)
    before = waits(cupy)
    got = gradclip.clip_adaptive_(gpu, weights, 0.1, strict=True, nonfinite="zero")
    assert waits(cupy) == before
    assert_same_report(gradclip.clip_adaptive_(here, params, 0.1, strict=True), got)
    assert_same_bits(here, gpu)


@pytest.mark.parametrize("options", [{}, {"grad_scale": 3.0}, {"ord": 1}, {"ord": math.inf}, {"eps": 1e-6}], ids=str)
def test_steps(cupy, options):
    for seed in range(20):
        g, params = [gradient(np.float32, 50, seed=seed)], [np.zeros(50)]
        gpu, weights = across(cupy, 1, g), across(cupy, 1, params)
        bound = 0.1 + seed / 7
        want = gradclip.sgd_step_(params, g, 1.0, bound, strict=True, **options)
        got = gradclip.sgd_step_(weights, gpu, 1.0, bound, strict=True, nonfinite="zero", **options)
        assert_same_report(want, got)
        assert_same_bits(params, weights)


@pytest.mark.parametrize("form", FORMS)
def test_elements_that_are_not_finite(cupy, form):
    for policy in ("skip", "zero", "propagate"):
        here = awkward(np.float32, "normal")
        here[3][1, 5], here[1][2, 1] = np.nan, np.inf
        gpu = across(cupy, 2, here)
        want = FORMS[form][0](here, 0.7, strict=True, nonfinite=policy)
        got = FORMS[form][0](gpu, 0.7, strict=True, nonfinite=policy)
        assert_same_bits(here, gpu)
        assert_same_report(want, got)


def at_bounds(dtype):
    """Yield samples, each with its order and the norm that it has exactly."""
    for scale in (1, 2.0**-10):
        yield np.array([3 * scale, -4 * scale], dtype), 2, 5 * scale
        yield np.array([3 * scale, -4 * scale], dtype), 1, 7 * scale
    yield np.ones(900, dtype), 2, 30.0
    yield np.ones(900, dtype), 1, 900.0
    yield np.array([0.0, 0.3, 0.0], dtype), 2, float(np.array(0.3, dtype))


BY_SAMPLE = {
    "global norm": lambda g, c, **k: gradclip.clip_by_global_norm_([a[:1] for a in g], c, **k),
    **{form: FORMS[form][0] for form in ("by leaf", "by slice", "per sample")},
}


def assert_alike(cupy, call, here, *args, **options):
    """The same from a GPU. Returns the report."""
    gpu = across(cupy, 2, here)
    want = call(here, *args, strict=True, **{**options, "nonfinite": "raise"})
    assert_same_report(want, call(gpu, *args, strict=True, **options))
    assert_same_bits(here, gpu)
    return want


@pytest.mark.parametrize("policy", ["raise", "skip", *slow(["zero", "propagate"])])
@pytest.mark.parametrize("dtype", SOME, ids=str)
@pytest.mark.parametrize("form", BY_SAMPLE)
def test_a_norm_at_its_bound_is_not_clipped(cupy, form, dtype, policy):
    for sample, ord, bound in at_bounds(dtype):
        for eps in (0.0, 1e-6):
            for last in (sample, sample * dtype.type(2)):  # of which one is clipped, except by the norm of the first of all
                leaves = [np.stack([sample, sample[::-1], last])] if form != "by leaf" else [sample.copy(), last.copy()]
                report = assert_alike(cupy, BY_SAMPLE[form], leaves, bound, ord=ord, nonfinite=policy, eps=eps)
                assert report.clipped_count == (last is not sample and form != "global norm")


def test_ties_that_only_the_leaves_tell(cupy):
    """Elements of so many bits that a sum may lose some: under "raise" they are fetched, else such a norm is clipped."""
    for form, call in BY_SAMPLE.items():
        leaves = [np.full((4, 4), 0.1)] if form != "by leaf" else [np.full(4, 0.1), np.full(9, 0.1)]
        clipped = assert_alike(cupy, call, [a.copy() for a in leaves], 0.2).clipped_count
        assert clipped == (form == "by leaf")
        gpu = across(cupy, 1, leaves)
        report = call(gpu, 0.2, strict=True, nonfinite="skip")
        assert report.clipped_count == clipped + (4 if form in ("by slice", "per sample") else 1)
        assert report.scales.max() == pytest.approx(1, abs=1e-15)
        assert power_sum([flat(gpu)[0].ravel()[:4]]) < Fraction(0.2) ** 2
        assert not call(gpu, 0.2, strict=True, nonfinite="skip").clipped
    for tiny, clipped in ((0.0, False), (1e-25, True)):
        assert assert_alike(cupy, gradclip.clip_by_norm_, [np.array([3, 4, tiny])], 5.0).clipped == clipped


@pytest.mark.parametrize("tiny", [2.0**-104, 2.0**-110])
def test_what_lies_just_above_its_bound_is_clipped_as_on_the_processor(cupy, tiny):
    """With eps the round that told is one of the four."""
    for eps in (0.0, 1e-6, 0.25):
        assert_strict(cupy, "global norm", [np.array([1.0, tiny], BFLOAT16)], 1.0, ord=1, eps=eps)


@pytest.mark.parametrize("policy", ["raise", "skip"])
@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_ties_of_units_scales_and_steps(cupy, dtype, policy):
    g, params = np.array([[3, 4], [6, 8]], dtype), np.array([[0, 5], [5, 0]], dtype)
    gpu, weights = across(cupy, 1, [g]), across(cupy, 1, [params])
    want = gradclip.clip_adaptive_([g], [params], 1.0, strict=True)
    assert_same_report(want, gradclip.clip_adaptive_(gpu, weights, 1.0, strict=True, nonfinite=policy))
    assert_same_bits([g], gpu)
    assert want.scales.tolist()[0] == 1
    if policy == "raise":  # else too close to tell is above
        assert_alike(cupy, gradclip.clip_by_global_norm_, [np.array([9, 12], dtype)], 5.0, grad_scale=3.0)
        params, g = [np.zeros(2, dtype)], [np.array([3, 4], dtype)]
        weights, gpu = across(cupy, 1, params), across(cupy, 1, g)
        want = gradclip.sgd_step_(params, g, 1.0, 5.0, strict=True)
        assert_same_report(want, gradclip.sgd_step_(weights, gpu, 1.0, 5.0, strict=True))
        assert_same_bits(params, weights)
        assert not want.clipped


def test_rounds_are_few_and_leave_alone_what_keeps_its_bound(cupy):
    if not is_watched(cupy):
        pytest.skip("a GPU does not tell what is launched")
    gpu = there(cupy, awkward(np.float16, "equal"))
    for bound in (1.0, 1e9):
        journal(cupy)
        before = waits(cupy)
        gradclip.clip_by_global_norm_(gpu, bound, strict=True)
        assert waits(cupy) == before + 1
        names = [re.sub("_by_digits|_in_float32", "", name) for name, _ in journal(cupy) if name != "fetch"]
        assert names == [
            *("measure_squares", "fold_and_decide"),
            *("measure_squares", "fold_segments", "enforce") * 4,
            "write_leaves",
        ]
    gradclip.clip_by_norm_(gpu, 0.1, strict=True, nonfinite="zero")
    assert "fold_total" not in {name for name, _ in journal(cupy)}  # one device folds all as it folds units
