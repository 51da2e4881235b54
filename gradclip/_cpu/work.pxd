"""The list of work of a pass (kernels/work.h), as Cython sees it."""
from libc.stddef cimport ptrdiff_t

from gradclip._leaves.layout cimport gc_leaf

cdef extern from "work.h" nogil:
    enum:
        LINE "GC_LINE"
        BITS_OF_BYTES "GC_BITS_OF_BYTES"
    ctypedef enum Part "gc_kind":
        WHOLE "GC_WHOLE"
        COLUMNS "GC_COLUMNS"
    ctypedef struct Group "gc_group":
        Part part
        ptrdiff_t leaf, unit
        ptrdiff_t count
        ptrdiff_t first, rows
        ptrdiff_t slot
    ctypedef struct gc_work:
        ptrdiff_t elements, bytes, elsewhere, room, groups, slots
    bint gc_survey(gc_work *work, const gc_leaf *leaf, ptrdiff_t count, bint columns)
    void gc_cut(gc_work *work, Group *group, const gc_leaf *leaf, const gc_leaf *source, ptrdiff_t count, bint columns)
