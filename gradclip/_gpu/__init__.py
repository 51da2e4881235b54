"""The GPU engine: the two passes over CuPy arrays. Imported when a first leaf lies on a GPU; see README.md beside this.

Where all leaves of a call lie on GPUs, what is measured, decided and written stays there: `measure` returns `DeviceSums`,
whose numbers are fetched when they are asked for. Else the sums of all GPUs and of the processor are brought together
here, and factors are sent back."""

from __future__ import annotations

from .._cpu.passes import measure_here, measure_written_here
from .program import Uninterrupted
from .reading import read
from .sums import DeviceSums, absorb, value_at
from .table import sample_table, table_of

__all__ = ["Uninterrupted", "measure", "measure_written", "prepared", "prepared_sums"]


def measure(leaves, ord, grad_scale=1.0, bounds=None):
    """One read pass over all leaves. `bounds`: a clamping Plan whose bounds are counted against."""
    tables = [table_of(leaves, device) for device in leaves.devices()]
    for table in tables if len(tables) > 1 else ():  # of which a graph would capture one device's part
        table.place.refuse_capture("a call whose leaves lie on several devices")
    limits = None if bounds is None else bounds.bounds()
    parts = [read(table, ord, limits=_on_device(table, limits)) for table in tables]
    if leaves.on_device == leaves.count:
        return DeviceSums(parts, ord, grad_scale, leaves.units, leaves.size, leaves.naming())
    sums = _gathered(measure_here(leaves, ord, grad_scale, bounds), leaves, parts)
    if sums.nonfinite():
        places = [table.place for table in tables]
        sums.first_value = value_at(places, leaves.sources[sums.first_leaf], sums.first_nonfinite[1])
    return sums


def measure_written(leaves, plan, ord):
    """What `measure` would say of the elements that `write` would write; nothing is written."""
    tables, words = [table_of(leaves, device) for device in leaves.devices()], plan.records()
    parts = [read(table, ord, _writes(table, words)) for table in tables]
    return _gathered(measure_written_here(leaves, plan, ord), leaves, parts)


def prepared(leaves, plan):
    """Everything of the write pass on all GPUs but its launches: a function that makes them, of which none can fail for
    want of memory."""
    words, limits = plan.records(), plan.bounds()
    tables = [table_of(leaves, device) for device in leaves.devices()]
    ready = [(table, _writes(table, words), _on_device(table, limits)) for table in tables]

    def write():
        for table, writes, bounds in ready:
            table.launch("write_leaves", writes, len(writes), table.in_place, 0 if bounds is None else bounds, 0)

    return write


def prepared_sums(leaves, to, plan, batch):
    """Everything but its launches of: to = sum over the batch of what the plan (one Write per leaf and sample) makes of each
    sample, on every GPU."""
    words = plan.records()[:batch]  # the same for each leaf
    tables = [sample_table(leaves, device, to) for device in leaves.devices()]
    ready = [(table, table.place.upload(words)) for table in tables]

    def write():
        for table, writes in ready:
            if batch:
                table.launch("sum_samples", writes, batch, 0, 0)
            for i in table.which if batch == 0 else ():
                table.place.zero(to.arrays[i])

    return write


def _writes(table, words):
    """One Write for all, or those of the units of a table."""
    return table.place.upload(words[table.numbers] if len(words) > 1 else words)


def _on_device(table, limits):
    """The bounds of clamping where a table is; None for none."""
    return None if limits is None else table.place.constant(limits)


def _gathered(sums, leaves, parts):
    """Sums of the processor's leaves, completed by those of GPUs."""
    absorb(sums, parts, leaves.path)
    sums.size = leaves.size
    return sums
