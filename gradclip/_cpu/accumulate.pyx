# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The sum over a batch of scaled samples: the write pass of `per_sample_clip_sum`.

Work is cut along the elements, never along the batch: one thread adds all samples of a strip, in their order, into
two float64 strips (sum and what additions lost) that stay in its nearest cache. So the samples are
read once, the sum is written once, and threads cannot matter."""
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cython.parallel cimport prange
from libc.math cimport ldexp
from libc.stddef cimport ptrdiff_t
from libc.string cimport memset

from gradclip._leaves cimport Leaves, gc_leaf, gc_move, lay_out
from gradclip._cpu.machine cimport kernels, team_size, GC_F64
from gradclip._cpu.passes cimport alter, fetch
from gradclip._cpu.plan cimport Kind, Plan, Write, gc_fpenv, gc_fp_enter, gc_fp_leave

cdef enum:
    STRIP = 1024            # elements: 16 KiB of sums


cdef struct Batch:          # one leaf
    gc_leaf sample          # the first
    gc_leaf sum
    ptrdiff_t stride        # bytes from one sample to the next
    ptrdiff_t first         # its strips begin here among those of all leaves
    const Write *write      # of its first sample


cdef void contribute(const Batch *b, ptrdiff_t i, ptrdiff_t first, ptrdiff_t n, double *sums, double *errors) noexcept nogil:
    """Add the strip of one sample, rounded to the dtype of the sum."""
    cdef double space[2][STRIP]
    cdef char *buffer = <char *>space[0]
    cdef double *wide = space[1]
    cdef gc_leaf sample = b.sample
    cdef const Write *w = b.write + i
    cdef const char *x
    cdef int half
    sample.data += i * b.stride
    x = fetch(&sample, first, n, buffer)
    if w.kind == Kind.SCALE and w.factor.last == 0:
        return              # a sample left out, whatever it holds
    if sample.dtype == b.sum.dtype:
        if w.kind != Kind.KEEP or w.zero:
            alter(w, sample.dtype, buffer, &sample, x, n, buffer)
            x = buffer
    else:                   # the product is rounded once, to the dtype of the sum
        kernels.widen[sample.dtype](wide, x, n)
        if w.kind == Kind.SCALE:
            if w.factor.shift:
                half = w.factor.shift // 2
                kernels.scale[GC_F64](wide, wide, n, ldexp(1, half))
                kernels.scale[GC_F64](wide, wide, n, ldexp(1, w.factor.shift - half))
            kernels.scale[GC_F64](wide, wide, n, w.factor.last)
        kernels.narrow[b.sum.dtype](buffer, wide, n)
        x = buffer
    kernels.accumulate[b.sum.dtype](sums, errors, x, n)


cdef void sum_strip(const Batch *b, ptrdiff_t batch, ptrdiff_t strip) noexcept nogil:
    cdef double sums[STRIP]
    cdef double errors[STRIP]
    cdef ptrdiff_t first = strip * STRIP, i, n = min(<ptrdiff_t>STRIP, b.sum.size - first)
    cdef gc_fpenv saved = gc_fp_enter()
    memset(sums, 0, n * sizeof(double))
    memset(errors, 0, n * sizeof(double))
    for i in range(batch):
        contribute(b, i, first, n, sums, errors)
    for i in range(n):
        sums[i] += errors[i]
    if b.sum.ndim == 0:
        kernels.narrow[b.sum.dtype](b.sum.data + first * b.sum.itemsize, sums, n)
    else:
        kernels.narrow[b.sum.dtype](errors, sums, n)
        gc_move(&b.sum, first, n, <char *>errors, 1)
    gc_fp_leave(saved)


def sum_samples(Leaves leaves, Leaves to, Plan plan, ptrdiff_t batch):
    """to = sum over the batch of what the plan (one Write per leaf and sample) makes of each sample."""
    cdef Batch *table = <Batch *>PyMem_Calloc(max(leaves.count, 1), sizeof(Batch))
    cdef Py_ssize_t i, j, count = leaves.count, strips = 0
    cdef ptrdiff_t bytes = 0
    cdef int team
    if table == NULL:
        raise MemoryError
    try:
        for i in range(count):
            if batch:
                lay_out(leaves.arrays[i][0, ...], to.arrays[i], &table[i].sample, &table[i].sum, False)
                table[i].stride = leaves.arrays[i].strides[0]
                bytes += leaves.arrays[i].nbytes
            else:
                lay_out(to.arrays[i], None, &table[i].sum, NULL, False)
            table[i].first = strips
            table[i].write = plan.write + i * batch
            strips += (table[i].sum.size + STRIP - 1) // STRIP
        team = team_size(bytes, strips)
        with nogil:
            for i in prange(strips, schedule="dynamic", chunksize=8, num_threads=team):
                j = leaf_of(table, count, i)
                sum_strip(&table[j], batch, i - table[j].first)
    finally:
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
