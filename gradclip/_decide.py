"""From what was measured to what is written: policies, thresholds, factors.

Every technique ends here. `decide` settles what happens to NaN and Inf, compares norms with thresholds,
fills a Plan, has it written and reports. A *unit* is what shares one norm and one factor: all leaves
together (-1), or each leaf."""

from __future__ import annotations

import math
from collections import defaultdict
from fractions import Fraction

import numpy as np

from ._cpu.passes import measure_written, write
from ._cpu.plan import Plan, StandardState
from .errors import NonFiniteGradientError
from .report import ClipReport

# Above the error of a measured sum (2**-63 at worst): what stays below a bound by this much is below it
# in exact arithmetic.
MARGIN = 1 + Fraction(1, 2**60)

# Orders (0: inf) whose sums are compared in rational arithmetic; the norms of others lie within 4 ulp.
RATIONAL = (0.0, 1.0, 2.0)
ULPS = 1 - 2.0**-49

# Half an ulp of 1, by dtype.
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "complex64": 2.0**-24}


def decide(sums, to, rule, target, max_norm=None, *, normalize=False, keep_out=False, share=1, norms=None):
    """Clip or normalize the leaves `to` by measured sums, and report.

    target: one threshold, or float64 of one per unit.
    max_norm: what the report shows as threshold, if not the target.
    keep_out: `to` is the caller's `out`, which a skipped step must not touch.
    share: of the exact sum behind the norm, how much belongs to `to` (strict bounds that part).
    norms: what the report shows as norms of the leaves, if not those of `sums`."""
    shown = target if max_norm is None else max_norm
    if type(target) is float and not normalize and rule.plain and sums.within(target) and not to.is_target:
        return ClipReport(sums, shown, to.units, norms=norms)  # the usual step, kept short
    with StandardState():
        return _decide(sums, to, rule, target, shown, normalize, keep_out, share, norms)


def _decide(sums, to, rule, target, shown, normalize, keep_out, share, norms):
    bad = sums.nonfinite()
    if bad:
        if rule.nonfinite == "raise":
            raise NonFiniteGradientError(*sums.first_nonfinite, bad, sums.first_value)
        if rule.nonfinite == "skip":
            if to.is_target and not keep_out:
                write(to, Plan(1))
            return ClipReport(sums, shown, to.units, skipped=True, norms=norms)
        sums.finite_only = rule.nonfinite == "zero"
    together = type(target) is float
    plan = Plan(1 if together else len(target))
    acts = _acts(sums, to, rule, target) if rule.strict and not normalize and rule.ord in RATIONAL else None
    plan.settle(sums, target, rule.eps, normalize, rule.strict, acts)
    acting = plan.acting()
    if bad and rule.nonfinite == "zero":
        plan = plan if plan.count == to.units else plan.spread(to.units)
        plan.zero_nonfinite(sums)
    if rule.strict and not plan.idle():
        _enforce(to, plan, rule, sums, target, share)
        acting = plan.acting()
    if to.is_target or not plan.idle():
        write(to, plan)
    count = acting if not together else to.units if acting else 0
    return ClipReport(sums, shown, to.units, plan, count, norms=norms)


def _acts(sums, to, rule, target):
    """Whether the norm of each unit exceeds its threshold in exact arithmetic."""
    units = [(-1, target)] if type(target) is float else enumerate(target.tolist())
    return np.array([_exceeds(sums, to, unit, rule, goal) for unit, goal in units], np.uint8)


def _exceeds(sums, to, unit, rule, goal):
    if goal == math.inf or sums.shows_nonfinite(unit):
        return goal != math.inf
    total, bound = sums.exact(unit), _power(goal, rule.ord) * _power(rule.grad_scale, rule.ord)
    if rule.ord and total <= bound * MARGIN and bound <= total * MARGIN:  # too close for the sum's bits
        if sums.count != to.units or (rule.ord == 1 and any(a.dtype.kind == "c" for a in to.sources)):
            return True  # measured elsewhere, or irrational
        total = _slow_sum(to.sources_of(unit), rule.ord)
    return total > bound


def _slow_sum(arrays, ord):
    """The sum of powers of the finite real parts in integers, without any error; a second for millions."""
    by_exponent = defaultdict(int)
    for array in arrays:
        for start in range(0, array.size, 4096):
            part = np.asarray(array.flat[start : start + 4096])
            part = np.stack([part.real, part.imag]) if part.dtype.kind == "c" else part
            part = part.astype(np.float64).ravel()
            mantissas, exponents = np.frexp(np.abs(part[np.isfinite(part)]))
            for m, e in zip((mantissas * 2.0**53).astype(np.int64).tolist(), exponents.tolist(), strict=True):
                by_exponent[e] += m ** int(ord)
    return sum((Fraction(total) * Fraction(2) ** (int(ord) * (e - 53)) for e, total in by_exponent.items()), Fraction(0))


def _power(value, ord):
    return Fraction(value) ** int(ord or 1)


def _enforce(to, plan, rule, sums, target, share):
    """Shrink factors until what would be written keeps the bound in exact arithmetic. Rounding is
    monotone, so smaller factors never write larger elements.

    The first slack is what the rounding of n elements typically adds to a norm, u / sqrt(n); it doubles."""
    units = [(-1, target)] if type(target) is float else list(enumerate(target.tolist()))
    slack = max((ROUNDING.get(a.dtype.name, 2.0**-53) / math.sqrt(max(a.size, 1)) for a in to.arrays), default=1.0)
    over = True
    while over:
        written = measure_written(to, plan, rule.ord)
        over = False
        for i, (unit, goal) in enumerate(units):
            if goal == math.inf or sums.shows_nonfinite(unit):
                continue
            if written.nonfinite(unit):  # overflow to Inf is above any bound
                ratio = 0.5
            elif rule.ord in RATIONAL:
                bound = _power(goal, rule.ord) * share
                total = written.exact(unit) * MARGIN if rule.ord else written.exact(unit)
                ratio = float(bound / total) ** (1.0 / (rule.ord or 1)) if total > bound else None
            else:
                bound = goal * share ** (1.0 / rule.ord) * ULPS
                ratio = bound / written.norm(unit) if written.norm(unit) > bound else None
            if ratio is not None:
                over = True
                for j in range(plan.count) if unit < 0 else (i,):
                    plan.shrink(j, max(ratio * (1.0 - max(slack, 2.0**-53)), 0.0))
        slack *= 2.0
