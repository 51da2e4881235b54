"""The table of leaves that kernels read: where elements are (rows.pyx) and how the work is cut.

Work is cut by size alone. A unit's tiles go to its segments in turn, and a segment to a thread block; short units and columns,
of which 256 neighbours are read together, go to a thread each. No unit has more segments than SEGMENTS, so that folding them
stays small beside reading."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .program import THREADS, Remembered, has_little_float64
from .rows import Rows, signature

if TYPE_CHECKING:
    from .._core.arguments import Floats, Words
    from .._leaves import Leaves
    from .._leaves.units import Units
    from .program import DeviceArray, DeviceStream

TILE = THREADS * 8 * 16  # bytes: all that a thread block loads at once
TILES = 4  # of a segment at least
NARROW_TILE = 1024  # elements of a segment of a thread
SEGMENTS = 2048
ITEMSIZE = np.array([2, 2, 4, 8])  # of the dtypes of leaves.cu
NARROW = 128  # elements of a unit up to which one thread takes it
FEW = 32  # columns below which they are read one by one
WORDS = ("size", "units", "first_unit", "unit_ndim", "is_complex", "narrow", "tile", "segments", "first_block", "first_slot")
ROW = {name: 8 + k for k, name in enumerate((*WORDS, "origin", "index_ndim", "index_axes"))}  # after two views: see leaves.cu
ROW |= {"to": 0, "to_dtype": 1, "from": 4, "from_dtype": 5}


class Table:
    """One table on a device.

    stream : where
    args : what kernels take first: the table, the number of leaves, and where in it the leaf of each thread block is told
    which : indices of the leaves
    edges : where the units of each leaf begin among those of the table, and where they end
    numbers : of each unit of the table, among the units of all leaves
    in_place : 1 if every leaf is written where it is read, else 0
    casts : whether some leaf is written in another dtype than it is read in
    pairs : whether some leaf is complex
    blocks, slots, units, lanes, partials : thread blocks of a pass, Sums of segments, units, threads that fold a unit,
        thread blocks that fold
    """

    def __init__(self, stream: DeviceStream, which: list[int], row: Words, pool: list[int], first: Words) -> None:
        self.stream, self.which = stream, which
        self.in_place = int((row[:, ROW["to"]] == row[:, ROW["from"]]).all())
        self.casts = bool((row[:, ROW["to_dtype"]] != row[:, ROW["from_dtype"]]).any())
        self.pairs = bool(row[:, ROW["is_complex"]].any())
        units, segments = row[:, ROW["units"]], row[:, ROW["segments"]]
        self.units, self.slots = int(units.sum()), int((units * segments).sum())
        self.edges = np.append(_before(units), self.units)
        self.numbers = np.arange(self.units, dtype=np.intp) + np.repeat(first - self.edges[:-1], units)
        self.lanes = 1
        while self.lanes < THREADS and self.lanes * 4 < segments.max(initial=1):
            self.lanes *= 2
        self.partials = -(-self.units * self.lanes // THREADS)
        blocks = _blocks(row)
        self.blocks = int(blocks.sum())
        leaf_of = np.zeros(self.blocks + self.blocks % 2, np.uint32)  # of each thread block
        leaf_of[: self.blocks] = np.repeat(np.arange(len(row), dtype=np.uint32), blocks)
        words = np.concatenate([row.ravel(), np.array(pool, np.int64)])
        self.args = (stream.upload(np.concatenate([words, leaf_of.view(np.int64)])), len(row), len(words))

    def bounds(self, limits: Floats | None) -> tuple[DeviceArray, int]:
        """Return the bounds of a clamp as kernels take them: their array, and 1 if each leaf of the table has its own, else 0.

        limits : what `Plan.bounds` returns; None: there are none, and the array is a null pointer"""
        if limits is None:
            return 0, 0
        return (self.stream.constant(limits), 0) if len(limits) == 1 else (self.stream.constant(limits[self.which]), 1)

    def launch(self, name: str, *args: Any) -> None:
        """Begin a pass over all leaves."""
        self.stream.launch(name, self.blocks, *self.args, *args)

    def write(self, writes: DeviceArray, bounds: tuple[DeviceArray, int], sums: DeviceArray, steps: bool = False) -> None:
        """Begin a write pass.

        writes : those of the units of the table, or one for all
        bounds : what `Table.bounds` returns
        sums : of the units of the table; 0: there are none
        steps : whether parameters are changed, whose dtypes may be others than those of the gradients
        """
        args = writes, len(writes), self.in_place, *bounds, sums
        self.launch("write_leaves_in_float32" if has_little_float64(self.stream.device) else "write_leaves", *args)
        if self.casts and not steps:
            self.launch("cast_leaves", *args)


def table_of(leaves: Leaves, device: int) -> Table:
    """The table of the leaves on a device: of this call, or of a step before in which they lay there too."""
    if leaves.tables is None:
        leaves.tables = {}
    tables: dict[int, Table] = leaves.tables
    if device not in tables:
        tables[device] = _remembered(_made, leaves.stream(device), leaves, leaves.sources, leaves.turned(device))
    return tables[device]


def sample_table(leaves: Leaves, device: int, to: Leaves) -> Table:
    """The table of `per_sample_clip_sum`: units are samples, `to` is where their sum is written, threads are its elements."""
    return _remembered(_made_of_samples, leaves.stream(device), leaves.summed_into(to), leaves.sources, [])


class Kept(NamedTuple):
    """A table of an earlier call, and the rows that it was made from."""

    table: Table
    rows: Rows


Turned = list[tuple[int, tuple[int, ...], tuple[int, ...]]]  # index, shape and strides
_tables: Remembered[Kept] = Remembered(32)  # gradients lie where they lay a step ago


def _remembered(
    make: Callable[[DeviceStream, Rows, Sequence[DeviceArray]], Table],
    stream: DeviceStream,
    leaves: Units,
    arrays: Sequence[DeviceArray],
    turned: Turned,
) -> Table:
    """Return the table that `make` makes, or the same one of an earlier call in this stream, which needs no copy and no wait.

    `make` is part of its key, since each function makes another table of the same leaves.

    arrays : behind the leaves that are read
    turned : those of them that are not contiguous, from whose shapes and strides flat indices follow
    """
    device = stream.device
    key = *stream.key, make, leaves.count, signature(leaves, device), tuple(turned)
    found = _tables.get(key)
    if found is None or not found.rows.fit(leaves, device):
        rows = Rows(leaves, device)
        found = _tables.put(key, Kept(make(stream, rows, arrays), rows))
    return stream.kept(found.table)


def _made(stream: DeviceStream, rows: Rows, arrays: Sequence[DeviceArray]) -> Table:
    row, pool = rows.words.copy(), rows.pool.copy()
    first = row[:, ROW["first_unit"]].copy()
    row[:, ROW["first_unit"]] = _before(row[:, ROW["units"]])
    _cut(row)
    for i, words in zip(rows.which, row, strict=True):
        _index(arrays[i], words, pool)
    return Table(stream, rows.which, row, pool, first)


def _made_of_samples(stream: DeviceStream, rows: Rows, arrays: Sequence[DeviceArray]) -> Table:
    row = rows.words.copy()
    row[:, ROW["narrow"]] = 0
    row[:, ROW["units"]] = 1  # of work: each thread takes all samples
    row[:, ROW["segments"]] = -(-row[:, ROW["size"]] * ITEMSIZE[row[:, ROW["from_dtype"]]] // (THREADS * 16))
    row[:, ROW["first_block"]] = _before(_blocks(row))
    return Table(stream, rows.which, row, rows.pool, row[:, ROW["first_unit"]])


def _before(counts: Words) -> Words:
    """How many come before each."""
    return np.cumsum(counts) - counts


def _blocks(row: Words) -> Words:
    units = row[:, ROW["units"]]
    return np.where(row[:, ROW["narrow"]], -(-units // THREADS), units) * row[:, ROW["segments"]]


def _cut(row: Words) -> None:
    """Fill in how the work of each leaf is cut. `narrow` comes as: units are columns."""
    size, units, columns = row[:, ROW["size"]], row[:, ROW["units"]], row[:, ROW["narrow"]]
    narrow = (units > 1) & ((columns & (units >= FEW)) | (size <= NARROW))
    by_thread = np.maximum(-(-size // (SEGMENTS * NARROW_TILE)), 1) * NARROW_TILE
    tile = np.where(narrow, by_thread, TILE // ITEMSIZE[row[:, ROW["from_dtype"]]])
    row[:, ROW["narrow"]], row[:, ROW["tile"]] = narrow, tile
    row[:, ROW["segments"]] = np.clip(-(-size // (tile * np.where(narrow, 1, TILES))), 1, SEGMENTS)
    row[:, ROW["first_block"]] = _before(_blocks(row))
    row[:, ROW["first_slot"]] = _before(units * row[:, ROW["segments"]])


def _index(array: DeviceArray, words: Words, pool: list[int]) -> None:
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
