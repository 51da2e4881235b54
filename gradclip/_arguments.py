"""Checks of scalar arguments: made before anything is read, in words that name the argument."""

from __future__ import annotations

import inspect
import math
import operator
import reprlib
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar

import numpy as np

if sys.version_info >= (3, 11):
    from typing import Unpack
elif TYPE_CHECKING:
    from typing_extensions import Unpack
else:

    class Unpack:
        """A stand-in, so that `typing.get_type_hints` works under Python 3.10 too."""

        def __class_getitem__(cls, options):
            return options


POLICIES = ("raise", "skip", "zero", "propagate")

Function = TypeVar("Function", bound=Callable[..., Any])
Grads = TypeVar("Grads")  # a nesting of arrays, which comes back as it was given
Number = float | np.floating[Any] | np.integer[Any]
ByLeaf = Number | list[Any] | tuple[Any, ...] | Mapping[Any, Any]  # a number, a nesting of them, or patterns over paths
Floats = np.ndarray[Any, np.dtype[np.float64]]


class OptionsWithoutEps(TypedDict, total=False):
    """What ``**norm`` stands for where `eps` is a parameter of its own."""

    ord: float
    nonfinite: Literal["raise", "skip", "zero", "propagate"]
    grad_scale: float
    strict: bool


class NormOptions(OptionsWithoutEps, total=False):
    """What ``**norm`` stands for; `clip_by_global_norm_` explains each."""

    eps: float


def number(name: str, value: Any, least: float = -math.inf) -> float:
    """`value` as a float that is not NaN and not below `least`."""
    if type(value) is not float:
        value = real(name, value)
    if not value >= least:
        bound = "a number" if least == -math.inf else f"at least {least:g}"
        raise ValueError(f"{name} must be {bound}, not {value!r}")
    return abs(value) if least == 0.0 else value  # no negative zero


def real(name: str, value: Any) -> float:
    """`value` as a float, which may be NaN."""
    if type(value) is not float:
        if isinstance(value, bool | np.bool_) or not (isinstance(value, Real) or _is_scalar_array(value)):
            raise TypeError(f"{name} must be a real number, not {type(value).__name__} {reprlib.repr(value)}")
        try:
            given, value = value, float(value)
        except OverflowError:
            raise ValueError(f"{name} is beyond the range of float64") from None
        if math.isinf(value) and given != value:
            raise ValueError(f"{name} is beyond the range of float64")
    return value


def percent(name: str, value: Any, stacklevel: int = 3) -> float:
    """`value` as a float in [0, 100]; one in (0, 1) looks like a fraction, and is a warning."""
    result = number(name, value, 0.0)
    if result > 100.0:
        raise ValueError(f"{name} must be at most 100, not {value!r}")
    if 0.0 < result < 1.0:
        message = f"{name} is {result:g}, which is below one percent (percent, not fraction): did you mean {100 * result:g}?"
        warnings.warn(message, UserWarning, stacklevel=stacklevel)
    return result


def whole(name: str, value: Any, least: int | None = None) -> int:
    """`value` as an int that is not below `least`."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        result = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {type(value).__name__} {value!r}") from None
    if least is not None and result < least:
        raise ValueError(f"{name} must be at least {least}, not {result}")
    return result


def flag(name: str, value: Any) -> bool:
    """`value` as a bool."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return bool(value)


def _is_scalar_array(value):
    """0-d arrays and tensors of real numbers count as numbers."""
    if isinstance(value, np.ndarray | np.generic):
        return value.shape == () and value.dtype.kind in "fiu"
    dtype = str(getattr(value, "dtype", "bool"))
    return getattr(value, "shape", None) == () and "complex" not in dtype and "bool" not in dtype


class Rule:
    """The keyword arguments that every norm-based function shares, checked."""

    __slots__ = ("eps", "grad_scale", "nonfinite", "ord", "plain", "strict")

    def __init__(
        self, ord: float = 2, eps: float = 0.0, nonfinite: str = "raise", grad_scale: float = 1.0, strict: bool = False
    ):
        self.ord = _order(ord)
        self.eps = number("eps", eps, 0.0)
        if self.eps == math.inf:
            raise ValueError("eps must be finite")
        if not isinstance(nonfinite, str):
            raise TypeError(f"nonfinite must be one of {', '.join(map(repr, POLICIES))}, not {nonfinite!r}")
        if nonfinite not in POLICIES:
            raise ValueError(f"nonfinite must be one of {', '.join(map(repr, POLICIES))}, not {nonfinite!r}")
        self.nonfinite = nonfinite
        self.grad_scale = number("grad_scale", grad_scale)
        if not 0.0 < self.grad_scale < math.inf:
            raise ValueError(f"grad_scale must be positive and finite, not {grad_scale!r}")
        self.strict = flag("strict", strict)
        self.plain = self.grad_scale == 1.0 and not self.strict  # below the threshold nothing is left to do

    @staticmethod
    def of(norm):
        """From the ``**norm`` of a call."""
        if not norm:
            return DEFAULT
        if _UNCHANGING.issuperset(map(type, norm.values())):
            try:
                return _cached_rule(**norm)
            except TypeError:  # wrong
                pass
        unknown = norm.keys() - KEYWORDS.keys()
        if unknown:
            raise TypeError(f"unexpected keyword argument {min(unknown)!r}; the keywords of norms are {', '.join(KEYWORDS)}")
        return Rule(**norm)


def spelled_out(function: Function) -> Function:
    """Show the keywords that ``**norm`` stands for in `help` and to completion."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind != p.VAR_KEYWORD]
    shared = [p for name, p in KEYWORDS.items() if name not in signature.parameters]
    shared = [p.replace(kind=p.KEYWORD_ONLY) for p in shared]
    function.__signature__ = signature.replace(parameters=[*own, *shared])  # type: ignore[attr-defined]
    return function


def _order(ord):
    """As it is, but inf as 0: the passes' name for the maximum."""
    value = number("ord", ord)
    if not value > 0:
        raise ValueError(f"ord must be above 0, not {ord!r}")
    return 0.0 if value == math.inf else value


DEFAULT = Rule()
KEYWORDS = inspect.signature(Rule).parameters
_UNCHANGING = {float, int, str, bool}  # a tensor is hashable too, but may hold another number the next time
_cached_rule = lru_cache(64, typed=True)(Rule)  # checking costs more than clipping a small leaf
