/* From sums to what is written: one thread per unit, the arithmetic of Plan.settle (_cpu/plan.pyx). */
enum { NORMALIZE = 1, FINITE_ONLY = 2, SKIP = 4, KEEP_OUT = 8, STEPS = 16, CLAMPS = 32, BOUNDS = 64, KEPT = 128, STRICT = 256,
       EXACT = 512 };

__device__ bool shows_nonfinite(const Sum *s, i64 flags) { return s->nans + s->infs > 0 && !(flags & FINITE_ONLY); }

__device__ double norm_shown(const Sum *s, double ord, double grad_scale, i64 flags)
{
    if (shows_nonfinite(s, flags))
        return s->nans ? NOT_A_NUMBER : INF;
    return narrow(norm_of(s, ord, grad_scale));
}

/* Returns whether only an exact sum tells on which side of its goal the norm is; it then counts as above. */
__device__ bool settle_one(Write *w, const Sum *s, double goal, double eps, double ord, double grad_scale, double limit, i64 flags)
{
    const bool nonfinite = shows_nonfinite(s, flags);
    bool close = false;
    if (nonfinite)
        w->acts = goal != INF;
    else if (flags & NORMALIZE)
        w->acts = s->amax > 0;
    else if (flags & STRICT && is_rational(ord)) {
        const int side = goal < INF ? side_of(s, goal, grad_scale, ord) : WITHIN;
        w->acts = side != WITHIN;
        close = side == CLOSE && flags & EXACT;
    } else
        w->acts = norm_shown(s, ord, grad_scale, flags) > goal;
    if (flags & BOUNDS && !nonfinite && goal < INF) { /* a sample that is added as it is must be within the limit */
        double norm = norm_shown(s, ord, grad_scale, flags);
        w->acts = !(flags & KEPT ? side_of(s, limit, 1, ord) == WITHIN : norm <= goal);
    }
    if (grad_scale != 1) {
        Wide one = {1, 0, 0};
        w->kind = SCALE;
        set_factor(w, 1, one, 0, grad_scale);
    }
    if (!w->acts)
        return close;
    w->kind = SCALE;
    if (nonfinite) {
        w->shift = 0;
        w->value = w->last = s->nans ? NOT_A_NUMBER : 0;
    } else
        set_factor(w, goal, norm_of(s, ord, grad_scale), eps, grad_scale);
    if (w->value == 1 && !(flags & (BOUNDS | STRICT))) {
        w->kind = KEEP;
        w->acts = 0;
    }
    return close;
}

/* goals: one per unit, or null: `goal` for each. limit: see BOUNDS. open: null; or whether what a unit becomes is to be
 * held to its goal by `enforce`. total: null, unless it is needed for SKIP or to count, as its `outside`, the units that
 * only exact sums decide. */
extern "C" __global__ void settle(const Sum *unit, Sum *total, i64 n, const double *goals, double goal, double eps,
                                  double ord, double grad_scale, double lr, double limit, double safety, i64 flags, i64 *open,
                                  Write *writes)
{
    const i64 i = (i64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n)
        return;
    const Sum *s = unit + i;
    Write w = {KEEP, 0, 0, 1, 1, 0};
    bool close = false;
    if (goals)
        goal = goals[i];
    if (flags & SKIP && total->nans + total->infs > 0) {
        w.kind = flags & (KEEP_OUT | STEPS) ? LEAVE : KEEP;
    } else if (flags & CLAMPS) {
        w.kind = s->outside ? CLAMP : KEEP;
    } else {
        close = settle_one(&w, s, goal, eps, ord, grad_scale, limit, flags);
        w.zero = flags & FINITE_ONLY && s->nans + s->infs > 0;
        if (flags & STEPS) {
            w.kind = STEP;
            if (flags & STRICT && !shows_nonfinite(s, flags))
                shrink_step(&w, s, goal, grad_scale, ord, flags & EXACT, safety);
            multiply(&w, lr);
        }
        if (w.zero && flags & BOUNDS) { /* such a sample is left out of the sum */
            w.kind = SCALE;
            w.value = w.last = 0;
            w.shift = 0;
        }
    }
    if (open)
        open[i] = w.kind == SCALE && goal < INF && !shows_nonfinite(s, flags);
    if (close) {
        if (total)
            atomicAdd((u64 *)&total->outside, 1ull);
        if (open && grad_scale == 1)
            w.kind = KEEP; /* the first round measures it as it is */
    }
    writes[i] = w;
}

/* The factors of samples, so that no element leaves the range of what it is rounded to: Plan.keep_finite (_cpu/plan.pyx).
 * unit: Sums of each sample, leaf by leaf; most: of each leaf. */
extern "C" __global__ void keep_finite(const Sum *unit, i64 leaves, const double *most, i64 n, Write *writes)
{
    const i64 i = (i64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n)
        return;
    Write w = writes[i];
    for (i64 k = 0; k < leaves; k++) {
        const Sum *s = unit + k * n + i;
        double amax = ldexp(s->amax, (int)s->exponent);
        int exponent, more;
        if (!(amax < INF))
            amax = 0x1.fffffffffffffp1023;
        double product = frexp(w.last, &exponent) * frexp(amax, &more);
        if (ldexp(product, exponent + more + (int)w.shift) > most[k]) {
            Wide largest = {amax, 0, 0};
            w.kind = SCALE;
            w.acts = 1;
            set_factor(&w, most[k], largest, 0, 1);
        }
    }
    writes[i] = w;
}

/* Adaptive clipping: the bound of each unit from its parameters, clip_factor * max(norm, eps); Inf where one is not finite. */
extern "C" __global__ void weigh(const Sum *weight, i64 n, double clip_factor, double eps, double ord, double *goals)
{
    const i64 i = (i64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n)
        return;
    const Sum *s = weight + i;
    if (s->nans + s->infs) {
        goals[i] = INF;
        return;
    }
    double norm = narrow(norm_of(s, ord, 1));
    goals[i] = norm < INF ? clip_factor * (norm > eps ? norm : eps)
                          : clip_factor * narrow(norm_of(s, ord, 0x1p64)) * 0x1p64; /* a norm beyond float64 */
}
