"""The exception and the warnings that gradclip adds to those of Python."""

from __future__ import annotations

from typing import Any


class NonFiniteGradientError(FloatingPointError):
    """An error that says where a gradient holds NaN or Inf; nothing was written.

    Clip functions raise it under ``nonfinite="raise"``, which is the default.

    Parameters
    ----------
    path : str
        Where the first leaf with such an element stands, as in ``layers/3/weight``.
    index : int
        The flat index (C order) of the first such element in that leaf.
    count : int
        How many such elements there are in all leaves together.
    value : number, optional
        The element. None if it is not known, because the leaf was measured elsewhere.

    Attributes
    ----------
    path, index, count, value
        The parameters.

    Examples
    --------
    >>> import numpy as np, gradclip
    >>> try:
    ...     gradclip.clip_by_global_norm_({"w": np.array([1.0, np.nan])}, 1.0)
    ... except gradclip.NonFiniteGradientError as error:
    ...     print(error)
    w: nan at flat index 1 (NaN or Inf in all leaves: 1); nothing was written
    """

    def __init__(self, path: str, index: int, count: int, value: Any = None) -> None:
        super().__init__(path, index, count, value)
        self.path, self.index, self.count, self.value = path, index, count, value

    def __str__(self) -> str:
        """Return the message, which names the leaf and the element."""
        value = "NaN or Inf" if self.value is None else self.value
        return f"{self.path}: {value} at flat index {self.index} (NaN or Inf in all leaves: {self.count}); nothing was written"


class FrequentClippingWarning(UserWarning):
    """A warning that most steps are clipped, so that the threshold, and not the learning rate alone, sets their length.

    See Also
    --------
    ClipMonitor : The record of a training, which gives this warning.
    """


class VanishingScaleWarning(UserWarning):
    """A warning that clipping made a gradient more than a million times smaller.

    See Also
    --------
    ClipMonitor : The record of a training, which gives this warning.
    """
