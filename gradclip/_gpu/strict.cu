/* Bounds that hold in exact arithmetic: sums beside the power of a bound, and factors that shrink until what would be
 * written keeps it: `enforce` and `shrink_step` of _core/strict.py in pairs of float64. */
#define ERROR 0x1p-70  /* above that of a Sum, which is below 2**-72, and of the quotient */
#define MARGIN 0x1p-60 /* what _core/strict.py takes for it in factors, and for rounded moduli */

__device__ bool is_rational(double ord) { return ord == 0 || ord == 1 || ord == 2; }

/* (bound * grad_scale)**ord, exactly where grad_scale is 1. */
__device__ gc_wide power_of(double bound, double grad_scale, double ord)
{
    int eb, es;
    bound = frexp(bound, &eb);
    grad_scale = frexp(grad_scale, &es);
    gc_wide w = {bound * grad_scale, 0, eb + es};
    w.tail = fma(bound, grad_scale, -w.head);
    if (ord == 2) {
        const double square = w.head * w.head;
        w.tail = fma(w.head, w.head, -square) + 2 * w.head * w.tail;
        w.head = square;
        w.exponent *= 2;
    }
    return w;
}

/* (bound * grad_scale)**ord / sum; above 1 where nothing was summed. */
__device__ gc_wide quotient(const Sum *s, double bound, double grad_scale, double ord)
{
    const gc_wide sum = gc_sum_of(s, ord), power = power_of(bound, grad_scale, ord);
    if (sum.head == 0)
        return gc_normalized(2, 0, 0);
    const double q = power.head / sum.head, rest = (fma(-q, sum.head, power.head) + (power.tail - q * sum.tail)) / sum.head;
    return gc_normalized(q, rest, power.exponent - sum.exponent);
}

__device__ bool below(gc_wide q, double one_and) { return ldexp(q.head, q.exponent) - 1 < one_and - ldexp(q.tail, q.exponent); }

/* A norm of order 1, 2 or inf is at most a bound, above it, or too close for its sum to tell. */
enum { WITHIN, ABOVE, CLOSE };

__device__ int side_of(const Sum *s, double bound, double grad_scale, double ord)
{
    const gc_wide q = quotient(s, bound, grad_scale, ord);
    const double error = ord == 0 ? 0 : ERROR;
    return !below(q, error) ? WITHIN : below(q, -error) ? ABOVE : CLOSE;
}

/* Whether a norm of order 1 or 2 is at most a bound, where its sum can be shown to be exact; else false. n terms lose at most
 * 2 * n - 1 parts, in additions and squares: multiples of the last bit of a term, none above 2**-53 of the sum. They add up
 * without rounding where that takes no more than 53 bits. */
__device__ bool exactly_within(const Sum *s, double bound, double ord)
{
    const gc_wide sum = gc_sum_of(s, ord), power = power_of(bound, 1, ord);
    int size, more;
    frexp(sum.head, &size);
    frexp((double)(2 * s->outside - 2), &more);
    if (size + sum.exponent + more > 106 + (int)ord * s->first)
        return false;
    const int shift = sum.exponent - power.exponent;
    const double head = ldexp(sum.head, shift);
    return head < power.head || (head == power.head && ldexp(sum.tail, shift) <= power.tail);
}

__device__ void shrink(Write *w, double ratio)
{
    w->clips = 1;
    gc_shrink(&w->factor, ratio);
}

/* A step, whose products are not rounded to a gradient: its factor alone keeps the bound. exact: the sum is that of the
 * order, and not of rounded moduli or powers, whose norms are right to `safety`. */
__device__ void shrink_step(Write *w, const Sum *s, double threshold, double grad_scale, double ord, bool exact, double safety)
{
    if (threshold == GC_INF || w->factor.last == 0 || (!w->clips && grad_scale == 1))
        return;
    if (!exact) {
        shrink(w, 2 * safety - 1);
        return;
    }
    const gc_wide q = quotient(s, threshold, 1, ord);
    for (;;) {
        gc_wide left = q;
        for (int k = 0; k < (ord == 2 ? 2 : 1); k++) {
            left = gc_divide(left, w->factor.last);
            left.exponent -= (int)w->factor.shift;
        }
        if (!below(left, MARGIN))
            return;
        shrink(w, 1 - 0x1p-53);
    }
}

/* What brings a written norm to its bound; above 1 where it certainly keeps it. */
__device__ double ratio_to(const Sum *written, double bound, double ord, double safety)
{
    if (written->nans + written->infs)
        return 0.5; /* overflow is above any bound */
    if (!is_rational(ord)) {
        const double norm = gc_narrow(gc_norm_of(written, ord, 1));
        return norm > bound * safety ? bound * safety / norm : 2;
    }
    const double margin = ord == 0 ? 0 : MARGIN, error = ord == 0 ? 0 : written->first == INEXACT ? MARGIN : ERROR;
    const gc_wide q = quotient(written, bound, 1, ord);
    if (!below(q, error) || (ord != 0 && exactly_within(written, bound, ord)))
        return 2;
    const double power = ldexp(q.head + (q.tail - q.head * margin), q.exponent);
    return ord == 2 ? sqrt(power) : power;
}

enum { LATE = 2 }; /* open, a round behind the processor */

/* One round, a thread for each Write that is still open: it is closed, or shrinks. rounding: of the last round, after which
 * nothing is measured again; else null. most: the largest number of what is written, Inf if dtypes differ. unit: what was measured
 * before. */
KERNEL(enforce, )(const Sum *written, const Sum *unit, i64 n, const double *thresholds, double threshold, double eps,
                  double ord, double grad_scale, double safety, double slack, double most, const gc_rounding_bound *rounding,
                  i64 *open, Write *writes)
{
    const i64 i = (i64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n || !open[i])
        return;
    if (thresholds)
        threshold = thresholds[i];
    Write *w = writes + i;
    if (w->kind == GC_KEEP) { /* `decide_units` could not tell: it was measured again, as it is, with what note_bits finds */
        if (exactly_within(written + i, threshold, ord)) {
            const Write kept = {GC_KEEP, 0, w->zero, gc_plain_factor(1)};
            *w = kept;
            open[i] = 0;
            return;
        }
        w->kind = GC_SCALE;
        if (w->factor.value < 1 && !rounding) { /* by eps: that is yet to be measured, a round late */
            open[i] = LATE;
            return;
        }
    }
    if (open[i] == LATE)
        slack = fmax(slack / 2, 0x1p-53);
    const double largest = ldexp(unit[i].amax, (int)unit[i].exponent);
    if (written[i].nans + written[i].infs > 0 && !rounding && gc_keep_finite(&w->factor, largest, most)) {
        w->clips = 1;
        return;
    }
    const double ratio = ratio_to(written + i, threshold, ord, safety);
    if (ratio > 1) {
        open[i] = 0;
    } else if (rounding) {
        w->clips = 1;
        const gc_question ask = {ord, eps, grad_scale, 1, 0, 1};
        most = written[i].nans + written[i].infs > 0 ? rounding->most : GC_INF; /* what is finite stays so */
        w->factor = gc_limited_factor(unit + i, gc_safe_threshold(threshold, rounding), &ask, most, largest);
    } else
        shrink(w, ratio * (1 - slack));
}
