"""`Schedule`: a threshold from the number of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from .._core.arguments import number, whole
from .base import Bounded


class Schedule(Bounded):
    """A rule whose threshold is a function of the step alone.

    Parameters
    ----------
    function : callable
        It is called with the number of the step (0, 1, 2, ...) and returns the threshold, >= 0; ``inf`` for no clipping.
    floor, ceiling : float, default 0 and inf
        No threshold is below `floor` or above `ceiling`.

    Raises
    ------
    TypeError
        `function` cannot be called.

    Notes
    -----
    A step whose norm is NaN or infinite is not counted. The function is not part of `state_dict`.

    Examples
    --------
    >>> from gradclip.thresholds import Schedule
    >>> rule = Schedule(lambda step: max(1.0, 4.0 - step))  # from 4 down to 1
    >>> [rule.next_threshold(norm) for norm in [2.0, 2.0, float("nan"), 2.0]]
    [4.0, 3.0, 2.0, 2.0]
    """

    def __init__(self, function: Callable[[int], float], *, floor: float = 0.0, ceiling: float = math.inf):
        if not callable(function):
            raise TypeError(f"function must be callable, not {type(function).__name__} {function!r}")
        self.function = function
        self._set_bounds(floor, ceiling)
        self._step = 0

    def _own(self, norm: float) -> float:
        """Return what the function gives for this step; an error about it names the step."""
        return number(f"the threshold of step {self._step}", self.function(self._step), 0.0)

    def _remember(self, norm: float, clipped: float) -> None:
        """Count the step."""
        self._step += 1

    def _history(self) -> dict[str, Any]:
        """Return what `state_dict` holds beyond the parameters."""
        return {"step": self._step}

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Take over a state that has the right keys; raise an error and change nothing if its values are wrong."""
        fresh = Schedule(self.function, **self._arguments(state))
        fresh._step = whole("step", state["step"], 0)
        self.__dict__.update(fresh.__dict__)

    def _shown(self) -> list[str]:
        """Return the arguments of the call that makes such a rule, as they are written."""
        return [repr(self.function), *super()._shown()]
