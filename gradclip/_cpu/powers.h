/* Powers and roots for norms of any order p. A power is t * 2**k * 2**(GC_SHIFT * bin) with whole k and bin, so nothing
 * can leave the range; what an element adds is a function of that element alone, so order and split cannot matter.
 * Below p = 1 a root multiplies errors by 1 / p: there t is a long double, on most machines with 11 bits or more than
 * a double has. Where it is no more than a double, norms of such orders are within 4 / p ulp, all others within 4. */
#ifndef GRADCLIP_POWERS_H
#define GRADCLIP_POWERS_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include "kernels.h"

typedef struct {
    double p, rest; /* p = bins * GC_SHIFT + rest, exactly */
    int64_t bins;
} gc_order;

typedef struct {
    long double t;
    int k;
    int64_t bin;
} gc_power;

/* Below 2**-12 two elements that are not 0 have a norm beyond float64, and clip to 0; from 2**60 on the norm is the
 * maximum to the last bit: orders beyond change nothing. */
static inline gc_order gc_order_of(double p)
{
    p = p < 0x1p-12 ? 0x1p-12 : p > 0x1p60 ? 0x1p60 : p;
    gc_order o = {p, fmod(p, GC_SHIFT), 0};
    o.bins = (int64_t)((p - o.rest) / GC_SHIFT);
    return o;
}

/* (x * 2**exponent)**p for x > 0. */
static inline gc_power gc_power_of(double x, int exponent, gc_order o)
{
    gc_power r;
    int e;
    double m = frexp(x, &e), l = 0;
    e += exponent;
    if (m < 0.7071067811865476) { /* around 1 the power stays small, whatever p is */
        m *= 2;
        e--;
    }
    r.bin = e * o.bins;
    double product = e * o.rest, k = rint(product);
    long double left = (long double)fma(e, o.rest, -product) + (product - k); /* of e * rest, and |left| <= 1/2 */
    if (o.p == 0.5) { /* an exact root, of an even exponent: 30 times faster */
        const int odd = e & 1;
        k = (e - odd) / 2;
        r.t = sqrt(odd ? 2 * m : m);
    } else if (o.p < 1)
        r.t = exp2l(o.p * log2l(m) + left); /* quicker than powl, and as exact: the sum is below 1 */
    else if (o.p <= GC_SHIFT)
        r.t = left == 0 ? pow(m, o.p) : pow(m, o.p) * exp2((double)left);
    else { /* m**p itself may leave the range */
        l = o.p * log2(m);
        double over = rint(l / GC_SHIFT);
        r.bin += (int64_t)over;
        l = fma(-GC_SHIFT, over, l);
        k += rint(l);
        r.t = exp2(l - rint(l)) * exp2((double)left);
    }
    double over = rint(k / GC_SHIFT);
    r.bin += (int64_t)over;
    r.k = (int)(k - GC_SHIFT * over);
    return r;
}

/* Sum of |x * 2**exponent|**p over n finite x, as (high + low) * 2**(GC_SHIFT * bin). */
static inline gc_sum gc_sum_powers(const double *x, ptrdiff_t n, int exponent, double p, int64_t *bin)
{
    const gc_order o = gc_order_of(p);
    gc_sum s = {0, 0, 0};
    double largest = 0;
    for (ptrdiff_t i = 0; i < n; i++)
        largest = fabs(x[i]) > largest ? fabs(x[i]) : largest;
    if (largest == 0)
        return s;
    *bin = gc_power_of(largest, exponent, o).bin;
    for (ptrdiff_t i = 0; i < n; i++) {
        if (x[i] == 0)
            continue;
        gc_power r = gc_power_of(fabs(x[i]), exponent, o);
        if (r.bin < *bin - 1) /* far beyond the last bit */
            continue;
        long double t = ldexpl(r.t, r.k + (int)(r.bin - *bin) * GC_SHIFT);
        double head = (double)t, sum = s.high + head, part = sum - s.high;
        s.low += (s.high - (sum - part)) + (head - part) + (double)(t - head);
        s.high = sum;
    }
    return s;
}

/* The p-th root of (head + tail) * 2**(GC_SHIFT * bin), as result * 2**exponent. */
static inline double gc_root(double head, double tail, int64_t bin, double p, int *exponent)
{
    const gc_order o = gc_order_of(p);
    int e;
    long double m = frexp(head, &e);
    m += ldexp(tail, -e);
    if (m < 0.7071067811865476L) {
        m *= 2;
        e--;
    }
    double whole = rint(((double)bin * GC_SHIFT + e) / o.p);
    /* What is left of the exponent: the multiples of GC_SHIFT cancel in integers, the rest is exact. */
    double left = fma(-whole, o.rest, (double)(bin - (int64_t)whole * o.bins) * GC_SHIFT + e);
    long double l = (log2l(m) + left) / o.p, more = rintl(l);
    *exponent = (int)(whole + (double)more);
    return (double)exp2l(l - more);
}

#endif
