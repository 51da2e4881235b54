"""Clipping by value: every element on its own."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from ._core.arguments import ByLeaf, Grads, number
from ._core.by_leaf import by_leaf, is_by_leaf
from ._core.call import ByValue, serve_functional, serve_in_place
from ._core.options import DEFAULT
from .report import ClipReport

if TYPE_CHECKING:
    from ._leaves import Leaves


def clip_by_value_(grads: Any, clip_min: ByLeaf, clip_max: ByLeaf | None = None) -> ClipReport:
    """Bring every element into [clip_min, clip_max], in place.

    Parameters
    ----------
    grads : array or nesting of real arrays
        As for `clip_by_global_norm_`; complex leaves have no order and raise a TypeError.
    clip_min, clip_max : float, nesting of floats or dict of str to float
        The bounds, rounded to each leaf's dtype, as `numpy.clip` does. One c >= 0 alone means [-c, c]. Each is one number for
        all leaves, one for each leaf in a nesting like `grads`, or numbers by patterns over paths, as the thresholds of
        `clip_by_norm_`: the first pattern that matches counts, and one that matches no path is an error. A bound that has no
        pattern for a leaf does not limit it, and a leaf that has no bound is left alone.

    Returns
    -------
    ClipReport
        ``clipped_count`` of ``size`` elements were outside; ``max_norm`` is the upper bound as given; ``norm``
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

    By patterns; the bias has no bound:

    >>> grads = {"embed": np.array([-3.0, 0.5]), "head": np.array([2.0]), "bias": np.array([9.0])}
    >>> gradclip.clip_by_value_(grads, {"embed": 0.1, "head": 1.0}).clipped_count
    3
    >>> grads
    {'embed': array([-0.1,  0.1]), 'head': array([1.]), 'bias': array([9.])}
    """
    return serve_in_place(grads, _by_value(clip_min, clip_max))


@overload
def clip_by_value(
    grads: Grads, clip_min: ByLeaf, clip_max: ByLeaf | None = None, *, out: None = None
) -> tuple[Grads, ClipReport]: ...
@overload
def clip_by_value(grads: Any, clip_min: ByLeaf, clip_max: ByLeaf | None = None, *, out: Grads) -> tuple[Grads, ClipReport]: ...
def clip_by_value(grads: Any, clip_min: ByLeaf, clip_max: ByLeaf | None = None, *, out: Any = None) -> tuple[Any, ClipReport]:
    """Return every element brought into [clip_min, clip_max], and the report.

    The same as `clip_by_value_`, leaving `grads` untouched.

    Parameters
    ----------
    grads : array or nesting of arrays
        Real leaves as for `clip_by_global_norm_`. Only read, and may be read-only.
    clip_min, clip_max : float, nesting of floats or dict of str to float
        The bounds, rounded to each leaf's dtype. One c >= 0 alone means [-c, c]. Each is one number for all leaves, a nesting
        like `grads`, or by patterns over paths, as for `clip_by_value_`.
    out : nesting of arrays, optional
        Where the results go: writable leaves of the same nesting and shapes; may be `grads` itself. A leaf of another real
        dtype, which may share no memory with `grads`, gets every element rounded once to that dtype; a number beyond its
        range becomes Inf. Without `out`, new leaves are made.

    Returns
    -------
    clipped : nesting of arrays
        Like `grads`, with new leaves; or `out`.
    ClipReport
        ``clipped_count`` of ``size`` elements were outside; ``max_norm`` is the upper bound as given.

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
    return serve_functional(grads, _by_value(clip_min, clip_max), out)


def _by_value(clip_min: ByLeaf, clip_max: ByLeaf | None) -> ByValue:
    """The request of `clip_by_value_` and `clip_by_value`, after a check of the arguments."""
    if clip_max is None and type(clip_min) is float and clip_min > 0.0:  # the usual bound, kept short
        request = ByValue(DEFAULT, clip_min)
        request.low = -clip_min
        return request
    if is_by_leaf(clip_min) or is_by_leaf(clip_max):
        by_leaf_request = _ByLeaf(DEFAULT, 0.0, clip_min if clip_max is None else clip_max)
        by_leaf_request.given = clip_min, clip_max
        return by_leaf_request
    low, high = _bounds(clip_min, clip_max)
    request = ByValue(DEFAULT, high)
    request.low = low
    return request


class _ByLeaf(ByValue):
    """Every element into the bounds of its leaf; where there are none they are infinite, and nothing is written."""

    given: tuple[Any, Any]

    def prepare(self, leaves: Leaves) -> Leaves:
        super().prepare(leaves)
        clip_min, clip_max = self.given
        if clip_max is None:
            each = by_leaf(leaves, "clip_min", clip_min, lambda name, value: number(name, value, 0.0))
            pairs = [(-math.inf, math.inf) if c is None else (-c, c) for c in each]
        else:
            least, most = by_leaf(leaves, "clip_min", clip_min, number), by_leaf(leaves, "clip_max", clip_max, number)
            pairs = [(-math.inf if a is None else a, math.inf if b is None else b) for a, b in zip(least, most, strict=True)]
        leaves.check_count(len(pairs))
        for i, (low, high) in enumerate(pairs):
            if low > high:
                raise ValueError(f"{leaves.path(i)}: clip_min {low!r} is above clip_max {high!r}")
        self.low, self.threshold = np.array(pairs, np.float64).reshape(-1, 2).T
        return leaves


def _bounds(clip_min: Any, clip_max: Any) -> tuple[float, float]:
    """The lower and the upper bound; one number alone is both."""
    if clip_max is None:
        high = number("clip_min, a single bound,", clip_min, 0.0)
        return -high, high
    low, high = number("clip_min", clip_min), number("clip_max", clip_max)
    if low > high:
        raise ValueError(f"clip_min {low!r} is above clip_max {high!r}")
    return low, high
