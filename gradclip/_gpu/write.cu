/* The write pass: the operations of the CPU's kernels, element by element, each rounded alike. */
__device__ bool fits_float(double factor)
{
    double a = fabs(factor);
    return (a >= 0x1p-126 && a <= 0x1.fffffep127) || a == 0;
}

template <class T>
__device__ typename T::bits times(typename T::bits x, double factor)
{
    if constexpr (T::SHORT)
        if (fits_float(factor))
            return T::narrowed(times_f32(T::single(x), to_f32(factor)));
    return T::narrow(T::wide(x) * factor);
}

/* x * 2**shift in two exact steps, then times `last`, rounded there. */
template <class T>
__device__ typename T::bits scaled(typename T::bits x, const Write *w)
{
    if (w->factor.shift) {
        const int half = (int)(w->factor.shift / 2);
        x = times<T>(x, ldexp(1.0, half));
        x = times<T>(x, ldexp(1.0, (int)w->factor.shift - half));
    }
    return times<T>(x, w->factor.last);
}

template <class T>
__device__ typename T::bits clamped(typename T::bits x, double low, double high)
{
    const double v = T::wide(x);
    return v < low ? T::narrow(low) : v > high ? T::narrow(high) : x; /* NaN stays */
}

/* A pack as the plan makes it; a step is left to `step`. */
template <class T>
APART void alter(typename T::bits *x, const Write *w, bool is_complex, const Bounds *bounds, i64 dtype)
{
    if (w->zero)
        for (int k = 0; k < T::PACK; k++) {
            const int other = is_complex ? k ^ 1 : k; /* a complex number is zeroed whole */
            if ((x[k] & T::MASK) >= T::INFINITE) {
                x[k] = 0;
                x[other] = 0;
            } else if ((x[other] & T::MASK) >= T::INFINITE)
                x[k] = 0;
        }
    if (w->kind == GC_SCALE)
        for (int k = 0; k < T::PACK; k++)
            x[k] = scaled<T>(x[k], w);
    else if (w->kind == GC_CLAMP)
        for (int k = 0; k < T::PACK; k++)
            x[k] = clamped<T>(x[k], bounds->low[dtype], bounds->high[dtype]);
}

/* y - x * factor: product and difference rounded each, in float32 for halves, then to the dtype of y. */
template <class T>
__device__ typename T::bits step(typename T::bits y, typename T::bits x, double factor)
{
    if constexpr (T::SHORT)
        if (fits_float(factor))
            return T::narrowed(minus_f32(T::single(y), times_f32(T::single(x), to_f32(factor))));
    return T::narrow(T::wide(y) - T::wide(x) * factor);
}

__device__ bool is_finite(double x) { return fabs(x) < GC_INF; }

/* A step of two dtypes, or by a factor beyond float64: in float64. */
APART void step_apart(const Job *job, const Write *w, char *from, char *to)
{
    const Leaf *leaf = job->leaf;
    for (i64 i = job->first + job->lane; i < job->end; i += job->lanes) {
        double x = get(leaf->from.dtype, element(&leaf->from, job->pool, from, i));
        if (w->zero && leaf->is_complex) {
            double other = get(leaf->from.dtype, element(&leaf->from, job->pool, from, i ^ 1));
            x = is_finite(x) && is_finite(other) ? x : 0;
        } else if (w->zero && !is_finite(x))
            x = 0;
        char *p = element(&leaf->to, job->pool, to, i);
        put(leaf->to.dtype, p, get(leaf->to.dtype, p) - Double::wide(scaled<Double>(Double::narrow(x), w)));
    }
}

/* Any pack, n of whose elements are there. */
template <class T>
APART void write_any(const Job *job, const Write *w, const Bounds *bounds, char *from, char *to, i64 i, int n)
{
    const Leaf *leaf = job->leaf;
    typename T::bits x[T::PACK], y[T::PACK];
    load<T>(x, &leaf->from, job->pool, from, i, n);
    alter<T>(x, w, leaf->is_complex, bounds, leaf->from.dtype);
    if (w->kind == GC_STEP) {
        load<T>(y, &leaf->to, job->pool, to, i, n);
        for (int k = 0; k < T::PACK; k++)
            x[k] = step<T>(y[k], x[k], w->factor.last);
    }
    store<T>(x, &leaf->to, job->pool, to, i, n);
}

/* AHEAD whole packs of contiguous elements. */
template <class T, int AHEAD>
__device__ void write_ahead(const Write *w, double low, double high, const char *from, char *to, i64 i, i64 stride, bool from_aligned,
                            bool to_aligned)
{
    uint4 from_pack[AHEAD], to_pack[AHEAD];
#pragma unroll
    for (int j = 0; j < AHEAD; j++) {
        const i64 offset = (i + j * stride) * sizeof(typename T::bits);
        from_pack[j] = load_pack<T>(from + offset, from_aligned);
        if (w->kind == GC_STEP)
            to_pack[j] = load_pack<T>(to + offset, to_aligned);
    }
#pragma unroll
    for (int j = 0; j < AHEAD; j++) {
        typename T::bits x[T::PACK], y[T::PACK];
        unpack(x, from_pack[j]);
        if (w->kind == GC_STEP)
            unpack(y, to_pack[j]);
#pragma unroll
        for (int k = 0; k < T::PACK; k++)
            x[k] = w->kind == GC_SCALE   ? times<T>(x[k], w->factor.last)
                   : w->kind == GC_STEP  ? step<T>(y[k], x[k], w->factor.last)
                   : w->kind == GC_CLAMP ? clamped<T>(x[k], low, high)
                                      : x[k];
        store_pack<T>(to + (i + j * stride) * sizeof(typename T::bits), x, to_aligned);
    }
}

template <class T>
__device__ void write_run(const Job *job, const Write *write, const Bounds *bounds, char *from, char *to)
{
    const Leaf *leaf = job->leaf;
    const i64 stride = (i64)job->lanes * T::PACK, last = job->end - T::PACK;
    const Write w = *write;
    i64 i = job->first + job->lane * T::PACK;
    if (!w.zero && !w.factor.shift && leaf->from.ndim == 0 && leaf->to.ndim == 0) {
        const bool from_aligned = (u64)from % 16 == 0, to_aligned = (u64)to % 16 == 0;
        const double low = bounds ? bounds->low[leaf->from.dtype] : 0, high = bounds ? bounds->high[leaf->from.dtype] : 0;
        for (; i + stride <= last; i += 2 * stride)
            write_ahead<T, 2>(&w, low, high, from, to, i, stride, from_aligned, to_aligned);
        for (; i <= last; i += stride)
            write_ahead<T, 1>(&w, low, high, from, to, i, stride, from_aligned, to_aligned);
    }
    for (; i < job->end; i += stride)
        write_any<T>(job, write, bounds, from, to, i, job->end - i < T::PACK ? (int)(job->end - i) : (int)T::PACK);
}

/* writes: one for each unit number modulo so many. unit: the Sums of the read pass where there are,
 * which spare the leaves that hold nothing to be zeroed. */
extern "C" __global__ __launch_bounds__(THREADS, 3) void write_leaves(const Leaf *leaf, i64 count, const Write *writes,
                                                                       i64 modulo, const Bounds *bounds, const Sum *unit)
{
    Job job;
    if (!find_job(&job, leaf, count))
        return;
    leaf = job.leaf;
    const i64 index = leaf->first_unit + job.unit;
    const Write *w = writes + index % modulo;
    const bool in_place = leaf->to.data == leaf->from.data;
    const bool zeroes = w->zero && (!unit || unit[index].nans + unit[index].infs > 0);
    if (w->kind == GC_LEAVE || (w->kind == GC_KEEP && in_place && !zeroes))
        return;
    char *from = unit_of(&leaf->from, leaf, job.pool, job.unit);
    char *to = unit_of(&leaf->to, leaf, job.pool, job.unit);
    if (w->kind == GC_STEP && (leaf->to.dtype != leaf->from.dtype || w->factor.shift))
        step_apart(&job, w, from, to);
    else if (leaf->from.dtype == F16)
        write_run<Half>(&job, w, bounds, from, to);
    else if (leaf->from.dtype == BF16)
        write_run<Brain>(&job, w, bounds, from, to);
    else if (leaf->from.dtype == F32)
        write_run<Single>(&job, w, bounds, from, to);
    else
        write_run<Double>(&job, w, bounds, from, to);
}

/* ---- the write pass of per_sample_clip_sum -------------------------------------------------------------------------- */

__device__ double rounded(i64 dtype, double x)
{
    return dtype == F16    ? Half::wide(Half::narrow(x))
           : dtype == BF16 ? Brain::wide(Brain::narrow(x))
           : dtype == F32  ? Single::wide(Single::narrow(x))
                           : x;
}

/* What an element x of one sample adds: scaled in its own dtype, or rounded once to that of the sum. */
__device__ double contribution(const Leaf *leaf, double x, const Write *w)
{
    const i64 dtype = leaf->from.dtype;
    if (w->kind != GC_SCALE)
        return rounded(leaf->to.dtype, x);
    if (dtype != leaf->to.dtype)
        return rounded(leaf->to.dtype, Double::wide(scaled<Double>(Double::narrow(x), w)));
    return dtype == F16    ? Half::wide(scaled<Half>(Half::narrow(x), w))
           : dtype == BF16 ? Brain::wide(scaled<Brain>(Brain::narrow(x), w))
           : dtype == F32  ? Single::wide(scaled<Single>(Single::narrow(x), w))
                           : Double::wide(scaled<Double>(Double::narrow(x), w));
}

/* The sum of one element over all samples, in a unit in which none of them can overflow. */
APART double careful_sum(const Leaf *leaf, const char *p, i64 stride, i64 batch, const Write *writes)
{
    double high = 0, low = 0;
    for (i64 i = 0; i < batch; i++, p += stride)
        if (!(writes[i].zero && writes[i].factor.last == 0))
            two_sum(&high, &low, contribution(leaf, get(leaf->from.dtype, p), writes + i) * 0x1p-64);
    return (is_finite(high) ? high + low : high) * 0x1p64;
}

/* Units are samples; `to` is one sum for all. A thread adds all samples of an element, in order. Under SKIP with an
 * element that is not finite, sums are 0. */
extern "C" __global__ void sum_samples(const Leaf *leaf, i64 count, const Write *writes, i64 batch, const Sum *total, i64 flags)
{
    enum { AHEAD = 4 }; /* samples that are loaded before the first is added */
    const i64 *pool = pool_of(leaf, count);
    leaf = leaf_at(leaf, count, &Leaf::first_block, blockIdx.x);
    const i64 i = (blockIdx.x - leaf->first_block) * THREADS + threadIdx.x, dtype = leaf->from.dtype;
    if (i >= leaf->size)
        return;
    if (flags & SKIP && total && total->nans + total->infs > 0)
        batch = 0;
    const char *p = element(&leaf->from, pool, leaf->from.data, i);
    const i64 stride = leaf->unit_ndim ? pool[leaf->from.axes + 2 * leaf->from.ndim + 1] : 0;
    double high = 0, low = 0;
    for (i64 first = 0; first < batch; first += AHEAD) {
        double x[AHEAD];
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
            x[j] = first + j < batch ? get(dtype, p + (first + j) * stride) : 0;
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            if (first + j >= batch)
                break;
            const Write *w = writes + first + j;
            if (!(w->zero && w->factor.last == 0)) /* else left out, whatever it holds */
                two_sum(&high, &low, contribution(leaf, x[j], w));
        }
    }
    double sum = is_finite(high) ? high + low : high;
    if (leaf->to.dtype == F64 && !is_finite(high)) /* on the way to a total that float64 holds, perhaps */
        sum = careful_sum(leaf, p, stride, batch, writes);
    put(leaf->to.dtype, element(&leaf->to, pool, leaf->to.data, i), sum);
}
