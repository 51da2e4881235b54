/* Powers and roots for norms of any order p. A power is t * 2**k with t near 1 and a whole k, so nothing can
 * leave the range; what an element adds is a function of that element alone, so order and split cannot matter.
 * Below p = 0.75 a root multiplies errors by 1 / p, and long double keeps them small. */
#ifndef GRADCLIP_POWERS_H
#define GRADCLIP_POWERS_H

#include <math.h>
#include <stddef.h>
#include "kernels.h"

/* e * p as a whole number and what is left, exactly; |left| <= 1/2. */
static inline double gc_whole(int e, double p, double *left)
{
    double whole = rint(e * p);
    *left = fma(e, p, -whole);
    return whole;
}

/* (x * 2**exponent)**p = result * 2**k for x > 0. */
static inline double gc_power(double x, int exponent, double p, double *k)
{
    int e;
    double left, m = frexp(x, &e);
    e += exponent;
    if (m < 0.7071067811865476) { /* around 1 the power stays small, whatever p is */
        m *= 2;
        e--;
    }
    if (p == 0.5) { /* an exact root, of an even exponent */
        int odd = e & 1;
        *k = (e - odd) / 2;
        return sqrt(odd ? 2 * m : m);
    }
    *k = gc_whole(e, p, &left);
    if (p < 0.75)
        return (double)(powl(m, p) * exp2l(left));
    if (p > 1000) { /* m**p itself may leave the range */
        double l = p * log2(m), whole = rint(l);
        *k += whole;
        return exp2(l - whole) * exp2(left);
    }
    return left == 0 ? pow(m, p) : pow(m, p) * exp2(left);
}

/* Sum of |x * 2**exponent|**p over n finite x, as (high + low) * 2**(shift * bin). */
static inline gc_sum gc_sum_powers(const double *x, ptrdiff_t n, int exponent, double p, int shift, int *bin)
{
    gc_sum s = {0, 0, 0};
    double largest = 0, k;
    for (ptrdiff_t i = 0; i < n; i++)
        largest = fabs(x[i]) > largest ? fabs(x[i]) : largest;
    if (largest == 0)
        return s;
    gc_power(largest, exponent, p, &k);
    *bin = (int)rint(k / shift);
    for (ptrdiff_t i = 0; i < n; i++) {
        if (x[i] == 0)
            continue;
        double t = gc_power(fabs(x[i]), exponent, p, &k);
        k -= (double)shift * *bin;
        if (k < -1000) /* far beyond the last bit */
            continue;
        t = ldexp(t, (int)k);
        double sum = s.high + t, part = sum - s.high;
        s.low += (s.high - (sum - part)) + (t - part);
        s.high = sum;
    }
    return s;
}

/* The p-th root of (head + tail) * 2**exponent, as result * 2**root_exponent. */
static inline double gc_root(double head, double tail, int exponent, double p, int *root_exponent)
{
    int e;
    long double m = frexp(head, &e);
    m += ldexp(tail, -e);
    double total = (double)e + exponent, whole = rint(total / p);
    double left = fma(-whole, p, total); /* exact: total = whole * p + left */
    *root_exponent = (int)whole;
    return (double)(powl(m, 1 / (long double)p) * exp2l(left / (long double)p));
}

#endif
