"""How far rounding can carry the norm of what is written from what was meant."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .._cpu.plan import safe_threshold
from .._leaves.foreign import dtype_name

if TYPE_CHECKING:
    from .._leaves import Leaves
    from .arguments import Array
    from .options import Options

# Orders whose sums are compared in rational arithmetic.
RATIONAL = (1.0, 2.0, math.inf)

# How often `strict` measures what would be written before it takes a factor that is safe without.
ROUNDS = 4


class Unit(NamedTuple):
    """How a dtype rounds: half an ulp of 1 (the unit roundoff), half the least subnormal number, the largest number."""

    half: float
    least: float
    most: float


# Twice the least of float64, where norms and bounds are rounded too.
_FLOAT64 = Unit(2.0**-53, 2.0**-1073, float(np.finfo(np.float64).max))
_UNITS = {
    "float16": Unit(2.0**-11, 2.0**-25, 65504.0),
    "bfloat16": Unit(2.0**-8, 2.0**-134, (2 - 2.0**-7) * 2.0**127),
    "float32": Unit(2.0**-24, 2.0**-150, (2 - 2.0**-23) * 2.0**127),
}
_ROOM = 1 + 2.0**-20  # for factors and products that are rounded before


@lru_cache(64)  # names of dtypes are slow
def unit_of(dtype: np.dtype[Any]) -> Unit:
    """How a dtype rounds, or the parts of a complex one."""
    return _UNITS.get(dtype_name(np.empty(0, dtype).real.dtype), _FLOAT64)


def holds(dtype: np.dtype[Any], other: np.dtype[Any]) -> bool:
    """Whether every number of another dtype is one of this dtype."""
    mine, theirs = unit_of(dtype), unit_of(other)
    return mine.half <= theirs.half and mine.least <= theirs.least and mine.most >= theirs.most


def typical(leaves: Leaves, together: bool) -> float:
    """What the rounding of n elements typically adds to a norm, relatively: u / sqrt(n).

    together : whether all leaves share a norm; else the largest of each
    """
    sizes = [(n, dtype) for n, _, dtype in leaves.kinds()] if together else [(a.size, a.dtype) for a in leaves.arrays]
    filled = [(n, dtype) for n, dtype in sizes if n]
    if together and filled:  # whatever they are split into
        return max(unit_of(dtype).half for _, dtype in filled) / math.sqrt(sum(n for n, _ in filled))
    return max((unit_of(dtype).half / math.sqrt(n) for n, dtype in filled), default=1.0)


def safety(ord: float) -> float:
    """Return the factor that makes a measured norm, of an order that is not RATIONAL, certainly no more than the exact one.

    A measured norm is within 4 ulp of the exact one, below order 1 within 4 / ord. Twice that is taken off."""
    return 1 - 2.0**-49 / min(ord, 1.0)


def exact_order(ord: float, arrays: Iterable[Array]) -> bool:
    """Whether the pass sums what the order asks for in rational arithmetic; magnitudes of complex numbers are not."""
    return ord == 2 or (ord in RATIONAL and all(a.dtype.kind != "c" for a in arrays))


class Worst(NamedTuple):
    """How the coarsest of some dtypes round: `Unit`, and whether bounds and moduli are exact."""

    half: float
    least: float
    most: float
    exact: bool

    @classmethod
    def of(cls, arrays: Iterable[Array], grad_scale: float) -> Worst:
        """The Worst of what is written to arrays."""
        kinds = {a.dtype for a in arrays if a.size}
        units = [unit_of(kind) for kind in kinds]
        rest = 2.0**-1073 / grad_scale  # of a complex number both parts round, and the magnitude that was measured
        least = (1.5 * u.least + rest if k.kind == "c" else u.least for u, k in zip(units, kinds, strict=True))
        return cls(
            max((unit.half for unit in units), default=0.0),
            max(least, default=0.0),
            min((unit.most for unit in units), default=math.inf),
            all(k.kind != "c" and u is not _FLOAT64 for u, k in zip(units, kinds, strict=True)),
        )


class RoundingBound(NamedTuple):
    """How much rounding can add to a norm: what `threshold` needs to find a norm that stays within a bound.

    Rounding up adds to each element a relative part and a subnormal part. The norm of the subnormal parts of all elements is
    taken off the bound (below order 1, where norms do not add, its power). A norm that is brought to `floor` of its bound
    stays within it too: an element of at most half the least number becomes 0, so none is more than doubled."""

    lost: float
    slope: float
    power: float
    floor: float
    most: float

    @classmethod
    def of(
        cls, parts: Sequence[tuple[int, np.dtype[Any], np.dtype[Any]]], ord: float, grad_scale: float = 1.0
    ) -> RoundingBound:
        """The RoundingBound of one unit, which has a part in each leaf: (elements, dtype, dtype that they are rounded to)."""
        units = [unit_of(to) for _, _, to in parts]
        relative = max((unit.half for unit in units), default=0.0)
        # of a complex number both parts, and the magnitude that was measured
        absolute = [
            (n, 1.5 * unit.least + 2.0**-1073 / grad_scale if dtype.kind == "c" else unit.least)
            for (n, dtype, _), unit in zip(parts, units, strict=True)
        ]
        power = min(ord, 1.0)
        most = max((least for _, least in absolute), default=0.0)
        count = 1.0 if ord == math.inf else math.fsum(n * (least / most) ** ord for n, least in absolute) ** (power / ord)
        lost = most**power * count * _ROOM
        slope = 1.0 + relative * _ROOM + 2.0**-48 / power
        exact = all(to.kind != "c" and unit_of(to) is not _FLOAT64 for _, _, to in parts)
        floor = 0.5 if exact else 0.25  # bounds or moduli are rounded too
        filled = [unit.most for unit, (n, _, _) in zip(units, parts, strict=True) if n]
        return cls(lost, slope, power, floor, min(filled, default=math.inf))

    @classmethod
    def of_leaves(cls, to: Leaves, options: Options, together: bool) -> RoundingBound:
        """The RoundingBound of what is written to leaves: to one unit of each where these share a norm, else to the largest."""
        kinds = to.kinds()
        if together and len(kinds) == 1:  # nothing is rounded but the number of elements
            _, n, dtype = kinds[0]
            return cls.of([(n, dtype, dtype)], options.ord, options.grad_scale)
        parts = [(a.size // max(n, 1), a.dtype, a.dtype) for a, n in zip(to.arrays, to.leaf_units(), strict=True)]
        rounding = cls.of(parts, options.ord, options.grad_scale)
        if together:
            return rounding
        lost = (cls.of([part], options.ord, options.grad_scale).lost for part in dict.fromkeys(parts))
        return rounding._replace(lost=max(lost, default=0.0))

    @classmethod
    def of_worst(cls, size: int, worst: Worst, ord: float) -> RoundingBound:
        """The RoundingBound of a unit of `size` elements that all round as the coarsest do."""
        power = min(ord, 1.0)
        lost = worst.least**power * (1.0 if ord == math.inf else float(size) ** (power / ord)) * _ROOM
        slope = 1.0 + worst.half * _ROOM + 2.0**-48 / power
        return cls(lost, slope, power, 0.5 if worst.exact else 0.25, worst.most)

    def threshold(self, bound: float) -> float:
        """The norm that keeps a bound when it is brought there."""
        return safe_threshold(bound, self)
