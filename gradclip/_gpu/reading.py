"""The read pass on one device."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from .._core.arguments import Indices
    from .program import DeviceArray
    from .table import Table

WORDS_OF_SUM = 9
KERNELS = {math.inf: "measure_largest", 1.0: "measure_magnitudes", 2.0: "measure_squares"}


class Part(NamedTuple):
    """What one device holds: Sums of units, partial Sums of all of these, and the Sum of all where that is made already.

    table: of the leaves that were read; numbers: of the units, among those of all devices; None: these are Sums of owners,
    and every device holds them all."""

    table: Table
    unit: DeviceArray
    partial: DeviceArray
    numbers: Indices | None
    total: DeviceArray | None = None

    @property
    def own(self) -> Indices:
        """The numbers of the units, for Sums that are by unit."""
        assert self.numbers is not None
        return self.numbers


def order_of(ord: float) -> float:
    """The order of a norm as kernels take it: 0 stands for inf."""
    return 0.0 if ord == math.inf else ord


def read(
    table: Table,
    ord: float,
    writes: DeviceArray | None = None,
    opened: DeviceArray | Literal[0] = 0,
    limits: tuple[DeviceArray, int] = (0, 0),
) -> Part:
    """Launch a read pass over the leaves of a table; returns the Part that it fills.

    writes : they are measured as these would make them
    opened : a word for each of the writes; only what has one that is not 0 is measured
    limits : what `Table.bounds` returns; elements outside are counted, if there are any bounds
    """
    stream = table.stream
    unit, partial = stream.empty(table.units, WORDS_OF_SUM), stream.empty(table.partials + 2, WORDS_OF_SUM)
    slots = unit if table.slots == table.units else stream.empty(table.slots, WORDS_OF_SUM)
    total = partial.data.ptr + 8 * WORDS_OF_SUM * table.partials  # behind them, and then the ticket of fold_segments
    ticket = total + 8 * WORDS_OF_SUM
    made = (0, 0, 0) if writes is None else (writes, opened, len(writes))
    kernel = KERNELS.get(ord, "measure_powers") if isinstance(limits[0], int) else "measure_and_count"
    order = order_of(ord)
    table.launch(kernel, *made, *limits, order, slots, ticket)
    folds = slots, table.units, table.lanes, order, unit, partial, total, ticket
    stream.launch("fold_segments", table.partials, *table.args, *folds)
    of_all = partial[table.partials : table.partials + 1] if table.partials else None  # else nothing was launched
    return Part(table, unit, partial[: table.partials], table.numbers, of_all)
