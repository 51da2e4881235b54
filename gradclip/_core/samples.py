"""What each sample of a batch adds to a sum of clipped samples, so that it keeps its threshold after its rounding."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from .._cpu.plan import Plan, StandardState
from ..report import ClipReport
from .decide import refused
from .rounding import RoundingBound, exact_order, holds, unit_of
from .strict import exceeding

if TYPE_CHECKING:
    from typing import Protocol

    from .._cpu.sums import Sums
    from .._leaves import Leaves
    from .arguments import Array, Floats
    from .options import Options

    class SampleRequest(Protocol):
        """A Request of a sum of samples, as far as deciding and writing use it."""

        options: Options
        threshold: float
        shown: Any
        samples: Leaves
        to: Leaves
        fresh: bool

else:
    SampleRequest = Any  # a Protocol would cost time at import

# What rounds to float64 without overflow after two more roundings.
MOST = sys.float_info.max * (1.0 - 2.0**-51)


def decide_samples(request: SampleRequest, sums: Sums) -> tuple[ClipReport, Plan]:
    """Return the report, and the Plan of what each sample adds to each leaf: a Plan of no samples if nothing is to be added.

    request : as `decide` takes it, with `samples`: the Leaves that are summed, cut into samples
    sums : the Sums of samples
    """
    options, shown = request.options, request.shown
    with StandardState():
        if sums.nonfinite() and refused(sums, options):
            return ClipReport(sums, shown, sums.count, skipped=True), Plan(0)
        plan = _decided(request, sums)
        report = ClipReport(sums, shown, sums.count, plan, plan.acting())
        return report, plan.spread(request.samples.units)


def batch_of(request: SampleRequest, plan: Plan) -> int:
    """How many samples of each leaf are summed: all, or none where nothing is to be added."""
    return plan.count // max(request.samples.count, 1)


def _decided(request: SampleRequest, sums: Sums) -> Plan:
    """Return a Plan with a factor for each sample, alike for all leaves."""
    options = request.options
    safe, most = safe_norm(request), largest_term(request)
    if kept(request):
        over = exceeding(sums, request.samples, options, np.full(sums.count, request.threshold)) != 0
    else:
        over = ~(sums.norms() <= safe)
    plan = Plan(sums.count)
    plan.decide(sums, np.full(sums.count, safe), options.eps, False, True, (over & (safe < math.inf)).astype(np.uint8))
    if most is not None:
        plan.keep_finite(sums.units, most)
    if sums.nonfinite() and options.finite_only:
        plan.leave_out(sums)
    return plan


def safe_norm(request: SampleRequest) -> float:
    """Return a norm to which samples may be brought, so that each keeps the threshold however its elements are rounded."""
    if request.threshold == math.inf:
        return math.inf
    parts = [(a[:1].size, a.dtype, b.dtype) for a, b in _pairs(request)]
    return RoundingBound.of(parts, request.options.ord, request.options.grad_scale).threshold(request.threshold)


def kept(request: SampleRequest) -> bool:
    """Whether samples that are not clipped are added as they are, so that it can be decided exactly which may be."""
    options = request.options
    return options.grad_scale == 1.0 and _held(request) and exact_order(options.ord, request.samples.arrays)


def largest_term(request: SampleRequest) -> Floats | None:
    """Return, for each leaf, the largest magnitude that a sample may add; None if no element can become Inf."""
    if request.threshold == math.inf or (request.options.grad_scale >= 1.0 and _held(request)):
        return None
    return np.array([min(unit_of(b.dtype).most, MOST) for _, b in _pairs(request)])


def _held(request: SampleRequest) -> bool:
    """Return whether every sum has a dtype that holds each number of the samples' dtype."""
    return all(holds(b.dtype, a.dtype) for a, b in _pairs(request))


def _pairs(request: SampleRequest) -> Iterator[tuple[Array, Array]]:
    """Return pairs, one for each leaf: the array of its samples and the array of their sum."""
    return zip(request.samples.arrays, request.to.arrays, strict=True)
