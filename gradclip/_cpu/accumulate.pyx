# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The sum over a batch of scaled samples: the write pass of `per_sample_clip_sum`.

Work is cut along the elements, never along the batch: one thread adds all samples of a strip, in their order, into
two float64 strips (sum and what additions lost) that stay in its nearest cache. So the samples are
read once, the sum is written once, and threads cannot matter."""
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.math cimport INFINITY, isfinite
from libc.stddef cimport ptrdiff_t
from libc.string cimport memset

import numpy as np

from gradclip._leaves.layout cimport gc_leaf, gc_move, lay_out
from gradclip._leaves.leaves cimport Leaves
from gradclip._cpu.blocks cimport alter, fetch, shift
from gradclip._cpu.fpenv cimport gc_fpenv, gc_fp_enter, gc_fp_leave
from gradclip._cpu.machine cimport (
    ROOM, SERIAL_BYTES, STRIP, TOGETHER, Scratch, give_scratch, kernels, share_out, take_scratch, team_size, GC_F64)
from gradclip._cpu.plan cimport Plan, Write
from gradclip._cpu.scalar cimport GC_SCALE
from gradclip._cpu.watch cimport Watch, gc_raise, interrupted

cdef double DOWN = 2.0 ** -64   # times as many samples as there can be, no sum of what is this much smaller overflows
cdef double UP = 2.0 ** 64

cdef enum:
    ASK = 1 << 16           # elements between two questions about signals
    TURN = 8                # strips that a thread takes at a time


cdef struct Batch:          # one leaf
    gc_leaf sample          # the first
    gc_leaf sum
    ptrdiff_t stride        # bytes from one sample to the next
    ptrdiff_t first         # its strips begin here among those of all leaves
    const Write *write      # of its first sample


cdef struct Desk:           # of one thread: strips of float64 in its room (machine.pyx)
    double *sums            # of samples, by a strip of
    double *errors          # what their additions lost;
    double *careful         # those that overflow otherwise
    double *gathered
    double *wide
    double *added
    Watch *watch
    int thread
    gc_fpenv saved


cdef Desk desk_of(char *room, Watch *watch, int thread, gc_fpenv saved) noexcept nogil:
    cdef Desk d
    cdef double *strip = <double *>(room + thread * <size_t>ROOM)
    d.sums, d.errors, d.careful = strip, strip + STRIP, strip + 2 * STRIP
    d.gathered, d.wide, d.added = strip + 3 * STRIP, strip + 4 * STRIP, strip + 5 * STRIP
    d.watch, d.thread, d.saved = watch, thread, saved
    return d


cdef void contribute(const Batch *b, const Write *w, const char *x, ptrdiff_t n, double unit, Desk *d,
                     double *sums) noexcept nogil:
    """Add a strip of one sample that needs more than one multiplication in its own dtype, multiplied by a power of two."""
    cdef double *wide = d.wide
    cdef char *buffer = <char *>d.added
    if b.sample.dtype == b.sum.dtype:
        alter(kernels, w, b.sample.dtype, buffer, &b.sample, x, n, buffer)
    else:                   # the product is rounded once, to the dtype of the sum
        kernels.widen[b.sample.dtype](wide, x, n)
        if w.kind == GC_SCALE:
            if w.factor.shift:
                shift(kernels, GC_F64, wide, wide, n, <int>w.factor.shift)
            kernels.scale[GC_F64](wide, wide, n, w.factor.last)
        kernels.narrow[b.sum.dtype](buffer, wide, n)
    kernels.add_samples[b.sum.dtype](sums, d.errors, buffer, buffer, 0, 1, n, &unit)


cdef bint sum_samples_of(const Batch *b, ptrdiff_t batch, ptrdiff_t first, ptrdiff_t n, double unit, Desk *d,
                         double *sums) noexcept nogil:
    """Sum a strip of every sample in some `unit`: in 1, plain ones several at a time, straight from memory. False: stopped."""
    cdef double factor[TOGETHER]
    cdef double *errors = d.errors
    cdef ptrdiff_t asked = 0
    cdef gc_leaf sample = b.sample
    cdef const Write *w
    cdef const char *x
    cdef const char *next   # the next samples of this strip, or the first of the next strip
    cdef ptrdiff_t i = 0, together
    memset(sums, 0, STRIP * sizeof(double))
    memset(errors, 0, STRIP * sizeof(double))
    while i < batch:
        if (i - asked) * n >= ASK:
            asked = i
            if interrupted(d.watch, d.thread, &d.saved):
                return False
        together = 0
        while unit == 1 and i < batch and together < TOGETHER and sample.ndim == 0 and sample.dtype == b.sum.dtype:
            w = b.write + i
            factor[together] = w.factor.last if w.kind == GC_SCALE else 1
            if w.zero or w.factor.shift:
                break
            together += 1
            i += 1
        if together:
            x = b.sample.data + (i - together) * b.stride + first * sample.itemsize
            next = b.sample.data + (i * b.stride + first * sample.itemsize if i < batch else (first + n) * sample.itemsize)
            kernels.add_samples[sample.dtype](sums, errors, x, next, b.stride, together, n, factor)
            continue
        w = b.write + i
        if not (w.zero and w.factor.last == 0):     # else left out, whatever it holds
            sample.data = b.sample.data + i * b.stride
            contribute(b, w, fetch(&sample, first, n, <char *>d.gathered), n, unit, d, sums)
        i += 1
    for i in range(n):
        if isfinite(sums[i]):   # the errors of a sum that is not are NaN
            sums[i] += errors[i]
    return True


cdef bint any_infinite(const double *sums, ptrdiff_t n) noexcept nogil:
    cdef ptrdiff_t i
    for i in range(n):
        if not isfinite(sums[i]):
            return True
    return False


cdef bint add_up(const Batch *b, ptrdiff_t batch, ptrdiff_t first, ptrdiff_t n, Desk *d) noexcept nogil:
    """Sum one strip over the batch; returns False if a signal stopped it."""
    cdef ptrdiff_t i
    if interrupted(d.watch, d.thread, &d.saved) or not sum_samples_of(b, batch, first, n, 1, d, d.sums):
        return False
    if b.sum.dtype == GC_F64 and any_infinite(d.sums, n):   # on the way to a total that float64 holds, perhaps
        if not sum_samples_of(b, batch, first, n, DOWN, d, d.careful):
            return False
        for i in range(n):
            if not isfinite(d.sums[i]):
                d.sums[i] = d.careful[i] * UP
    return True


cdef void sum_strip(const Batch *b, ptrdiff_t batch, ptrdiff_t strip, char *room, Watch *watch, int thread) noexcept nogil:
    cdef ptrdiff_t first = strip * STRIP, n = min(<ptrdiff_t>STRIP, b.sum.size - first)
    cdef Desk d = desk_of(room, watch, thread, gc_fp_enter())
    if add_up(b, batch, first, n, &d):
        if b.sum.ndim == 0:
            kernels.narrow[b.sum.dtype](b.sum.data + first * b.sum.itemsize, d.sums, n)
        else:
            kernels.narrow[b.sum.dtype](d.added, d.sums, n)
            gc_move(&b.sum, first, n, <char *>d.added, 1)
    gc_fp_leave(d.saved)


cdef struct Share:          # what the threads of a team share
    const Batch *table
    Py_ssize_t count, strips
    ptrdiff_t batch
    char *room
    Watch *watch


cdef void sum_chunk(void *of, ptrdiff_t chunk, int thread) noexcept nogil:
    cdef const Share *s = <const Share *>of
    cdef Py_ssize_t i, j
    for i in range(chunk * TURN, min((chunk + 1) * TURN, s.strips)):
        j = leaf_of(s.table, s.count, i)
        sum_strip(&s.table[j], s.batch, i - s.table[j].first, s.room, s.watch, thread)


def sum_samples(Leaves leaves, Leaves to, Plan plan, ptrdiff_t batch, bint fresh=False):
    """Write to `to` the sum over the batch of what the plan (one Write per leaf and sample) makes of each sample; a batch of
    none: 0. Everything that may fail comes before the first sum is written.

    fresh: `to` is memory that nobody has seen yet, so that Ctrl-C may end the pass half-way."""
    cdef Batch *table = <Batch *>PyMem_Calloc(max(leaves.count, 1), sizeof(Batch))
    cdef Py_ssize_t i, count = leaves.count, strips = 0
    cdef ptrdiff_t bytes = 0
    cdef int team
    cdef Scratch scratch
    cdef Watch watch
    cdef Share share
    watch.due, watch.stopped = 0 if fresh else INFINITY, False
    scratch.memory = NULL
    if table == NULL:
        raise MemoryError
    try:
        for i in range(count):
            if leaves.leaf[i].device:
                table[i].first = strips
                continue
            if batch:
                sums = np.broadcast_to(to.arrays[i], leaves.arrays[i].shape)    # walked alike, one for all samples
                lay_out(leaves.arrays[i], sums, &table[i].sample, &table[i].sum, False, (0,))
                table[i].stride = leaves.arrays[i].strides[0]
                bytes += leaves.arrays[i].nbytes
            else:
                lay_out(to.arrays[i], None, &table[i].sum, NULL, False)
            table[i].first = strips
            table[i].write = plan.write + i * batch
            strips += (table[i].sum.size + STRIP - 1) // STRIP
        team = team_size(strips) if bytes >= SERIAL_BYTES else 1
        take_scratch(&scratch, team)
        share = Share(table, count, strips, batch, scratch.room, &watch)
        to.announce()
        with nogil:
            share_out(sum_chunk, &share, (strips + TURN - 1) // TURN, team)
        if watch.stopped:
            gc_raise()
    finally:
        if scratch.memory != NULL:
            give_scratch(&scratch)
        for i in range(count):
            PyMem_Free(table[i].sample.axes)
            PyMem_Free(table[i].sum.axes)
        PyMem_Free(table)


cdef Py_ssize_t leaf_of(const Batch *table, Py_ssize_t count, ptrdiff_t strip) noexcept nogil:
    """The last leaf that begins at or before a strip."""
    cdef Py_ssize_t low = 0, high = count, middle
    while high - low > 1:
        middle = (low + high) // 2
        if table[middle].first <= strip:
            low = middle
        else:
            high = middle
    return low
