"""The options of a call: the keywords that every norm-based function shares, checked."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from ..thresholds import Threshold
from ..thresholds.base import number_or_rule
from .arguments import Function, Number, flag, number

if sys.version_info >= (3, 11):
    from typing import Unpack as Unpack
elif TYPE_CHECKING:
    from typing_extensions import Unpack as Unpack
else:

    class Unpack:
        """A stand-in, so that `typing.get_type_hints` works under Python 3.10 too."""

        def __class_getitem__(cls, options):
            return options


Owned = bool | list[Any] | tuple[Any, ...] | Mapping[Any, Any]  # a nesting of bools, or patterns over paths
POLICIES = ("raise", "skip", "zero", "propagate")


class UnitOptionsWithoutEps(TypedDict, total=False):
    """What ``**norm`` stands for where units have norms of their own, and `eps` is a parameter of its own."""

    ord: float
    nonfinite: Literal["raise", "skip", "zero", "propagate"]
    grad_scale: float
    strict: bool
    comm: Any
    owned: Owned | None


class UnitOptions(UnitOptionsWithoutEps, total=False):
    """What ``**norm`` stands for where units have norms of their own: leaves, slices or samples."""

    eps: float


class OptionsWithoutEps(UnitOptionsWithoutEps, total=False):
    """What ``**norm`` stands for where one norm rules, and `eps` is a parameter of its own."""

    skip_above: Number | Threshold | None


class NormOptions(OptionsWithoutEps, total=False):
    """What ``**norm`` stands for where one norm rules; `clip_by_global_norm_` explains each."""

    eps: float


class Options:
    """The keyword arguments that every norm-based function shares, checked.

    With `comm` or `owned` they are SharedOptions: see `options_of` in call.pyx."""

    __slots__ = ("eps", "finite_only", "grad_scale", "nonfinite", "ord", "plain", "skip_above", "strict")
    shared = False  # whether these are SharedOptions

    def __init__(
        self,
        ord: float = 2,
        eps: float = 0.0,
        nonfinite: str = "raise",
        grad_scale: float = 1.0,
        strict: bool = False,
        skip_above: Number | Threshold | None = None,
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
        self.skip_above = None if skip_above is None else number_or_rule("skip_above", skip_above)
        self.finite_only = nonfinite == "zero"  # norms leave NaN and Inf out
        self.plain = self.grad_scale == 1.0 and not self.strict  # below the threshold nothing is left to do

    @staticmethod
    def of_units(norm: Mapping[str, Any]) -> Options:
        """The Options that the ``**norm`` of a call stands for in which units have norms of their own."""
        refuse_skip_above(norm)
        return Options.of(norm)

    @staticmethod
    def of(norm: Mapping[str, Any]) -> Options:
        """The Options that the ``**norm`` of a call stands for."""
        if not norm:
            return DEFAULT
        if _UNCHANGING.issuperset(map(type, norm.values())):
            try:
                return _remembered(**norm)
            except TypeError:  # wrong
                pass
        unknown = norm.keys() - KEYWORDS.keys()
        if unknown:
            raise TypeError(f"unexpected keyword argument {min(unknown)!r}; the keywords of norms are {', '.join(KEYWORDS)}")
        return Options(**{name: value for name, value in norm.items() if name not in SHARED or value is not None})


def spelled_out(function: Function) -> Function:
    """Show the keywords that ``**norm`` stands for, where one norm rules, in `help` and to completion."""
    return _shown(function, KEYWORDS.keys())


def spelled_out_for_one_process(function: Function) -> Function:
    """Show the keywords that ``**norm`` stands for, where one norm rules the leaves of this process, and all of them."""
    return _shown(function, KEYWORDS.keys() - {*SHARED})


def spelled_out_for_units(function: Function) -> Function:
    """Show the keywords that ``**norm`` stands for, where units have norms of their own, in `help` and to completion."""
    return _shown(function, KEYWORDS.keys() - {"skip_above"})


def _shown(function: Function, names: Collection[str]) -> Function:
    """Add some of the KEYWORDS to the signature that a function shows."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind != p.VAR_KEYWORD]
    shared = [p for name, p in KEYWORDS.items() if name in names and name not in signature.parameters]
    shared = [p.replace(kind=p.KEYWORD_ONLY) for p in shared]
    function.__signature__ = signature.replace(parameters=[*own, *shared])  # type: ignore[attr-defined]
    return function


def refuse_skip_above(norm: Mapping[str, Any]) -> None:
    """Raise an error if `skip_above` is given where units have norms of their own."""
    if norm.get("skip_above") is not None:
        raise TypeError("skip_above leaves out a step by the norm of all leaves; here each unit has a norm of its own")


def _order(ord: float) -> float:
    """The order of a norm as a float above 0, which may be inf."""
    value = number("ord", ord)
    if not value > 0:
        raise ValueError(f"ord must be above 0, not {ord!r}")
    return value


DEFAULT = Options()
SHARED = "comm", "owned"
KEYWORDS = {
    **inspect.signature(Options).parameters,
    **{name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Any) for name in SHARED},
}
_UNCHANGING = {float, int, str, bool}  # a tensor is hashable too, but may hold another number the next time
_remembered = lru_cache(64, typed=True)(Options)  # checking costs more than clipping a small leaf
