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

# Above the error of a measured sum (2**-65 at worst): what stays below a bound by this much is below it
# in exact arithmetic.
MARGIN = 1 + Fraction(1, 2**60)

# Half an ulp of 1, by dtype.
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "complex64": 2.0**-24}


def decide(sums, to, rule, target, max_norm=None, *, normalize=False, keep_out=False, share=1, norms=None):
    """Clip or normalize the leaves `to` by measured sums, and report.

    target: one threshold, or a list of one per leaf, where None leaves the leaf alone.
    max_norm: what the report shows as threshold, if not the target.
    keep_out: `to` is the caller's `out`, which a skipped step must not touch.
    share: of the exact sum behind the norm, how much belongs to `to` (strict bounds that part).
    norms: what the report shows as norms of the leaves, if not those of `sums`."""
    shown = target if max_norm is None else max_norm
    if type(target) is float and not normalize and rule.plain and sums.within(target) and not to.is_target:
        return ClipReport(sums, shown, to.count, norms=norms)  # the usual step, kept short
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
            return ClipReport(sums, shown, to.count, skipped=True, norms=norms)
        sums.finite_only = rule.nonfinite == "zero"
    per_leaf = isinstance(target, list)
    units = list(enumerate(target)) if per_leaf else [(-1, target)]
    plan = Plan(len(units))
    acting = []
    for i, (unit, goal) in enumerate(units):
        if rule.grad_scale != 1.0:
            plan.divide(i, rule.grad_scale)
        if goal is None or not _acts(sums, to, unit, rule, goal, normalize):
            continue
        if sums.shows_nonfinite(unit):  # as IEEE and PyTorch have it: goal / inf or goal / nan
            plan.multiply(i, math.nan if math.isnan(sums.norm(unit)) else 0.0)
        else:
            plan.bring_to(i, sums, unit, goal, rule.eps)
        if plan.factor(i) == 1.0 and not rule.strict:
            plan.keep(i)
        else:
            acting.append(i)
    if bad and rule.nonfinite == "zero":
        plan = _zeroing(plan, sums, to.count)
    if rule.strict and not plan.idle():
        acting = sorted({*acting, *_enforce(to, plan, rule, sums, units, share)})
    if to.is_target or not plan.idle():
        write(to, plan)
    scales = np.array([plan.factor(i) for i in range(plan.count)], np.float64)
    scale = float(scales.min()) if len(scales) else 1.0
    count = len(acting) if per_leaf else to.count * len(acting)
    return ClipReport(
        sums, shown, to.count, scale, count, clipped=bool(acting), scales=scales if per_leaf else None, norms=norms
    )


def _acts(sums, to, unit, rule, goal, normalize):
    """Whether a unit is to be brought to its goal."""
    if sums.shows_nonfinite(unit):
        return goal != math.inf
    if normalize:
        return sums.nonzero(unit)
    if not rule.strict or goal == math.inf:
        return sums.above(unit, goal)
    total, bound = sums.exact(unit), _power(goal, rule.ord) * _power(rule.grad_scale, rule.ord)
    if rule.ord and total <= bound * MARGIN and bound <= total * MARGIN:  # too close for the sum's bits
        if sums.count != to.count or (rule.ord == 1 and any(a.dtype.kind == "c" for a in to.sources)):
            return True  # measured elsewhere, or irrational
        total = _slow_sum(to.sources if unit < 0 else to.sources[unit : unit + 1], rule.ord)
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
                by_exponent[e] += m**ord
    return sum((Fraction(total) * Fraction(2) ** (ord * (e - 53)) for e, total in by_exponent.items()), Fraction(0))


def _power(value, ord):
    return Fraction(value) ** (ord or 1)


def _zeroing(plan, sums, count):
    """The same plan by leaf, bringing NaN and Inf to 0 where there are any."""
    if plan.count != count:
        plan = plan.spread(count)
    for i in range(count):
        if sums.count != count or sums.nonfinite(i):  # measured elsewhere: perhaps here
            plan.zero_nonfinite(i)
    return plan


def _enforce(to, plan, rule, sums, units, share):
    """Shrink factors until what would be written keeps the bound in exact arithmetic; yields the
    units that needed it. Rounding is monotone, so smaller factors never write larger elements.

    The first slack is what the rounding of n elements typically adds to a norm, u / sqrt(n); it doubles."""
    slack = max((ROUNDING.get(a.dtype.name, 2.0**-53) / math.sqrt(max(a.size, 1)) for a in to.arrays), default=1.0)
    over = True
    while over:
        written = measure_written(to, plan, rule.ord)
        over = False
        for i, (unit, goal) in enumerate(units):
            if goal is None or goal == math.inf or sums.shows_nonfinite(unit):
                continue
            bound = _power(goal, rule.ord) * share
            total = written.exact(unit) * MARGIN if rule.ord else written.exact(unit)
            if total > bound or written.nonfinite(unit):  # overflow to Inf is above any bound
                over = True
                ratio = 0.5 if written.nonfinite(unit) else float(bound / total) ** (1.0 / (rule.ord or 1))
                for j in range(plan.count) if unit < 0 else (i,):
                    plan.shrink(j, max(ratio * (1.0 - max(slack, 2.0**-53)), 0.0))
                yield i
        slack *= 2.0
