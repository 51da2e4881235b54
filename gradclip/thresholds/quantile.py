"""`Quantile`: a threshold from the latest norms."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from .._core.arguments import flag, number, whole
from .._core.ranked import Ranked
from .base import Bounded, finite_list


class Quantile(Bounded):
    r"""A rule whose threshold is a quantile of the latest norms: AutoClip [1]_.

    .. math:: c_t = Q_q(n_{t-w}, \dots, n_{t-1})

    where :math:`n_t` is the norm of step t before clipping, and w the window.

    Parameters
    ----------
    q : float, default 0.9
        Which quantile, between 0 and 1. It is that of `numpy.quantile` with the linear method, bit for bit.
    window : int or None, default 1000
        How many norms are remembered; None stands for all.
    warmup : int, default 0
        The threshold is ``inf`` until max(1, warmup) norms have been seen.
    include_current : bool, default False
        Whether the quantile includes the norm of this step, as it does in the paper.
    floor, ceiling : float, default 0 and inf
        No threshold is below `floor` or above `ceiling`, during the warm-up neither.

    Raises
    ------
    TypeError, ValueError
        A parameter cannot be used.

    Notes
    -----
    A step takes O(log window) time. Norms are remembered as they were before clipping, so that the threshold can rise.
    With ``q=1`` and ``include_current=True`` nothing is ever clipped.

    References
    ----------
    .. [1] P. Seetharaman, G. Wichern, B. Pardo, J. Le Roux, "AutoClip: Adaptive Gradient Clipping for
       Source Separation Networks", MLSP 2020.

    Examples
    --------
    >>> from gradclip.thresholds import Quantile
    >>> rule = Quantile(q=0.5, window=3)
    >>> [rule.next_threshold(norm) for norm in [1.0, 2.0, 9.0, 3.0, 3.0]]
    [inf, 1.0, 1.5, 2.0, 3.0]
    """

    _parameters = "q", "window", "warmup", "include_current"

    def __init__(
        self,
        q: float = 0.9,
        window: int | None = 1000,
        warmup: int = 0,
        include_current: bool = False,
        *,
        floor: float = 0.0,
        ceiling: float = math.inf,
    ):
        self.q = number("q", q, 0.0)
        if self.q > 1:
            raise ValueError(f"q must be at most 1, not {q!r}")
        self.window = None if window is None else whole("window", window, 1)
        self.warmup = whole("warmup", warmup, 0)
        self.include_current = flag("include_current", include_current)
        self._set_bounds(floor, ceiling)
        self._seen = 0
        self._norms: deque[float] = deque()  # the last `window` of them, oldest first
        self._ranked = Ranked()  # the same norms by size

    def _own(self, norm: float) -> float:
        """Return the quantile of the norms so far, of this one too if it is to be included."""
        if self.include_current and math.isfinite(norm):
            self._add(norm)
        return self._current()

    def _remember(self, norm: float, clipped: float) -> None:
        """Take a norm into the history as it was before clipping, unless that is done."""
        if not self.include_current:
            self._add(norm)

    def _current(self) -> float:
        """Return the quantile of the norms that are remembered now."""
        return math.inf if self._seen < max(1, self.warmup) else self._ranked.quantile(self.q)

    def _add(self, norm: float) -> None:
        """Add a norm, and forget the oldest if the window is full."""
        if len(self._norms) == self.window:
            self._ranked.discard(self._norms.popleft())
        self._norms.append(norm)
        self._ranked.add(norm)
        self._seen += 1

    def _history(self) -> dict[str, Any]:
        """Return what `state_dict` holds beyond the parameters."""
        return {"seen": self._seen, "norms": list(self._norms)}

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Take over a state that has the right keys; raise an error and change nothing if its values are wrong."""
        fresh = Quantile(**self._arguments(state))
        fresh._seen = whole("seen", state["seen"], 0)
        fresh._norms.extend(finite_list("norms", state["norms"]))
        fresh._ranked = Ranked(fresh._norms)
        count = fresh._seen if fresh.window is None else min(fresh._seen, fresh.window)
        if len(fresh._norms) != count:
            raise ValueError(f"norms must be {count} numbers, not {len(fresh._norms)}")
        self.__dict__.update(fresh.__dict__)
