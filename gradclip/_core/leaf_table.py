"""`LeafTable`: what a report tells of each leaf, for a person to read."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np

if TYPE_CHECKING:
    from .._leaves import Leaves
    from .arguments import Floats

HEADER = "leaf", "shape", "dtype", "norm", "factor", "clipped", "largest", "NaN", "Inf"
WORDS = 3  # columns of words, which are aligned left; numbers are aligned right


class LeafRow(NamedTuple):
    """What a report tells of one leaf. None stands for what the call did not find out.

    factor: the smallest, if there are several; clipped: how many elements were outside, of a clip by value alone, which has no
    factor; max_abs: the largest finite magnitude; nan, inf: how many elements are."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    norm: float | None
    factor: float | None
    clipped: int | None
    max_abs: float | None
    nan: int | None
    inf: int | None

    @property
    def nonfinite(self) -> int:
        """How many elements are NaN or Inf, as far as is known."""
        return (self.nan or 0) + (self.inf or 0)


class LeafTable(Sequence[LeafRow]):
    """The rows of leaves: those with NaN or Inf first, then the largest norms. ``str()`` is plain text, and rich draws it.

    Attributes
    ----------
    leaves : int
        How many leaves there are; more than rows, if only the top ones are shown.
    """

    def __init__(self, rows: Iterable[LeafRow], top: int | None = None) -> None:
        ordered = sorted(rows, key=_rank)
        self.leaves, self._rows = len(ordered), tuple(ordered[:top])
        self._known = [i for i in range(len(HEADER)) if any(row[i] is not None for row in ordered) or i < WORDS]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> LeafRow: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[LeafRow, ...]: ...
    def __getitem__(self, index: int | slice) -> LeafRow | tuple[LeafRow, ...]:
        """Return a row, or some rows as a tuple."""
        return self._rows[index]

    def __str__(self) -> str:
        """Return the table as aligned plain text."""
        header, rows = self.cells()
        lines = [header, *([printable(cell) for cell in row] for row in rows)]
        widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
        text = []
        for line in lines:
            gaps = [" " * (width - _width(cell)) for cell, width in zip(line, widths, strict=True)]
            pairs = enumerate(zip(line, gaps, strict=True))
            text.append("  ".join(cell + gap if i < WORDS else gap + cell for i, (cell, gap) in pairs).rstrip())
        return "\n".join(text + self._rest())

    __repr__ = __str__

    def __rich__(self) -> Any:
        """Return the table that rich draws."""
        from rich import box, table, text

        header, rows = self.cells()
        grid = table.Table(box=box.SIMPLE_HEAD, pad_edge=False, caption="".join(self._rest()) or None, caption_justify="left")
        for i, name in enumerate(header):
            grid.add_column(name, justify="left" if i < WORDS else "right", overflow="fold")
        for row, cells in zip(self._rows, rows, strict=True):
            style = "red" if row.nonfinite else None
            grid.add_row(*(text.Text(printable(cell)) for cell in cells), style=style)  # a path may look like markup
        return grid

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Return the texts of the header and of the rows, without the columns of which nothing is known."""
        rows = [(row.path, str(row.shape), *row[2:]) for row in self._rows]
        return [HEADER[i] for i in self._known], [[_text(row[i]) for i in self._known] for row in rows]

    def _rest(self) -> list[str]:
        """Return the line that tells how many leaves are not shown, if any."""
        more = self.leaves - len(self)
        return [f"and {more:,} more {'leaf' if more == 1 else 'leaves'}"] if more else []


def rows_of(leaves: Leaves, sums: Any, plan: Any, norms: Floats | None, by_value: bool) -> list[LeafRow]:
    """Return what a report tells of each leaf, in order.

    leaves : those of the call, which is over
    sums, plan : those of the report
    norms : those of the report, if they are not those of its sums
    by_value : whether elements were clipped, so that there are no factors
    """
    described = leaves.described()
    counts = np.array([units for *_, units in described], np.intp)
    owner = _owner(sums, int(counts.sum()))
    found = _by_leaf(leaves, sums, counts, owner)
    told = leaves.measured if isinstance(leaves.measured, np.ndarray) and leaves.measured.shape[1] == len(described) else None
    factors = [None] * len(described) if by_value else _factors(plan, counts, owner)
    if found is not None:
        norms = found.norms()
    elif norms is None or len(norms) != len(described):
        norms = None
    return [
        LeafRow(path, shape, dtype, None if norms is None else float(norms[i]), factors[i], *_found(found, told, i, by_value))
        for i, (path, shape, dtype, _) in enumerate(described)
    ]


def printable(text: str) -> str:
    """Return text with escapes for all that cannot be seen: control characters, reversed writing, bytes that are no text."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _width(text: str) -> int:
    """Return how many columns of a terminal text takes: two for a wide character, none for a mark on the one before."""
    if text.isascii():
        return len(text)
    return sum((unicodedata.east_asian_width(c) in "WF") + 1 for c in text if unicodedata.category(c) not in ("Mn", "Me"))


def _owner(sums: Any, units: int) -> Any:
    """Return for each unit the number of the owner with which it shares a factor, -1: none; None if it has one of its own."""
    by_unit = getattr(sums, "units", sums)
    if by_unit is sums or not sums.count:
        return None
    return np.arange(units) % sums.count if sums.owner is None else sums.owner


def _by_leaf(leaves: Leaves, sums: Any, counts: Any, owner: Any) -> Any:
    """Return the Sums that have a unit for each leaf; None if no pass of the call measured these one by one."""
    found: Any = sums if leaves.measured is None else leaves.measured
    units: Any = getattr(found, "units", None)
    if not units or units.count != counts.sum():
        return None
    units = units.host() if hasattr(units, "host") else units
    if (counts == 1).all() and (owner is None or (owner >= 0).all()):
        return units
    leaf = np.repeat(np.arange(len(counts)), counts)
    if owner is not None:
        leaf[owner < 0] = -1  # padded samples
    return units.by_owner(len(counts), leaf)


def _factors(plan: Any, counts: Any, owner: Any) -> list[float]:
    """Return the smallest factor of each leaf, 1 for a leaf without units. Padded samples do not count."""
    edges = np.concatenate(([0], np.cumsum(counts)))
    if plan is None:
        factors = np.ones(edges[-1])
    elif owner is None:
        factors = plan.factors() if plan.count > 1 else np.full(edges[-1], plan.smallest())  # that of all leaves
    else:
        factors = plan.factors()[owner]
        edges = np.concatenate(([0], np.cumsum(owner >= 0)))[edges]
        factors = factors[owner >= 0]
    return [float(np.min(factors[a:b])) if b > a else 1.0 for a, b in pairwise(edges)]


def _found(found: Any, told: Any, i: int, by_value: bool) -> tuple[int | None, float | None, int | None, int | None]:
    """Return how many elements of a leaf were outside, its largest magnitude, and its NaN and Inf.

    told : what a Measure tells of each leaf, as `Measure._by_leaf`; None if there is none of these leaves
    """
    if found is None and told is not None:
        return None, None, int(told[1, i]), int(told[2, i])
    if found is None:
        return None, None, None, None
    return (found.outside(i) if by_value else None), found.max_abs(i), *found.parts(i)


def _rank(row: LeafRow) -> tuple[int, float]:
    """Return what rows are ordered by: NaN and Inf before all, then the largest norms, and last what is not known."""
    norm = row.norm
    if row.nonfinite or (norm is not None and math.isnan(norm)):
        return 0, -norm if norm is not None and math.isfinite(norm) else -math.inf
    return (2, 0.0) if norm is None else (1, -norm)


def _text(value: Any) -> str:
    """Return a value as a table shows it."""
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
