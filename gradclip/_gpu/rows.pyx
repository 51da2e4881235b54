# cython: language_level=3, boundscheck=False, wraparound=False
"""Rows of the table of leaves that kernels read: where the elements of each leaf on a device are. How the work is cut is
filled in by table.py."""
from libc.stdint cimport int64_t, uintptr_t

import numpy as np

from gradclip._leaves.layout cimport gc_leaf
from gradclip._leaves.units cimport Units

cdef enum:
    WORDS = 21      # of Leaf in leaves.cu


def rows_of(Units leaves, int device):
    """The leaves on one GPU.

    Returns
    -------
    which : list of int
        Their indices.
    rows : (leaves, WORDS) array of int64
        For each, the words of `Leaf` in leaves.cu that say where its elements are; those that cut the work stay 0.
    pool : list of int
        Lengths and strides of axes, to which rows refer.
    """
    cdef Py_ssize_t i, n = 0
    cdef const gc_leaf *leaf
    cdef int64_t[:, ::1] row
    cdef list pool = [], which = []
    for i in range(leaves.count):
        if leaves.leaf[i].device == device + 1:
            which.append(i)
    rows = np.zeros((len(which), WORDS), np.int64)
    row = rows
    for n in range(len(which)):
        i = which[n]
        leaf = &leaves.leaf[i]
        put_view(&row[n, 0], leaf, pool)
        if leaves.source != NULL:
            put_view(&row[n, 4], &leaves.source[i], pool)
        else:
            row[n, 4], row[n, 5], row[n, 6], row[n, 7] = row[n, 0], row[n, 1], row[n, 2], row[n, 3]
        row[n, 8], row[n, 9], row[n, 10], row[n, 11] = leaf.size, leaf.units, leaf.first_unit, leaf.unit_ndim
        row[n, 12], row[n, 13] = leaf.is_complex, leaf.panel
    return which, rows, pool


cdef void put_view(int64_t *row, const gc_leaf *leaf, list pool):
    """Fill in four words of a row: data, dtype, ndim, place of the axes in the pool."""
    cdef int d
    row[0], row[1], row[2], row[3] = <int64_t><uintptr_t>leaf.data, leaf.dtype, leaf.ndim, len(pool)
    for d in range(2 * (leaf.ndim + leaf.unit_ndim)):
        pool.append(leaf.axes[d])
