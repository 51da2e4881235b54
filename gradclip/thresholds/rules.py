"""Rules that give each step of a training a threshold of its own."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Literal

from .._core.arguments import flag, number, real, whole
from .._core.ranked import Ranked
from .standard_state import in_standard_state


class Threshold(ABC):
    """A rule that gives each step its own threshold, and can be passed as `max_norm`.

    A rule of your own is a subclass with the method `next_threshold`. If it remembers anything, it needs `state_dict` and
    `load_state_dict` too.

    See Also
    --------
    Quantile : A quantile of the latest norms (AutoClip).
    ZScore : So many standard deviations above the mean norm (ZClip).
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

    _parameters: tuple[str, ...] = ()  # names of attributes that are arguments of the constructor too

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
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a dict, not {type(state).__name__}")
        rule = type(self).__name__
        if state.get("rule") != rule:
            raise ValueError(f"state: rule must be {rule!r}, not {state.get('rule')!r}")
        known = self.state_dict().keys()
        for key in [*known, *state]:
            if key not in state or key not in known:
                raise ValueError(f"state: {key} is {'missing' if key in known else 'unknown'}")
        try:
            self._restore(state)
        except (TypeError, ValueError) as error:
            raise ValueError(f"state: {error}") from None

    def _history(self) -> dict[str, Any]:
        """Return what `state_dict` holds beyond the parameters."""
        return {}

    def _restore(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Take over a state that has the right keys; raise an error and change nothing if its values are wrong."""

    def __repr__(self) -> str:
        """Return the call that makes such a rule."""
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self._parameters)})"


class Quantile(Threshold):
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

    def __init__(self, q: float = 0.9, window: int | None = 1000, warmup: int = 0, include_current: bool = False):
        self.q = number("q", q, 0.0)
        if self.q > 1:
            raise ValueError(f"q must be at most 1, not {q!r}")
        self.window = None if window is None else whole("window", window, 1)
        self.warmup = whole("warmup", warmup, 0)
        self.include_current = flag("include_current", include_current)
        self._seen = 0
        self._norms: deque[float] = deque()  # the last `window` of them, oldest first
        self._ranked = Ranked()  # the same norms by size

    def next_threshold(self, norm: float) -> float:
        """Return the quantile of the norms so far, and remember this one.

        Parameters
        ----------
        norm : float
            The norm of this step's gradient before clipping, >= 0.

        Returns
        -------
        float
            The threshold, >= 0; ``inf`` during the warm-up.

        Raises
        ------
        TypeError, ValueError
            `norm` is not a number, or is negative. It is not remembered.
        """
        norm = _checked(norm)
        if not math.isfinite(norm):
            return self._current()
        if self.include_current:
            self._remember(norm)
            return self._current()
        threshold = self._current()
        self._remember(norm)
        return threshold

    def _current(self) -> float:
        """Return the quantile of the norms that are remembered now."""
        return math.inf if self._seen < max(1, self.warmup) else self._ranked.quantile(self.q)

    def _remember(self, norm: float) -> None:
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
        fresh = Quantile(**{name: state[name] for name in self._parameters})
        fresh._seen = whole("seen", state["seen"], 0)
        fresh._norms.extend(_finite_list("norms", state["norms"]))
        fresh._ranked = Ranked(fresh._norms)
        count = fresh._seen if fresh.window is None else min(fresh._seen, fresh.window)
        if len(fresh._norms) != count:
            raise ValueError(f"norms must be {count} numbers, not {len(fresh._norms)}")
        self.__dict__.update(fresh.__dict__)


class ZScore(Threshold):
    r"""A rule that clips norms too many standard deviations above the running mean: ZClip [1]_.

    Such a norm is called a spike. Its threshold is

    .. math:: c_t = \mu + \frac{z^2}{z_t} \sigma \quad\text{where}\quad z_t = \frac{n_t - \mu}{\sigma} > z

    Every other norm has the threshold :math:`c_t = \mu + z \sigma`, which does not clip it. After the step the mean and the
    variance are updated by the norm after clipping, :math:`x_t = \min(n_t, c_t)`:

    .. math:: \sigma^2 \leftarrow \alpha \sigma^2 + (1 - \alpha) (x_t - \mu)^2, \quad
              \mu \leftarrow \alpha \mu + (1 - \alpha) x_t

    Parameters
    ----------
    z : float, default 2.5
        A norm is a spike if it lies more than `z` standard deviations above the mean; positive and finite.
    alpha : float, default 0.97
        The weight of the past, >= 0 and below 1: about 1 / (1 - alpha) steps are remembered.
    warmup : int, default 25
        The threshold is ``inf`` for the first max(1, warmup) norms. Their mean and their population variance are the first
        :math:`\mu` and :math:`\sigma^2`.
    mode : {"reciprocal", "mean"}, default "reciprocal"
        "reciprocal" gives a spike the threshold above, which is the lower the higher the spike is. "mean" gives it the mean.

    Raises
    ------
    TypeError, ValueError
        A parameter cannot be used.

    Notes
    -----
    The variance is taken around the mean before this step. Nothing is added to the standard deviation: if it is 0, every norm
    above the mean is clipped to the mean. With a warm-up of fewer than two norms it is 0 at first.

    References
    ----------
    .. [1] A. Kumar, L. Owen, N. R. Chowdhury, F. Güra, "ZClip: Adaptive Spike Mitigation for LLM
       Pre-Training", arXiv:2504.02507, 2025.

    Examples
    --------
    >>> from gradclip.thresholds import ZScore
    >>> rule = ZScore(z=2.0, alpha=0.5, warmup=2)
    >>> [rule.next_threshold(norm) for norm in [1.0, 3.0, 10.0]]  # mean 2, deviation 1: the last is 8 above
    [inf, inf, 2.5]
    """

    _parameters = "z", "alpha", "warmup", "mode"

    def __init__(
        self, z: float = 2.5, alpha: float = 0.97, warmup: int = 25, mode: Literal["reciprocal", "mean"] = "reciprocal"
    ):
        self.z = number("z", z, 0.0)
        if not 0 < self.z < math.inf:
            raise ValueError(f"z must be positive and finite, not {z!r}")
        self.alpha = number("alpha", alpha, 0.0)
        if self.alpha >= 1:
            raise ValueError(f"alpha must be below 1, not {alpha!r}")
        self.warmup = whole("warmup", warmup, 0)
        if mode not in ("reciprocal", "mean"):
            raise ValueError(f"mode must be 'reciprocal' or 'mean', not {mode!r}")
        self.mode = mode
        self._norms: list[float] = []  # those of the warm-up, empty after it
        self._mean: float | None = None  # None during the warm-up
        self._std = 0.0

    def next_threshold(self, norm: float) -> float:
        """Return the threshold of this step, and update the mean and the variance.

        Parameters
        ----------
        norm : float
            The norm of this step's gradient before clipping, >= 0.

        Returns
        -------
        float
            The threshold, >= 0; ``inf`` during the warm-up.

        Raises
        ------
        TypeError, ValueError
            `norm` is not a number, or is negative. It is not remembered.
        """
        norm = _checked(norm)
        if self._mean is None:
            if math.isfinite(norm):
                self._norms.append(norm)
                if len(self._norms) >= self.warmup:
                    self._mean, self._std = _mean_and_std(self._norms)
                    self._norms = []
            return math.inf
        margin = self.z * self._std
        threshold = self._mean + margin
        if not math.isfinite(norm):
            return threshold
        if norm > threshold:  # z / z_t is margin / (norm - mean), which overflows for no norm
            threshold = self._mean if self.mode == "mean" else self._mean + margin * (margin / (norm - self._mean))
        step = min(norm, threshold) - self._mean
        # Not by the variance: squares could overflow or vanish. And the mean of equal norms stays exactly that norm.
        self._std = math.hypot(math.sqrt(self.alpha) * self._std, math.sqrt(1 - self.alpha) * step)
        self._mean += (1 - self.alpha) * step
        return threshold

    def _history(self) -> dict[str, Any]:
        """Return what `state_dict` holds beyond the parameters."""
        return {"norms": list(self._norms), "mean": self._mean, "std": self._std}

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Take over a state that has the right keys; raise an error and change nothing if its values are wrong."""
        fresh = ZScore(**{name: state[name] for name in self._parameters})
        fresh._norms = _finite_list("norms", state["norms"])
        fresh._mean = None if state["mean"] is None else _finite("mean", state["mean"])
        fresh._std = _finite("std", state["std"])
        most = max(1, fresh.warmup) - 1 if fresh._mean is None else 0
        if len(fresh._norms) > most:
            raise ValueError(f"norms must be at most {most} numbers, not {len(fresh._norms)}")
        self.__dict__.update(fresh.__dict__)


class Schedule(Threshold):
    """A rule whose threshold is a function of the step alone.

    Parameters
    ----------
    function : callable
        It is called with the number of the step (0, 1, 2, ...) and returns the threshold, >= 0; ``inf`` for no clipping.

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

    def __init__(self, function: Callable[[int], float]):
        if not callable(function):
            raise TypeError(f"function must be callable, not {type(function).__name__} {function!r}")
        self.function = function
        self._step = 0

    def next_threshold(self, norm: float) -> float:
        """Return what the function gives for this step, and count the step if its norm is finite.

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
            `norm` is not a number or is negative, or the function's value is no threshold; the message then names the step.
        """
        norm = _checked(norm)
        threshold = number(f"the threshold of step {self._step}", self.function(self._step), 0.0)
        self._step += math.isfinite(norm)
        return threshold

    def _history(self) -> dict[str, Any]:
        """Return what `state_dict` holds beyond the parameters."""
        return {"step": self._step}

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Take over a state that has the right keys; raise an error and change nothing if its values are wrong."""
        self._step = whole("step", state["step"], 0)

    def __repr__(self) -> str:
        """Return the call that makes such a rule."""
        return f"Schedule({self.function!r})"


def _checked(norm: Any) -> float:
    """Return a norm as a float that is >= 0, NaN or inf; raise an error for anything else."""
    checked = real("norm", norm)
    return number("norm", checked, 0.0) if math.isfinite(checked) else checked


def _finite(name: str, value: Any) -> float:
    """Return a number of a state as a float that is >= 0 and finite; raise an error for anything else."""
    checked = number(name, value, 0.0)
    if checked == math.inf:
        raise ValueError(f"{name} must be finite")
    return checked


def _finite_list(name: str, values: Any) -> list[float]:
    """Return the numbers of a state's list as floats that are >= 0 and finite; raise an error for anything else."""
    if not isinstance(values, list | tuple):
        raise TypeError(f"{name} must be a list, not {type(values).__name__}")
    return [_finite(f"{name}[{i}]", value) for i, value in enumerate(values)]


def _mean_and_std(norms: list[float]) -> tuple[float, float]:
    """Return the mean and the population standard deviation of norms; neither overflows or vanishes on the way."""
    _, exponent = math.frexp(max(norms))
    scaled = [math.ldexp(norm, -exponent) for norm in norms]
    mean = math.fsum(scaled) / len(scaled)
    mean = min(max(mean, min(scaled)), max(scaled))  # in spite of rounding, the mean of equal norms is that norm
    std = math.sqrt(math.fsum((norm - mean) ** 2 for norm in scaled) / len(scaled))
    return math.ldexp(mean, exponent), math.ldexp(std, exponent)
