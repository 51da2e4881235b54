/* Whether the norm behind a sum lies near the middle between two float64: a few operations without a branch, for vectors. */
#ifndef GRADCLIP_NEAR_H
#define GRADCLIP_NEAR_H

#include <stdint.h>
#include <string.h>
#if defined(__GNUC__) || defined(_MSC_VER)
#include <math.h>
#else /* glibc's header wants a compiler that it knows */
double fabs(double x);
double fma(double x, double y, double z);
double sqrt(double x);
#endif

/* x - r * r for the float64 r next to the root of x: exact, by a fused operation or by Dekker's splitting. */
static inline double gc_residual(double x, double r)
{
#if defined(__FMA__) || defined(__FP_FAST_FMA)
    return fma(-r, r, x);
#else
    const double c = 134217729.0 * r, a = c - (c - r), b = r - a, p = r * r;
    return (x - p) - (((a * a - p) + 2 * a * b) + b * b);
#endif
}

/* Whether high + low, which is right to a relative error, may be the sum of a norm in such a middle. A sum of 0 is not, nor may a
 * sum leave the range of usual blocks.
 *
 * With r next to the norm, the middle above lies half an ulp from r; the one below too, but half as far where r is a power of two.
 * Their squares lie r * ulp or half of that from r * r. What this leaves out is below 2**-105 of the sum. */
static inline int gc_near_middle(double high, double low, int squares, double error)
{
    const double sum = high + low, rest = low - (sum - high), r = squares ? sqrt(sum) : sum;
    const double beside = squares ? gc_residual(sum, r) + rest : rest;
    uint64_t bits;
    double power; /* of two, next below r */
    memcpy(&bits, &r, 8);
    bits &= (uint64_t)0x7ff << 52;
    memcpy(&power, &bits, 8);
    const double half = squares ? r * (power * 0x1p-52) : power * 0x1p-53, most = error * sum;
    const int above = fabs(fabs(beside) - half) <= most, below = (r == power) & (fabs(beside + half / 2) <= most);
    return (sum > 0) & (above | below);
}

#endif
