"""The two halves of clipping apart: measure here, merge anywhere, apply there."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from ._core.arguments import Floats, Grads, Number, flag, number
from ._core.call import Request, functional, in_place, measured, options_of, total_threshold
from ._core.dyadic import KEPT, dyadic, root
from ._core.options import NormOptions, Options, Owned, Unpack, spelled_out
from ._cpu.exact import sums_of
from ._cpu.plan import StandardState
from ._cpu.sums import Sums
from .report import ClipReport
from .thresholds import Threshold

if TYPE_CHECKING:
    from ._core.engine import AnySums, Engine
    from ._leaves import Leaves


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Measure:
    """What one read pass found. ``a + b`` and ``sum(measures)`` give the measure of the union.

    The sum behind the norm is added without rounding, so that merging in any order and grouping gives the same
    norm, bit for bit. A Measure can be pickled and is small: any engine that reduces Python objects can
    clip by a global norm.

    Attributes
    ----------
    norm : float
        Norm of the finite elements, of the true (unscaled) gradient.
    exact : bool
        Whether `norm` is certainly the exact norm, correctly rounded.
    norms : numpy.ndarray or None
        Float64, the norms of the leaves; None if they were not kept, here or in a part.
    max_abs : float
        Largest finite magnitude, of the true gradient.
    size : int
        Number of elements.
    nonfinite : int
        How many elements are NaN or Inf.
    first_nonfinite : tuple of (str, int) or None
        Path and flat index of the first of them.
    ord : float
        Which norm: p > 0 or ``inf``.
    grad_scale : float
        What the measured gradients were scaled by.

    Examples
    --------
    >>> import numpy as np, gradclip
    >>> parts = [gradclip.measure(np.array([3.0])), gradclip.measure(np.array([4.0]))]
    >>> sum(parts).norm
    5.0
    """

    ord: float
    grad_scale: float
    size: int
    max_abs: float
    # What `_by_leaf` returns, or its first row if nothing is NaN or Inf; or the two `_parts` that were merged; or none.
    _parts: tuple[Any, ...]
    first_nonfinite: tuple[str, int] | None
    _nans: int
    _infs: int
    _error: Fraction | float  # how far the sum may be from the exact one; inf: its terms are rounded
    _sum: int  # what `power_sum` returns: _sum * 2**_exponent
    _exponent: int
    _owned: bool = False  # whether `owned` said, here or in a part, which leaves are counted

    @property
    def nonfinite(self) -> int:
        """How many elements are NaN or Inf."""
        return self._nans + self._infs

    @property
    def norm(self) -> float:
        """Norm of the finite elements, of the true (unscaled) gradient."""
        if self.ord not in (1.0, 2.0, math.inf):
            return self.sums(True).norm()
        return self._rounded(self.power_sum())

    @property
    def exact(self) -> bool:
        """Whether `norm` is certainly the exact norm, correctly rounded.

        Where a sum does not tell on which side of the middle between two float64 its norm lies, `measure` reads again and sums
        exactly. Merged measures cannot read again: this is False for one in some 100,000 of them by chance, and for many of
        equal elements. It is False too where terms are rounded: for orders other than 1, 2 and ``inf``, and for the magnitudes
        of complex numbers, which other orders than 2 are made of.
        """
        if isinstance(self._error, float):
            return self._error == 0.0
        if self._error == 0:
            return True
        total = self.power_sum()
        return self._rounded(total - self._error) == self._rounded(total + self._error)

    def _rounded(self, total: Fraction) -> float:
        """The norm that has a sum behind it, correctly rounded."""
        power = 1 if self.ord == math.inf else int(self.ord)
        with StandardState():
            return root(total / Fraction(self.grad_scale) ** power, power)

    @property
    def norms(self) -> Floats | None:
        """Float64, the norms of the leaves; None if they were not kept, here or in a part."""
        if not self._parts:
            return None
        found = self._joined()
        norms: Floats = found if found.ndim == 1 else found[0]
        norms.flags.writeable = False
        return norms

    def _by_leaf(self) -> Floats | None:
        """Return float64 of shape (3, leaves): the norms of the finite elements, and how many are NaN and Inf.

        None if that was not kept, here or in a part."""
        return _with_counts(self._joined()) if self._parts else None

    def _joined(self) -> Floats:
        """Join the parts, which there are, to one array."""
        if len(self._parts) == 2:
            parts = _in_order(self._parts)
            if self.nonfinite:
                parts = [_with_counts(part) for part in parts]
            object.__setattr__(self, "_parts", (np.concatenate(parts, axis=-1),))
        joined: Floats = self._parts[0]
        return joined

    def __reduce__(self) -> tuple[type[Measure], tuple[Any, ...]]:
        joined = (self._joined(),) if self._parts else ()  # pairs of pairs of thousands of them would be too deep to pickle
        return Measure, tuple(joined if f.name == "_parts" else getattr(self, f.name) for f in fields(self))

    def __repr__(self) -> str:
        text = f"norm={self.norm!r}, ord={self.ord:g}, size={self.size}, max_abs={self.max_abs!r}"
        if self.grad_scale != 1.0:
            text += f", grad_scale={self.grad_scale!r}"
        if self.nonfinite:
            text += f", nonfinite={self.nonfinite}, first_nonfinite={self.first_nonfinite}"
        return f"Measure({text})"

    def power_sum(self) -> Fraction:
        """Return the sum behind the norm: of the powers of the stored, finite magnitudes, or their maximum.

        Returns
        -------
        fractions.Fraction
            The norm to the power ``ord`` of the stored gradient, which is the true one times ``grad_scale``; for ``ord=inf``
            the norm itself.
        """
        return Fraction(self._sum) * Fraction(2) ** self._exponent

    def __add__(self, other: Measure) -> Measure:
        if not isinstance(other, Measure):
            return NotImplemented
        for name in ("ord", "grad_scale"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ValueError(f"measures of different {name} cannot be merged: {mine:g} and {theirs:g}")
        join = max if self.ord == math.inf else operator.add
        exponent = min(self._exponent, other._exponent)
        if self.ord not in (1.0, 2.0, math.inf):  # powers span more bits than memory has
            exponent = max([exponent, *(m._exponent + m._sum.bit_length() - KEPT for m in (self, other) if m._sum)])
        mine, theirs = self._in_units_of(exponent), other._in_units_of(exponent)
        return Measure(
            self.ord,
            self.grad_scale,
            self.size + other.size,
            max(self.max_abs, other.max_abs),
            # not joined at each step, which would make sums quadratic
            (self._parts, other._parts) if self._parts and other._parts else (),
            self.first_nonfinite or other.first_nonfinite,
            self._nans + other._nans,
            self._infs + other._infs,
            self._error + other._error,
            *dyadic(Fraction(join(mine, theirs)), exponent),
            self._owned or other._owned,
        )

    def _in_units_of(self, exponent: int) -> int:
        shift = self._exponent - exponent
        return self._sum << shift if shift >= 0 else self._sum >> min(-shift, self._sum.bit_length())

    def __radd__(self, other: int) -> Measure:
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def sums(self, finite_only: bool = False) -> Sums:
        """Return this as the sums of a read pass, which decisions are made of.

        Parameters
        ----------
        finite_only : bool, default False
            Whether their norm leaves NaN and Inf out.

        Returns
        -------
        Sums
            What the engine of the host would have found.
        """
        found = self._nans, self._infs, self.first_nonfinite
        sums = sums_of(self._sum, self._exponent, self.ord, self.grad_scale, finite_only, self.max_abs, found)
        if self._error == 0:
            sums.exact_total = self._sum, self._exponent
        return sums


def _with_counts(part: Floats) -> Floats:
    """Return a part with rows of the NaN and Inf, which are 0 if it had none."""
    return part if part.ndim == 2 else np.stack([part, np.zeros(len(part)), np.zeros(len(part))])


def _in_order(parts: tuple[Any, ...]) -> list[Floats]:
    """The arrays at the leaves of pairs of pairs, from left to right, however deep."""
    found: list[Floats] = []
    left = [parts]
    while left:
        parts = left.pop()
        if len(parts) == 2:
            left += reversed(parts)
        else:
            found += parts
    return found


def measure(grads: Any, *, ord: float = 2, grad_scale: float = 1.0, owned: Owned | None = None, norms: bool = True) -> Measure:
    """Read every leaf once: norm, largest magnitude, NaN and Inf. Nothing is written or raised.

    Parameters
    ----------
    grads : array or nesting of arrays
        As for `clip_by_global_norm_`.
    ord : float, default 2
        Which norm: any p > 0, or ``inf``.
    grad_scale : float, default 1
        The gradients hold the true gradient times this.
    owned : nesting of bools or dict of str to bool, optional
        Which leaves the norm runs over, as in `clip_by_global_norm_`. Of the others only NaN, Inf, the largest magnitude and
        the size are measured.
    norms : bool, default True
        Whether to keep the norms of the leaves. Without them a Measure stays below 1 KiB, however many are merged.

    Returns
    -------
    Measure
        The norm, the norms of the leaves, the largest magnitude, and how many elements are NaN or Inf and where the first is.

    Examples
    --------
    >>> import numpy as np, gradclip
    >>> found = gradclip.measure([np.array([3.0, np.nan]), np.array([-4.0])])
    >>> found.norm, found.max_abs, found.nonfinite, found.first_nonfinite
    (5.0, 4.0, 1, ('0', 1))
    """
    options, norms = Options(ord=ord, grad_scale=grad_scale, nonfinite="zero"), flag("norms", norms)
    if owned is None:
        sums, rounded = measured(grads, options)
        total = sums.scaled()
    else:
        from ._ranks.shared import measured_owned

        sums, total, rounded = measured_owned(grads, options, owned)
    nans, infs = sums.parts()
    error = (
        math.inf if rounded else 0.0 if options.ord == math.inf else total[0] * Fraction(2) ** total[1] * Fraction(sums.error)
    )
    return Measure(
        options.ord,
        options.grad_scale,
        sums.size,
        sums.max_abs(),
        (_found_by_leaf(sums),) if norms else (),
        sums.first_nonfinite,
        nans,
        infs,
        error,
        *dyadic(*total),
        owned is not None,
    )


def _found_by_leaf(sums: AnySums) -> Floats:
    """Return the norms of leaves or, if something is NaN or Inf, what `Measure._by_leaf` returns."""
    norms = sums.norms()
    if not sums.nonfinite():
        return norms
    return np.concatenate([[norms], np.transpose([sums.parts(i) for i in range(len(norms))])])


@spelled_out
def apply_clip_(
    grads: Any, measure: Measure | Literal[0], max_norm: Number | Threshold, **norm: Unpack[NormOptions]
) -> ClipReport:
    """The second half of `clip_by_global_norm_`: scale by a norm measured before, elsewhere or merged.

    Parameters
    ----------
    grads : array or nesting of arrays
        Written in place: leaves as for `clip_by_global_norm_`.
    measure : Measure
        Of `grads`, or of a union that `grads` is part of. To a type checker ``sum(measures)`` may be the 0 that no
        measures at all give; given here, it is a TypeError.
    max_norm : float or Threshold
        The threshold >= 0, or a rule of `gradclip.thresholds` that gives it.
    ord : float, optional
        That of the measure, which is taken without it; another is a ValueError.
    eps : float, default 0
        Added to the norm; 1e-6 gives PyTorch's factor.
    nonfinite : {"raise", "skip", "zero", "propagate"}, default "raise"
        What to do about NaN and Inf: raise an error, write nothing, make them 0 and clip the rest, or follow IEEE
        arithmetic.
    grad_scale : float, optional
        That of the measure, which is taken without it; another is a ValueError.
    strict : bool, default False
        Guarantee, in exact arithmetic, that the norm of the union is at most `max_norm` once each of its parts has been
        clipped so. For orders other than 1, 2 and ``inf``, and for what it costs, see `clip_by_global_norm_`.
    skip_above : float or Threshold, optional
        Leave the step out if its norm is above this: `clip_by_global_norm_` says how.
    comm : mpi4py communicator or torch.distributed process group, optional
        The norm is that of the measures of all ranks together.
    owned : nesting of bools or dict of str to bool, optional
        Which leaves the measure counts, as it was given to `measure`: only their norm is held by `strict`, which then needs
        this. Without `strict` it changes nothing. It is a TypeError if `measure` was not given one.

    Returns
    -------
    ClipReport
        Its norm is that of the measure.

    Raises
    ------
    NonFiniteGradientError, TypeError, ValueError
        As `clip_by_global_norm_`, the NaN and Inf being those that the measure counts; `measure` is no Measure, or was made
        with another ``ord`` or ``grad_scale`` than given here.

    Examples
    --------
    >>> import numpy as np, gradclip
    >>> here, there = np.array([3.0]), np.array([4.0])
    >>> both = gradclip.measure(here) + gradclip.measure(there)
    >>> gradclip.apply_clip_(here, both, 1.0).scale, here
    (0.2, array([0.6]))
    """
    return in_place(grads, norm, _application, measure, max_norm)


@overload
def apply_clip(
    grads: Grads, measure: Measure | Literal[0], max_norm: Number | Threshold, *, out: None = None, **norm: Unpack[NormOptions]
) -> tuple[Grads, ClipReport]: ...
@overload
def apply_clip(
    grads: Any, measure: Measure | Literal[0], max_norm: Number | Threshold, *, out: Grads, **norm: Unpack[NormOptions]
) -> tuple[Grads, ClipReport]: ...
@spelled_out
def apply_clip(
    grads: Any, measure: Measure | Literal[0], max_norm: Number | Threshold, *, out: Any = None, **norm: Unpack[NormOptions]
) -> tuple[Any, ClipReport]:
    """Return leaves scaled by a norm that was measured before, elsewhere or merged, and the report.

    The same as `apply_clip_`, leaving `grads` untouched.

    Parameters
    ----------
    grads : array or nesting of arrays
        Leaves as for `clip_by_global_norm_`. Only read, and may be read-only.
    measure : Measure
        Of `grads`, or of a union that `grads` is part of.
    max_norm : float or Threshold
        The threshold >= 0, or a rule of `gradclip.thresholds` that gives it.
    out : nesting of arrays, optional
        Where the results go: writable leaves of the same nesting and shapes; may be `grads` itself. A leaf of another real
        dtype, which may share no memory with `grads`, gets every element rounded once to that dtype; a number beyond its
        range becomes Inf, or with `strict` the factor is shrunk until none is. Without `out`, new leaves are made.
    ord : float, optional
        That of the measure, which is taken without it; another is a ValueError.
    eps : float, default 0
        Added to the norm; 1e-6 gives PyTorch's factor.
    nonfinite : {"raise", "skip", "zero", "propagate"}, default "raise"
        What to do about NaN and Inf: raise an error, clip nothing (new leaves are copies then, and `out` is not written),
        make them 0 and clip the rest, or follow IEEE arithmetic.
    grad_scale : float, optional
        That of the measure, which is taken without it; another is a ValueError.
    strict : bool, default False
        Guarantee, in exact arithmetic, that the norm of the union is at most `max_norm` once each of its parts has been
        clipped so. For orders other than 1, 2 and ``inf``, and for what it costs, see `clip_by_global_norm_`.
    skip_above : float or Threshold, optional
        Leave the step out if its norm is above this: `clip_by_global_norm_` says how. New leaves are copies then, and `out`
        is not written.
    comm : mpi4py communicator or torch.distributed process group, optional
        The norm is that of the measures of all ranks together.
    owned : nesting of bools or dict of str to bool, optional
        Which leaves the measure counts, as it was given to `measure`: only their norm is held by `strict`, which then needs
        this. Without `strict` it changes nothing. It is a TypeError if `measure` was not given one.

    Returns
    -------
    clipped : nesting of arrays
        Like `grads`, with new leaves; or `out`.
    ClipReport
        Its norm is that of the measure.

    Raises
    ------
    NonFiniteGradientError, TypeError, ValueError
        As `apply_clip_`; or `out` does not match. Nothing is written then.

    Examples
    --------
    >>> import numpy as np, gradclip
    >>> grad = np.array([3.0, 4.0])
    >>> gradclip.apply_clip(grad, gradclip.measure(grad), 1.0)[0]
    array([0.6, 0.8])
    """
    return functional(grads, out, norm, _application, measure, max_norm)


def _application(norm: Any, measure: Measure | Literal[0], max_norm: Number | Threshold) -> _Application:
    """The request of `apply_clip_` and `apply_clip`, after a check of the arguments."""
    if not isinstance(measure, Measure):
        raise TypeError(f"measure must be a Measure, not {type(measure).__name__}")
    own = {"ord": measure.ord, "grad_scale": measure.grad_scale}
    for name, value in own.items():
        if name in norm and number(name, norm[name]) != value:
            raise ValueError(f"{name} is {norm[name]!r} here, but {value!r} in the measure")
    if norm.get("owned") is not None and not measure._owned:
        raise TypeError("owned is for what is measured; give it to measure")
    norm.update(own)
    request = _Application(options_of(norm), total_threshold(max_norm))
    if request.options.strict and measure._owned and norm.get("owned") is None:
        raise TypeError(
            "strict: the measure counts only leaves that are owned; give owned here as to measure, or True if all leaves count"
        )
    request.whole, request.norms, request.elsewhere = measure, measure.norms, True
    found = measure._by_leaf() if measure.nonfinite and not request.options.finite_only else None
    if found is not None:
        norms, nans, infs = found
        request.norms = np.where(nans > 0, math.nan, np.where(infs > 0, math.inf, norms))
    return request


class _Application(Request):
    """All leaves to a threshold of the norm of a Measure, which they are a part of."""

    whole: Measure

    def measure(self, engine: Engine, read: Leaves) -> Sums:
        options, whole = self.options, self.whole
        told = whole._by_leaf()
        read.measured = False if told is None else told  # leaf by leaf
        if self.shared:
            shared: Any = options  # whose module is not imported for a name
            self.partial = True
            sums: Sums = shared.apply(self, engine, read, whole)
            return sums
        with StandardState():
            if options.strict and (options.ord != math.inf or self.to.casts):
                found: Any = super().measure(engine, read)  # on the host, which decides
                self._take_share(found)
            return whole.sums(options.finite_only)

    def _take_share(self, found: Sums) -> None:
        """Find out how much of the Measure belongs to the leaves: `strict` bounds that.

        found : what was measured of them
        """
        self.found, whole, ord = found, self.whole, self.options.ord
        if ord == math.inf:
            return
        if ord not in (1.0, 2.0):
            self.share = found.norm() / whole.norm if whole.norm else 1
            return
        total = whole.power_sum()
        self.partial = found.exact() != total or found.size != whole.size  # else these are all leaves that were measured
        self.share = found.exact() / total if total else 1
