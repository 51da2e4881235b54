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


def clearly_rounded(total: int, exponent: int, degree: int, error: float) -> bool:
    """Return whether the root of total * 2**exponent certainly has one float64 that is the nearest, however the total errs.

    That is so nearly always, and costs less than to compare roots. False too for a root near the ends of float64's range.

    error : a bound on the relative error of the total"""
    if not total:
        return True
    shift = 160 - total.bit_length()  # so that a square root has some 80 bits
    shift += (exponent - shift) % degree
    found = total << shift if shift >= 0 else total >> -shift
    if degree == 2:
        found = math.isqrt(found)
    behind = found.bit_length() - 53  # bits of it that float64 does not hold
    if not -900 < found.bit_length() + (exponent - shift) // degree < 900:
        return False
    off = abs((found & (1 << behind) - 1) - (1 << behind - 1))
    return off > found * error + 4
