"""`ZScore`: a threshold so many standard deviations above the mean norm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from .._core.arguments import number, whole
from .base import Bounded, finite, finite_list


class ZScore(Bounded):
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
    floor, ceiling : float, default 0 and inf
        No threshold is below `floor` or above `ceiling`, during the warm-up neither. What is remembered of a step is its norm
        after clipping.

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
        self,
        z: float = 2.5,
        alpha: float = 0.97,
        warmup: int = 25,
        mode: Literal["reciprocal", "mean"] = "reciprocal",
        *,
        floor: float = 0.0,
        ceiling: float = math.inf,
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
        self._set_bounds(floor, ceiling)
        self._norms: list[float] = []  # those of the warm-up, empty after it
        self._mean: float | None = None  # None during the warm-up
        self._std = 0.0

    def _own(self, norm: float) -> float:
        """Return the threshold that the mean and the variance give this norm."""
        if self._mean is None:
            return math.inf
        margin = self.z * self._std
        if not (math.isfinite(norm) and norm > self._mean + margin):
            return self._mean + margin
        # z / z_t is margin / (norm - mean), which overflows for no norm
        return self._mean if self.mode == "mean" else self._mean + margin * (margin / (norm - self._mean))

    def _remember(self, norm: float, clipped: float) -> None:
        """Update the mean and the variance."""
        if self._mean is None:
            self._norms.append(clipped)
            if len(self._norms) >= self.warmup:
                self._mean, self._std = _mean_and_std(self._norms)
                self._norms = []
            return
        step = clipped - self._mean
        # Not by the variance: squares could overflow or vanish. And the mean of equal norms stays exactly that norm.
        self._std = math.hypot(math.sqrt(self.alpha) * self._std, math.sqrt(1 - self.alpha) * step)
        self._mean += (1 - self.alpha) * step

    def _history(self) -> dict[str, Any]:
        """Return what `state_dict` holds beyond the parameters."""
        return {"norms": list(self._norms), "mean": self._mean, "std": self._std}

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Take over a state that has the right keys; raise an error and change nothing if its values are wrong."""
        fresh = ZScore(**self._arguments(state))
        fresh._norms = finite_list("norms", state["norms"])
        fresh._mean = None if state["mean"] is None else finite("mean", state["mean"])
        fresh._std = finite("std", state["std"])
        most = max(1, fresh.warmup) - 1 if fresh._mean is None else 0
        if len(fresh._norms) > most:
            raise ValueError(f"norms must be at most {most} numbers, not {len(fresh._norms)}")
        self.__dict__.update(fresh.__dict__)


def _mean_and_std(norms: list[float]) -> tuple[float, float]:
    """Return the mean and the population standard deviation of norms; neither overflows or vanishes on the way."""
    _, exponent = math.frexp(max(norms))
    scaled = [math.ldexp(norm, -exponent) for norm in norms]
    mean = math.fsum(scaled) / len(scaled)
    mean = min(max(mean, min(scaled)), max(scaled))  # in spite of rounding, the mean of equal norms is that norm
    std = math.sqrt(math.fsum((norm - mean) ** 2 for norm in scaled) / len(scaled))
    return math.ldexp(mean, exponent), math.ldexp(std, exponent)
