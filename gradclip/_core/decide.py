"""From what was measured to what is written: policies, thresholds, factors.

Every technique ends here. `decide` settles what happens to NaN and Inf, compares norms with thresholds,
fills a Plan, has it written and reports. A *unit* is what shares one norm and one factor: all leaves
together (-1), each leaf, a slice of one, or a sample of all."""

from __future__ import annotations

import math
from collections import defaultdict
from fractions import Fraction

import numpy as np

from .._cpu.passes import measure_written, write
from .._cpu.plan import Plan, StandardState
from .._cpu.sums import Sums
from ..errors import NonFiniteGradientError
from ..report import ClipReport, answer
from ..thresholds import Threshold
from .arguments import number
from .rounding import RATIONAL, ROUNDS, Room, exact_order, safety, typical

# Above the error of a measured sum (2**-63 at worst): what stays below a bound by this much is below it
# in exact arithmetic.
MARGIN = 1 + Fraction(1, 2**60)


def decide(sums, to, rule, target, max_norm=None, *, normalize=False, out=None, share=1, norms=None, owners=None, lr=None):
    """Clip or normalize the leaves `to` by measured sums; returns the report, or (out, report).

    target: one threshold (a number or a rule), or float64 of one per unit of `sums`.
    max_norm: what the report shows as threshold, if not the target.
    out: what the caller gave for the results, of which `to` are the leaves: a skipped step must not touch it.
    share: how much of the exact sum behind the norm (for RATIONAL orders; of the norm itself for others) belongs to
        `to`: strict bounds that part.
    norms: what the report shows as norms of the leaves, if not those of `sums`.
    owners: of each unit of `to`, the unit of `sums` that it belongs to, where these differ.
    lr: `to` takes a step by so much of its sources, instead of becoming them."""
    if type(target) is not float and isinstance(target, Threshold):
        target = _ask(target, sums, rule)
    shown = target if max_norm is None else max_norm
    if type(sums) is not Sums:  # on GPUs, where they stay unless something is to be raised
        found = sums.decide(to, rule, target, shown, normalize=normalize, out=out, norms=norms, owners=owners, lr=lr)
        if found is not None:
            return found
        target, sums = sums.goals_here(target), sums.host(to.sources)
    if type(target) is float and not normalize and rule.plain and sums.within(target) and not to.is_target:
        return ClipReport(sums, shown, to.units, None, 0, False, norms)  # the usual step, kept short
    with StandardState():
        bad = sums.nonfinite()
        if bad and refused(sums, rule):
            if to.is_target and out is None and lr is None:
                write(to, Plan(1))
            report = ClipReport(sums, shown, to.units if owners is None else sums.count, skipped=True, norms=norms)
            return answer(report, out)
        together = type(target) is float
        plan = Plan(1 if together else len(target))
        decided = None
        if rule.strict and not normalize and rule.ord in RATIONAL:
            decided = acts(sums, to, rule, target, owners)
        plan.settle(sums, target, rule.eps, normalize, rule.strict, decided)
        if rule.strict and lr is not None:
            _shrink(plan, sums, rule, target, exact_order(rule.ord, to.sources))
        elif rule.strict and not plan.idle():
            _enforce(to, plan, rule, sums, target, share, owners)
        made = _by_unit(plan, sums, to, rule, owners)
        if lr is not None:
            made.step(lr)
        acting, size = plan.acting(), to.units if owners is None else sums.count
    report = ClipReport(sums, shown, size, plan, (size if acting else 0) if together else acting, norms=norms)
    found = answer(report, out)
    if to.is_target or not made.idle():
        write(to, made)
    return found


def refused(sums, rule):
    """What the rule does about NaN and Inf, of which there are some: raises, or returns whether to write nothing."""
    if rule.nonfinite == "raise":
        raise NonFiniteGradientError(*sums.first_nonfinite, sums.nonfinite(), sums.first_value)
    sums.finite_only = rule.nonfinite == "zero"
    return rule.nonfinite == "skip"


def _by_unit(plan, sums, to, rule, owners):
    """The plan as the units of `to` need it: what to do about NaN and Inf differs from unit to unit."""
    if owners is not None:
        plan = plan.by_owner(owners)
    if sums.nonfinite() and rule.nonfinite == "zero":
        plan = plan if plan.count == to.units else plan.spread(to.units)
        plan.zero_nonfinite(sums if owners is None else sums.units)
    return plan


def _ask(threshold, sums, rule):
    """The threshold that a rule gives this step."""
    if sums.nonfinite():
        if rule.nonfinite == "raise":
            return math.inf
        sums.finite_only = rule.nonfinite == "zero"
    name = f"max_norm: {type(threshold).__name__}.next_threshold"
    return number(name, threshold.next_threshold(sums.norm()), 0.0)


def acts(sums, to, rule, target, owners):
    """Whether the norm of each unit exceeds its threshold in exact arithmetic. Norms are within an ulp: only of
    those that lie at the threshold the sums are compared."""
    if type(target) is float:
        return np.array([_exceeds(sums, to, -1, rule, target, owners)], np.uint8)
    norms = sums.norms()
    found = (norms > target).astype(np.uint8)
    near = np.flatnonzero(~(np.maximum(norms, target) * (1.0 - 2.0**-50) > np.minimum(norms, target)))
    for unit in near:
        found[unit] = _exceeds(sums, to, unit, rule, float(target[unit]), owners)
    return found


def _exceeds(sums, to, unit, rule, goal, owners):
    if goal == math.inf or sums.shows_nonfinite(unit):
        return goal != math.inf
    total, bound = sums.exact(unit), _power(goal, rule.ord) * _power(rule.grad_scale, rule.ord)
    if rule.ord and total <= bound * MARGIN and bound <= total * MARGIN:  # too close for the sum's bits
        if sums.count == 0 or (rule.ord == 1 and any(a.dtype.kind == "c" for a in to.sources)):
            return True  # measured elsewhere, or irrational
        arrays = to.sources_of(unit) if owners is None else [a[unit] for a in to.sources]
        total = _slow_sum(map(to.brought, arrays), rule.ord)
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


def _shrink(plan, sums, rule, target, exact):
    """Shrink the factor of a step, whose products are not rounded to a gradient, until it keeps the bound."""
    if target == math.inf or sums.shows_nonfinite():
        return
    if not plan.acting() and plan.exact_factor() * Fraction(rule.grad_scale) <= 1:
        return
    if not exact:
        plan.shrink(0, 2 * safety(rule.ord) - 1)
        return
    bound, total = _power(target, rule.ord), sums.exact() * MARGIN
    while _power(plan.exact_factor(), rule.ord) * total > bound:
        plan.shrink(0, 1 - 2.0**-53)


def _enforce(to, plan, rule, sums, target, share, owners):
    """Shrink factors until what would be written keeps the bound in exact arithmetic: by what it was measured to be above,
    and a slack that doubles. What is still above in the last round gets a factor that holds however elements are rounded."""
    together = type(target) is float
    units = [(-1, target)] if together else list(enumerate(target.tolist()))
    slack, room = typical(to.arrays), Room.of_leaves(to, rule, together or owners is not None)
    part = float(share) ** (1.0 / rule.ord) if rule.ord in RATIONAL and rule.ord else float(share)  # of the norm
    for more in reversed(range(ROUNDS)):
        written = measure_written(to, _by_unit(plan, sums, to, rule, owners), rule.ord)
        if owners is not None:
            written = written.by_owner(owners, plan.count)
        over = False
        for i, (unit, goal) in enumerate(units):
            if goal == math.inf or plan.keeps(i) or sums.shows_nonfinite(unit):
                continue
            ratio = _ratio(written, unit, goal, rule.ord, share)
            if ratio > 1.0:
                continue
            over = True
            if more:
                plan.shrink(i, ratio * (1.0 - max(slack, 2.0**-53)))
            else:
                safe = room.goal(goal * part) / part if part else 0.0
                plan.aim(i, sums, unit, safe, rule.eps, room.most if written.nonfinite(unit) else math.inf)
        if not over:
            return
        slack *= 2.0


def _ratio(written, unit, goal, ord, share):
    """What brings a written norm to its bound; above 1 where it certainly keeps it."""
    if written.nonfinite(unit):
        return 0.5  # overflow is above any bound
    if ord not in RATIONAL:
        norm, bound = written.norm(unit), goal * share * safety(ord)
        return bound / norm if norm > bound else 2.0
    bound = _power(goal, ord) * share
    total = written.exact(unit) * (MARGIN if ord else 1)
    if total <= bound:
        return 2.0
    power = float(bound / total)
    return math.sqrt(power) if ord == 2 else power
