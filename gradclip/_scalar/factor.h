/* What elements are multiplied by. */
#ifndef GRADCLIP_FACTOR_H
#define GRADCLIP_FACTOR_H

#ifndef GC_CUDA
#include "wide.h"
#endif

typedef struct {
    double value, last; /* what the report shows; elements become (x * 2**shift) * last, rounded at `last` */
    gc_i64 shift;
} gc_factor;

GC_SCALAR gc_factor gc_plain_factor(double value)
{
    gc_factor f;
    f.value = f.last = value;
    f.shift = 0;
    return f;
}

/* last and shift become number * 2**exponent; what leaves the range of float64 goes to the shift. */
GC_SCALAR void gc_set_last(gc_factor *f, double number, int exponent)
{
    f->shift = -1020 < exponent && exponent < 1020 ? 0 : exponent < 0 ? exponent + 500 : exponent - 500;
    f->last = ldexp(number, exponent - (int)f->shift);
}

GC_SCALAR int gc_is_tame(double x) { return 1e-290 < x && x < 1e290; }

/* threshold / (norm + eps) / grad_scale, whose value may lie outside float64. */
GC_SCALAR gc_factor gc_factor_of(double threshold, gc_wide norm, double eps, double grad_scale)
{
    gc_factor f = gc_plain_factor(0);
    double n = gc_narrow(norm);
    int et, en, ed, es;
    if (threshold == 0)
        return f;
    f.value = f.last = threshold / (n + eps) / grad_scale;
    if (gc_is_tame(f.value) && gc_is_tame(n + eps) && gc_is_tame(threshold / (n + eps)))
        return f;
    /* By mantissa and exponent. norm + eps: eps matters only where it is not far below norm. */
    n = frexp(norm.head, &en);
    en += norm.exponent;
    if (eps > 0) {
        const double d = frexp(eps, &ed);
        if (norm.head == 0 || ed > en) {
            n = d + (norm.head > 0 ? ldexp(n, en - ed) : 0);
            en = ed;
        } else
            n += ldexp(d, ed - en);
    }
    const double number = frexp(threshold, &et) / n / frexp(grad_scale, &es);
    et -= en + es;
    f.value = ldexp(number, et);
    gc_set_last(&f, number, et);
    return f;
}

/* `last` times a number. */
GC_SCALAR void gc_multiply(gc_factor *f, double by)
{
    int exponent, more;
    if (f->last == 0 || by == 0 || isnan(f->last)) {
        f->last *= by;
        return;
    }
    const double product = frexp(f->last, &exponent) * frexp(by, &more);
    gc_set_last(f, product, exponent + more + (int)f->shift);
}

/* The whole factor times a ratio below 1. */
GC_SCALAR void gc_shrink(gc_factor *f, double ratio)
{
    f->value *= ratio;
    f->last *= ratio;
}

/* A norm stays within a threshold when it is brought to gc_safe_threshold of it and each element is rounded up: see RoundingBound in
 * _core/rounding.py, which makes these numbers. */
typedef struct {
    double lost, slope, power, floor, most;
} gc_rounding_bound;

GC_SCALAR double gc_safe_threshold(double threshold, const gc_rounding_bound *rounding)
{
    const int linear = rounding->power == 1;
    double left = threshold > 0 ? 1 - rounding->lost / (linear ? threshold : pow(threshold, rounding->power)) : 0;
    left = left <= 0 ? 0 : linear ? left : pow(left, 1 / rounding->power);
    return threshold * (left > rounding->floor ? left : rounding->floor) / rounding->slope;
}

#endif
