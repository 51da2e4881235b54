# cython: cdivision=True
"""Block sums to the sum of a unit, on the processor.

Blocks fold, in order, into two long doubles (high, low) by TwoSum: on x86-64 128 bits, where long
double is double 106. Range is kept apart from precision, so that both kinds of machine agree: a
sum stands for ``(high + low) * 2**(gc_bin_width(ord) * bin)``, bin being 0 but for float64 blocks outside
GC_TINY .. GC_HUGE. These functions run inside `gc_fp_enter`: the rounding mode is the standard one.
A GPU has no long double: _gpu/sums.cu folds pairs of float64.
"""
from libc.float cimport DBL_MAX
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int64_t

from gradclip._cpu.scalar cimport GC_FAR, gc_bin_width, gc_two_sum_long, gc_measured

cdef extern from "<math.h>" nogil:
    long double ldexpl(long double x, int exponent)
    long double frexpl(long double x, int *exponent)


cdef struct Sum:
    long double high, low   # of the finite elements
    int64_t bin
    long double amax        # largest finite magnitude: of a complex number, beyond float64 perhaps
    ptrdiff_t nans, infs    # elements that are NaN, Inf
    ptrdiff_t outside       # elements beyond the bounds, where bounds are given


cdef inline void clear(Sum *s) noexcept nogil:
    s.high = s.low = 0
    s.bin = 0
    s.amax = 0
    s.nans = s.infs = s.outside = 0


cdef inline void settle(gc_measured *u, const Sum *s) noexcept nogil:
    """The Sum of a unit that is complete, to 106 bits: many are kept, so it is small."""
    u.high = <double>s.high
    u.low = <double>(s.high - u.high) + <double>s.low
    u.bin = s.bin
    u.exponent = s.amax > DBL_MAX
    u.amax = <double>(s.amax / 2 if u.exponent else s.amax)
    u.nans, u.infs, u.outside = s.nans, s.infs, s.outside


cdef inline Sum reopen(const gc_measured *u) noexcept nogil:
    cdef Sum s
    s.high, s.low, s.bin = u.high, u.low, u.bin
    s.amax = ldexpl(u.amax, <int>u.exponent)
    s.nans, s.infs, s.outside = u.nans, u.infs, u.outside
    return s


cdef inline void fold(Sum *into, long double high, long double low, int64_t bin, double ord) noexcept nogil:
    """Add (high + low) in `bin`. The smaller bin is scaled up to the larger: what then
    underflows is beyond the last bit."""
    cdef int shift = gc_bin_width(ord)
    if high == 0 and low == 0:      # a block far below the segment's bound has all of its sum in low
        return
    if into.high == 0 and into.low == 0:
        into.high, into.low, into.bin = high, low, bin
        return
    if bin < into.bin:
        shift *= <int>max(bin - into.bin, <int64_t>-GC_FAR)
        high = ldexpl(high, shift)
        low = ldexpl(low, shift)
    elif bin > into.bin:
        shift *= <int>max(into.bin - bin, <int64_t>-GC_FAR)
        into.high = ldexpl(into.high, shift)
        into.low = ldexpl(into.low, shift)
        into.bin = bin
    into.low += gc_two_sum_long(&into.high, high) + low


cdef inline void merge(Sum *into, const Sum *s, double ord) noexcept nogil:
    fold(into, s.high, s.low, s.bin, ord)
    if s.amax > into.amax:
        into.amax = s.amax
    into.nans += s.nans
    into.infs += s.infs
    into.outside += s.outside
