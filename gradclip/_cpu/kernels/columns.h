/* Panels: some rows of some units that are the columns of a matrix, worked on row by row as memory has them.
 *
 * A column's sum is a pair of doubles, in every panel that has a part of it and of all these parts: to fold each into long
 * doubles took a tenth of the pass. What a pair does not hold (an element that is not finite, or out of range) makes a part
 * odd: that has a total. `k` are the kernels. */
#ifndef GRADCLIP_COLUMNS_H
#define GRADCLIP_COLUMNS_H

#include <float.h>
#include <math.h>
#include "blocks.h"
#include "fold.h"
#include "work.h"

enum { GC_ABREAST = 64 }; /* columns whose parts are added side by side */

/* The sums of one panel, a number for each column. */
typedef struct {
    gc_total *odd; /* of those that are odd */
    double *high;  /* of those that are not: high + low */
    double *low;
    double *amax;  /* INFINITY: this one is odd */
} gc_columns;

/* Where a panel keeps its sums: the arrays from the start of a cache line on, as vectors fill one. */
static inline gc_columns gc_columns_of(gc_total *slot, const gc_group *g)
{
    gc_columns c;
    c.odd = slot + g->slot;
    c.high = (double *)(((uintptr_t)(c.odd + g->count) + GC_LINE - 1) / GC_LINE * GC_LINE);
    c.low = c.high + gc_padded(g->count);
    c.amax = c.low + gc_padded(g->count);
    return c;
}

/* Sum a panel: a pair for each column, or a total. room: of this thread. */
static inline void gc_measure_panel(const gc_kernels *k, const gc_leaf *leaf, const gc_group *g, double ord, gc_total *slot,
                                    char *room)
{
    const int ranged = leaf->dtype == GC_F64 && ord != 0;
    const double least = ranged ? GC_TINY : 0, most = ranged ? GC_HUGE : DBL_MAX;
    const ptrdiff_t stride = leaf->axes[1];
    const gc_reading how = {ord, NULL, NULL, NULL};
    gc_columns c = gc_columns_of(slot, g);
    k->sum_columns[leaf->dtype](leaf->data + g->first * stride + g->unit * leaf->itemsize, stride, g->rows, g->count,
                                ord == 2 ? 2 : 1, c.high, c.low, c.amax);
    for (ptrdiff_t j = 0; j < g->count; j++) {
        if (ord == 0)
            c.high[j] = c.low[j] = 0;
        if ((least <= c.amax[j] && c.amax[j] <= most) || c.amax[j] == 0)
            continue;
        c.high[j] = c.low[j] = 0;
        c.amax[j] = INFINITY;
        const gc_leaf column = gc_unit(leaf, g->unit + j);
        gc_measure_segment(k, &column, g->first, g->first + g->rows, &how, room, &c.odd[j]);
    }
}

/* n sums += n others, by TwoSum. */
static inline void gc_add_pairs(double *high, double *low, const double *h, const double *l, ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < n; i++)
        low[i] += gc_two_sum(high + i, h[i]) + l[i];
}

static inline void gc_raise_to(double *amax, const double *other, ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < n; i++)
        amax[i] = other[i] > amax[i] ? other[i] : amax[i];
}

/* The total of a column that has an odd part. */
static inline gc_total gc_odd_column(gc_total *slot, const gc_group *g, ptrdiff_t parts, ptrdiff_t j, double ord)
{
    gc_total sum;
    gc_clear(&sum);
    for (ptrdiff_t i = 0; i < parts; i++) {
        const gc_columns c = gc_columns_of(slot, g + i);
        if (c.amax[j] == INFINITY)
            gc_merge(&sum, &c.odd[j], ord);
        else {
            gc_fold(&sum, c.high[j], c.low[j], 0, ord);
            sum.amax = sum.amax > c.amax[j] ? sum.amax : c.amax[j];
        }
    }
    return sum;
}

/* Panels that lie below each other, so many from `g` on, to what was measured of each column and to the total. */
static inline void gc_complete_columns(gc_total *slot, const gc_group *g, ptrdiff_t parts, double ord, gc_measured *unit,
                                       gc_total *total)
{
    double high[2][GC_ABREAST], low[2][GC_ABREAST], amax[2][GC_ABREAST]; /* of some columns; of all, in so many lanes */
    for (ptrdiff_t j = 0; j < GC_ABREAST; j++)
        high[1][j] = low[1][j] = amax[1][j] = 0;
    for (ptrdiff_t start = 0; start < g->count; start += GC_ABREAST) {
        const ptrdiff_t n = gc_least(GC_ABREAST, g->count - start);
        for (ptrdiff_t j = 0; j < GC_ABREAST; j++)
            high[0][j] = low[0][j] = amax[0][j] = 0;
        for (ptrdiff_t i = 0; i < parts; i++) {
            const gc_columns c = gc_columns_of(slot, g + i);
            gc_add_pairs(high[0], low[0], c.high + start, c.low + start, n);
            gc_raise_to(amax[0], c.amax + start, n);
        }
        for (ptrdiff_t j = 0; j < n; j++) {
            gc_measured *u = unit + start + j;
            if (amax[0][j] < INFINITY) {
                const gc_measured usual = {high[0][j], low[0][j], 0, amax[0][j], 0, 0, 0, 0};
                *u = usual;
                continue;
            }
            const gc_total sum = gc_odd_column(slot, g, parts, start + j, ord);
            gc_complete(u, &sum);
            gc_merge(total, &sum, ord);
            high[0][j] = low[0][j] = amax[0][j] = 0;
        }
        gc_add_pairs(high[1], low[1], high[0], low[0], GC_ABREAST);
        gc_raise_to(amax[1], amax[0], GC_ABREAST);
    }
    for (ptrdiff_t n = GC_ABREAST / 2; n; n /= 2) {
        gc_add_pairs(high[1], low[1], high[1] + n, low[1] + n, n);
        gc_raise_to(amax[1], amax[1] + n, n);
    }
    gc_fold(total, high[1][0], low[1][0], 0, ord);
    if (amax[1][0] > total->amax)
        total->amax = amax[1][0];
}

/* The rows of a panel, each element times the factor of its column and rounded once to another dtype. */
static inline void gc_cast_panel(const gc_kernels *k, const gc_leaf *to, const gc_leaf *source, const gc_group *g,
                                 const double *factors)
{
    double a[GC_WIDENED];
    for (ptrdiff_t i = g->first; i < g->first + g->rows; i++) {
        const char *x = source->data + i * source->axes[1] + g->unit * source->itemsize;
        char *y = to->data + i * to->axes[1] + g->unit * to->itemsize;
        for (ptrdiff_t j = 0; j < g->count; j += GC_WIDENED) {
            const ptrdiff_t m = gc_least(GC_WIDENED, g->count - j);
            k->widen[source->dtype](a, x + j * source->itemsize, m);
            k->cast[to->dtype](y + j * to->itemsize, a, factors + j, m);
        }
    }
}

/* Scale some rows of some columns; 0 where a column needs more than that. per_unit: whether each column has a write of its own;
 * factors: room for GC_PANEL. */
static inline int gc_write_panel(const gc_kernels *k, const gc_leaf *to, const gc_leaf *source, const gc_group *g,
                                 const gc_write *w, int per_unit, double *factors)
{
    int idle = to->data == source->data;
    const double largest = to->itemsize == 2 ? 3e38 : INFINITY, smallest = to->itemsize == 2 ? 1.2e-38 : 0;
    for (ptrdiff_t j = 0; j < g->count; j++) {
        if (w->zero || w->kind > GC_SCALE || w->factor.shift)
            return 0;
        factors[j] = w->kind == GC_SCALE ? w->factor.last : 1;
        if (factors[j] != 0 && !(smallest <= fabs(factors[j]) && fabs(factors[j]) <= largest))
            return 0;
        idle = idle && w->kind == GC_KEEP;
        w += per_unit;
    }
    if (to->dtype != source->dtype)
        gc_cast_panel(k, to, source, g, factors);
    else if (!idle)
        k->scale_columns[to->dtype](to->data + g->first * to->axes[1] + g->unit * to->itemsize, to->axes[1],
                                    source->data + g->first * source->axes[1] + g->unit * source->itemsize, source->axes[1],
                                    g->rows, g->count, factors);
    return 1;
}

#endif
