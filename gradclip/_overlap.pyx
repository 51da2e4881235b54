# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Which arrays share memory. Exact, and fast for the two usual cases: leaves that lie apart, and leaves
that interleave like the columns of one matrix."""
from cpython.mem cimport PyMem_Malloc, PyMem_Free
from libc.stdint cimport uintptr_t
from libc.stdlib cimport qsort

import numpy as np
cimport numpy as cnp

cnp.import_array()

cdef extern from *:
    """
    typedef struct { uintptr_t low, high; ptrdiff_t index; } gc_extent;
    static int gc_by_low(const void *a, const void *b)
    {
        uintptr_t x = ((const gc_extent *)a)->low, y = ((const gc_extent *)b)->low;
        return (x > y) - (x < y);
    }
    """
    ctypedef struct gc_extent:
        uintptr_t low, high
        ptrdiff_t index
    int gc_by_low(const void *a, const void *b) noexcept nogil


def overlaps_itself(cnp.ndarray a):
    """Whether two indices of one array share memory. Nested strides cannot; what is not nested is
    enumerated, which only as_strided makes necessary."""
    cdef ptrdiff_t reach = cnp.PyArray_ITEMSIZE(a)
    cdef bint nested = True
    for stride, n in sorted((abs(s), n) for s, n in zip((<object>a).strides, (<object>a).shape) if n > 1):
        if stride == 0:
            return True
        nested = nested and stride >= reach
        reach += stride * (n - 1)
    if nested:
        return False
    if (<object>a).nbytes > reach:
        return True
    starts = np.zeros(1, np.intp)
    for stride, n in zip((<object>a).strides, (<object>a).shape):
        starts = (starts[:, None] + np.arange(n) * stride).ravel()
    starts.sort()
    return bool((np.diff(starts) < (<object>a).itemsize).any())


cdef ptrdiff_t common_stride(cnp.ndarray a, ptrdiff_t g) noexcept:
    """The greatest common divisor of g and the strides of an array."""
    cdef ptrdiff_t x
    cdef int d
    for d in range(cnp.PyArray_NDIM(a)):
        if cnp.PyArray_DIM(a, d) > 1:
            x = abs(cnp.PyArray_STRIDE(a, d))
            while x:
                x, g = g % x, x
    return g


cdef bint share_memory(cnp.ndarray a, cnp.ndarray b):
    """Exact; by the greatest common stride first, which settles interleaved views at once."""
    cdef ptrdiff_t g = common_stride(b, common_stride(a, 0)), size = cnp.PyArray_ITEMSIZE(a)
    cdef ptrdiff_t offset = <char *>cnp.PyArray_DATA(b) - <char *>cnp.PyArray_DATA(a)
    if g:
        offset = (offset % g + g) % g
        if offset >= size and offset <= g - cnp.PyArray_ITEMSIZE(b):
            return False
    return np.shares_memory(a, b)


cdef gc_extent extent_of(cnp.ndarray a, ptrdiff_t index) noexcept:
    """The bytes between the first and the last element, both included."""
    cdef gc_extent e
    cdef ptrdiff_t reach
    cdef int d
    e.index = index
    e.low = e.high = <uintptr_t>cnp.PyArray_DATA(a)
    for d in range(cnp.PyArray_NDIM(a)):
        reach = cnp.PyArray_STRIDE(a, d) * (cnp.PyArray_DIM(a, d) - 1)
        if reach < 0:
            e.low += <uintptr_t>reach
        else:
            e.high += <uintptr_t>reach
    e.high += <uintptr_t>cnp.PyArray_ITEMSIZE(a)
    return e


cdef bint apart(gc_extent *extent, Py_ssize_t n) noexcept nogil:
    """Whether no two extents meet; leaves them sorted."""
    cdef Py_ssize_t i
    for i in range(1, n):
        if extent[i].low < extent[i - 1].low:
            qsort(extent, n, sizeof(gc_extent), gc_by_low)
            break
    for i in range(1, n):
        if extent[i].low < extent[i - 1].high:
            return False
    return True


cdef bint interleaved(list arrays, gc_extent *extent, Py_ssize_t n) except -1:
    """Whether every array starts at a place of its own within the greatest common stride of all."""
    cdef gc_extent *residue
    cdef Py_ssize_t i
    cdef ptrdiff_t g = 0
    for i in range(n):
        g = common_stride(arrays[extent[i].index], g)
    if g == 0:
        return False
    residue = <gc_extent *>PyMem_Malloc(n * sizeof(gc_extent))
    if residue == NULL:
        raise MemoryError
    try:
        for i in range(n):
            residue[i].low = <uintptr_t>cnp.PyArray_DATA(arrays[extent[i].index]) % <uintptr_t>g
            residue[i].high = residue[i].low + <uintptr_t>cnp.PyArray_ITEMSIZE(arrays[extent[i].index])
        return apart(residue, n) and residue[n - 1].high <= residue[0].low + <uintptr_t>g
    finally:
        PyMem_Free(residue)


cdef bint same_view(cnp.ndarray a, cnp.ndarray b):
    cdef int d
    for d in range(cnp.PyArray_NDIM(a)):
        if cnp.PyArray_DIM(a, d) > 1 and cnp.PyArray_STRIDE(a, d) != cnp.PyArray_STRIDE(b, d):
            return False
    return cnp.PyArray_DATA(a) == cnp.PyArray_DATA(b)


def find_overlap(list written, list read):
    """The indices of two arrays, the first of them written, that share an element; or None.

    Arrays that are read count on from those that are written. The i-th of each may be the same view."""
    cdef list arrays = written + read if read else written
    cdef Py_ssize_t i, j, a, b, n = 0, count = len(written)
    cdef gc_extent *extent
    if len(arrays) < 2:
        return None
    extent = <gc_extent *>PyMem_Malloc(len(arrays) * sizeof(gc_extent))
    if extent == NULL:
        raise MemoryError
    try:
        for i in range(len(arrays)):
            if cnp.PyArray_SIZE(arrays[i]) > 0:
                extent[n] = extent_of(arrays[i], i)
                n += 1
        if apart(extent, n) or interleaved(arrays, extent, n):
            return None
        for i in range(n):
            j = i + 1
            while j < n and extent[j].low < extent[i].high:
                a, b = min(extent[i].index, extent[j].index), max(extent[i].index, extent[j].index)
                j += 1
                if a >= count or not share_memory(arrays[a], arrays[b]):
                    continue
                if not (b == count + a and same_view(arrays[a], arrays[b])):
                    return a, b
        return None
    finally:
        PyMem_Free(extent)
