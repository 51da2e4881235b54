"""`Threshold`, what every rule is, and the checks that rules share."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any

from .._core.arguments import check_keys, number, real
from .standard_state import in_standard_state


class Stateful:
    """What rules have in common: parameters and a history, which go into a checkpoint."""

    _parameters: tuple[str, ...] = ()  # names of attributes that are arguments of the constructor too
    _newer: tuple[str, ...] = ()  # those that states of an earlier version lack

    def state_dict(self) -> dict[str, Any]:
        """Return the parameters and the history of this rule, for a checkpoint.

        Returns
        -------
        dict
            Only what JSON can hold: no NaN and no Inf.
        """
        parameters = {name: getattr(self, name) for name in self._parameters}
        return {"rule": type(self).__name__, **parameters, **self._history()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set the parameters and the history of this rule to those of a `state_dict`.

        The parameters given to the constructor are overwritten, as by PyTorch's optimizers and schedulers.

        Parameters
        ----------
        state : dict
            What `state_dict` of a rule of the same class returned.

        Raises
        ------
        TypeError, ValueError
            `state` is not a dict, belongs to another class, or is damaged; the message names the key. Nothing was changed.
        """
        check_state(state, type(self).__name__, self.state_dict().keys(), self._newer)
        try:
            self._restore(state)
        except (TypeError, ValueError) as error:
            raise ValueError(f"state: {error}") from None

    def _history(self) -> dict[str, Any]:
        """Return what `state_dict` holds beyond the parameters."""
        return {}

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Take over a state that has the right keys; raise an error and change nothing if its values are wrong."""

    def _shown(self) -> list[str]:
        """Return the arguments of the call that makes such a rule, as they are written."""
        return [f"{name}={getattr(self, name)!r}" for name in self._parameters]

    def __repr__(self) -> str:
        """Return the call that makes such a rule."""
        return f"{type(self).__name__}({', '.join(self._shown())})"


class Threshold(Stateful, ABC):
    """A rule that gives each step its own threshold, and can be passed as `max_norm`.

    A rule of your own is a subclass with the method `next_threshold`. If it remembers anything, it needs `state_dict` and
    `load_state_dict` too.

    See Also
    --------
    Quantile : A quantile of the latest norms (AutoClip).
    ZScore : So many standard deviations above the mean norm (ZClip).
    EMA : A multiple of the mean norm (AdaGC).
    Schedule : A function of the step.

    Examples
    --------
    >>> from gradclip.thresholds import Threshold
    >>> class HalfOfTheLast(Threshold):
    ...     last = float("inf")
    ...     def next_threshold(self, norm):
    ...         threshold, self.last = self.last / 2, norm
    ...         return threshold
    >>> rule = HalfOfTheLast()
    >>> rule.next_threshold(3.0), rule.next_threshold(8.0)
    (inf, 1.5)
    """

    def __init_subclass__(cls, **options: Any) -> None:
        """Let `next_threshold` of each subclass run in the standard floating-point state."""
        super().__init_subclass__(**options)
        own = cls.__dict__.get("next_threshold")
        if inspect.isfunction(own):
            cls.next_threshold = in_standard_state(own)  # type: ignore[method-assign]

    @abstractmethod
    def next_threshold(self, norm: float) -> float:
        """Return the threshold of this step, and remember its norm for the steps to come.

        A step whose norm is NaN or infinite is not remembered. It gets the threshold that the steps before it give.

        Parameters
        ----------
        norm : float
            The norm of this step's gradient before clipping, >= 0.

        Returns
        -------
        float
            The threshold, >= 0; ``inf`` if this step is not to be clipped.

        Raises
        ------
        TypeError, ValueError
            `norm` is not a number, or is negative. It is not remembered.
        """


class WithBounds(Stateful):
    """A rule of this library, whose thresholds lie between a floor and a ceiling."""

    floor = 0.0
    ceiling = math.inf

    def _set_bounds(self, floor: float, ceiling: float) -> None:
        """Check and set the bounds of all thresholds."""
        low, high = finite("floor", floor), number("ceiling", ceiling, 0.0)
        if low > high:
            raise ValueError(f"floor {floor!r} is above ceiling {ceiling!r}")
        self.floor, self.ceiling = low, high

    def _within(self, threshold: float) -> float:
        """Return a threshold that is brought between floor and ceiling."""
        return min(max(threshold, self.floor), self.ceiling)

    def state_dict(self) -> dict[str, Any]:
        """Return the parameters and the history of this rule, for a checkpoint.

        Returns
        -------
        dict
            Only what JSON can hold: no NaN and no Inf. A `ceiling` of ``inf`` is None.
        """
        bounds = {"floor": self.floor, "ceiling": None if self.ceiling == math.inf else self.ceiling}
        return {**super().state_dict(), **bounds}

    def _arguments(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of the constructor that a state gives; those that it lacks are the ones of this rule."""
        found = {name: state.get(name, getattr(self, name)) for name in (*self._parameters, "floor", "ceiling")}
        return {**found, "ceiling": math.inf if found["ceiling"] is None else found["ceiling"]}

    def _shown(self) -> list[str]:
        """Return the arguments of the call that makes such a rule, as they are written: bounds only where there are some."""
        bounds = [f"floor={self.floor!r}"] if self.floor else []
        bounds += [f"ceiling={self.ceiling!r}"] if self.ceiling != math.inf else []
        return super()._shown() + bounds


class Bounded(WithBounds, Threshold):
    """A rule of this library that sees the norm of each step, and remembers finite norms alone.

    A subclass says what the threshold of a step is without bounds (`_own`), and what to remember of the step (`_remember`).
    """

    _newer = "floor", "ceiling"

    def next_threshold(self, norm: float) -> float:
        """Return the threshold of this step, and remember its norm for the steps to come.

        A step whose norm is NaN or infinite is not remembered. It gets the threshold that the steps before it give.

        Parameters
        ----------
        norm : float
            The norm of this step's gradient before clipping, >= 0.

        Returns
        -------
        float
            The threshold, from `floor` to `ceiling`; ``inf`` if there is no ceiling and this step is not to be clipped.

        Raises
        ------
        TypeError, ValueError
            `norm` is not a number, or is negative. It is not remembered.
        """
        norm = checked_norm(norm)
        threshold = self._within(self._own(norm))
        if math.isfinite(norm):
            self._remember(norm, min(norm, threshold))
        return threshold

    @abstractmethod
    def _own(self, norm: float) -> float:
        """Return the threshold of this step before it is brought between floor and ceiling."""

    @abstractmethod
    def _remember(self, norm: float, clipped: float) -> None:
        """Take a finite norm into the history, as it was before clipping or as it is after."""


def number_or_rule(name: str, value: Any) -> float | Threshold:
    """Return the argument `name` as a threshold: a float that is >= 0, or the rule that gives it; raise an error otherwise."""
    return value if isinstance(value, Threshold) else number(name, value, 0.0)


def checked_norm(norm: Any) -> float:
    """Return a norm as a float that is >= 0, NaN or inf; raise an error for anything else."""
    checked = real("norm", norm)
    return number("norm", checked, 0.0) if math.isfinite(checked) else checked


def finite(name: str, value: Any) -> float:
    """Return a number of a state as a float that is >= 0 and finite; raise an error for anything else."""
    checked = number(name, value, 0.0)
    if checked == math.inf:
        raise ValueError(f"{name} must be finite")
    return checked


def finite_list(name: str, values: Any) -> list[float]:
    """Return the numbers of a state's list as floats that are >= 0 and finite; raise an error for anything else."""
    if not isinstance(values, list | tuple):
        raise TypeError(f"{name} must be a list, not {type(values).__name__}")
    return [finite(f"{name}[{i}]", value) for i, value in enumerate(values)]


def check_state(state: Any, rule: str, known: Collection[str], optional: Collection[str] = ()) -> None:
    """Raise an error unless something is a state of a rule of this name, with the keys `known` but perhaps `optional` ones."""
    if not isinstance(state, Mapping):
        raise TypeError(f"state must be a dict, not {type(state).__name__}")
    if state.get("rule") != rule:
        raise ValueError(f"state: rule must be {rule!r}, not {state.get('rule')!r}")
    check_keys("state", state, known, optional)
