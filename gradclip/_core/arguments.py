"""Checks of scalar arguments: made before anything is read, in words that name the argument."""

from __future__ import annotations

import math
import operator
import reprlib
import warnings
from collections.abc import Callable, Collection, Mapping
from numbers import Real
from typing import Any, TypeVar

import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])
Grads = TypeVar("Grads")  # a nesting of arrays, which comes back as it was given
Number = float | np.floating[Any] | np.integer[Any]
ByLeaf = Number | list[Any] | tuple[Any, ...] | Mapping[Any, Any]  # a number, a nesting of them, or patterns over paths
Names = str | list[Any] | tuple[Any, ...] | Mapping[Any, Any]  # a nesting of names of groups, or patterns over paths
Array = np.ndarray[Any, np.dtype[Any]]  # or a CuPy array, where leaves lie on a GPU
Floats = np.ndarray[Any, np.dtype[np.float64]]
Indices = np.ndarray[Any, np.dtype[np.intp]]
Words = np.ndarray[Any, np.dtype[np.int64]]
Flags = np.ndarray[Any, np.dtype[np.uint8]]


def number(name: str, value: Any, least: float = -math.inf) -> float:
    """`value` as a float that is not NaN and not below `least`."""
    result: float = value if type(value) is float else real(name, value)
    if not result >= least:
        bound = "a number" if least == -math.inf else f"at least {least:g}"
        raise ValueError(f"{name} must be {bound}, not {result!r}")
    return abs(result) if least == 0.0 else result  # no negative zero


def real(name: str, value: Any) -> float:
    """`value` as a float, which may be NaN."""
    if type(value) is float:
        return value
    if isinstance(value, bool | np.bool_) or not (isinstance(value, Real) or _is_scalar_array(value)):
        raise TypeError(f"{name} must be a real number, not {type(value).__name__} {reprlib.repr(value)}")
    try:
        result = float(value)
    except OverflowError:
        raise ValueError(f"{name} is beyond the range of float64") from None
    if math.isinf(result) and value != result:
        raise ValueError(f"{name} is beyond the range of float64")
    return result


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


def _is_scalar_array(value: Any) -> bool:
    """0-d arrays and tensors of real numbers count as numbers."""
    if isinstance(value, np.ndarray | np.generic):
        return value.shape == () and value.dtype.kind in "fiu"
    dtype = str(getattr(value, "dtype", "bool"))
    return getattr(value, "shape", None) == () and "complex" not in dtype and "bool" not in dtype


def check_keys(name: str, state: Any, known: Collection[str], optional: Collection[str] = ()) -> None:
    """Raise an error unless `state` is a dict with the keys `known`, of which it may lack the `optional` ones, and no others.

    The message calls it by `name`."""
    if not isinstance(state, Mapping):
        raise TypeError(f"{name} must be a dict, not {type(state).__name__}")
    for key in [*known, *state]:
        if (key not in state and key not in optional) or key not in known:
            raise ValueError(f"{name}: {key} is {'missing' if key in known else 'unknown'}")
