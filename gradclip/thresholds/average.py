"""`EMA`: a threshold from the exponential mean of the norms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .._core.arguments import number, whole
from .base import Bounded, finite


class EMA(Bounded):
    r"""A rule whose threshold is a multiple of the exponential mean of the norms: AdaGC [1]_.

    .. math:: c_t = \lambda \mu, \quad \mu \leftarrow \beta \mu + (1 - \beta) \min(n_t, c_t)

    where :math:`n_t` is the norm of step t before clipping. The first :math:`\mu` is the smallest norm of the warm-up.

    Parameters
    ----------
    factor : float, default 1.05
        The multiple :math:`\lambda`, positive and finite.
    beta : float, default 0.98
        The weight of the past, >= 0 and below 1: about 1 / (1 - beta) steps are remembered.
    warmup : int, default 100
        The threshold is ``inf``, or `ceiling`, for the first max(1, warmup) norms.
    floor, ceiling : float, default 0 and inf
        No threshold is below `floor` or above `ceiling`, during the warm-up neither. What is remembered of a step is its norm
        after clipping.

    Raises
    ------
    TypeError, ValueError
        A parameter cannot be used.

    Notes
    -----
    The paper gives each tensor a rule of its own: `PerLeaf`. A norm of 0 (a frozen layer, an expert without tokens) is not
    remembered: every threshold after it could be 0. The warm-up lasts until there is a norm above 0.

    References
    ----------
    .. [1] G. Wang et al., "AdaGC: Improving Training Stability for Large Language Model Pretraining", arXiv:2502.11034, 2025.

    Examples
    --------
    >>> from gradclip.thresholds import EMA
    >>> rule = EMA(factor=2.0, beta=0.5, warmup=2)
    >>> [rule.next_threshold(norm) for norm in [3.0, 1.0, 9.0, 1.0]]  # the means are 1 and 1.5
    [inf, inf, 2.0, 3.0]
    """

    _parameters = "factor", "beta", "warmup"

    def __init__(
        self,
        factor: float = 1.05,
        beta: float = 0.98,
        warmup: int = 100,
        *,
        floor: float = 0.0,
        ceiling: float = math.inf,
    ):
        self.factor = finite("factor", factor)
        if self.factor == 0:
            raise ValueError("factor must be above 0")
        self.beta = number("beta", beta, 0.0)
        if self.beta >= 1:
            raise ValueError(f"beta must be below 1, not {beta!r}")
        self.warmup = whole("warmup", warmup, 0)
        self._set_bounds(floor, ceiling)
        self._seen = 0  # norms of the warm-up
        self._least: float | None = None  # the smallest of them above 0
        self._mean: float | None = None  # None during the warm-up

    def _own(self, norm: float) -> float:
        """Return the multiple of the mean."""
        return math.inf if self._mean is None else self.factor * self._mean

    def _remember(self, norm: float, clipped: float) -> None:
        """Update the mean, or find its start."""
        if self._mean is not None:
            if clipped:
                self._mean += (1 - self.beta) * (clipped - self._mean)
            return
        self._seen += 1
        if clipped:
            self._least = clipped if self._least is None else min(self._least, clipped)
        if self._seen >= self.warmup:
            self._mean = self._least

    def _history(self) -> dict[str, Any]:
        """Return what `state_dict` holds beyond the parameters."""
        return {"seen": self._seen, "least": self._least, "mean": self._mean}

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Take over a state that has the right keys; raise an error and change nothing if its values are wrong."""
        fresh = EMA(**self._arguments(state))
        fresh._seen = whole("seen", state["seen"], 0)
        fresh._least = None if state["least"] is None else finite("least", state["least"])
        fresh._mean = None if state["mean"] is None else finite("mean", state["mean"])
        if (fresh._mean is None) != (fresh._seen < max(1, fresh.warmup) or fresh._least is None):
            raise ValueError(f"mean must be {'None' if fresh._mean is not None else 'a number'} after {fresh._seen} norms")
        self.__dict__.update(fresh.__dict__)
