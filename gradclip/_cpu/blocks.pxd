"""What one thread does with some elements of one leaf (kernels/blocks.h), as Cython sees it."""
from libc.stddef cimport ptrdiff_t

from gradclip._cpu.fold cimport Sum
from gradclip._cpu.machine cimport gc_kernels, gc_sum
from gradclip._cpu.plan cimport Write
from gradclip._leaves.layout cimport gc_leaf

cdef extern from "blocks.h" nogil:
    enum:
        BLOCK "GC_BLOCK"
    const char *fetch "gc_fetch"(const gc_leaf *leaf, ptrdiff_t first, ptrdiff_t n, char *buffer)
    void shift "gc_shift"(const gc_kernels *k, int dtype, void *y, const void *x, ptrdiff_t n, int binades)
    void alter "gc_alter"(const gc_kernels *k, const Write *w, int dtype, char *y, const gc_leaf *leaf, const char *x,
                          ptrdiff_t n, char *spare)
    bint sum_at_once "gc_sum_at_once"(const gc_kernels *k, double ord, int dtype, const void *x, ptrdiff_t n, double *bound,
                                      gc_sum *s)
    gc_sum nothing "gc_nothing"()
    void add "gc_add"(gc_sum *into, const gc_sum *s)
    void fold_usual "gc_fold_usual"(Sum *into, const gc_sum *usual, double ord)
    ctypedef struct Reading "gc_reading":
        double ord
        const Write *bounds
        const Write *made
        const gc_leaf *to
    ctypedef struct Segment "gc_segment":
        pass
    Segment start_segment "gc_start_segment"(const Reading *how, char *room)
    ptrdiff_t hold "gc_hold"(const gc_kernels *k, const gc_leaf *leaf, ptrdiff_t first, const char *x, ptrdiff_t n, double amax,
                             const Segment *g)
    void measure_segment "gc_measure_segment"(const gc_kernels *k, const gc_leaf *leaf, ptrdiff_t first, ptrdiff_t end,
                                              const Reading *how, char *room, Sum *into)
    void write_segment "gc_write_segment"(const gc_kernels *k, const gc_leaf *to, const gc_leaf *source, ptrdiff_t first,
                                          ptrdiff_t end, const Write *w, char *room)
