/* Casts by the vectors of the AVX sets: what cast_kernels.h says, several elements at a time. Included by kernels.c. */
#ifndef GRADCLIP_CAST_VECTORS_H
#define GRADCLIP_CAST_VECTORS_H

#if defined(GC_AVX512) || defined(GC_AVX2)
/* The bits of eight or four products, rounded to odd: what is not exact has its last bit set, and so is no tie. NaN and Inf stay. */
static inline vq gc_products(const double *x, const double *factor)
{
    vd v, f;
    memcpy(&v, x, sizeof v);
    memcpy(&f, factor, sizeof f);
    const vd p = v * f, rest = vd_fma(v, f, -p);
    const vq u = (vq)p, inexact = (vq)(rest != 0) & (vq)(rest - rest == 0);
    return (u - (((vq)rest ^ u) >> 63 & inexact)) | (inexact & 1); /* the product was rounded away from 0, or towards it */
}

static inline vd gc_odd_products(vq u)
{
    const uint64_t behind = GC_BEHIND_FLOAT;
    return (vd)((u | ((u & behind) + behind)) & ~behind);
}

static inline uint64_t gc_any_of(vq v)
{
    uint64_t any = 0;
    for (int j = 0; j < GC_W; j++)
        any |= v[j];
    return any;
}
#endif

/* Casts by the instructions that a set has for them: each returns how many elements it cast. `tiny`: its first bit is set where
 * some of them have to be cast one by one. */
static inline ptrdiff_t gc_cast_f16(uint16_t *y, const double *x, const double *factor, ptrdiff_t n, uint64_t *tiny)
{
    ptrdiff_t i = 0;
    (void)tiny;
#if defined(GC_AVX512) || defined(GC_AVX2)
    for (; i + GC_W <= n; i += GC_W)
        gc_store_f16(y + i, gc_odd_products(gc_products(x + i, factor + i)));
#else
    (void)y, (void)x, (void)factor, (void)n;
#endif
    return i;
}

static inline ptrdiff_t gc_cast_bf16(uint16_t *y, const double *x, const double *factor, ptrdiff_t n, uint64_t *tiny)
{
    ptrdiff_t i = 0;
#if defined(GC_AVX512) || defined(GC_AVX2)
    vq some = {0};
    for (; i + GC_W <= n; i += GC_W) {
        const vq u = gc_products(x + i, factor + i), a = u & INT64_MAX;
        some |= (a - ((uint64_t)(1023 - 126) << 52)) & (0 - a); /* subnormal, and not 0 */
        gc_store_bf16(y + i, gc_odd_products(u));
    }
    *tiny |= gc_any_of(some);
#else
    (void)y, (void)x, (void)factor, (void)n, (void)tiny;
#endif
    return i;
}

static inline ptrdiff_t gc_cast_f32(float *y, const double *x, const double *factor, ptrdiff_t n, uint64_t *tiny)
{
    ptrdiff_t i = 0;
    (void)tiny;
#if defined(GC_AVX512) || defined(GC_AVX2)
    for (; i + GC_W <= n; i += GC_W) {
        const vd p = (vd)gc_products(x + i, factor + i);
        const vf v = GC_TO_FLOAT(p);
        memcpy(y + i, &v, sizeof v);
    }
#else
    (void)y, (void)x, (void)factor, (void)n;
#endif
    return i;
}

#endif
