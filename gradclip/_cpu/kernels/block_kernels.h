/* The kernels of one dtype: included once per dtype by kernels.c, which defines
 *
 *   NAME(f)      f with the dtype's suffix
 *   ELEMENT      the stored type
 *   BITS         signed integer of the same size
 *   ABS_MASK     all bits but the sign;   INF_BITS  the bits of +Inf
 *   LOAD(p)      GC_W elements as a vector of float64
 *   GET(e), PUT(d)  one element to float64 and back (back: rounded once)
 *   WIDE         1 where a square is not exact in float64 (float64 itself)
 *   PRODUCT      what x * factor is computed in: float for halves, else double
 *   ROUND(v)     a vector of float64 rounded to the dtype, where squares are not short
 *   PAIRS_OF_ROWS, ADDED_PLAINLY, STEP_FIRST  a faster start of sum_squares, of adding rows, and of step; 0 where there is none
 *   SHORT        bits of the significand where squares are short (float16, bfloat16), else 0
 */

static void NAME(scale)(void *y, const void *x, ptrdiff_t n, double factor); /* in kernels.c */

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

/* The sum of squares of n <= GC_LANES elements: a square per lane needs no addition, hence no start, and no bound for it. */
static inline gc_sum NAME(sum_few)(const ELEMENT *p, ptrdiff_t n)
{
    ELEMENT row[GC_LANES];
    vd sum[GC_LANES / GC_W], error[GC_LANES / GC_W];
    gc_fill_row(row, p, n, sizeof *p);
    for (int j = 0; j < GC_LANES / GC_W; j++) {
        vd x = LOAD(row + j * GC_W);
        sum[j] = x * x;
#if WIDE
        error[j] = vd_where_above(sum[j], 0x1p-960, gc_square_rest(x, sum[j])); /* alike without fma */
#else
        error[j] = vd_all(0.0);
#endif
    }
    return gc_fold_lanes(0.0, sum, error, NAME(amax)(row, GC_LANES));
}

/* One term per lane: sum += term, error += what that addition lost. FastTwoSum: exact because
 * the sum starts above every term. */
static inline void NAME(add_squares)(const ELEMENT *p, vd sum[], vd error[])
{
    for (int j = 0; j < GC_LANES / GC_W; j++) {
        vd x = LOAD(p + j * GC_W);
#if WIDE && GC_FMA /* square - (t - sum) is exact, so that the square's own rest joins it in the one rounding */
        vd t = sum[j] + x * x;
        error[j] += vd_fma(x, x, sum[j] - t);
        sum[j] = t;
#elif WIDE
        vd square = x * x;
        vd t = sum[j] + square;
        error[j] += (square - (t - sum[j])) + gc_square_rest(x, square);
        sum[j] = t;
#else
        gc_add_product(sum + j, error + j, x, x);
#endif
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
        gc_fast_two_sum(sum + j, error + j, a);
    }
}

#if SHORT
/* A group: eight elements of each lane, or four rows of tracks. */
enum { NAME(GROUP) = 8 * GC_LANES };

/* Whether an element of a group lies outside [low, high), as bits; 0 does not where `zeros` may be among them. Inlined with
 * constants: without `lower` none can lie below. */
static inline int NAME(leaves_window)(const ELEMENT *p, BITS low, BITS high, BITS largest[], int lower, int zeros)
{
    BITS most[GC_TRACKS], least[GC_TRACKS];
    const BITS turn = zeros ? ABS_MASK : 0; /* 1 becomes the least, 0 the largest */
    for (int j = 0; j < GC_TRACKS; j++) { /* unrolled by hand: compilers make vectors of this, not of an inner loop */
        BITS a = (BITS)(p[j] & ABS_MASK), b = (BITS)(p[j + GC_TRACKS] & ABS_MASK);
        BITS c = (BITS)(p[j + 2 * GC_TRACKS] & ABS_MASK), d = (BITS)(p[j + 3 * GC_TRACKS] & ABS_MASK);
        most[j] = GC_MOST(GC_MOST(a, b), GC_MOST(c, d));
        a = (BITS)(a + turn), b = (BITS)(b + turn), c = (BITS)(c + turn), d = (BITS)(d + turn);
        least[j] = GC_LEAST(GC_LEAST(a, b), GC_LEAST(c, d));
    }
    for (int j = 0; j < GC_TRACKS; j++)
        largest[j] = GC_MOST(most[j], largest[j]);
    return gc_any_outside(lower ? least : most, most, (BITS)(lower ? low + turn : 0), high);
}

/* Eight squares per lane are added plainly, and the eight compensated as one. */
static inline void NAME(add_eights)(const ELEMENT *p, vd sum[], vd error[])
{
    for (int j = 0; j < GC_LANES / GC_W; j++) {
        vd eight = LOAD(p + j * GC_W);
        eight = eight * eight;
        for (int k = 1; k < 8; k++) {
            vd v = LOAD(p + k * GC_LANES + j * GC_W);
            eight = gc_multiply_add(v, v, eight);
        }
        gc_fast_two_sum(sum + j, error + j, eight);
    }
}

/* The magnitudes of GC_W normal numbers, number k of four in each lane, divided by a power of two: their bits are moved to
 * where float64 has them, below a part of its exponent that leaves theirs room. Two operations, where converting takes
 * three to four. */
static inline vd NAME(nth_of_four)(vq fours, int k)
{
    const int up = 53 - SHORT - 16 * k;
    const uint64_t mask = (uint64_t)ABS_MASK << (53 - SHORT), exponent = (uint64_t)(SHORT == 11 ? 0x3e0 : 0x300) << 52;
    vq v = up > 0 ? fours << up : fours >> -up;
    vd x;
#if defined(GC_AVX512) /* in one operation that overwrites what it need not keep */
    x = (vd)_mm512_ternarylogic_epi64((__m512i)v, _mm512_set1_epi64((int64_t)mask), _mm512_set1_epi64((int64_t)exponent), 0xea);
#else
    v = (v & mask) | exponent;
    memcpy(&x, &v, sizeof x);
#endif
    return x;
}

/* The same of normal numbers, of which four in a row belong to one lane. Four chains, as fewer leave units idle; each has
 * a name, as GCC keeps an array of them in memory. */
static inline void NAME(add_fours)(const ELEMENT *p, vd sum[], vd error[])
{
    const vd scale = vd_all(SHORT == 11 ? 0x1p32 : 0x1p256); /* the square of that power */
    for (int j = 0; j < GC_LANES / GC_W; j += 2) {
        const ELEMENT *q = p + 4 * GC_W * j;
        vq v0, v1, v2, v3;
        memcpy(&v0, q, sizeof v0);
        memcpy(&v1, q + 4 * GC_LANES, sizeof v1);
        memcpy(&v2, q + 4 * GC_W, sizeof v2);
        memcpy(&v3, q + 4 * (GC_W + GC_LANES), sizeof v3);
        vd a = NAME(nth_of_four)(v0, 0), b = NAME(nth_of_four)(v1, 0), c = NAME(nth_of_four)(v2, 0),
           d = NAME(nth_of_four)(v3, 0);
        a = a * a, b = b * b, c = c * c, d = d * d;
        for (int k = 1; k < 4; k++) {
            vd w = NAME(nth_of_four)(v0, k), x = NAME(nth_of_four)(v1, k);
            vd y = NAME(nth_of_four)(v2, k), z = NAME(nth_of_four)(v3, k);
            a = gc_multiply_add(w, w, a);
            b = gc_multiply_add(x, x, b);
            c = gc_multiply_add(y, y, c);
            d = gc_multiply_add(z, z, d);
        }
        gc_add_product(sum + j, error + j, a + b, scale);
        gc_add_product(sum + j + 1, error + j + 1, c + d, scale);
    }
}

/* Most groups have normal numbers alone; others are looked at twice. */
GC_INLINE void NAME(add_group)(const ELEMENT *p, BITS low, BITS high, BITS largest[], vd sum[], vd error[])
{
    const int lower = SHORT != 11 || low > 1; /* of bfloat16 as good as always */
    if (GC_LIKELY(low > 1 && !NAME(leaves_window)(p, low, high, largest, 1, 0))) {
        NAME(add_fours)(p, sum, error);
        return;
    }
    if (lower ? !NAME(leaves_window)(p, low, high, largest, 1, 1) : !NAME(leaves_window)(p, low, high, largest, 0, 1)) {
        NAME(add_eights)(p, sum, error);
        return;
    }
    for (int k = 0; k < NAME(GROUP); k += GC_LANES)
        NAME(add_squares)(p + k, sum, error);
}

/* float64 adds eight squares of elements below 2**c exactly, and their sum is below 2**(2c + 3), if the elements are
 * multiples of 2**(c - 25): those from 2**(c + SHORT - 26) on are. So groups of such elements, with c two binades below
 * the bound, are added in eights, others one by one; of standard normal numbers about one group in forty. A block that
 * chose for all its groups, by what it spans, took 1.5 times as long. low: 1 where that bound is not normal. */
GC_INLINE gc_sum NAME(sum_squares_of)(const void *x, ptrdiff_t n, double bound, const int ahead)
{
    const ELEMENT *p = x;
    if (n <= GC_LANES)
        return NAME(sum_few)(p, n);
    const double start = 2 * bound * bound; /* above every square, and every eight of a window */
    const BITS normal = INF_BITS & -INF_BITS; /* subnormals are multiples of what it is a multiple of */
    const BITS high = (BITS)PUT(bound / 4), least = (BITS)PUT(bound / (1 << (28 - SHORT)));
    const BITS low = least > normal ? least : 1;
    BITS largest[GC_TRACKS] = {0};
    vd sum[GC_LANES / GC_W], error[GC_LANES / GC_W];
    gc_start(start, sum, error);
    ptrdiff_t i = 0;
    for (; i + NAME(GROUP) <= n; i += NAME(GROUP)) {
        if (ahead)
            gc_look_ahead(p + i, NAME(GROUP) * sizeof *p);
        NAME(add_group)(p + i, low, high, largest, sum, error);
    }
    if (!ahead && i < n) { /* one place less that all this is inlined into: 5 KB */
        ELEMENT padded[NAME(GROUP)] = {0};
        memcpy(padded, p + i, (size_t)(n - i) * sizeof *p);
        NAME(add_group)(padded, low, high, largest, sum, error);
    }
    return gc_fold_lanes(start, sum, error, NAME(amax)(largest, GC_TRACKS));
}
#else
/* One pass: the running sums, and the largest magnitude of each lane as bits. */
GC_INLINE gc_sum NAME(sum_squares_of)(const void *x, ptrdiff_t n, double bound, const int ahead)
{
    const ELEMENT *p = x;
    if (n <= GC_LANES)
        return NAME(sum_few)(p, n);
    BITS largest[GC_LANES] = {0};
    double start = 2 * bound * bound; /* above every square */
    vd sum[GC_LANES / GC_W], error[GC_LANES / GC_W];
    gc_start(start, sum, error);
    ptrdiff_t i = PAIRS_OF_ROWS(p, n, sum, error, largest, ahead);
    for (; i + GC_LANES <= n; i += GC_LANES) {
        if (ahead)
            gc_look_ahead(p + i, GC_LANES * sizeof *p);
        NAME(track)(p + i, largest);
        NAME(add_squares)(p + i, sum, error);
    }
    if (i < n) {
        ELEMENT padded[GC_LANES];
        gc_fill_row(padded, p + i, n - i, sizeof *p);
        NAME(track)(padded, largest);
        NAME(add_squares)(padded, sum, error);
    }
    return gc_fold_lanes(start, sum, error, NAME(amax)(largest, GC_LANES));
}
#endif

static gc_sum NAME(sum_squares)(const void *x, ptrdiff_t n, double bound) { return NAME(sum_squares_of)(x, n, bound, 0); }
static gc_sum NAME(sum_squares_ahead)(const void *x, ptrdiff_t n, double bound)
{
    return n % GC_BLOCK ? NAME(sum_squares)(x, n, bound) : NAME(sum_squares_of)(x, n, bound, 1);
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
        ELEMENT padded[GC_LANES];
        gc_fill_row(padded, p + i, n - i, sizeof *p);
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

/* The bounds of a dtype: what elements beyond them become, and what tells that they are. */
typedef struct {
    ELEMENT least, most;
#if SHORT
    BITS first, last; /* of the ranks that stay */
#endif
} NAME(bounds);

#if SHORT
/* The rank of a half: an integer that grows with it, -0 just below 0. */
static inline BITS NAME(rank)(BITS e) { return (BITS)(e ^ ((e >> 15) & ABS_MASK)); }

/* In integers, 16 bits wide: halves are not converted. */
static inline NAME(bounds) NAME(bounds_of)(double low, double high)
{
    NAME(bounds) b = {PUT(low), PUT(high), NAME(rank)((BITS)PUT(low)), NAME(rank)((BITS)PUT(high))};
    b.first = low == 0 ? -1 : b.first; /* zeros of both signs stay */
    b.last = high == 0 ? 0 : b.last;
    return b;
}

/* NaN lies beyond the rank of either Inf. */
static inline ELEMENT NAME(held)(ELEMENT e, NAME(bounds) b)
{
    const BITS r = NAME(rank)((BITS)e);
    const int above = (r > b.last) & (r <= INF_BITS), below = (r < b.first) & (r >= (BITS)~INF_BITS);
    e = above ? b.most : e;
    return below ? b.least : e;
}

/* How far the bits of a magnitude lie above those of the bound c of [-c, c]: what is taken off the element. Both are moved up
 * so far that NaN becomes negative, and stays. */
static inline ELEMENT NAME(excess)(ELEMENT e, BITS moved_bound)
{
    const BITS moved = (BITS)((e & ABS_MASK) + (ABS_MASK - INF_BITS));
    return (ELEMENT)(moved - GC_LEAST(moved, moved_bound));
}
#else
static inline NAME(bounds) NAME(bounds_of)(double low, double high)
{
    const NAME(bounds) b = {PUT(low), PUT(high)};
    return b;
}

/* A minimum and a maximum, which leave NaN, and zeros where the bound is one. */
static inline ELEMENT NAME(held)(ELEMENT e, NAME(bounds) b)
{
    e = b.most < e ? b.most : e;
    return b.least > e ? b.least : e;
}
#endif

/* Whether two elements are the same: told by their bits, as NaN differs from itself. */
static inline int NAME(same)(ELEMENT a, ELEMENT b)
{
    BITS u, v;
    memcpy(&u, &a, sizeof u);
    memcpy(&v, &b, sizeof v);
    return u == v;
}

static ptrdiff_t NAME(clamp)(void *y, const void *x, ptrdiff_t n, double low, double high)
{
    const ELEMENT *p = x;
    ELEMENT *q = y;
    const NAME(bounds) b = NAME(bounds_of)(low, high);
    BITS kept = 0; /* of a block: as wide as an element, so that both fill a vector alike; a comparison gives -1 or 0 */
#if SHORT
    if (low == -high && high > 0) { /* half as many operations; a bound of 0 has a sign of its own */
        const BITS moved_bound = (BITS)((b.most & ABS_MASK) + (ABS_MASK - INF_BITS));
        GC_IVDEP
        for (ptrdiff_t i = 0; i < n; i++) {
            const ELEMENT excess = NAME(excess)(p[i], moved_bound);
            kept = (BITS)(kept + (excess == 0));
            q[i] = (ELEMENT)(p[i] - excess);
        }
        return n - kept;
    }
#endif
    GC_IVDEP
    for (ptrdiff_t i = 0; i < n; i++) {
        const ELEMENT e = p[i], held = NAME(held)(e, b);
        kept = (BITS)(kept + NAME(same)(e, held));
        q[i] = held;
    }
    return n - kept;
}

static ptrdiff_t NAME(count_outside)(const void *x, ptrdiff_t n, double low, double high)
{
    const ELEMENT *p = x;
    const NAME(bounds) b = NAME(bounds_of)(low, high);
    BITS kept = 0;
#if SHORT
    if (low == -high && high > 0) {
        const BITS moved_bound = (BITS)((b.most & ABS_MASK) + (ABS_MASK - INF_BITS));
        for (ptrdiff_t i = 0; i < n; i++)
            kept = (BITS)(kept + (NAME(excess)(p[i], moved_bound) == 0));
        return n - kept;
    }
#endif
    for (ptrdiff_t i = 0; i < n; i++)
        kept = (BITS)(kept + NAME(same)(p[i], NAME(held)(p[i], b)));
    return n - kept;
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

static void NAME(step)(void *y, const void *x, ptrdiff_t n, double factor)
{
    const ELEMENT *p = x;
    ELEMENT *q = y;
#if SHORT
    const float f = (float)factor;
    if (!gc_fits_float(factor)) {
        for (ptrdiff_t i = 0; i < n; i++)
            q[i] = PUT(GET(q[i]) - GET(p[i]) * factor);
        return;
    }
    ptrdiff_t i = STEP_FIRST(q, p, n, factor);
    GC_IVDEP
    for (; i < n; i++)
        q[i] = PUT((float)GET(q[i]) - (float)GET(p[i]) * f);
#else
    ptrdiff_t i = STEP_FIRST(q, p, n, factor);
    GC_IVDEP
    for (; i < n; i++)
        q[i] = PUT(GET(q[i]) - GET(p[i]) * factor);
#endif
}

/* scale for memory beyond the caches: piece by piece, each time asking for what comes a page later. That of float64, which
 * converts nothing, is no faster so. */
static void NAME(scale_ahead)(void *y, const void *x, ptrdiff_t n, double factor)
{
    const ptrdiff_t piece = WIDE ? n : GC_AT_ONCE / (ptrdiff_t)sizeof(ELEMENT);
    const ELEMENT *p = x;
    ELEMENT *q = y;
    for (; n > 0; n -= piece, p += piece, q += piece) {
        if (!WIDE)
            gc_look_ahead(p, GC_AT_ONCE);
        NAME(scale)(q, p, GC_LEAST(piece, n), factor);
    }
}

static void NAME(widen)(double *y, const void *x, ptrdiff_t n)
{
    const ELEMENT *p = x;
    ptrdiff_t i = 0;
#if defined(GC_AVX512) || defined(GC_AVX2) /* sets that have instructions for halves */
    for (; i + GC_W <= n; i += GC_W) {
        const vd v = LOAD(p + i);
        memcpy(y + i, &v, sizeof v);
    }
#endif
    GC_IVDEP
    for (; i < n; i++)
        y[i] = GET(p[i]);
}

static void NAME(narrow)(void *y, const double *x, ptrdiff_t n)
{
    ELEMENT *q = y;
    GC_IVDEP
    for (ptrdiff_t i = 0; i < n; i++)
        q[i] = PUT(x[i]);
}
