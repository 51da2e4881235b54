"""`ClipReport`, which tells what one call measured and did."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ._core.arguments import Floats

if TYPE_CHECKING:
    from typing import Protocol

    class Measured(Protocol):
        """The sums of an engine, as far as a report uses them."""

        @property
        def first_nonfinite(self) -> tuple[str, int] | None:
            """Path and flat index of the first NaN or Inf, None if there is none."""

        def norm(self) -> float:
            """Return the norm of all leaves together."""

        def norms(self) -> Floats:
            """Return the norm of each unit."""

        def nonfinite(self) -> int:
            """Return how many elements are NaN or Inf."""

        def max_abs(self) -> float:
            """Return the largest finite magnitude."""

        def outside(self) -> int:
            """Return how many elements lie beyond bounds that were given."""

    class Decided(Protocol):
        """The plan of an engine, as far as a report uses it."""

        @property
        def count(self) -> int:
            """How many factors there are."""

        def smallest(self) -> float:
            """Return the smallest factor."""

        def factors(self) -> Floats:
            """Return the factor of each unit, as a new array."""

else:
    Measured = Decided = Any  # a Protocol would cost time at import


class ClipReport:
    """A report of what one call measured and did.

    It cannot be changed. ``float(report)`` is the norm, and ``format`` of a report with a format code is that of the norm.
    If leaves lie on a GPU, reading an attribute waits for the GPU.

    Attributes
    ----------
    norm : float
    max_norm : float
    scale : float
    clipped : bool
    skipped : bool
    nonfinite : int
    first_nonfinite : tuple of (str, int) or None
    max_abs : float
    norms : numpy.ndarray
    scales : numpy.ndarray
    clipped_count : int
    size : int
    groups : tuple of str or None
    sensitivity : float or None

    See Also
    --------
    ClipMonitor : A record of the reports of a training.

    Examples
    --------
    >>> import numpy as np, gradclip
    >>> report = gradclip.clip_by_global_norm_([np.array([3.0, 4.0])], 1.0)
    >>> report
    ClipReport(norm=5.0, max_norm=1.0, scale=0.2, clipped=True)
    >>> float(report)
    5.0
    >>> f"{report:.2f}"
    '5.00'
    """

    __slots__ = (
        "_clipped_count",
        "_fill",
        "_groups",
        "_max_norm",
        "_norms",
        "_plan",
        "_sensitivity",
        "_size",
        "_skipped",
        "_sums",
    )

    _sums: Measured
    _max_norm: float | Any
    _size: int
    _plan: Decided | None  # None: every factor is 1
    _clipped_count: int | None  # None: elements were clipped, as many as the sums have outside
    _skipped: bool
    _norms: Floats | None  # None: they are those of the sums
    _groups: tuple[str, ...] | None  # these two are set by `complete`, and None before
    _sensitivity: float | None
    _fill: Callable[[], dict[str, Any]] | None

    def __init__(
        self,
        sums: Measured,
        max_norm: float | Any,
        size: int,
        plan: Decided | None = None,
        clipped_count: int | None = 0,
        skipped: bool = False,
        norms: Floats | None = None,
    ) -> None:
        self._sums = sums
        self._max_norm = max_norm
        self._size = size
        self._plan = plan
        self._clipped_count = clipped_count
        self._skipped = skipped
        self._norms = norms

    @classmethod
    def pending(cls, fill: Callable[[], dict[str, Any]], max_norm: float | Any, norms: Floats | None = None) -> ClipReport:
        """Return a report whose numbers are still on a device; `fill` returns the other slots when the first is read."""
        report = cls.__new__(cls)
        report._fill, report._max_norm, report._norms = fill, max_norm, norms
        return report

    def _filled(self, name: str) -> Any:
        """Return a slot that is not set yet, after the numbers of a pending report have been read from the device."""
        if name not in ClipReport.__slots__ or name == "_fill":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if name in ("_groups", "_sensitivity"):
            return None
        fill = self._fill
        if fill is not None:
            for slot, value in fill().items():
                setattr(self, slot, value)
            self._fill = None  # which frees what it holds on the device
        return getattr(self, name)

    if not TYPE_CHECKING:  # a type checker would take every name for an attribute
        __getattr__ = _filled

    @property
    def norm(self) -> float:
        """The norm of all leaves together before clipping, of the gradient divided by `grad_scale`.

        Under ``nonfinite="zero"`` it is the norm of the finite elements. Otherwise it is NaN or Inf if an element is.
        """
        return self._sums.norm()

    @property
    def max_norm(self) -> float | Any:
        """The threshold that was used: the upper bound of `clip_by_value`, the new norm of `normalize`."""
        return self._max_norm

    @property
    def scale(self) -> float:
        """The factor that elements were multiplied by, unscaling included.

        It is the smallest one if there were several, and 1.0 if nothing was written.
        """
        return 1.0 if self._plan is None else self._plan.smallest()

    @property
    def clipped(self) -> bool:
        """Whether clipping changed something."""
        return self.clipped_count > 0

    @property
    def skipped(self) -> bool:
        """Whether the step is to be left out: by ``nonfinite="skip"`` or because the norm is above ``skip_above``."""
        return self._skipped

    @property
    def nonfinite(self) -> int:
        """How many elements are NaN or Inf."""
        return self._sums.nonfinite()

    @property
    def first_nonfinite(self) -> tuple[str, int] | None:
        """The path of the first leaf with NaN or Inf, and the flat index (C order) of the first such element in it."""
        return self._sums.first_nonfinite

    @property
    def max_abs(self) -> float:
        """The largest finite magnitude of an element, of the gradient divided by `grad_scale`."""
        return self._sums.max_abs()

    @property
    def norms(self) -> Floats:
        """The norms before clipping, float64, one per leaf in order.

        If slices, units or samples have factors of their own, there is one norm for each of these.
        """
        return _read_only(self._sums.norms() if self._norms is None else self._norms)

    @property
    def clipped_count(self) -> int:
        """How many of the leaves, slices, units or samples in `norms` were clipped; elements in `clip_by_value`."""
        return self._sums.outside() if self._clipped_count is None else self._clipped_count

    @property
    def size(self) -> int:
        """How many leaves, slices, units or samples there are; elements in `clip_by_value`."""
        return self._size

    @property
    def scales(self) -> Floats:
        """The factors, float64, in the order of `norms`."""
        count = len(self.norms)
        if self._plan is not None and self._plan.count >= count:  # the last may be that of leaves in no group
            return _read_only(self._plan.factors()[:count])
        return _read_only(np.full(count, self.scale))

    @property
    def groups(self) -> tuple[str, ...] | None:
        """The names of the groups whose leaves share a norm, in the order of `norms`; None if there are no groups."""
        return self._groups

    @property
    def sensitivity(self) -> float | None:
        """How much one sample can change a sum of clipped samples, as a 2-norm; None if samples were not clipped.

        It is the square root of the sum of the squared thresholds of one sample, so the threshold itself if there is one.
        For orders above 2 of the norm, the 2-norm of a sample can be larger.
        """
        return self._sensitivity

    def __float__(self) -> float:
        """Return the norm."""
        return self.norm

    def __format__(self, spec: str) -> str:
        """Return the norm in the format `spec`, or the whole report if that is empty."""
        return format(self.norm, spec) if spec else repr(self)

    def __reduce__(self) -> tuple[Callable[[dict[str, Any]], ClipReport], tuple[dict[str, Any]]]:
        """Return what `pickle` and `copy` need: plain numbers, without the sums and the plan."""
        outside = self.clipped_count if self._clipped_count is None else 0
        found = Found(self.norm, self.norms, self.nonfinite, self.first_nonfinite, self.max_abs, outside)
        plan = None if self._plan is None else Factors(self.scale, self.scales)
        slots = {name: getattr(self, name) for name in self.__slots__ if name != "_fill"}
        return _restore, ({**slots, "_sums": found, "_plan": plan, "_norms": None},)

    def __repr__(self) -> str:
        """Return the norm, the threshold and the factor, or the elements clipped by value, and NaN or Inf if there were any."""
        text = f"norm={self.norm!r}, max_norm={self.max_norm!r}, "
        if self._clipped_count is None:  # by value: no factor belongs to it
            text += f"clipped_count={self.clipped_count} of {self.size} elements"
        else:
            text += f"scale={self.scale!r}, clipped={self.clipped}"
        if self.nonfinite:
            text += f", nonfinite={self.nonfinite}, first_nonfinite={self.first_nonfinite}"
        if self.skipped:
            text += ", skipped=True"
        return f"ClipReport({text})"


def complete(report: ClipReport, groups: tuple[str, ...] | None, sensitivity: float | None = None) -> ClipReport:
    """Return the same report, which also tells names of groups and the sensitivity."""
    report._groups, report._sensitivity = groups, sensitivity
    return report


class Found:
    """The numbers that a pickled report keeps in place of its sums; it answers the same questions."""

    def __init__(
        self,
        norm: float,
        norms: Floats,
        nonfinite: int,
        first_nonfinite: tuple[str, int] | None,
        max_abs: float,
        outside: int = 0,
    ) -> None:
        self._norm, self._norms, self._nonfinite, self._max_abs = norm, norms, nonfinite, max_abs
        self._outside, self.first_nonfinite = outside, first_nonfinite

    def norm(self) -> float:
        """Return the norm of all leaves together."""
        return self._norm

    def norms(self) -> Floats:
        """Return the norm of each unit."""
        return self._norms

    def nonfinite(self) -> int:
        """Return how many elements are NaN or Inf."""
        return self._nonfinite

    def max_abs(self) -> float:
        """Return the largest finite magnitude."""
        return self._max_abs

    def outside(self) -> int:
        """Return how many elements lie beyond bounds that were given."""
        return self._outside


class Factors:
    """The factors that a pickled report keeps in place of its plan; it answers the same questions."""

    def __init__(self, smallest: float, factors: Floats) -> None:
        self._smallest, self._factors = smallest, factors
        self.count = len(factors)

    def smallest(self) -> float:
        """Return the smallest factor."""
        return self._smallest

    def factors(self) -> Floats:
        """Return the factor of each unit, as a new array."""
        return np.array(self._factors)


def _restore(slots: dict[str, Any]) -> ClipReport:
    """Return the report that `ClipReport.__reduce__` took apart."""
    report = ClipReport.__new__(ClipReport)
    for name, value in slots.items():
        setattr(report, name, value)
    return report


def _read_only(array: Floats) -> Floats:
    """Return the same array, which can no longer be written."""
    array.flags.writeable = False
    return array
