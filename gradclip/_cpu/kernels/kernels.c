/* All kernels of one instruction set, and their table. Compiled once per set, with GC_SET naming it
 * (baseline, avx2, avx512) and the set's flags on this file alone. */
#include "kernels.h"
#include "simd.h"
#include "half.h"
#include "near.h"
#include "cast_kernels.h"

#ifdef _MSC_VER /* elsewhere -ffp-contract=off */
#pragma fp_contract(off)
#endif

#define GC_PASTE2(a, b) a##b
#define GC_PASTE(a, b) GC_PASTE2(a, b)
#define GC_TEXT2(a) #a
#define GC_TEXT(a) GC_TEXT2(a)

#define GC_MOST(a, b) ((a) > (b) ? (a) : (b))
#define GC_LEAST(a, b) ((a) < (b) ? (a) : (b))

/* Halves whose magnitudes are tracked side by side: one or two vectors. */
enum { GC_TRACKS = 32 };

/* Whether any is below `low`, or `high` or above. */
static inline int gc_any_outside(const int16_t least[], const int16_t most[], int16_t low, int16_t high)
{
#if defined(GC_AVX512)
    __mmask32 above = _mm512_cmpge_epi16_mask(_mm512_loadu_si512(most), _mm512_set1_epi16(high));
    return (above | _mm512_cmplt_epi16_mask(_mm512_loadu_si512(least), _mm512_set1_epi16(low))) != 0;
#elif defined(GC_AVX2)
    __m256i any = _mm256_setzero_si256();
    for (int j = 0; j < GC_TRACKS; j += 16) {
        __m256i below = _mm256_cmpgt_epi16(_mm256_set1_epi16(low), _mm256_loadu_si256((const __m256i *)(least + j)));
        __m256i above = _mm256_cmpgt_epi16(_mm256_loadu_si256((const __m256i *)(most + j)), _mm256_set1_epi16(high - 1));
        any = _mm256_or_si256(any, _mm256_or_si256(below, above));
    }
    return !_mm256_testz_si256(any, any);
#else
    int any = 0;
    for (int j = 0; j < GC_TRACKS; j++)
        any |= (least[j] < low) | (most[j] >= high);
    return any;
#endif
}

static inline void gc_start(double start, vd sum[], vd error[])
{
    for (int j = 0; j < GC_LANES / GC_W; j++) {
        sum[j] = vd_all(start);
        error[j] = vd_all(0.0);
    }
}

/* s[j] += s[j + half], by TwoSum. Inlined with a constant half, so that each is a few vector instructions. */
static inline void gc_halve(double s[], double e[], int half)
{
    for (int j = 0; j < half; j++) {
        double a = s[j], b = s[j + half];
        double t = a + b, part = t - a;
        e[j] += e[j + half] + ((a - (t - part)) + (b - part));
        s[j] = t;
    }
}

/* Sixteen lanes to one sum, as a tree of TwoSums. sum - start is exact: both are multiples of
 * ulp(sum), and the difference is smaller than sum. */
static inline gc_sum gc_fold_lanes(double start, const vd sum[], const vd error[], double amax)
{
    double s[GC_LANES], e[GC_LANES];
    for (int j = 0; j < GC_LANES / GC_W; j++) {
        vd taken = sum[j] - vd_all(start);
        memcpy(s + j * GC_W, &taken, sizeof taken);
    }
    memcpy(e, error, sizeof e);
    gc_halve(s, e, 8);
    gc_halve(s, e, 4);
    gc_halve(s, e, 2);
    gc_halve(s, e, 1);
    return (gc_sum){s[0], e[0], amax};
}

/* What the rounding of x * x lost: exact. */
static inline vd gc_square_rest(vd x, vd square)
{
#if GC_FMA
    return vd_fma(x, x, -square);
#else
    /* Dekker: x = head + tail, 26 bits each; no overflow below the bound. Of squares below 2**-960 his
     * products may underflow; the fused rest of such a square never reaches the sum, so it is 0 here. */
    vd c = x * 0x1.0000002p27;
    vd head = c - (c - x), tail = x - head;
    return vd_where_above(square, 0x1p-960, ((head * head - square) + 2 * head * tail) + tail * tail);
#endif
}

/* sum + error += term, without loss: the term is not above the sum. */
static inline void gc_fast_two_sum(vd *sum, vd *error, vd term)
{
    vd t = *sum + term;
    *error += term - (t - *sum);
    *sum = t;
}

/* The same of a product that is exact. */
static inline void gc_add_product(vd *sum, vd *error, vd a, vd b)
{
    vd t = gc_multiply_add(a, b, *sum);
    *error += gc_multiply_add(a, b, *sum - t);
    *sum = t;
}

/* sum + error += term, without loss. A third of the sums go through the fused units: the others have enough to do. */
static inline void gc_two_sum(vd *sum, vd *error, vd term)
{
    vd t = *sum + term, part = t - *sum;
#if GC_FMA
    const vd one = vd_all(1.0);
    *error += (*sum - vd_fma(one, t, -part)) + vd_fma(one, term, -part);
#else
    *error += (*sum - (t - part)) + (term - part);
#endif
    *sum = t;
}

/* The same of GC_W sums in memory. */
static inline void gc_add_to(double *sum, double *error, vd term)
{
    vd s, e;
    memcpy(&s, sum, sizeof s);
    memcpy(&e, error, sizeof e);
    gc_two_sum(&s, &e, term);
    memcpy(sum, &s, sizeof s);
    memcpy(error, &e, sizeof e);
}

/* Whether a factor may be rounded to float32 before it multiplies halves: not if it becomes subnormal, 0 or Inf. */
static inline int gc_fits_float(double factor)
{
    double a = factor < 0 ? -factor : factor;
    return (a >= 0x1p-126 && a <= 0x1.fffffep127) || a == 0;
}

#include "step_vectors.h"
#include "cast_vectors.h"

#define SHORT 11
#define PRODUCT float
#define STEP_FIRST STEP_START(gc_step_f16)
#define CAST_VECTORS gc_cast_f16
#define ODD gc_odd
#define NAME(f) f##_f16
#define ELEMENT uint16_t
#define BITS int16_t
#define ABS_MASK 0x7fff
#define INF_BITS 0x7c00
#define LOAD(p) gc_load_f16(p)
#define GET(e) ((double)gc_from_f16(e))
#define PUT(d) gc_to_f16((float)(d))
#define WIDE 0
#include "block_kernels.h"
#include "column_kernels.h"
#include "cast_kernels.h"
#undef NAME
#undef ABS_MASK
#undef INF_BITS
#undef LOAD
#undef GET
#undef PUT

#undef SHORT
#undef STEP_FIRST
#undef CAST_VECTORS
#undef ODD
#define CAST_VECTORS gc_cast_bf16
#define ODD gc_odd_or_subnormal
#define SHORT 8
#define STEP_FIRST STEP_START(gc_step_bf16)
#define NAME(f) f##_bf16
#define ABS_MASK 0x7fff
#define INF_BITS 0x7f80
#define LOAD(p) gc_load_bf16(p)
#define GET(e) ((double)gc_from_bf16(e))
#define PUT(d) gc_to_bf16((float)(d))
#include "block_kernels.h"
#include "column_kernels.h"
#include "cast_kernels.h"
#undef NAME
#undef ELEMENT
#undef BITS
#undef ABS_MASK
#undef INF_BITS
#undef LOAD
#undef GET
#undef PUT

#undef SHORT
#undef PRODUCT
#undef STEP_FIRST
#undef CAST_VECTORS
#undef ODD
#define CAST_VECTORS gc_cast_f32
#define ODD(x) (x)
#define SHORT 0
#define STEP_FIRST STEP_START(gc_step_f32)
#define PRODUCT double
#define NAME(f) f##_f32
#define ELEMENT float
#define BITS int32_t
#define ABS_MASK 0x7fffffff
#define INF_BITS 0x7f800000
#define LOAD(p) gc_load_f32(p)
#define GET(e) ((double)(e))
#define PUT(d) ((float)(d))
#define ROUND(v) gc_widen_f32(gc_narrow_f32(v))
static inline vf gc_narrow_f32(vd v)
{
#if defined(GC_AVX512)
    return (vf)_mm512_cvtpd_ps((__m512d)v);
#elif defined(GC_AVX2)
    return (vf)_mm256_cvtpd_ps((__m256d)v);
#else
    return GC_TO_FLOAT(v);
#endif
}

static inline vd gc_widen_f32(vf v)
{
#if defined(GC_AVX512)
    return (vd)_mm512_cvtps_pd((__m256)v);
#elif defined(GC_AVX2)
    return (vd)_mm256_cvtps_pd((__m128)v);
#else
    return GC_TO_DOUBLE(v);
#endif
}

static inline vd gc_load_f32(const float *p)
{
    vf v;
    memcpy(&v, p, sizeof v);
    return gc_widen_f32(v);
}

#if defined(GC_AVX512) || defined(GC_AVX2)
static inline ptrdiff_t gc_step_f32(float *q, const float *p, ptrdiff_t n, double factor)
{
    const vd factors = vd_all(factor);
    ptrdiff_t i = 0;
    for (; i + GC_W <= n; i += GC_W) {
        const vf v = gc_narrow_f32(gc_load_f32(q + i) - gc_load_f32(p + i) * factors);
        memcpy(q + i, &v, sizeof v);
    }
    return i;
}
#endif

/* sum + error += some rows of GC_EIGHT columns, times their factors and rounded to float32: plainly, where the products of
 * each column span less than 2**26. Eight such, multiples of 2**-23 of the power of two at or below the least, add exactly in
 * float64. Returns 0, and adds nothing, where they span more. From 0.36 to 0.25 ns per element. */
#if defined(GC_AVX2) /* magnitudes eight at a time, where the vectors above hold four: from 0.41 to 0.31 ns with all else */
static inline int gc_added_plainly(const char *p, ptrdiff_t stride, ptrdiff_t rows, const vd factor[], double *sum,
                                   double *error)
{
    const __m256i mask = _mm256_set1_epi32(0x7fffffff), minus = _mm256_set1_epi32(-1);
    __m256i most = _mm256_setzero_si256(), least = minus; /* least is one less, so that 0 becomes the largest */
    vd plain[2] = {vd_all(0.0), vd_all(0.0)};
    for (ptrdiff_t i = 0; i < rows; i++, p += stride) {
        const vf y = gc_narrow_f32(gc_load_f32((const float *)p) * factor[i]);
        const vf z = gc_narrow_f32(gc_load_f32((const float *)p + 4) * factor[i]);
        plain[0] += gc_widen_f32(y);
        plain[1] += gc_widen_f32(z);
        const __m256i a = _mm256_and_si256(_mm256_castps_si256(_mm256_set_m128((__m128)z, (__m128)y)), mask);
        most = _mm256_max_epi32(most, a);
        least = _mm256_min_epu32(least, _mm256_add_epi32(a, minus));
    }
    const __m256i apart = _mm256_add_epi32(_mm256_sub_epi32(least, most), _mm256_set1_epi32(26 << 23));
    if (_mm256_movemask_ps(_mm256_castsi256_ps(apart)))
        return 0;
    gc_add_to(sum, error, plain[0]);
    gc_add_to(sum + 4, error + 4, plain[1]);
    return 1;
}
#else
static inline int gc_added_plainly(const char *p, ptrdiff_t stride, ptrdiff_t rows, const vd factor[], double *sum,
                                   double *error)
{
    const vi zero = {0};
    vi apart = zero;
    vd plain[GC_EIGHT / GC_W];
    for (int k = 0; k < GC_EIGHT / GC_W; k++) {
        vi most = zero, least = zero - 1; /* of magnitudes, as bits; least is one less, so that 0 becomes the largest */
        plain[k] = vd_all(0.0);
        for (ptrdiff_t i = 0; i < rows; i++) {
            vf y = gc_narrow_f32(gc_load_f32((const float *)(p + i * stride) + k * GC_W) * factor[i]);
            vi a = vi_bits(y) & 0x7fffffff;
            most = vi_max(most, a);
            least = vi_unsigned_min(least, a - 1);
            plain[k] += gc_widen_f32(y);
        }
        apart |= least - most + (26 << 23);
    }
    if (vi_any_negative(apart))
        return 0;
    for (int k = 0; k < GC_EIGHT / GC_W; k++)
        gc_add_to(sum + k * GC_W, error + k * GC_W, plain[k]);
    return 1;
}
#endif
#define ADDED_PLAINLY gc_added_plainly

#if defined(GC_AVX512)
/* Pairs of rows, as track_f32 and add_squares_f32 take them one by one; returns how many elements. In vectors of 256 bits,
 * to which float32 from memory converts without a shuffle, and half of the differences in the fused units, which have less to
 * do: 0.11 ns per element for 0.135 (512 bits) and 0.12. */
static inline ptrdiff_t gc_pairs_of_rows(const float *p, ptrdiff_t n, vd sum[], vd error[], int32_t largest[], int ahead)
{
    __m256d s[4], e[4];
    __m256i top[2];
    memcpy(s, sum, sizeof s);
    memcpy(e, error, sizeof e);
    memcpy(top, largest, sizeof top);
    const __m256d minus = _mm256_set1_pd(-1.0);
    const __m256i mask = _mm256_set1_epi32(0x7fffffff);
    ptrdiff_t i = 0;
    for (; i + 32 <= n; i += 32)
        for (int k = 0; k < 32; k += 16) {
            const float *q = p + i + k;
            if (ahead)
                gc_look_ahead(q, 16 * sizeof *q);
            for (int j = 0; j < 2; j++)
                top[j] = _mm256_max_epi32(top[j], _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(q + 8 * j)), mask));
            for (int j = 0; j < 4; j++) {
                __m256d x = _mm256_cvtps_pd(_mm_loadu_ps(q + 4 * j)), t = _mm256_fmadd_pd(x, x, s[j]);
                __m256d taken = j % 2 ? _mm256_sub_pd(s[j], t) : _mm256_fmadd_pd(minus, t, s[j]);
                e[j] = _mm256_add_pd(e[j], _mm256_fmadd_pd(x, x, taken));
                s[j] = t;
            }
        }
    memcpy(sum, s, sizeof s);
    memcpy(error, e, sizeof e);
    memcpy(largest, top, sizeof top);
    return i;
}
#define PAIRS_OF_ROWS gc_pairs_of_rows
#else
#define PAIRS_OF_ROWS(p, n, sum, error, largest, ahead) 0
#endif
#include "block_kernels.h"
#include "column_kernels.h"
#include "cast_kernels.h"
#undef NAME
#undef ELEMENT
#undef BITS
#undef ABS_MASK
#undef INF_BITS
#undef LOAD
#undef GET
#undef PUT
#undef PAIRS_OF_ROWS
#undef ADDED_PLAINLY
#define PAIRS_OF_ROWS(p, n, sum, error, largest, ahead) 0
#define ADDED_PLAINLY(p, stride, rows, factor, sum, error) 0
#undef WIDE

#undef STEP_FIRST
#define STEP_FIRST gc_no_start
#define NAME(f) f##_f64
#define ELEMENT double
#define BITS int64_t
#define ABS_MASK INT64_C(0x7fffffffffffffff)
#define INF_BITS INT64_C(0x7ff0000000000000)
#define LOAD(p) gc_load_f64(p)
#define GET(e) (e)
#define PUT(d) (d)
#undef ROUND
#define ROUND(v) (v)
#define WIDE 1
static inline vd gc_load_f64(const double *p)
{
    vd v;
    memcpy(&v, p, sizeof v);
    return v;
}

#if defined(GC_AVX2)
#undef PAIRS_OF_ROWS
static inline void gc_add_row_of_doubles(const double *p, vd *sum, vd *error, vd *top)
{
    const vd x = gc_load_f64(p), t = *sum + x * x;
    *error += vd_fma(x, x, *sum - t);
    *sum = t;
    *top = (vd)_mm256_max_pd((__m256d)vd_abs(x), (__m256d)*top);
}

/* Rows, as track_f64 and add_squares_f64 take them; returns how many elements. A maximum of numbers takes two operations, where
 * one of their bits takes three (there is no 64-bit maximum), and leaves registers for all sums. It passes over NaN, which
 * stays in the sums. From 0.27 to 0.185 ns per element. */
static inline ptrdiff_t gc_rows_of_doubles(const double *p, ptrdiff_t n, vd sum[], vd error[], int64_t largest[], int ahead)
{
    vd s0 = sum[0], s1 = sum[1], s2 = sum[2], s3 = sum[3]; /* names, as GCC keeps arrays in memory */
    vd e0 = error[0], e1 = error[1], e2 = error[2], e3 = error[3], top = vd_all(0);
    ptrdiff_t i = 0;
    for (; i + 16 <= n; i += 16) {
        if (ahead)
            gc_look_ahead(p + i, 16 * sizeof *p);
        gc_add_row_of_doubles(p + i, &s0, &e0, &top);
        gc_add_row_of_doubles(p + i + 4, &s1, &e1, &top);
        gc_add_row_of_doubles(p + i + 8, &s2, &e2, &top);
        gc_add_row_of_doubles(p + i + 12, &s3, &e3, &top);
    }
    sum[0] = s0, sum[1] = s1, sum[2] = s2, sum[3] = s3;
    error[0] = e0, error[1] = e1, error[2] = e2, error[3] = e3;
    __m256d all = (__m256d)((s0 + s1) + (s2 + s3));
    all = _mm256_andnot_pd(_mm256_set1_pd(-0.0), _mm256_cmp_pd(all, all, _CMP_UNORD_Q)); /* NaN, or 0 */
    all = _mm256_or_pd((__m256d)top, all);
    memcpy(largest, &all, sizeof all);
    return i;
}
#define PAIRS_OF_ROWS gc_rows_of_doubles
#endif
#include "block_kernels.h"
#include "column_kernels.h"
#include "cast_kernels.h"

static void scale_f64(void *y, const void *x, ptrdiff_t n, double factor)
{
    const double *p = x;
    double *q = y;
    GC_IVDEP
    for (ptrdiff_t i = 0; i < n; i++)
        q[i] = p[i] * factor;
}

/* Through float64: the product has 53 bits before its rounding to 24. */
static void scale_f32(void *y, const void *x, ptrdiff_t n, double factor)
{
    const float *p = x;
    float *q = y;
    ptrdiff_t i = 0;
#if defined(GC_AVX512) || defined(GC_AVX2)
    const vd factors = vd_all(factor);
    for (; i + 2 * GC_W <= n; i += 2 * GC_W)
        for (int j = 0; j < 2 * GC_W; j += GC_W) {
            const vf v = gc_narrow_f32(gc_load_f32(p + i + j) * factors);
            memcpy(q + i + j, &v, sizeof v);
        }
#endif
    GC_IVDEP
    for (; i < n; i++)
        q[i] = (float)(p[i] * factor);
}

/* A half has 11 bits, so factor and product in float32 (24 bits each) cost 2**-12 of an ulp. */
static void scale_f16(void *y, const void *x, ptrdiff_t n, double factor)
{
    const uint16_t *p = x;
    uint16_t *q = y;
    const float f = (float)factor;
    ptrdiff_t i = 0;
    if (!gc_fits_float(factor)) {
        for (; i < n; i++)
            q[i] = gc_to_f16((float)(gc_from_f16(p[i]) * factor));
        return;
    }
#if defined(GC_AVX512) || defined(GC_AVX2) /* 512 bits take a fifth longer to convert */
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < 16; j += 8) { /* by eights the loop itself may take as long, as it lies in memory */
            __m256 v = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + i + j)));
            v = _mm256_mul_ps(v, _mm256_set1_ps(f));
            _mm_storeu_si128((__m128i *)(q + i + j), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
        }
#endif
    GC_IVDEP
    for (; i < n; i++)
        q[i] = gc_to_f16(gc_from_f16(p[i]) * f);
}

static void scale_bf16(void *y, const void *x, ptrdiff_t n, double factor)
{
    const uint16_t *p = x;
    uint16_t *q = y;
    const float f = (float)factor;
    if (!gc_fits_float(factor)) {
        for (ptrdiff_t i = 0; i < n; i++)
            q[i] = gc_to_bf16((float)(gc_from_bf16(p[i]) * factor));
        return;
    }
    ptrdiff_t i = 0;
#if defined(GC_AVX512) || defined(GC_AVX2) /* compilers shuffle more than need be: 2.5 times slower */
    const __m256 factors = _mm256_set1_ps(f);
    for (; i + 16 <= n; i += 16) {
        __m256i v = _mm256_loadu_si256((const __m256i *)(p + i));
        gc_store_pairs_bf16(q + i, _mm256_mul_ps(gc_even_bf16(v), factors), _mm256_mul_ps(gc_odd_bf16(v), factors));
    }
#endif
    GC_IVDEP
    for (; i < n; i++)
        q[i] = gc_to_bf16(gc_from_bf16(p[i]) * f);
}

static int any_near_middle(const double *high, const double *low, ptrdiff_t n, int squares, double error)
{
    int any = 0;
    if (squares)
        for (ptrdiff_t i = 0; i < n; i++)
            any |= gc_near_middle(high[i], low[i], 1, error);
    else
        for (ptrdiff_t i = 0; i < n; i++)
            any |= gc_near_middle(high[i], low[i], 0, error);
    return any;
}

static uint64_t read_words(const uint64_t *x, ptrdiff_t n)
{
    uint64_t total = 0;
    for (ptrdiff_t i = 0; i < n; i++)
        total += x[i];
    return total;
}

static void rewrite_words(uint64_t *x, ptrdiff_t n, uint64_t add)
{
    for (ptrdiff_t i = 0; i < n; i++)
        x[i] += add;
}

#define GC_BY_DTYPE(f) {GC_PASTE(f, _f16), GC_PASTE(f, _bf16), GC_PASTE(f, _f32), GC_PASTE(f, _f64)}

/* The kernels that differ for memory beyond the caches are given. */
#define GC_TABLE(sum_squares, scale, ahead) \
    {GC_TEXT(GC_SET),                       \
     GC_BY_DTYPE(amax),                     \
     GC_BY_DTYPE(sum_squares),              \
     GC_BY_DTYPE(sum_abs),                  \
     GC_BY_DTYPE(scale),                    \
     GC_BY_DTYPE(zero_nonfinite),           \
     GC_BY_DTYPE(clamp),                    \
     GC_BY_DTYPE(count_outside),            \
     GC_BY_DTYPE(step),                     \
     GC_BY_DTYPE(widen),                    \
     GC_BY_DTYPE(narrow),                   \
     GC_BY_DTYPE(cast),                     \
     GC_BY_DTYPE(add_samples),              \
     GC_BY_DTYPE(sum_columns),              \
     GC_BY_DTYPE(scale_columns),            \
     GC_BY_DTYPE(count_nan),                \
     GC_BY_DTYPE(count_inf),                \
     any_near_middle,                       \
     read_words,                            \
     rewrite_words,                         \
     ahead}

static const gc_kernels gc_kernels_ahead = GC_TABLE(sum_squares_ahead, scale_ahead, &gc_kernels_ahead);
const gc_kernels GC_PASTE(gc_kernels_, GC_SET) = GC_TABLE(sum_squares, scale, &gc_kernels_ahead);
