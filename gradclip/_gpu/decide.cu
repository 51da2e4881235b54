/* From sums to what is written: one thread per unit, the arithmetic of Plan.settle (_cpu/plan.pyx). */
enum { NORMALIZE = 1, FINITE_ONLY = 2, SKIP = 4, KEEP_OUT = 8, STEPS = 16, CLAMPS = 32, BOUNDS = 64, KEPT = 128 };

__device__ bool shows_nonfinite(const Sum *s, i64 flags) { return s->nans + s->infs > 0 && !(flags & FINITE_ONLY); }

__device__ double norm_shown(const Sum *s, double ord, double grad_scale, i64 flags)
{
    if (shows_nonfinite(s, flags))
        return s->nans ? NOT_A_NUMBER : INF;
    return narrow(norm_of(s, ord, grad_scale));
}

/* Whether a sum is certainly at most bound**ord (ord 1 and 2): by more than its own error, which is below 2**-72. */
__device__ bool within(const Sum *s, double bound, double ord)
{
    if (bound == 0)
        return s->amax == 0;
    int e;
    bound = frexp(bound, &e);
    const int shift = shift_of(ord) * (int)s->bin - (int)ord * e;
    const double head = ord == 2 ? bound * bound : bound, tail = ord == 2 ? fma(bound, bound, -head) : 0;
    return (ldexp(s->high, shift) - head) + (ldexp(s->low, shift) - tail) <= -0x1p-70 * head;
}

__device__ void settle_one(Write *w, const Sum *s, double goal, double eps, double ord, double grad_scale, double limit, i64 flags)
{
    const bool nonfinite = shows_nonfinite(s, flags);
    if (nonfinite)
        w->acts = goal != INF;
    else if (flags & NORMALIZE)
        w->acts = s->amax > 0;
    else
        w->acts = norm_shown(s, ord, grad_scale, flags) > goal;
    if (flags & BOUNDS && !nonfinite && goal < INF) { /* a sample that is added as it is must be within the limit */
        double norm = norm_shown(s, ord, grad_scale, flags);
        w->acts = !(!(flags & KEPT) ? norm <= goal : ord == 0 ? norm <= limit : within(s, limit, ord));
    }
    if (grad_scale != 1) {
        Wide one = {1, 0, 0};
        w->kind = SCALE;
        set_factor(w, 1, one, 0, grad_scale);
    }
    if (!w->acts)
        return;
    w->kind = SCALE;
    if (nonfinite) {
        w->shift = 0;
        w->value = w->last = s->nans ? NOT_A_NUMBER : 0;
    } else
        set_factor(w, goal, norm_of(s, ord, grad_scale), eps, grad_scale);
    if (w->value == 1 && !(flags & BOUNDS)) {
        w->kind = KEEP;
        w->acts = 0;
    }
}

/* goals: one per unit, or null: `goal` for each. limit: see BOUNDS. */
extern "C" __global__ void settle(const Sum *unit, const Sum *total, i64 n, const double *goals, double goal, double eps,
                                  double ord, double grad_scale, double lr, double limit, i64 flags, Write *writes)
{
    const i64 i = (i64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n)
        return;
    const Sum *s = unit + i;
    Write w = {KEEP, 0, 0, 1, 1, 0};
    if (flags & SKIP && total->nans + total->infs > 0) {
        w.kind = flags & (KEEP_OUT | STEPS) ? LEAVE : KEEP;
    } else if (flags & CLAMPS) {
        w.kind = s->outside ? CLAMP : KEEP;
    } else {
        settle_one(&w, s, goals ? goals[i] : goal, eps, ord, grad_scale, limit, flags);
        w.zero = flags & FINITE_ONLY && s->nans + s->infs > 0;
        if (flags & STEPS) {
            w.kind = STEP;
            multiply(&w, lr);
        }
        if (w.zero && flags & BOUNDS) { /* such a sample is left out of the sum */
            w.kind = SCALE;
            w.value = w.last = 0;
            w.shift = 0;
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
