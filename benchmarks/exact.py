"""Exact arithmetic on elements, and arrays of the same values in every kind of memory; the tests use both too."""

from fractions import Fraction

import numpy as np

# bits of significand, exponent of the smallest subnormal
FORMAT = {"float16": (11, -24), "bfloat16": (8, -133), "float32": (24, -149), "float64": (53, -1074)}


def numbers(arrays):
    """Every real number in some arrays, exactly, as floats."""
    for a in map(np.asarray, arrays):
        parts = np.stack([a.real, a.imag], axis=-1) if a.dtype.kind == "c" else a
        yield from parts.astype(np.float64).ravel().tolist()


def element_error(written, original, factor):
    """Largest distance of written elements from original * factor, in ulps of their dtype there."""
    bits, smallest = FORMAT[str(written.dtype)]
    worst = 0.0
    factor = Fraction(factor)
    for y, x in zip(numbers([written]), numbers([original]), strict=True):
        exact = Fraction(x) * factor
        if exact == 0:
            assert y == 0
            continue
        ratio = abs(exact)
        exponent = ratio.numerator.bit_length() - ratio.denominator.bit_length()
        if ratio < Fraction(2) ** exponent:
            exponent -= 1
        ulp = Fraction(2) ** max(exponent - bits + 1, smallest)
        worst = max(worst, float(abs(Fraction(y) - exact) / ulp))
    return worst


def misaligned(a):
    """A copy of an array that starts one byte off its alignment."""
    memory = np.empty(a.nbytes + 1, np.uint8)
    view = memory[1:].view(a.dtype) if a.dtype.kind != "V" else memory[1:]
    view = np.ndarray(a.shape, a.dtype, memory, offset=1)
    view[...] = a
    return view


def layouts(a):
    """The same 1-d values in every kind of memory: (name, array) pairs."""
    n = len(a)
    yield "contiguous", a.copy()
    spaced = np.zeros(2 * n, a.dtype)
    spaced[::2] = a
    yield "every other", spaced[::2]
    yield "reversed", a[::-1].copy()[::-1]
    yield "misaligned", misaligned(a)
    column = np.zeros((n, 3), a.dtype)
    column[:, 1] = a
    yield "column", column[:, 1]
    if n % 2 == 0 and n:
        yield "transposed", np.ascontiguousarray(a.reshape(2, -1).T).T
        yield "fortran", np.asfortranarray(a.reshape(-1, 2))
        padded = np.zeros((2, n // 2 + 3), a.dtype)
        padded[:, : n // 2] = a.reshape(2, -1)
        yield "padded rows", padded[:, : n // 2]
        yield "negative rows", a.reshape(2, -1)[::-1, ::-1].copy()[::-1, ::-1]
