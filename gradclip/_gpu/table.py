"""The table of leaves that kernels read: where elements are (from `Leaves.described`) and how the work is cut.

Work is cut by size alone. A segment of a unit goes to a thread block; short units and columns, of which 256
neighbours are read together, go to a thread each. No unit has more segments than SEGMENTS, so that folding
them stays small beside reading."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from .program import THREADS, empty, upload

SEGMENT = 16384  # elements at least
NARROW_SEGMENT = 1024  # of a thread
SEGMENTS = 4096
NARROW = 128  # elements of a unit up to which one thread takes it
FEW = 32  # columns below which they are read one by one
ROW = dict(size=8, units=9, first_unit=10, is_complex=12, narrow=13, segment=14, segments=15, first_block=16,
           first_slot=17, origin=18, index_ndim=19, index_axes=20)  # fmt: skip
SAMPLES = "samples"
REMEMBERED = 64  # tables kept on devices: gradients lie where they lay a step ago


class Table:
    """One table on a device.

    args : what kernels take first: the table and the number of leaves
    which : indices of the leaves
    places : (first unit, units) of each leaf among the units of all leaves
    blocks, slots, units, lanes, partials : thread blocks of a pass, Sums of segments, units, threads that fold a unit,
        thread blocks that fold
    """

    def __init__(self, device, which, row, pool, places):
        self.device, self.which, self.places = device, which, places
        units, segments = row[:, ROW["units"]], row[:, ROW["segments"]]
        self.units, self.slots = int(units.sum()), int((units * segments).sum())
        self.lanes = 1
        while self.lanes < THREADS and self.lanes * 4 < segments.max(initial=1):
            self.lanes *= 2
        self.partials = -(-self.units * self.lanes // THREADS)
        self.blocks = int(_blocks(row).sum())
        self.args = (_remembered(device, np.concatenate([row.ravel(), np.array(pool, np.int64)])), len(row))

    def empty(self, *shape):
        return empty(self.device, shape)

    def local_places(self):
        """(first unit, units) of each leaf among the units of this table."""
        counts = [n for _, n in self.places]
        return list(zip(np.cumsum([0, *counts[:-1]]).tolist(), counts, strict=True))


def table_of(leaves, device, kind="pass", to=None):
    """The table of the leaves on a device, made once for each Leaves."""
    if kind == SAMPLES:
        return _sample_tables(leaves, device, to)
    if leaves.tables is None:
        leaves.tables = {}
    if device not in leaves.tables:
        which, row, pool = leaves.described(device)
        places = list(zip(row[:, ROW["first_unit"]].tolist(), row[:, ROW["units"]].tolist(), strict=True))
        row[:, ROW["first_unit"]] = _before(row[:, ROW["units"]])
        _cut(row)
        for i, words in zip(which, row, strict=True):
            _index(leaves.sources[i], words, pool)
        leaves.tables[device] = Table(device, which, row, pool, places)
    return leaves.tables[device]


def _sample_tables(leaves, device, to):
    """By leaf on a device: a table of one, whose units are samples and whose threads are their elements."""
    paired = leaves.summed_into(to)
    which, row, pool = paired.described(device)
    row[:, ROW["first_unit"]] = row[:, ROW["first_block"]] = 0
    row[:, ROW["segments"]] = -(-row[:, ROW["size"]] // THREADS)
    tables = {}
    for i, words in zip(which, row, strict=True):
        tables[i] = Table(device, [i], words[None], pool, [])
        tables[i].blocks = int(words[ROW["segments"]])
    return tables


def _before(counts):
    """How many come before each."""
    return np.cumsum(counts) - counts


def _blocks(row):
    units = row[:, ROW["units"]]
    return np.where(row[:, ROW["narrow"]], -(-units // THREADS), units) * row[:, ROW["segments"]]


def _cut(row):
    """Fill in how the work of each leaf is cut. `narrow` comes as: units are columns."""
    size, units, columns = row[:, ROW["size"]], row[:, ROW["units"]], row[:, ROW["narrow"]]
    narrow = (units > 1) & ((columns & (units >= FEW)) | (size <= NARROW))
    least = np.where(narrow, NARROW_SEGMENT, SEGMENT)
    segment = np.maximum(-(-size // (SEGMENTS * least)), 1) * least
    row[:, ROW["narrow"]], row[:, ROW["segment"]] = narrow, segment
    row[:, ROW["segments"]] = np.maximum(-(-size // segment), 1)
    row[:, ROW["first_block"]] = _before(_blocks(row))
    row[:, ROW["first_slot"]] = _before(units * row[:, ROW["segments"]])


def _index(array, words, pool):
    """How flat indices, in C order, follow from addresses: by axes, the widest first."""
    words[ROW["origin"]], words[ROW["index_axes"]] = array.data.ptr, len(pool)
    if array._c_contiguous:
        words[ROW["index_ndim"]] = 1
        pool += (array.size, array.itemsize, 1, 0)
        return
    weight, axes = 1, []
    for n, stride in zip(reversed(array.shape), reversed(array.strides), strict=True):
        if n > 1 and stride:
            axes.append((n, abs(stride), weight, stride < 0))
            words[ROW["origin"]] += min(stride * (n - 1), 0)
        weight *= n
    axes.sort(key=lambda axis: -axis[1])
    words[ROW["index_ndim"]] = len(axes)
    for axis in axes:
        pool += axis


_tables: OrderedDict[tuple[int, bytes], object] = OrderedDict()


def _remembered(device, words):
    """The words on the device, from the last steps if they are the same: no copy then, and no wait for one."""
    key = device, words.tobytes()
    found = _tables.pop(key, None)
    if found is None:
        found = upload(device, words)
        if len(_tables) >= REMEMBERED:
            _tables.popitem(last=False)
    _tables[key] = found
    return found
