"""Clipping by value: every element on its own."""

from __future__ import annotations

from typing import Any, overload

from ._core.arguments import Grads, Number, number
from ._cpu.passes import measure, write
from ._cpu.plan import Plan
from ._cpu.sums import Sums
from ._leaves import Leaves
from .norm import result
from .report import ClipReport, answer


def clip_by_value_(grads: Any, clip_min: Number, clip_max: Number | None = None) -> ClipReport:
    """Bring every element into [clip_min, clip_max], in place.

    Parameters
    ----------
    grads : array or nesting of real arrays
        As for `clip_by_global_norm_`; complex leaves have no order and raise a TypeError.
    clip_min, clip_max : float
        The bounds, rounded to each leaf's dtype, as `numpy.clip` does. One number c >= 0 alone means
        [-c, c].

    Returns
    -------
    ClipReport
        ``clipped_count`` of ``size`` elements were outside; ``max_norm`` is the upper bound; ``norm``
        and ``max_abs`` are those before clipping.

    Raises
    ------
    TypeError, ValueError
        A leaf or an argument that cannot be used; nothing was written.

    Notes
    -----
    As in NumPy and PyTorch an Inf is brought to its bound and a NaN stays; ``report.nonfinite`` counts
    both. Clipping by value changes the direction of the gradient; by norm it does not.

    Examples
    --------
    >>> import numpy as np, gradclip
    >>> grad = np.array([-3.0, 0.5, 2.0])
    >>> report = gradclip.clip_by_value_(grad, 1.0)
    >>> grad, report.clipped_count, report.size
    (array([-1. ,  0.5,  1. ]), 2, 3)
    """
    low, high = _bounds(clip_min, clip_max)
    leaves = Leaves(grads, True)
    return _clip(leaves, leaves, low, high, None)


@overload
def clip_by_value(
    grads: Grads, clip_min: Number, clip_max: Number | None = None, *, out: None = None
) -> tuple[Grads, ClipReport]: ...
@overload
def clip_by_value(grads: Any, clip_min: Number, clip_max: Number | None = None, *, out: Grads) -> tuple[Grads, ClipReport]: ...
def clip_by_value(grads: Any, clip_min: Number, clip_max: Number | None = None, *, out: Any = None) -> tuple[Any, ClipReport]:
    """Like `clip_by_value_`, leaving `grads` untouched; returns new leaves (or `out`) and the report.

    Examples
    --------
    >>> import numpy as np, gradclip
    >>> clipped, report = gradclip.clip_by_value([np.array([-3.0, 0.5])], -2.0, 0.0)
    >>> clipped
    [array([-2.,  0.])]
    """
    low, high = _bounds(clip_min, clip_max)
    leaves = Leaves(grads, anew=out is None)
    to = leaves.target(out)
    return result(leaves, to, out, _clip(leaves, to, low, high, out))


def _bounds(clip_min, clip_max):
    if clip_max is None:
        high = number("clip_min, a single bound,", clip_min, 0.0)
        return -high, high
    low, high = number("clip_min", clip_min), number("clip_max", clip_max)
    if low > high:
        raise ValueError(f"clip_min {low!r} is above clip_max {high!r}")
    return low, high


def _clip(leaves, to, low, high, out):
    for i, array in enumerate(leaves.arrays):
        if array.dtype.kind == "c":
            raise TypeError(f"{leaves.path(i)}: complex numbers have no order; clip by norm instead")
    bounds = Plan(1)
    bounds.clamp(0, low, high)
    sums = measure(leaves, 2, bounds=bounds)
    if type(sums) is not Sums:
        return sums.clamp(to, bounds, high, out)
    plan = Plan(leaves.count)
    for i in range(leaves.count):
        if sums.outside(i):
            plan.clamp(i, low, high)
    outside = sums.outside()
    found = answer(ClipReport(sums, high, sums.size, clipped_count=outside), out)
    if outside or to.is_target:
        write(to, plan)
    return found
