/* From sums to what is written: one thread per unit. A unit is decided by gc_decide (_scalar/unit.h), as on the host, where
 * Plan.decide (_cpu/plan.pyx) asks it. BY_LEAF is of sum_samples alone: writes differ by leaf. */
enum {
    NORMALIZE = 1,
    FINITE_ONLY = 2,
    SKIP = 4,
    KEEP_OUT = 8,
    STEPS = 16,
    CLAMPS = 32,
    BOUNDS = 64,
    KEPT = 128,
    STRICT = 256,
    EXACT = 512,
    BY_LEAF = 1024
};

__device__ bool shows_nonfinite(const Sum *s, i64 flags) { return s->nans + s->infs > 0 && !(flags & FINITE_ONLY); }

/* Returns whether only an exact sum tells on which side of its threshold the norm is; it then counts as above. */
__device__ bool decide_one(Write *w, const Sum *s, double threshold, const gc_question *ask, double limit, i64 flags)
{
    const bool finite = !shows_nonfinite(s, flags);
    bool close = false;
    int clips;
    if (finite && flags & BOUNDS && threshold < GC_INF) /* a sample that is added as it is must be within the limit */
        clips = !(flags & KEPT ? side_of(s, limit, 1, ask->ord) == WITHIN
                               : gc_shown_norm(s, ask->ord, ask->grad_scale, 1) <= threshold);
    else if (finite && flags & STRICT && !ask->normalize && is_rational(ask->ord)) {
        const int side = threshold < GC_INF ? side_of(s, threshold, ask->grad_scale, ask->ord) : WITHIN;
        clips = side != WITHIN;
        close = side == CLOSE && flags & EXACT;
    } else
        clips = gc_exceeds(s, threshold, ask);
    w->kind = gc_decide(s, threshold, ask, &clips, &w->factor);
    w->clips = clips;
    return close;
}

/* What a launch asks of all units. limit: see BOUNDS. open: null; or whether what a unit becomes is to be held to its threshold by
 * `enforce`. */
struct Asking {
    double eps, ord, grad_scale, lr, limit, safety;
    i64 flags, *open;
    Write *writes;
};

/* Decide about unit i. total: null, unless it is needed for SKIP or to count, as its `outside`, the units that only exact sums
 * decide. */
__device__ void decide_unit(const Sum *s, Sum *total, i64 i, double threshold, const Asking *a)
{
    const i64 flags = a->flags;
    const gc_question ask = {
        a->ord, a->eps, a->grad_scale, (flags & FINITE_ONLY) != 0, (flags & NORMALIZE) != 0, (flags & (BOUNDS | STRICT)) != 0};
    Write w = {GC_KEEP, 0, 0, gc_plain_factor(1)};
    bool close = false;
    if (flags & SKIP && total->nans + total->infs > 0) {
        w.kind = flags & (KEEP_OUT | STEPS) ? GC_LEAVE : GC_KEEP;
    } else if (flags & CLAMPS) {
        w.kind = s->outside ? GC_CLAMP : GC_KEEP;
    } else {
        close = decide_one(&w, s, threshold, &ask, a->limit, flags);
        w.zero = flags & FINITE_ONLY && s->nans + s->infs > 0;
        if (flags & STEPS) {
            w.kind = GC_STEP;
            if (flags & STRICT && !shows_nonfinite(s, flags))
                shrink_step(&w, s, threshold, a->grad_scale, a->ord, flags & EXACT, a->safety);
            gc_multiply(&w.factor, a->lr);
        }
        if (w.zero && flags & BOUNDS) { /* such a sample is left out of the sum */
            w.kind = GC_SCALE;
            w.factor = gc_plain_factor(0);
        }
    }
    if (a->open)
        a->open[i] = w.kind == GC_SCALE && threshold < GC_INF && !shows_nonfinite(s, flags);
    if (close) {
        if (total)
            atomicAdd((u64 *)&total->outside, 1ull);
        if (a->open && a->grad_scale == 1)
            w.kind = GC_KEEP; /* the first round measures it as it is */
    }
    a->writes[i] = w;
}

/* thresholds: one per unit, or null: `threshold` for each. */
KERNEL(decide_units, )(const Sum *unit, Sum *total, i64 n, const double *thresholds, double threshold, double eps, double ord,
                       double grad_scale, double lr, double limit, double safety, i64 flags, i64 *open, Write *writes)
{
    const i64 i = (i64)blockIdx.x * THREADS + threadIdx.x;
    const Asking a = {eps, ord, grad_scale, lr, limit, safety, flags, open, writes};
    if (i < n)
        decide_unit(unit + i, total, i, thresholds ? thresholds[i] : threshold, &a);
}

/* Where all leaves share a factor: what is folded last is decided at once, by the thread that wrote it. */
KERNEL(fold_and_decide, )(const Leaf *leaf, i64 count, i64 blocks, const Sum *slots, i64 units, i64 lanes, double ord,
                          Sum *unit, Sum *partial, Sum *total, u32 *ticket, double threshold, double eps, double grad_scale,
                          double lr, double limit, double safety, i64 flags, i64 *open, Write *writes)
{
    const Folding f = {slots, units, lanes, ord, unit, partial, total, ticket};
    const Asking a = {eps, ord, grad_scale, lr, limit, safety, flags, open, writes};
    if (fold_to_total(leaf, count, &f) && threadIdx.x == 0)
        decide_unit(total, total, 0, threshold, &a);
}

/* The factors of samples, so that no element leaves the range of what it is rounded to: Plan.keep_finite (_cpu/plan.pyx).
 * unit: Sums of each sample, leaf by leaf; most: of each leaf. */
KERNEL(keep_finite, )(const Sum *unit, i64 leaves, const double *most, i64 n, Write *writes)
{
    const i64 i = (i64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n)
        return;
    Write w = writes[i];
    for (i64 k = 0; k < leaves; k++) {
        const Sum *s = unit + k * n + i;
        if (gc_keep_finite(&w.factor, ldexp(s->amax, (int)s->exponent), most[k])) {
            w.kind = GC_SCALE;
            w.clips = 1;
        }
    }
    writes[i] = w;
}

/* Adaptive clipping: the bound of each unit from its parameters, clip_factor * max(norm, eps); Inf where one is not finite.
 * factors: null, or the clip factor of each unit; Inf: the unit is left alone. */
KERNEL(weigh, )(const Sum *weight, i64 n, const double *factors, double clip_factor, double eps, double ord, double *thresholds)
{
    const i64 i = (i64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n)
        return;
    thresholds[i] = gc_adaptive_threshold(weight + i, factors ? factors[i] : clip_factor, eps, ord);
}
