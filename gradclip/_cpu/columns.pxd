"""Panels of units that are columns (kernels/columns.h), as Cython sees it."""
from libc.stddef cimport ptrdiff_t

from gradclip._cpu.fold cimport Sum
from gradclip._cpu.machine cimport gc_kernels
from gradclip._cpu.plan cimport Write
from gradclip._cpu.scalar cimport gc_measured
from gradclip._cpu.work cimport Group
from gradclip._leaves.layout cimport gc_leaf

cdef extern from "columns.h" nogil:
    void measure_panel "gc_measure_panel"(const gc_kernels *k, const gc_leaf *leaf, const Group *g, double ord, Sum *slot,
                                          char *room)
    void complete_columns "gc_complete_columns"(Sum *slot, const Group *g, ptrdiff_t parts, double ord, gc_measured *unit,
                                                Sum *total)
    bint write_panel "gc_write_panel"(const gc_kernels *k, const gc_leaf *to, const gc_leaf *source, const Group *g,
                                      const Write *w, bint per_unit, double *factors)
