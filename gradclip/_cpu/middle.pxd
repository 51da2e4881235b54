"""Whether the bits of a sum tell its norm (kernels/middle.h), as Cython sees it."""
from libc.stddef cimport ptrdiff_t

from gradclip._cpu.scalar cimport gc_measured

cdef extern from "middle.h" nogil:
    ctypedef struct Precision "gc_precision":
        double ord, grad_scale, error
        bint plain
    double sum_error "gc_sum_error"(ptrdiff_t elements, ptrdiff_t units)
    Precision precision_of "gc_precision_of"(double ord, double grad_scale, double error)
    bint tells_norm "gc_tells_norm"(const gc_measured *u, const Precision *p)
    void take_for_middle "gc_take_for_middle"(gc_measured *u, const Precision *p)
