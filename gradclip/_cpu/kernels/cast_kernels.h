/* Casts: products of float64, each rounded once to a narrower dtype. Included once per dtype by kernels.c, behind
 * block_kernels.h; the first part, which is the same for all, once.
 *
 * A product of float64 is rounded to 53 bits, and a half comes by way of float32. Neither may show. On the way to float32 a
 * product is rounded to odd: the last bit that is kept is set if any bit behind it was, so that no tie of a half arises. By
 * vectors, it is rounded to odd to 53 bits too; one by one, a product that became a tie by its rounding to 53 bits is moved off it
 * to the side where the exact one lies. */
#ifndef GRADCLIP_CAST_KERNELS_H
#define GRADCLIP_CAST_KERNELS_H

#include "near.h" /* fma */

#define GC_BEHIND_FLOAT 0x1fffffff /* bits of a float64 that float32 has no room for */

static inline uint64_t gc_bits_of_double(double x)
{
    uint64_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static inline double gc_double_of(uint64_t u)
{
    double x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* The first bit is set where x, which is not 0, has none of some last bits, as every tie has none. */
static inline uint64_t gc_may_be_tie(double x, uint64_t last)
{
    const uint64_t u = gc_bits_of_double(x), magnitude = u << 1;
    return ((u & last) - 1) & (magnitude | (0 - magnitude));
}

/* x rounded to odd to the 24 bits of float32. */
static inline double gc_odd(double x)
{
    const uint64_t u = gc_bits_of_double(x), behind = GC_BEHIND_FLOAT;
    return gc_double_of((u | ((u & behind) + behind)) & ~behind);
}

/* The same for bfloat16, whose subnormal numbers are float32's too: these are rounded here, once, to multiples of 2**-133. */
static inline double gc_odd_or_subnormal(double x)
{
    const uint64_t sign = gc_bits_of_double(x) & ((uint64_t)1 << 63);
    const double a = gc_double_of(gc_bits_of_double(x) ^ sign), small = (a + 0x1.8p-81) - 0x1.8p-81;
    return a < 0x1p-126 ? gc_double_of(gc_bits_of_double(small) | sign) : gc_odd(x);
}

/* x * factor, or the float64 beside it if that became a tie by its rounding. */
static inline double gc_product_off_ties(double x, double factor, uint64_t last)
{
    const double product = x * factor;
    if (!(gc_may_be_tie(product, last) >> 63) || product - product != 0) /* NaN, Inf */
        return product;
    const double rest = fma(x, factor, -product);
    if (rest == 0)
        return product;
    const uint64_t u = gc_bits_of_double(product);
    return gc_double_of((rest < 0) == (product < 0) ? u + 1 : u - 1);
}

/* How many bits n numbers need for their significands. */
static inline int gc_most_bits(const double *x, ptrdiff_t n)
{
    uint64_t any = (uint64_t)1 << 52;
    int bits = 53;
    for (ptrdiff_t i = 0; i < n; i++)
        any |= gc_bits_of_double(x[i]);
    for (; !(any & 1); any >>= 1)
        bits--;
    return bits;
}

/* Whether float64 holds all products: then the ties among them are ties. */
static inline int gc_products_are_exact(const double *x, const double *factor, ptrdiff_t n)
{
    const int a = gc_most_bits(x, n), b = gc_most_bits(factor, n);
    return a + b <= 53 || a == 1 || b == 1;
}

#endif

#ifdef NAME
/* y = x * factor, element by element. */
static void NAME(cast)(void *y, const double *x, const double *factor, ptrdiff_t n)
{
    ELEMENT *q = y;
#if WIDE
    GC_IVDEP
    for (ptrdiff_t i = 0; i < n; i++)
        q[i] = x[i] * factor[i];
#else
    const uint64_t last = SHORT ? GC_BEHIND_FLOAT : GC_BEHIND_FLOAT / 2; /* ties of float32 have one bit more */
    uint64_t ties = 0, tiny = 0;
    const ptrdiff_t done = CAST_VECTORS(q, x, factor, n, &tiny), first = tiny >> 63 ? 0 : done;
    GC_IVDEP
    for (ptrdiff_t i = first; i < n; i++) {
        const double product = x[i] * factor[i];
        ties |= gc_may_be_tie(product, last);
        q[i] = PUT(ODD(product));
    }
    if (ties >> 63 && !gc_products_are_exact(x + first, factor + first, n - first))
        for (ptrdiff_t i = first; i < n; i++)
            q[i] = PUT(ODD(gc_product_off_ties(x[i], factor[i], last)));
#endif
}
#endif
