"""`PrivateQuantile`: a threshold for samples that a differentially private count moves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .._core.arguments import number, whole
from .base import WithBounds, finite
from .standard_state import in_standard_state


class PrivateQuantile(WithBounds):
    r"""A threshold for samples that moves to a quantile of their norms, by a private count alone [1]_.

    .. math:: c \leftarrow c \cdot \exp\left(-\rho \left(\frac{u + \mathcal{N}(0, s^2)}{n} - q\right)\right)

    where u of n samples had a norm of at most c. It is passed as `max_norm` to `clip_per_sample_`, `clip_per_sample` or
    `per_sample_clip_sum`, which clip by c and then tell how many samples they clipped.

    Parameters
    ----------
    noise : float
        The standard deviation s of the Gaussian noise on the count u, >= 0 and finite. Adding or removing a sample changes u by
        at most 1, so this is the noise multiplier of the count.
    q : float, default 0.5
        Which quantile of the norms the threshold moves to, between 0 and 1.
    rate : float, default 0.2
        The learning rate :math:`\rho`, positive and finite.
    start : float, default 1
        The first threshold, positive and finite.
    rng : int or numpy.random.Generator, optional
        The seed of the noise, or what draws it. Without it, noise is unpredictable, as a private training needs it.
    floor, ceiling : float, default 0 and inf
        No threshold is below `floor` or above `ceiling`.

    Attributes
    ----------
    threshold : float
        The threshold of the next step.

    Raises
    ------
    TypeError, ValueError
        A parameter cannot be used.

    Notes
    -----
    The count costs privacy: account for it beside the noise on the sum, as the paper says. Only the thresholds are private.
    Norms, counts and exceptions of a call are not. `state_dict` holds the state of the generator, from which the noise of the
    next steps follows: keep it as secret as the data.

    References
    ----------
    .. [1] G. Andrew, O. Thakkar, H. B. McMahan, S. Ramaswamy, "Differentially Private Learning with Adaptive Clipping",
       NeurIPS 2021.

    Examples
    --------
    >>> import numpy as np, gradclip
    >>> from gradclip.thresholds import PrivateQuantile
    >>> rule, norms = PrivateQuantile(noise=2.0, start=10.0, rng=0), np.arange(1.0, 101.0)
    >>> for step in range(200):
    ...     sums, report = gradclip.per_sample_clip_sum(norms[:, np.newaxis], rule)
    >>> round(rule.threshold)  # the median norm is 50.5
    51
    """

    _parameters = "noise", "q", "rate", "start"

    def __init__(
        self,
        noise: float,
        *,
        q: float = 0.5,
        rate: float = 0.2,
        start: float = 1.0,
        rng: int | np.random.Generator | None = None,
        floor: float = 0.0,
        ceiling: float = math.inf,
    ):
        self.noise = finite("noise", noise)
        self.q = number("q", q, 0.0)
        if self.q > 1:
            raise ValueError(f"q must be at most 1, not {q!r}")
        self.rate, self.start = finite("rate", rate), finite("start", start)
        if self.rate == 0 or self.start == 0:
            raise ValueError(f"{'start' if self.rate else 'rate'} must be above 0")
        self._set_bounds(floor, ceiling)
        if rng is not None and not isinstance(rng, np.random.Generator):
            rng = whole("rng", rng, 0)
        self._rng = np.random.default_rng(rng)
        self._free = self.start  # the threshold before it is brought between floor and ceiling

    @property
    def threshold(self) -> float:
        """The threshold of the next step."""
        return self._within(self._free)

    @in_standard_state
    def update(self, clipped: int, size: int) -> None:
        """Move the threshold by what one step found; the clip functions call it.

        Parameters
        ----------
        clipped : int
            How many samples had a norm above the threshold.
        size : int
            How many samples there were. After a step without any, the threshold stays.

        Raises
        ------
        TypeError, ValueError
            The numbers are no counts. Nothing was changed.
        """
        size, clipped = whole("size", size, 0), whole("clipped", clipped, 0)
        if clipped > size:
            raise ValueError(f"clipped must be at most the {size} samples, not {clipped}")
        if size:
            unclipped = (size - clipped + self._rng.normal(0.0, self.noise)) / size
            moved = math.log(self.threshold or self._free) - self.rate * (unclipped - self.q)
            self._free = math.exp(min(max(moved, -700.0), 700.0))  # within float64, so that it can come back

    def _history(self) -> dict[str, Any]:
        """Return what `state_dict` holds beyond the parameters: the threshold and the state of the generator."""
        random = {"kind": type(self._rng.bit_generator).__name__, "state": _plain(self._rng.bit_generator.state)}
        return {"threshold": self._free, "random": random}

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Take over a state that has the right keys; raise an error and change nothing if its values are wrong."""
        fresh = PrivateQuantile(**self._arguments(state), rng=_generator(state["random"]))
        fresh._free = finite("threshold", state["threshold"])
        if fresh._free == 0:
            raise ValueError("threshold must be above 0")
        self.__dict__.update(fresh.__dict__)


def _plain(value: Any) -> Any:
    """Return the state of a generator in dicts, lists and numbers."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _generator(state: Any) -> np.random.Generator:
    """Return a generator that has a state; raise an error if there is none."""
    if not isinstance(state, Mapping) or not {"kind", "state"} <= state.keys():
        raise TypeError("random must be a dict with kind and state")
    kind = getattr(np.random, str(state["kind"]), None)
    if not (isinstance(kind, type) and issubclass(kind, np.random.BitGenerator)) or kind is np.random.BitGenerator:
        raise ValueError(f"random: {state['kind']!r} is no generator of NumPy's")
    bits = kind()
    try:
        bits.state = state["state"]
    except Exception as error:  # what NumPy says of a damaged state depends on the generator
        raise ValueError(f"random: {error!r}") from None
    return np.random.Generator(bits)
