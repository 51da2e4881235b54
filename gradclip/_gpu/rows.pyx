# cython: language_level=3, boundscheck=False, wraparound=False
"""Rows of the table of leaves that kernels read: where the elements of each leaf on a device are. How the work is cut is
filled in by table.py."""
from libc.stdint cimport int64_t, uintptr_t
from numpy cimport import_array

import numpy as np

from gradclip._cpu.memory cimport words
from gradclip._leaves.layout cimport gc_leaf
from gradclip._leaves.units cimport Units

import_array()

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
    cdef int64_t *row
    cdef list pool = [], which = []
    for i in range(leaves.count):
        if leaves.leaf[i].device == device + 1:
            which.append(i)
    rows = np.zeros((len(which), WORDS), np.int64)
    row = words(rows)
    for n in range(len(which)):
        i = which[n]
        leaf = &leaves.leaf[i]
        put_view(row, leaf, pool)
        if leaves.source != NULL:
            put_view(row + 4, &leaves.source[i], pool)
        else:
            row[4], row[5], row[6], row[7] = row[0], row[1], row[2], row[3]
        row[8], row[9], row[10], row[11] = leaf.size, leaf.units, leaf.first_unit, leaf.unit_ndim
        row[12], row[13] = leaf.is_complex, leaf.panel
        row += WORDS
    return which, rows, pool


cdef void put_view(int64_t *row, const gc_leaf *leaf, list pool):
    """Fill in four words of a row: data, dtype, ndim, place of the axes in the pool."""
    cdef int d
    row[0], row[1], row[2], row[3] = <int64_t><uintptr_t>leaf.data, leaf.dtype, leaf.ndim, len(pool)
    for d in range(2 * (leaf.ndim + leaf.unit_ndim)):
        pool.append(leaf.axes[d])
