/* Powers and roots for norms of any order p. A power is t * 2**k * 2**(GC_SHIFT * bin) with whole k and bin, so nothing
 * can leave the range; what an element adds is a function of that element alone, so order and split cannot matter.
 * Below p = 1 a root multiplies errors by 1 / p: there t is a long double, on most machines with 11 bits or more than
 * a double has. Where it is no more than a double, norms of such orders are within 4 / p ulp, all others within 4. */
#ifndef GRADCLIP_POWERS_H
#define GRADCLIP_POWERS_H

#ifndef GC_CUDA
#include "portable.h"
#include "range.h"
#endif

/* p = bins * GC_SHIFT + rest, exactly */
typedef struct {
    double p, rest;
    gc_i64 bins;
} gc_order;

typedef struct {
    gc_long t;
    int k;
    gc_i64 bin;
} gc_power;

/* Below 2**-12 two elements that are not 0 have a norm beyond float64, and clip to 0; from 2**60 on the norm is the
 * maximum to the last bit: orders beyond change nothing. */
GC_SCALAR gc_order gc_order_of(double p)
{
    gc_order o;
    o.p = p < 0x1p-12 ? 0x1p-12 : p > 0x1p60 ? 0x1p60 : p;
    o.rest = fmod(o.p, (double)GC_SHIFT);
    o.bins = (gc_i64)((o.p - o.rest) / GC_SHIFT);
    return o;
}

/* (x * 2**exponent)**p for x > 0. */
GC_SCALAR gc_power gc_power_of(double x, int exponent, gc_order o)
{
    gc_power r;
    int e;
    double m = frexp(x, &e);
    e += exponent;
    if (m < 0.7071067811865476) { /* around 1 the power stays small, whatever p is */
        m *= 2;
        e--;
    }
    r.bin = e * o.bins;
    double product = e * o.rest, k = rint(product);
    const gc_long left = (gc_long)fma((double)e, o.rest, -product) + (product - k); /* of e * rest, and |left| <= 1/2 */
    if (o.p == 0.5) { /* an exact root, of an even exponent: 30 times faster */
        const int odd = e & 1;
        k = (e - odd) / 2;
        r.t = sqrt(odd ? 2 * m : m);
    } else if (o.p < 1)
        r.t = gc_exp2l(o.p * gc_log2l(m) + left); /* quicker than a power, and as exact: the sum is below 1 */
    else if (o.p <= GC_SHIFT)
        r.t = left == 0 ? pow(m, o.p) : pow(m, o.p) * exp2((double)left);
    else { /* m**p itself may leave the range */
        double l = o.p * log2(m);
        const double over = rint(l / GC_SHIFT);
        r.bin += (gc_i64)over;
        l = fma(-(double)GC_SHIFT, over, l);
        k += rint(l);
        r.t = exp2(l - rint(l)) * exp2((double)left);
    }
    const double over = rint(k / GC_SHIFT);
    r.bin += (gc_i64)over;
    r.k = (int)(k - GC_SHIFT * over);
    return r;
}

/* The p-th root of (head + tail) * 2**(GC_SHIFT * bin), as result * 2**exponent. */
GC_SCALAR_APART double gc_root(double head, double tail, gc_i64 bin, double p, int *exponent)
{
    const gc_order o = gc_order_of(p);
    int e;
    gc_long m = frexp(head, &e);
    m += ldexp(tail, -e);
    if (m < GC_LONG(0.7071067811865476)) {
        m *= 2;
        e--;
    }
    const double whole = rint(((double)bin * GC_SHIFT + e) / o.p);
    /* What is left of the exponent: the multiples of GC_SHIFT cancel in integers, the rest is exact. */
    const double left = fma(-whole, o.rest, (double)(bin - (gc_i64)whole * o.bins) * GC_SHIFT + e);
    const gc_long l = (gc_log2l(m) + left) / o.p, more = gc_rintl(l);
    *exponent = (int)(whole + (double)more);
    return (double)gc_exp2l(l - more);
}

#endif
