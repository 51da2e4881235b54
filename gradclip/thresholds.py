"""Thresholds that follow the training, and how to choose a constant one.

A clip function asks a `Threshold` once per step: it shows the norm that it measured and gets the threshold
for this very step."""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np

from . import _chi
from ._arguments import Function, Number, flag, number, percent, real, whole
from ._cpu.plan import StandardState
from ._ranked import Ranked


def in_standard_state(function: Function) -> Function:
    """`function`, run with the passes' floating-point state: a rounding mode set outside changes no bit of what it returns."""

    @functools.wraps(function)
    def run(*args, **kwargs):
        with StandardState():
            return function(*args, **kwargs)

    return run  # type: ignore[return-value]


class Threshold(ABC):
    """What can stand for `max_norm`: a rule that gives each step a threshold of its own.

    For a rule of your own, write `next_threshold`; if it remembers anything, also `state_dict` and
    `load_state_dict`.

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

    _parameters: tuple[str, ...] = ()  # attributes, which are arguments of the constructor too

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        own = cls.__dict__.get("next_threshold")
        if inspect.isfunction(own):  # of every rule, those of the user's own too
            cls.next_threshold = in_standard_state(own)  # type: ignore[method-assign]

    @abstractmethod
    def next_threshold(self, norm: float) -> float:
        """The threshold of this step, whose gradient has this norm; the step is counted.

        A norm that is NaN or infinite changes nothing. It gets the current threshold: the one that
        the steps so far give, without this one.

        Parameters
        ----------
        norm : float
            Norm of the gradient before clipping, >= 0.

        Returns
        -------
        float
            >= 0, ``inf`` for no clipping.

        Raises
        ------
        TypeError, ValueError
            `norm` is not a number or is negative. Nothing was counted.
        """

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs: parameters and history, in what JSON can hold (no NaN, no Inf)."""
        parameters = {name: getattr(self, name) for name in self._parameters}
        return {"rule": type(self).__name__, **parameters, **self._history()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the object that gave `state` was.

        As in PyTorch's optimizers and schedulers, the parameters too become those of the state.

        Parameters
        ----------
        state : dict
            From `state_dict`.

        Raises
        ------
        TypeError, ValueError
            `state` is not a dict, not one of this rule, or broken; the message names the key. Nothing was
            changed.
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
        """What `state_dict` holds beyond the parameters."""
        return {}

    def _restore(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """The reverse of `state_dict`, for a state with the right keys; changes nothing where it raises."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self._parameters)})"


class Quantile(Threshold):
    """AutoClip [1]_: the threshold is a quantile of the latest norms.

    .. math:: c_t = Q_q(n_{t-w}, \\dots, n_{t-1})

    Parameters
    ----------
    q : float, default 0.9
        Which quantile, in [0, 1], by the linear method of `numpy.quantile` and bit for bit the same.
    window : int or None, default 1000
        How many norms are remembered; ``None``: all.
    warmup : int, default 0
        The threshold is ``inf`` until max(1, warmup) norms have been seen.
    include_current : bool, default False
        Whether the norm of this step is among those that the quantile is taken of, as in the paper.

    Notes
    -----
    A step takes O(log window) time. The norms enter as they were before clipping, so the threshold can
    rise. With ``q=1`` and ``include_current=True`` nothing is ever clipped.

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
        self._norms: deque[float] = deque()  # the last `window`, oldest first
        self._ranked = Ranked()  # the same, by size

    def next_threshold(self, norm: float) -> float:
        norm = _checked(norm)
        if not math.isfinite(norm):
            return self._current()
        if self.include_current:
            self._enter(norm)
            return self._current()
        threshold = self._current()
        self._enter(norm)
        return threshold

    def _current(self):
        return math.inf if self._seen < max(1, self.warmup) else self._ranked.quantile(self.q)

    def _enter(self, norm):
        if len(self._norms) == self.window:
            self._ranked.discard(self._norms.popleft())
        self._norms.append(norm)
        self._ranked.add(norm)
        self._seen += 1

    def _history(self):
        return {"seen": self._seen, "norms": list(self._norms)}

    def _restore(self, state):
        fresh = Quantile(**{name: state[name] for name in self._parameters})
        fresh._seen = whole("seen", state["seen"], 0)
        fresh._norms.extend(_finite_list("norms", state["norms"]))
        fresh._ranked = Ranked(fresh._norms)
        count = fresh._seen if fresh.window is None else min(fresh._seen, fresh.window)
        if len(fresh._norms) != count:
            raise ValueError(f"norms must be {count} numbers, not {len(fresh._norms)}")
        self.__dict__.update(fresh.__dict__)


class ZScore(Threshold):
    """ZClip [1]_: a norm too many standard deviations above the running mean is a spike, and brought down.

    .. math:: c_t = \\mu + \\frac{z^2}{z_t} \\sigma \\quad\\text{where}\\quad z_t = \\frac{n_t - \\mu}{\\sigma} > z

    and :math:`c_t = \\mu + z \\sigma` elsewhere, which clips nothing. Mean and variance then learn the
    clipped norm :math:`x_t = \\min(n_t, c_t)`:

    .. math:: \\sigma^2 \\leftarrow \\alpha \\sigma^2 + (1 - \\alpha) (x_t - \\mu)^2, \\quad
              \\mu \\leftarrow \\alpha \\mu + (1 - \\alpha) x_t

    Parameters
    ----------
    z : float, default 2.5
        Standard deviations above the mean from which on a norm is a spike; positive and finite.
    alpha : float, default 0.97
        Weight of the past, in [0, 1): some 1 / (1 - alpha) steps are remembered.
    warmup : int, default 25
        The threshold is ``inf`` for the first max(1, warmup) norms, whose mean and variance (over n) are the
        first :math:`\\mu` and :math:`\\sigma^2`.
    mode : {"reciprocal", "mean"}, default "reciprocal"
        Whether a spike is brought to the threshold above, the lower the higher the spike is, or to the mean.

    Notes
    -----
    The variance is taken around the mean before this step, and nothing is added to the standard deviation:
    without spread (:math:`\\sigma = 0`) every norm above the mean is brought to the mean. With fewer
    than two norms of warm-up there is no spread at first.

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
        self._norms: list[float] = []  # during warm-up
        self._mean: float | None = None  # after it
        self._std = 0.0

    def next_threshold(self, norm: float) -> float:
        norm = _checked(norm)
        if self._mean is None:
            if math.isfinite(norm):
                self._norms.append(norm)
                if len(self._norms) >= self.warmup:
                    self._mean, self._std = _mean_and_std(self._norms)
                    self._norms = []
            return math.inf
        limit = self.z * self._std
        threshold = self._mean + limit
        if not math.isfinite(norm):
            return threshold
        if norm > threshold:  # z / its z-score is limit / (norm - mean), which no norm overflows
            threshold = self._mean if self.mode == "mean" else self._mean + limit * (limit / (norm - self._mean))
        step = min(norm, threshold) - self._mean
        # Not by the variance, whose square would overflow or vanish; and a mean of equal norms stays that norm.
        self._std = math.hypot(math.sqrt(self.alpha) * self._std, math.sqrt(1 - self.alpha) * step)
        self._mean += (1 - self.alpha) * step
        return threshold

    def _history(self):
        return {"norms": list(self._norms), "mean": self._mean, "std": self._std}

    def _restore(self, state):
        fresh = ZScore(**{name: state[name] for name in self._parameters})
        fresh._norms = _finite_list("norms", state["norms"])
        fresh._mean = None if state["mean"] is None else _finite("mean", state["mean"])
        fresh._std = _finite("std", state["std"])
        most = max(1, fresh.warmup) - 1 if fresh._mean is None else 0
        if len(fresh._norms) > most:
            raise ValueError(f"norms must be at most {most} numbers, not {len(fresh._norms)}")
        self.__dict__.update(fresh.__dict__)


class Schedule(Threshold):
    """The threshold is a function of the step alone.

    Parameters
    ----------
    function : callable
        function(step) -> threshold >= 0, for steps 0, 1, 2, ...; ``inf`` for no clipping.

    Raises
    ------
    TypeError, ValueError
        From `next_threshold`, when the function's value is no threshold; the message names the step.

    Notes
    -----
    A step with a NaN or infinite norm is not counted. The function is not part of `state_dict`.

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
        norm = _checked(norm)
        threshold = number(f"the threshold of step {self._step}", self.function(self._step), 0.0)
        self._step += math.isfinite(norm)
        return threshold

    def _history(self):
        return {"step": self._step}

    def _restore(self, state):
        self._step = whole("step", state["step"], 0)

    def __repr__(self) -> str:
        return f"Schedule({self.function!r})"


ONE_NORM = "a threshold suggested from one norm says little: log some hundred steps"


@in_standard_state
def suggest_threshold(norms: Iterable[float], percentile: float = 95) -> float:
    """A constant threshold from logged norms: one of their percentiles.

    Parameters
    ----------
    norms : iterable of float
        Norms >= 0 of a run without clipping, or before clipping. NaN and Inf are ignored.
    percentile : float, default 95
        In [0, 100], by the linear method of `numpy.percentile`. 100 - percentile is about how many percent
        of such steps will be clipped.

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
        An argument that cannot be used, or no finite norm.

    Warns
    -----
    UserWarning
        A percentile in (0, 1), which looks like a fraction; or a single finite norm, which is all its percentiles.

    Examples
    --------
    >>> import gradclip
    >>> gradclip.suggest_threshold([1.0, 2.0, 3.0, float("nan"), 4.0, 5.0], percentile=75)
    4.0
    """
    percentile, finite = percent("percentile", percentile, 4), _finite_norms(norms)
    if finite.size == 1:
        warnings.warn(ONE_NORM, UserWarning, stacklevel=3)
    return float(np.percentile(finite, percentile))


@in_standard_state
def clip_rate(norms: Iterable[float], max_norm: Number) -> float:
    """The fraction of steps that a constant threshold would clip: those with norm > max_norm.

    Parameters
    ----------
    norms : iterable of float
        Norms >= 0, before clipping. NaN and Inf are ignored: it is a rate of the steps with a finite norm.
    max_norm : float
        The threshold >= 0.

    Returns
    -------
    float
        In [0, 1]. Errors are those of `suggest_threshold`.

    Examples
    --------
    >>> import gradclip
    >>> gradclip.clip_rate([1.0, 2.0, 3.0, float("nan"), 4.0], 3.0)
    0.25
    """
    max_norm = number("max_norm", max_norm, 0.0)
    return float(np.mean(_finite_norms(norms) > max_norm))


@in_standard_state
def gaussian_exceedance(max_norm: Number, size: int, sigma: float, *, log: bool = False) -> float:
    """How probable it is that pure Gaussian noise exceeds a threshold.

    .. math:: P(\\lVert g \\rVert_2 > c) = Q\\left(\\frac{n}{2}, \\frac{c^2}{2 \\sigma^2}\\right)
              \\quad\\text{for}\\quad g \\sim N(0, \\sigma^2 I_n)

    where Q is the regularized upper incomplete gamma function: the norm follows the chi distribution.

    Parameters
    ----------
    max_norm : float
        The threshold c >= 0.
    size : int
        Number n >= 0 of components.
    sigma : float
        Standard deviation of each, >= 0 and finite.
    log : bool, default False
        Return the natural logarithm, which is accurate where the probability itself is 0 in float64.

    Returns
    -------
    float
        The relative error, of the logarithm too, is below 1e-10 for up to 1e9 components.

    Raises
    ------
    ImportError
        SciPy is missing; ``pip install "gradclip[stats]"`` brings it.
    TypeError, ValueError
        An argument that cannot be used. Size 0 and sigma 0 can: the norm is 0, which exceeds nothing.

    Examples
    --------
    A gradient of 1000 components whose norm is 1 in the mean: 2 is not exceeded by chance.

    >>> import gradclip
    >>> gradclip.gaussian_exceedance(1.0, 1000, 1000**-0.5)
    0.4940528...
    >>> gradclip.gaussian_exceedance(2.0, 1000, 1000**-0.5)
    0.0
    >>> gradclip.gaussian_exceedance(2.0, 1000, 1000**-0.5, log=True)
    -811.9787...
    """
    max_norm = number("max_norm", max_norm, 0.0)
    size = whole("size", size, 0)
    sigma = number("sigma", sigma, 0.0)
    if sigma == math.inf:
        raise ValueError("sigma must be finite")
    log = flag("log", log)
    try:
        from scipy import special  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError(f'gaussian_exceedance needs SciPy: pip install "gradclip[stats]" ({error})') from error
    ratio = max_norm / sigma if size and sigma else math.inf
    x = ratio * ratio / 2
    value = -math.inf if x == math.inf else _chi.log_upper(special, size / 2, x)
    return value + 0.0 if log else math.exp(value)  # no negative zero


def _checked(norm):
    """A norm as a float >= 0, NaN or inf."""
    norm = real("norm", norm)
    return number("norm", norm, 0.0) if math.isfinite(norm) else norm


def _finite(name, value):
    value = number(name, value, 0.0)
    if value == math.inf:
        raise ValueError(f"{name} must be finite")
    return value


def _finite_list(name, values):
    if not isinstance(values, list | tuple):
        raise TypeError(f"{name} must be a list, not {type(values).__name__}")
    return [_finite(f"{name}[{i}]", value) for i, value in enumerate(values)]


def _finite_norms(norms):
    """Those of logged norms that are finite, as an array."""
    if isinstance(norms, np.ndarray) and norms.dtype.kind in "fiu":
        array = norms.astype(np.float64)
    else:
        try:
            values = iter(norms)
        except TypeError:
            raise TypeError(f"norms must be an iterable of numbers, not {type(norms).__name__} {norms!r}") from None
        array = np.array([real("each of norms", value) for value in values])
    array = array[np.isfinite(array)]
    if not array.size:
        raise ValueError("norms has no finite value")
    if array.min() < 0:
        raise ValueError(f"norms must be at least 0, not {array.min()}")
    return array


def _mean_and_std(norms):
    """Mean and population standard deviation, scaled by a power of two so that nothing overflows or vanishes."""
    _, exponent = math.frexp(max(norms))
    scaled = [math.ldexp(norm, -exponent) for norm in norms]
    mean = math.fsum(scaled) / len(scaled)
    mean = min(max(mean, min(scaled)), max(scaled))  # of equal norms that norm, in spite of rounding
    std = math.sqrt(math.fsum((norm - mean) ** 2 for norm in scaled) / len(scaled))
    return math.ldexp(mean, exponent), math.ldexp(std, exponent)
