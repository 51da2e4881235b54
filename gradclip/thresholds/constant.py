"""A constant threshold: from logged norms, and beside what pure noise would reach."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np

from .._core import chi
from .._core.arguments import Floats, Number, flag, number, percent, real, whole
from .standard_state import in_standard_state

ONE_NORM = "a threshold suggested from one norm says little: log some hundred steps"


@in_standard_state
def suggest_threshold(norms: Iterable[float], percentile: float = 95) -> float:
    """Return a constant threshold from logged norms: one of their percentiles.

    Parameters
    ----------
    norms : iterable of float
        Norms >= 0 of a run without clipping, or norms before clipping. NaN and Inf are ignored.
    percentile : float, default 95
        In percent, between 0 and 100, by the linear method of `numpy.percentile`. About 100 - `percentile` percent of
        such steps will be clipped.

    Returns
    -------
    float
        The threshold, >= 0 and finite.

    Raises
    ------
    TypeError, ValueError
        An argument cannot be used, or no norm is finite.

    Warns
    -----
    UserWarning
        The percentile lies between 0 and 1 and so looks like a fraction; or only one norm is finite: it equals all of its
        percentiles.

    See Also
    --------
    clip_rate : The fraction of steps that a threshold clips.
    gradclip.ClipMonitor.suggest_threshold : The same from the steps that a monitor has recorded.

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
    """Return the fraction of steps that a constant threshold would clip: those with norm > max_norm.

    Parameters
    ----------
    norms : iterable of float
        Norms >= 0, before clipping. NaN and Inf are ignored, and not counted as steps.
    max_norm : float
        The threshold, >= 0.

    Returns
    -------
    float
        The fraction of the finite norms that are larger, between 0 and 1.

    Raises
    ------
    TypeError, ValueError
        An argument cannot be used, or no norm is finite.

    See Also
    --------
    suggest_threshold : The threshold for a wanted fraction.

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
    r"""Return the probability that the norm of pure Gaussian noise exceeds a threshold.

    .. math:: P(\lVert g \rVert_2 > c) = Q\left(\frac{n}{2}, \frac{c^2}{2 \sigma^2}\right)
              \quad\text{for}\quad g \sim N(0, \sigma^2 I_n)

    where Q is the regularized upper incomplete gamma function: the norm of such noise, divided by sigma, follows the chi
    distribution with n degrees of freedom.

    Parameters
    ----------
    max_norm : float
        The threshold c, >= 0.
    size : int
        The number n of components, >= 0.
    sigma : float
        The standard deviation of each component, >= 0 and finite, in the unit of `max_norm`.
    log : bool, default False
        Return the natural logarithm of the probability. It is accurate also where the probability itself is 0 in float64.

    Returns
    -------
    float
        The probability or its logarithm. Either has a relative error below 1e-10 for up to 1e9 components. The
        probability is 0 if `size` or `sigma` is 0: a norm of 0 exceeds nothing.

    Raises
    ------
    ImportError
        SciPy is missing; ``pip install "gradclip[stats]"`` brings it.
    TypeError, ValueError
        An argument cannot be used.

    See Also
    --------
    suggest_threshold : A threshold from the norms of real gradients.

    References
    ----------
    .. [1] N. L. Johnson, S. Kotz, N. Balakrishnan, "Continuous Univariate Distributions", vol. 1, 2nd ed., chapter 18,
       Wiley, 1994.

    Examples
    --------
    Noise of 1000 components, each with a standard deviation of 1000**-0.5, has a norm of about 1. It never reaches 2:

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
    value: float = -math.inf if x == math.inf else chi.log_upper(special, size / 2, x)
    return value + 0.0 if log else math.exp(value)  # + 0.0: no negative zero


def _finite_norms(norms: Any) -> Floats:
    """Return the finite ones of logged norms as an array; raise an error if there is none, or a negative one."""
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
