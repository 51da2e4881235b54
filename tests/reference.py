"""Slow exact answers: integers and fractions only, so that nothing here rounds."""

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
from exact import FORMAT, element_error, layouts, misaligned, numbers

__all__ = ["FORMAT", "element_error", "layouts", "misaligned"]  # of benchmarks/exact.py, which measures by them

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
REAL = [np.dtype(np.float16), BFLOAT16, np.dtype(np.float32), np.dtype(np.float64)]
COMPLEX = [np.dtype(np.complex64), np.dtype(np.complex128)]


def power_sum(arrays, ord=2):
    """Sum of |x|**ord over the finite elements, as a Fraction (ord inf: the maximum)."""
    finite = [abs(x) for x in numbers(arrays) if math.isfinite(x)]
    if ord == math.inf:
        return Fraction(max(finite, default=0.0))
    total = 0
    for x in finite:
        m, e = math.frexp(x)
        total += int(m * 2**53) ** ord << ord * (e + 1100)  # all in units of 2**-(53 + 1100)
    return Fraction(total, 1 << ord * (53 + 1100))


def norm_error(norm, exact_sum, ord=2):
    """How far a float64 norm is from the exact one, in its ulps (ord 2: of the square root)."""
    if ord != 2:
        return float(abs(Fraction(norm) - exact_sum) / Fraction(math.ulp(norm)))
    if exact_sum == 0:
        return 0.0 if norm == 0 else math.inf
    # root as an integer in units of 2**-(1200), truncated: far below an ulp of anything
    root = math.isqrt((exact_sum.numerator << 2400) // exact_sum.denominator)
    return float(abs(Fraction(norm) - Fraction(root, 1 << 1200)) / Fraction(math.ulp(norm)))


def rounded_norm(arrays, ord=2, grad_scale=1.0):
    """The norm of the true gradient, correctly rounded to float64: ties to even, Inf above its range."""
    total = power_sum(arrays, ord) / Fraction(grad_scale) ** (2 if ord == 2 else 1)
    if total == 0:
        return 0.0
    if ord == 2:  # 300 binary digits of the root, and one more that says whether any follow
        digits = 300 - (total.numerator.bit_length() - total.denominator.bit_length()) // 2
        scaled = total * Fraction(4) ** digits
        whole = math.isqrt(scaled.numerator // scaled.denominator)
        total = (Fraction(whole) + Fraction(whole * whole != scaled, 2)) / Fraction(2) ** digits
    try:
        return float(total)  # which rounds once
    except OverflowError:
        return math.inf


def gradient(dtype, size, kind="normal", seed=0):
    """Random values of a dtype; `kind` says how they are spread."""
    rng = np.random.default_rng([seed, size])
    x = rng.standard_normal(size)
    if kind == "lognormal":
        x *= np.exp(10 * rng.standard_normal(size))
    elif kind == "tiny":
        x *= float(2.0 ** (FORMAT[str(np.dtype(dtype))][1] + 3))
    elif kind == "huge":
        top = {"float16": 2.0**13, "bfloat16": 2.0**125, "float32": 2.0**125, "float64": 2.0**1021}[str(np.dtype(dtype))]
        x = np.clip(x, -1.9, 1.9) * top
    elif kind == "wide":
        x *= 2.0 ** rng.integers(-1000, 1000, size)
    elif kind == "zeros":
        x[rng.random(size) < 0.9] = 0.0
    with np.errstate(over="ignore", under="ignore"):
        limit = float(np.array(65504.0 if dtype == np.float16 else 3.3e38 if dtype != np.float64 else 1e308))
        return np.clip(x, -limit, limit).astype(dtype)


def snapshot(arrays):
    """The bytes of some arrays, to prove that nothing was written."""
    return [np.asarray(a).tobytes() for a in arrays]
