"""Per-sample clipping, and the clipped sum of differentially private training (DP-SGD)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from ._core.arguments import ByLeaf, Grads, Names, flag, number
from ._core.by_leaf import thresholds_by_leaf
from ._core.call import Request, functional, in_place, unit_options_of
from ._core.groups import Groups
from ._core.mode import CLIP, NORMALIZE
from ._core.options import UnitOptions, Unpack, spelled_out_for_units
from ._core.samples import kept
from ._leaves import Leaves, is_nesting
from ._leaves.foreign import dtype_name, numbers
from .report import ClipReport, complete
from .thresholds import PrivateQuantile, Threshold

if TYPE_CHECKING:
    from ._core.arguments import Flags, Indices
    from ._core.engine import AnySums, Engine


@spelled_out_for_units
def clip_per_sample_(
    grads: Any,
    max_norm: ByLeaf | PrivateQuantile,
    *,
    normalize: bool = False,
    groups: Names | None = None,
    mask: Any = None,
    **norm: Unpack[UnitOptions],
) -> ClipReport:
    """Scale every sample of a batch by a factor of its own so that its norm is at most `max_norm`, in place.

    Parameters
    ----------
    grads : array or nesting of arrays
        Leaves of shape ``(batch, ...)``, the same batch for all and none sparse: a sample is one index of the first
        axis, and its norm runs over all leaves.
    max_norm : float, nesting of floats, dict of str to float or PrivateQuantile
        The threshold >= 0 of each sample, or the rule of `gradclip.thresholds` that gives it. A nesting like `grads`, or
        patterns as for `clip_by_norm_`, give each sample a norm and a threshold in each leaf.
    normalize : bool, default False
        Bring every sample to `max_norm`, up or down: the factor is max_norm / (norm + eps), and a zero stays zero. A leaf or
        group without threshold, or with ``inf``, is left alone.
    groups : nesting of str or dict of str to str, optional
        Names of groups of leaves, as for `clip_by_norm_`: each sample has a norm and a threshold in each group.
    mask : array of bool, optional
        One for each sample. False: a padded one, which is neither measured nor counted, and left as it is. It may hold NaN.
    ord : float, default 2
        Which norm: any p > 0, or ``inf``.
    eps : float, default 0
        Added to the norm of each sample; 1e-6 gives PyTorch's factor.
    nonfinite : {"raise", "skip", "zero", "propagate"}, default "raise"
        What to do about NaN and Inf: raise an error, write nothing, make them 0 and clip the rest, or follow IEEE
        arithmetic.
    grad_scale : float, default 1
        The gradients hold the true gradient times this. Norms and threshold speak of the true gradient, and whatever is
        written is unscaled.
    strict : bool, default False
        Guarantee, in exact arithmetic, that the norm of each sample written is at most `max_norm`. For orders other than
        1, 2 and ``inf``, and for what it costs, see `clip_by_global_norm_`.
    comm : mpi4py communicator or torch.distributed process group, optional
        Samples are the same on every rank, and the norm of a sample runs over the leaves of all ranks. `mask` and the number of
        samples have to be the same. See the page on several processes.
    owned : nesting of bools or dict of str to bool, optional
        Which leaves count in the norm of a sample; all without it, as in `clip_by_global_norm_`.

    Returns
    -------
    ClipReport
        ``norms`` and ``scales`` by sample, or leaf by leaf (group by group) and there by sample; a padded sample has the norm 0
        and the factor 1. ``norm`` is that of all samples together, ``scale`` the smallest factor, ``size`` without padded
        samples. ``sensitivity`` is the square root of the sum of the squared thresholds of a sample.

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
    return in_place(grads, norm, _PerSample, max_norm, normalize, groups, mask)


@overload
def clip_per_sample(
    grads: Grads,
    max_norm: ByLeaf | PrivateQuantile,
    *,
    out: None = None,
    normalize: bool = False,
    groups: Names | None = None,
    mask: Any = None,
    **norm: Unpack[UnitOptions],
) -> tuple[Grads, ClipReport]: ...
@overload
def clip_per_sample(
    grads: Any,
    max_norm: ByLeaf | PrivateQuantile,
    *,
    out: Grads,
    normalize: bool = False,
    groups: Names | None = None,
    mask: Any = None,
    **norm: Unpack[UnitOptions],
) -> tuple[Grads, ClipReport]: ...
@spelled_out_for_units
def clip_per_sample(
    grads: Any,
    max_norm: ByLeaf | PrivateQuantile,
    *,
    out: Any = None,
    normalize: bool = False,
    groups: Names | None = None,
    mask: Any = None,
    **norm: Unpack[UnitOptions],
) -> tuple[Any, ClipReport]:
    """Return every sample of a batch scaled so that its norm is at most `max_norm`, and the report.

    The same as `clip_per_sample_`, leaving `grads` untouched.

    Parameters
    ----------
    grads : array or nesting of arrays
        Leaves of shape ``(batch, ...)``, as for `clip_per_sample_`. Only read, and may be read-only.
    max_norm : float, nesting of floats, dict of str to float or PrivateQuantile
        The threshold >= 0 of each sample, or the rule of `gradclip.thresholds` that gives it. A nesting like `grads`, or
        patterns as for `clip_by_norm_`, give each sample a norm and a threshold in each leaf.
    out : nesting of arrays, optional
        Where the results go: writable leaves of the same nesting and shapes; may be `grads` itself. A leaf of another real
        dtype, which may share no memory with `grads`, gets every element rounded once to that dtype; a number beyond its
        range becomes Inf, or with `strict` the factor is shrunk until none is. Without `out`, new leaves are made.
    normalize : bool, default False
        Bring every sample to `max_norm`, up or down: the factor is max_norm / (norm + eps), and a zero stays zero.
    groups : nesting of str or dict of str to str, optional
        Names of groups of leaves, as for `clip_by_norm_`: each sample has a norm and a threshold in each group.
    mask : array of bool, optional
        One for each sample. False: a padded one, which is neither measured nor counted, and copied as it is. It may hold NaN.
    ord : float, default 2
        Which norm: any p > 0, or ``inf``.
    eps : float, default 0
        Added to the norm of each sample; 1e-6 gives PyTorch's factor.
    nonfinite : {"raise", "skip", "zero", "propagate"}, default "raise"
        What to do about NaN and Inf: raise an error, clip nothing (new leaves are copies then, and `out` is not written),
        make them 0 and clip the rest, or follow IEEE arithmetic.
    grad_scale : float, default 1
        The gradients hold the true gradient times this. Norms and threshold speak of the true gradient, and whatever is
        returned is unscaled.
    strict : bool, default False
        Guarantee, in exact arithmetic, that the norm of each sample of the result is at most `max_norm`. For orders other
        than 1, 2 and ``inf``, and for what it costs, see `clip_by_global_norm_`.
    comm : mpi4py communicator or torch.distributed process group, optional
        The norm of a sample runs over the leaves of all ranks: `clip_per_sample_` says how.
    owned : nesting of bools or dict of str to bool, optional
        Which leaves count in the norm of a sample: `clip_per_sample_` says how.

    Returns
    -------
    clipped : nesting of arrays
        Like `grads`, with new leaves; or `out`.
    ClipReport
        ``norms`` and ``scales`` by sample, as `clip_per_sample_` orders them, and ``sensitivity``.

    Raises
    ------
    NonFiniteGradientError, TypeError, ValueError
        As `clip_per_sample_`; or `out` does not match. Nothing is written then.

    Examples
    --------
    >>> import numpy as np, gradclip
    >>> clipped, report = gradclip.clip_per_sample(np.array([[3.0, 4.0], [0.3, 0.4]]), 1.0)
    >>> clipped
    array([[0.6, 0.8],
           [0.3, 0.4]])
    """
    return functional(grads, out, norm, _PerSample, max_norm, normalize, groups, mask)


@spelled_out_for_units
def per_sample_clip_sum(
    grads: Any,
    max_norm: ByLeaf | PrivateQuantile,
    *,
    out: Any = None,
    normalize: bool = False,
    groups: Names | None = None,
    mask: Any = None,
    **norm: Unpack[UnitOptions],
) -> tuple[Any, ClipReport]:
    r"""Clip every sample as `clip_per_sample` does and sum over the batch, without writing the clipped samples.

    .. math:: \sum_i g_i \cdot \min\left(1, \frac{c}{\lVert g_i \rVert}\right)

    Parameters
    ----------
    grads : array or nesting of arrays
        Leaves of shape ``(batch, ...)``, as for `clip_per_sample_`. Only read, and may be read-only.
    max_norm : float, nesting of floats, dict of str to float or PrivateQuantile
        The threshold >= 0 of each sample, or the rule of `gradclip.thresholds` that gives it. A nesting like `grads`, or
        patterns as for `clip_by_norm_`, give each sample a norm and a threshold in each leaf.
    out : nesting of arrays, optional
        Where the sums go: leaves of the shapes without the batch, of any float dtype; no memory of `grads`. Without it,
        new leaves are made.
    normalize : bool, default False
        Bring every sample to `max_norm`, up or down: the factor is max_norm / (norm + eps), and a zero stays zero.
    groups : nesting of str or dict of str to str, optional
        Names of groups of leaves, as for `clip_by_norm_`: each sample has a norm and a threshold in each group.
    mask : array of bool, optional
        One for each sample. False: a padded one, which is neither measured nor counted, nor added. It may hold NaN.
    ord : float, default 2
        Which norm: any p > 0, or ``inf``.
    eps : float, default 0
        Added to the norm of each sample; 1e-6 gives PyTorch's factor.
    nonfinite : {"raise", "skip", "zero", "propagate"}, default "raise"
        What to do about samples with NaN or Inf: raise an error, return zeros (in `out` too), leave them out of the sum,
        or follow IEEE arithmetic.
    grad_scale : float, default 1
        The gradients hold the true gradient times this. Norms and threshold speak of the true gradient, and whatever is
        returned is unscaled.
    strict : bool, default False
        Changes nothing: the bound always holds exactly.
    comm : mpi4py communicator or torch.distributed process group, optional
        The norm of a sample runs over the leaves of all ranks: `clip_per_sample_` says how.
    owned : nesting of bools or dict of str to bool, optional
        Which leaves count in the norm of a sample. Only with `comm`: what nobody counts would have no bound.

    Returns
    -------
    sums : nesting of arrays
        Like `grads` without the first axis, in the leaves' dtypes or those of `out`.
    ClipReport
        ``norms`` and ``scales`` by sample, as `clip_per_sample_` orders them, and ``sensitivity``.

    Raises
    ------
    NonFiniteGradientError, TypeError, ValueError
        As `clip_per_sample_`; or `out` does not match. Nothing is written then.

    Notes
    -----
    What a sample adds, rounded to the dtype of the sums, has a norm of at most `max_norm` in exact arithmetic:
    factors, those of `normalize` too, leave room for the rounding (half an ulp of the dtype, so 0.4 % for bfloat16;
    float64 sums by `out` need none to speak of). A sample whose norm is at most `max_norm` is added as it is, if the sums
    hold its dtype and there is nothing to unscale. Norms of orders other than 1, 2 and inf (complex: 2) are not decided
    exactly: a sample as close to the threshold as that room is clipped. These contributions are added in twice
    float64's precision, in a range that none of their sums leaves, and the total is rounded once: to Inf only where it
    lies beyond the dtype. Where the sums' dtype cannot hold an element of a sample (float16 sums of float32 samples, or
    a `grad_scale` below 1), the sample is scaled until it can, whatever its norm, and counts as clipped: an Inf would
    be above every bound. Without a bound (`max_norm=inf`) it becomes Inf. So the sensitivity of the sum before that
    last rounding is at most ``report.sensitivity``; the method is that of [1]_.

    Memory beyond inputs and sums: a few hundred bytes per leaf and sample, and 0.1 % of the inputs while these are read.

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
    return functional(grads, out, norm, _SampleSum, max_norm, normalize, groups, mask)


class _BySample(Request):
    """What requests that clip samples share: which norms a sample has, and what a private rule is told.

    A sample has a norm over all leaves or, by part, one over each leaf or each group of leaves."""

    needs_all = False  # whether every leaf has to be counted somewhere
    batch: int
    groups: Groups | None
    parts: Sequence[Sequence[int]]  # indices of the leaves that share a norm
    limits: Sequence[float]  # the threshold of each part

    def __init__(self, norm: UnitOptions, max_norm: Any, normalize: bool, names: Any, mask: Any) -> None:
        normalize, self.rule = flag("normalize", normalize), None
        if isinstance(max_norm, PrivateQuantile):
            if normalize or names is not None:
                raise TypeError(
                    "max_norm: PrivateQuantile counts samples that are clipped; with normalize or groups, give numbers"
                )
            self.rule, max_norm = max_norm, max_norm.threshold
        elif isinstance(max_norm, Threshold):
            raise TypeError("max_norm: a threshold object sees the global norm; clip samples with a number")
        elif not isinstance(max_norm, Mapping) and not is_nesting(max_norm):
            max_norm = number("max_norm", max_norm, 0.0)
            if normalize and max_norm == math.inf:
                raise ValueError("max_norm must be finite: normalize brings samples to it")
        super().__init__(unit_options_of(norm), max_norm, None, NORMALIZE if normalize else CLIP)
        self.names, self.mask = names, mask

    def split(self, leaves: Leaves) -> bool:
        """Cut leaves into samples, and find out which norms and thresholds these have; returns whether one norm is over all."""
        self.batch, self.groups, max_norm = _cut(leaves), None, self.shown
        if self.names is not None:
            self.groups = Groups.of(leaves, self.names)
            self.limits = self.groups.completed(self.groups.thresholds(max_norm)).tolist()
            self.parts = [np.flatnonzero(self.groups.of_leaf == k).tolist() for k in range(self.groups.norms)]
        elif isinstance(max_norm, float):
            self.parts, self.limits = [range(leaves.count)], [max_norm]
        else:
            self.limits = thresholds_by_leaf(leaves, max_norm).tolist()
            self.parts = [[i] for i in range(leaves.count)]
        given = len(self.limits) if self.groups is None else len(self.groups.names)
        self.told = self.limits[:given]
        return self.names is None and isinstance(max_norm, float)

    def part_names(self, leaves: Leaves) -> Sequence[str]:
        """Return what other ranks know the parts of a sample by that have a threshold."""
        if self.groups is not None:
            return self.groups.names
        return [""] if isinstance(self.shown, float) else leaves.paths()

    def name_owners(self, leaves: Leaves) -> None:
        """Let units have owners, by which other ranks know them, if they are shared."""
        if self.options.shared:
            shared: Any = self.options  # whose module is not imported for a name
            shared.check_samples(leaves, self.groups is None and not isinstance(self.shown, float), self.needs_all)
            mask = None if self.mask is None else _flags(self.mask, None).tobytes()
            together = self.names is None and isinstance(self.shown, float)
            shared.also = self.names is None, together, type(self.rule).__name__, mask
            self.own(leaves)

    def own(self, leaves: Leaves) -> None:
        """Let the parts of a sample own its units, one in each leaf, and padded samples own none."""
        part = np.empty(leaves.count, np.intp)
        for k, indices in enumerate(self.parts):
            part[indices] = k
        owner = np.add.outer(part * self.batch, np.arange(self.batch))
        count = len(self.told) * self.batch
        if self.mask is not None:
            kept = _flags(self.mask, self.batch if leaves.count else None)[: self.batch]
            owner[:, ~kept] = -1
            count = len(self.told) * int(kept.sum())
        self.by_owner = self.elsewhere = True
        self.owner, self.counted = np.ascontiguousarray(owner.ravel()), count

    def measure(self, engine: Engine, read: Leaves) -> AnySums:
        options = self.options
        sums = units = engine.measure(read, options.ord, options.grad_scale, options.finite_only, norms=False)
        if self.by_owner:
            sums = units.by_owner(len(self.parts) * self.batch, self.owner)
        if self.mask is not None:
            _name_first(sums, read, self.owner)
        if options.shared:
            shared: Any = options  # whose module is not imported for a name
            blocks = shared.named(self.part_names(read), self.batch, self.told) if read.count else []
            sums = shared.join(self, engine, read, units, blocks, sums, self.batch)
        else:
            engine.settle(sums, read)
        if len(self.told) < len(self.parts):  # not those of leaves in no group
            self.norms = sums.norms()[: len(self.told) * self.batch]
        return sums

    def decide(self, engine: Engine, read: Leaves) -> tuple[ClipReport, Any]:
        report, plan = self.decided(engine, self.measure(engine, read))
        if self.rule is not None and not report.skipped:
            count, size = report.clipped_count, report.size
            if self.options.shared:
                shared: Any = self.options
                report, count, size = shared.agree(report)  # a rank without leaves counts no samples
            self.rule.update(count, size)
        bound = math.hypot(*self.limits) if len(self.limits) != 1 else self.limits[0]
        return complete(report, None if self.groups is None else self.groups.names, bound), plan

    def decided(self, engine: Engine, sums: AnySums) -> tuple[ClipReport, Any]:
        """Return what an engine decides of the sums of samples: the report and the plan."""
        return engine.decide(self, sums)


class _PerSample(_BySample):
    """Each sample of a batch to its threshold, or each part of it."""

    def prepare(self, leaves: Leaves) -> Leaves:
        alike = self.split(leaves)
        self.threshold = np.repeat(np.array(self.limits, np.float64), self.batch)
        self.by_owner = alike  # else a sample in a leaf is a unit, if there is nothing else to know
        if self.mask is not None or self.groups is not None:
            self.own(leaves)
        self.name_owners(leaves)
        return leaves


class _SampleSum(_BySample):
    """The sum of all samples, each brought to a threshold that its rounding keeps."""

    needs_all = True

    def prepare(self, leaves: Leaves) -> Leaves:
        self.samples, self.by_owner = leaves, True
        if not self.split(leaves) or self.mask is not None or self.mode is NORMALIZE:
            self.own(leaves)
        self.name_owners(leaves)
        return leaves

    def target(self, leaves: Leaves, out: Any) -> Leaves:
        to = _sums_like(leaves, out)
        if self.options.shared:
            shared: Any = self.options  # whose module is not imported for a name
            self.to, shared.strict = to, True  # so that sums are exact
            shared.inexact = not kept(self)
        return to

    def decided(self, engine: Engine, sums: AnySums) -> tuple[ClipReport, Any]:
        return engine.decide_samples(self, sums)

    def write(self, engine: Engine, plan: Any) -> None:
        engine.sum_samples(self, plan)


def _flags(mask: Any, batch: int | None) -> Flags:
    """Return the mask as an array of bools, one for each sample of a batch. batch : how many; None: any number."""
    if hasattr(mask, "__cuda_array_interface__"):
        mask = mask.get() if hasattr(mask, "get") else mask.cpu()
    flags = np.array(mask)
    if flags.dtype != np.bool_:
        raise TypeError(f"mask must hold a bool for each sample, not {flags.dtype}")
    if flags.ndim != 1 or (batch is not None and len(flags) != batch):
        raise ValueError(f"mask has shape {flags.shape}, but there are {batch} samples: it must hold a bool for each")
    return flags


def _name_first(sums: Any, leaves: Leaves, owner: Indices) -> None:
    """Let the first element that is not finite be the first one in a sample that counts, if there is one."""
    if not sums.nonfinite():
        sums.first_nonfinite = None
        return
    units, batch = sums.units, len(owner) // leaves.count
    unit = next(unit for unit in np.flatnonzero(owner >= 0).tolist() if units.nonfinite(unit))
    leaf, sample = divmod(unit, batch)
    values = numbers(leaves.brought(leaves.arrays[leaf][sample : sample + 1]))
    at = int(np.flatnonzero(~np.isfinite(values))[0])
    sums.first_leaf, sums.first_value = leaf, values.flat[at]
    sums.first_nonfinite = leaves.path(leaf), sample * values.size + at


def _cut(leaves: Leaves) -> int:
    """Cut leaves into samples; returns how many there are."""
    batch = 0
    for i, array in enumerate(leaves.arrays):
        if array.ndim == 0:
            raise ValueError(f"{leaves.path(i)}: an array without dimensions has no batch")
        if i and len(array) != batch:
            raise ValueError(f"{leaves.path(i)}: a batch of {len(array)}, but {leaves.path(0)} has one of {batch}")
        batch = len(array)
    leaves.cut([(0,)] * leaves.count)
    return batch


def _sums_like(leaves: Leaves, out: Any) -> Leaves:
    """The leaves of the sums of samples: new ones, or those of `out`."""
    if out is None:
        return Leaves([leaves.empty_like(i, a.shape[1:]) for i, a in enumerate(leaves.arrays)])
    to = leaves.counterpart(out, "out", write=True)
    leaves.check_count(len(to))
    for i, (a, b) in enumerate(zip(leaves.arrays, to.arrays, strict=True)):
        if to.is_sparse(i):
            raise TypeError(f"{leaves.path(i)}: out is sparse; the sums of samples are dense")
        if b.shape != a.shape[1:] or (a.dtype.kind == "c") != (b.dtype.kind == "c"):
            raise ValueError(
                f"{leaves.path(i)}: samples have shape {a.shape[1:]} and dtype {dtype_name(a.dtype)}, "
                f"out has {b.shape} and {dtype_name(b.dtype)}"
            )
    leaves.check_devices(to)
    to.check_overlap(leaves, False)
    return to
