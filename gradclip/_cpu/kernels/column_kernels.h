/* The kernels of one dtype over rows of memory, a result for each column: included after block_kernels.h, with the same
 * names. */

/* Where `width` columns of some rows begin, and how far apart the rows are: in memory, or, where only `left` columns are left,
 * in a copy whose rest is 0. What is worked on next, the same columns of `most` rows from `next` on, is prefetched line by
 * line: rows are too short for the processor to see them coming. j: the number of the first column. */
static inline const char *NAME(whole_columns)(const char *p, ptrdiff_t *stride, ptrdiff_t rows, const char *next,
                                              ptrdiff_t most, ptrdiff_t j, ptrdiff_t left, ptrdiff_t width, ELEMENT padded[])
{
    if (j % (64 / (ptrdiff_t)sizeof(ELEMENT)) == 0)
        for (ptrdiff_t i = 0; i < most; i++)
            GC_PREFETCH(next + i * *stride);
    if (left >= width)
        return p;
    for (ptrdiff_t i = 0; i < rows; i++)
        memcpy(padded + i * width, p + i * *stride, (size_t)left * sizeof(ELEMENT));
    *stride = width * (ptrdiff_t)sizeof(ELEMENT);
    return (const char *)padded;
}

/* Rows at a time: so many that sums stay in registers for a while, and so few that rows whose distance is a power of two
 * do not drive each other out of a cache of eight ways. Four times faster than row by row. */
enum { NAME(ROWS) = 6 };

/* sum + error += the squares (ord 2) or magnitudes (ord 1) of some rows of GC_W columns, by TwoSum; or by FastTwoSum, which
 * gives the same bits where the sums are known not to be below the terms. */
static inline void NAME(add_terms)(const char *p, ptrdiff_t stride, ptrdiff_t rows, int ord, int grown, vd *sum, vd *error)
{
    for (ptrdiff_t i = 0; i < rows; i++, p += stride) {
        vd x = LOAD((const ELEMENT *)p);
#if GC_FMA && !WIDE /* squares are exact, and the fused units take work off those that add */
        if (ord == 2) {
            vd t = vd_fma(x, x, *sum), part = t - *sum;
            if (grown)
                *error += vd_fma(x, x, -part);
            else
                *error += (*sum - (t - part)) + vd_fma(x, x, -part);
            *sum = t;
            continue;
        }
#endif
        vd term = ord == 1 ? vd_abs(x) : x * x;
        if (grown) {
            vd t = *sum + term;
            *error += term - (t - *sum);
            *sum = t;
        } else
            gc_two_sum(sum, error, term);
#if WIDE
        if (ord != 1)
            *error += vd_where_above(term, 0x1p-960, gc_square_rest(x, term)); /* alike without fma */
#endif
    }
}

/* Some rows of GC_W columns. */
static inline void NAME(add_rows)(const char *p, ptrdiff_t stride, ptrdiff_t rows, int ord, double *sum, double *error,
                                  BITS *largest)
{
    vd s, e;
    BITS top[GC_W] = {0};
    memcpy(&s, sum, sizeof s);
    memcpy(&e, error, sizeof e);
    const char *row = p;
    for (ptrdiff_t i = 0; i < rows; i++, row += stride) {
        for (int k = 0; k < GC_W; k++) {
            BITS a;
            memcpy(&a, (const ELEMENT *)row + k, sizeof a);
            a &= ABS_MASK;
            top[k] = a > top[k] ? a : top[k];
        }
    }
    ELEMENT magnitude[GC_W];
    memcpy(magnitude, top, sizeof top);
    vd most = LOAD(magnitude);
    if (gc_all_within(ord == 1 ? most : most * most, s))
        NAME(add_terms)(p, stride, rows, ord, 1, &s, &e);
    else
        NAME(add_terms)(p, stride, rows, ord, 0, &s, &e);
    for (int k = 0; k < GC_W; k++)
        largest[k] = top[k] > largest[k] ? top[k] : largest[k];
    memcpy(sum, &s, sizeof s);
    memcpy(error, &e, sizeof e);
}

/* At most ROWS rows of a panel. Inlined with a constant ord, and the usual number of rows another, for the compiler. */
static inline void NAME(add_panel)(const char *p, ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t n, int ord, double *sum,
                                   double *error, BITS *largest)
{
    ELEMENT padded[NAME(ROWS) * GC_W] = {0};
    for (ptrdiff_t j = 0; j < n; j += GC_W) {
        ptrdiff_t step = stride;
        const char *at = p + j * (ptrdiff_t)sizeof(ELEMENT);
        const char *q = NAME(whole_columns)(at, &step, rows, at + NAME(ROWS) * stride, NAME(ROWS), j, n - j, GC_W, padded);
        if (rows == NAME(ROWS))
            NAME(add_rows)(q, step, NAME(ROWS), ord, sum + j, error + j, largest + j);
        else
            NAME(add_rows)(q, step, rows, ord, sum + j, error + j, largest + j);
    }
}

static void NAME(sum_columns)(const void *x, ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t n, int ord, double *sum, double *error,
                              double *amax)
{
    BITS *largest = (BITS *)amax; /* as bits for now, since a thread's stack may be small */
    const size_t room = (size_t)(n + GC_LANES - 1) / GC_LANES * GC_LANES * sizeof *sum;
    memset(sum, 0, room);
    memset(error, 0, room);
    memset(amax, 0, room);
    for (ptrdiff_t i = 0; i < rows; i += NAME(ROWS)) {
        const char *p = (const char *)x + i * stride;
        const ptrdiff_t few = rows - i < NAME(ROWS) ? rows - i : NAME(ROWS);
        if (ord == 2)
            NAME(add_panel)(p, stride, few, n, 2, sum, error, largest);
        else
            NAME(add_panel)(p, stride, few, n, 1, sum, error, largest);
    }
    for (ptrdiff_t j = n - 1; j >= 0; j--) { /* backwards: a number takes as much room as its bits, or more */
        ELEMENT e;
        memcpy(&e, (const char *)amax + j * (ptrdiff_t)sizeof e, sizeof e);
        const double most = GET(e);
        memcpy(amax + j, &most, sizeof most);
    }
}

/* sum + error += some rows of GC_EIGHT columns, each times its factor and rounded to the dtype: added plainly where that is
 * exact, else by TwoSum. */
#if !SHORT
static inline void NAME(add_eight_columns)(const char *p, ptrdiff_t stride, ptrdiff_t rows, const vd factor[], double *sum,
                                           double *error)
{
    if (ADDED_PLAINLY(p, stride, rows, factor, sum, error))
        return;
    for (int k = 0; k < GC_EIGHT; k += GC_W) {
        vd s, e;
        memcpy(&s, sum + k, sizeof s);
        memcpy(&e, error + k, sizeof e);
        for (ptrdiff_t i = 0; i < rows; i++)
            gc_two_sum(&s, &e, ROUND(LOAD((const ELEMENT *)(p + i * stride) + k) * factor[i]));
        memcpy(sum + k, &s, sizeof s);
        memcpy(error + k, &e, sizeof e);
    }
}
#endif

static void NAME(add_samples)(double *sum, double *error, const void *x, const void *next, ptrdiff_t stride, ptrdiff_t rows,
                              ptrdiff_t n, const double *factor)
{
    const char *p = x;
#if SHORT
    (void)next;
    ELEMENT scaled[GC_STRIP + GC_W] = {0};
    for (ptrdiff_t i = 0; i < rows; i++, p += stride) {
        NAME(scale)(scaled, p, n, factor[i]);
        for (ptrdiff_t j = 0; j < n; j += GC_W)
            gc_add_to(sum + j, error + j, LOAD(scaled + j));
    }
#else
    ELEMENT padded[GC_TOGETHER * GC_EIGHT] = {0};
    vd factors[GC_TOGETHER];
    for (ptrdiff_t i = 0; i < rows; i++)
        factors[i] = vd_all(factor[i]);
    const ptrdiff_t ahead = (const char *)next - p;
    for (ptrdiff_t j = 0; j < n; j += GC_EIGHT, p += GC_EIGHT * sizeof(ELEMENT)) {
        ptrdiff_t step = stride;
        const char *q = NAME(whole_columns)(p, &step, rows, p + ahead, GC_TOGETHER, j, n - j, GC_EIGHT, padded);
        if (rows == GC_TOGETHER) /* a constant, for the compiler */
            NAME(add_eight_columns)(q, step, GC_TOGETHER, factors, sum + j, error + j);
        else
            NAME(add_eight_columns)(q, step, rows, factors, sum + j, error + j);
    }
#endif
}

static void NAME(scale_columns)(void *y, ptrdiff_t y_stride, const void *x, ptrdiff_t x_stride, ptrdiff_t rows, ptrdiff_t n,
                                const double *factor)
{
    const char *from = x;
    char *to = y;
#if SHORT
    float f[GC_PANEL];
    for (ptrdiff_t j = 0; j < n; j++)
        f[j] = (float)factor[j];
#else
    const double *f = factor;
#endif
    ptrdiff_t i = 0;
#if !SHORT /* four rows for each time that a factor is loaded */
    for (; i + 4 <= rows; i += 4, from += 4 * x_stride, to += 4 * y_stride) {
        const ELEMENT *p[4];
        ELEMENT *q[4];
        for (int k = 0; k < 4; k++) {
            p[k] = (const ELEMENT *)(from + k * x_stride);
            q[k] = (ELEMENT *)(to + k * y_stride);
        }
        GC_IVDEP
        for (ptrdiff_t j = 0; j < n; j++) {
            q[0][j] = PUT(p[0][j] * f[j]);
            q[1][j] = PUT(p[1][j] * f[j]);
            q[2][j] = PUT(p[2][j] * f[j]);
            q[3][j] = PUT(p[3][j] * f[j]);
        }
    }
#endif
    for (; i < rows; i++, from += x_stride, to += y_stride) {
        const ELEMENT *p = (const ELEMENT *)from;
        ELEMENT *q = (ELEMENT *)to;
        GC_IVDEP
        for (ptrdiff_t j = 0; j < n; j++)
            q[j] = PUT((PRODUCT)GET(p[j]) * f[j]);
    }
}
