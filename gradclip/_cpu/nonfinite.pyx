# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Where the first element is that is not finite: looked for once a read pass has counted some."""
from cpython.exc cimport PyErr_CheckSignals
from libc.math cimport isfinite
from libc.stddef cimport ptrdiff_t

from gradclip._leaves.foreign import numbers
from gradclip._leaves.layout cimport MAX_AXES, gc_leaf, in_index_order
from gradclip._leaves.leaves cimport Leaves
from gradclip._cpu.blocks cimport BLOCK, fetch
from gradclip._cpu.machine cimport Scratch, give_scratch, kernels, take_scratch
from gradclip._cpu.sums cimport Sums


cdef object find_nonfinite(Sums sums, Leaves leaves):
    """Note path, flat index and value of the first element, in index order, that is not finite."""
    cdef Scratch scratch
    cdef ptrdiff_t j
    take_scratch(&scratch, 1)
    try:
        j = first_of(sums, leaves, scratch.room, True)
    finally:
        give_scratch(&scratch)
    sums.first_nonfinite = leaves.path(sums.first_leaf), max(j, 0)      # -1: another thread has changed the leaf since
    if j >= 0:
        sums.first_value = numbers(leaves.arrays[sums.first_leaf].flat[j : j + 1])[0]


cdef ptrdiff_t first_of(Sums sums, Leaves leaves, char *room, bint asks) except -2:
    """The flat index of the first element that is not finite, or -1; notes the leaf in `sums`. Needs no memory, and raises
    nothing unless it asks for signals."""
    cdef gc_leaf leaf
    cdef ptrdiff_t axes[2 * MAX_AXES]
    cdef ptrdiff_t first = 0, i = 0, unit = 0, n, j
    cdef const char *x
    while sums.unit[unit].nans + sums.unit[unit].infs == 0:
        unit += 1
    while unit >= leaves.leaf[i].first_unit + leaves.leaf[i].units:
        i += 1
    sums.first_leaf = i
    in_index_order(&leaf, leaves.arrays[i], leaves.leaf[i].dtype, axes)
    while first < leaf.size:
        if asks:
            PyErr_CheckSignals()
        n = min(<ptrdiff_t>BLOCK, leaf.size - first)
        x = fetch(&leaf, first, n, room)
        if not isfinite(kernels.amax[leaf.dtype](x, n)):
            for j in range(n):
                if not isfinite(kernels.amax[leaf.dtype](x + j * leaf.itemsize, 1)):
                    return (first + j) >> leaf.is_complex
        first += BLOCK
    return -1
