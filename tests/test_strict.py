"""`strict` at its threshold: held to fractions, with and without a cast, beside equality and by chance."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from marks import slow
from reference import BFLOAT16, FORMAT, REAL, power_sum, rounded_norm
from test_cast import rounded

import gradclip

PAIRS = list(itertools.product(REAL, REAL))
HALF, SINGLE, DOUBLE = REAL[0], REAL[2], REAL[3]


def apply(x, max_norm, out, ord=2, grad_scale=1.0, **options):
    return gradclip.apply_clip(x, gradclip.measure(x, ord=ord, grad_scale=grad_scale), max_norm, out=out, **options)


FORMS = {  # all leaves, which are 1-d, to one threshold
    "clip_by_global_norm": gradclip.clip_by_global_norm,
    "clip_by_norm, axis": lambda x, c, out, **k: gradclip.clip_by_norm(x[None], c, axis=1, out=out[None], **k),
    "clip_by_norm, groups": lambda x, c, out, **k: gradclip.clip_by_norm(parts(x), c, groups=["a", "a"], out=parts(out), **k),
    "clip_per_sample": lambda x, c, out, **k: gradclip.clip_per_sample(x[None], c, out=out[None], **k),
    "apply_clip": apply,
    "owned": lambda x, c, out, **k: gradclip.clip_by_global_norm(x, c, out=out, owned=True, **k),
}


def parts(x):
    return [x[: len(x) // 2], x[len(x) // 2 :]]


def total(values, ord):
    return power_sum([np.array(values, np.float64)], ord)


def power(value, ord):
    return Fraction(value) ** (1 if ord == math.inf else ord)


def thresholds(rng, norms):
    """At norms, an ulp above and below them, and somewhere below."""
    for norm in norms:
        yield from (norm, math.nextafter(norm, math.inf), math.nextafter(norm, 0), norm * rng.uniform(0.1, 0.9))


def gradient(rng, dtype):
    n = int(rng.choice([1, 2, 3, 17, 60]))
    x = {
        "whole": rng.integers(-40, 41, n) * 2.0 ** rng.integers(-3, 4),
        "equal": np.full(n, rng.integers(1, 300)),
        "normal": rng.standard_normal(n) * 2.0 ** rng.integers(-4, 9),
        "wide": rng.standard_normal(n) * np.exp(rng.normal(0, 2, n)) * 10,
    }[rng.choice(["whole", "equal", "normal", "wide"])]
    return np.clip(x, -1e4, 1e4).astype(dtype)


@pytest.mark.parametrize(
    "pair", slow(PAIRS, fast=[(SINGLE, HALF), (SINGLE, DOUBLE), (DOUBLE, BFLOAT16), (HALF, HALF)]), ids=str
)
@pytest.mark.parametrize("form", FORMS)
def test_thresholds_at_and_beside_the_exact_norm(form, pair):
    """What keeps its threshold as it is, equality included, is only cast; the rest becomes no smaller than it has to."""
    source, to = pair
    unit, least = 2.0 ** -FORMAT[str(to)][0], 2.0 ** (FORMAT[str(to)][1] + 20)
    rng = np.random.default_rng([REAL.index(source), REAL.index(to)])
    for ord, scale in itertools.product([1, 2, math.inf], [1.0, 1.0, 8.0, 0.5]):
        x = gradient(rng, source)
        plain = [rounded(Fraction(float(v)) / Fraction(scale), to) for v in x]
        norm = rounded_norm([x], ord, scale)
        for threshold in thresholds(rng, {norm, rounded_norm([plain], ord)}) if norm > least else ():
            out = np.zeros(len(x), to)
            _, report = FORMS[form](x, threshold, out=out, ord=ord, grad_scale=scale, strict=True)
            assert total(out, ord) <= power(threshold, ord)
            if max(total(x, ord) / power(scale, ord), total(plain, ord)) <= power(threshold, ord):
                assert (out.tolist(), report.scale, report.clipped) == (np.array(plain, to).tolist(), 1 / scale, False)
            elif report.clipped:
                assert report.scale >= min(threshold / norm, 1.0) / scale * (1 - 9 * unit - 2.0**-52)


def test_what_is_brought_to_its_threshold_exactly_stays_there():
    """The factor is rounded, and yet the product is the threshold."""
    assert gradclip.clip_by_global_norm(np.array([230], np.float16), 1.0, strict=True)[0].tolist() == [1.0]
    assert gradclip.clip_by_global_norm(np.array([6, 8], np.float32), 5.0, strict=True)[1].scale == 0.5
    out = np.zeros(2, np.float32)
    report = gradclip.clip_by_global_norm(np.array([24, 32], np.float32), 5.0, grad_scale=8.0, strict=True, out=out)[1]
    assert (out.tolist(), report.scale, report.clipped) == ([3.0, 4.0], 0.125, False)


@pytest.mark.parametrize("out", [None, np.zeros(2, np.float16), np.zeros(2)], ids=str)
def test_apply_clip_reads_again_what_was_measured(out):
    x = np.array([3, 4], np.float32)
    assert gradclip.apply_clip(x, gradclip.measure(x), 5.0, strict=True, out=out)[1].scale == 1.0
    above = np.array([3, 4, 1e-20], np.float32)  # whose float64 norm is 5
    assert gradclip.apply_clip(above, gradclip.measure(above), 5.0, strict=True)[1].scale < 1.0


def test_apply_clip_to_a_part_that_cannot_be_read_again_keeps_the_threshold():
    a, b = np.array([3.0]), np.array([4.0, 1e-16])
    whole = gradclip.measure(a) + gradclip.measure(b)
    for leaf in (a, b):
        gradclip.apply_clip_(leaf, whole, 5.0, strict=True)
    assert power_sum([a, b]) <= 25
    assert power_sum([a, b]) > 25 * (1 - Fraction(1, 2**50))


@pytest.mark.parametrize("ord", [1, 2, 3, math.inf])
def test_only_a_leaf_that_is_cast_limits_the_factor_of_apply_clip(ord):
    """By its own largest element, whatever is written or was measured beside it."""
    w, s = np.array([1e6], np.float32), np.array([3, 4], np.float32)
    whole = gradclip.measure([w, s], ord=ord)
    both, report = gradclip.apply_clip([w, s], whole, 1e9, strict=True, out=[np.zeros(1, SINGLE), np.zeros(2, HALF)])
    assert ([a.tolist() for a in both], report.scale, report.clipped) == ([[1e6], [3, 4]], 1.0, False)
    part, report = gradclip.apply_clip([s], whole, 1e9, strict=True, out=[np.zeros(2, HALF)])
    assert (part[0].tolist(), report.scale, report.clipped) == ([3, 4], 1.0, False)
    _, report = gradclip.apply_clip([w, s], whole, 1e9, strict=True, out=[np.zeros(1, HALF), np.zeros(2, DOUBLE)])
    assert (report.scale, report.clipped) == (65504 / 1e6, True)


@pytest.mark.parametrize("to", [HALF, SINGLE], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_what_overflows_becomes_the_largest_number(form, to):
    """The same factor with and without a cast."""
    most = float(np.finfo(to).max)
    for size in (1, 40):
        x = np.full(size, 1.0, to)
        x[-1] = 1.375 * 2.0 ** (14 if to == HALF else 126)
        for source in (to, DOUBLE):
            out = np.zeros(size, to)
            _, report = FORMS[form](x.astype(source), 1e300, out=out, grad_scale=0.125, strict=True)
            assert (out[-1], report.scale, report.clipped) == (most, most / float(x[-1]), True)


def test_each_leaf_limits_the_factor_by_its_own_number():
    grads = [np.array([3.0], np.float32), np.array([2e4], np.float16)]
    report = gradclip.clip_by_global_norm(grads, 1e9, grad_scale=0.125, strict=True)[1]
    assert report.scale == 65504 / 2e4
    scales = gradclip.clip_by_norm(grads, 1e9, grad_scale=0.125, strict=True)[1].scales
    assert scales.tolist() == [8.0, 65504 / 2e4]
    wide, out = [np.array([1e6], np.float32), np.array([1e3], np.float32)], [np.zeros(1, np.float16), np.zeros(1, np.float32)]
    assert gradclip.clip_by_global_norm(wide, 1e9, strict=True, owned=[True, False], out=out)[1].scale == 65504 / 1e6


def test_clipped_tells_of_the_exact_norm():
    """It is above, though the float64 norm is the threshold, and though its rounding keeps that."""
    x, out = np.array([3, 4, 1e-20], np.float32), np.zeros(3, np.float16)
    report = gradclip.clip_by_global_norm(x, 5.0, strict=True, out=out)[1]
    assert (report.norm, report.scale, report.clipped, out.tolist()) == (5.0, 1.0, True, [3.0, 4.0, 0.0])
