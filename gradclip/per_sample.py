"""Per-sample clipping, and the clipped sum of differentially private training (DP-SGD)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

import numpy as np

from ._core.arguments import Grads, Number, number
from ._core.call import Request, functional, in_place
from ._core.options import Options, UnitOptions, Unpack, spelled_out_for_units
from ._leaves import Leaves
from ._leaves.foreign import dtype_name
from .report import ClipReport
from .thresholds import PrivateQuantile, Threshold

if TYPE_CHECKING:
    from ._core.engine import AnySums, Engine


@spelled_out_for_units
def clip_per_sample_(grads: Any, max_norm: Number | PrivateQuantile, **norm: Unpack[UnitOptions]) -> ClipReport:
    """Scale every sample of a batch by a factor of its own so that its norm is at most `max_norm`, in place.

    Parameters
    ----------
    grads : array or nesting of arrays
        Leaves of shape ``(batch, ...)``, the same batch for all and none sparse: a sample is one index of the first
        axis, and its norm runs over all leaves.
    max_norm : float or PrivateQuantile
        The threshold >= 0 of each sample, or the rule of `gradclip.thresholds` that gives it.
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

    Returns
    -------
    ClipReport
        ``norms`` and ``scales`` by sample; ``norm`` is that of all samples together, ``scale`` the smallest factor.

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
    return in_place(grads, _PerSample(Options.of_units(norm), *_threshold(max_norm)))


@overload
def clip_per_sample(
    grads: Grads, max_norm: Number | PrivateQuantile, *, out: None = None, **norm: Unpack[UnitOptions]
) -> tuple[Grads, ClipReport]: ...
@overload
def clip_per_sample(
    grads: Any, max_norm: Number | PrivateQuantile, *, out: Grads, **norm: Unpack[UnitOptions]
) -> tuple[Grads, ClipReport]: ...
@spelled_out_for_units
def clip_per_sample(
    grads: Any, max_norm: Number | PrivateQuantile, *, out: Any = None, **norm: Unpack[UnitOptions]
) -> tuple[Any, ClipReport]:
    """Return every sample of a batch scaled so that its norm is at most `max_norm`, and the report.

    The same as `clip_per_sample_`, leaving `grads` untouched.

    Parameters
    ----------
    grads : array or nesting of arrays
        Leaves of shape ``(batch, ...)``, as for `clip_per_sample_`. Only read, and may be read-only.
    max_norm : float or PrivateQuantile
        The threshold >= 0 of each sample, or the rule of `gradclip.thresholds` that gives it.
    out : nesting of arrays, optional
        Where the results go: writable leaves of the same nesting, shapes and dtypes; may be `grads` itself. Without it,
        new leaves are made.
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

    Returns
    -------
    clipped : nesting of arrays
        Like `grads`, with new leaves; or `out`.
    ClipReport
        ``norms`` and ``scales`` by sample.

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
    return functional(grads, _PerSample(Options.of_units(norm), *_threshold(max_norm)), out)


@spelled_out_for_units
def per_sample_clip_sum(
    grads: Any, max_norm: Number | PrivateQuantile, *, out: Any = None, **norm: Unpack[UnitOptions]
) -> tuple[Any, ClipReport]:
    r"""Clip every sample as `clip_per_sample` does and sum over the batch, without writing the clipped samples.

    .. math:: \sum_i g_i \cdot \min\left(1, \frac{c}{\lVert g_i \rVert}\right)

    Parameters
    ----------
    grads : array or nesting of arrays
        Leaves of shape ``(batch, ...)``, as for `clip_per_sample_`. Only read, and may be read-only.
    max_norm : float or PrivateQuantile
        The threshold >= 0 of each sample, or the rule of `gradclip.thresholds` that gives it.
    out : nesting of arrays, optional
        Where the sums go: leaves of the shapes without the batch, of any float dtype; no memory of `grads`. Without it,
        new leaves are made.
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

    Returns
    -------
    sums : nesting of arrays
        Like `grads` without the first axis, in the leaves' dtypes or those of `out`.
    ClipReport
        ``norms`` and ``scales`` by sample.

    Raises
    ------
    NonFiniteGradientError, TypeError, ValueError
        As `clip_per_sample_`; or `out` does not match. Nothing is written then.

    Notes
    -----
    What a sample adds, rounded to the dtype of the sums, has a norm of at most `max_norm` in exact arithmetic:
    factors leave room for the rounding (half an ulp of the dtype, so 0.4 % for bfloat16; float64 sums by `out` need
    none to speak of). A sample whose norm is at most `max_norm` is added as it is, if the sums hold its dtype and
    there is nothing to unscale. Norms of orders other than 1, 2 and inf (complex: 2) are not decided exactly: a
    sample as close to the threshold as that room is clipped. These contributions are added in twice float64's
    precision, in a range that none of their sums leaves, and the total is rounded once: to Inf only where it lies beyond
    the dtype. Where the sums' dtype cannot hold an element of a sample (float16 sums of float32 samples, or a
    `grad_scale` below 1), the sample is scaled until it can, whatever its norm, and counts as clipped: an Inf would be
    above every bound. Without a bound (`max_norm=inf`) it becomes Inf. So the sensitivity of the sum before that last
    rounding is at most `max_norm`; the method is that of [1]_.

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
    return functional(grads, _SampleSum(Options.of_units(norm), *_threshold(max_norm)), out)


class _BySample(Request):
    """What requests that clip samples share: the threshold that a private rule gives, and what it is told."""

    batch: int

    def __init__(self, options: Options, threshold: float, rule: PrivateQuantile | None) -> None:
        super().__init__(options, threshold)
        self.rule = rule

    def measure(self, engine: Engine, read: Leaves) -> AnySums:
        options = self.options
        sums = engine.measure(read, options.ord, options.grad_scale, options.finite_only, norms=False).by_owner(self.batch)
        engine.settle(sums, read)
        return sums

    def decide(self, engine: Engine, read: Leaves) -> tuple[ClipReport, Any]:
        report, plan = self.decided(engine, self.measure(engine, read))
        if self.rule is not None and not report.skipped:
            self.rule.update(report.clipped_count, report.size)
        return report, plan

    def decided(self, engine: Engine, sums: AnySums) -> tuple[ClipReport, Any]:
        """Return what an engine decides of the sums of samples: the report and the plan."""
        return engine.decide(self, sums)


class _PerSample(_BySample):
    """Each sample of a batch to the same threshold."""

    def prepare(self, leaves: Leaves) -> Leaves:
        self.batch, self.by_owner = _cut(leaves), True
        self.threshold = np.full(self.batch, self.shown)
        return leaves


class _SampleSum(_BySample):
    """The sum of all samples, each brought to a threshold that its rounding keeps."""

    def prepare(self, leaves: Leaves) -> Leaves:
        self.samples, self.batch = leaves, _cut(leaves)
        return leaves

    def target(self, leaves: Leaves, out: Any) -> Leaves:
        return _sums_like(leaves, out)

    def decided(self, engine: Engine, sums: AnySums) -> tuple[ClipReport, Any]:
        return engine.decide_samples(self, sums)

    def write(self, engine: Engine, plan: Any) -> None:
        engine.sum_samples(self, plan)


def _threshold(max_norm: Any) -> tuple[float, PrivateQuantile | None]:
    """The threshold of each sample, and the rule that gives it."""
    if isinstance(max_norm, PrivateQuantile):
        return max_norm.threshold, max_norm
    if isinstance(max_norm, Threshold):
        raise TypeError("max_norm: a threshold object sees the global norm; clip samples with a number")
    return number("max_norm", max_norm, 0.0), None


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
