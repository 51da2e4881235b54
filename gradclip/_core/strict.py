"""`strict`: norms compared with thresholds, and held to them, in exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from .._cpu.exact import exact_sum, exceed
from .rounding import RATIONAL, ROUNDS, RoundingBound, exact_order, safety, typical

if TYPE_CHECKING:
    from .._cpu.plan import Plan
    from .._cpu.sums import Sums
    from .._leaves import Leaves
    from .arguments import Flags, Floats
    from .call import Request
    from .engine import Engine
    from .options import Options

# Above the error of a measured sum (2**-63 at worst): what stays below a bound by this much is below it in exact arithmetic.
# Sums that are exact need no margin.
MARGIN = 1 + Fraction(1, 2**60)
ERROR = Fraction(1, 2**62)
UNKNOWN = -1  # whether a norm exceeds its threshold, where only the elements tell


def exceeding(sums: Sums, leaves: Leaves | None, options: Options, threshold: float | Floats) -> Flags:
    """Return whether the norm of each unit exceeds its threshold, as uint8.

    A measured norm is within an ulp of the exact one. So the sums behind norms are compared only where a norm lies at its
    threshold, and elements are read again where the sums do not tell either.

    leaves : those that were measured; None if they cannot be read again
    """
    if isinstance(threshold, float):
        found = np.array([_exceeds(sums, None, threshold, options)], np.int8)
    else:
        norms = sums.norms()
        found = (norms > threshold).astype(np.int8)
        near = ~(np.maximum(norms, threshold) * (1.0 - 2.0**-50) > np.minimum(norms, threshold))
        for unit in np.flatnonzero(near).tolist():
            found[unit] = _exceeds(sums, unit, float(threshold[unit]), options)
    open_ = np.flatnonzero(found == UNKNOWN)
    if len(open_) and leaves is not None and exact_order(options.ord, leaves.sources):
        if isinstance(threshold, float):
            found[open_] = exceed(leaves, sums, None, np.array([threshold]))
        else:
            found[open_] = exceed(leaves, sums, open_, threshold[open_])
    exceeds: Flags = (found != 0).astype(np.uint8)
    return exceeds


def _exceeds(sums: Sums, unit: int | None, threshold: float, options: Options) -> int:
    """Whether the norm of one unit (None: of all together) exceeds its threshold, or UNKNOWN."""
    ord = options.ord
    if threshold == math.inf or sums.shows_nonfinite(unit):
        return threshold != math.inf
    total, bound = sums.exact(unit), power_of(threshold, ord) * power_of(options.grad_scale, ord)
    if not total:
        return False
    near = total <= bound * MARGIN and bound <= total * MARGIN  # too close for the sum's bits
    if near and ord != math.inf and sums.exact_total is None:
        return UNKNOWN
    return total > bound


def power_of(value: float | Fraction, ord: float) -> Fraction:
    """Return what the sum behind a norm is compared with: the threshold to the power `ord`, or for `inf` itself."""
    return Fraction(value) ** (1 if ord == math.inf else int(ord))


def shrink_step(request: Request, plan: Plan, sums: Sums) -> None:
    """Shrink the factor of a step, whose products are not rounded to a gradient, until it keeps the threshold."""
    options, threshold = request.options, request.threshold
    if threshold == math.inf or sums.shows_nonfinite():
        return
    if not plan.acting() and plan.exact_factor() * Fraction(options.grad_scale) <= 1:
        return
    shared: Any = options  # whose module is not imported for a name
    if shared.rounded if request.shared else not exact_order(options.ord, request.to.sources):
        plan.shrink(0, 2 * safety(options.ord) - 1)
        return
    bound, total = power_of(threshold, options.ord), sums.exact() * MARGIN
    certain = options.ord == math.inf or sums.exact_total is not None  # with `comm` it is
    while True:
        above = power_of(plan.exact_factor(), options.ord) * total - bound
        if not certain and abs(above) <= bound * ERROR:  # so that another split of the same elements gives the same factor
            total, certain = exact_sum(request.to, options.ord) * MARGIN, True
        elif above <= 0:
            return
        else:
            plan.shrink(0, 1 - 2.0**-53)


def by_unit(request: Request, plan: Plan, sums: Sums) -> Plan:
    """Return a Plan by unit, if one by owner or one for all together does not say enough: NaN and Inf differ by unit."""
    units, zeroed = request.to.units, request.options.finite_only and sums.nonfinite()
    if request.owner is not None or (plan.count != units and (plan.count != 1 or zeroed)):
        plan = plan.spread(units, request.owner)
    if zeroed:
        plan.zero_nonfinite(sums.units, request.owner)
    return plan


def hold_casts(request: Request, plan: Plan, sums: Sums) -> None:
    """Prepare a Plan for `enforce` where leaves are rounded to other dtypes.

    A unit that keeps its threshold may leave it by such a rounding. So it gets a factor, at first 1, that can be shrunk. And
    factors are shrunk until no element leaves the range of its new dtype."""
    if request.to.casts:
        threshold = np.array([request.threshold]) if type(request.threshold) is float else request.threshold
        plan.hold_casts(request.to, (request.found or sums).units, threshold, request.owner)


def enforce(engine: Engine, request: Request, plan: Plan, sums: Sums) -> None:
    """Shrink factors until what would be written keeps the thresholds in exact arithmetic.

    Each round measures what would be written. A factor that is too large is multiplied by threshold / norm and by 1 - slack,
    whose slack doubles from round to round. If it is still too large in the last round, it gets a value that holds however
    elements are rounded."""
    options, share, threshold = request.options, request.share, request.threshold
    margin = MARGIN if request.partial else 1  # a share is a quotient of sums that have errors
    together = type(threshold) is float
    units = [(None, threshold)] if together else enumerate(threshold.tolist())
    held = [
        (i, unit, bound)
        for i, (unit, bound) in enumerate(units)
        if bound < math.inf and not plan.keeps(i) and not sums.shows_nonfinite(unit)
    ]
    shared, exact = together or request.by_owner, exact_order(options.ord, request.to.sources)
    slack, rounding = typical(request.to, shared), RoundingBound.of_leaves(request.to, options, shared)
    for more in reversed(range(ROUNDS)):
        planned = by_unit(request, plan, sums)
        written = engine.measure_written(request.to, planned, options.ord)
        if request.by_owner:
            written = written.by_owner(plan.count, request.owner)
        over = False
        limited: set[int] = set()
        if more and written.nonfinite():
            overflowed = [i for i, unit, _ in held if written.nonfinite(unit)]
            limited = plan.keep_in_range(request.to, (request.found or sums).units, overflowed, request.owner)
            over = bool(limited)
        for i, unit, bound in held:
            if i in limited:
                continue
            ratio = _ratio(written, unit, bound, options.ord, share, written.error if exact else 0.0, margin)
            if ratio is None:  # so that another split of the same elements gives the same factor
                total = exact_sum(request.to, options.ord, planned, unit, request.by_owner, request.owner)
                ratio = ratio_of(total, bound, options.ord, share, margin)
            if ratio > 1.0:
                continue
            over = True
            if more:
                plan.shrink(i, ratio * (1.0 - max(slack, 2.0**-53)))
            else:
                most = rounding.most if written.nonfinite(unit) else math.inf
                lower = request.to.casts  # a factor that keeps elements in range does not become larger again
                plan.set_threshold(i, sums, unit, _safe(rounding, bound, options.ord, share), options.eps, most, lower)
        if not over:
            return
        slack *= 2.0


def _safe(rounding: RoundingBound, threshold: float, ord: float, share: Fraction | float) -> float:
    """Return a norm to which all leaves may be brought, so that what is written keeps its threshold however it is rounded.

    share : how much of the sum behind the norm belongs to what is written
    """
    part = float(share) ** (1.0 / ord) if ord in RATIONAL else float(share)  # of the norm
    return rounding.threshold(threshold * part) / part if part else 0.0


def _ratio(
    written: Sums, unit: int | None, threshold: float, ord: float, share: Fraction | float, error: float, margin: Fraction | int
) -> float | None:
    """Return the factor that brings a written norm to its threshold, and a number above 1 if the norm certainly keeps it.

    None: only a sum without the relative error tells."""
    if written.nonfinite(unit):
        return 0.5  # overflow is above any threshold
    if ord not in RATIONAL:
        norm, most = written.norm(unit), threshold * share * safety(ord)
        return most / norm if norm > most else 2.0
    total = written.exact(unit)
    if ord == math.inf:
        return ratio_of(total, threshold, ord, share)
    if not error:  # of rounded moduli
        return ratio_of(total, threshold, ord, share, MARGIN)
    low, high = (ratio_of(total * (1 + by * Fraction(error)), threshold, ord, share, margin) for by in (1, -1))
    return low if low == high else None


def ratio_of(total: Fraction, threshold: float, ord: float, share: Fraction | float, margin: Fraction | int = 1) -> float:
    """Return the factor of `_ratio` from the sum behind a written norm of order 1, 2 or inf.

    margin : by how much the sum has to stay below its bound, as a factor: 1 where both are exact
    """
    bound = power_of(threshold, ord) * share
    if total * margin <= bound:
        return 2.0
    power = float(bound / (total if ord == math.inf else total * MARGIN))
    return math.sqrt(power) if ord == 2 else power
