/* Numbers of some 106 bits and any range, and the additions that lose nothing. */
#ifndef GRADCLIP_WIDE_H
#define GRADCLIP_WIDE_H

#ifndef GC_CUDA
#include "portable.h"
#include "range.h"
#endif

/* *sum += term; returns what the addition lost (TwoSum of Knuth and Moller). */
GC_SCALAR double gc_two_sum(double *sum, double term)
{
    const double before = *sum, total = before + term, part = total - before;
    *sum = total;
    return (before - (total - part)) + (term - part);
}

#ifndef GC_CUDA
/* The same in long double. */
static inline long double gc_two_sum_long(long double *sum, long double term)
{
    const long double before = *sum, total = before + term, part = total - before;
    *sum = total;
    return (before - (total - part)) + (term - part);
}
#endif

/* (head + tail) * 2**exponent */
typedef struct {
    double head, tail;
    int exponent;
} gc_wide;

/* head + tail where |head| is not below |tail| (FastTwoSum of Dekker). */
GC_SCALAR gc_wide gc_normalized(double head, double tail, int exponent)
{
    gc_wide w;
    w.head = head + tail;
    w.tail = tail - (w.head - head);
    w.exponent = exponent;
    return w;
}

GC_SCALAR gc_wide gc_divide(gc_wide w, double d)
{
    int exponent;
    d = frexp(d, &exponent);
    const double q = w.head / d;
    return gc_normalized(q, (fma(-q, d, w.head) + w.tail) / d, w.exponent - exponent);
}

/* The square root of a number above 0 whose exponent is even. */
GC_SCALAR gc_wide gc_square_root(gc_wide w)
{
    const double root = sqrt(w.head);
    return gc_normalized(root, (fma(-root, root, w.head) + w.tail) / (2 * root), w.exponent / 2);
}

/* To float64, Inf above its range. Below its normal numbers `head` is rounded once more: where it lies in the middle of
 * two of them, `tail` knows the side. */
GC_SCALAR double gc_narrow(gc_wide w)
{
    if (w.exponent == 0)
        return w.head;
    double value = ldexp(w.head, w.exponent);
    if (value <= 0x1p-1022) { /* 2**-1022 itself: from just below it, perhaps */
        const double residual = w.head - ldexp(value, -w.exponent); /* exact */
        const double half = ldexp(1.0, GC_DENORMAL - 1 - w.exponent);
        if ((residual == half && w.tail > 0) || (residual == -half && w.tail < 0))
            value += copysign(0x1p-1074, residual);
    }
    return value;
}

#endif
