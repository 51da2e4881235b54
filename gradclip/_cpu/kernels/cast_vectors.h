/* Casts by the vectors of the AVX sets: what cast_kernels.h says, several elements at a time. Included by kernels.c. */
#ifndef GRADCLIP_CAST_VECTORS_H
#define GRADCLIP_CAST_VECTORS_H

#if defined(GC_AVX512) || defined(GC_AVX2)
/* Eight or four products, and whether one may be a tie: as gc_may_be_tie tells it. */
static inline vq gc_products(const double *x, const double *factor, uint64_t last, vq *ties)
{
    vd p, f;
    memcpy(&p, x, sizeof p);
    memcpy(&f, factor, sizeof f);
    p *= f;
    const vq u = (vq)p, magnitude = u << 1;
    *ties |= ((u & last) - 1) & (magnitude | (0 - magnitude));
    return u;
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

/* Casts by the instructions that a set has for them: each returns how many elements it cast. `again`: its first bit is set where
 * some of them have to be cast one by one. */
static inline ptrdiff_t gc_cast_f16(uint16_t *y, const double *x, const double *factor, ptrdiff_t n, uint64_t *ties,
                                    uint64_t *again)
{
    ptrdiff_t i = 0;
    (void)again;
#if defined(GC_AVX512) || defined(GC_AVX2)
    vq any = {0};
    for (; i + GC_W <= n; i += GC_W)
        gc_store_f16(y + i, gc_odd_products(gc_products(x + i, factor + i, GC_BEHIND_FLOAT, &any)));
    *ties |= gc_any_of(any);
#else
    (void)y, (void)x, (void)factor, (void)n, (void)ties;
#endif
    return i;
}

static inline ptrdiff_t gc_cast_bf16(uint16_t *y, const double *x, const double *factor, ptrdiff_t n, uint64_t *ties,
                                     uint64_t *again)
{
    ptrdiff_t i = 0;
#if defined(GC_AVX512) || defined(GC_AVX2)
    vq any = {0}, tiny = {0};
    for (; i + GC_W <= n; i += GC_W) {
        const vq u = gc_products(x + i, factor + i, GC_BEHIND_FLOAT, &any), a = u & INT64_MAX;
        tiny |= (a - ((uint64_t)(1023 - 126) << 52)) & (0 - a); /* subnormal, and not 0 */
        gc_store_bf16(y + i, gc_odd_products(u));
    }
    *ties |= gc_any_of(any);
    *again |= gc_any_of(tiny);
#else
    (void)y, (void)x, (void)factor, (void)n, (void)ties, (void)again;
#endif
    return i;
}

static inline ptrdiff_t gc_cast_f32(float *y, const double *x, const double *factor, ptrdiff_t n, uint64_t *ties,
                                    uint64_t *again)
{
    ptrdiff_t i = 0;
    (void)again;
#if defined(GC_AVX512) || defined(GC_AVX2)
    vq any = {0};
    for (; i + GC_W <= n; i += GC_W) {
        const vd p = (vd)gc_products(x + i, factor + i, GC_BEHIND_FLOAT / 2, &any);
        const vf v = GC_TO_FLOAT(p);
        memcpy(y + i, &v, sizeof v);
    }
    *ties |= gc_any_of(any);
#else
    (void)y, (void)x, (void)factor, (void)n, (void)ties;
#endif
    return i;
}

#endif
