# cython: cdivision=True
"""Scalars of the passes: folding block sums, and from their sum to a norm and a factor.

Blocks fold, in order, into two long doubles (high, low) by TwoSum: on x86-64 128 bits, where long
double is double 106. Range is kept apart from precision, so that both kinds of machine agree: a
sum stands for ``(high + low) * 2**(shift * bin)``, bin being 0 but for float64 blocks outside
GC_TINY .. GC_HUGE. These functions run inside `gc_fp_enter`: the rounding mode is the standard one.
"""
from libc.float cimport DBL_MAX, DBL_MIN
from libc.math cimport sqrt, fma, ldexp, frexp, fabs, copysign, isfinite, isnan, INFINITY
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int64_t

cdef extern from "kernels.h" nogil:
    int GC_SHIFT


cdef extern from "powers.h" nogil:
    double gc_root(double head, double tail, int64_t bin, double p, int *exponent)


cdef extern from "<math.h>" nogil:
    long double ldexpl(long double x, int exponent)
    long double frexpl(long double x, int *exponent)


cdef enum:
    DENORMAL = -1074        # exponent of the smallest float64
    FAR = 40                # bins, more than long double has


cdef struct Sum:
    long double high, low   # of the finite elements
    int64_t bin
    long double amax        # largest finite magnitude: of a complex number, beyond float64 perhaps
    ptrdiff_t nans, infs    # elements that are NaN, Inf
    ptrdiff_t outside       # elements beyond the bounds, where bounds are given


cdef struct Unit:           # the Sum of a unit, once it is complete: many are kept, so it is small
    double high, low
    double amax             # halved where it lies beyond float64; only ord 0 needs it then
    int64_t bin             # of ord 0: whether amax is halved
    ptrdiff_t nans, infs, outside


cdef struct Wide:           # (head + tail) * 2**exponent: ~106 bits, any range
    double head, tail
    int exponent


cdef inline void clear(Sum *s) noexcept nogil:
    s.high = s.low = 0
    s.bin = 0
    s.amax = 0
    s.nans = s.infs = s.outside = 0


cdef inline void settle(Unit *u, const Sum *s, double ord) noexcept nogil:
    """To 106 bits."""
    u.high = <double>s.high
    u.low = <double>(s.high - u.high) + <double>s.low
    u.bin = s.bin
    u.amax = <double>s.amax
    if ord == 0:
        u.bin = s.amax > DBL_MAX
        u.amax = <double>(s.amax / 2) if u.bin else u.amax
    u.nans, u.infs, u.outside = s.nans, s.infs, s.outside


cdef inline Sum reopen(const Unit *u, double ord) noexcept nogil:
    cdef Sum s
    s.high, s.low, s.bin = u.high, u.low, u.bin
    s.amax = u.amax
    if ord == 0 and u.bin:
        s.amax *= 2
        s.bin = 0
    s.nans, s.infs, s.outside = u.nans, u.infs, u.outside
    return s


cdef inline int shift_of(double ord) noexcept nogil:
    """Binades per bin: sums of squares move by twice as many as elements."""
    return 2 * GC_SHIFT if ord == 2 else GC_SHIFT


cdef inline void fold(Sum *into, long double high, long double low, int64_t bin, double ord) noexcept nogil:
    """Add (high + low) in `bin`. The smaller bin is scaled up to the larger: what then
    underflows is beyond the last bit."""
    cdef long double total, part
    cdef int shift = shift_of(ord)
    if high == 0 and low == 0:      # a block far below the segment's bound has all of its sum in low
        return
    if into.high == 0 and into.low == 0:
        into.high, into.low, into.bin = high, low, bin
        return
    if bin < into.bin:
        shift *= <int>max(bin - into.bin, <int64_t>-FAR)
        high = ldexpl(high, shift)
        low = ldexpl(low, shift)
    elif bin > into.bin:
        shift *= <int>max(into.bin - bin, <int64_t>-FAR)
        into.high = ldexpl(into.high, shift)
        into.low = ldexpl(into.low, shift)
        into.bin = bin
    total = into.high + high
    part = total - into.high
    into.low += ((into.high - (total - part)) + (high - part)) + low
    into.high = total


cdef inline void merge(Sum *into, const Sum *s, double ord) noexcept nogil:
    fold(into, s.high, s.low, s.bin, ord)
    if s.amax > into.amax:
        into.amax = s.amax
    into.nans += s.nans
    into.infs += s.infs
    into.outside += s.outside


cdef inline Wide wide_sum(const Unit *u, double ord) noexcept nogil:
    cdef Wide w
    w.head = u.high + u.low
    w.tail = u.low - (w.head - u.high)
    w.exponent = shift_of(ord) * <int>u.bin if ord == 1 or ord == 2 else 0     # other orders: gc_root knows the bin
    return w


cdef inline Wide norm_of(const Unit *u, double ord, double grad_scale) noexcept nogil:
    """The norm of the true gradient; ord 0 stands for inf."""
    cdef Wide w
    cdef double root, rest
    if ord == 0:
        w.exponent = 0
        w.head = frexp(u.amax, &w.exponent)
        w.tail = 0
        w.exponent += <int>u.bin
    else:
        w = wide_sum(u, ord)
        if ord == 2 and w.head > 0:
            root = sqrt(w.head)
            rest = (fma(-root, root, w.head) + w.tail) / (2 * root)
            w.head = root + rest
            w.tail = rest - (w.head - root)
            w.exponent //= 2
        elif ord != 1 and w.head > 0:
            root = gc_root(w.head, w.tail, u.bin, ord, &w.exponent)
            w.head, w.tail = root, 0
    if grad_scale != 1:
        w = divide(w, grad_scale)
    return w


cdef inline Wide divide(Wide w, double d) noexcept nogil:
    cdef int exponent = 0
    cdef double q, rest
    d = frexp(d, &exponent)
    w.exponent -= exponent
    q = w.head / d
    rest = (fma(-q, d, w.head) + w.tail) / d
    w.head = q + rest
    w.tail = rest - (w.head - q)
    return w


cdef inline double narrow(Wide w) noexcept nogil:
    """To float64, Inf above its range. Below its normal numbers `head` is rounded once more: where it
    lies in the middle of two of them, `tail` knows the side."""
    cdef double value, rest, half
    if w.exponent == 0:
        return w.head
    value = ldexp(w.head, w.exponent)
    if value < DBL_MIN:
        rest = w.head - ldexp(value, -w.exponent)       # exact
        half = ldexp(1, DENORMAL - 1 - w.exponent)
        if (rest == half and w.tail > 0) or (rest == -half and w.tail < 0):
            value += copysign(ldexp(1, DENORMAL), rest)
    return value


cdef struct Factor:
    double value            # what the report shows
    double last             # elements become (x * 2**shift) * last, rounded at `last`
    int shift


cdef inline Factor factor_of(double target, Wide norm, double eps, double grad_scale) noexcept nogil:
    """target / (norm + eps) / grad_scale, whose value may lie outside float64."""
    cdef Factor f
    cdef double n = narrow(norm), d
    cdef int et = 0, en = 0, ed = 0, es = 0
    f.shift = 0
    f.value = f.last = 0
    if target == 0:
        return f
    f.value = f.last = target / (n + eps) / grad_scale
    if 1e-290 < f.value < 1e290 and 1e-290 < n + eps < 1e290 and 1e-290 < target / (n + eps) < 1e290:
        return f
    # By mantissa and exponent. norm + eps: eps matters only where it is not far below norm.
    n = frexp(norm.head, &en)
    en += norm.exponent
    if eps > 0:
        d = frexp(eps, &ed)
        if norm.head == 0 or ed > en:
            n = d + (ldexp(n, en - ed) if norm.head > 0 else 0)
            en = ed
        else:
            n += ldexp(d, ed - en)
    target = frexp(target, &et)
    grad_scale = frexp(grad_scale, &es)
    f.last = target / n / grad_scale
    et -= en + es
    f.value = ldexp(f.last, et)
    if -1020 < et < 1020:
        f.last = f.value
    else:
        f.shift = et + 500 if et < 0 else et - 500
        f.last = ldexp(f.last, et - f.shift)
    return f


cdef inline void multiply(Factor *f, double by) noexcept nogil:
    """`last` times a number: what leaves the range of float64 goes to the shift."""
    cdef int exponent = 0, more = 0
    cdef double product
    if f.last == 0 or by == 0 or isnan(f.last):
        f.last *= by
        return
    product = frexp(f.last, &exponent) * frexp(by, &more)
    exponent += more + f.shift
    f.shift = 0 if -1020 < exponent < 1020 else exponent + 500 if exponent < 0 else exponent - 500
    f.last = ldexp(product, exponent - f.shift)
