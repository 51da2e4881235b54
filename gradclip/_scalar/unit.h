/* A unit is what shares one norm and one factor: what a read pass found of it, and what is decided. */
#ifndef GRADCLIP_UNIT_H
#define GRADCLIP_UNIT_H

#ifndef GC_CUDA
#include "factor.h"
#include "powers.h"
#endif

/* The sum behind the norm is (high + low) * 2**(gc_bin_width(ord) * bin), over finite elements. */
typedef struct {
    double high, low;
    gc_i64 bin;
    double amax; /* the largest finite magnitude is amax * 2**exponent: that of a complex number may lie beyond float64 */
    gc_i64 exponent;
    gc_i64 nans, infs, outside; /* elements that are NaN, Inf, or beyond bounds that were given */
} gc_measured;

/* Binades of a bin: sums of squares move by twice as many as elements. */
GC_SCALAR int gc_bin_width(double ord) { return ord == 2 ? 2 * GC_SHIFT : GC_SHIFT; }

/* The sum behind a norm (ord 0, which stands for inf: the norm); of orders other than 1, 2 and inf without its bin. */
GC_SCALAR gc_wide gc_sum_of(const gc_measured *u, double ord)
{
    gc_wide w;
    if (ord == 0) {
        w.head = frexp(u->amax, &w.exponent);
        w.tail = 0;
        w.exponent += (int)u->exponent;
        return w;
    }
    return gc_normalized(u->high, u->low, ord == 1 || ord == 2 ? gc_bin_width(ord) * (int)u->bin : 0);
}

/* The norm of the true gradient. */
GC_SCALAR gc_wide gc_norm_of(const gc_measured *u, double ord, double grad_scale)
{
    gc_wide w = gc_sum_of(u, ord);
    if (ord == 2 && w.head > 0)
        w = gc_square_root(w);
    else if (ord != 0 && ord != 1 && w.head > 0) {
        w.head = gc_root(w.head, w.tail, u->bin, ord, &w.exponent);
        w.tail = 0;
    }
    return grad_scale == 1 ? w : gc_divide(w, grad_scale);
}

/* Its float64 as IEEE arithmetic has it, or of the finite elements alone. */
GC_SCALAR double gc_shown_norm(const gc_measured *u, double ord, double grad_scale, int finite_only)
{
    if (!finite_only && u->nans + u->infs > 0)
        return u->nans ? GC_NAN : GC_INF;
    return gc_narrow(gc_norm_of(u, ord, grad_scale));
}

/* What is written of a unit. GC_LEAVE: not even a copy. */
enum { GC_KEEP, GC_SCALE, GC_CLAMP, GC_STEP, GC_LEAVE };

/* What is asked of a unit. */
typedef struct {
    double ord, eps, grad_scale;
    int finite_only; /* norms leave NaN and Inf out */
    int normalize;   /* to a finite threshold wherever there is a norm, up or down */
    int held;        /* a factor that rounds to 1 is still to be enforced */
} gc_question;

/* Whether a unit is brought to its threshold, by its norm in float64. */
GC_SCALAR int gc_exceeds(const gc_measured *u, double threshold, const gc_question *ask)
{
    if (!ask->finite_only && u->nans + u->infs > 0)
        return threshold != GC_INF;
    return ask->normalize ? u->amax > 0 && threshold != GC_INF : gc_shown_norm(u, ask->ord, ask->grad_scale, 1) > threshold;
}

/* The kind and the factor of a unit that is brought to its threshold or, where *clips is 0, only unscaled. */
GC_SCALAR int gc_decide(const gc_measured *u, double threshold, const gc_question *ask, int *clips, gc_factor *factor)
{
    const gc_wide one = {1, 0, 0};
    *factor = gc_plain_factor(1);
    if (!*clips) {
        if (ask->grad_scale == 1)
            return GC_KEEP;
        *factor = gc_factor_of(1, one, 0, ask->grad_scale);
        return GC_SCALE;
    }
    if (!ask->finite_only && u->nans + u->infs > 0) /* as IEEE and PyTorch have it: threshold / inf or threshold / nan */
        *factor = gc_plain_factor(u->nans ? GC_NAN : 0);
    else
        *factor = gc_factor_of(threshold, gc_norm_of(u, ask->ord, ask->grad_scale), ask->eps, ask->grad_scale);
    if (factor->value == 1 && !ask->held) {
        *clips = 0;
        return GC_KEEP;
    }
    return GC_SCALE;
}

/* The factor that brings a unit to another threshold, but no element above `most` unless it is already; `largest`: the magnitude
 * of its largest. */
GC_SCALAR gc_factor gc_limited_factor(const gc_measured *u, double threshold, const gc_question *ask, double most,
                                      double largest)
{
    const gc_factor f = gc_factor_of(threshold, gc_norm_of(u, ask->ord, ask->grad_scale), ask->eps, ask->grad_scale);
    const double ratio = most / largest, limit = ratio < 1 ? 1 : ratio;
    return f.value > limit ? gc_plain_factor(limit) : f;
}

/* Shrink a factor, so that it carries no element of a magnitude up to `amax` beyond `most`; returns whether it had to. */
GC_SCALAR int gc_keep_finite(gc_factor *f, double amax, double most)
{
    gc_wide largest = {amax, 0, 0};
    int exponent, more;
    if (!(amax < GC_INF))
        largest.head = 0x1.fffffffffffffp1023; /* a modulus may lie beyond, its parts do not */
    const double product = frexp(f->last, &exponent) * frexp(largest.head, &more);
    if (!(ldexp(product, exponent + more + (int)f->shift) > most))
        return 0;
    *f = gc_factor_of(most, largest, 0, 1);
    return 1;
}

/* The threshold of adaptive clipping from what was measured of a unit's parameters, clip_factor * max(norm, eps); Inf where
 * one of them is not finite. */
GC_SCALAR double gc_adaptive_threshold(const gc_measured *weight, double clip_factor, double eps, double ord)
{
    if (weight->nans + weight->infs > 0 || clip_factor == GC_INF)
        return GC_INF;
    const double norm = gc_narrow(gc_norm_of(weight, ord, 1));
    if (norm < GC_INF)
        return clip_factor * (norm > eps ? norm : eps);
    return clip_factor * gc_narrow(gc_norm_of(weight, ord, 0x1p64)) * 0x1p64; /* a norm beyond float64 */
}

#endif
