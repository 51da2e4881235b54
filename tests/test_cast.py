"""`out` of another float dtype: every element is the exact product, or the clamped one, rounded once."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from reference import BFLOAT16, FORMAT, REAL, gradient, power_sum

import gradclip
from gradclip._cpu import machine

PAIRS = [(a, b) for a, b in itertools.product(REAL, REAL) if a != b]
LARGEST = {np.dtype(np.float16): 15, BFLOAT16: 127, np.dtype(np.float32): 127, np.dtype(np.float64): 1023}  # exponents


def rounded(value, dtype):
    """A Fraction rounded once to a dtype, ties to even; as a float, which holds it."""
    bits, least = FORMAT[str(dtype)][:2]
    if value == 0:
        return 0.0
    exponent = abs(value).numerator.bit_length() - abs(value).denominator.bit_length()
    exponent -= abs(value) < Fraction(2) ** exponent
    step = Fraction(2) ** max(exponent - bits + 1, least)
    found = round(value / step) * step  # round() of a Fraction: ties to even
    return math.copysign(math.inf, value) if abs(found) >= Fraction(2) ** (LARGEST[dtype] + 1) else float(found)


def product(x, factor, dtype):
    """What elements times a factor, both as they are, become in a dtype."""
    exact = [rounded(Fraction(float(v)) * Fraction(factor), dtype) for v in x.ravel()]
    return np.array(exact).reshape(x.shape)


def same(found, expected):
    return found.astype(np.float64).tolist() == expected.tolist()


def hard(dtype, factor, to):
    """Elements whose products lie at ties of `to`, beside them, in its subnormal range, and beyond its largest number."""
    bits, least = FORMAT[str(to)][:2]
    rng = np.random.default_rng(5)
    whole = rng.integers(1 << bits, 2 << bits, 40).astype(np.float64) * 2 + 1  # one bit more than fits: ties
    scales = [2.0**-bits, 2.0 ** (least - bits + 2), 2.0 ** (least - 2)]
    near = [np.array([(1 - 2.0**-40), 1.0, 1 + 2.0**-40, 1 + 2.0**-25]) * w for w in whole[:10]]
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        values = np.concatenate([whole * s / factor for s in scales] + [n * s / factor for n in near for s in scales])
        values = np.concatenate([values, -values, [0.0, -0.0, 65504, 65519, 65520, 3.3e38]]).astype(dtype)
    return values[np.isfinite(values.astype(np.float64))]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: f"{p[0]}-{p[1]}")
def test_products_are_rounded_once(isa, pair):
    source, to = pair
    for kind, size in (("normal", 700), ("tiny", 65), ("huge", 17), ("lognormal", 1)):
        x = gradient(source, size, kind)
        for max_norm in (0.37, math.inf):
            out = np.full(size, 9, to)
            found, report = gradclip.clip_by_global_norm(x, max_norm, out=out)
            assert found is out
            if report.scale > 1e-300:
                assert same(out, product(x, report.scale, to)), (kind, max_norm)
    for factor in (1.0, 0.5, 0.3, 0.75, 1 / 3, 1 + 2.0**-52):
        x = hard(source, factor, to)
        out = np.full((2, len(x)), 9, to)
        _, report = gradclip.clip_by_global_norm(np.stack([x, x]), math.inf, grad_scale=1 / factor, out=out)
        assert same(out, product(np.stack([x, x]), 1 / (1 / factor), to)), factor


def test_ties_that_two_roundings_would_get_wrong(isa):
    """Each of these products becomes another number if it is first rounded to float64, or to float32."""
    x = np.array([1 + 2.0**-11 + 2.0**-36, 1 + 2.0**-11 - 2.0**-36, -(1 + 2.0**-11 + 2.0**-50)])
    out = np.zeros(3, np.float16)
    gradclip.clip_by_global_norm(x, math.inf, out=out)
    assert out.tolist() == [1 + 2.0**-10, 1.0, -(1 + 2.0**-10)]
    # 0x1.000001p0 = 1 + 2**-24 is a tie of float32; the factor is (1 + 2**-24) * (1 - 2**-53), rounded, and so on
    factor, narrow = 1 + 2.0**-52, np.zeros(2, np.float32)
    x = np.array([(1 + 2.0**-24) * (1 - 2.0**-52), (1 + 3 * 2.0**-24) * (1 - 2.0**-52)])
    gradclip.clip_by_global_norm(x, math.inf, grad_scale=1 / factor, out=narrow)
    assert narrow.tolist() == product(x, 1 / (1 / factor), np.dtype(np.float32)).tolist()


def leaves(seed, dtypes, strided=False):
    rng = np.random.default_rng(seed)
    made = [rng.standard_normal((6, 5000 if i == 1 else 40)).astype(dtype) for i, dtype in enumerate(dtypes)]
    return [a[:, ::2] if strided else a for a in made]


FORMS = {
    "clip_by_value": lambda g, **k: gradclip.clip_by_value(g, -0.3, 0.4, **k),
    "clip_by_norm": lambda g, **k: gradclip.clip_by_norm(g, 0.7, **k),
    "clip_by_norm, columns": lambda g, **k: gradclip.clip_by_norm(g, 0.7, axis=0, **k),
    "clip_by_norm, rows": lambda g, **k: gradclip.clip_by_norm(g, 0.7, axis=1, **k),
    "clip_by_norm, groups": lambda g, **k: gradclip.clip_by_norm(g, 0.7, groups=["a", "b", "a", "b"], **k),
    "clip_by_global_norm": lambda g, **k: gradclip.clip_by_global_norm(g, 0.7, **k),
    "normalize": lambda g, **k: gradclip.normalize(g, 3.0, **k),
    "clip_adaptive": lambda g, **k: gradclip.clip_adaptive(g, [np.ones(a.shape) for a in g], 0.02, unit_axis=-1, **k),
    "clip_per_sample": lambda g, **k: gradclip.clip_per_sample(g, 0.7, **k),
    "clip_per_sample, mask": lambda g, **k: gradclip.clip_per_sample(g, 0.7, mask=[1 > 0] * 5 + [False], **k),
    "apply_clip": lambda g, **k: gradclip.apply_clip(g, gradclip.measure(g), 0.7, **k),
}


@pytest.mark.parametrize("strided", [(False, False), (True, True), (False, True)], ids=str)
@pytest.mark.parametrize("name", FORMS)
def test_every_form_casts_what_it_makes_in_float64(name, strided, threads):
    """Held to the results of the same values in float64, whose factors are the same: they are within 2**-53 of the products."""
    narrow = [REAL[2], REAL[2], REAL[0], BFLOAT16]
    targets = [REAL[0], BFLOAT16, REAL[3], REAL[2]]
    grads = leaves(3, narrow, strided[0])
    out = [np.full((a.shape[0], a.shape[1] * (1 + strided[1])), 9.0).astype(t) for a, t in zip(grads, targets, strict=True)]
    out = [a[:, ::2] if strided[1] else a for a in out]
    found, report = FORMS[name](grads, out=out)
    wide, other = FORMS[name]([a.astype(np.float64) for a in grads])
    assert found is out
    assert (report.norm, report.scale) == (other.norm, other.scale)
    for a, exact, t in zip(out, wide, targets, strict=True):
        if name == "clip_by_value":
            continue
        error = np.abs(a.astype(np.float64) - exact)
        assert (error <= np.abs(exact) * 2.0 ** -FORMAT[str(t)][0] * (1 + 2.0**-20) + 2.0 ** (FORMAT[str(t)][1] - 1)).all()
    if name == "clip_by_value":
        same_dtype, _ = FORMS[name](grads)
        for a, b in zip(out, same_dtype, strict=True):
            assert same(a, np.array([rounded(Fraction(float(v)), a.dtype) for v in b.ravel()]).reshape(b.shape))


@pytest.mark.parametrize("nonfinite", ["raise", "skip", "zero", "propagate"])
def test_nan_and_inf(nonfinite):
    x = np.array([3.0, np.nan, 4.0, -np.inf], np.float32)
    out = np.full(4, 9, np.float16)
    if nonfinite == "raise":
        with pytest.raises(gradclip.NonFiniteGradientError):
            gradclip.clip_by_global_norm(x, 1.0, out=out)
    else:
        report = gradclip.clip_by_global_norm(x, 1.0, out=out, nonfinite=nonfinite)[1]
        assert report.skipped == (nonfinite == "skip")
    expected = {"zero": [np.float16(0.6), 0, np.float16(0.8), 0], "propagate": [np.nan] * 4}.get(nonfinite, [9] * 4)
    np.testing.assert_array_equal(out, np.array(expected, np.float16))
    found, _ = gradclip.clip_by_value(x, 3.5, out=out)
    np.testing.assert_array_equal(found, np.array([3, np.nan, 3.5, -3.5], np.float16))


@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: f"{p[0]}-{p[1]}")
@pytest.mark.parametrize("ord", [1, 2, math.inf])
def test_strict_holds_of_what_was_written(pair, ord):
    source, to = pair
    for seed in range(4):
        x = gradient(source, 300, seed=seed)
        norm = gradclip.global_norm(x, ord)
        for max_norm in (norm, norm * 0.4, norm * 2):
            out = np.zeros(300, to)
            gradclip.clip_by_global_norm(x, max_norm, ord=ord, strict=True, out=out)
            assert power_sum([out], ord) <= Fraction(max_norm) ** (1 if ord == math.inf else ord)


def test_overflow():
    """Without `strict` a number beyond the range becomes Inf, as in a cast; `strict` scales until all are in it."""
    x, out = np.array([1e6, -2e5, 3.0], np.float32), np.zeros(3, np.float16)
    assert gradclip.clip_by_global_norm(x, 1e9, out=out)[0].tolist() == [math.inf, -math.inf, 3.0]
    _, report = gradclip.clip_by_global_norm(x, 1e9, strict=True, out=out)
    assert report.clipped
    assert (out[0], report.scale) == (65504, 65504 / 1e6)
    rows = np.zeros((2, 3), np.float16)
    _, report = gradclip.clip_by_norm(np.stack([x, x / 1e6]), 1e9, axis=1, strict=True, out=rows)
    assert report.clipped_count == 1
    assert rows[1].tolist() == (x / np.float32(1e6)).astype(np.float16).tolist()


def test_what_is_refused():
    x = np.ones((2, 8), np.float16)
    for call in (gradclip.clip_by_global_norm, gradclip.clip_by_value):
        with pytest.raises(ValueError, match="^w: out shares memory with grads, and has another dtype"):
            call({"w": x}, 1.0, out={"w": x.view(BFLOAT16)})
        with pytest.raises(ValueError, match="^w: grads has shape .* complex64, out has .* complex128"):
            gradclip.clip_by_global_norm({"w": np.ones(2, np.complex64)}, 1.0, out={"w": np.ones(2, np.complex128)})
        with pytest.raises(TypeError, match="int64"):
            call({"w": x}, 1.0, out={"w": np.ones((2, 8), np.int64)})
    y = np.zeros(16, np.float32)
    with pytest.raises(ValueError, match="shares memory"):
        gradclip.clip_by_global_norm(y.view(np.float16)[:16], 1.0, out=y)
    assert (x == 1).all()
    assert not y.any()


def test_instruction_sets_and_threads_agree():
    x = gradient(np.float32, 300_001, "lognormal")
    found = set()
    before, threads = machine.isa(), machine.get_threads()
    for name, n in itertools.product(machine.available_isas(), (1, 3)):
        machine.set_isa(name)
        machine.set_threads(n)
        out = [np.zeros(x.shape, t) for t in (np.float16, BFLOAT16, np.float64)]
        gradclip.clip_by_global_norm([x, x, x], 1e3, out=out)
        found.add(b"".join(a.tobytes() for a in out))
    machine.set_isa(before)
    machine.set_threads(threads)
    assert len(found) == 1
