"""Integers times powers of two, which sums are kept in exactly, and their roots."""

from __future__ import annotations

import math
from fractions import Fraction

# Bits that a merged sum of other powers than 1 and 2 keeps: a norm is made of the first 106.
KEPT = 4096


def dyadic(value: Fraction, exponent: int) -> tuple[int, int]:
    """Return value * 2**exponent as (odd integer or 0, exponent); the denominator of value is a power of two."""
    numerator, exponent = value.numerator, exponent + 1 - value.denominator.bit_length()
    if not numerator:
        return 0, 0
    zeros = (numerator & -numerator).bit_length() - 1
    return numerator >> zeros, exponent + zeros


def root(value: Fraction, degree: int) -> float:
    """The correctly rounded float64 of a Fraction (degree 1) or of its square root (degree 2)."""
    if degree == 2 and value:
        # 128 bits of the root, and one more that says whether anything follows
        shift = 2 * max(0, 128 - (value.numerator.bit_length() - value.denominator.bit_length()) // 2)
        scaled = (value.numerator << shift) // value.denominator
        found = math.isqrt(scaled)
        more = found * found != scaled or (value.numerator << shift) % value.denominator != 0
        value = Fraction(2 * found + more, 2 << shift // 2)
    try:
        return float(value)
    except OverflowError:
        return math.inf
