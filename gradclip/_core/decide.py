"""From what was measured to what is written, on the host: one Request and its Sums to a report and a Plan.

A *unit* is what shares one norm and one factor: all leaves together, each leaf, or a slice of one. Units may also share them
with others, as those of a sample or of a group of leaves do, which is then their *owner*. What happens to NaN and Inf is
decided here, and norms are compared with thresholds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._cpu.plan import Plan, StandardState
from ..errors import NonFiniteGradientError
from ..report import ClipReport
from .mode import NORMALIZE, STEP
from .options import Options
from .rounding import RATIONAL
from .strict import by_unit, enforce, exceeding, hold_casts, shrink_step

if TYPE_CHECKING:
    from .._cpu.sums import Sums
    from .arguments import Indices
    from .call import ByValue, Request
    from .engine import AnySums, Engine


def decide(engine: Engine, request: Request, sums: Sums) -> tuple[ClipReport, Plan | None]:
    """Return the report of a Request, and the Plan that is to be written: None if nothing is.

    engine : what reads, for `strict`, what a Plan would write
    sums : the Sums of the units, or of their owners, of `request.to`
    """
    options, to, step = request.options, request.to, request.mode is STEP
    together = type(request.threshold) is float
    size = reported_size(request, sums)
    with StandardState():
        if request.skips or (sums.nonfinite() and refused(sums, options)):
            report = ClipReport(sums, request.shown, size, None, 0, True, request.norms)
            return report, Plan(1) if request.fresh else None
        plan = _decided(request, sums, together)
        if options.strict and request.shared:
            shared: Any = options  # whose module is not imported for a name
            shared.hold(engine, request, plan, sums)
        elif options.strict and step:
            shrink_step(request, plan, sums)
        elif options.strict:
            hold_casts(request, plan, sums)
            if not plan.idle():
                enforce(engine, request, plan, sums)
        written = by_unit(request, plan, sums)
        if step:
            written.step(request.lr)
        acting = plan.acting()
    clipped = (max(size, request.shared) if acting else 0) if together else acting  # on a rank without leaves too
    report = ClipReport(sums, request.shown, size, plan, clipped, False, request.norms)
    return report, written if to.is_target or not written.idle() else None


def reported_size(request: Request, sums: AnySums) -> int:
    """Return how many units or owners the report of a Request speaks of."""
    if request.counted is not None:
        return request.counted
    return sums.count if request.by_owner else request.to.units


def _decided(request: Request, sums: Sums, together: bool) -> Plan:
    """Return the Plan that brings units to their thresholds, before `strict` holds it to these in exact arithmetic."""
    options, normalize = request.options, request.mode is NORMALIZE
    plan = Plan(1 if together else len(request.threshold))
    exact = options.strict and not normalize and options.ord in RATIONAL
    clips = None
    if exact and options.shared and not together:
        shared: Any = options  # whose module is not imported for a name
        clips = shared.exceeding(sums, request.threshold)
    elif exact:
        whole = not (request.partial or request.shared)
        clips = exceeding(sums, request.to if whole else None, options, request.threshold)
    plan.decide(sums, request.threshold, options.eps, normalize, options.strict, clips)
    leave_unowned_alone(plan, request.owner)
    return plan


def leave_unowned_alone(plan: Plan, owner: Indices | None) -> None:
    """Let owners of no unit, which are padded samples, have no factor.

    owner : of each unit, as a Request has it
    """
    if owner is not None and plan.count:
        units = np.bincount(owner[owner >= 0], minlength=plan.count)
        plan.leave_alone(units == 0)


def refused(sums: Sums, options: Options) -> bool:
    """Return whether the NaN and Inf that were found forbid to write anything; or raise the error that the options ask for."""
    if options.nonfinite == "raise":
        assert sums.first_nonfinite is not None  # they were found
        path, index = sums.first_nonfinite
        raise NonFiniteGradientError(path, index, sums.nonfinite(), sums.first_value)
    return options.nonfinite == "skip"


def decide_clamp(request: ByValue, bounds: Plan, sums: Sums) -> tuple[ClipReport, Plan | None]:
    """Return the report of a clamp, and the Plan that clamps leaves with elements outside the bounds: None if there are none.

    bounds : the Plan that clamps all leaves
    sums : those of a read pass that counted the elements outside, leaf by leaf
    """
    report = ClipReport(sums, request.shown, sums.size, clipped_count=None)
    if not sums.outside() and not request.to.is_target:
        return report, None
    return report, bounds.where_outside(sums)
