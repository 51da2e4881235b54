"""What gradclip raises beyond Python's own errors."""

from __future__ import annotations


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

    Examples
    --------
    >>> import numpy as np, gradclip
    >>> try:
    ...     gradclip.clip_by_global_norm_({"w": np.array([1.0, np.nan])}, 1.0)
    ... except gradclip.NonFiniteGradientError as error:
    ...     print(error)
    w: NaN or Inf at flat index 1 (1 in all leaves); nothing was written
    """

    def __init__(self, path, index, count):
        super().__init__(path, index, count)
        self.path, self.index, self.count = path, index, count

    def __str__(self):
        return f"{self.path}: NaN or Inf at flat index {self.index} ({self.count} in all leaves); nothing was written"
