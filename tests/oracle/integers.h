/* Numbers of the four dtypes as integers: decoded, multiplied, subtracted and rounded without one floating-point operation. */
#ifndef GRADCLIP_ORACLE_INTEGERS_H
#define GRADCLIP_ORACLE_INTEGERS_H

#include <stdint.h>
#include <string.h>

typedef unsigned __int128 u128;

enum { FINITE, INFINITE, NOT_A_NUMBER };

/* Bits of the significand, exponent of the smallest subnormal number, bytes. In the order of kernels.h. */
typedef struct {
    int bits, smallest, size;
} format;

static const format FORMATS[] = {{11, -24, 2}, {8, -133, 2}, {24, -149, 4}, {53, -1074, 8}};
enum { HALF, BRAIN, SINGLE, DOUBLE };

/* (-1)**negative * m * 2**e, or one that is not finite. */
typedef struct {
    int kind, negative, e;
    u128 m;
} exact;

static inline uint64_t load_bits(const void *p, int size)
{
    uint64_t u = 0;
    memcpy(&u, p, (size_t)size); /* little-endian, as all machines that the tests run on */
    return u;
}

static inline uint64_t sign_bit(const format *f) { return (uint64_t)1 << (8 * f->size - 1); }

static inline uint64_t infinity_bits(const format *f) { return sign_bit(f) - ((uint64_t)1 << (f->bits - 1)); }

static inline exact decoded(const format *f, uint64_t u)
{
    const uint64_t a = u & (sign_bit(f) - 1), hidden = (uint64_t)1 << (f->bits - 1), field = a >> (f->bits - 1);
    exact x = {FINITE, (u & sign_bit(f)) != 0, f->smallest, a};
    if (a >= infinity_bits(f))
        x.kind = a == infinity_bits(f) ? INFINITE : NOT_A_NUMBER;
    else if (field) {
        x.m = (a & (hidden - 1)) | hidden;
        x.e = f->smallest + (int)field - 1;
    }
    return x;
}

static inline exact decoded_double(double x) { return decoded(&FORMATS[DOUBLE], load_bits(&x, 8)); }

static inline int bit_length(u128 m)
{
    const uint64_t top = (uint64_t)(m >> 64), low = (uint64_t)m;
    return top ? 128 - __builtin_clzll(top) : low ? 64 - __builtin_clzll(low) : 0;
}

/* How far below x the quantum of a format lies there, in bits of x.m. */
static inline int dropped_bits(const format *f, const exact *x)
{
    const int quantum = bit_length(x->m) + x->e - f->bits;
    return (quantum > f->smallest ? quantum : f->smallest) - x->e;
}

/* The bits of x, rounded once to a format: to nearest, ties to even, Inf above its range. NaN is one of its NaN. */
static inline uint64_t rounded(const format *f, const exact *x)
{
    const uint64_t sign = x->negative ? sign_bit(f) : 0, infinite = infinity_bits(f);
    if (x->kind == NOT_A_NUMBER)
        return infinite + 1;
    if (x->kind == INFINITE)
        return infinite | sign;
    if (x->m == 0)
        return sign;
    const int drop = dropped_bits(f, x);
    u128 kept;
    if (drop <= 0)
        kept = x->m << -drop;
    else if (drop > 126) /* m has fewer bits than half of what is dropped */
        kept = 0;
    else {
        const u128 rest = x->m & (((u128)1 << drop) - 1), half = (u128)1 << (drop - 1);
        kept = x->m >> drop;
        kept += rest > half || (rest == half && (kept & 1));
    }
    /* The hidden bit adds one to the exponent's field, and so does a carry. */
    const uint64_t binades = (uint64_t)(x->e + drop - f->smallest);
    if (binades > (uint64_t)1 << (8 * f->size - f->bits)) /* the quantum alone is out of range */
        return infinite | sign;
    const u128 all = ((u128)binades << (f->bits - 1)) + kept;
    return (all >= infinite ? infinite : (uint64_t)all) | sign;
}

static inline exact rounded_exact(const format *f, const exact *x) { return decoded(f, rounded(f, x)); }

/* Whether bits are x rounded, or its other neighbour where x lies within 0.001 ulp of the middle: an error of 0.501 ulp. */
static inline int is_next_to(const format *f, const exact *x, uint64_t bits)
{
    const uint64_t best = rounded(f, x), magnitude = sign_bit(f) - 1;
    if (x->kind == NOT_A_NUMBER)
        return (bits & magnitude) > infinity_bits(f);
    if (bits == best)
        return 1;
    const int drop = x->kind == FINITE ? dropped_bits(f, x) : 0;
    const uint64_t apart = (bits & magnitude) - (best & magnitude);
    if (drop < 1 || drop > 116 || ((bits ^ best) & sign_bit(f)) || (apart != 1 && apart != UINT64_MAX))
        return 0;
    const u128 rest = x->m & (((u128)1 << drop) - 1), half = (u128)1 << (drop - 1);
    const int up = rest > half || (rest == half && ((x->m >> drop) & 1));
    return apart == (up ? UINT64_MAX : 1) && (rest > half ? rest - half : half - rest) * 1000 <= (u128)1 << drop;
}

static inline exact product(const exact *a, const exact *b)
{
    exact p = {FINITE, a->negative != b->negative, a->e + b->e, 0};
    if (a->kind == NOT_A_NUMBER || b->kind == NOT_A_NUMBER)
        p.kind = NOT_A_NUMBER;
    else if (a->kind == INFINITE || b->kind == INFINITE)
        p.kind = (a->kind == FINITE && a->m == 0) || (b->kind == FINITE && b->m == 0) ? NOT_A_NUMBER : INFINITE;
    else
        p.m = a->m * b->m;
    return p;
}

/* a - b of numbers of at most 53 bits; where they lie far apart, one bit stands for all of the smaller. */
static inline exact difference(const exact *a, const exact *b)
{
    exact x = *a, y = *b;
    y.negative = !y.negative;
    if (x.kind != FINITE || y.kind != FINITE) {
        exact d = x.kind == FINITE ? y : x;
        if (x.kind == NOT_A_NUMBER || y.kind == NOT_A_NUMBER || (x.kind == y.kind && x.negative != y.negative))
            d.kind = NOT_A_NUMBER;
        return d;
    }
    if (x.m == 0 || y.m == 0) {
        exact d = x.m ? x : y;
        if (x.m == y.m)
            d.negative = x.negative && y.negative;
        return d;
    }
    for (exact *z = &x;; z = &y) { /* all to 53 bits */
        const int up = 53 - bit_length(z->m);
        z->m <<= up;
        z->e -= up;
        if (z == &y)
            break;
    }
    if (x.e < y.e || (x.e == y.e && x.m < y.m)) {
        exact z = x;
        x = y;
        y = z;
    }
    const int gap = x.e - y.e;
    const u128 large = x.m << (gap > 70 ? 71 : gap), small = gap > 70 ? 1 : y.m;
    exact d = {FINITE, x.negative, gap > 70 ? x.e - 71 : y.e, x.negative == y.negative ? large + small : large - small};
    if (d.m == 0)
        d.negative = 0;
    return d;
}

/* A sum of any number of products of float64, exactly: two's complement, in units of 2**LAST. */
enum { WORDS = 72, LAST = -2304 };
typedef struct {
    uint64_t word[WORDS];
} wide_sum;

/* sum += x, or -= x. */
static inline void add_exact(wide_sum *sum, const exact *x, int subtract)
{
    if (x->m == 0)
        return;
    const int at = x->e - LAST, shift = at % 64;
    const uint64_t low = (uint64_t)x->m, high = (uint64_t)(x->m >> 64);
    const uint64_t part[3] = {low << shift, high << shift | (shift ? low >> (64 - shift) : 0),
                              shift ? high >> (64 - shift) : 0};
    uint64_t *w = sum->word + at / 64;
    unsigned carry = 0;
    const int minus = x->negative != subtract;
    for (int i = 0; w + i < sum->word + WORDS && (i < 3 || carry); i++) {
        const uint64_t p = i < 3 ? part[i] : 0;
        const u128 t = minus ? (u128)w[i] - p - carry : (u128)w[i] + p + carry;
        w[i] = (uint64_t)t;
        carry = (t >> 64) != 0;
    }
}

/* The exponent of the power of two next above the magnitude of a sum; INT32_MIN if it is 0. */
static inline int exponent_of(const wide_sum *sum)
{
    const int negative = (sum->word[WORDS - 1] >> 63) != 0;
    for (int i = WORDS - 1; i >= 0; i--) {
        const uint64_t w = negative ? ~sum->word[i] : sum->word[i]; /* off by the last unit, which does not matter */
        if (w)
            return LAST + 64 * i + 64 - __builtin_clzll(w);
    }
    return negative ? LAST : INT32_MIN;
}

#endif
