"""ClipReport: what one call saw and did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ._arguments import Floats


class ClipReport:
    """What a clip saw and did; immutable. ``float(report)`` is the norm.

    Attributes
    ----------
    norm : float
        Norm before clipping, of the true (unscaled) gradient; under ``nonfinite="zero"`` of its finite
        elements, otherwise NaN or Inf where an element is.
    max_norm : float
        The threshold that was used (the upper bound of `clip_by_value`, the target of `normalize`).
    scale : float
        The factor that was written, unscaling included; the smallest where leaves had their own; 1.0
        where nothing was written.
    clipped : bool
        Whether clipping changed something.
    skipped : bool
        True only under ``nonfinite="skip"`` with a non-finite element.
    nonfinite : int
        How many elements are NaN or Inf.
    first_nonfinite : tuple of (str, int) or None
        Path and flat index (C order) of the first of them.
    max_abs : float
        Largest finite magnitude, of the true gradient.
    norms, scales : numpy.ndarray
        Float64, one entry per leaf, in order; per slice, unit or sample where these have factors of their own.
    clipped_count, size : int
        How many of how many of these (`clip_by_value`: elements) were clipped.

    Examples
    --------
    >>> import numpy as np, gradclip
    >>> report = gradclip.clip_by_global_norm_([np.array([3.0, 4.0])], 1.0)
    >>> report
    ClipReport(norm=5.0, max_norm=1.0, scale=0.2, clipped=True)
    >>> float(report)
    5.0
    """

    __slots__ = ("_clipped_count", "_fill", "_max_norm", "_norms", "_plan", "_size", "_skipped", "_sums")

    def __init__(self, sums, max_norm, size, plan=None, clipped_count=0, skipped=False, norms=None):
        self._sums = sums
        self._max_norm = max_norm
        self._size = size
        self._plan = plan  # None: every factor is 1
        self._clipped_count = clipped_count
        self._skipped = skipped
        self._norms = norms  # where they were measured elsewhere

    @classmethod
    def pending(cls, fill, max_norm, norms=None):
        """A report whose numbers are on a device yet: `fill` returns the other slots, when the first is read."""
        report = cls.__new__(cls)
        report._fill, report._max_norm, report._norms = fill, max_norm, norms
        return report

    def _filled(self, name):
        if name not in ClipReport.__slots__ or name == "_fill":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        fill = self._fill
        if fill is not None:
            for slot, value in fill().items():
                setattr(self, slot, value)
            self._fill = None  # and what it holds on the device
        return getattr(self, name)

    if not TYPE_CHECKING:  # to a type checker every name would be an attribute
        __getattr__ = _filled

    @property
    def norm(self) -> float:
        return self._sums.norm()

    @property
    def max_norm(self) -> float | Any:
        return self._max_norm

    @property
    def scale(self) -> float:
        return 1.0 if self._plan is None else self._plan.smallest()

    @property
    def clipped(self) -> bool:
        return self._clipped_count > 0

    @property
    def skipped(self) -> bool:
        return self._skipped

    @property
    def nonfinite(self) -> int:
        return self._sums.nonfinite()

    @property
    def first_nonfinite(self) -> tuple[str, int] | None:
        return self._sums.first_nonfinite

    @property
    def max_abs(self) -> float:
        return self._sums.max_abs()

    @property
    def norms(self) -> Floats:
        return _read_only(self._sums.norms() if self._norms is None else self._norms)

    @property
    def clipped_count(self) -> int:
        return self._clipped_count

    @property
    def size(self) -> int:
        return self._size

    @property
    def scales(self) -> Floats:
        count = len(self.norms)
        if self._plan is not None and self._plan.count == count:
            return _read_only(self._plan.factors())
        return _read_only(np.full(count, self.scale))

    def __float__(self) -> float:
        return self.norm

    def __format__(self, spec: str) -> str:
        return format(self.norm, spec) if spec else repr(self)

    def __reduce__(self):
        found = Found(self.norm, self.norms, self.nonfinite, self.first_nonfinite, self.max_abs)
        plan = None if self._plan is None else Factors(self.scale, self.scales)
        slots = {name: getattr(self, name) for name in self.__slots__ if name != "_fill"}
        return _restore, ({**slots, "_sums": found, "_plan": plan, "_norms": None},)

    def __repr__(self) -> str:
        text = f"norm={self.norm!r}, max_norm={self.max_norm!r}, scale={self.scale!r}, clipped={self.clipped}"
        if self.nonfinite:
            text += f", nonfinite={self.nonfinite}, first_nonfinite={self.first_nonfinite}"
        if self.skipped:
            text += ", skipped=True"
        return f"ClipReport({text})"


def answer(report, out):
    """What a call returns: the report, or with `out` both. Made before the write pass, after which no call may fail."""
    return report if out is None else (out, report)


class Found:
    """What a pickled report keeps of the sums: plain values, behind the same questions."""

    def __init__(self, norm, norms, nonfinite, first_nonfinite, max_abs):
        self._values = norm, norms, nonfinite, max_abs
        self.first_nonfinite = first_nonfinite

    def norm(self):
        return self._values[0]

    def norms(self):
        return self._values[1]

    def nonfinite(self):
        return self._values[2]

    def max_abs(self):
        return self._values[3]


class Factors:
    """What a pickled report keeps of the plan."""

    def __init__(self, smallest, factors):
        self._values = smallest, factors
        self.count = len(factors)

    def smallest(self):
        return self._values[0]

    def factors(self):
        return self._values[1].copy()


def _restore(slots):
    report = ClipReport.__new__(ClipReport)
    for name, value in slots.items():
        setattr(report, name, value)
    return report


def _read_only(array):
    array.flags.writeable = False
    return array
