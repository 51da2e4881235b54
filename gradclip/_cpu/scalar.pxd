"""The arithmetic of a unit, which both engines share: the C headers of `_scalar`, as Cython sees them."""
from libc.stdint cimport int64_t

cdef extern from "_scalar/range.h" nogil:
    int GC_SHIFT
    int GC_FAR
    double GC_TINY, GC_HUGE


cdef extern from "_scalar/wide.h" nogil:
    ctypedef struct gc_wide:
        double head, tail
        int exponent
    double gc_two_sum(double *sum, double term)
    long double gc_two_sum_long(long double *sum, long double term)
    double gc_narrow(gc_wide w)


cdef extern from "_scalar/factor.h" nogil:
    ctypedef struct gc_factor:
        double value, last
        int64_t shift
    gc_factor gc_plain_factor(double value)
    void gc_multiply(gc_factor *f, double by)
    void gc_shrink(gc_factor *f, double ratio)
    ctypedef struct gc_rounding_bound:
        double lost, slope, power, floor, most
    double gc_safe_threshold(double threshold, const gc_rounding_bound *rounding)


cdef extern from "_scalar/unit.h" nogil:
    ctypedef struct gc_measured:
        double high, low
        int64_t bin
        double amax
        int64_t exponent
        int64_t nans, infs, outside
    int gc_bin_width(double ord)
    gc_wide gc_norm_of(const gc_measured *u, double ord, double grad_scale)
    double gc_shown_norm(const gc_measured *u, double ord, double grad_scale, bint finite_only)
    int GC_KEEP, GC_SCALE, GC_CLAMP, GC_STEP
    ctypedef struct gc_question:
        double ord, eps, grad_scale
        bint finite_only, normalize, held
    bint gc_exceeds(const gc_measured *u, double threshold, const gc_question *ask)
    int gc_decide(const gc_measured *u, double threshold, const gc_question *ask, bint *clips, gc_factor *factor)
    bint gc_keep_finite(gc_factor *f, double amax, double most)
    double gc_adaptive_threshold(const gc_measured *weight, double clip_factor, double eps, double ord)
    gc_factor gc_limited_factor(const gc_measured *u, double threshold, const gc_question *ask, double most, double largest)
