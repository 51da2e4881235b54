"""Clipping by norm: each leaf on its own, or all leaves by their global norm; and normalisation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ._arguments import Rule, number, spelled_out
from ._cpu.passes import measure
from ._decide import decide
from ._leaves import Leaves

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._arguments import NormOptions
    from .report import ClipReport


@spelled_out
def clip_by_global_norm_(grads: Any, max_norm: float, **norm: Unpack[NormOptions]) -> ClipReport:
    """Scale all leaves by one factor so that their global norm is at most `max_norm`, in place.

    .. math:: g \\leftarrow g \\cdot \\frac{c}{\\lVert g \\rVert + \\epsilon}
              \\quad\\text{where}\\quad \\lVert g \\rVert > c

    Parameters
    ----------
    grads : array or nesting of arrays
        Lists, tuples, named tuples, dicts and iterators, nested at will, of float16, bfloat16, float32,
        float64, complex64 or complex128 arrays of any strides. ``None`` is skipped.
    max_norm : float
        The threshold c >= 0. 0 makes every element 0, ``inf`` only measures.
    ord : {2, 1, inf}, default 2
        Which norm.
    eps : float, default 0
        Added to the norm; 1e-6 gives PyTorch's factor.
    nonfinite : {"raise", "skip", "zero", "propagate"}, default "raise"
        What to do about NaN and Inf: raise an error, write nothing, make them 0 and clip the rest, or
        follow IEEE arithmetic.
    grad_scale : float, default 1
        The gradients hold the true gradient times this. Norm and threshold speak of the true gradient,
        and whatever is written is unscaled.
    strict : bool, default False
        Guarantee, in exact arithmetic, that the norm of what was written is at most `max_norm`. Costs
        at least one more read pass where something is clipped.

    Returns
    -------
    ClipReport

    Raises
    ------
    NonFiniteGradientError
        An element is NaN or Inf, under ``nonfinite="raise"``.
    TypeError, ValueError
        A leaf or an argument that cannot be used. Nothing is written when anything is raised.

    Notes
    -----
    norm > max_norm clips, norm == max_norm does not; where nothing is to be done, nothing is written.
    The method is that of [1]_.

    References
    ----------
    .. [1] R. Pascanu, T. Mikolov, Y. Bengio, "On the difficulty of training recurrent neural networks",
       ICML 2013.

    Examples
    --------
    >>> import numpy as np, gradclip
    >>> grads = {"w": np.array([3.0, 0.0]), "b": np.array([4.0])}
    >>> gradclip.clip_by_global_norm_(grads, 1.0)
    ClipReport(norm=5.0, max_norm=1.0, scale=0.2, clipped=True)
    >>> grads["b"]
    array([0.8])
    """
    rule = Rule.of(norm)
    max_norm = number("max_norm", max_norm, 0.0)
    leaves = Leaves(grads, True)
    return decide(measure(leaves, rule.ord, rule.grad_scale), leaves, rule, max_norm)


@spelled_out
def clip_by_global_norm(grads: Any, max_norm: float, *, out: Any = None, **norm: Unpack[NormOptions]) -> tuple[Any, ClipReport]:
    """Like `clip_by_global_norm_`, leaving `grads` untouched.

    Parameters
    ----------
    grads, max_norm, **norm
        As for `clip_by_global_norm_`.
    out : nesting of arrays, optional
        Writable leaves of the same nesting, shapes and dtypes; may be `grads` itself.

    Returns
    -------
    clipped : nesting of arrays
        Like `grads`, with new leaves (or those of `out`).
    ClipReport

    Examples
    --------
    >>> import numpy as np, gradclip
    >>> clipped, report = gradclip.clip_by_global_norm([np.array([3.0, 4.0])], 1.0)
    >>> clipped, report.norm
    ([array([0.6, 0.8])], 5.0)
    """
    rule = Rule.of(norm)
    max_norm = number("max_norm", max_norm, 0.0)
    leaves = Leaves(grads)
    to = leaves.target(out)
    report = decide(measure(leaves, rule.ord, rule.grad_scale), to, rule, max_norm, keep_out=out is not None)
    return result(leaves, to, out), report


@spelled_out
def clip_by_norm_(grads: Any, max_norm: float, **norm: Unpack[NormOptions]) -> ClipReport:
    """Scale every leaf by a factor of its own so that its norm is at most `max_norm`, in place.

    Parameters
    ----------
    grads, **norm
        As for `clip_by_global_norm_`.
    max_norm : float
        The threshold >= 0 of each leaf.

    Returns
    -------
    ClipReport
        ``norms`` and ``scales`` by leaf; ``norm`` is that of all leaves, ``scale`` the smallest factor.

    Raises
    ------
    NonFiniteGradientError, TypeError, ValueError
        As `clip_by_global_norm_`.

    Examples
    --------
    >>> import numpy as np, gradclip
    >>> grads = [np.array([3.0, 4.0]), np.array([0.5])]
    >>> report = gradclip.clip_by_norm_(grads, 1.0)
    >>> grads
    [array([0.6, 0.8]), array([0.5])]
    >>> report.norms, report.scales, report.clipped_count
    (array([5. , 0.5]), array([0.2, 1. ]), 1)
    """
    rule = Rule.of(norm)
    max_norm = number("max_norm", max_norm, 0.0)
    leaves = Leaves(grads, True)
    return decide(measure(leaves, rule.ord, rule.grad_scale), leaves, rule, np.full(leaves.count, max_norm), max_norm)


@spelled_out
def clip_by_norm(grads: Any, max_norm: float, *, out: Any = None, **norm: Unpack[NormOptions]) -> tuple[Any, ClipReport]:
    """Like `clip_by_norm_`, leaving `grads` untouched; returns new leaves (or `out`) and the report.

    Examples
    --------
    >>> import numpy as np, gradclip
    >>> clipped, report = gradclip.clip_by_norm(np.array([3.0, 4.0]), 1.0)
    >>> clipped
    array([0.6, 0.8])
    """
    rule = Rule.of(norm)
    max_norm = number("max_norm", max_norm, 0.0)
    leaves = Leaves(grads)
    to = leaves.target(out)
    sums = measure(leaves, rule.ord, rule.grad_scale)
    report = decide(sums, to, rule, np.full(leaves.count, max_norm), max_norm, keep_out=out is not None)
    return result(leaves, to, out), report


@spelled_out
def normalize_(grads: Any, target: float = 1.0, *, eps: float = 1e-12, per_leaf: bool = False, **norm: Any) -> ClipReport:
    """Scale the gradient to the norm `target`, up or down, in place: factor target / (norm + eps).

    Parameters
    ----------
    grads, **norm
        As for `clip_by_global_norm_`.
    target : float, default 1
        The norm to reach: >= 0 and finite.
    eps : float, default 1e-12
        Added to the norm.
    per_leaf : bool, default False
        Normalise each leaf on its own.

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
    rule, target = _normalization(target, eps, per_leaf, norm)
    leaves = Leaves(grads, True)
    sums = measure(leaves, rule.ord, rule.grad_scale)
    return decide(sums, leaves, rule, np.full(leaves.count, target) if per_leaf else target, target, normalize=True)


@spelled_out
def normalize(
    grads: Any,
    target: float = 1.0,
    *,
    out: Any = None,
    eps: float = 1e-12,
    per_leaf: bool = False,
    **norm: Any,
) -> tuple[Any, ClipReport]:
    """Like `normalize_`, leaving `grads` untouched; returns new leaves (or `out`) and the report.

    Examples
    --------
    >>> import numpy as np, gradclip
    >>> unit, report = gradclip.normalize(np.array([0.0, 0.5]))
    >>> unit
    array([0., 1.])
    """
    rule, target = _normalization(target, eps, per_leaf, norm)
    leaves = Leaves(grads)
    to = leaves.target(out)
    sums = measure(leaves, rule.ord, rule.grad_scale)
    goal = np.full(leaves.count, target) if per_leaf else target
    report = decide(sums, to, rule, goal, target, normalize=True, keep_out=out is not None)
    return result(leaves, to, out), report


def global_norm(grads: Any, ord: float = 2) -> float:
    """The norm over all elements of all leaves, as a float.

    Parameters
    ----------
    grads : array or nesting of arrays
        As for `clip_by_global_norm_`.
    ord : {2, 1, inf}, default 2
        Which norm.

    Returns
    -------
    float
        Within 0.501 ulp of the exact norm for ``ord=2``, whatever size, range and order of the elements;
        NaN or Inf where an element is, as IEEE arithmetic has it.

    Examples
    --------
    >>> import numpy as np, gradclip
    >>> gradclip.global_norm([np.full(4, 1e200), np.full(5, 1e200)])
    3e+200
    """
    return measure(Leaves(grads), Rule.of({"ord": ord}).ord).norm()


def _normalization(target, eps, per_leaf, norm):
    if not isinstance(per_leaf, bool | np.bool_):
        raise TypeError(f"per_leaf must be True or False, not {per_leaf!r}")
    rule = Rule.of({**norm, "eps": eps})
    target = number("target", target, 0.0)
    if target == math.inf:
        raise ValueError("target must be finite")
    return rule, target


def result(leaves, to, out):
    """What a functional form returns as its first value."""
    return leaves.rebuild(to.arrays) if out is None else out
