/* What one thread does with some elements of one leaf, block by block: gc_measure_segment, gc_write_segment.
 * `k` are the kernels. */
#ifndef GRADCLIP_BLOCKS_H
#define GRADCLIP_BLOCKS_H

#include <math.h>
#include <string.h>
#include "fold.h"
#include "kernels.h"
#include "leaf.h"
#include "pairs.h"
#include "sum_powers.h"
#include "write.h"

enum {
    GC_PROBE = 64,   /* elements that guess for a segment */
    GC_WIDENED = 512 /* elements that a step widens at a time */
};

static inline ptrdiff_t gc_least(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }

static inline int gc_itemsize(int dtype) { return dtype == GC_F64 ? 8 : dtype == GC_F32 ? 4 : 2; }

/* Elements first .. first + n, contiguous: in place, or gathered into the buffer. */
static inline const char *gc_fetch(const gc_leaf *leaf, ptrdiff_t first, ptrdiff_t n, char *buffer)
{
    if (leaf->ndim == 0)
        return leaf->data + first * leaf->itemsize;
    gc_move(leaf, first, n, buffer, 0);
    return buffer;
}

/* y = x * 2**binades in two exact steps: one could leave the range that both stay in. */
static inline void gc_shift(const gc_kernels *k, int dtype, void *y, const void *x, ptrdiff_t n, int binades)
{
    const int half = binades / 2;
    k->scale[dtype](y, x, n, ldexp(1, half));
    k->scale[dtype](y, y, n, ldexp(1, binades - half));
}

/* y -= x * factor; elements of two dtypes, or a factor beyond float64, meet in float64. */
static inline void gc_step(const gc_kernels *k, int to, char *y, int from, const char *x, ptrdiff_t n, gc_factor factor)
{
    double a[GC_WIDENED], b[GC_WIDENED];
    if (from == to && factor.shift == 0) {
        k->step[from](y, x, n, factor.last);
        return;
    }
    for (ptrdiff_t i = 0; i < n; i += GC_WIDENED) {
        const ptrdiff_t m = gc_least(GC_WIDENED, n - i);
        k->widen[to](a, y + i * gc_itemsize(to), m);
        k->widen[from](b, x + i * gc_itemsize(from), m);
        if (factor.shift)
            gc_shift(k, GC_F64, b, b, m, (int)factor.shift);
        k->step[GC_F64](a, b, m, factor.last);
        k->narrow[to](y + i * gc_itemsize(to), a, m);
    }
}

/* y = x * factor, each rounded once to another dtype. y may be x: of a wider dtype it is then written from its end on. */
static inline void gc_cast(const gc_kernels *k, int to, char *y, int from, const char *x, ptrdiff_t n, gc_factor factor)
{
    double a[GC_WIDENED], f[GC_WIDENED];
    const int backwards = y == x && gc_itemsize(to) > gc_itemsize(from);
    for (ptrdiff_t i = 0; i < gc_least(GC_WIDENED, n); i++)
        f[i] = factor.last;
    for (ptrdiff_t done = 0; done < n; done += GC_WIDENED) {
        const ptrdiff_t m = gc_least(GC_WIDENED, n - done), i = backwards ? n - done - m : done;
        k->widen[from](a, x + i * gc_itemsize(from), m);
        if (factor.shift)
            gc_shift(k, GC_F64, a, a, m, (int)factor.shift);
        k->cast[to](y + i * gc_itemsize(to), a, f, m);
    }
}

/* What `gc_alter` does where y has another dtype and nothing is subtracted. Of values it is the clamped one that is rounded. */
static inline void gc_alter_to(const gc_kernels *k, const gc_write *w, int dtype, char *y, int t, const char *x, ptrdiff_t n,
                               char *spare)
{
    if (w->zero) {
        k->zero_nonfinite[t](spare, x, n);
        x = spare;
    }
    if (w->kind == GC_CLAMP) {
        k->clamp[t](spare, x, n, w->low[t], w->high[t]);
        x = spare;
    }
    gc_cast(k, dtype, y, t, x, n, w->kind == GC_SCALE ? w->factor : gc_plain_factor(1));
}

/* y = what the plan makes of n elements x of a leaf (contiguous; y may be x, and spare, one block, may be y unless there is a
 * step). y may be of another dtype, `dtype`. */
static inline void gc_alter(const gc_kernels *k, const gc_write *w, int dtype, char *y, const gc_leaf *leaf, const char *x,
                            ptrdiff_t n, char *spare)
{
    const int t = leaf->dtype;
    ptrdiff_t ignored = 0;
    char *to = w->kind == GC_STEP ? spare : y;
    if (dtype != t && w->kind != GC_STEP) {
        gc_alter_to(k, w, dtype, y, t, x, n, spare);
        return;
    }
    if (w->zero) {
        if (leaf->is_complex) {
            memmove(to, x, (size_t)(n * leaf->itemsize));
            gc_pair_zero(to, n, t, &ignored, &ignored);
        } else
            k->zero_nonfinite[t](to, x, n);
        x = to;
    }
    if (w->kind == GC_SCALE) {
        if (w->factor.shift) {
            gc_shift(k, t, y, x, n, (int)w->factor.shift);
            x = y;
        }
        k->scale[t](y, x, n, w->factor.last);
    } else if (w->kind == GC_CLAMP)
        k->clamp[t](y, x, n, w->low[t], w->high[t]);
    else if (w->kind == GC_STEP)
        gc_step(k, dtype, y, t, x, n, w->factor);
    else if (x != y)
        memmove(y, x, (size_t)(n * leaf->itemsize));
}

static inline gc_sum gc_sum_block(const gc_kernels *k, double ord, int dtype, const void *x, ptrdiff_t n, double bound)
{
    return ord == 2 ? k->sum_squares[dtype](x, n, bound) : k->sum_abs[dtype](x, n, bound);
}

static inline int gc_is_usual(double amax) { return GC_TINY <= amax && amax <= GC_HUGE; }

/* Sum a block of real numbers in one reading, or say (0) that it takes more.
 *
 * Its elements are taken to lie below `bound`, a guess that the first elements of the segment make and that the kernel checks
 * as it sums; so few that each has a lane need none. */
static inline int gc_sum_at_once(const gc_kernels *k, double ord, int dtype, const void *x, ptrdiff_t n, double *bound,
                                 gc_sum *s)
{
    if (ord != 2 && ord != 1)
        return 0;
    if (ord == 2 && n <= GC_LANES) {
        *s = k->sum_squares[dtype](x, n, 0);
        return gc_is_usual(s->amax) || s->amax == 0;
    }
    if (*bound == 0) {
        const double amax = k->amax[dtype](x, gc_least(n, GC_PROBE));
        if (!gc_is_usual(amax))
            return 0;
        *bound = gc_bound(amax, 3);
    }
    *s = gc_sum_block(k, ord, dtype, x, n, *bound);
    return s->amax <= *bound;
}

static inline gc_sum gc_nothing(void)
{
    const gc_sum s = {0, 0, 0};
    return s;
}

/* Add one block sum to another, by TwoSum. */
static inline void gc_add(gc_sum *into, const gc_sum *s)
{
    into->low += gc_two_sum(&into->high, s->high) + s->low;
    if (s->amax > into->amax)
        into->amax = s->amax;
}

/* Add the sum of usual blocks to a total. */
static inline void gc_fold_usual(gc_total *into, const gc_sum *usual, double ord)
{
    gc_fold(into, usual->high, usual->low, 0, ord);
    if (usual->amax > into->amax)
        into->amax = usual->amax;
}

/* Add the p-th powers of a block of finite elements; wide: room for a block. */
static inline void gc_measure_powers(const gc_kernels *k, const gc_leaf *leaf, const void *x, ptrdiff_t n, double p,
                                     double *wide, gc_total *into)
{
    int64_t bin = 0;
    int exponent = 0;
    gc_sum s;
    if (!leaf->is_complex) {
        k->widen[leaf->dtype](wide, x, n);
        s = gc_sum_powers(wide, n, 0, p, &bin);
        gc_fold(into, s.high, s.low, bin, p);
        return;
    }
    for (int small = 0; small < 2; small++) {
        gc_pair_abs_of(wide, x, n, leaf->dtype, small, &exponent);
        s = gc_sum_powers(wide, n / 2, exponent, p, &bin);
        gc_fold(into, s.high, s.low, bin, p);
    }
}

/* Count the elements of a block that are not finite; returns the block with 0 in their places, in the buffer. */
static inline const char *gc_without_nonfinite(const gc_kernels *k, const gc_leaf *leaf, const char *x, ptrdiff_t n,
                                               char *buffer, gc_total *into)
{
    const int t = leaf->dtype;
    if (leaf->is_complex) {
        memmove(buffer, x, (size_t)(n * leaf->itemsize));
        gc_pair_zero(buffer, n, t, &into->nans, &into->infs);
    } else {
        into->nans += k->count_nan[t](x, n);
        into->infs += k->count_inf[t](x, n);
        k->zero_nonfinite[t](buffer, x, n);
    }
    return buffer;
}

/* What a pass over some leaves measures, and what it does with their elements besides. */
typedef struct {
    double ord;
    const gc_write *bounds; /* null, or bounds beyond which elements are counted */
    const gc_write *made;   /* null, or what is measured as if it was already done */
    const gc_leaf *to; /* null, or, with bounds, the leaf to which elements are written once they are within the bounds */
} gc_reading;

/* What the blocks of a segment have in common: how they are read, and what they share. */
typedef struct {
    const gc_reading *how;
    char *gathered; /* room for a block of a strided leaf */
    char *buffer; /* room for a block of the widest dtype: the same, unless elements are still needed once they are measured */
    double bound; /* of the segment alone, so that it is a function of position; 0: none yet */
    gc_sum usual; /* the sum of its usual blocks, in pairs of float64 */
} gc_segment;

/* room: of a thread, for two blocks of the widest dtype. */
static inline gc_segment gc_start_segment(const gc_reading *how, char *room)
{
    const gc_segment g = {how, how->bounds ? room + GC_BLOCK * sizeof(double) : room, room, 0, {0, 0, 0}};
    return g;
}

/* Bring n elements x of a leaf, which were measured, within the bounds; returns how many lay outside.
 *
 * amax: the largest magnitude of x, not finite if some element is not. In place nothing is stored where nothing changes, nor
 * where an element is not finite: the first such element has to be found before it is overwritten. */
static inline ptrdiff_t gc_hold(const gc_kernels *k, const gc_leaf *leaf, ptrdiff_t first, const char *x, ptrdiff_t n,
                                double amax, const gc_segment *g)
{
    const int t = leaf->dtype;
    const double low = g->how->bounds->low[t], high = g->how->bounds->high[t];
    const gc_leaf *to = g->how->to;
    if (to && to->dtype != t) {
        const ptrdiff_t outside = k->clamp[t](g->buffer, x, n, low, high);
        gc_cast(k, to->dtype, to->ndim ? g->buffer : to->data + first * to->itemsize, t, g->buffer, n, gc_plain_factor(1));
        if (to->ndim)
            gc_move(to, first, n, g->buffer, 1);
        return outside;
    }
    if (to == NULL || to->data == leaf->data) {
        if (amax <= high && -amax >= low)
            return 0;
        if (to == NULL || !isfinite(amax))
            return k->count_outside[t](x, n, low, high);
        ptrdiff_t inside =
            amax > high && -amax < low ? -1 : 0; /* one is outside, whatever its sign; or it has to be looked for */
        while (0 <= inside && inside < n) {
            const ptrdiff_t m = gc_least(GC_WIDENED, n - inside);
            if (k->count_outside[t](x + inside * leaf->itemsize, m, low, high))
                break;
            inside += m;
        }
        if (inside == n)
            return 0;
    }
    char *y = to->ndim == 0 ? to->data + first * to->itemsize : g->gathered;
    const ptrdiff_t outside = k->clamp[t](y, x, n, low, high);
    if (to->ndim)
        gc_move(to, first, n, y, 1);
    return outside;
}

/* Add n elements x of a leaf to a total, or to `usual`; returns their largest magnitude, not finite if some element is not.
 *
 * The usual block is read once. Where its bound is not kept, and for whatever is not finite, out of range or complex, the
 * largest magnitude is found first. */
static inline double gc_measure_elements(const gc_kernels *k, const gc_leaf *leaf, const char *x, ptrdiff_t n, gc_segment *g,
                                         gc_total *into)
{
    const double ord = g->how->ord;
    int t = leaf->dtype, bin = 0;
    gc_sum s;
    if (!leaf->is_complex && gc_sum_at_once(k, ord, t, x, n, &g->bound, &s)) {
        gc_add(&g->usual, &s);
        return s.amax;
    }
    double amax = k->amax[t](x, n);
    const double all = amax;
    if (!isfinite(amax)) {
        x = gc_without_nonfinite(k, leaf, x, n, g->buffer, into);
        amax = k->amax[t](x, n);
    }
    if (leaf->is_complex)
        into->amax = gc_pair_amax(x, n, t, into->amax);
    else if (amax > into->amax)
        into->amax = amax;
    if (amax == 0 || ord == 0)
        return all;
    if (ord != 1 && ord != 2) {
        gc_measure_powers(k, leaf, x, n, ord, (double *)(void *)g->buffer + GC_BLOCK, into);
        return all;
    }
    if (t == GC_F64 && !gc_is_usual(amax)) {
        bin = amax > GC_HUGE ? 1 : -1;
        k->scale[t](g->buffer, x, n, ldexp(1, -GC_SHIFT * bin));
        x = g->buffer;
        amax = ldexp(amax, -GC_SHIFT * bin);
    } else if (amax > g->bound)
        g->bound = gc_bound(amax, 2);
    if (ord == 1 && leaf->is_complex) {
        gc_pair_abs((double *)(void *)g->buffer, x, n, t);
        x = g->buffer;
        n /= 2;
        t = GC_F64;
        amax = k->amax[t](x, n);
    }
    s = gc_sum_block(k, ord, t, x, n, gc_bound(amax, 0));
    gc_fold(into, s.high, s.low, bin, ord);
    return all;
}

/* A leaf as one of the dtype that it becomes: what is known of its elements, not where they lie. */
static inline gc_leaf gc_made_of(const gc_leaf *leaf)
{
    gc_leaf made = *leaf;
    made.dtype = leaf->becomes;
    made.itemsize = (uint8_t)gc_itemsize(leaf->becomes);
    return made;
}

/* Measure one block: of the leaf as it is, or as `made` would make it; and bring it within the bounds, if there are any. */
static inline void gc_measure_block(const gc_kernels *k, const gc_leaf *leaf, ptrdiff_t first, ptrdiff_t n, gc_segment *g,
                                    gc_total *into)
{
    const char *x = gc_fetch(leaf, first, n, g->gathered);
    if (g->how->made) {
        gc_alter(k, g->how->made, leaf->becomes, g->buffer, leaf, x, n, g->buffer);
        x = g->buffer;
        if (leaf->becomes != leaf->dtype) {
            const gc_leaf made = gc_made_of(leaf);
            gc_measure_elements(k, &made, x, n, g, into);
            return;
        }
    }
    const double amax = gc_measure_elements(k, leaf, x, n, g, into);
    if (g->how->bounds)
        into->outside += gc_hold(k, leaf, first, x, n, amax, g);
}

/* Some elements of one unit into a fresh total. room: of this thread. */
static inline void gc_measure_segment(const gc_kernels *k, const gc_leaf *leaf, ptrdiff_t first, ptrdiff_t end,
                                      const gc_reading *how, char *room, gc_total *into)
{
    gc_segment g = gc_start_segment(how, room);
    gc_clear(into);
    for (; first < end; first += GC_BLOCK)
        gc_measure_block(k, leaf, first, gc_least(GC_BLOCK, end - first), &g, into);
    gc_fold_usual(into, &g.usual, how->ord);
}

/* Some elements of one unit, backwards, to what the plan makes of its source. */
static inline void gc_write_segment(const gc_kernels *k, const gc_leaf *to, const gc_leaf *source, ptrdiff_t first,
                                    ptrdiff_t end, const gc_write *w, char *room)
{
    const int t = source->dtype;
    char *buffer = room, *spare = room + GC_BLOCK * sizeof(double); /* a block of the widest dtype, and one to spare */
    if (w->kind == GC_KEEP && !w->zero && to->data == source->data)
        return;
    const int spares = w->kind == GC_CLAMP || (w->zero && (w->kind == GC_STEP || to->dtype != t)); /* needs the spare block */
    if (to->ndim == 0 && source->ndim == 0 && !spares) {
        /* in one go: prefetchers follow a long run, not blocks backwards */
        gc_alter(k, w, to->dtype, to->data + first * to->itemsize, source, source->data + first * source->itemsize, end - first,
                 NULL);
        return;
    }
    while (end > first) {
        const ptrdiff_t n = (end - first - 1) % GC_BLOCK + 1;
        end -= n;
        const char *x = gc_fetch(source, end, n, spare);
        if (w->kind == GC_CLAMP && to->data == source->data &&
            k->count_outside[t](x, n, w->low[t], w->high[t]) == 0) /* nothing is stored where nothing changes */
            continue;
        char *y = to->ndim == 0 ? to->data + end * to->itemsize : buffer;
        if (to->ndim && w->kind == GC_STEP)
            gc_move(to, end, n, buffer, 0);
        gc_alter(k, w, to->dtype, y, source, x, n, spare);
        if (to->ndim)
            gc_move(to, end, n, buffer, 1);
    }
}

#endif
