"""The logarithm of the regularized upper incomplete gamma function Q(a, x), where SciPy does not reach.

SciPy's `gammaincc` is 0 where the probability is below 1e-308, and below the mean of a large shape its series
ends too early (a = 5e8: the lower tail P(a, x) is wrong by more than half). So:

- a < UNIFORM: SciPy, and where its upper tail becomes tiny, Legendre's continued fraction;
- a >= UNIFORM and x >= 2 a: the same, which is the continued fraction there;
- a >= UNIFORM and x < 2 a: the expansion that N. M. Temme, "The asymptotic expansion of the incomplete gamma functions",
  SIAM J. Math. Anal. 10 (1979), made uniform in x (also DLMF 8.12), in logarithms and to the order 1 / a:
  what is left out is some 0.005 / a**2 beside terms of order 1."""

from __future__ import annotations

import math
from typing import Any

UNIFORM = 1e4
TINY = 1e-100  # far above where SciPy underflows


def log_upper(special: Any, a: float, x: float) -> float:
    """Return log Q(a, x) for a > 0 and 0 <= x < inf; `special` is `scipy.special`."""
    if a >= UNIFORM and x < 2 * a:
        is_lower, value = _uniform(special, a, x)
        return _log_complement(value) if is_lower else value
    upper = float(special.gammaincc(a, x))
    if upper > 0.5:
        return math.log1p(-float(special.gammainc(a, x)))
    return math.log(upper) if upper > TINY else _fraction(a, x)


def _log_complement(lower: float) -> float:
    """Return log(1 - exp(lower))."""
    return math.log1p(-math.exp(lower))


def _fraction(a: float, x: float) -> float:
    """Return log Q(a, x) for x far above a: x**a exp(-x) / Gamma(a) times a continued fraction, by Lentz's method.

    The fraction is 1/(x+1-a - 1(1-a)/(x+3-a - 2(2-a)/(x+5-a - ...))), DLMF 8.9.2. So far out some twenty terms are
    enough."""
    b = x + 1 - a
    c, d = math.inf, 1 / b
    value, change, n = d, 0.0, 0
    while abs(change - 1) > 2.0**-52:
        n += 1
        b += 2
        d = 1 / (b + n * (a - n) * d)
        c = b + n * (a - n) / c
        change = c * d
        value *= change
    return a * math.log(x) - x - math.lgamma(a) + math.log(value)


def _uniform(special: Any, a: float, x: float) -> tuple[bool, float]:
    """Return True and log P(a, x) for x below the mean a; False and log Q(a, x) above it."""
    mu = (x - a) / a
    if mu == -1:  # x is 0, or nothing beside a
        return True, -math.inf
    half = max(mu - math.log1p(mu), 0.0)  # eta**2 / 2
    eta = math.copysign(math.sqrt(2 * half), mu)
    if abs(eta) < 0.02:  # the closed forms cancel
        c0 = -1 / 3 + eta * (1 / 12 + eta * (-2 / 135 + eta / 864))
        c1 = -1 / 540 - eta / 288
    else:
        c0 = 1 / mu - 1 / eta
        c1 = 1 / eta**3 - 1 / mu**3 - 1 / mu**2 - 1 / (12 * mu)
    rest = (c0 + c1 / a) / math.sqrt(2 * math.pi * a)
    tail = 0.5 * float(special.erfcx(abs(eta) * math.sqrt(a / 2))) + math.copysign(1.0, eta) * rest
    return eta < 0, math.log(tail) - a * half
