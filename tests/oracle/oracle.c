/* Every kernel of a table on random elements, against integers (integers.h).
 *
 * run.py loads this as a library, and hands it the tables of the built extension. A case is an element of an elementwise kernel
 * that was compared, or an element that went into a sum. All memory that kernels get begins right behind a page, or ends right
 * before a page, that may not be touched; and what lies beside their results is looked at after each call. */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include "kernels.h"
#include "integers.h"

enum { BESIDE = 64, ROOM = 1 << 16, CANARY = 0xa5 };

typedef struct {
    char *first; /* of ROOM bytes between two pages that may not be touched */
    char *at;    /* what a kernel is given */
    size_t bytes;
} memory;

typedef struct {
    const gc_kernels *k;
    int dtype;
    const format *f;
    uint64_t state;
    int64_t *cases;
    char *message;
    size_t room;
    memory x, y, wide, factor, total, rest, most;
    ptrdiff_t n;
    char original[ROOM]; /* of y, before a kernel */
} trial;

enum {
    AMAX,
    SUM_SQUARES,
    SUM_ABS,
    SCALE,
    ZERO_NONFINITE,
    CLAMP,
    STEP,
    WIDEN,
    NARROW,
    CAST,
    ADD_SAMPLES,
    SUM_COLUMNS,
    SCALE_COLUMNS,
    COUNT,
    OPERATIONS
};

static uint64_t next_random(trial *t)
{
    uint64_t z = t->state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static int below(trial *t, int n) { return (int)(next_random(t) % (uint64_t)n); }

static int failed(trial *t, const char *what, ...)
{
    va_list arguments;
    va_start(arguments, what);
    vsnprintf(t->message, t->room, what, arguments);
    va_end(arguments);
    return 0;
}

/* ---- memory between pages that may not be touched ---- */

static int reserve(memory *m)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *all = mmap(NULL, ROOM + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED || mprotect(all + page, ROOM, PROT_READ | PROT_WRITE))
        return 0;
    m->first = all + page;
    return 1;
}

static void release(memory *m)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (m->first)
        munmap(m->first - page, ROOM + 2 * page);
}

/* Place so many elements at the start, at the end, or some elements behind the start. */
static void *place(trial *t, memory *m, ptrdiff_t n, size_t size)
{
    m->bytes = (size_t)n * size;
    const int where = below(t, 3);
    m->at = m->first + (where == 0 ? 0 : where == 1 ? ROOM - m->bytes : size * (size_t)below(t, 64));
    char *from = m->at - BESIDE > m->first ? m->at - BESIDE : m->first;
    char *end = m->at + m->bytes + BESIDE, *to = end < m->first + ROOM ? end : m->first + ROOM;
    memset(from, CANARY, (size_t)(to - from));
    return m->at;
}

/* Whether nothing was written beside. */
static int untouched(const memory *m)
{
    const unsigned char *p = (const unsigned char *)m->at, *first = (const unsigned char *)m->first;
    for (int i = 1; i <= BESIDE && p - i >= first; i++)
        if (p[-i] != CANARY)
            return 0;
    p += m->bytes;
    for (int i = 0; i < BESIDE && p + i < first + ROOM; i++)
        if (p[i] != CANARY)
            return 0;
    return 1;
}

/* ---- random numbers ---- */

enum { ANY, NEAR, FEW_BITS, EDGES, WITHIN, ZEROS, MIXES };

/* Bits of a format. `middle`: about which exponent field most numbers lie. finite: neither Inf nor NaN. */
static uint64_t random_bits(trial *t, const format *f, int mix, uint64_t middle, int finite)
{
    const uint64_t r = next_random(t), magnitude = sign_bit(f) - 1, fields = infinity_bits(f) >> (f->bits - 1);
    const uint64_t fraction = ((uint64_t)1 << (f->bits - 1)) - 1, sign = r & sign_bit(f);
    uint64_t a = (r >> 1) & magnitude, field = middle;
    if (mix == NEAR)
        a = (middle << (f->bits - 1)) | (a & fraction);
    else if (mix == WITHIN) {
        field = middle + (uint64_t)below(t, 24);
        a = ((field < fields ? field : fields - 1) << (f->bits - 1)) | (a & fraction);
    } else if (mix == FEW_BITS)
        a &= ~(fraction >> (1 + below(t, 4)));
    else if (mix == EDGES) { /* about powers of two, the largest, the smallest */
        const uint64_t edges[] = {0, 1, fraction, fraction + 1, infinity_bits(f) - 1, infinity_bits(f), a & ~fraction};
        a = edges[r >> 61 < 7 ? r >> 61 : 6] + (uint64_t)below(t, 5) - 2;
        a &= magnitude;
    } else if (mix == ZEROS && below(t, 10))
        a = 0;
    if (finite && a >= infinity_bits(f))
        a -= infinity_bits(f) / 2;
    if (finite && a >= infinity_bits(f))
        a &= fraction;
    return a | sign;
}

static double random_factor(trial *t, int mix)
{
    uint64_t u;
    double x;
    if (mix == ANY)
        u = random_bits(t, &FORMATS[DOUBLE], ANY, 0, 1);
    else if (mix == FEW_BITS) /* 1 or less, few bits: products are ties */
        u = (uint64_t)(1000 + below(t, 60)) << 52 | next_random(t) >> 57 << 45;
    else if (mix == EDGES) /* about the limits of float32 */
        u = (uint64_t)(1023 + (below(t, 2) ? 125 : -152) + below(t, 30)) << 52 | (next_random(t) >> 12);
    else
        u = (uint64_t)(1023 - 40 + below(t, 44)) << 52 | (next_random(t) >> 12);
    if (mix == ZEROS && below(t, 2))
        u = 0;
    u |= next_random(t) & (uint64_t)1 << 63;
    memcpy(&x, &u, 8);
    return x;
}

static exact element(const trial *t, const void *p, ptrdiff_t i)
{
    return decoded(t->f, load_bits((const char *)p + i * t->f->size, t->f->size));
}

static uint64_t bits_at(const trial *t, const memory *m, ptrdiff_t i) { return load_bits(m->at + i * t->f->size, t->f->size); }

static void fill(trial *t, memory *m, ptrdiff_t n, int mix, int finite, int64_t consecutive)
{
    const uint64_t fields = infinity_bits(t->f) >> (t->f->bits - 1), middle = next_random(t) % fields;
    place(t, m, n, (size_t)t->f->size);
    for (ptrdiff_t i = 0; i < n; i++) {
        const uint64_t u = consecutive >= 0 ? (uint64_t)(consecutive + i) & 0xffff : random_bits(t, t->f, mix, middle, finite);
        memcpy(m->at + i * t->f->size, &u, (size_t)t->f->size);
    }
}

/* Where results go: anew, or onto what is read. */
static void *result(trial *t, int in_place)
{
    place(t, &t->y, t->n, (size_t)t->f->size);
    if (in_place)
        memcpy(t->y.at, t->x.at, t->x.bytes);
    return t->y.at;
}

/* ---- elementwise kernels ---- */

static int check_element(trial *t, int operation, const char *name, ptrdiff_t i, const exact *x, uint64_t got, int once)
{
    const uint64_t expected = rounded(t->f, x), magnitude = sign_bit(t->f) - 1;
    const int nan = x->kind == NOT_A_NUMBER;
    t->cases[operation]++;
    if (nan ? (got & magnitude) > infinity_bits(t->f) : once ? got == expected : is_next_to(t->f, x, got))
        return 1;
    return failed(t, "%s: element %td of %td is %llx, not %llx, from %llx", name, i, t->n, (unsigned long long)got,
                  (unsigned long long)expected, (unsigned long long)bits_at(t, &t->x, i));
}

static int try_scale(trial *t, double factor)
{
    const exact f = decoded_double(factor);
    for (int ahead = 0; ahead < 2; ahead++) {
        const int in_place = below(t, 2);
        void *y = result(t, in_place);
        (ahead ? t->k->ahead : t->k)->scale[t->dtype](y, in_place ? y : t->x.at, t->n, factor);
        if (!untouched(&t->y))
            return failed(t, "scale: wrote beside %td elements", t->n);
        for (ptrdiff_t i = 0; i < t->n; i++) {
            const exact x = element(t, t->x.at, i), p = product(&x, &f);
            if (!check_element(t, SCALE, "scale", i, &p, bits_at(t, &t->y, i), t->dtype == DOUBLE))
                return 0;
        }
    }
    return 1;
}

static int try_zero_nonfinite(trial *t)
{
    const int in_place = below(t, 2);
    void *y = result(t, in_place);
    t->k->zero_nonfinite[t->dtype](y, in_place ? y : t->x.at, t->n);
    if (!untouched(&t->y))
        return failed(t, "zero_nonfinite: wrote beside %td elements", t->n);
    for (ptrdiff_t i = 0; i < t->n; i++) {
        const uint64_t u = bits_at(t, &t->x, i), nothing = element(t, t->x.at, i).kind == FINITE ? u : 0;
        t->cases[ZERO_NONFINITE]++;
        if (bits_at(t, &t->y, i) != nothing)
            return failed(t, "zero_nonfinite: element %td from %llx", i, (unsigned long long)u);
    }
    return 1;
}

/* A number that orders like the values of a format; of both zeros it is 0. */
static int64_t rank(const format *f, uint64_t u)
{
    const int64_t a = (int64_t)(u & (sign_bit(f) - 1));
    return u & sign_bit(f) ? -a : a;
}

static double value_of(const format *f, uint64_t u)
{
    const exact x = decoded(f, u);
    const uint64_t d = rounded(&FORMATS[DOUBLE], &x);
    double value;
    memcpy(&value, &d, 8);
    return value;
}

static int try_clamp(trial *t)
{
    uint64_t low = bits_at(t, &t->x, below(t, (int)t->n)), high = bits_at(t, &t->x, below(t, (int)t->n));
    const uint64_t sign = sign_bit(t->f), magnitude = sign - 1;
    const int kind = below(t, 4);
    if ((low & magnitude) > infinity_bits(t->f))
        low = sign; /* -0 */
    if (kind == 0 || (high & magnitude) > infinity_bits(t->f))
        high = 0;
    if (kind > 1) {
        low |= sign;
        high = low ^ sign;
    }
    if (rank(t->f, low) > rank(t->f, high)) {
        const uint64_t other = low;
        low = high;
        high = other;
    }
    const double least = value_of(t->f, low), most = value_of(t->f, high);
    const int in_place = below(t, 2);
    void *y = result(t, in_place);
    const ptrdiff_t counted = t->k->count_outside[t->dtype](t->x.at, t->n, least, most);
    const ptrdiff_t clamped = t->k->clamp[t->dtype](y, in_place ? y : t->x.at, t->n, least, most);
    ptrdiff_t outside = 0;
    if (!untouched(&t->y))
        return failed(t, "clamp: wrote beside %td elements", t->n);
    for (ptrdiff_t i = 0; i < t->n; i++) {
        const uint64_t u = bits_at(t, &t->x, i);
        const int nan = (u & magnitude) > infinity_bits(t->f);
        const int above = !nan && rank(t->f, u) > rank(t->f, high), under = !nan && rank(t->f, u) < rank(t->f, low);
        outside += above || under;
        t->cases[CLAMP]++;
        if (bits_at(t, &t->y, i) != (above ? high : under ? low : u))
            return failed(t, "clamp: element %td is %llx from %llx into [%a, %a]", i, (unsigned long long)bits_at(t, &t->y, i),
                          (unsigned long long)u, least, most);
    }
    return (counted == outside && clamped == outside) ||
           failed(t, "clamp: %td and %td outside, not %td", counted, clamped, outside);
}

/* The product and the difference are rounded to `between`, and the difference to the dtype. */
static int try_step(trial *t, double factor)
{
    const int half = t->dtype == HALF || t->dtype == BRAIN;
    exact f = decoded_double(factor);
    const double magnitude = factor < 0 ? -factor : factor;
    const int fits = (magnitude >= 0x1p-126 && magnitude <= 0x1.fffffep127) || factor == 0;
    const format *between = &FORMATS[half && fits ? SINGLE : DOUBLE];
    if (half && fits)
        f = rounded_exact(&FORMATS[SINGLE], &f);
    fill(t, &t->y, t->n, below(t, MIXES), 0, -1);
    memcpy(t->original, t->y.at, t->y.bytes);
    t->k->step[t->dtype](t->y.at, t->x.at, t->n, factor);
    if (!untouched(&t->y))
        return failed(t, "step: wrote beside %td elements", t->n);
    for (ptrdiff_t i = 0; i < t->n; i++) {
        const exact x = element(t, t->x.at, i), y = element(t, t->original, i);
        exact p = product(&x, &f);
        p = rounded_exact(between, &p);
        exact d = difference(&y, &p);
        d = rounded_exact(between, &d);
        if (half)
            d = rounded_exact(&FORMATS[SINGLE], &d);
        if (!check_element(t, STEP, "step", i, &d, bits_at(t, &t->y, i), 1))
            return 0;
    }
    return 1;
}

static int try_widen(trial *t)
{
    place(t, &t->wide, t->n, sizeof(double));
    t->k->widen[t->dtype]((double *)t->wide.at, t->x.at, t->n);
    if (!untouched(&t->wide))
        return failed(t, "widen: wrote beside %td elements", t->n);
    for (ptrdiff_t i = 0; i < t->n; i++) {
        const exact x = element(t, t->x.at, i);
        const uint64_t got = load_bits(t->wide.at + 8 * i, 8);
        t->cases[WIDEN]++;
        if (x.kind == NOT_A_NUMBER ? decoded(&FORMATS[DOUBLE], got).kind != NOT_A_NUMBER : got != rounded(&FORMATS[DOUBLE], &x))
            return failed(t, "widen: element %td from %llx", i, (unsigned long long)bits_at(t, &t->x, i));
    }
    return 1;
}

/* Random float64 about the range of the dtype: its numbers, the middles between them, and those beside. */
static void fill_wide(trial *t)
{
    double *w = place(t, &t->wide, t->n, sizeof(double));
    const int mix = below(t, 4);
    for (ptrdiff_t i = 0; i < t->n; i++) {
        uint64_t u = next_random(t);
        if (mix || t->dtype == DOUBLE) {
            exact x = decoded(t->f, random_bits(t, t->f, below(t, MIXES), 0, mix != 1));
            const int more = 53 - bit_length(x.m);
            if (x.kind == FINITE && x.m && more > 2) { /* a half of its last bit, and perhaps one far below */
                x.m = (x.m << more) + ((u128)below(t, 2) << (more - 1)) + (u128)below(t, 3) - 1;
                x.e -= more;
            }
            u = rounded(&FORMATS[DOUBLE], &x);
        }
        memcpy(w + i, &u, 8);
    }
}

static int try_narrow(trial *t)
{
    fill_wide(t);
    result(t, 0);
    t->k->narrow[t->dtype](t->y.at, (const double *)t->wide.at, t->n);
    if (!untouched(&t->y))
        return failed(t, "narrow: wrote beside %td elements", t->n);
    for (ptrdiff_t i = 0; i < t->n; i++) {
        exact x = decoded(&FORMATS[DOUBLE], load_bits(t->wide.at + 8 * i, 8));
        if (t->dtype < SINGLE)
            x = rounded_exact(&FORMATS[SINGLE], &x);
        if (!check_element(t, NARROW, "narrow", i, &x, bits_at(t, &t->y, i), 1))
            return 0;
    }
    return 1;
}

static int try_cast(trial *t)
{
    const int mix = below(t, MIXES), one = below(t, 2);
    fill_wide(t);
    double *factor = place(t, &t->factor, t->n, sizeof(double));
    for (ptrdiff_t i = 0; i < t->n; i++)
        factor[i] = i && one ? factor[0] : random_factor(t, mix);
    result(t, 0);
    t->k->cast[t->dtype](t->y.at, (const double *)t->wide.at, factor, t->n);
    if (!untouched(&t->y))
        return failed(t, "cast: wrote beside %td elements", t->n);
    for (ptrdiff_t i = 0; i < t->n; i++) {
        const exact x = decoded(&FORMATS[DOUBLE], load_bits(t->wide.at + 8 * i, 8)), f = decoded_double(factor[i]);
        const exact p = product(&x, &f);
        if (!check_element(t, CAST, "cast", i, &p, bits_at(t, &t->y, i), 1))
            return failed(t, "cast: %llx * %a", (unsigned long long)load_bits(t->wide.at + 8 * i, 8), factor[i]);
    }
    return 1;
}

/* ---- counts and sums ---- */

static int try_counts(trial *t)
{
    ptrdiff_t nans = 0, infs = 0;
    uint64_t most = 0;
    for (ptrdiff_t i = 0; i < t->n; i++) {
        const uint64_t a = bits_at(t, &t->x, i) & (sign_bit(t->f) - 1);
        nans += a > infinity_bits(t->f);
        infs += a == infinity_bits(t->f);
        most = a > most ? a : most;
    }
    t->cases[COUNT] += t->n;
    t->cases[AMAX] += t->n;
    if (t->k->count_nan[t->dtype](t->x.at, t->n) != nans || t->k->count_inf[t->dtype](t->x.at, t->n) != infs)
        return failed(t, "count: not %td NaN and %td Inf", nans, infs);
    const double amax = t->k->amax[t->dtype](t->x.at, t->n);
    const int finite = decoded_double(amax).kind == FINITE;
    if (finite != (nans + infs == 0) || (finite && amax != value_of(t->f, most)))
        return failed(t, "amax: %a, not %a", amax, value_of(t->f, most));
    return 1;
}

/* Whether high + low is a sum to 2**allowed. */
static int is_sum(const wide_sum *sum, double high, double low, int allowed)
{
    wide_sum s = *sum;
    const exact h = decoded_double(high), l = decoded_double(low);
    if (h.kind != FINITE || l.kind != FINITE)
        return 0;
    add_exact(&s, &h, 1);
    add_exact(&s, &l, 1);
    return exponent_of(&s) <= allowed;
}

/* The exponent of (rows + 2)**3 * 2**-100, rounded up: what compensated sums of so many terms below 1 may lose. Each of r
 * additions loses at most (r + 2) * 2**-53, exactly known; those add up to at most r * (r + 2) * 2**-53, and each addition of
 * them rounds that once. Sixteen lanes and their tree cost the other bits. */
static int lost_by(ptrdiff_t rows) { return 3 * bit_length((u128)(rows + 1)) - 100; }

static void add_term(wide_sum *sum, const exact *x, int ord)
{
    exact p = *x;
    if (ord == 2)
        p = product(x, x);
    p.negative = 0;
    add_exact(sum, &p, 0);
}

/* The exponent of the power of two above a magnitude. */
static int exponent_above(double amax)
{
    const exact x = decoded_double(amax);
    return bit_length(x.m) + x.e;
}

/* Whether sums are asked of elements with such a largest magnitude. */
static int is_usual(const trial *t, double amax)
{
    if (decoded_double(amax).kind != FINITE || amax == 0)
        return 0;
    return t->dtype != DOUBLE || (GC_TINY <= amax && amax <= GC_HUGE);
}

static int try_sum(trial *t, int ord, double amax)
{
    const int few = ord == 2 && t->n <= GC_LANES, up = below(t, 5) ? below(t, 4) : 0;
    if (!is_usual(t, amax))
        return 1;
    const double bound = gc_bound(amax, up);
    gc_sum s = (ord == 2 ? t->k->sum_squares : t->k->sum_abs)[t->dtype](t->x.at, t->n, bound);
    if (ord == 2) {
        const gc_sum ahead = t->k->ahead->sum_squares[t->dtype](t->x.at, t->n, bound);
        if (memcmp(&s, &ahead, sizeof s))
            return failed(t, "sum_squares: another sum of %td when it asks for memory ahead", t->n);
    }
    if (s.amax != amax)
        return failed(t, "sum: amax %a, not %a", s.amax, amax);
    wide_sum sum = {{0}};
    for (ptrdiff_t i = 0; i < t->n; i++) {
        const exact x = element(t, t->x.at, i);
        add_term(&sum, &x, ord);
    }
    t->cases[ord == 2 ? SUM_SQUARES : SUM_ABS] += t->n;
    const int scale = ord * exponent_above(few ? amax : bound);
    if (!is_sum(&sum, s.high, s.low, scale + lost_by((t->n + GC_LANES - 1) / GC_LANES)))
        return failed(t, "sum, ord %d: %a + %a of %td elements below %a", ord, s.high, s.low, t->n, bound);
    const double too_low = bound / 1024; /* a bound that does not hold is told by amax */
    if (t->dtype != DOUBLE || too_low > GC_TINY) {
        s = (ord == 2 ? t->k->sum_squares : t->k->sum_abs)[t->dtype](t->x.at, t->n, too_low);
        if (!(s.amax > too_low || few))
            return failed(t, "sum, ord %d: amax %a within a bound of %a, not %a", ord, s.amax, too_low, amax);
    }
    return 1;
}

static int try_columns(trial *t, int ord, ptrdiff_t width)
{
    const ptrdiff_t rows = t->n / width, stride = width * t->f->size, padded = (width + GC_LANES - 1) / GC_LANES * GC_LANES;
    double *sum = place(t, &t->total, padded, 8), *rest = place(t, &t->rest, padded, 8), *most = place(t, &t->most, padded, 8);
    t->k->sum_columns[t->dtype](t->x.at, stride, rows, width, ord, sum, rest, most);
    if (!untouched(&t->total) || !untouched(&t->rest) || !untouched(&t->most))
        return failed(t, "sum_columns: wrote beside %td columns", width);
    for (ptrdiff_t j = 0; j < width; j++) {
        wide_sum s = {{0}};
        uint64_t amax = 0;
        for (ptrdiff_t i = 0; i < rows; i++) {
            const exact x = element(t, t->x.at, i * width + j);
            const uint64_t a = bits_at(t, &t->x, i * width + j) & (sign_bit(t->f) - 1);
            amax = a > amax ? a : amax;
            if (x.kind == FINITE)
                add_term(&s, &x, ord);
        }
        t->cases[SUM_COLUMNS] += rows;
        const int finite = amax < infinity_bits(t->f);
        const double largest = value_of(t->f, amax);
        if (decoded_double(most[j]).kind == FINITE ? !finite || most[j] != largest : finite)
            return failed(t, "sum_columns: amax %a, not %a", most[j], largest);
        if (!finite || (t->dtype == DOUBLE && !(GC_TINY <= largest && largest <= GC_HUGE)))
            continue;
        if (!is_sum(&s, sum[j], rest[j], ord * exponent_above(largest) + lost_by(rows)))
            return failed(t, "sum_columns: ord %d, column %td of %td, %td rows: %a + %a", ord, j, width, rows, sum[j], rest[j]);
    }
    return 1;
}

static int try_scale_columns(trial *t, ptrdiff_t width)
{
    const ptrdiff_t rows = t->n / width, stride = width * t->f->size;
    double *factor = place(t, &t->factor, width, 8);
    for (ptrdiff_t j = 0; j < width; j++) /* of halves only such as float32 holds are asked of it */
        factor[j] = random_factor(t, t->dtype < SINGLE ? NEAR : below(t, MIXES));
    const int in_place = below(t, 2);
    void *y = result(t, in_place);
    t->k->scale_columns[t->dtype](y, stride, in_place ? y : t->x.at, stride, rows, width, factor);
    if (!untouched(&t->y))
        return failed(t, "scale_columns: wrote beside %td columns", width);
    for (ptrdiff_t i = 0; i < rows * width; i++) {
        const exact x = element(t, t->x.at, i), f = decoded_double(factor[i % width]), p = product(&x, &f);
        if (!check_element(t, SCALE_COLUMNS, "scale_columns", i, &p, bits_at(t, &t->y, i), t->dtype == DOUBLE))
            return 0;
    }
    return 1;
}

/* x * factor as add_samples rounds it to the dtype. */
static exact scaled(const trial *t, const exact *x, double factor)
{
    exact f = decoded_double(factor);
    const int half = t->dtype < SINGLE;
    if (half)
        f = rounded_exact(&FORMATS[SINGLE], &f);
    exact p = product(x, &f);
    p = rounded_exact(&FORMATS[half ? SINGLE : DOUBLE], &p);
    return rounded_exact(t->f, &p);
}

static int try_add_samples(trial *t)
{
    const ptrdiff_t rows = 1 + below(t, GC_TOGETHER), most = t->n / rows, n = most < GC_STRIP ? most : GC_STRIP;
    const ptrdiff_t padded = (n + GC_LANES - 1) / GC_LANES * GC_LANES, stride = most * t->f->size;
    if (n == 0)
        return 1;
    double factor[GC_TOGETHER], *sum = place(t, &t->total, padded, 8), *rest = place(t, &t->rest, padded, 8);
    for (ptrdiff_t i = 0; i < rows; i++)
        factor[i] = random_factor(t, below(t, 2) ? NEAR : FEW_BITS) / 16;
    memset(sum, 0, (size_t)padded * 8);
    memset(rest, 0, (size_t)padded * 8);
    t->k->add_samples[t->dtype](sum, rest, t->x.at, t->x.at, stride, rows, n, factor);
    if (!untouched(&t->total) || !untouched(&t->rest))
        return failed(t, "add_samples: wrote beside %td sums", n);
    for (ptrdiff_t j = 0; j < n; j++) {
        wide_sum s = {{0}};
        int largest = -1100, finite = 1;
        for (ptrdiff_t i = 0; i < rows; i++) {
            const exact x = element(t, t->x.at + i * stride, j), p = scaled(t, &x, factor[i]);
            const int e = bit_length(p.m) + p.e;
            finite = finite && p.kind == FINITE;
            largest = p.m && e > largest ? e : largest;
            if (finite)
                add_exact(&s, &p, 0);
        }
        t->cases[ADD_SAMPLES] += rows;
        if (finite && largest < 1020 && !is_sum(&s, sum[j], rest[j], largest + lost_by(rows))) /* beyond, sums are Inf */
            return failed(t, "add_samples: column %td of %td, %td rows: %a + %a", j, n, rows, sum[j], rest[j]);
    }
    return 1;
}

/* ---- a round, and many ---- */

/* Every fourth round takes 4096 numbers in a row of a half: all 65,536 in 64 rounds. */
static int one_round(trial *t, int64_t number)
{
    const int sweep = t->f->size == 2 && number % 4 == 0, mix = below(t, MIXES);
    t->n = sweep ? GC_BLOCK : 1 + below(t, number % 2 ? 3 * GC_LANES : number % 8 == 2 ? GC_BLOCK : 300);
    fill(t, &t->x, t->n, mix, 0, sweep ? number / 4 % 16 * GC_BLOCK : -1);
    const int factors = below(t, MIXES);
    if (!try_scale(t, random_factor(t, factors)) || !try_zero_nonfinite(t) || !try_clamp(t) ||
        !try_step(t, random_factor(t, factors)) || !try_widen(t) || !try_narrow(t) || !try_cast(t) || !try_counts(t))
        return 0;
    const ptrdiff_t width = 1 + below(t, below(t, 2) ? (int)t->n : 40), columns = width < t->n ? width : t->n;
    const ptrdiff_t panel = columns < GC_PANEL ? columns : GC_PANEL;
    if (!try_columns(t, 1, panel) || !try_columns(t, 2, panel) || !try_scale_columns(t, panel) || !try_add_samples(t))
        return 0;
    double amax = t->k->amax[t->dtype](t->x.at, t->n);
    for (int again = 0; again < 6 && !is_usual(t, amax); again++) { /* sums: of finite numbers, mostly near each other */
        fill(t, &t->x, t->n, again || below(t, 2) ? WITHIN : mix, 1, -1);
        amax = t->k->amax[t->dtype](t->x.at, t->n);
    }
    return try_sum(t, 1, amax) && try_sum(t, 2, amax);
}

/* Run rounds `first` to `first + count - 1`; returns the number of the round that failed, or -1. */
int64_t oracle_run(const gc_kernels *k, int dtype, uint64_t seed, int64_t first, int64_t count, int64_t cases[], char *message,
                   size_t room)
{
    trial *t = calloc(1, sizeof *t);
    int64_t wrong = -1;
    if (t == NULL)
        return first;
    memory *all[] = {&t->x, &t->y, &t->wide, &t->factor, &t->total, &t->rest, &t->most};
    int ready = 1;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        ready = ready && reserve(all[i]);
    if (!ready)
        wrong = first;
    t->k = k, t->dtype = dtype, t->f = &FORMATS[dtype], t->cases = cases, t->message = message, t->room = room;
    for (int64_t number = first; ready && wrong < 0 && number < first + count; number++) {
        t->state = seed * 0xd1342543de82ef95u + (uint64_t)number * 0x2545f4914f6cdd1du + (uint64_t)dtype;
        if (!one_round(t, number))
            wrong = number;
    }
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        release(all[i]);
    free(t);
    return wrong;
}

int oracle_operations(void) { return OPERATIONS; }

/* ---- whole calls: whole_calls.py ---- */

/* words += the magnitudes (ord 1) or squares (ord 2) of n numbers that are finite. */
void oracle_add_powers(int dtype, const char *x, int64_t n, int ord, wide_sum *words)
{
    const format *f = &FORMATS[dtype];
    for (int64_t i = 0; i < n; i++) {
        const exact e = decoded(f, load_bits(x + i * f->size, f->size));
        add_term(words, &e, ord);
    }
}

/* The first of n elements y, of dtype `to`, that is not x * factor: rounded once, or with an error of 0.501 ulp. -1: none. */
int64_t oracle_first_wrong(int dtype, const char *x, int to, const char *y, int64_t n, double factor, int once)
{
    const format *f = &FORMATS[dtype], *g = &FORMATS[to];
    const exact by = decoded_double(factor);
    for (int64_t i = 0; i < n; i++) {
        const exact e = decoded(f, load_bits(x + i * f->size, f->size)), p = product(&e, &by);
        const uint64_t got = load_bits(y + i * g->size, g->size);
        if (once ? got != rounded(g, &p) : !is_next_to(g, &p, got))
            return i;
    }
    return -1;
}
