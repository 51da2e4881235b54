"""What gradclip raises beyond Python's own errors, and what it warns of."""

from __future__ import annotations

from typing import Any


class NonFiniteGradientError(FloatingPointError):
    """A gradient holds NaN or Inf, and nothing was written.

    Attributes
    ----------
    path : str
        Where the first such leaf stands, as ``layers/3/weight``.
    index : int
        Flat index (C order) of the first such element in that leaf.
    count : int
        How many such elements all leaves hold together.
    value : number or None
        The element; None where it was measured elsewhere.

    Examples
    --------
    >>> import numpy as np, gradclip
    >>> try:
    ...     gradclip.clip_by_global_norm_({"w": np.array([1.0, np.nan])}, 1.0)
    ... except gradclip.NonFiniteGradientError as error:
    ...     print(error)
    w: nan at flat index 1 (NaN or Inf in all leaves: 1); nothing was written
    """

    def __init__(self, path: str, index: int, count: int, value: Any = None):
        super().__init__(path, index, count, value)
        self.path, self.index, self.count, self.value = path, index, count, value

    def __str__(self) -> str:
        value = "NaN or Inf" if self.value is None else self.value
        return f"{self.path}: {value} at flat index {self.index} (NaN or Inf in all leaves: {self.count}); nothing was written"


class FrequentClippingWarning(UserWarning):
    """Most steps are clipped: the threshold sets the step length, not the learning rate alone. See `ClipMonitor`."""


class VanishingScaleWarning(UserWarning):
    """Clipping made a gradient more than a million times smaller. See `ClipMonitor`."""
