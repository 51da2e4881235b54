"""The fused clipped update: clipping and a step of gradient descent in one write pass."""

from __future__ import annotations

import math
from typing import Any

from ._core.arguments import Number, number
from ._core.call import Request, onto, options_of, total_threshold
from ._core.mode import STEP
from ._core.options import NormOptions, Unpack, spelled_out
from .report import ClipReport
from .thresholds import Threshold


@spelled_out
def sgd_step_(
    params: Any, grads: Any, lr: float, max_norm: Number | Threshold = math.inf, **norm: Unpack[NormOptions]
) -> ClipReport:
    r"""Clip the gradients by their global norm and subtract them from the parameters, which alone are written.

    .. math:: \theta \leftarrow \theta - \eta \cdot
              \min\left(1, \frac{c}{\lVert g \rVert + \epsilon}\right) g

    The gradients are read twice and never written; clipping first and stepping after reads and writes them
    once more.

    Parameters
    ----------
    params : array or nesting of arrays
        Written in place: leaves as for `clip_by_global_norm_`. PyTorch's parameters as ``p.detach()``, of which autograd
        is told that they were written, or as ``p.data``, of which it is not.
    grads : nesting of arrays
        Of the same nesting and shapes; dtypes may differ. May be read-only. None leaves its parameter alone.
    lr : float
        The learning rate, any finite number.
    max_norm : float or Threshold, default inf
        The threshold >= 0 of the gradients' norm, or a rule of `gradclip.thresholds` that gives it.
    ord : float, default 2
        Which norm: any p > 0, or ``inf``.
    eps : float, default 0
        Added to the norm; 1e-6 gives PyTorch's factor.
    nonfinite : {"raise", "skip", "zero", "propagate"}, default "raise"
        What to do about NaN and Inf in gradients: raise an error, move nothing, take them for 0 and clip the rest, or
        follow IEEE arithmetic.
    grad_scale : float, default 1
        The gradients hold the true gradient times this. Norm and threshold speak of the true gradient, which is also what
        is subtracted.
    strict : bool, default False
        Guarantee, in exact arithmetic, that the norm of ``scale * grads`` is at most `max_norm`. For orders other than 1,
        2 and ``inf`` see `clip_by_global_norm_`.
    skip_above : float or Threshold, optional
        Leave the step out if its norm is above this: `clip_by_global_norm_` says how. No
        parameter moves then.
    comm : mpi4py communicator or torch.distributed process group, optional
        The norm runs over the leaves of all ranks: `clip_by_global_norm_` says how.
    owned : nesting of bools or dict of str to bool, optional
        Which leaves the norm runs over: `clip_by_global_norm_` says how.

    Returns
    -------
    ClipReport
        Of the gradients; ``scale`` is the factor without `lr`.

    Raises
    ------
    NonFiniteGradientError, TypeError, ValueError
        As `clip_by_global_norm_`; or `params` and `grads` share memory.

    Notes
    -----
    Each parameter is within 1 ulp of its dtype of the exact value, plus two roundings of the product. `strict` bounds
    the exact norm of ``scale * grads``, which is never rounded to a gradient.

    Examples
    --------
    >>> import numpy as np, gradclip
    >>> params, grads = [np.array([1.0, 2.0])], [np.array([3.0, 4.0])]
    >>> gradclip.sgd_step_(params, grads, lr=0.5, max_norm=1.0)
    ClipReport(norm=5.0, max_norm=1.0, scale=0.2, clipped=True)
    >>> params
    [array([0.7, 1.6])]
    """
    return onto(params, grads, norm, _step, lr, max_norm)


def _step(norm: Any, lr: float, max_norm: Number | Threshold) -> Request:
    """The request of `sgd_step_`, after a check of the arguments."""
    options, lr = options_of(norm), number("lr", lr)
    if math.isinf(lr):
        raise ValueError(f"lr must be finite, not {lr!r}")
    request = Request(options, total_threshold(max_norm), mode=STEP)
    request.lr = lr
    return request
