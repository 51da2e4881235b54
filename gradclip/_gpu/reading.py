"""The read pass on one device."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from .program import has_little_float64

if TYPE_CHECKING:
    from .._core.arguments import Indices
    from .program import DeviceArray
    from .table import Table

WORDS_OF_SUM = 9
KERNELS = {math.inf: "measure_largest", 1.0: "measure_magnitudes", 2.0: "measure_squares"}
BY_DIGITS = {"measure_squares", "measure_and_count"}  # kernels that have another for devices with little float64


class Part(NamedTuple):
    """What one device holds: Sums of units, partial Sums of all of these, and the Sum of all where that is made already.

    table: of the leaves that were read; found: the partial Sums; and if `folded`, the Sum of all behind them; numbers: of the
    units, among those of all devices; None: these are Sums of owners, and every device holds them all."""

    table: Table
    unit: DeviceArray
    found: DeviceArray
    numbers: Indices | None
    folded: bool = False

    @property
    def partial(self) -> DeviceArray:
        """The partial Sums."""
        return self.found[: self.table.partials] if self.folded else self.found

    @property
    def total(self) -> DeviceArray | None:
        """The Sum of all; None where it is not made."""
        return self.found[self.table.partials : self.table.partials + 1] if self.folded else None

    @property
    def own(self) -> Indices:
        """The numbers of the units, for Sums that are by unit."""
        assert self.numbers is not None
        return self.numbers


def order_of(ord: float) -> float:
    """The order of a norm as kernels take it: 0 stands for inf."""
    return 0.0 if ord == math.inf else ord


class Reading:
    """A read pass whose Sums are yet to be folded: by `fold`, or by `decide`, which decides about all of them too."""

    def __init__(self, table: Table, order: float) -> None:
        stream = table.stream
        self.table, self._order = table, order
        self._unit, self._found = stream.empty(table.units, WORDS_OF_SUM), stream.empty(table.partials + 2, WORDS_OF_SUM)
        self.slots = self._unit if table.slots == table.units else stream.empty(table.slots, WORDS_OF_SUM)
        self._total = self._found.data.ptr + 8 * WORDS_OF_SUM * table.partials
        self.ticket = self._total + 8 * WORDS_OF_SUM  # of `fold_to_total` in fold.cu
        self._args = self.slots, table.units, table.lanes, order, self._unit, self._found, self._total, self.ticket

    @property
    def part(self) -> Part:
        """What is there once it is folded."""
        found = self._found if self.table.partials else self._found[:0]  # where nothing is launched
        return Part(self.table, self._unit, found, self.table.numbers, self.table.partials > 0)

    def fold(self) -> Part:
        """Fold; returns the Part that is filled."""
        self.table.stream.launch("fold_segments", self.table.partials, *self.table.args, *self._args)
        return self.part

    def decide(self, *args: Any) -> Part:
        """Fold, and decide about all units together.

        args : of `fold_and_decide` (decide.cu), from the threshold on
        """
        self.table.stream.launch("fold_and_decide", self.table.partials, *self.table.args, *self._args, *args)
        return self.part


def begin(
    table: Table,
    ord: float,
    writes: DeviceArray | None = None,
    opened: DeviceArray | Literal[0] = 0,
    limits: tuple[DeviceArray, int] = (0, 0),
) -> Reading:
    """Launch a read pass over the leaves of a table.

    writes : they are measured as these would make them
    opened : a word for each of the writes; only what has one that is not 0 is measured
    limits : what `Table.bounds` returns; elements outside are counted, if there are any bounds
    """
    reading, order = Reading(table, order_of(ord)), order_of(ord)
    made = (0, 0, 0) if writes is None else (writes, opened, len(writes))
    kernel = KERNELS.get(ord, "measure_powers") if isinstance(limits[0], int) else "measure_and_count"
    if table.pairs and kernel == "measure_squares" and writes is None:
        kernel = "measure_pairs"
    if kernel in BY_DIGITS and has_little_float64(table.stream.device):
        kernel += "_by_digits"
    table.launch(kernel, *made, *limits, order, reading.slots, reading.ticket)
    return reading


def read(
    table: Table,
    ord: float,
    writes: DeviceArray | None = None,
    opened: DeviceArray | Literal[0] = 0,
    limits: tuple[DeviceArray, int] = (0, 0),
) -> Part:
    """Launch a read pass over the leaves of a table, and fold what it finds; returns the Part that is filled. See `begin`."""
    return begin(table, ord, writes, opened, limits).fold()
