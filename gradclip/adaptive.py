"""Adaptive gradient clipping (AGC): each unit's gradient against its own parameters."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, overload

from ._core.arguments import Grads, number, whole
from ._core.call import Request, functional, in_place
from ._core.options import Options, UnitOptionsWithoutEps, Unpack, spelled_out_for_units
from .report import ClipReport

if TYPE_CHECKING:
    from ._core.engine import AnySums, Engine
    from ._leaves import Leaves


@spelled_out_for_units
def clip_adaptive_(
    grads: Any,
    params: Any,
    clip_factor: float = 0.01,
    *,
    eps: float = 1e-3,
    unit_axis: int = 0,
    **norm: Unpack[UnitOptionsWithoutEps],
) -> ClipReport:
    r"""Clip each unit's gradient to a fraction of the norm of the unit's parameters, in place.

    .. math:: g_i \leftarrow g_i \cdot \frac{\lambda \max(\lVert w_i \rVert, \epsilon)}{\lVert g_i \rVert}
              \quad\text{where}\quad \lVert g_i \rVert > \lambda \max(\lVert w_i \rVert, \epsilon)

    A unit is one index along `unit_axis`: the weights that lead to one output. Leaves of fewer than two
    dimensions (biases, gains) are one unit.

    Parameters
    ----------
    grads : array or nesting of arrays
        Written in place: leaves as for `clip_by_global_norm_`, but not sparse.
    params : nesting of arrays
        Of the same nesting and shapes; dtypes may differ. Only read, and before anything is written, so they may be
        read-only or share memory with `grads`. Where `grads` has None, they are not looked at.
    clip_factor : float, default 0.01
        The fraction lambda, > 0 and finite.
    eps : float, default 1e-3
        Least norm of parameters, so that units that start at zero can grow.
    unit_axis : int, default 0
        Where outputs lie: 0 for PyTorch's layout, -1 for JAX's and Keras's.
    ord : float, default 2
        Which norm, of gradients and of parameters: any p > 0, or ``inf``.
    nonfinite : {"raise", "skip", "zero", "propagate"}, default "raise"
        What to do about NaN and Inf in gradients: raise an error, write nothing, make them 0 and clip the rest, or follow
        IEEE arithmetic.
    grad_scale : float, default 1
        The gradients hold the true gradient times this. Norms and thresholds speak of the true gradient, and whatever is
        written is unscaled.
    strict : bool, default False
        Guarantee, in exact arithmetic, that the norm of each unit written is at most its threshold, which is
        `clip_factor` times the norm of its parameters as measured, or times `eps`. For orders other than 1, 2 and
        ``inf``, and for what it costs, see `clip_by_global_norm_`.

    Returns
    -------
    ClipReport
        ``norms`` and ``scales`` by unit, leaf by leaf; ``norm`` is that of all gradients, ``scale`` the smallest
        factor, ``max_norm`` the clip factor.

    Raises
    ------
    NonFiniteGradientError, TypeError, ValueError
        As `clip_by_global_norm_`; `params` does not match; or an empty leaf has more units than memory can hold a norm
        of each.

    Notes
    -----
    Gradients and parameters are read once, in one pass; only units that exceed their bound are written (units that
    are columns: in panels of up to 2048). A unit whose parameters hold a NaN or Inf is left alone. The method is that
    of [1]_, which leaves the last linear layer out: pass the others.

    References
    ----------
    .. [1] A. Brock, S. De, S. L. Smith, K. Simonyan, "High-performance large-scale image recognition without
       normalization", ICML 2021.

    Examples
    --------
    >>> import numpy as np, gradclip
    >>> params = np.array([[30.0, 40.0], [0.0, 0.0]])
    >>> grads = np.array([[0.3, 0.4], [0.3, 0.4]])
    >>> report = gradclip.clip_adaptive_(grads, params, 0.01)
    >>> report.scales
    array([1.e+00, 2.e-05])
    """
    return in_place(grads, _adaptive(params, clip_factor, eps, unit_axis, norm))


@overload
def clip_adaptive(
    grads: Grads,
    params: Any,
    clip_factor: float = 0.01,
    *,
    out: None = None,
    eps: float = 1e-3,
    unit_axis: int = 0,
    **norm: Unpack[UnitOptionsWithoutEps],
) -> tuple[Grads, ClipReport]: ...
@overload
def clip_adaptive(
    grads: Any,
    params: Any,
    clip_factor: float = 0.01,
    *,
    out: Grads,
    eps: float = 1e-3,
    unit_axis: int = 0,
    **norm: Unpack[UnitOptionsWithoutEps],
) -> tuple[Grads, ClipReport]: ...
@spelled_out_for_units
def clip_adaptive(
    grads: Any,
    params: Any,
    clip_factor: float = 0.01,
    *,
    out: Any = None,
    eps: float = 1e-3,
    unit_axis: int = 0,
    **norm: Unpack[UnitOptionsWithoutEps],
) -> tuple[Any, ClipReport]:
    """Return each unit's gradient clipped to a fraction of the norm of the unit's parameters, and the report.

    The same as `clip_adaptive_`, leaving `grads` untouched.

    Parameters
    ----------
    grads : array or nesting of arrays
        Leaves as for `clip_by_global_norm_`, but not sparse. Only read, and may be read-only.
    params : nesting of arrays
        Of the same nesting and shapes; dtypes may differ. Only read.
    clip_factor : float, default 0.01
        The fraction, > 0 and finite.
    out : nesting of arrays, optional
        Where the results go: writable leaves of the same nesting, shapes and dtypes; may be `grads` itself. Without it,
        new leaves are made.
    eps : float, default 1e-3
        Least norm of parameters, so that units that start at zero can grow.
    unit_axis : int, default 0
        Where outputs lie: 0 for PyTorch's layout, -1 for JAX's and Keras's.
    ord : float, default 2
        Which norm, of gradients and of parameters: any p > 0, or ``inf``.
    nonfinite : {"raise", "skip", "zero", "propagate"}, default "raise"
        What to do about NaN and Inf in gradients: raise an error, clip nothing (new leaves are copies then, and `out` is
        not written), make them 0 and clip the rest, or follow IEEE arithmetic.
    grad_scale : float, default 1
        The gradients hold the true gradient times this. Norms and thresholds speak of the true gradient, and whatever is
        returned is unscaled.
    strict : bool, default False
        Guarantee, in exact arithmetic, that the norm of each unit of the result is at most its threshold, which is
        `clip_factor` times the norm of its parameters as measured, or times `eps`. For orders other than 1, 2 and
        ``inf``, and for what it costs, see `clip_by_global_norm_`.

    Returns
    -------
    clipped : nesting of arrays
        Like `grads`, with new leaves; or `out`.
    ClipReport
        ``norms`` and ``scales`` by unit, leaf by leaf; ``max_norm`` is the clip factor.

    Raises
    ------
    NonFiniteGradientError, TypeError, ValueError
        As `clip_adaptive_`; or `out` does not match. Nothing is written then.

    Examples
    --------
    >>> import numpy as np, gradclip
    >>> clipped, report = gradclip.clip_adaptive(np.array([3.0, 4.0]), np.array([0.0, 100.0]))
    >>> clipped
    array([0.6, 0.8])
    """
    return functional(grads, _adaptive(params, clip_factor, eps, unit_axis, norm), out)


def _adaptive(params: Any, clip_factor: float, eps: float, unit_axis: int, norm: UnitOptionsWithoutEps) -> _Adaptive:
    """The request of `clip_adaptive_` and `clip_adaptive`, after a check of the arguments."""
    clip_factor, eps = number("clip_factor", clip_factor), number("eps", eps, 0.0)
    if not 0.0 < clip_factor < math.inf:
        raise ValueError(f"clip_factor must be positive and finite, not {clip_factor!r}")
    if eps == math.inf:
        raise ValueError("eps must be finite")
    request = _Adaptive(Options.of_units(norm), clip_factor)
    request.params, request.eps, request.unit_axis = params, eps, whole("unit_axis", unit_axis)
    return request


class _Adaptive(Request):
    """Each unit of the gradients to a fraction of the norm of its parameters, which are read beside them."""

    params: Any
    unit_axis: int
    eps: float

    def prepare(self, leaves: Leaves) -> Leaves:
        leaves.cut([_unit_axes(leaves, i, self.unit_axis) for i in range(leaves.count)])
        return leaves.beside(self.params)

    def measure(self, engine: Engine, read: Leaves) -> AnySums:
        options, units = self.options, self.to.units
        both = engine.measure(read, options.ord, finite_only=options.finite_only, norms=False)
        engine.settle(both, read, first=units, total=False)
        self.threshold = both.weigh(units, self.shown, self.eps)
        sums = both.of_units(0, units, options.grad_scale)
        engine.settle(sums, read)
        return sums


def _unit_axes(leaves: Leaves, i: int, unit_axis: int) -> tuple[int, ...]:
    """The axes along which units of a leaf lie: one, or none where it is a single unit."""
    ndim = leaves.arrays[i].ndim
    if ndim < 2:
        return ()
    if not -ndim <= unit_axis < ndim:
        raise ValueError(f"{leaves.path(i)}: unit_axis {unit_axis} is out of bounds for an array of {ndim} dimensions")
    return (unit_axis % ndim,)
