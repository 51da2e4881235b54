"""Block sums to the sum of a unit (kernels/fold.h), as Cython sees it."""
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int64_t

from gradclip._cpu.scalar cimport gc_measured

cdef extern from "<math.h>" nogil:
    long double ldexpl(long double x, int exponent)
    long double frexpl(long double x, int *exponent)

cdef extern from "fold.h" nogil:
    ctypedef struct Sum "gc_total":
        long double high, low
        int64_t bin
        long double amax
        ptrdiff_t nans, infs, outside
    void clear "gc_clear"(Sum *s)
    void complete "gc_complete"(gc_measured *u, const Sum *s)
    Sum reopen "gc_reopen"(const gc_measured *u)
    void fold "gc_fold"(Sum *into, long double high, long double low, int64_t bin, double ord)
    void merge "gc_merge"(Sum *into, const Sum *s, double ord)
