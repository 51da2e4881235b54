/* Vectors of the instruction set that this file is compiled for.
 *
 * vd: GC_W float64; vf: GC_W float32; vi: GC_W int32. GCC and Clang lower their operators to the set's own
 * instructions; any other compiler gets GC_W = 1 and plain doubles: the same source, the same lanes,
 * the same bits. Only what operators cannot say (fused multiply-add, half conversion) is spelled
 * per set. Nothing here has external linkage: two sets must never share a symbol.
 */
#ifndef GRADCLIP_SIMD_H
#define GRADCLIP_SIMD_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__GNUC__) /* and Clang, which defines it too */
#if defined(__AVX512F__)
#define GC_AVX512 1
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define GC_AVX2 1
#elif defined(__aarch64__)
#define GC_NEON 1
#endif
#endif

#if defined(GC_AVX512) || defined(GC_AVX2)
#include <immintrin.h>
#elif defined(GC_NEON)
#include <arm_neon.h>
#endif

#if defined(__GNUC__)
#if defined(GC_AVX512)
enum { GC_W = 8 };
#elif defined(GC_AVX2)
enum { GC_W = 4 };
#else
enum { GC_W = 2 };
#endif
typedef double vd __attribute__((vector_size(8 * GC_W)));
typedef float vf __attribute__((vector_size(4 * GC_W)));
typedef int32_t vi __attribute__((vector_size(4 * GC_W)));
typedef uint64_t vq __attribute__((vector_size(8 * GC_W)));
#define GC_TO_DOUBLE(v) __builtin_convertvector(v, vd)
#define GC_TO_FLOAT(v) __builtin_convertvector(v, vf)
#define GC_LIKELY(x) __builtin_expect(x, 1)
#define GC_PREFETCH(p) __builtin_prefetch(p, 0, 2) /* into the second cache: the first has no room for rows to come */
#define GC_INLINE static inline __attribute__((always_inline))
#else
enum { GC_W = 1 };
typedef double vd;
typedef float vf;
typedef int32_t vi;
typedef uint64_t vq;
#define GC_TO_DOUBLE(v) ((double)(v))
#define GC_TO_FLOAT(v) ((float)(v))
#define GC_PREFETCH(p) ((void)(p))
#define GC_INLINE static inline
#define GC_LIKELY(x) (x)
#endif

/* The loop carries no dependence even when y is x: lets compilers vectorise in-place loops. */
#if defined(__clang__)
#define GC_IVDEP _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define GC_IVDEP _Pragma("GCC ivdep")
#elif defined(_MSC_VER)
#define GC_IVDEP __pragma(loop(ivdep))
#else
#define GC_IVDEP
#endif

/* Ask for some bytes that come a page after p, line by line: the processor's own prefetchers stop at the end of each page, and
 * arithmetic leaves them less to see than a plain read does. */
enum { GC_PAGE = 4096, GC_AT_ONCE = 1024 /* bytes asked for at once */ };
static inline void gc_look_ahead(const void *p, ptrdiff_t bytes)
{
    for (ptrdiff_t i = 0; i < bytes; i += 64)
        GC_PREFETCH((const char *)p + GC_PAGE + i);
}

static inline vd vd_all(double x)
{
    vd v;
    double a[GC_W];
    for (int j = 0; j < GC_W; j++)
        a[j] = x;
    memcpy(&v, a, sizeof v);
    return v;
}

/* a * b + c, rounded once. Without the instruction only called where a * b is exact. */
#if defined(GC_AVX512)
static inline vd vd_fma(vd a, vd b, vd c) { return (vd)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c); }
#define GC_FMA 1
#elif defined(GC_AVX2)
static inline vd vd_fma(vd a, vd b, vd c) { return (vd)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c); }
#define GC_FMA 1
#elif defined(GC_NEON)
static inline vd vd_fma(vd a, vd b, vd c) { return (vd)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b); }
#define GC_FMA 1
#else
#define GC_FMA 0
#endif

/* a * b + c where a * b is exact: fused or not, the same. */
static inline vd gc_multiply_add(vd a, vd b, vd c)
{
#if GC_FMA
    return vd_fma(a, b, c);
#else
    return a * b + c;
#endif
}

/* y where x > limit, else 0. */
static inline vd vd_where_above(vd x, double limit, vd y)
{
#if defined(__GNUC__)
    return (vd)((__typeof__(x > x))y & (x > vd_all(limit)));
#else
    return x > limit ? y : 0;
#endif
}

/* to = n <= 16 elements of so many bytes each, and zeros up to 16. Masks where there are any: what a copy of variable length
 * has stored in pieces, a vector load waits for. */
static inline void gc_fill_row(void *to, const void *from, ptrdiff_t n, ptrdiff_t size)
{
    const char *p = from;
    char *q = to;
#if defined(GC_AVX512)
    const unsigned first = (1u << n) - 1;
    if (size == 2) {
        _mm256_storeu_si256((__m256i *)q, _mm256_maskz_loadu_epi16((__mmask16)first, p));
        return;
    }
    if (size == 4) {
        _mm512_storeu_si512(q, _mm512_maskz_loadu_epi32((__mmask16)first, p));
        return;
    }
    _mm512_storeu_si512(q, _mm512_maskz_loadu_epi64((__mmask8)first, p));
    _mm512_storeu_si512(q + 64, _mm512_maskz_loadu_epi64((__mmask8)(first >> 8), p + 64));
#else
#if defined(GC_AVX2)
    if (size > 2) {
        static const int32_t sign[64] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
                                         -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1}; /* 32 and 32 zeros */
        const int32_t *mask = sign + 32 - n * size / 4;
        for (int j = 0; j < size / 2; j++) {
            __m256i m = _mm256_loadu_si256((const __m256i *)(mask + 8 * j));
            _mm256_storeu_si256((__m256i *)(q + 32 * j), _mm256_maskload_epi32((const int *)(p + 32 * j), m));
        }
        return;
    }
#endif
    memset(q, 0, (size_t)(16 * size));
    memcpy(q, p, (size_t)(n * size));
#endif
}

/* Whether no x is above its limit, or NaN. */
static inline int gc_all_within(vd x, vd limit)
{
#if defined(GC_AVX512)
    return _mm512_cmp_pd_mask((__m512d)x, (__m512d)limit, _CMP_NLE_UQ) == 0;
#elif defined(GC_AVX2)
    return _mm256_movemask_pd(_mm256_cmp_pd((__m256d)x, (__m256d)limit, _CMP_NLE_UQ)) == 0;
#else
    double a[GC_W], b[GC_W];
    memcpy(a, &x, sizeof x);
    memcpy(b, &limit, sizeof limit);
    int within = 1;
    for (int j = 0; j < GC_W; j++)
        within &= a[j] <= b[j];
    return within;
#endif
}

/* ---- 32-bit lanes: as many as vd has -------------------------------------------------------------------------------- */

#if defined(GC_AVX512)
static inline vi vi_max(vi a, vi b) { return (vi)_mm256_max_epi32((__m256i)a, (__m256i)b); }
static inline vi vi_unsigned_min(vi a, vi b) { return (vi)_mm256_min_epu32((__m256i)a, (__m256i)b); }
static inline int vi_any_negative(vi a) { return _mm256_movemask_ps((__m256)a) != 0; }
#elif defined(GC_AVX2)
static inline vi vi_max(vi a, vi b) { return (vi)_mm_max_epi32((__m128i)a, (__m128i)b); }
static inline vi vi_unsigned_min(vi a, vi b) { return (vi)_mm_min_epu32((__m128i)a, (__m128i)b); }
static inline int vi_any_negative(vi a) { return _mm_movemask_ps((__m128)a) != 0; }
#else
static inline vi vi_max(vi a, vi b)
{
    int32_t x[GC_W], y[GC_W];
    memcpy(x, &a, sizeof a);
    memcpy(y, &b, sizeof b);
    for (int j = 0; j < GC_W; j++)
        x[j] = x[j] > y[j] ? x[j] : y[j];
    memcpy(&a, x, sizeof a);
    return a;
}

static inline vi vi_unsigned_min(vi a, vi b)
{
    uint32_t x[GC_W], y[GC_W];
    memcpy(x, &a, sizeof a);
    memcpy(y, &b, sizeof b);
    for (int j = 0; j < GC_W; j++)
        x[j] = x[j] < y[j] ? x[j] : y[j];
    memcpy(&a, x, sizeof a);
    return a;
}

static inline int vi_any_negative(vi a)
{
    int32_t x[GC_W], any = 0;
    memcpy(x, &a, sizeof a);
    for (int j = 0; j < GC_W; j++)
        any |= x[j];
    return any < 0;
}
#endif

static inline vi vi_bits(vf x)
{
    vi a;
    memcpy(&a, &x, sizeof a);
    return a;
}

static inline vd vd_abs(vd x)
{
#if defined(GC_AVX512)
    return (vd)_mm512_abs_pd((__m512d)x);
#elif defined(GC_AVX2)
    return (vd)_mm256_andnot_pd(_mm256_set1_pd(-0.0), (__m256d)x);
#else
    uint64_t u[GC_W];
    memcpy(u, &x, sizeof x);
    for (int j = 0; j < GC_W; j++)
        u[j] &= UINT64_C(0x7fffffffffffffff);
    memcpy(&x, u, sizeof x);
    return x;
#endif
}

#endif
