"""The GPU engine: the two passes over CuPy arrays. Imported when a first leaf lies on a GPU; see README.md beside this.

Where all leaves of a call lie on one GPU, what is measured, decided and written stays there: `measure` returns
`DeviceSums`, whose numbers are fetched when they are asked for. Else the sums of all GPUs and of the processor
are brought together here, and factors are sent back."""

from __future__ import annotations

import numpy as np

from .._cpu.passes import measure_here, measure_written_here
from .program import constant, launch, upload
from .sums import DeviceSums, first_of
from .table import sample_tables, table_of

KERNELS = {0.0: "measure_largest", 1.0: "measure_magnitudes", 2.0: "measure_squares"}
WORDS_OF_SUM = 9


def measure(leaves, ord, grad_scale=1.0, bounds=None):
    """One read pass over all leaves. `bounds`: a clamping Plan whose bounds are counted against."""
    limits = None if bounds is None else bounds.records()[1]
    found = [_read(leaves, device, ord, limits=limits) for device in leaves.devices()]
    if leaves.on_device == leaves.count and len(found) == 1:
        (table, unit, partial) = found[0]
        return DeviceSums(leaves, table, unit, partial, ord, grad_scale)
    sums = measure_here(leaves, ord, grad_scale, bounds)
    return _gathered(sums, leaves, found)


def measure_written(leaves, plan, ord):
    """What `measure` would say of the elements that `write` would write; nothing is written."""
    found = [_read(leaves, device, ord, plan=plan) for device in leaves.devices()]
    sums = measure_written_here(leaves, plan, ord)
    return _gathered(sums, leaves, found)


def write(leaves, plan):
    """One write pass: every leaf on a GPU becomes what the plan makes of its source."""
    for device in leaves.devices():
        table = table_of(leaves, device)
        words, bounds = plan.records()
        launch(device, "write_leaves", table.blocks, (*table.args, *_writes(table, words), constant(device, bounds), 0))


def sum_samples(leaves, to, plan, batch):
    """to = sum over the batch of what the plan (one Write per leaf and sample) makes of each sample, on every GPU."""
    for device in leaves.devices():
        for i, table in sample_tables(leaves, device, to):
            if batch == 0:
                to.arrays[i].fill(0)
                continue
            words = plan.records()[0][i * batch : (i + 1) * batch]
            launch(device, "sum_samples", table.blocks, (*table.args, upload(device, words), batch, 0, 0))


def _writes(table, words):
    """One Write for all, or those of the units of a table; and the kernel's `modulo`."""
    if len(words) == 1:
        return upload(table.device, words), 0
    mine = np.concatenate([words[first : first + n] for first, n in table.places] or [words[:0]])
    return upload(table.device, mine), max(len(mine), 1)


def _read(leaves, device, ord, plan=None, limits=None):
    """Launch the read pass on one GPU: its table, the Sums of its units, and partial Sums of all of them."""
    table = table_of(leaves, device)
    slots, unit, partial = (table.empty(n, WORDS_OF_SUM) for n in (table.slots, table.units, table.partials))
    writes = (0, 0) if plan is None else _writes(table, plan.records()[0])
    bounds = 0 if limits is None else constant(device, limits)
    launch(device, KERNELS.get(ord, "measure_powers"), table.blocks, (*table.args, *writes, bounds, ord, slots))
    launch(device, "fold_segments", table.partials, (*table.args, slots, table.units, table.lanes, ord, unit, partial))
    return table, unit, partial


def _gathered(sums, leaves, found):
    """Sums of the processor's leaves, completed by those of GPUs."""
    first = (sums.first_leaf, sums.first_nonfinite) if sums.nonfinite() else None
    for table, unit, _ in found:
        words = unit.get()
        for (start, n), (local, _) in zip(table.places, table.local_places(), strict=True):
            sums.absorb(start, words[local : local + n])
        theirs = first_of(table, words)
        if theirs is not None and (first is None or theirs[0] < first[0]):
            i, index = theirs
            first = i, (leaves.path(i), index)
            sums.first_value = leaves.sources[i].ravel()[index].get()
    sums.size = leaves.size
    sums.first_nonfinite = None if first is None else first[1]
    return sums
