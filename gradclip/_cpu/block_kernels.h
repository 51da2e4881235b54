/* The kernels of one dtype: included once per dtype by kernels.c, which defines
 *
 *   NAME(f)      f with the dtype's suffix
 *   ELEMENT      the stored type
 *   BITS         signed integer of the same size
 *   ABS_MASK     all bits but the sign;   INF_BITS  the bits of +Inf
 *   LOAD(p)      GC_W elements as a vector of float64
 *   GET(e), PUT(d)  one element to float64 and back (back: rounded once)
 *   REAL         float where it holds every element, else double
 *   WIDE         1 where a square is not exact in float64 (float64 itself)
 *   SHORT        bits of the significand where squares are short (float16, bfloat16), else 0
 */

static double NAME(amax)(const void *x, ptrdiff_t n)
{
    const BITS *p = x;
    BITS largest = 0, second = 0; /* magnitudes order like their bits */
    ptrdiff_t i = 0;
#if WIDE && !defined(GC_AVX512) /* without a 64-bit maximum it is a compare and a blend: two chains hide them */
    for (; i + 64 <= n; i += 64)
        for (ptrdiff_t j = i; j < i + 32; j++) {
            BITS a = p[j] & ABS_MASK, b = p[j + 32] & ABS_MASK;
            largest = a > largest ? a : largest;
            second = b > second ? b : second;
        }
#endif
    for (; i < n; i++) {
        BITS a = p[i] & ABS_MASK;
        largest = a > largest ? a : largest;
    }
    largest = second > largest ? second : largest;
    ELEMENT e;
    memcpy(&e, &largest, sizeof e);
    return GET(e);
}

/* One term per lane: sum += term, error += what that addition lost. FastTwoSum: exact because
 * the sum starts above every term. */
static inline void NAME(add_squares)(const ELEMENT *p, vd sum[], vd error[])
{
    for (int j = 0; j < GC_LANES / GC_W; j++) {
        vd x = LOAD(p + j * GC_W);
#if WIDE && GC_FMA
        vd square = x * x;
        vd rest = vd_fma(x, x, -square);
        vd t = sum[j] + square;
        error[j] += (square - (t - sum[j])) + rest;
#elif WIDE
        /* Dekker: x = head + tail, 26 bits each; no overflow below GC_HUGE. */
        vd square = x * x;
        vd c = x * 0x1.0000002p27;
        vd head = c - (c - x), tail = x - head;
        vd rest = ((head * head - square) + 2 * head * tail) + tail * tail;
        vd t = sum[j] + square;
        error[j] += (square - (t - sum[j])) + rest;
#elif GC_FMA
        vd t = vd_fma(x, x, sum[j]);
        error[j] += vd_fma(x, x, sum[j] - t);
#else
        vd square = x * x;
        vd t = sum[j] + square;
        error[j] += square - (t - sum[j]);
#endif
        sum[j] = t;
    }
}

#if !SHORT
static inline void NAME(track)(const ELEMENT *p, BITS largest[])
{
    for (int j = 0; j < GC_LANES; j++) {
        BITS a;
        memcpy(&a, p + j, sizeof a);
        a &= ABS_MASK;
        largest[j] = a > largest[j] ? a : largest[j];
    }
}
#endif

static inline void NAME(add_magnitudes)(const ELEMENT *p, vd sum[], vd error[])
{
    for (int j = 0; j < GC_LANES / GC_W; j++) {
        vd a = vd_abs(LOAD(p + j * GC_W));
        vd t = sum[j] + a;
        error[j] += a - (t - sum[j]);
        sum[j] = t;
    }
}

#if SHORT
/* Binades from the smallest element that is not 0 to the largest. Subnormals of float16 are multiples
 * of what its smallest normal number is a multiple of, so none counts as smaller. */
static int NAME(span)(const BITS *p, ptrdiff_t n, double amax)
{
    uint16_t least = 0xffff;
    for (ptrdiff_t i = 0; i < n; i++) {
        uint16_t a = (uint16_t)((p[i] & ABS_MASK) - 1); /* 0 becomes the largest */
        least = a < least ? a : least;
    }
    ELEMENT e = (ELEMENT)(least + 1);
    int low = gc_exponent(GET(e));
    if (SHORT == 11 && low < -13)
        low = -13;
    return gc_exponent(amax) - low;
}

/* Where all squares of a block are multiples of one small enough unit, float64 adds them exactly: then
 * nothing need be compensated, and order and lanes are free. 2 * span + 2 * SHORT bits hold any
 * square; 8 more hold 256 of them, 2 more four. */
static gc_sum NAME(sum_exact)(const ELEMENT *p, ptrdiff_t n, double amax)
{
    vd sum[2 * GC_LANES / GC_W], none[GC_LANES / GC_W];
    gc_start(0.0, sum, none);
    gc_start(0.0, sum + GC_LANES / GC_W, none);
    ptrdiff_t i = 0;
    for (; i + 2 * GC_LANES <= n; i += 2 * GC_LANES) {
        GC_PREFETCH((const char *)(p + i) + GC_BLOCK * sizeof *p);
        for (int j = 0; j < 2 * GC_LANES / GC_W; j++) {
            vd v = LOAD(p + i + j * GC_W);
            sum[j] = gc_multiply_add(v, v, sum[j]);
        }
    }
    if (i < n) {
        ELEMENT padded[2 * GC_LANES] = {0};
        memcpy(padded, p + i, (size_t)(n - i) * sizeof *p);
        for (int j = 0; j < 2 * GC_LANES / GC_W; j++) {
            vd v = LOAD(padded + j * GC_W);
            sum[j] = gc_multiply_add(v, v, sum[j]);
        }
    }
    for (int j = 0; j < GC_LANES / GC_W; j++)
        sum[j] += sum[j + GC_LANES / GC_W];
    return gc_fold_lanes(0.0, sum, none, amax);
}

/* Four squares are added exactly, and the four compensated as one. */
static gc_sum NAME(sum_by_four)(const ELEMENT *p, ptrdiff_t n, double bound, double amax)
{
    double start = 8 * bound * bound;
    vd sum[GC_LANES / GC_W], error[GC_LANES / GC_W];
    gc_start(start, sum, error);
    for (ptrdiff_t i = 0; i < n; i += 4 * GC_LANES) {
        const ELEMENT *q = p + i;
        ELEMENT padded[4 * GC_LANES] = {0};
        if (i + 4 * GC_LANES > n) {
            memcpy(padded, q, (size_t)(n - i) * sizeof *p);
            q = padded;
        }
        GC_PREFETCH((const char *)(p + i) + GC_BLOCK * sizeof *p);
        GC_PREFETCH((const char *)(p + i) + GC_BLOCK * sizeof *p + 64);
        for (int j = 0; j < GC_LANES / GC_W; j++) {
            vd four = LOAD(q + j * GC_W);
            four = four * four;
            for (int k = 1; k < 4; k++) {
                vd v = LOAD(q + k * GC_LANES + j * GC_W);
                four = gc_multiply_add(v, v, four);
            }
            vd t = sum[j] + four;
            error[j] += four - (t - sum[j]);
            sum[j] = t;
        }
    }
    return gc_fold_lanes(start, sum, error, amax);
}
#endif

/* One pass: the running sums and, where squares are not short, the largest magnitude of each lane as bits. */
static gc_sum NAME(sum_squares)(const void *x, ptrdiff_t n, double bound)
{
    const ELEMENT *p = x;
#if SHORT
    double amax = NAME(amax)(x, n);
    if (!(amax <= bound) || amax == 0)
        return (gc_sum){0, 0, amax};
    int bits = 2 * NAME(span)(x, n, amax) + 2 * SHORT;
    if (bits + 8 <= 53)
        return NAME(sum_exact)(p, n, amax);
    if (bits + 2 <= 53)
        return NAME(sum_by_four)(p, n, bound, amax);
#else
    BITS largest[GC_LANES] = {0};
#endif
    double start = 2 * bound * bound; /* above every square */
    vd sum[GC_LANES / GC_W], error[GC_LANES / GC_W];
    gc_start(start, sum, error);
    ptrdiff_t i = 0;
    for (; i + GC_LANES <= n; i += GC_LANES) {
#if !SHORT
        NAME(track)(p + i, largest);
#endif
        NAME(add_squares)(p + i, sum, error);
    }
    if (i < n) {
        ELEMENT padded[GC_LANES] = {0};
        memcpy(padded, p + i, (size_t)(n - i) * sizeof *p);
#if !SHORT
        NAME(track)(padded, largest);
#endif
        NAME(add_squares)(padded, sum, error);
    }
#if !SHORT
    double amax = NAME(amax)(largest, GC_LANES);
#endif
    return gc_fold_lanes(start, sum, error, amax);
}

/* Seldom asked for: two passes over the block do. */
static gc_sum NAME(sum_abs)(const void *x, ptrdiff_t n, double bound)
{
    const ELEMENT *p = x;
    double amax = NAME(amax)(x, n);
    if (!(amax <= bound))
        return (gc_sum){0, 0, amax};
    double start = 2 * bound;
    vd sum[GC_LANES / GC_W], error[GC_LANES / GC_W];
    gc_start(start, sum, error);
    ptrdiff_t i = 0;
    for (; i + GC_LANES <= n; i += GC_LANES)
        NAME(add_magnitudes)(p + i, sum, error);
    if (i < n) {
        ELEMENT padded[GC_LANES] = {0};
        memcpy(padded, p + i, (size_t)(n - i) * sizeof *p);
        NAME(add_magnitudes)(padded, sum, error);
    }
    return gc_fold_lanes(start, sum, error, amax);
}

static void NAME(zero_nonfinite)(void *y, const void *x, ptrdiff_t n)
{
    const BITS *p = x;
    BITS *q = y;
    GC_IVDEP
    for (ptrdiff_t i = 0; i < n; i++)
        q[i] = (p[i] & ABS_MASK) < INF_BITS ? p[i] : 0;
}

static void NAME(clamp)(void *y, const void *x, ptrdiff_t n, double low, double high)
{
    const ELEMENT *p = x;
    ELEMENT *q = y;
    const ELEMENT least = PUT(low), most = PUT(high);
    const REAL bottom = (REAL)low, top = (REAL)high; /* exact: both are of the dtype */
    GC_IVDEP
    for (ptrdiff_t i = 0; i < n; i++) {
        REAL v = (REAL)GET(p[i]);
        ELEMENT e = v > top ? most : p[i];
        q[i] = v < bottom ? least : e;
    }
}

static ptrdiff_t NAME(count_outside)(const void *x, ptrdiff_t n, double low, double high)
{
    const ELEMENT *p = x;
    const REAL bottom = (REAL)low, top = (REAL)high;
    int count = 0; /* of a block: as wide as float32, so that both fill a vector alike */
    for (ptrdiff_t i = 0; i < n; i++) {
        REAL v = (REAL)GET(p[i]);
        count += (v < bottom) | (v > top);
    }
    return count;
}

static ptrdiff_t NAME(count_nan)(const void *x, ptrdiff_t n)
{
    const BITS *p = x;
    ptrdiff_t count = 0;
    for (ptrdiff_t i = 0; i < n; i++)
        count += (p[i] & ABS_MASK) > INF_BITS;
    return count;
}

static ptrdiff_t NAME(count_inf)(const void *x, ptrdiff_t n)
{
    const BITS *p = x;
    ptrdiff_t count = 0;
    for (ptrdiff_t i = 0; i < n; i++)
        count += (p[i] & ABS_MASK) == INF_BITS;
    return count;
}
