/* float16 and bfloat16 to float32 and back, element by element, in integer and float32 arithmetic
 * that every compiler vectorises; F16C and AVX-512 conversions where the set has them.
 *
 * The conversions to float32 are exact; those back round to nearest even, once. */
#ifndef GRADCLIP_HALF_H
#define GRADCLIP_HALF_H

#include <stdint.h>
#include <string.h>
#include "simd.h"

static inline uint32_t gc_bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}

static inline float gc_float(uint32_t u)
{
    float x;
    memcpy(&x, &u, 4);
    return x;
}

static inline float gc_from_bf16(uint16_t h) { return gc_float((uint32_t)h << 16); }

static inline uint16_t gc_to_bf16(float x)
{
    uint32_t u = gc_bits(x);
    uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    uint32_t nan = (u >> 16) | 0x40; /* rounding could carry a NaN into Inf */
    return (uint16_t)((u & 0x7fffffff) > 0x7f800000 ? nan : rounded);
}

/* The exponent is moved by a multiplication, which is exact for subnormal halves too. */
static inline float gc_from_f16(uint16_t h)
{
    uint32_t magnitude = (uint32_t)(h & 0x7fff) << 13;
    uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    uint32_t u = gc_bits(gc_float(magnitude) * 0x1p112f);
    uint32_t nonfinite = magnitude | 0x7f800000;
    return gc_float(sign | ((h & 0x7fff) >= 0x7c00 ? nonfinite : u));
}

/* Three candidates, one chosen: normal (rounded in the integer), subnormal (rounded by the
 * addition of 0.5, whose ulp is a float16 subnormal step), Inf or NaN. */
static inline uint16_t gc_to_f16(float x)
{
    uint32_t u = gc_bits(x), sign = (u >> 16) & 0x8000;
    uint32_t a = u & 0x7fffffff;
    uint32_t normal = (a - 0x38000000 + 0xfff + ((a >> 13) & 1)) >> 13;
    uint32_t subnormal = gc_bits(gc_float(a) + 0.5f) - 0x3f000000;
    uint32_t special = a > 0x7f800000 ? 0x7e00 | ((a >> 13) & 0x3ff) : 0x7c00;
    uint32_t h = a < 0x38800000 ? subnormal : normal;
    h = a >= 0x477ff000 ? special : h; /* 65520 and above round to Inf */
    return (uint16_t)(sign | h);
}

/* GC_W elements to a vector of float64. */
static inline vd gc_load_bf16(const uint16_t *p)
{
#if defined(GC_AVX512)
    __m256i u = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return (vd)_mm512_cvtps_pd(_mm256_castsi256_ps(_mm256_slli_epi32(u, 16)));
#elif defined(GC_AVX2)
    __m128i u = _mm_cvtepu16_epi32(_mm_loadl_epi64((const __m128i *)p));
    return (vd)_mm256_cvtps_pd(_mm_castsi128_ps(_mm_slli_epi32(u, 16)));
#else
    vf v;
    float a[GC_W];
    for (int j = 0; j < GC_W; j++)
        a[j] = gc_from_bf16(p[j]);
    memcpy(&v, a, sizeof v);
    return GC_TO_DOUBLE(v);
#endif
}

static inline vd gc_load_f16(const uint16_t *p)
{
#if defined(GC_AVX512)
    return (vd)_mm512_cvtps_pd(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)));
#elif defined(GC_AVX2)
    return (vd)_mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64((const __m128i *)p)));
#elif defined(GC_NEON)
    uint32_t two;
    memcpy(&two, p, sizeof two);
    return (vd)vcvt_f64_f32(vget_low_f32(vcvt_f32_f16(vreinterpret_f16_u32(vdup_n_u32(two)))));
#else
    vf v;
    float a[GC_W];
    for (int j = 0; j < GC_W; j++)
        a[j] = gc_from_f16(p[j]);
    memcpy(&v, a, sizeof v);
    return GC_TO_DOUBLE(v);
#endif
}

#if defined(GC_AVX512)
static inline void gc_store_f16(uint16_t *p, vd v)
{
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(_mm512_cvtpd_ps((__m512d)v), _MM_FROUND_TO_NEAREST_INT));
}

static inline void gc_store_bf16(uint16_t *p, vd v)
{
    const __m256i u = _mm256_castps_si256(_mm512_cvtpd_ps((__m512d)v));
    const __mmask8 nan = _mm256_cmp_ps_mask(_mm256_castsi256_ps(u), _mm256_castsi256_ps(u), _CMP_UNORD_Q);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i more = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    const __m256i rounded = _mm256_mask_add_epi32(u, (__mmask8)~nan, u, more);
    _mm_storeu_si128((__m128i *)p, _mm256_cvtepi32_epi16(_mm256_srli_epi32(rounded, 16)));
}
#elif defined(GC_AVX2)
static inline void gc_store_bf16(uint16_t *p, vd v)
{
    const __m128 x = _mm256_cvtpd_ps((__m256d)v);
    const __m128i u = _mm_castps_si128(x), number = _mm_castps_si128(_mm_cmpord_ps(x, x));
    const __m128i odd = _mm_and_si128(_mm_srli_epi32(u, 16), _mm_set1_epi32(1));
    const __m128i more = _mm_and_si128(number, _mm_add_epi32(odd, _mm_set1_epi32(0x7fff)));
    const __m128i rounded = _mm_srli_epi32(_mm_add_epi32(u, more), 16);
    _mm_storel_epi64((__m128i *)p, _mm_packus_epi32(rounded, rounded));
}

static inline void gc_store_f16(uint16_t *p, vd v)
{
    _mm_storel_epi64((__m128i *)p, _mm_cvtps_ph(_mm256_cvtpd_ps((__m256d)v), _MM_FROUND_TO_NEAREST_INT));
}
#endif

#endif
