"""The GPU engine: the two passes over CuPy arrays. Imported when a first leaf lies on a GPU; see README.md beside this.

Where all leaves of a call lie on one GPU, what is measured, decided and written stays there: `measure` returns
`DeviceSums`, whose numbers are fetched when they are asked for. Else the sums of all GPUs and of the processor
are brought together here, and factors are sent back."""

from __future__ import annotations

import numpy as np

from .._cpu.passes import measure_here, measure_written_here
from .program import Uninterrupted
from .sums import WORDS_OF_SUM, DeviceSums, first_of, value_at
from .table import sample_table, table_of

__all__ = ["Uninterrupted", "measure", "measure_written", "prepared", "sum_samples"]

KERNELS = {0.0: "measure_largest", 1.0: "measure_magnitudes", 2.0: "measure_squares"}


def measure(leaves, ord, grad_scale=1.0, bounds=None):
    """One read pass over all leaves. `bounds`: a clamping Plan whose bounds are counted against."""
    tables = [table_of(leaves, device) for device in leaves.devices()]
    limits = None if bounds is None else bounds.bounds()
    found = [_read(table, ord, limits=limits) for table in tables]
    if leaves.on_device == leaves.count and len(found) == 1:
        return DeviceSums(tables[0], *found[0], ord, grad_scale, leaves.size, leaves.naming())
    return _gathered(measure_here(leaves, ord, grad_scale, bounds), leaves, tables, found)


def measure_written(leaves, plan, ord):
    """What `measure` would say of the elements that `write` would write; nothing is written."""
    tables = [table_of(leaves, device) for device in leaves.devices()]
    found = [_read(table, ord, plan=plan) for table in tables]
    return _gathered(measure_written_here(leaves, plan, ord), leaves, tables, found)


def prepared(leaves, plan):
    """Everything of the write pass on all GPUs but its launches: a function that makes them, of which none can fail for
    want of memory."""
    words, limits = plan.records(), plan.bounds()
    tables = [table_of(leaves, device) for device in leaves.devices()]
    ready = [(table, *_writes(table, words), _bounds(table, limits)) for table in tables]

    def write():
        for table, *args in ready:
            table.launch("write_leaves", *args, 0)

    return write


def sum_samples(leaves, to, plan, batch):
    """to = sum over the batch of what the plan (one Write per leaf and sample) makes of each sample, on every GPU."""
    words = plan.records()[:batch]  # the same for each leaf
    tables = [sample_table(leaves, device, to) for device in leaves.devices()]
    ready = [(table, table.place.upload(words)) for table in tables]
    for table, writes in ready:
        if batch:
            table.launch("sum_samples", writes, batch, 0, 0)
        for i in table.which if batch == 0 else ():
            table.place.zero(to.arrays[i])


def _writes(table, words):
    """One Write for all, or those of the units of a table; and how many."""
    if len(words) > 1:
        words = np.concatenate([words[first : first + n] for first, n in table.places] or [words[:0]])
    return table.place.upload(words), len(words)


def _bounds(table, limits):
    """The bounds of clamping as an argument; 0 for none."""
    return 0 if limits is None else table.place.constant(limits)


def _read(table, ord, plan=None, limits=None):
    """Launch the read pass on one GPU: the Sums of its units, and partial Sums of all of them."""
    place = table.place
    unit, partial = place.empty(table.units, WORDS_OF_SUM), place.empty(table.partials, WORDS_OF_SUM)
    slots = unit if table.slots == table.units else place.empty(table.slots, WORDS_OF_SUM)
    writes = (0, 0) if plan is None else _writes(table, plan.records())
    kernel = KERNELS.get(ord, "measure_powers") if limits is None else "measure_and_count"
    table.launch(kernel, *writes, _bounds(table, limits), ord, slots)
    place.launch("fold_segments", table.partials, *table.args, slots, table.units, table.lanes, ord, unit, partial)
    return unit, partial


def _gathered(sums, leaves, tables, found):
    """Sums of the processor's leaves, completed by those of GPUs."""
    first = (sums.first_leaf, sums.first_nonfinite[1]) if sums.nonfinite() else None
    for table, (unit, _) in zip(tables, found, strict=True):
        words = table.place.fetch(unit)
        for (start, n), local in zip(table.places, table.starts(), strict=True):
            sums.absorb(start, words[local : local + n])
        theirs = first_of(table, words)
        if theirs is not None and (first is None or theirs[0] < first[0]):
            first = theirs
            sums.first_value = value_at(table.place, leaves.sources[theirs[0]], theirs[1])
    sums.size = leaves.size
    sums.first_nonfinite = None if first is None else (leaves.path(first[0]), first[1])
    return sums
