"""Numbers whose norm is the middle between two float64, or next to it: what `exactness.py` asks of them.

A sum with an error, however small, may fall on either side of a middle, so that another split gives another norm. Middles
are not rare: the norm of k * k equal numbers is k times as large as one of them, which for k = 6 is a middle in two of five."""

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np

import gradclip


class Found(NamedTuple):
    """What was found of one kind of numbers."""

    cases: int
    ties: int  # whose norm is the middle itself
    wrong: int  # norms that are not the correctly rounded one, in any way to compute them
    changing: int  # cases whose norm depends on the way
    undecided: int  # cases that are not clipped exactly where their norm is above the threshold


def rounded(total, ord):
    """The correctly rounded norm that has an exact sum behind it, and whether that norm is a middle."""
    if ord == 2:  # 300 binary digits, and one more that says whether any follow
        digits = 300 - (total.numerator.bit_length() - total.denominator.bit_length()) // 2
        scaled = total * Fraction(4) ** digits
        whole = math.isqrt(scaled.numerator // scaled.denominator)
        total = (Fraction(whole) + Fraction(whole * whole != scaled, 2)) / Fraction(2) ** digits
    return float(total), total.numerator.bit_length() == 54


def kinds(quick=False):
    """What is looked at: name -> (order, arrays)."""
    rng = np.random.default_rng(0)
    some = rng.standard_normal(50 if quick else 400)
    triples = [2**51 + 2 * j + 1 for j in range(20)]
    return {
        "0.1, 0.3, 1/3: k * k of them": (
            2,
            [np.full(k * k, x) for x in (0.1, 0.3, 1 / 3) for k in range(2, 20 if quick else 137)],
        ),
        **{f"random: {n} equal ones": (2, [np.full(n, x) for x in some]) for n in (9, 36, 100)},
        "[3k, 4k]": (2, [np.array([3.0 * k, 4.0 * k]) for k in triples]),
        "1 + 2**-53 + tiny, order 1": (1, [np.array([1.0, 2.0**-53, tiny]) for tiny in (0.0, 2.0**-120, -(2.0**-200), 5e-324)]),
    }


def ways(x):
    """The same elements as leaves, split in two in every way (a long array: in some)."""
    yield [x]
    yield [x[::-1]]
    for cut in range(1, len(x)) if len(x) <= 100 else (1, len(x) // 3, len(x) // 2, len(x) - 1):
        yield [x[:cut], x[cut:]]


def look(ord, arrays):
    """Hold the norms of one kind of numbers, and the decisions made of them, to exact arithmetic."""
    ties = wrong = changing = undecided = 0
    for x in arrays:
        norm, tie = rounded(sum((abs(Fraction(e)) ** ord for e in x.tolist()), Fraction(0)), ord)
        found = {gradclip.global_norm(leaves, ord) for leaves in ways(x)}
        rows = np.stack([x, x])
        for same in (rows, np.asfortranarray(rows)):
            found |= set(gradclip.clip_by_norm(same, math.inf, axis=1, ord=ord)[1].norms.tolist())
        ties += tie
        wrong += found != {norm}
        changing += len(found) > 1
        undecided += any(
            gradclip.clip_by_global_norm(leaves, threshold, ord=ord)[1].clipped is not (norm > threshold)
            for leaves in ([x], [x[:1], x[1:]])
            for threshold in (math.nextafter(norm, 0.0), norm, math.nextafter(norm, math.inf))
        )
    return Found(len(arrays), ties, wrong, changing, undecided)


def show(found):
    """Print what was found, by kind."""
    print("\nNorms next to the middle between two float64: split in every way, C and Fortran order, thresholds at the norm\n")
    print(f"{'':34}{'cases':>10}{'ties':>10}{'wrong':>10}{'changing':>10}{'undecided':>10}")
    for name, numbers in found.items():
        print(f"{name:34}" + "".join(f"{n:>10}" for n in numbers))


def broken(found):
    """The promises that do not hold, in words."""
    return [
        f"{name}: {f.wrong} wrong norms, {f.changing} that change, {f.undecided} wrong decisions, of {f.cases}"
        for name, f in found.items()
        if f.wrong or f.changing or f.undecided
    ]
