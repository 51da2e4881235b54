# cython: language_level=3, boundscheck=False, wraparound=False
"""Rows of the table of leaves that kernels read: where the elements of each leaf on a device are. How the work is cut is
filled in by table.py.

Gradients lie where they lay a step ago. So leaves are compared with the rows of earlier calls, in some nanoseconds each, before
any are made."""
from libc.stdint cimport int64_t, uint64_t, uintptr_t
from libc.string cimport memcmp
from numpy cimport import_array

import numpy as np

from gradclip._cpu.memory cimport words
from gradclip._leaves.layout cimport gc_leaf
from gradclip._leaves.units cimport Units

import_array()

cdef enum:
    WORDS = 21      # of Leaf in leaves.cu
    FILLED = 14     # of which are filled in here


cdef class Rows:
    """The leaves on one GPU.

    Attributes
    ----------
    which : list of int
        Their indices.
    words : (leaves, WORDS) array of int64
        For each, the words of `Leaf` in leaves.cu that say where its elements are; those that cut the work are 0.
    pool : list of int
        Lengths and strides of axes, to which rows refer.
    """
    cdef readonly list which, pool
    cdef readonly object words

    def __init__(self, Units leaves, int device):
        cdef Py_ssize_t i
        cdef int64_t *row
        self.pool, self.which = [], []
        for i in range(leaves.count):
            if leaves.leaf[i].device == device + 1:
                self.which.append(i)
        self.words = np.zeros((len(self.which), WORDS), np.int64)
        row = words(self.words)
        for i in self.which:
            put_row(row, leaves, i, len(self.pool))
            put_axes(&leaves.leaf[i], self.pool)
            if leaves.source != NULL:
                put_axes(&leaves.source[i], self.pool)
            row += WORDS

    def fit(self, Units leaves, int device):
        """Return whether these are the rows of some leaves on that GPU too: of the same indices, memory and units."""
        cdef int64_t row[FILLED]
        cdef const int64_t *own = words(self.words)
        cdef Py_ssize_t i, n = 0, count = len(self.which), place = 0
        for i in range(leaves.count):
            if leaves.leaf[i].device != device + 1:
                continue
            if n == count or <Py_ssize_t>self.which[n] != i:
                return False
            put_row(row, leaves, i, place)
            if memcmp(row, own, sizeof(row)) or not self.has_axes(&leaves.leaf[i], &place) or \
                    (leaves.source != NULL and not self.has_axes(&leaves.source[i], &place)):
                return False
            own += WORDS
            n += 1
        return n == count

    cdef bint has_axes(self, const gc_leaf *leaf, Py_ssize_t *place):
        """Whether the pool has the axes of a leaf at a place, which is moved behind them."""
        cdef Py_ssize_t d, n = 2 * (leaf.ndim + leaf.unit_ndim), start = place[0]
        for d in range(n):
            if <int64_t>self.pool[start + d] != leaf.axes[d]:
                return False
        place[0] += n
        return True


def signature(Units leaves, int device):
    """A number that leaves on a GPU have as long as they lie where they lie and are cut as they are: others have it by chance
    alone."""
    cdef uint64_t found = 0
    cdef int64_t row[FILLED]
    cdef Py_ssize_t i
    cdef int k
    for i in range(leaves.count):
        if leaves.leaf[i].device == device + 1:
            put_row(row, leaves, i, i)
            for k in range(FILLED):
                found = mixed(found, <uint64_t>row[k])
            found = with_axes(found, &leaves.leaf[i])
            if leaves.source != NULL:
                found = with_axes(found, &leaves.source[i])
    return found


cdef uint64_t with_axes(uint64_t found, const gc_leaf *leaf) noexcept:
    """A number that depends on the axes of a leaf too."""
    cdef int d
    for d in range(2 * (leaf.ndim + leaf.unit_ndim)):
        found = mixed(found, <uint64_t>leaf.axes[d])
    return found


cdef uint64_t mixed(uint64_t found, uint64_t word) noexcept:
    """A number that depends on all bits of two."""
    found = (found ^ word) * <uint64_t>0x1E3779B97F4A7C15
    return found ^ found >> 32


cdef void put_row(int64_t *row, Units leaves, Py_ssize_t i, Py_ssize_t place) noexcept:
    """Fill in the words of a leaf. place: in the pool, of its axes"""
    cdef const gc_leaf *leaf = &leaves.leaf[i]
    put_view(row, leaf, place)
    if leaves.source != NULL:
        put_view(row + 4, &leaves.source[i], place + 2 * (leaf.ndim + leaf.unit_ndim))
    else:
        row[4], row[5], row[6], row[7] = row[0], row[1], row[2], row[3]
    row[8], row[9], row[10], row[11] = leaf.size, leaf.units, leaf.first_unit, leaf.unit_ndim
    row[12], row[13] = leaf.is_complex, leaf.panel


cdef void put_view(int64_t *row, const gc_leaf *leaf, Py_ssize_t place) noexcept:
    """Fill in four words of a row: data, dtype, ndim, place of the axes in the pool."""
    row[0], row[1], row[2], row[3] = <int64_t><uintptr_t>leaf.data, leaf.dtype, leaf.ndim, place


cdef void put_axes(const gc_leaf *leaf, list pool):
    """Append the axes of a leaf to a pool."""
    cdef int d
    for d in range(2 * (leaf.ndim + leaf.unit_ndim)):
        pool.append(leaf.axes[d])
