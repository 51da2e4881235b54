/* What a complex block needs beyond the real kernels: magnitudes and finiteness by pair. Complex
 * gradients are rare, so plain scalar code serves them. */
#ifndef GRADCLIP_PAIRS_H
#define GRADCLIP_PAIRS_H

#include <math.h>
#include <stddef.h>
#include "kernels.h"

static inline double gc_part(const void *x, ptrdiff_t i, int dtype)
{
    return dtype == GC_F32 ? ((const float *)x)[i] : ((const double *)x)[i];
}

/* The larger of `largest` and the magnitudes of n / 2 finite pairs, which may lie beyond float64. */
static inline long double gc_pair_amax(const void *x, ptrdiff_t n, int dtype, long double largest)
{
    for (ptrdiff_t i = 0; i < n; i += 2) {
        double a = fabs(gc_part(x, i, dtype)), b = fabs(gc_part(x, i + 1, dtype));
        if ((a > b ? a : b) > largest * 0.7071067811865475L) { /* hypot is dear */
            double scale = a > GC_HUGE || b > GC_HUGE ? 2 : 1;
            long double h = (long double)hypot(a / scale, b / scale) * scale;
            largest = h > largest ? h : largest;
        }
    }
    return largest;
}

/* y[i] = magnitude of pair i, in float64. y may be x. */
static inline void gc_pair_abs(double *y, const void *x, ptrdiff_t n, int dtype)
{
    for (ptrdiff_t i = 0; i < n; i += 2) {
        double a = gc_part(x, i, dtype), b = gc_part(x, i + 1, dtype);
        y[i / 2] = hypot(a, b);
    }
}

/* The same for pairs of which a part reaches 2**-500, or (small) none does, and 0 for the others; scaled by
 * 2**-exponent so that none leaves the normal numbers. */
static inline void gc_pair_abs_of(double *y, const void *x, ptrdiff_t n, int dtype, int small, int *exponent)
{
    *exponent = small ? -GC_SHIFT : 2;
    const double scale = ldexp(1, -*exponent);
    for (ptrdiff_t i = 0; i < n; i += 2) {
        double a = fabs(gc_part(x, i, dtype)), b = fabs(gc_part(x, i + 1, dtype));
        y[i / 2] = (a < 0x1p-500 && b < 0x1p-500) == small ? hypot(a * scale, b * scale) : 0;
    }
}

/* Zeroes both parts of every pair that is not finite and counts it as NaN or, without one, as Inf. */
static inline void gc_pair_zero(void *x, ptrdiff_t n, int dtype, ptrdiff_t *nan_count, ptrdiff_t *inf_count)
{
    for (ptrdiff_t i = 0; i < n; i += 2) {
        double a = gc_part(x, i, dtype), b = gc_part(x, i + 1, dtype);
        if (isfinite(a) && isfinite(b))
            continue;
        if (isnan(a) || isnan(b))
            ++*nan_count;
        else
            ++*inf_count;
        if (dtype == GC_F32)
            ((float *)x)[i] = ((float *)x)[i + 1] = 0;
        else
            ((double *)x)[i] = ((double *)x)[i + 1] = 0;
    }
}

#endif
