"""Clipping by value: every element on its own."""

from __future__ import annotations

from typing import Any, overload

from ._core.arguments import Grads, Number, number
from ._core.call import ByValue, functional, in_place
from ._core.options import DEFAULT
from .report import ClipReport


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
    return in_place(grads, _by_value(clip_min, clip_max))


@overload
def clip_by_value(
    grads: Grads, clip_min: Number, clip_max: Number | None = None, *, out: None = None
) -> tuple[Grads, ClipReport]: ...
@overload
def clip_by_value(grads: Any, clip_min: Number, clip_max: Number | None = None, *, out: Grads) -> tuple[Grads, ClipReport]: ...
def clip_by_value(grads: Any, clip_min: Number, clip_max: Number | None = None, *, out: Any = None) -> tuple[Any, ClipReport]:
    """Return every element brought into [clip_min, clip_max], and the report.

    The same as `clip_by_value_`, leaving `grads` untouched.

    Parameters
    ----------
    grads : array or nesting of arrays
        Real leaves as for `clip_by_global_norm_`. Only read, and may be read-only.
    clip_min, clip_max : float
        The bounds, rounded to each leaf's dtype. One number c >= 0 alone means [-c, c].
    out : nesting of arrays, optional
        Where the results go: writable leaves of the same nesting, shapes and dtypes; may be `grads` itself. Without it,
        new leaves are made.

    Returns
    -------
    clipped : nesting of arrays
        Like `grads`, with new leaves; or `out`.
    ClipReport
        ``clipped_count`` of ``size`` elements were outside; ``max_norm`` is the upper bound.

    Raises
    ------
    TypeError, ValueError
        As `clip_by_value_`; or `out` does not match. Nothing is written then.

    Examples
    --------
    >>> import numpy as np, gradclip
    >>> clipped, report = gradclip.clip_by_value([np.array([-3.0, 0.5])], -2.0, 0.0)
    >>> clipped
    [array([-2.,  0.])]
    """
    return functional(grads, _by_value(clip_min, clip_max), out)


def _by_value(clip_min: Number, clip_max: Number | None) -> ByValue:
    """The request of `clip_by_value_` and `clip_by_value`, after a check of the arguments."""
    low, high = _bounds(clip_min, clip_max)
    request = ByValue(DEFAULT, high)
    request.low = low
    return request


def _bounds(clip_min: Number, clip_max: Number | None) -> tuple[float, float]:
    """The lower and the upper bound; one number alone is both."""
    if clip_max is None:
        if type(clip_min) is float and clip_min > 0.0:  # the usual bound, kept short
            return -clip_min, clip_min
        high = number("clip_min, a single bound,", clip_min, 0.0)
        return -high, high
    low, high = number("clip_min", clip_min), number("clip_max", clip_max)
    if low > high:
        raise ValueError(f"clip_min {low!r} is above clip_max {high!r}")
    return low, high
