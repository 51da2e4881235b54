"""Per-sample clipping, and the clipped sum of differentially private training (DP-SGD)."""

from __future__ import annotations

import math
import sys
from typing import Any, overload

import numpy as np

from ._core.arguments import Grads, Number, number
from ._core.decide import acts, decide, refused
from ._core.options import NormOptions, Options, Unpack, spelled_out
from ._core.rounding import Room, exact_order, unit_of
from ._cpu.accumulate import sum_samples
from ._cpu.passes import measure
from ._cpu.plan import Plan, StandardState
from ._cpu.sums import Sums
from ._leaves import Leaves
from .norm import result
from .report import ClipReport, answer
from .thresholds import Threshold

# What rounds to float64 without overflow after two more roundings.
MOST = sys.float_info.max * (1.0 - 2.0**-51)


@spelled_out
def clip_per_sample_(grads: Any, max_norm: Number, **norm: Unpack[NormOptions]) -> ClipReport:
    """Scale every sample of a batch by a factor of its own so that its norm is at most `max_norm`, in place.

    Parameters
    ----------
    grads : array or nesting of arrays
        Leaves of shape ``(batch, ...)``, the same batch for all and none sparse: a sample is one index of the first
        axis, and its norm runs over all leaves.
    max_norm : float
        The threshold >= 0 of each sample.
    **norm
        As for `clip_by_global_norm_`.

    Returns
    -------
    ClipReport
        ``norms`` and ``scales`` by sample; ``norm`` is that of all samples together, ``scale`` the smallest factor.

    Raises
    ------
    NonFiniteGradientError, TypeError, ValueError
        As `clip_by_global_norm_`; or the leaves disagree on the batch.

    References
    ----------
    .. [1] M. Abadi et al., "Deep learning with differential privacy", CCS 2016.

    Examples
    --------
    >>> import numpy as np, gradclip
    >>> grads = {"w": np.array([[3.0, 0.0], [0.3, 0.0]]), "b": np.array([4.0, 0.4])}
    >>> gradclip.clip_per_sample_(grads, 1.0).scales
    array([0.2, 1. ])
    >>> grads["b"]
    array([0.8, 0.4])
    """
    rule, max_norm = Options.of(norm), _threshold(max_norm)
    leaves = Leaves(grads, True)
    sums, owners = _by_sample(leaves, rule)
    return decide(sums, leaves, rule, np.full(sums.count, max_norm), max_norm, owners=owners)


@overload
def clip_per_sample(
    grads: Grads, max_norm: Number, *, out: None = None, **norm: Unpack[NormOptions]
) -> tuple[Grads, ClipReport]: ...
@overload
def clip_per_sample(grads: Any, max_norm: Number, *, out: Grads, **norm: Unpack[NormOptions]) -> tuple[Grads, ClipReport]: ...
@spelled_out
def clip_per_sample(grads: Any, max_norm: Number, *, out: Any = None, **norm: Unpack[NormOptions]) -> tuple[Any, ClipReport]:
    """Like `clip_per_sample_`, leaving `grads` untouched; returns new leaves (or `out`) and the report.

    Examples
    --------
    >>> import numpy as np, gradclip
    >>> clipped, report = gradclip.clip_per_sample(np.array([[3.0, 4.0], [0.3, 0.4]]), 1.0)
    >>> clipped
    array([[0.6, 0.8],
           [0.3, 0.4]])
    """
    rule, max_norm = Options.of(norm), _threshold(max_norm)
    leaves = Leaves(grads, anew=out is None)
    sums, owners = _by_sample(leaves, rule)
    to = leaves.target(out)
    goals = np.full(sums.count, max_norm)
    return result(leaves, to, out, decide(sums, to, rule, goals, max_norm, out=out, owners=owners))


@spelled_out
def per_sample_clip_sum(
    grads: Any, max_norm: Number, *, out: Any = None, **norm: Unpack[NormOptions]
) -> tuple[Any, ClipReport]:
    """Clip every sample as `clip_per_sample` does and sum over the batch, without writing the clipped samples.

    .. math:: \\sum_i g_i \\cdot \\min\\left(1, \\frac{c}{\\lVert g_i \\rVert}\\right)

    Parameters
    ----------
    grads, max_norm, **norm
        As for `clip_per_sample_`. ``nonfinite``: ``"zero"`` leaves samples with NaN or Inf out of the sum,
        ``"skip"`` returns zeros (in `out` too) if there are any. `strict` changes nothing: the bound always holds exactly.
    out : nesting of arrays, optional
        Where the sums go: leaves of the shapes without the batch, of any float dtype; no memory of `grads`.

    Returns
    -------
    sums : nesting of arrays
        Like `grads` without the first axis, in the leaves' dtypes or those of `out`.
    ClipReport
        ``norms`` and ``scales`` by sample.

    Raises
    ------
    NonFiniteGradientError, TypeError, ValueError
        As `clip_per_sample_`.

    Notes
    -----
    What a sample adds, rounded to the dtype of the sums, has a norm of at most `max_norm` in exact arithmetic:
    factors leave room for the rounding (half an ulp of the dtype, so 0.4 % for bfloat16; float64 sums by `out` need
    none to speak of). A sample whose norm is at most `max_norm` is added as it is, if the sums hold its dtype and
    there is nothing to unscale. Norms of orders other than 1, 2 and inf (complex: 2) are not decided exactly: a
    sample as close to the threshold as that room is clipped. These contributions are added in twice float64's
    precision, in a range that none of their sums leaves, and the total is rounded once: to Inf only where it lies beyond
    the dtype. Where the sums' dtype cannot hold an element of a sample (float16 sums of float32 samples, or a
    `grad_scale` below 1), the sample is scaled until it can, whatever its norm, and counts as clipped: an Inf would be
    above every bound. Without a bound (`max_norm=inf`) it becomes Inf. So the sensitivity of the sum before that last
    rounding is at most `max_norm`; the method is that of [1]_.

    Memory beyond inputs and sums: a few hundred bytes per leaf and sample.

    References
    ----------
    .. [1] M. Abadi et al., "Deep learning with differential privacy", CCS 2016.

    Examples
    --------
    >>> import numpy as np, gradclip
    >>> sums, report = gradclip.per_sample_clip_sum(np.array([[3.0, 4.0], [0.3, 0.4]]), 1.0)
    >>> sums
    array([0.9, 1.2])
    >>> report.clipped_count, report.size
    (1, 2)
    """
    rule, max_norm = Options.of(norm), _threshold(max_norm)
    leaves = Leaves(grads, anew=out is None)
    sums, owners = _by_sample(leaves, rule)
    to = _sums_like(leaves, out)
    if type(sums) is not Sums:  # on a GPU
        goal, kept, most = _goal(leaves, to, rule, max_norm), _kept(leaves, to, rule), _most(leaves, to, rule, max_norm)
        found = sums.add_up(leaves, to, rule, goal, max_norm, kept, most, out)
        if found is not None:
            return result(leaves, to, out, found)
        sums = sums.host(leaves.arrays)
    with StandardState():
        if sums.nonfinite() and refused(sums, rule):
            report, plan, batch = ClipReport(sums, max_norm, sums.count, skipped=True), Plan(0), 0
        else:
            plan, batch = _bounded(sums, leaves, to, rule, max_norm), sums.count
            report = ClipReport(sums, max_norm, sums.count, plan, plan.acting())
            plan = plan.by_owner(owners)
    found = answer(report, out)
    sum_samples(leaves, to, plan, batch, out is None)
    return result(leaves, to, out, found)


def _threshold(max_norm):
    if isinstance(max_norm, Threshold):
        raise TypeError("max_norm: a threshold object sees the global norm; clip samples with a number")
    return number("max_norm", max_norm, 0.0)


def _by_sample(leaves, rule):
    """Sums by sample, and for each leaf and sample in order the index of the sample."""
    batch = 0
    for i, array in enumerate(leaves.arrays):
        if array.ndim == 0:
            raise ValueError(f"{leaves.path(i)}: an array without dimensions has no batch")
        if i and len(array) != batch:
            raise ValueError(f"{leaves.path(i)}: a batch of {len(array)}, but {leaves.path(0)} has one of {batch}")
        batch = len(array)
    leaves.cut([(0,)] * leaves.count)
    owners = np.tile(np.arange(batch), leaves.count)
    return measure(leaves, rule.ord, rule.grad_scale).by_owner(owners, batch), owners


def _sums_like(leaves, out):
    """Leaves for the sums: new ones, or those of `out`."""
    if out is None:
        return Leaves([leaves.empty_like(i, a.shape[1:]) for i, a in enumerate(leaves.arrays)])
    to = Leaves(leaves.matched(leaves.tree, out, "out", (), write=True), True, "out")
    leaves.check_count(len(to))
    for i, (a, b) in enumerate(zip(leaves.arrays, to.arrays, strict=True)):
        if to.is_sparse(i):
            raise TypeError(f"{leaves.path(i)}: out is sparse; the sums of samples are dense")
        if b.shape != a.shape[1:] or (a.dtype.kind == "c") != (b.dtype.kind == "c"):
            raise ValueError(
                f"{leaves.path(i)}: samples have shape {a.shape[1:]} and dtype {a.dtype}, out has {b.shape} and {b.dtype}"
            )
    leaves.check_devices(to)
    to.check_overlap(leaves, False)
    return to


def _bounded(sums, leaves, to, rule, max_norm):
    """Factors by sample, such that contributions keep the bound after their rounding."""
    goal = _goal(leaves, to, rule, max_norm)
    if _kept(leaves, to, rule):
        over = acts(sums, leaves, rule, np.full(sums.count, max_norm), True) != 0
    else:
        over = ~(sums.norms() <= goal)
    plan = Plan(sums.count)
    plan.settle(sums, np.full(sums.count, goal), rule.eps, False, True, (over & (goal < math.inf)).astype(np.uint8))
    most = _most(leaves, to, rule, max_norm)
    if most is not None:
        plan.keep_finite(sums.units, most)
    if sums.nonfinite() and rule.nonfinite == "zero":
        plan.leave_out(sums)
    return plan


def _kept(leaves, to, rule):
    """Whether samples that are not clipped are added as they are, so that it can be decided exactly which may be."""
    return rule.grad_scale == 1.0 and _holds(to, leaves) and exact_order(rule.ord, leaves.arrays)


def _holds(to, leaves):
    """Whether the sums' dtypes hold every number of the leaves'."""
    return all(np.can_cast(a.dtype, b.dtype) for a, b in zip(leaves.arrays, to.arrays, strict=True))


def _most(leaves, to, rule, max_norm):
    """The largest magnitude of what a sample may add to each leaf, which is not Inf; None where no element comes near."""
    if max_norm == math.inf or (rule.grad_scale >= 1.0 and _holds(to, leaves)):
        return None
    return np.array([min(unit_of(b.dtype).most, MOST) for b in to.arrays])


def _goal(leaves, to, rule, max_norm):
    """The norm that stays within `max_norm` when each element is rounded up."""
    if max_norm == math.inf:
        return math.inf
    parts = [(a[:1].size, a.dtype, b.dtype) for a, b in zip(leaves.arrays, to.arrays, strict=True)]
    return Room.of(parts, rule.ord, rule.grad_scale).goal(max_norm)
