/* Block sums to the sum of a unit, on the host.
 *
 * Blocks fold, in order, into two long doubles (high, low) by TwoSum: on x86-64 128 bits, where long double is double 106.
 * Range is kept apart from precision, so that both kinds of machine agree: a total stands for
 * (high + low) * 2**(gc_bin_width(ord) * bin), bin being 0 but for float64 blocks outside GC_TINY .. GC_HUGE. These functions
 * run inside gc_fp_enter: the rounding mode is the standard one. A GPU has no long double: _gpu/sums.cu folds pairs of
 * float64. */
#ifndef GRADCLIP_FOLD_H
#define GRADCLIP_FOLD_H

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include "../../_scalar/unit.h"
#include "../../_scalar/wide.h"

typedef struct {
    long double high, low; /* of the finite elements */
    int64_t bin;
    long double amax;      /* largest finite magnitude: of a complex number, beyond float64 perhaps */
    ptrdiff_t nans, infs;  /* elements that are NaN, Inf */
    ptrdiff_t outside;     /* elements beyond the bounds, where bounds are given */
} gc_total;

static inline void gc_clear(gc_total *t)
{
    t->high = t->low = t->amax = 0;
    t->bin = 0;
    t->nans = t->infs = t->outside = 0;
}

/* What was measured of a unit that is complete, to 106 bits: many are kept, so it is small. */
static inline void gc_complete(gc_measured *u, const gc_total *t)
{
    u->high = (double)t->high;
    u->low = (double)(t->high - u->high) + (double)t->low;
    u->bin = t->bin;
    u->exponent = t->amax > DBL_MAX;
    u->amax = (double)(u->exponent ? t->amax / 2 : t->amax);
    u->nans = t->nans;
    u->infs = t->infs;
    u->outside = t->outside;
}

/* The total of a unit from what was measured of it. */
static inline gc_total gc_reopen(const gc_measured *u)
{
    gc_total t;
    t.high = u->high;
    t.low = u->low;
    t.bin = u->bin;
    t.amax = ldexpl(u->amax, (int)u->exponent);
    t.nans = (ptrdiff_t)u->nans;
    t.infs = (ptrdiff_t)u->infs;
    t.outside = (ptrdiff_t)u->outside;
    return t;
}

/* Add (high + low) in `bin`. The smaller bin is scaled up to the larger: what then underflows is beyond the last bit. */
static inline void gc_fold(gc_total *into, long double high, long double low, int64_t bin, double ord)
{
    if (high == 0 && low == 0) /* a block far below the segment's bound has all of its sum in low */
        return;
    if (into->high == 0 && into->low == 0) {
        into->high = high;
        into->low = low;
        into->bin = bin;
        return;
    }
    if (bin != into->bin) {
        const int64_t apart = bin > into->bin ? bin - into->bin : into->bin - bin;
        const int down = -gc_bin_width(ord) * (int)(apart < GC_FAR ? apart : GC_FAR);
        if (bin < into->bin) {
            high = ldexpl(high, down);
            low = ldexpl(low, down);
        } else {
            into->high = ldexpl(into->high, down);
            into->low = ldexpl(into->low, down);
            into->bin = bin;
        }
    }
    into->low += gc_two_sum_long(&into->high, high) + low;
}

static inline void gc_merge(gc_total *into, const gc_total *t, double ord)
{
    gc_fold(into, t->high, t->low, t->bin, ord);
    if (t->amax > into->amax)
        into->amax = t->amax;
    into->nans += t->nans;
    into->infs += t->infs;
    into->outside += t->outside;
}

#endif
