/* Exact sums of squares (order 2) and of magnitudes (order 1): integers, so that order and split cannot matter.
 *
 * An element is m * 2**e with m < 2**53. The squares of elements of one exponent add up in a bin of 128 bits. Every so often bins
 * are emptied into limbs, which hold an integer in units of 2**GC_LOWEST. Ten times slower than the pass, and asked only where the
 * bits of the pass do not tell on which side of the middle between two float64 a norm lies. */
#ifndef GRADCLIP_EXACT_H
#define GRADCLIP_EXACT_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(_MSC_VER) && defined(_M_X64)
#include <intrin.h>
#endif
#include "blocks.h"
#include "middle.h"

#define GC_HIDDEN ((uint64_t)1 << 52) /* the bit of a float64 that is not stored */

enum {
    GC_LIMBS = 142,      /* up to 2**62 squares of the largest float64 */
    GC_LOWEST =
        -2372,   /* exponent of the lowest bit: 224 below the least square, so that the square of a middle times grad_scale
                            ends above it wherever it is as large as a sum */
    GC_BINS = 2047,      /* exponents of finite float64, as they are stored */
    GC_HELD = 1 << 20,   /* squares that are added before bins are emptied: a bin has room for four times as many */
    GC_DIGITS = 8        /* of 32 bits, in what sums are compared with */
};

typedef struct {
    uint64_t low, high;
} gc_bin;

/* The bins of one thread: two for each exponent, in turn, so that an addition need not wait for the one before it. */
typedef struct {
    gc_bin bin[2][GC_BINS];
    int least, most; /* exponents in use */
    ptrdiff_t held;
} gc_bins;

/* A sum: limbs of 32 bits, of which bottom .. top are in use. */
typedef struct {
    uint64_t limb[GC_LIMBS];
    int bottom, top;
} gc_exact;

static inline void gc_exact_clear(gc_exact *s)
{
    memset(s->limb, 0, sizeof s->limb);
    s->bottom = GC_LIMBS;
    s->top = -1;
}

/* Make a sum 0 again, of which some limbs were in use. */
static inline void gc_exact_reset(gc_exact *s)
{
    if (s->top >= s->bottom)
        memset(s->limb + s->bottom, 0, (size_t)(s->top - s->bottom + 1) * sizeof *s->limb);
    s->bottom = GC_LIMBS;
    s->top = -1;
}

static inline void gc_bins_clear(gc_bins *b)
{
    memset(b, 0, sizeof *b);
    b->least = GC_BINS;
}

/* m * m for m < 2**53. */
static inline gc_bin gc_square_of(uint64_t m)
{
    gc_bin p;
#if defined(__SIZEOF_INT128__)
    const unsigned __int128 square = (unsigned __int128)m * m;
    p.low = (uint64_t)square;
    p.high = (uint64_t)(square >> 64);
#elif defined(_MSC_VER) && defined(_M_X64)
    p.low = _umul128(m, m, &p.high);
#else
    const uint64_t h = m >> 32, l = m & 0xffffffff, twice = 2 * h * l, square = l * l;
    p.low = square + (twice << 32);
    p.high = h * h + (twice >> 32) + (p.low < square);
#endif
    return p;
}

/* Add n finite elements to the bins. */
static inline void gc_bins_add(gc_bins *b, const double *x, ptrdiff_t n, int squares)
{
    int least = b->least, most = b->most;
    for (ptrdiff_t i = 0; i < n; i++) {
        uint64_t bits;
        memcpy(&bits, x + i, 8);
        bits &= ~((uint64_t)1 << 63);
        if (bits == 0)
            continue;
        int e = (int)(bits >> 52);
        const uint64_t m = (bits & (GC_HIDDEN - 1)) | (e ? GC_HIDDEN : 0);
        e += e == 0;
        least = e < least ? e : least;
        most = e > most ? e : most;
        gc_bin *to = &b->bin[i & 1][e], term = {m, 0};
        if (squares)
            term = gc_square_of(m);
        to->low += term.low;
        to->high += term.high + (to->low < term.low);
    }
    b->least = least;
    b->most = most;
    b->held += n;
}

/* Add a number of 128 bits, times 2**at, to limbs that are not carried yet. */
static inline void gc_exact_put(gc_exact *s, gc_bin number, int at)
{
    const uint32_t word[4] = {(uint32_t)number.low, (uint32_t)(number.low >> 32), (uint32_t)number.high,
                              (uint32_t)(number.high >> 32)};
    const int first = at / 32, shift = at % 32;
    uint64_t carry = 0;
    for (int i = 0; i < 4; i++) {
        carry |= (uint64_t)word[i] << shift;
        s->limb[first + i] += carry & 0xffffffff;
        carry >>= 32;
    }
    s->limb[first + 4] += carry;
    s->bottom = first < s->bottom ? first : s->bottom;
    s->top = first + 4 > s->top ? first + 4 : s->top;
}

/* Bring every limb below 2**32, and let bottom and top be those that are not 0. */
static inline void gc_exact_carry(gc_exact *s)
{
    uint64_t carry = 0;
    for (int i = s->bottom; i < GC_LIMBS && (i <= s->top || carry); i++) {
        carry += s->limb[i];
        s->limb[i] = carry & 0xffffffff;
        carry >>= 32;
        s->top = i > s->top ? i : s->top;
    }
    while (s->top >= 0 && s->limb[s->top] == 0)
        s->top--;
    while (s->bottom < s->top && s->limb[s->bottom] == 0)
        s->bottom++;
}

/* Empty the bins into a sum. */
static inline void gc_bins_empty(gc_bins *b, gc_exact *into, int squares)
{
    for (int e = b->least; e <= b->most; e++)
        for (int i = 0; i < 2; i++) {
            gc_bin *from = &b->bin[i][e];
            if (from->low | from->high)
                gc_exact_put(into, *from, (squares ? 2 : 1) * (e - 1075) - GC_LOWEST);
            from->low = from->high = 0;
        }
    if (b->least <= b->most)
        gc_exact_carry(into);
    b->least = GC_BINS;
    b->most = 0;
    b->held = 0;
}

/* *into += other. */
static inline void gc_exact_merge(gc_exact *into, const gc_exact *other)
{
    for (int i = other->bottom; i <= other->top; i++)
        into->limb[i] += other->limb[i];
    into->bottom = other->bottom < into->bottom ? other->bottom : into->bottom;
    into->top = other->top > into->top ? other->top : into->top;
    if (into->top >= 0)
        gc_exact_carry(into);
}

/* The same from one of several threads. */
static inline void gc_exact_share(gc_exact *into, const gc_exact *part)
{
#ifdef _OPENMP
#pragma omp critical(gc_exact_share)
#endif
    gc_exact_merge(into, part);
}

/* Add elements first .. end of one unit, NaN and Inf left out, to the bins: of the leaf as it is, or as `made` would make it.
 * room: of this thread; into: where full bins are emptied. */
static inline void gc_exact_read(const gc_kernels *k, const gc_leaf *leaf, ptrdiff_t first, ptrdiff_t end, int squares,
                                 const gc_write *made, char *room, gc_bins *bins, gc_exact *into)
{
    const gc_leaf read = made ? gc_made_of(leaf) : *leaf;
    const int t = read.dtype;
    double *wide = (double *)(void *)room + GC_BLOCK;
    gc_total ignored;
    for (; first < end; first += GC_BLOCK) {
        const ptrdiff_t n = gc_least(GC_BLOCK, end - first);
        const char *x = gc_fetch(leaf, first, n, room);
        if (made) {
            gc_alter(k, made, t, room, leaf, x, n, room);
            x = room;
        }
        if (!isfinite(k->amax[t](x, n))) {
            gc_clear(&ignored);
            x = gc_without_nonfinite(k, &read, x, n, room, &ignored);
        }
        if (t != GC_F64) {
            k->widen[t](wide, x, n);
            x = (const char *)wide;
        }
        gc_bins_add(bins, (const double *)(const void *)x, n, squares);
        if (bins->held >= GC_HELD)
            gc_bins_empty(bins, into, squares);
    }
}

/* ---- what a sum is compared with ---------------------------------------------------------------- */

static inline int gc_bits_of(uint32_t x)
{
    int n = 0;
    while (x) {
        x >>= 1;
        n++;
    }
    return n;
}

/* An integer of some digits, times 2**exponent. */
typedef struct {
    uint32_t digit[GC_DIGITS];
    int digits, exponent;
} gc_number;

static inline gc_number gc_product(const gc_number *a, const gc_number *b)
{
    gc_number p;
    memset(&p, 0, sizeof p);
    for (int i = 0; i < a->digits; i++) {
        uint64_t carry = 0;
        for (int j = 0; j < b->digits; j++) {
            carry += p.digit[i + j] + (uint64_t)a->digit[i] * b->digit[j];
            p.digit[i + j] = (uint32_t)carry;
            carry >>= 32;
        }
        p.digit[i + b->digits] = (uint32_t)carry;
    }
    p.digits = a->digits + b->digits;
    p.exponent = a->exponent + b->exponent;
    while (p.digits && p.digit[p.digits - 1] == 0)
        p.digits--;
    return p;
}

/* m * 2**exponent */
static inline gc_number gc_number_of(uint64_t m, int exponent)
{
    gc_number n;
    memset(&n, 0, sizeof n);
    n.digit[0] = (uint32_t)m;
    n.digit[1] = (uint32_t)(m >> 32);
    n.digits = n.digit[1] ? 2 : n.digit[0] ? 1 : 0;
    n.exponent = exponent;
    return n;
}

/* A finite number >= 0. */
static inline gc_number gc_number_from(double x)
{
    int exponent;
    const double m = frexp(x, &exponent);
    return gc_number_of((uint64_t)ldexp(m, 53), exponent - 53);
}

/* Bits at .. at + 32 of a number. */
static inline uint32_t gc_digit_at(const gc_number *n, int at)
{
    const int first = at >= 0 ? at / 32 : -((31 - at) / 32), shift = at - 32 * first;
    uint64_t two = 0;
    if (0 <= first && first < n->digits)
        two = n->digit[first];
    if (0 <= first + 1 && first + 1 < n->digits)
        two |= (uint64_t)n->digit[first + 1] << 32;
    return (uint32_t)(two >> shift);
}

/* The sign of s - n. */
static inline int gc_exact_compare(const gc_exact *s, const gc_number *n)
{
    const int shift = n->exponent - GC_LOWEST;
    if (s->top < 0 || n->digits == 0)
        return (s->top >= 0) - (n->digits != 0);
    const int bits = 32 * s->top + gc_bits_of((uint32_t)s->limb[s->top]);
    const int others = 32 * (n->digits - 1) + gc_bits_of(n->digit[n->digits - 1]) + shift;
    if (bits != others)
        return bits < others ? -1 : 1;
    for (int i = s->top; i >= 0 && (32 * i + 31 >= shift || i >= s->bottom); i--) {
        const uint32_t digit = gc_digit_at(n, 32 * i - shift);
        if (s->limb[i] != digit)
            return s->limb[i] < digit ? -1 : 1;
    }
    return 0;
}

/* The sign of s - (a * b)**power. */
static inline int gc_exact_side(const gc_exact *s, const gc_number *a, const gc_number *b, int squares)
{
    gc_number n = gc_product(a, b);
    if (squares)
        n = gc_product(&n, &n);
    return gc_exact_compare(s, &n);
}

/* ---- from a sum to what is known of a unit ---------------------------------------------------------- */

/* Bits from .. from + 53 as an integer. */
static inline uint64_t gc_exact_bits(const gc_exact *s, int from)
{
    const int first = from / 32, shift = from % 32;
    uint64_t bits = 0;
    for (int i = 2; i >= 0; i--) {
        const uint64_t limb = first + i < GC_LIMBS ? s->limb[first + i] : 0;
        bits |= 32 * i >= shift ? (32 * i - shift < 64 ? limb << (32 * i - shift) : 0) : limb >> (shift - 32 * i);
    }
    return bits & (2 * GC_HIDDEN - 1);
}

/* The first 106 bits of a sum, the last of which is set where any follow, to a unit. */
static inline void gc_exact_round(gc_measured *u, const gc_exact *s, double ord)
{
    u->high = u->low = 0;
    u->bin = 0;
    if (s->top < 0)
        return;
    const int bits = 32 * s->top + gc_bits_of((uint32_t)s->limb[s->top]), cut = bits - 106;
    const uint64_t high = gc_exact_bits(s, bits - 53);
    uint64_t low = gc_exact_bits(s, cut);
    if (32 * s->bottom < cut && (s->bottom < cut / 32 || s->limb[cut / 32] << (32 - cut % 32) & 0xffffffff))
        low |= 1;
    int exponent = cut + GC_LOWEST;
    if (exponent + 106 < -800 || exponent + 106 > 1000) {
        u->bin = (int64_t)floor((double)(exponent + 106) / gc_bin_width(ord) + 0.5);
        exponent -= gc_bin_width(ord) * (int)u->bin;
    }
    u->high = ldexp((double)high, exponent + 53);
    u->low = ldexp((double)low, exponent);
}

/* Which of m - 1, m and m + 1, times 2**exponent, is nearest to the norm, ties to even. even: these are evenly spaced; else they are
 * float64 of 53 bits, and below a power of two lies one more. */
static inline uint64_t gc_exact_nearest(const gc_exact *s, const gc_number *scale, int squares, uint64_t m, int exponent,
                                        int even)
{
    const gc_number above = gc_number_of(2 * m + 1, exponent - 1);
    int side = gc_exact_side(s, &above, scale, squares);
    if (side > 0 || (side == 0 && m & 1))
        return m + 1;
    if (m == 0)
        return m;
    const int half = m == GC_HIDDEN && !even;
    const gc_number below = gc_number_of((2 * m << half) - 1, exponent - 1 - half);
    side = gc_exact_side(s, &below, scale, squares);
    return side < 0 || (side == 0 && m & 1) ? m - 1 : m;
}

/* Where the norm of an exact sum lies beside the one that is computed of a unit: 1 above, -1 below, 0: both round alike. */
static inline int gc_exact_miss(const gc_measured *u, const gc_exact *s, const gc_number *scale, double ord, double grad_scale)
{
    const gc_wide norm = gc_norm_of(u, ord, grad_scale);
    const double value = gc_narrow(norm);
    int exponent;
    uint64_t m = (uint64_t)ldexp(frexp(norm.head, &exponent), 53), right;
    right = gc_exact_nearest(s, scale, ord == 2, m, exponent + norm.exponent - 53, 0);
    if (right == m && value <= 0x1p-1022) { /* what is shown has fewer bits than the norm that factors are made of */
        m = (uint64_t)ldexp(value, -GC_DENORMAL);
        right = gc_exact_nearest(s, scale, ord == 2, m, GC_DENORMAL, 1);
    }
    return right < m ? -1 : right > m;
}

/* Give a unit its exact sum, in some 100 bits, such that its norm is the correctly rounded one. */
static inline void gc_exact_settle(gc_measured *u, const gc_exact *s, double ord, double grad_scale)
{
    const gc_number scale = gc_number_from(grad_scale);
    gc_exact_round(u, s, ord);
    if (s->top < 0)
        return;
    const double low = u->low;
    const int miss = gc_exact_miss(u, s, &scale, ord, grad_scale);
    /* The norm is computed to some 103 bits, and the middle itself may have 108: a sum next to it is moved to its side. */
    for (int k = -106, left = miss; left == miss && miss && k < -60; k++) {
        u->low = low + miss * ldexp(u->high, k);
        left = gc_exact_miss(u, s, &scale, ord, grad_scale);
    }
}

#endif
