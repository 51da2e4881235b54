"""Normalisation: leaves are brought to a target norm, up or down."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from ._core.arguments import Grads, number
from ._core.call import Request, functional, in_place, options_of, unit_options_of
from ._core.mode import NORMALIZE
from ._core.options import OptionsWithoutEps, Unpack, spelled_out
from .report import ClipReport

if TYPE_CHECKING:
    from ._leaves import Leaves


@spelled_out
def normalize_(
    grads: Any, target: float = 1.0, *, eps: float = 1e-12, per_leaf: bool = False, **norm: Unpack[OptionsWithoutEps]
) -> ClipReport:
    """Scale the gradient to the norm `target`, up or down, in place: factor target / (norm + eps).

    Parameters
    ----------
    grads : array or nesting of arrays
        Written in place: leaves as for `clip_by_global_norm_`.
    target : float, default 1
        The norm to reach: >= 0 and finite.
    eps : float, default 1e-12
        Added to the norm.
    per_leaf : bool, default False
        Normalise each leaf on its own.
    ord : float, default 2
        Which norm: any p > 0, or ``inf``.
    nonfinite : {"raise", "skip", "zero", "propagate"}, default "raise"
        What to do about NaN and Inf: raise an error, write nothing, make them 0 and normalise the rest, or follow IEEE
        arithmetic.
    grad_scale : float, default 1
        The gradients hold the true gradient times this. Norm and target speak of the true gradient, and whatever is
        written is unscaled.
    strict : bool, default False
        Guarantee, in exact arithmetic, that the norm of what was written is at most `target`. For orders other than 1, 2
        and ``inf``, and for what it costs, see `clip_by_global_norm_`.
    skip_above : float or Threshold, optional
        Leave the step out if its norm is above this: `clip_by_global_norm_` says how. Not with
        `per_leaf`.
    comm : mpi4py communicator or torch.distributed process group, optional
        The norm runs over the leaves of all ranks: `clip_by_global_norm_` says how, and `clip_by_norm_` for `per_leaf`.
    owned : nesting of bools or dict of str to bool, optional
        Which leaves the norm runs over: `clip_by_global_norm_` says how, and `clip_by_norm_` for `per_leaf`.

    Returns
    -------
    ClipReport
        ``clipped`` is True when anything changed, ``max_norm`` is the target. An all-zero gradient
        stays zero.

    Raises
    ------
    NonFiniteGradientError, TypeError, ValueError
        As `clip_by_global_norm_`.

    Examples
    --------
    >>> import numpy as np, gradclip
    >>> grad = np.array([0.03, 0.04])
    >>> gradclip.normalize_(grad, eps=0).scale
    20.0
    >>> grad
    array([0.6, 0.8])
    """
    return in_place(grads, norm, _normalization, target, eps, per_leaf)


@overload
def normalize(
    grads: Grads,
    target: float = 1.0,
    *,
    out: None = None,
    eps: float = 1e-12,
    per_leaf: bool = False,
    **norm: Unpack[OptionsWithoutEps],
) -> tuple[Grads, ClipReport]: ...
@overload
def normalize(
    grads: Any,
    target: float = 1.0,
    *,
    out: Grads,
    eps: float = 1e-12,
    per_leaf: bool = False,
    **norm: Unpack[OptionsWithoutEps],
) -> tuple[Grads, ClipReport]: ...
@spelled_out
def normalize(
    grads: Any,
    target: float = 1.0,
    *,
    out: Any = None,
    eps: float = 1e-12,
    per_leaf: bool = False,
    **norm: Unpack[OptionsWithoutEps],
) -> tuple[Any, ClipReport]:
    """Return the gradient scaled to the norm `target`, up or down, and the report.

    The same as `normalize_`, leaving `grads` untouched.

    Parameters
    ----------
    grads : array or nesting of arrays
        Leaves as for `clip_by_global_norm_`. Only read, and may be read-only.
    target : float, default 1
        The norm to reach: >= 0 and finite.
    out : nesting of arrays, optional
        Where the results go: writable leaves of the same nesting and shapes; may be `grads` itself. A leaf of another real
        dtype, which may share no memory with `grads`, gets every element rounded once to that dtype; a number beyond its
        range becomes Inf, or with `strict` the factor is shrunk until none is. Without `out`, new leaves are made.
    eps : float, default 1e-12
        Added to the norm.
    per_leaf : bool, default False
        Normalise each leaf on its own.
    ord : float, default 2
        Which norm: any p > 0, or ``inf``.
    nonfinite : {"raise", "skip", "zero", "propagate"}, default "raise"
        What to do about NaN and Inf: raise an error, normalise nothing (new leaves are copies then, and `out` is not
        written), make them 0 and normalise the rest, or follow IEEE arithmetic.
    grad_scale : float, default 1
        The gradients hold the true gradient times this. Norm and target speak of the true gradient, and whatever is
        returned is unscaled.
    strict : bool, default False
        Guarantee, in exact arithmetic, that the norm of the result is at most `target`. For orders other than 1, 2 and
        ``inf``, and for what it costs, see `clip_by_global_norm_`.
    skip_above : float or Threshold, optional
        Leave the step out if its norm is above this: `clip_by_global_norm_` says how. Not with
        `per_leaf`. New leaves are copies then, and `out` is not written.
    comm : mpi4py communicator or torch.distributed process group, optional
        The norm runs over the leaves of all ranks: `clip_by_global_norm_` says how, and `clip_by_norm_` for `per_leaf`.
    owned : nesting of bools or dict of str to bool, optional
        Which leaves the norm runs over: `clip_by_global_norm_` says how, and `clip_by_norm_` for `per_leaf`.

    Returns
    -------
    normalized : nesting of arrays
        Like `grads`, with new leaves; or `out`.
    ClipReport
        ``clipped`` is True when anything changed, ``max_norm`` is the target.

    Raises
    ------
    NonFiniteGradientError, TypeError, ValueError
        As `normalize_`; or `out` does not match. Nothing is written then.

    Examples
    --------
    >>> import numpy as np, gradclip
    >>> unit, report = gradclip.normalize(np.array([0.0, 0.5]))
    >>> unit
    array([0., 1.])
    """
    return functional(grads, out, norm, _normalization, target, eps, per_leaf)


def _normalization(norm: Any, target: float, eps: float, per_leaf: bool) -> Request:
    """The request of `normalize_` and `normalize`, after a check of the arguments."""
    if not isinstance(per_leaf, bool | np.bool_):
        raise TypeError(f"per_leaf must be True or False, not {per_leaf!r}")
    norm["eps"] = eps
    options = (unit_options_of if per_leaf else options_of)(norm)
    target = number("target", target, 0.0)
    if target == math.inf:
        raise ValueError("target must be finite")
    return (_EachLeaf if per_leaf else Request)(options, target, mode=NORMALIZE)


class _EachLeaf(Request):
    """Each leaf to the same threshold."""

    def prepare(self, leaves: Leaves) -> Leaves:
        self.threshold = np.full(leaves.count, self.threshold)
        return leaves
