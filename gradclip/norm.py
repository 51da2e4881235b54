"""Clipping by norm: each leaf on its own, or all leaves by their global norm."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from ._core.arguments import ByLeaf, Grads, Names, Number, whole
from ._core.by_leaf import axes_of, thresholds_by_leaf
from ._core.call import Request, functional, in_place, measured, total, unit_options_of
from ._core.groups import Groups
from ._core.options import NormOptions, Options, UnitOptions, Unpack, spelled_out, spelled_out_for_units
from .report import ClipReport, complete
from .thresholds import PerLeaf, Threshold

if TYPE_CHECKING:
    from ._core.arguments import Floats
    from ._core.engine import AnySums, Engine
    from ._leaves import Leaves


@spelled_out
def clip_by_global_norm_(grads: Any, max_norm: Number | Threshold, **norm: Unpack[NormOptions]) -> ClipReport:
    r"""Scale all leaves by one factor so that their global norm is at most `max_norm`, in place.

    .. math:: g \leftarrow g \cdot \frac{c}{\lVert g \rVert + \epsilon}
              \quad\text{where}\quad \lVert g \rVert > c

    Parameters
    ----------
    grads : array or nesting of arrays
        Lists, tuples, named tuples, dicts, iterators and containers known by `register_container`, nested at will, of
        float16, bfloat16, float32, float64, complex64 or complex128 arrays of any strides. ``None`` is skipped. Parameters
        of PyTorch's are weights and refused: pass each one's ``.grad``.
    max_norm : float or Threshold
        The threshold c >= 0. 0 makes every element 0, ``inf`` only measures. Or a rule of
        `gradclip.thresholds`, which is shown the norm and gives this step's threshold.
    ord : float, default 2
        Which norm: any p > 0, or ``inf``. 1, 2 and ``inf`` have SIMD kernels.
    eps : float, default 0
        Added to the norm; 1e-6 gives PyTorch's factor.
    nonfinite : {"raise", "skip", "zero", "propagate"}, default "raise"
        What to do about NaN and Inf: raise an error, write nothing, make them 0 and clip the rest, or
        follow IEEE arithmetic.
    grad_scale : float, default 1
        The gradients hold the true gradient times this. Norm and threshold speak of the true gradient,
        and whatever is written is unscaled.
    strict : bool, default False
        Guarantee, in exact arithmetic, that the norm of what was written is at most `max_norm`: for
        orders 1, 2 and ``inf`` (of complex numbers 2). For others the norm is at most `max_norm` as it is
        measured, an error of 4 ulp (below order 1, 4 / p) allowed for. Costs at least one more read pass where
        something is clipped.
    skip_above : float or Threshold, optional
        Leave the step out if its norm is above this: nothing is written, and ``report.skipped`` is True. A number >= 0, or a
        rule of `gradclip.thresholds`, which sees every finite norm. It is asked before `max_norm`; a norm that is skipped
        is not shown to a rule given as `max_norm`. NaN and Inf are the business of `nonfinite`.
    comm : mpi4py communicator or torch.distributed process group, optional
        The norm runs over the leaves of all ranks, each of which calls this with its own. All decide alike, and an error on one
        rank is one on every rank. See the page on several processes.
    owned : nesting of bools or dict of str to bool, optional
        Which leaves the norm runs over; all without it. False: scaled, but not counted, because another rank counts the leaf
        or because it should not decide. One bool for all, a nesting like `grads`, or patterns over paths as in
        `clip_by_norm_`; a leaf that none matches is counted. NaN and Inf are found in every leaf.

    Returns
    -------
    ClipReport
        What was seen and done; ``scale`` is the factor, and ``norm`` that of the gradient as it was.

    Raises
    ------
    NonFiniteGradientError
        An element is NaN or Inf, under ``nonfinite="raise"``.
    TypeError, ValueError
        A leaf or an argument that cannot be used. Nothing is written when anything is raised.
    RuntimeError
        With `comm`, another rank failed: the message has its number and its error.

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
    return in_place(grads, norm, total, max_norm)


@overload
def clip_by_global_norm(
    grads: Grads, max_norm: Number | Threshold, *, out: None = None, **norm: Unpack[NormOptions]
) -> tuple[Grads, ClipReport]: ...
@overload
def clip_by_global_norm(
    grads: Any, max_norm: Number | Threshold, *, out: Grads, **norm: Unpack[NormOptions]
) -> tuple[Grads, ClipReport]: ...
@spelled_out
def clip_by_global_norm(
    grads: Any, max_norm: Number | Threshold, *, out: Any = None, **norm: Unpack[NormOptions]
) -> tuple[Any, ClipReport]:
    """Return all leaves scaled by one factor so that their global norm is at most `max_norm`, and the report.

    The same as `clip_by_global_norm_`, leaving `grads` untouched.

    Parameters
    ----------
    grads : array or nesting of arrays
        Leaves as for `clip_by_global_norm_`. Only read, and may be read-only.
    max_norm : float or Threshold
        The threshold >= 0, or a rule of `gradclip.thresholds` that gives it.
    out : nesting of arrays, optional
        Where the results go: writable leaves of the same nesting and shapes; may be `grads` itself. A leaf of another real
        dtype, which may share no memory with `grads`, gets every element rounded once to that dtype; a number beyond its
        range becomes Inf, or with `strict` the factor is shrunk until none is. Without `out`, new leaves are made.
    ord : float, default 2
        Which norm: any p > 0, or ``inf``.
    eps : float, default 0
        Added to the norm; 1e-6 gives PyTorch's factor.
    nonfinite : {"raise", "skip", "zero", "propagate"}, default "raise"
        What to do about NaN and Inf: raise an error, clip nothing (new leaves are copies then, and `out` is not written),
        make them 0 and clip the rest, or follow IEEE arithmetic.
    grad_scale : float, default 1
        The gradients hold the true gradient times this. Norm and threshold speak of the true gradient, and whatever is
        returned is unscaled.
    strict : bool, default False
        Guarantee, in exact arithmetic, that the norm of the result is at most `max_norm`. For orders other than 1, 2 and
        ``inf``, and for what it costs, see `clip_by_global_norm_`.
    skip_above : float or Threshold, optional
        Leave the step out if its norm is above this: `clip_by_global_norm_` says how. New leaves are copies then, and `out`
        is not written.
    comm : mpi4py communicator or torch.distributed process group, optional
        The norm runs over the leaves of all ranks: `clip_by_global_norm_` says how.
    owned : nesting of bools or dict of str to bool, optional
        Which leaves the norm runs over: `clip_by_global_norm_` says how.

    Returns
    -------
    clipped : nesting of arrays
        Like `grads`, with new leaves; or `out`.
    ClipReport
        What was seen and done.

    Raises
    ------
    NonFiniteGradientError, TypeError, ValueError
        As `clip_by_global_norm_`; or `out` does not match. Nothing is written then. TypeError also where a container or a
        leaf cannot be made anew in its own type: make the type known with `register_container`, clip the leaves of
        ``jax.tree.flatten(grads)``, or give `out`.

    Examples
    --------
    >>> import numpy as np, gradclip
    >>> clipped, report = gradclip.clip_by_global_norm([np.array([3.0, 4.0])], 1.0)
    >>> clipped, report.norm
    ([array([0.6, 0.8])], 5.0)
    """
    return functional(grads, out, norm, total, max_norm)


@spelled_out_for_units
def clip_by_norm_(
    grads: Any,
    max_norm: ByLeaf | PerLeaf,
    *,
    axis: int | tuple[int, ...] | None = None,
    groups: Names | None = None,
    **norm: Unpack[UnitOptions],
) -> ClipReport:
    """Scale every leaf, slice or group by a factor of its own so that its norm is at most `max_norm`, in place.

    Parameters
    ----------
    grads : array or nesting of arrays
        Written in place: leaves as for `clip_by_global_norm_`.
    max_norm : float, nesting of floats, dict of str to float or PerLeaf
        The threshold >= 0 of each leaf: one for all, one for each in a nesting like `grads`, a rule of
        `gradclip.thresholds` for each leaf in a `PerLeaf`, or by patterns over paths (shell-style: ``*`` matches ``/`` too,
        and a pattern matches the whole path). The first pattern that matches counts; a leaf that none matches is left
        alone. A pattern that matches no path in `grads` (the places of None are paths) is an error, unless `grads` is
        empty. A dict with the keys of `grads` is a nesting.
    axis : int or tuple of int, optional
        The axes of a slice, as in `numpy.linalg.norm`: each slice along them is clipped on its own.
    groups : nesting of str or dict of str to str, optional
        Names: leaves of one name share one norm and one factor. One for each leaf in a nesting like `grads`, or by patterns
        over paths as for `max_norm`; a leaf that no pattern matches is left alone. `max_norm` is then a number for all groups,
        a dict by name (other keys are patterns over names, and a group that has no threshold is left alone), or a `PerLeaf`,
        which has a rule for each group. Not with `axis`.
    ord : float, default 2
        Which norm: any p > 0, or ``inf``.
    eps : float, default 0
        Added to the norm of each leaf, slice or group; 1e-6 gives PyTorch's factor.
    nonfinite : {"raise", "skip", "zero", "propagate"}, default "raise"
        What to do about NaN and Inf: raise an error, write nothing, make them 0 and clip the rest, or follow IEEE
        arithmetic.
    grad_scale : float, default 1
        The gradients hold the true gradient times this. Norms and thresholds speak of the true gradient, and whatever is
        written is unscaled.
    strict : bool, default False
        Guarantee, in exact arithmetic, that the norm of each leaf, slice or group written is at most its threshold. For
        orders other than 1, 2 and ``inf``, and for what it costs, see `clip_by_global_norm_`.
    comm : mpi4py communicator or torch.distributed process group, optional
        Leaves of one path (groups of one name) on several ranks share one norm: shards are rows of one leaf. All ranks decide
        alike, and an error on one rank is one on every rank. See the page on several processes.
    owned : nesting of bools or dict of str to bool, optional
        Which leaves count in their norm; all without it, as in `clip_by_global_norm_`. With `comm`, False: another rank counts
        the leaf. Without `comm` only for leaves of groups.

    Returns
    -------
    ClipReport
        ``norms`` and ``scales`` by leaf, by slice in index order, or by group in order of first appearance, whose names are
        ``groups``; ``norm`` is that of all leaves, ``scale`` the smallest factor, ``max_norm`` as given.

    Raises
    ------
    NonFiniteGradientError, TypeError, ValueError
        As `clip_by_global_norm_`; a leaf has no such axis; `groups` does not match, or `max_norm` has a name that no leaf has.

    Examples
    --------
    >>> import numpy as np, gradclip
    >>> grads = [np.array([3.0, 4.0]), np.array([0.5])]
    >>> report = gradclip.clip_by_norm_(grads, 1.0)
    >>> grads
    [array([0.6, 0.8]), array([0.5])]
    >>> report.norms, report.scales, report.clipped_count
    (array([5. , 0.5]), array([0.2, 1. ]), 1)

    Layer by layer, and row by row:

    >>> model = {"embed": np.array([3.0, 4.0]), "head": np.array([6.0, 8.0])}
    >>> gradclip.clip_by_norm_(model, {"embed*": 0.5, "*": 1.0}).scales
    array([0.1, 0.1])
    >>> rows = np.array([[3.0, 4.0], [0.3, 0.4]])
    >>> gradclip.clip_by_norm_(rows, 1.0, axis=1).norms
    array([5. , 0.5])

    By groups:

    >>> moe = {"experts/0": np.array([3.0]), "experts/1": np.array([4.0]), "router": np.array([0.5])}
    >>> report = gradclip.clip_by_norm_(moe, {"experts": 1.0}, groups={"experts/*": "experts", "*": "dense"})
    >>> report.groups, report.norms, report.scales
    (('experts', 'dense'), array([5. , 0.5]), array([0.2, 1. ]))
    """
    return in_place(grads, norm, _by_norm, max_norm, axis, groups)


@overload
def clip_by_norm(
    grads: Grads,
    max_norm: ByLeaf | PerLeaf,
    *,
    out: None = None,
    axis: int | tuple[int, ...] | None = None,
    groups: Names | None = None,
    **norm: Unpack[UnitOptions],
) -> tuple[Grads, ClipReport]: ...
@overload
def clip_by_norm(
    grads: Any,
    max_norm: ByLeaf | PerLeaf,
    *,
    out: Grads,
    axis: int | tuple[int, ...] | None = None,
    groups: Names | None = None,
    **norm: Unpack[UnitOptions],
) -> tuple[Grads, ClipReport]: ...
@spelled_out_for_units
def clip_by_norm(
    grads: Any,
    max_norm: ByLeaf | PerLeaf,
    *,
    axis: int | tuple[int, ...] | None = None,
    groups: Names | None = None,
    out: Any = None,
    **norm: Unpack[UnitOptions],
) -> tuple[Any, ClipReport]:
    """Return every leaf, slice or group scaled so that its norm is at most `max_norm`, and the report.

    The same as `clip_by_norm_`, leaving `grads` untouched.

    Parameters
    ----------
    grads : array or nesting of arrays
        Leaves as for `clip_by_global_norm_`. Only read, and may be read-only.
    max_norm : float, nesting of floats, dict of str to float or PerLeaf
        The threshold >= 0 of each leaf: one for all, a nesting like `grads`, a rule for each leaf, or by patterns over
        paths, as for `clip_by_norm_`.
    axis : int or tuple of int, optional
        The axes of a slice: each slice along them is clipped on its own.
    groups : nesting of str or dict of str to str, optional
        Names: leaves of one name share one norm and one factor. `clip_by_norm_` says how.
    out : nesting of arrays, optional
        Where the results go: writable leaves of the same nesting and shapes; may be `grads` itself. A leaf of another real
        dtype, which may share no memory with `grads`, gets every element rounded once to that dtype; a number beyond its
        range becomes Inf, or with `strict` the factor is shrunk until none is. Without `out`, new leaves are made.
    ord : float, default 2
        Which norm: any p > 0, or ``inf``.
    eps : float, default 0
        Added to the norm of each leaf, slice or group; 1e-6 gives PyTorch's factor.
    nonfinite : {"raise", "skip", "zero", "propagate"}, default "raise"
        What to do about NaN and Inf: raise an error, clip nothing (new leaves are copies then, and `out` is not written),
        make them 0 and clip the rest, or follow IEEE arithmetic.
    grad_scale : float, default 1
        The gradients hold the true gradient times this. Norms and thresholds speak of the true gradient, and whatever is
        returned is unscaled.
    strict : bool, default False
        Guarantee, in exact arithmetic, that the norm of each leaf, slice or group of the result is at most its threshold.
        For orders other than 1, 2 and ``inf``, and for what it costs, see `clip_by_global_norm_`.
    comm : mpi4py communicator or torch.distributed process group, optional
        Leaves of one path on several ranks are shards of one leaf: `clip_by_norm_` says how.
    owned : nesting of bools or dict of str to bool, optional
        Which leaves count in their norm: `clip_by_norm_` says how.

    Returns
    -------
    clipped : nesting of arrays
        Like `grads`, with new leaves; or `out`.
    ClipReport
        ``norms`` and ``scales`` by leaf, by slice in index order, or by group.

    Raises
    ------
    NonFiniteGradientError, TypeError, ValueError
        As `clip_by_norm_`; or `out` does not match. Nothing is written then.

    Examples
    --------
    >>> import numpy as np, gradclip
    >>> clipped, report = gradclip.clip_by_norm(np.array([3.0, 4.0]), 1.0)
    >>> clipped
    array([0.6, 0.8])
    """
    return functional(grads, out, norm, _by_norm, max_norm, axis, groups)


def _by_norm(
    norm: UnitOptions, max_norm: ByLeaf | PerLeaf, axis: int | tuple[int, ...] | None, groups: Names | None
) -> _ByNorm | _ByGroup:
    """The request of `clip_by_norm_` and `clip_by_norm`."""
    if groups is not None:
        if axis is not None:
            raise TypeError("groups bring leaves together, but axis cuts them into slices: give one of them")
        by_group = _ByGroup(unit_options_of(norm), max_norm)
        by_group.names = groups
        return by_group
    if isinstance(max_norm, PerLeaf) and axis is not None:
        raise TypeError("max_norm: PerLeaf has one threshold for each leaf, but axis cuts leaves into slices")
    request = _ByNorm(unit_options_of(norm), max_norm)
    request.axis = axis
    return request


class _ByNorm(Request):
    """Each leaf, or each slice along some axes, to a threshold of its own."""

    axis: Any
    paths: list[str]  # where rules are asked by them

    def prepare(self, leaves: Leaves) -> Leaves:
        if isinstance(self.shown, PerLeaf):
            self.paths = leaves.paths()
            for path, count in Counter(self.paths).items():
                if count > 1:
                    raise ValueError(f"max_norm: PerLeaf knows leaves by their paths, but {count} have the path {path}")
            return leaves
        self.threshold = thresholds_by_leaf(leaves, self.shown)
        if self.axis is not None:
            axes = self.axis if isinstance(self.axis, tuple | list) else (self.axis,)
            axes = [whole("axis", a) for a in axes]
            if not axes:
                raise ValueError("axis must name at least one axis")
            leaves.cut([_others(leaves, i, axes) for i in range(leaves.count)])
            self.threshold = np.repeat(self.threshold, leaves.leaf_units())
        return leaves

    def decide(self, engine: Engine, read: Leaves) -> tuple[ClipReport, Any]:
        sums = self.measure(engine, read)
        if isinstance(self.shown, PerLeaf):
            self.threshold = _asked(self.shown, self.paths, sums, self.options)
            if self.options.shared:
                shared: Any = self.options  # whose module is not imported for a name
                shared.agree_on_thresholds(self.threshold)
        return engine.decide(self, sums)


class _ByGroup(Request):
    """The leaves of each group to a threshold of its own."""

    names: Any  # as they were given
    groups: Groups

    def prepare(self, leaves: Leaves) -> Leaves:
        self.groups = Groups.of(leaves, self.names)
        self.by_owner = self.elsewhere = True
        self.owner, self.counted = self.groups.of_leaf, len(self.groups.names)
        if not isinstance(self.shown, PerLeaf):
            self.threshold = self.groups.completed(self.groups.thresholds(self.shown))
        return leaves

    def decide(self, engine: Engine, read: Leaves) -> tuple[ClipReport, Any]:
        options, groups = self.options, self.groups
        units = engine.measure(read, options.ord, options.grad_scale, options.finite_only, norms=False)
        sums = units.by_owner(groups.norms, self.owner)
        if options.shared:
            shared: Any = options  # whose module is not imported for a name
            limits = (
                [None] * len(groups.names) if isinstance(self.shown, PerLeaf) else self.threshold.tolist()[: len(groups.names)]
            )
            sums = shared.join(self, engine, read, units, shared.named(groups.names, 1, limits), sums)
        else:
            engine.settle(sums, read)
        self.norms = sums.norms()[: self.counted]
        if isinstance(self.shown, PerLeaf):
            self.threshold = groups.completed(_asked(self.shown, groups.names, sums, options).tolist())
            if options.shared:
                shared.agree_on_thresholds(self.threshold)
        report, plan = engine.decide(self, sums)
        return complete(report, groups.names), plan


def _asked(rules: PerLeaf, names: Sequence[str], sums: AnySums, options: Options) -> Floats:
    """The threshold that its rule gives each leaf or group this step."""
    if options.nonfinite in ("raise", "skip") and sums.nonfinite():
        return np.full(len(names), math.inf)  # a step that is left out is not remembered
    norms = sums.norms()[: len(names)].tolist()  # behind those of groups stands that of leaves in none
    return np.array([rules.next_threshold(name, norm) for name, norm in zip(names, norms, strict=True)])


def _others(leaves: Leaves, i: int, axes: Sequence[int]) -> tuple[int, ...]:
    """The axes of a leaf that are not those of its slices."""
    inner = axes_of(leaves, i, "axis", axes)
    return tuple(d for d in range(leaves.arrays[i].ndim) if d not in inner)


def global_norm(grads: Any, ord: float = 2) -> float:
    """The norm over all elements of all leaves, as a float.

    Parameters
    ----------
    grads : array or nesting of arrays
        As for `clip_by_global_norm_`.
    ord : float, default 2
        Which norm: any p > 0, or ``inf``.

    Returns
    -------
    float
        The exact norm, correctly rounded, for ``ord=2`` and for orders 1 and ``inf`` of real numbers (for other orders within
        4 ulp), whatever size, range and order of the elements; NaN or Inf where an element is, as IEEE arithmetic has it.

    Examples
    --------
    >>> import numpy as np, gradclip
    >>> gradclip.global_norm([np.full(4, 1e200), np.full(5, 1e200)])
    3e+200
    """
    return measured(grads, Options.of({"ord": ord}))[0].norm()
