/* Whether a sum may lie so close to the middle between two norms that its bits do not tell on which side.
 *
 * A sum is right to a relative error (gc_sum_error). Its norm is the root of it, or itself, divided by grad_scale, and rounded to
 * float64. Where the numbers within the error are not all rounded alike, only an exact sum tells: see exact.h. */
#ifndef GRADCLIP_MIDDLE_H
#define GRADCLIP_MIDDLE_H

#include <float.h>
#include <math.h>
#include <stddef.h>
#include "fold.h"
#include "near.h"

/* What the norms of a pass have in common. */
typedef struct {
    double ord, grad_scale;
    double error; /* relative, of each sum */
    int plain;    /* division by grad_scale changes no bits */
} gc_precision;

/* A bound on the relative error of the sum of a unit, or of all: docs/numerics.md has the proof. */
static inline double gc_sum_error(ptrdiff_t elements, ptrdiff_t units)
{
    const double n = (double)elements, many = n > 0x1p32 ? n * 0x1p-32 : 1;
    const double folds = n / 4096 + 2 * (double)units + 2;
    return 0x1p-71 * many * many + folds * (double)(LDBL_EPSILON / 2) * 0x1p-28;
}

static inline gc_precision gc_precision_of(double ord, double grad_scale, double error)
{
    int exponent;
    gc_precision p = {ord, grad_scale, error, 0};
    p.plain = frexp(grad_scale, &exponent) == 0.5 && -400 < exponent && exponent < 400;
    return p;
}

/* The least and the largest sum within the error. */
static inline void gc_within(const gc_measured *u, const gc_precision *p, gc_measured *least, gc_measured *most)
{
    *least = *most = *u;
    least->low -= p->error * u->high;
    most->low += p->error * u->high;
}

/* Whether the norms of all sums within the error are the same float64. Not inlined: few sums need it. */
#if defined(__GNUC__)
__attribute__((noinline, unused))
#elif defined(_MSC_VER)
__declspec(noinline)
#endif
static int gc_is_certain(const gc_measured *u, const gc_precision *p)
{
    gc_measured least, most;
    gc_within(u, p, &least, &most);
    const gc_wide a = gc_norm_of(&least, p->ord, p->grad_scale), b = gc_norm_of(&most, p->ord, p->grad_scale);
    return a.head == b.head && a.exponent == b.exponent && gc_narrow(a) == gc_narrow(b);
}

/* Whether a sum tells its norm. */
static inline int gc_tells_norm(const gc_measured *u, const gc_precision *p)
{
    if (p->plain && u->bin == 0 && u->high > 0x1p-900)
        return !gc_near_middle(u->high, u->low, p->ord == 2, p->error);
    return u->high == 0 || gc_is_certain(u, p);
}

/* Round a sum that does not tell its norm as if it were the middle itself: to the even one of the two. */
static inline void gc_take_for_middle(gc_measured *u, const gc_precision *p)
{
    gc_measured least, most;
    uint64_t bits;
    gc_within(u, p, &least, &most);
    const double below = gc_narrow(gc_norm_of(&least, p->ord, p->grad_scale));
    memcpy(&bits, &below, 8);
    *u = bits & 1 ? most : least;
}

#endif
