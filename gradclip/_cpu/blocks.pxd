# cython: cdivision=True
"""What one thread does with some elements of one leaf, block by block: `measure_segment`, `write_segment`."""
from libc.math cimport isfinite, ldexp
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int64_t
from libc.string cimport memmove

from gradclip._cpu.fold cimport Sum, clear, fold
from gradclip._cpu.machine cimport gc_bound, gc_sum, kernels, GC_F32, GC_F64
from gradclip._cpu.plan cimport Write
from gradclip._cpu.scalar cimport (
    GC_CLAMP, GC_HUGE, GC_KEEP, GC_SCALE, GC_SHIFT, GC_STEP, GC_TINY, gc_factor, gc_two_sum)
from gradclip._cpu.work cimport BLOCK, LANES
from gradclip._layout cimport gc_leaf, gc_move

cdef extern from "pairs.h" nogil:
    long double gc_pair_amax(const void *x, ptrdiff_t n, int dtype, long double largest)
    void gc_pair_abs(double *y, const void *x, ptrdiff_t n, int dtype)
    void gc_pair_abs_of(double *y, const void *x, ptrdiff_t n, int dtype, bint small, int *exponent)
    void gc_pair_zero(void *x, ptrdiff_t n, int dtype, ptrdiff_t *nans, ptrdiff_t *infs)

cdef extern from "sum_powers.h" nogil:
    gc_sum gc_sum_powers(const double *x, ptrdiff_t n, int exponent, double p, int64_t *bin)

cdef enum:
    PROBE = 64              # elements that guess for a segment
    STEP = 512              # elements that a step widens at a time


cdef inline const char *fetch(const gc_leaf *leaf, ptrdiff_t first, ptrdiff_t n, char *buffer) noexcept nogil:
    """Elements first .. first + n, contiguous: in place, or gathered into the buffer."""
    if leaf.ndim == 0:
        return leaf.data + first * leaf.itemsize
    gc_move(leaf, first, n, buffer, 0)
    return buffer


cdef inline void alter(const Write *w, int dtype, char *y, const gc_leaf *leaf, const char *x, ptrdiff_t n,
                       char *spare) noexcept nogil:
    """y = what the plan makes of n elements x of a leaf (contiguous; y may be x, and spare, one block, may be y
    unless there is a step). Only a step changes a y of another dtype."""
    cdef int t = leaf.dtype
    cdef ptrdiff_t ignored = 0
    cdef char *to = spare if w.kind == GC_STEP else y
    if w.zero:
        if leaf.is_complex:
            memmove(to, x, n * leaf.itemsize)
            gc_pair_zero(to, n, t, &ignored, &ignored)
        else:
            kernels.zero_nonfinite[t](to, x, n)
        x = to
    if w.kind == GC_SCALE:
        if w.factor.shift:
            shift(t, y, x, n, w.factor.shift)
            x = y
        kernels.scale[t](y, x, n, w.factor.last)
    elif w.kind == GC_CLAMP:
        kernels.clamp[t](y, x, n, w.low[t], w.high[t])
    elif w.kind == GC_STEP:
        step(dtype, y, t, x, n, w.factor)
    elif x != y:
        memmove(y, x, n * leaf.itemsize)


cdef inline void shift(int t, char *y, const char *x, ptrdiff_t n, int binades) noexcept nogil:
    """y = x * 2**binades in two exact steps: one could leave the range that both stay in."""
    cdef int half = binades // 2
    kernels.scale[t](y, x, n, ldexp(1, half))
    kernels.scale[t](y, y, n, ldexp(1, binades - half))


cdef inline void step(int dtype, char *y, int t, const char *x, ptrdiff_t n, gc_factor factor) noexcept nogil:
    """y -= x * factor; elements of two dtypes, or a factor beyond float64, meet in float64."""
    cdef double a[STEP]
    cdef double b[STEP]
    cdef ptrdiff_t i = 0, m
    if t == dtype and factor.shift == 0:
        kernels.step[t](y, x, n, factor.last)
        return
    while i < n:
        m = min(<ptrdiff_t>STEP, n - i)
        kernels.widen[dtype](a, y + i * itemsize_of(dtype), m)
        kernels.widen[t](b, x + i * itemsize_of(t), m)
        if factor.shift:
            shift(GC_F64, <char *>b, <char *>b, m, factor.shift)
        kernels.step[GC_F64](a, b, m, factor.last)
        kernels.narrow[dtype](y + i * itemsize_of(dtype), a, m)
        i += m


cdef inline int itemsize_of(int dtype) noexcept nogil:
    return 8 if dtype == GC_F64 else 4 if dtype == GC_F32 else 2


cdef inline gc_sum sum_of(double ord, int t, const char *x, ptrdiff_t n, double bound) noexcept nogil:
    return kernels.sum_squares[t](x, n, bound) if ord == 2 else kernels.sum_abs[t](x, n, bound)


cdef inline bint sum_at_once(double ord, int t, const char *x, ptrdiff_t n, double *bound, gc_sum *s) noexcept nogil:
    """Sum a block of real numbers in one reading, or say that it takes more.

    Its elements are taken to lie below `bound`, a guess that the first elements of the segment make and that the
    kernel checks as it sums; so few that each has a lane need none."""
    cdef double amax
    if ord != 2 and ord != 1:
        return False
    if ord == 2 and n <= LANES:
        s[0] = kernels.sum_squares[t](x, n, 0)
        return GC_TINY <= s.amax <= GC_HUGE or s.amax == 0
    if bound[0] == 0:
        amax = kernels.amax[t](x, min(n, PROBE))
        if not GC_TINY <= amax <= GC_HUGE:
            return False
        bound[0] = gc_bound(amax, 3)
    s[0] = sum_of(ord, t, x, n, bound[0])
    return s.amax <= bound[0]


cdef inline gc_sum nothing() noexcept nogil:
    cdef gc_sum s
    s.high = s.low = s.amax = 0
    return s


cdef inline void add(gc_sum *into, const gc_sum *s) noexcept nogil:
    """By TwoSum."""
    into.low += gc_two_sum(&into.high, s.high) + s.low
    if s.amax > into.amax:
        into.amax = s.amax


cdef inline void fold_usual(Sum *into, const gc_sum *usual, double ord) noexcept nogil:
    fold(into, usual.high, usual.low, 0, ord)
    if usual.amax > into.amax:
        into.amax = usual.amax


cdef inline void measure_block(const gc_leaf *leaf, ptrdiff_t first, ptrdiff_t n, double ord, const Write *bounds,
                               const Write *made, char *buffer, double *bound, gc_sum *usual, Sum *into) noexcept nogil:
    """Add one block to a Sum: of the leaf as it is, or as `made` would make it.

    The usual block is read once, and added to `usual`, in pairs of float64. Where its bound is not kept, and for
    whatever is not finite, out of range, complex or counted, the largest magnitude is found first."""
    cdef int t = leaf.dtype, bin = 0
    cdef gc_sum s
    cdef const char *x = fetch(leaf, first, n, buffer)
    cdef double amax
    if made != NULL:
        alter(made, t, buffer, leaf, x, n, buffer)
        x = buffer
    if bounds == NULL and not leaf.is_complex and sum_at_once(ord, t, x, n, bound, &s):
        add(usual, &s)
        return
    amax = kernels.amax[t](x, n)
    if bounds != NULL and not (amax <= bounds.high[t] and -amax >= bounds.low[t]):
        into.outside += kernels.count_outside[t](x, n, bounds.low[t], bounds.high[t])
    if not isfinite(amax):
        if leaf.is_complex:
            memmove(buffer, x, n * leaf.itemsize)
            gc_pair_zero(buffer, n, t, &into.nans, &into.infs)
        else:
            into.nans += kernels.count_nan[t](x, n)
            into.infs += kernels.count_inf[t](x, n)
            kernels.zero_nonfinite[t](buffer, x, n)
        x = buffer
        amax = kernels.amax[t](x, n)
    if leaf.is_complex:
        into.amax = gc_pair_amax(x, n, t, into.amax)
    elif amax > into.amax:
        into.amax = amax
    if amax == 0 or ord == 0:
        return
    if ord != 1 and ord != 2:
        measure_powers(leaf, x, n, ord, <double *>buffer + BLOCK, into)
        return
    if t == GC_F64 and not GC_TINY <= amax <= GC_HUGE:
        bin = 1 if amax > GC_HUGE else -1
        kernels.scale[t](buffer, x, n, ldexp(1, -GC_SHIFT * bin))
        x = buffer
        amax = ldexp(amax, -GC_SHIFT * bin)
    elif amax > bound[0]:
        bound[0] = gc_bound(amax, 2)
    if ord == 1 and leaf.is_complex:
        gc_pair_abs(<double *>buffer, x, n, t)
        x, n, t = buffer, n // 2, GC_F64
        amax = kernels.amax[t](x, n)
    s = sum_of(ord, t, x, n, gc_bound(amax, 0))
    fold(into, s.high, s.low, bin, ord)


cdef inline void measure_powers(const gc_leaf *leaf, const char *x, ptrdiff_t n, double p, double *wide, Sum *into) noexcept nogil:
    """Add the p-th powers of a block of finite elements; wide: room for a block."""
    cdef int64_t bin = 0
    cdef int exponent = 0, small
    cdef gc_sum s
    if not leaf.is_complex:
        kernels.widen[leaf.dtype](wide, x, n)
        s = gc_sum_powers(wide, n, 0, p, &bin)
        fold(into, s.high, s.low, bin, p)
        return
    for small in range(2):
        gc_pair_abs_of(wide, x, n, leaf.dtype, small, &exponent)
        s = gc_sum_powers(wide, n // 2, exponent, p, &bin)
        fold(into, s.high, s.low, bin, p)


cdef inline void measure_segment(const gc_leaf *leaf, ptrdiff_t first, ptrdiff_t end, double ord, const Write *bounds,
                                 const Write *made, char *room, Sum *into) noexcept nogil:
    """Some elements of one unit into a fresh Sum. room: of this thread, ROOM bytes."""
    cdef double bound = 0       # of the segment alone, so that it is a function of position
    cdef gc_sum usual = nothing()
    clear(into)
    while first < end:
        measure_block(leaf, first, min(BLOCK, end - first), ord, bounds, made, room, &bound, &usual, into)
        first += BLOCK
    fold_usual(into, &usual, ord)


cdef inline void write_segment(const gc_leaf *to, const gc_leaf *source, ptrdiff_t first, ptrdiff_t end,
                               const Write *w, char *room) noexcept nogil:
    cdef char *buffer = room    # a block of the widest dtype, and one to spare
    cdef char *spare = room + BLOCK * sizeof(double)
    cdef ptrdiff_t n
    cdef const char *x
    cdef char *y
    if w.kind == GC_KEEP and not w.zero and to.data == source.data:
        return
    if to.ndim == 0 and source.ndim == 0 and (w.kind != GC_STEP or not w.zero):
        # in one go: prefetchers follow a long run, not blocks backwards
        alter(w, to.dtype, to.data + first * to.itemsize, source, source.data + first * source.itemsize, end - first, NULL)
        return
    while end > first:
        n = (end - first - 1) % BLOCK + 1
        end -= n
        x = fetch(source, end, n, spare)
        if w.kind == GC_STEP:
            y = <char *>fetch(to, end, n, buffer)
        else:
            y = to.data + end * to.itemsize if to.ndim == 0 else buffer
        alter(w, to.dtype, y, source, x, n, spare)
        if to.ndim:
            gc_move(to, end, n, buffer, 1)
