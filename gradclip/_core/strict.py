"""`strict`: norms compared with thresholds, and held to them, in exact arithmetic."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from .rounding import RATIONAL, ROUNDS, RoundingBound, exact_order, safety, typical

if TYPE_CHECKING:
    from .._cpu.plan import Plan
    from .._cpu.sums import Sums
    from .._leaves import Leaves
    from .arguments import Array, Flags, Floats
    from .call import Request
    from .engine import Engine
    from .options import Options

# Above the error of a measured sum (2**-63 at worst): what stays below a bound by this much is below it
# in exact arithmetic.
MARGIN = 1 + Fraction(1, 2**60)


def exceeding(sums: Sums, leaves: Leaves, options: Options, threshold: float | Floats, by_sample: bool) -> Flags:
    """Return whether the norm of each unit exceeds its threshold, as uint8.

    A measured norm is within an ulp of the exact one. So the sums behind norms are compared only where a norm lies at its
    threshold.

    leaves : those that were measured
    by_sample : whether a unit of `sums` is a sample, which has a part of each leaf
    """
    if isinstance(threshold, float):
        return np.array([_exceeds(sums, None, threshold, leaves, options, by_sample)], np.uint8)
    norms = sums.norms()
    found = (norms > threshold).astype(np.uint8)
    near = np.flatnonzero(~(np.maximum(norms, threshold) * (1.0 - 2.0**-50) > np.minimum(norms, threshold)))
    for unit in near.tolist():
        found[unit] = _exceeds(sums, unit, float(threshold[unit]), leaves, options, by_sample)
    return found


def _exceeds(sums: Sums, unit: int | None, threshold: float, leaves: Leaves, options: Options, by_sample: bool) -> bool:
    """Whether the norm of one unit (None: of all together) exceeds its threshold."""
    ord = options.ord
    if threshold == math.inf or sums.shows_nonfinite(unit):
        return threshold != math.inf
    total, bound = sums.exact(unit), _power(threshold, ord) * _power(options.grad_scale, ord)
    if ord != math.inf and total <= bound * MARGIN and bound <= total * MARGIN:  # too close for the sum's bits
        if sums.count == 0 or (ord == 1 and any(a.dtype.kind == "c" for a in leaves.sources)):
            return True  # there are no elements of these sums to look at, or it is irrational
        arrays = [a[unit] for a in leaves.sources] if by_sample else leaves.sources_of(-1 if unit is None else unit)
        total = _slow_sum(map(leaves.brought, arrays), ord)
    return total > bound


def _slow_sum(arrays: Iterable[Array], ord: float) -> Fraction:
    """The sum of powers of the finite real parts in integers, without any error; a second for millions."""
    by_exponent: defaultdict[int, int] = defaultdict(int)
    for array in arrays:
        for start in range(0, array.size, 4096):
            part = np.asarray(array.flat[start : start + 4096])
            part = np.stack([part.real, part.imag]) if part.dtype.kind == "c" else part
            part = part.astype(np.float64).ravel()
            mantissas, exponents = np.frexp(np.abs(part[np.isfinite(part)]))
            for m, e in zip((mantissas * 2.0**53).astype(np.int64).tolist(), exponents.tolist(), strict=True):
                by_exponent[e] += m ** int(ord)
    return sum((Fraction(total) * Fraction(2) ** (int(ord) * (e - 53)) for e, total in by_exponent.items()), Fraction(0))


def _power(value: float | Fraction, ord: float) -> Fraction:
    """Return what the sum behind a norm is compared with: the threshold to the power `ord`, or for `inf` itself."""
    return Fraction(value) ** (1 if ord == math.inf else int(ord))


def shrink_step(request: Request, plan: Plan, sums: Sums) -> None:
    """Shrink the factor of a step, whose products are not rounded to a gradient, until it keeps the threshold."""
    options, threshold = request.options, request.threshold
    if threshold == math.inf or sums.shows_nonfinite():
        return
    if not plan.acting() and plan.exact_factor() * Fraction(options.grad_scale) <= 1:
        return
    if not exact_order(options.ord, request.to.sources):
        plan.shrink(0, 2 * safety(options.ord) - 1)
        return
    bound, total = _power(threshold, options.ord), sums.exact() * MARGIN
    while _power(plan.exact_factor(), options.ord) * total > bound:
        plan.shrink(0, 1 - 2.0**-53)


def by_unit(request: Request, plan: Plan, sums: Sums) -> Plan:
    """Return a Plan by unit, if one by sample or one for all together does not say enough: NaN and Inf differ by unit."""
    units, zeroed = request.to.units, request.options.finite_only and sums.nonfinite()
    if plan.count != units and (plan.count != 1 or zeroed):
        plan = plan.cycled(units)
    if zeroed:
        plan.zero_nonfinite(sums.units)
    return plan


def enforce(engine: Engine, request: Request, plan: Plan, sums: Sums) -> None:
    """Shrink factors until what would be written keeps the thresholds in exact arithmetic.

    Each round measures what would be written. A factor that is too large is multiplied by threshold / norm and by 1 - slack,
    whose slack doubles from round to round. If it is still too large in the last round, it gets a value that holds however
    elements are rounded."""
    options, share, threshold = request.options, request.share, request.threshold
    together = type(threshold) is float
    units = [(None, threshold)] if together else list(enumerate(threshold.tolist()))
    slack, rounding = typical(request.to.arrays), RoundingBound.of_leaves(request.to, options, together or request.by_sample)
    for more in reversed(range(ROUNDS)):
        written = engine.measure_written(request.to, by_unit(request, plan, sums), options.ord)
        if request.by_sample:
            written = written.by_sample(plan.count)
        over = False
        for i, (unit, bound) in enumerate(units):
            if bound == math.inf or plan.keeps(i) or sums.shows_nonfinite(unit):
                continue
            ratio = _ratio(written, unit, bound, options.ord, share)
            if ratio > 1.0:
                continue
            over = True
            if more:
                plan.shrink(i, ratio * (1.0 - max(slack, 2.0**-53)))
            else:
                most = rounding.most if written.nonfinite(unit) else math.inf
                plan.set_threshold(i, sums, unit, _safe(rounding, bound, options.ord, share), options.eps, most)
        if not over:
            return
        slack *= 2.0


def _safe(rounding: RoundingBound, threshold: float, ord: float, share: Fraction | float) -> float:
    """Return a norm to which all leaves may be brought, so that what is written keeps its threshold however it is rounded.

    share : how much of the sum behind the norm belongs to what is written
    """
    part = float(share) ** (1.0 / ord) if ord in RATIONAL else float(share)  # of the norm
    return rounding.threshold(threshold * part) / part if part else 0.0


def _ratio(written: Sums, unit: int | None, threshold: float, ord: float, share: Fraction | float) -> float:
    """Return the factor that brings a written norm to its threshold; a number above 1 if the norm certainly keeps it."""
    if written.nonfinite(unit):
        return 0.5  # overflow is above any threshold
    if ord not in RATIONAL:
        norm, most = written.norm(unit), threshold * share * safety(ord)
        return most / norm if norm > most else 2.0
    bound = _power(threshold, ord) * share
    total = written.exact(unit) * (1 if ord == math.inf else MARGIN)
    if total <= bound:
        return 2.0
    power = float(bound / total)
    return math.sqrt(power) if ord == 2 else power
