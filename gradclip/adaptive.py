"""Adaptive gradient clipping (AGC): each unit's gradient against its own parameters."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from ._core.arguments import ByLeaf, Grads, number, whole
from ._core.by_leaf import axes_of, by_leaf, is_by_leaf
from ._core.call import Request, functional, in_place, unit_options_of
from ._core.options import UnitOptionsWithoutEps, Unpack, spelled_out_for_units
from .report import ClipReport

if TYPE_CHECKING:
    from ._core.arguments import Floats
    from ._core.engine import AnySums, Engine
    from ._leaves import Leaves


@spelled_out_for_units
def clip_adaptive_(
    grads: Any,
    params: Any,
    clip_factor: ByLeaf = 0.01,
    *,
    eps: float = 1e-3,
    unit_axis: int | tuple[int, ...] = 0,
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
    clip_factor : float, nesting of floats or dict of str to float, default 0.01
        The fraction lambda, > 0 and finite: one for all leaves, one for each in a nesting like `grads`, or by patterns over
        paths, as the thresholds of `clip_by_norm_`. The first pattern that matches counts, a leaf that none matches is left
        alone, and a pattern that matches no path is an error.
    eps : float, default 1e-3
        Least norm of parameters, so that units that start at zero can grow.
    unit_axis : int or tuple of int, default 0
        Where outputs lie: 0 for PyTorch's layout, -1 for JAX's and Keras's. Of several axes, each index along all of them is
        a unit: ``(0, 1)`` for weights of the shape (heads, outputs, inputs). Without any, each leaf is one unit.
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
    comm : mpi4py communicator or torch.distributed process group, optional
        Leaves of one path on several ranks are shards of one leaf, which are rows of it. Units along axis 0 are whole on their
        rank; others, and leaves that are one unit, have norms over all ranks. See the page on several processes.
    owned : nesting of bools or dict of str to bool, optional
        Which leaves this rank counts, with `comm`. False: another rank counts the leaf and its parameters.

    Returns
    -------
    ClipReport
        ``norms`` and ``scales`` by unit, leaf by leaf; ``norm`` is that of all gradients, ``scale`` the smallest
        factor, ``max_norm`` the clip factor as given.

    Raises
    ------
    NonFiniteGradientError, TypeError, ValueError
        As `clip_by_global_norm_`; `params` does not match; or an empty leaf has more units than memory can hold a norm
        of each.

    Notes
    -----
    Gradients and parameters are read once, in one pass; only units that exceed their bound are written (units that
    are columns: in panels of up to 2048). A unit whose parameters hold a NaN or Inf is left alone. The method is that
    of [1]_, which leaves the last linear layer out: name the others by patterns, or pass only those.

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

    By patterns, all but the last layer:

    >>> model = {"body/w": np.ones((2, 2)), "head/w": np.ones((3, 2))}
    >>> gradclip.clip_adaptive_(model, {"body/w": np.ones((2, 2)), "head/w": np.ones((3, 2))}, {"body/*": 0.5}).scales
    array([0.5, 0.5, 1. , 1. , 1. ])
    """
    return in_place(grads, norm, _adaptive, params, clip_factor, eps, unit_axis)


@overload
def clip_adaptive(
    grads: Grads,
    params: Any,
    clip_factor: ByLeaf = 0.01,
    *,
    out: None = None,
    eps: float = 1e-3,
    unit_axis: int | tuple[int, ...] = 0,
    **norm: Unpack[UnitOptionsWithoutEps],
) -> tuple[Grads, ClipReport]: ...
@overload
def clip_adaptive(
    grads: Any,
    params: Any,
    clip_factor: ByLeaf = 0.01,
    *,
    out: Grads,
    eps: float = 1e-3,
    unit_axis: int | tuple[int, ...] = 0,
    **norm: Unpack[UnitOptionsWithoutEps],
) -> tuple[Grads, ClipReport]: ...
@spelled_out_for_units
def clip_adaptive(
    grads: Any,
    params: Any,
    clip_factor: ByLeaf = 0.01,
    *,
    out: Any = None,
    eps: float = 1e-3,
    unit_axis: int | tuple[int, ...] = 0,
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
    clip_factor : float, nesting of floats or dict of str to float, default 0.01
        The fraction, > 0 and finite: one for all leaves, a nesting like `grads`, or by patterns over paths, as for
        `clip_adaptive_`.
    out : nesting of arrays, optional
        Where the results go: writable leaves of the same nesting and shapes; may be `grads` itself. A leaf of another real
        dtype, which may share no memory with `grads`, gets every element rounded once to that dtype; a number beyond its
        range becomes Inf, or with `strict` the factor is shrunk until none is. Without `out`, new leaves are made.
    eps : float, default 1e-3
        Least norm of parameters, so that units that start at zero can grow.
    unit_axis : int or tuple of int, default 0
        Where outputs lie: 0 for PyTorch's layout, -1 for JAX's and Keras's. Of several axes, each index along all of them is
        a unit: ``(0, 1)`` for weights of the shape (heads, outputs, inputs). Without any, each leaf is one unit.
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
    comm : mpi4py communicator or torch.distributed process group, optional
        Leaves of one path on several ranks are shards of one leaf: `clip_adaptive_` says how.
    owned : nesting of bools or dict of str to bool, optional
        Which leaves this rank counts: `clip_adaptive_` says how.

    Returns
    -------
    clipped : nesting of arrays
        Like `grads`, with new leaves; or `out`.
    ClipReport
        ``norms`` and ``scales`` by unit, leaf by leaf; ``max_norm`` is the clip factor as given.

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
    return functional(grads, out, norm, _adaptive, params, clip_factor, eps, unit_axis)


def _adaptive(
    norm: UnitOptionsWithoutEps, params: Any, clip_factor: ByLeaf, eps: float, unit_axis: int | tuple[int, ...]
) -> _Adaptive:
    """The request of `clip_adaptive_` and `clip_adaptive`, after a check of the arguments."""
    if not is_by_leaf(clip_factor):
        clip_factor = _factor("clip_factor", clip_factor)
    eps = number("eps", eps, 0.0)
    if eps == math.inf:
        raise ValueError("eps must be finite")
    axes = unit_axis if isinstance(unit_axis, tuple | list) else (unit_axis,)
    request = _Adaptive(unit_options_of(norm), clip_factor)
    request.params, request.eps, request.unit_axis = params, eps, tuple(whole("unit_axis", axis) for axis in axes)
    return request


def _factor(name: str, value: Any) -> float:
    """A clip factor as a float, checked."""
    factor = number(name, value)
    if not 0.0 < factor < math.inf:
        raise ValueError(f"{name} must be positive and finite, not {factor!r}")
    return factor


class _Adaptive(Request):
    """Each unit of the gradients to a fraction of the norm of its parameters, which are read beside them."""

    params: Any
    leaves: Leaves  # the gradients
    unit_axis: tuple[int, ...]
    eps: float
    factor: float | Floats  # of all units, or of each; inf: left alone

    def prepare(self, leaves: Leaves) -> Leaves:
        self.leaves = leaves
        leaves.cut([_unit_axes(leaves, i, self.unit_axis) for i in range(leaves.count)])
        self.factor = self.shown
        if type(self.factor) is not float:
            each = by_leaf(leaves, "clip_factor", self.shown, _factor)
            self.factor = np.repeat([math.inf if f is None else f for f in each], leaves.leaf_units()).astype(np.float64)
        return leaves.beside(self.params)

    def measure(self, engine: Engine, read: Leaves) -> AnySums:
        options, units = self.options, self.to.units
        both = engine.measure(read, options.ord, finite_only=options.finite_only, norms=False)
        if options.shared:
            shared: Any = options  # whose module is not imported for a name
            found: AnySums
            found, self.threshold = shared.adaptive(self, engine, read, both)
            return found
        engine.settle(both, read, first=units, total=False)
        self.threshold = both.weigh(units, self.factor, self.eps)
        sums = both.of_units(0, units, options.grad_scale)
        engine.settle(sums, read)
        return sums


def _unit_axes(leaves: Leaves, i: int, unit_axis: tuple[int, ...]) -> tuple[int, ...]:
    """The axes along which units of a leaf lie, sorted: none where it is a single unit."""
    if leaves.arrays[i].ndim < 2:
        return ()
    return tuple(sorted(axes_of(leaves, i, "unit_axis", unit_axis)))
