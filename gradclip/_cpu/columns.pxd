# cython: cdivision=True
"""Panels: some rows of some units that are the columns of a matrix, worked on row by row as memory has them.

A column's sum is a pair of doubles, in every panel that has a part of it and of all these parts: to fold each into long
doubles took a tenth of the pass. What a pair does not hold (an element that is not finite, or out of range) makes a part
odd: that has a Sum."""
from libc.math cimport INFINITY
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uintptr_t

from gradclip._cpu.fold cimport Sum, clear, fold, merge, settle
from gradclip._cpu.machine cimport LINE, kernels
from gradclip._cpu.plan cimport Write
from gradclip._cpu.scalar cimport GC_KEEP, GC_SCALE, gc_measured, gc_two_sum
from gradclip._cpu.work cimport Group, padded
from gradclip._layout cimport gc_leaf

cdef enum:
    STRIP = 64              # columns whose parts are added side by side


cdef struct Columns:        # of one panel, a number for each column
    Sum *odd                # of those that are odd
    double *high            # of those that are not: high + low
    double *low
    double *amax            # INFINITY: this one is odd


cdef inline Columns columns_of(Sum *slot, const Group *g) noexcept nogil:
    """Where a panel keeps its sums: the arrays from the start of a cache line on, as vectors fill one."""
    cdef Columns c
    c.odd = slot + g.slot
    c.high = <double *>((<uintptr_t>(c.odd + g.count) + LINE - 1) // LINE * LINE)
    c.low = c.high + padded(g.count)
    c.amax = c.low + padded(g.count)
    return c


cdef inline void add_pairs(double *high, double *low, const double *h, const double *l, ptrdiff_t n) noexcept nogil:
    """n sums += n others, by TwoSum."""
    cdef ptrdiff_t k
    for k in range(n):
        low[k] += gc_two_sum(high + k, h[k]) + l[k]


cdef inline void raise_to(double *amax, const double *other, ptrdiff_t n) noexcept nogil:
    cdef ptrdiff_t k
    for k in range(n):
        amax[k] = other[k] if other[k] > amax[k] else amax[k]


cdef inline Sum odd_column(Sum *slot, const Group *g, ptrdiff_t parts, ptrdiff_t j, double ord) noexcept nogil:
    """The Sum of a column that has an odd part."""
    cdef Sum sum
    cdef Columns c
    cdef ptrdiff_t i
    clear(&sum)
    for i in range(parts):
        c = columns_of(slot, g + i)
        if c.amax[j] == INFINITY:
            merge(&sum, &c.odd[j], ord)
        else:
            fold(&sum, c.high[j], c.low[j], 0, ord)
            sum.amax = max(sum.amax, c.amax[j])
    return sum


cdef inline void settle_columns(Sum *slot, const Group *g, ptrdiff_t parts, double ord, gc_measured *unit, Sum *total) noexcept nogil:
    """Panels that lie below each other, so many from `g` on, to a gc_measured of each column and to the total."""
    cdef double high[2][STRIP]      # of some columns; of all, in so many lanes
    cdef double low[2][STRIP]
    cdef double amax[2][STRIP]
    cdef Columns c
    cdef Sum sum
    cdef ptrdiff_t start = 0, i, k, n
    for k in range(STRIP):
        high[1][k] = low[1][k] = amax[1][k] = 0
    while start < g.count:
        n = min(<ptrdiff_t>STRIP, g.count - start)
        for k in range(STRIP):
            high[0][k] = low[0][k] = amax[0][k] = 0
        for i in range(parts):
            c = columns_of(slot, g + i)
            add_pairs(high[0], low[0], c.high + start, c.low + start, n)
            raise_to(amax[0], c.amax + start, n)
        for k in range(n):
            if amax[0][k] < INFINITY:
                unit[start + k] = gc_measured(high[0][k], low[0][k], 0, amax[0][k], 0, 0, 0, 0)
                continue
            sum = odd_column(slot, g, parts, start + k, ord)
            settle(&unit[start + k], &sum)
            merge(total, &sum, ord)
            high[0][k] = low[0][k] = amax[0][k] = 0
        add_pairs(high[1], low[1], high[0], low[0], STRIP)
        raise_to(amax[1], amax[0], STRIP)
        start += STRIP
    n = STRIP // 2
    while n:
        add_pairs(high[1], low[1], high[1] + n, low[1] + n, n)
        raise_to(amax[1], amax[1] + n, n)
        n //= 2
    fold(total, high[1][0], low[1][0], 0, ord)
    if amax[1][0] > total.amax:
        total.amax = amax[1][0]


cdef inline bint write_panel(const gc_leaf *to, const gc_leaf *source, const Group *group, const Write *w,
                             bint per_unit, double *factors) noexcept nogil:
    """Scale some rows of some columns; False where a column needs more than that. factors: room for PANEL."""
    cdef ptrdiff_t j
    cdef bint idle = to.data == source.data
    cdef double largest = 3e38 if to.itemsize == 2 else INFINITY
    cdef double smallest = 1.2e-38 if to.itemsize == 2 else 0
    for j in range(group.count):
        if w.zero or w.kind > GC_SCALE or w.factor.shift:
            return False
        factors[j] = w.factor.last if w.kind == GC_SCALE else 1
        if factors[j] != 0 and not smallest <= abs(factors[j]) <= largest:
            return False
        idle = idle and w.kind == GC_KEEP
        w += per_unit
    if not idle:
        kernels.scale_columns[to.dtype](
            to.data + group.first * to.axes[1] + group.unit * to.itemsize, to.axes[1],
            source.data + group.first * source.axes[1] + group.unit * source.itemsize, source.axes[1],
            group.rows, group.count, factors)
    return True
