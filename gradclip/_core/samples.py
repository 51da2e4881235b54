"""What each sample of a batch adds to a sum of clipped samples, so that it keeps its threshold after its rounding."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._cpu.plan import Plan, StandardState
from ..report import ClipReport
from .decide import leave_unowned_alone, refused
from .mode import NORMALIZE
from .rounding import RoundingBound, exact_order, holds, unit_of
from .strict import exceeding

if TYPE_CHECKING:
    from typing import Protocol

    from .._cpu.sums import Sums
    from .._leaves import Leaves
    from .arguments import Array, Floats, Indices
    from .options import Options

    class SampleRequest(Protocol):
        """A Request of a sum of samples, as far as deciding and writing use it."""

        options: Options
        threshold: float | Floats  # of each sample; or, by owner, of each sample in each part
        shown: Any
        mode: Any
        samples: Leaves
        to: Leaves
        fresh: bool
        owner: Indices | None
        counted: int | None
        norms: Floats | None
        parts: Sequence[Sequence[int]]  # indices of the leaves that share a norm of a sample
        limits: Sequence[float]  # the threshold of each part

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
    size, norms, owner = sums.count if request.counted is None else request.counted, request.norms, request.owner
    with StandardState():
        if sums.nonfinite() and refused(sums, options):
            return ClipReport(sums, shown, size, None, 0, True, norms), Plan(0)
        plan = _decided(request, sums)
        report = ClipReport(sums, shown, size, plan, plan.acting(), False, norms)
        return report, plan.spread(request.samples.units, owner, drops=True)


def batch_of(request: SampleRequest, plan: Plan) -> int:
    """How many samples of each leaf are summed: all, or none where nothing is to be added."""
    return plan.count // max(request.samples.count, 1)


def _decided(request: SampleRequest, sums: Sums) -> Plan:
    """Return a Plan with a factor for each sample or, by part, for each sample in each part."""
    options, normalize = request.options, request.mode is NORMALIZE
    batch = sums.count // max(len(request.parts), 1)
    shared: Any = options if options.shared else None  # whose module is not imported for a name
    limit = np.repeat(request.limits, batch)
    safe = np.repeat(safe_norms(request), batch) if shared is None else shared.safe_norms(limit)
    most = None if shared is not None else largest_term(request)  # there the safe norms are below it
    clips = None
    if not normalize:
        if shared is not None:
            over = ~(sums.norms() <= safe) if shared.inexact else shared.exceeding(sums, limit) != 0
        else:
            over = exceeding(sums, request.samples, options, limit) != 0 if kept(request) else ~(sums.norms() <= safe)
        clips = (over & (safe < math.inf)).astype(np.uint8)
    plan = Plan(sums.count)
    plan.decide(sums, safe, options.eps, normalize, True, clips)
    leave_unowned_alone(plan, request.owner)
    if most is not None:
        plan.keep_finite(sums.units, most, request.owner)
    if sums.nonfinite() and options.finite_only:
        plan.leave_out(sums)
    return plan


def safe_norms(request: SampleRequest) -> Floats:
    """Return for each part a norm that samples may be brought to: each keeps the threshold however its elements are rounded."""
    pairs = list(_pairs(request))
    ord, grad_scale = request.options.ord, request.options.grad_scale
    found: dict[Any, float] = {}  # by limit, sizes and dtypes: those of layers are often alike
    safe = np.array(request.limits, np.float64)
    for k in np.flatnonzero(safe < math.inf).tolist():
        sizes = [(a[:1].size, a.dtype, b.dtype) for a, b in (pairs[i] for i in request.parts[k])]
        like = request.limits[k], *sizes
        if like not in found:
            found[like] = RoundingBound.of(sizes, ord, grad_scale).threshold(request.limits[k])
        safe[k] = found[like]
    return safe


def kept(request: SampleRequest) -> bool:
    """Whether samples that are not clipped are added as they are, so that it can be decided exactly which may be."""
    options = request.options
    return options.grad_scale == 1.0 and _held(request) and exact_order(options.ord, request.samples.arrays)


def largest_term(request: SampleRequest) -> Floats | None:
    """Return, for each leaf, the largest magnitude that a sample may add; None if no element can become Inf."""
    shrinks = request.options.grad_scale >= 1.0 and request.mode is not NORMALIZE
    if min(request.limits, default=math.inf) == math.inf or (shrinks and _held(request)):
        return None
    most = np.full(request.samples.count, math.inf)
    units = [unit_of(b.dtype).most for _, b in _pairs(request)]
    for part, limit in zip(request.parts, request.limits, strict=True):
        for i in part if limit < math.inf else ():
            most[i] = min(units[i], MOST)
    return most


def _held(request: SampleRequest) -> bool:
    """Return whether every sum has a dtype that holds each number of the samples' dtype."""
    return all(holds(b.dtype, a.dtype) for a, b in _pairs(request))


def _pairs(request: SampleRequest) -> Iterator[tuple[Array, Array]]:
    """Return pairs, one for each leaf: the array of its samples and the array of their sum."""
    return zip(request.samples.arrays, request.to.arrays, strict=True)
