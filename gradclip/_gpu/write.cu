/* The write pass: the operations of the CPU's kernels, element by element, each rounded alike. */
__device__ bool fits_float(double factor)
{
    double a = fabs(factor);
    return (a >= 0x1p-126 && a <= 0x1.fffffep127) || a == 0;
}

/* x * factor, rounded once in float64 or, IN_FLOAT, for halves and a factor that float32 holds, in float32. */
template <class T, bool IN_FLOAT>
__device__ typename T::bits product(typename T::bits x, double factor)
{
    if constexpr (IN_FLOAT)
        return T::narrowed(times_f32(T::single(x), to_f32(factor)));
    else
        return T::narrow(T::wide(x) * factor);
}

template <class T>
__device__ typename T::bits times(typename T::bits x, double factor)
{
    return T::SHORT && fits_float(factor) ? product<T, T::SHORT>(x, factor) : product<T, false>(x, factor);
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
    if constexpr (T::DIGITS) {
        const float y = T::single(x);
        return less_f32(y, to_f32(low)) ? T::narrow(low) : less_f32(to_f32(high), y) ? T::narrow(high) : x;
    }
    const double v = T::wide(x);
    return v < low ? T::narrow(low) : v > high ? T::narrow(high) : x; /* NaN stays */
}

/* A pack as the plan makes it; a step is left to `step`. */
template <class T>
RARE void alter(typename T::bits *x, const Write *w, bool is_complex, const Bounds *bounds, i64 dtype)
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

/* y - x * factor: product and difference rounded each, where `product` rounds, then to the dtype of y. */
template <class TO, class T, bool IN_FLOAT>
__device__ typename TO::bits difference(typename TO::bits y, typename T::bits x, double factor)
{
    if constexpr (IN_FLOAT)
        return TO::narrowed(minus_f32(TO::single(y), times_f32(T::single(x), to_f32(factor))));
    else
        return TO::narrow(TO::wide(y) - T::wide(x) * factor);
}

template <class T>
__device__ typename T::bits step(typename T::bits y, typename T::bits x, double factor)
{
    return T::SHORT && fits_float(factor) ? difference<T, T, T::SHORT>(y, x, factor) : difference<T, T, false>(y, x, factor);
}

/* A step of two dtypes, or by a factor beyond float64: in float64. */
RARE void step_apart(const Job *job, const Write *w, char *from, char *to)
{
    const Leaf *leaf = job->leaf;
    for (i64 tile = job->first; tile < job->end; tile += job->step)
        for (i64 i = tile + job->lane; i < tile + job->tile && i < job->end; i += job->lanes) {
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
RARE void write_any(const Job *job, const Write *w, const Bounds *bounds, char *from, char *to, i64 i, int n)
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

/* What one kind of write makes of an element; of halves by a factor that float32 holds. */
template <class T, int KIND>
struct Writer {
    double factor, least, most;
    __device__ typename T::bits operator()(typename T::bits x, typename T::bits y) const
    {
        if constexpr (KIND == GC_SCALE)
            return product<T, T::SHORT>(x, factor);
        else if constexpr (KIND == GC_STEP)
            return difference<T, T, T::SHORT>(y, x, factor);
        else
            return KIND == GC_CLAMP ? clamped<T>(x, least, most) : x;
    }
};

/* What lies of two arrays, walked in step: bytes from one element to the next, and whether packs are aligned. */
struct Pace {
    i64 from, to;
    bool from_aligned, to_aligned;
};

/* Whether elements are multiplied by `Products`. */
template <class T, int KIND>
__device__ constexpr bool in_float32()
{
    return T::DIGITS && !T::SHORT && KIND == GC_SCALE;
}

/* N packs, `apart` elements from one to the next, the last `left` elements away at most: all are loaded before the first is stored. */
template <class T, int KIND, int N>
__device__ void write_packs(Writer<T, KIND> writer, const char *from, char *to, i64 apart, i64 left, Pace pace)
{
    uint4 from_pack[N], to_pack[N];
    const Products products(KIND == GC_SCALE ? writer.factor : 0);
#pragma unroll
    for (int j = 0; j < N; j++)
        if (left >= j * apart) {
            from_pack[j] = load_pack<T>(from + j * apart * pace.from, pace.from, pace.from_aligned);
            if (KIND == GC_STEP)
                to_pack[j] = load_pack<T>(to + j * apart * pace.to, pace.to, pace.to_aligned);
        }
#pragma unroll
    for (int j = 0; j < N; j++) {
        if (left < j * apart)
            break;
        typename T::bits x[T::PACK], y[T::PACK];
        unpack(x, from_pack[j]);
        if (KIND == GC_STEP)
            unpack(y, to_pack[j]);
        bool done = false;
        if constexpr (in_float32<T, KIND>())
            done = multiply_pack<T>(x, products);
        if (!done)
#pragma unroll
            for (int k = 0; k < T::PACK; k++)
                x[k] = writer(x[k], KIND == GC_STEP ? y[k] : 0);
        store_pack<T>(to + j * apart * pace.to, x, pace.to, pace.to_aligned);
    }
}

/* This thread's part of a segment of elements that lie always as far apart. */
template <class T, int KIND>
__device__ void write_tiles(const Job *job, const Write *w, Writer<T, KIND> writer, const Bounds *bounds, char *from, char *to)
{
    enum { N = KIND == GC_STEP ? AHEAD / 2 : (int)AHEAD };
    const Leaf *leaf = job->leaf;
    const i64 size = sizeof(typename T::bits), mine = (i64)job->lane * T::PACK, last = job->end - T::PACK,
              rest = rest_of(job, T::PACK);
    const bool from_aligned = leaf->from.ndim == 0 && (u64)from % sizeof(uint4) == 0;
    const bool to_aligned = leaf->to.ndim == 0 && (u64)to % sizeof(uint4) == 0;
    if (from_aligned && to_aligned && job->lanes > 1)
        for (i64 i = job->first + mine; i <= last; i += job->step)
#pragma unroll
            for (int j = 0; j < AHEAD; j += N) {
                const i64 at = i + j * THREADS * T::PACK;
                write_packs<T, KIND, N>(writer, from + at * size, to + at * size, THREADS * T::PACK, last - at,
                                        {size, size, true, true});
            }
    else {
        const Pace pace = {apart_of(&leaf->from, job->pool), apart_of(&leaf->to, job->pool), from_aligned, to_aligned};
        const i64 stride = (i64)job->lanes * T::PACK;
        for (i64 tile = job->first; tile < job->end; tile += job->step) {
            const i64 stop = tile + job->tile - T::PACK < last ? tile + job->tile - T::PACK : last;
            for (i64 i = tile + mine; i <= stop; i += 2 * stride)
                write_packs<T, KIND, 2>(writer, from + i * pace.from, to + i * pace.to, stride, stop - i, pace);
        }
    }
    if (rest < job->end)
        write_any<T>(job, w, bounds, from, to, rest, (int)(job->end - rest));
}

template <class T>
__device__ void write_run(const Job *job, const Write *w, const Bounds *bounds, char *from, char *to)
{
    const Leaf *leaf = job->leaf;
    const double factor = w->factor.last;
    if (w->zero || w->factor.shift || leaf->from.ndim > 1 || leaf->to.ndim > 1 || (T::SHORT && !fits_float(factor))) {
        for (i64 tile = job->first; tile < job->end; tile += job->step) {
            const i64 stop = tile + job->tile < job->end ? tile + job->tile : job->end;
            for (i64 i = tile + job->lane * T::PACK; i < stop; i += (i64)job->lanes * T::PACK)
                write_any<T>(job, w, bounds, from, to, i, stop - i < T::PACK ? (int)(stop - i) : (int)T::PACK);
        }
    } else if (w->kind == GC_SCALE)
        write_tiles<T, GC_SCALE>(job, w, {factor, 0, 0}, bounds, from, to);
    else if (w->kind == GC_STEP)
        write_tiles<T, GC_STEP>(job, w, {factor, 0, 0}, bounds, from, to);
    else if (w->kind == GC_CLAMP)
        write_tiles<T, GC_CLAMP>(job, w, {0, bounds->low[leaf->from.dtype], bounds->high[leaf->from.dtype]}, bounds, from, to);
    else
        write_tiles<T, GC_KEEP>(job, w, {0, 0, 0}, bounds, from, to);
}

/* A step of float32 parameters by gradients of 16 bits, both contiguous and aligned: in float64, as `step_apart`. */
template <class T>
__device__ void step_mixed(const Job *job, const Write *w, char *from, char *to)
{
    const double factor = w->factor.last;
    const i64 rest = rest_of(job, T::PACK), stride = (i64)job->lanes * T::PACK;
    for (i64 tile = job->first; tile < job->end; tile += job->step)
        for (i64 i = tile + job->lane * T::PACK; i < tile + job->tile && i + T::PACK <= job->end; i += stride) {
            uint4 *p = (uint4 *)(to + i * sizeof(u32)), y[2] = {p[0], p[1]};
            const uint4 pack = *(const uint4 *)(from + i * sizeof(u16));
            u16 x[8];
            unpack(x, pack);
#pragma unroll
            for (int j = 0; j < 2; j++) {
                u32 z[4];
                unpack(z, y[j]);
#pragma unroll
                for (int k = 0; k < 4; k++)
                    z[k] = difference<Single, T, false>(z[k], x[4 * j + k], factor);
                p[j] = packed(z);
            }
        }
    for (i64 i = rest; i < job->end; i++) {
        u32 *p = (u32 *)(to + i * sizeof(u32));
        *p = difference<Single, T, false>(*p, *(const u16 *)(from + i * sizeof(u16)), factor);
    }
}

__device__ bool can_mix(const Leaf *leaf, const Write *w, const char *from, const char *to)
{
    return leaf->from.dtype <= BF16 && leaf->to.dtype == F32 && !w->factor.shift && !w->zero && leaf->from.ndim == 0 &&
           leaf->to.ndim == 0 && ((u64)from | (u64)to) % sizeof(uint4) == 0;
}

/* What a pass over the leaves of a table writes. writes: one for each unit number modulo so many. all_in_place: whether every leaf is
 * written where it is read. bounds: null, or of all leaves or, by_leaf, one for each. unit: the Sums of the read pass where there are,
 * which spare the leaves that hold nothing to be zeroed. */
struct Writing {
    const Write *writes;
    i64 modulo, all_in_place;
    const Bounds *bounds;
    i64 by_leaf;
    const Sum *unit;
};

/* The part of this thread: its Job, Write and bounds, and where its unit lies. False where nothing is to be written. Blocks come in the
 * opposite order: what was read last is still in cache. */
__device__ bool find_write(const Writing *p, const Leaf *leaf, i64 count, i64 blocks, Job *job, const Write **w,
                           const Bounds **bounds, char **from, char **to)
{
    if (p->modulo == 1 && (p->writes->kind == GC_LEAVE || (p->writes->kind == GC_KEEP && p->all_in_place && !p->writes->zero)))
        return false;
    if (!find_job(job, leaf, count, blocks, gridDim.x - 1 - blockIdx.x))
        return false;
    *bounds = p->by_leaf ? p->bounds + (job->leaf - leaf) : p->bounds;
    leaf = job->leaf;
    const i64 index = leaf->first_unit + job->unit;
    *w = p->writes + index % p->modulo;
    const bool in_place = leaf->to.data == leaf->from.data;
    const bool zeroes = (*w)->zero && (!p->unit || p->unit[index].nans + p->unit[index].infs > 0);
    if ((*w)->kind == GC_LEAVE || ((*w)->kind == GC_KEEP && in_place && !zeroes))
        return false;
    *from = unit_of(&leaf->from, leaf, job->pool, job->unit);
    *to = unit_of(&leaf->to, leaf, job->pool, job->unit);
    return true;
}

/* All leaves but those that are rounded to another dtype. */
template <template <class> class As>
__device__ void write_all(const Writing *pass, const Leaf *leaf, i64 count, i64 blocks)
{
    const Bounds *bounds;
    const Write *w;
    Job job;
    char *from, *to;
    if (!find_write(pass, leaf, count, blocks, &job, &w, &bounds, &from, &to))
        return;
    leaf = job.leaf;
    if (w->kind == GC_STEP && can_mix(leaf, w, from, to)) {
        if (leaf->from.dtype == F16)
            step_mixed<Half>(&job, w, from, to);
        else
            step_mixed<Brain>(&job, w, from, to);
    } else if (w->kind == GC_STEP && (leaf->to.dtype != leaf->from.dtype || w->factor.shift))
        step_apart(&job, w, from, to);
    else if (leaf->to.dtype != leaf->from.dtype)
        return;
    else if (leaf->from.dtype == F16)
        write_run<As<Half>>(&job, w, bounds, from, to);
    else if (leaf->from.dtype == BF16)
        write_run<As<Brain>>(&job, w, bounds, from, to);
    else if (leaf->from.dtype == F32)
        write_run<As<Single>>(&job, w, bounds, from, to);
    else
        write_run<Double>(&job, w, bounds, from, to);
}

#define WRITE(name, AS)                                                                                                   \
    KERNEL(name, __launch_bounds__(THREADS, 2))(const Leaf *leaf, i64 count, i64 blocks, const Write *writes, i64 modulo, \
                                                i64 all_in_place, const Bounds *bounds, i64 by_leaf, const Sum *unit)     \
    {                                                                                                                     \
        const Writing pass = {writes, modulo, all_in_place, bounds, by_leaf, unit};                                       \
        write_all<AS>(&pass, leaf, count, blocks);                                                                        \
    }
WRITE(write_leaves, Itself)
WRITE(write_leaves_in_float32, ByDigits)

/* Leaves that are rounded to another dtype. */
KERNEL(cast_leaves, __launch_bounds__(THREADS, 2))(const Leaf *leaf, i64 count, i64 blocks, const Write *writes, i64 modulo,
                                                   i64 all_in_place, const Bounds *bounds, i64 by_leaf, const Sum *unit)
{
    const Writing pass = {writes, modulo, all_in_place, bounds, by_leaf, unit};
    const Write *w;
    Job job;
    char *from, *to;
    if (find_write(&pass, leaf, count, blocks, &job, &w, &bounds, &from, &to) && w->kind != GC_STEP &&
        job.leaf->to.dtype != job.leaf->from.dtype)
        cast_leaf(&job, w, bounds, from, to);
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
RARE double careful_sum(const Leaf *leaf, const char *p, i64 stride, i64 batch, const Write *writes)
{
    double high = 0, low = 0;
    for (i64 i = 0; i < batch; i++, p += stride)
        if (!(writes[i].zero && writes[i].factor.last == 0))
            two_sum(&high, &low, contribution(leaf, get(leaf->from.dtype, p), writes + i) * 0x1p-64);
    return (is_finite(high) ? high + low : high) * 0x1p64;
}

/* The sum of an element over all samples, from its pair. */
__device__ double summed(const Leaf *leaf, const char *p, i64 stride, i64 batch, const Write *writes, double high, double low)
{
    if (is_finite(high))
        return high + low;
    /* On the way to a total that float64 holds, perhaps. */
    return leaf->to.dtype == F64 ? careful_sum(leaf, p, stride, batch, writes) : high;
}

/* Samples that are left out, whatever they hold. */
__device__ bool is_left_out(const Write *w) { return w->zero && w->factor.last == 0; }

template <class T>
RARE void scale_apart(typename T::bits *x, const Write *w)
{
    for (int k = 0; k < T::PACK; k++)
        x[k] = scaled<T>(x[k], w);
}

/* Sums of a pack of elements, which lie side by side, in the dtype of the samples. */
template <class T>
__device__ void sum_pack(const Leaf *leaf, const char *p, i64 stride, i64 batch, const Write *writes, char *to)
{
    enum { N = 4 }; /* samples that are loaded before the first is added */
    double high[T::PACK], low[T::PACK];
#pragma unroll
    for (int k = 0; k < T::PACK; k++)
        high[k] = low[k] = 0;
    for (i64 first = 0; first < batch; first += N) {
        uint4 pack[N];
#pragma unroll
        for (int j = 0; j < N; j++)
            if (first + j < batch)
                pack[j] = *(const uint4 *)(p + (first + j) * stride);
#pragma unroll
        for (int j = 0; j < N; j++) {
            const Write *w = writes + first + j;
            if (first + j >= batch || is_left_out(w))
                continue;
            typename T::bits x[T::PACK];
            unpack(x, pack[j]);
            if (w->kind == GC_SCALE) {
                const Writer<T, GC_SCALE> writer = {w->factor.last, 0, 0};
                if (w->factor.shift || (T::SHORT && !fits_float(writer.factor))) {
                    typename T::bits y[T::PACK];
                    for (int k = 0; k < T::PACK; k++)
                        y[k] = x[k];
                    scale_apart<T>(y, w);
                    for (int k = 0; k < T::PACK; k++)
                        x[k] = y[k];
                } else
#pragma unroll
                    for (int k = 0; k < T::PACK; k++)
                        x[k] = writer(x[k], 0);
            }
#pragma unroll
            for (int k = 0; k < T::PACK; k++)
                two_sum(&high[k], &low[k], T::wide(x[k]));
        }
    }
    typename T::bits sum[T::PACK];
#pragma unroll
    for (int k = 0; k < T::PACK; k++)
        sum[k] = T::narrow(summed(leaf, p + k * sizeof(sum[0]), stride, batch, writes, high[k], low[k]));
    *(uint4 *)to = packed(sum);
}

/* The sum of one element, wherever it lies. */
RARE void sum_one(const Leaf *leaf, const i64 *pool, i64 i, i64 stride, i64 batch, const Write *writes)
{
    const char *p = element(&leaf->from, pool, leaf->from.data, i);
    double high = 0, low = 0;
    for (i64 k = 0; k < batch; k++)
        if (!is_left_out(writes + k))
            two_sum(&high, &low, contribution(leaf, get(leaf->from.dtype, p + k * stride), writes + k));
    put(leaf->to.dtype, element(&leaf->to, pool, leaf->to.data, i), summed(leaf, p, stride, batch, writes, high, low));
}

/* Units are samples; `to` is one sum for all. A thread adds all samples of its elements, as many as 16 bytes hold, in order. Under SKIP
 * with an element that is not finite, sums are 0. */
KERNEL(sum_samples, )(const Leaf *leaf, i64 count, i64 blocks, const Write *writes, i64 batch, const Sum *total, i64 flags)
{
    const i64 *pool = pool_of(leaf, count);
    leaf += ((const u32 *)((const i64 *)leaf + blocks))[blockIdx.x];
    const i64 dtype = leaf->from.dtype, size = size_of(dtype), pack = 16 / size;
    const i64 i = ((blockIdx.x - leaf->first_block) * THREADS + threadIdx.x) * pack;
    if (flags & BY_LEAF)
        writes += leaf->first_unit * batch; /* the number of the leaf, here */
    if (flags & SKIP && total && total->nans + total->infs > 0)
        batch = 0;
    const i64 stride = leaf->unit_ndim ? pool[leaf->from.axes + 2 * leaf->from.ndim + 1] : 0;
    const char *p = leaf->from.data + i * size;
    char *to = leaf->to.data + i * size;
    if (i + pack > leaf->size || dtype != leaf->to.dtype || leaf->from.ndim || leaf->to.ndim ||
        ((u64)p | (u64)to | (u64)stride) % 16) {
        for (i64 k = i; k < i + pack && k < leaf->size; k++)
            sum_one(leaf, pool, k, stride, batch, writes);
    } else if (dtype == F16)
        sum_pack<Half>(leaf, p, stride, batch, writes, to);
    else if (dtype == BF16)
        sum_pack<Brain>(leaf, p, stride, batch, writes, to);
    else if (dtype == F32)
        sum_pack<Single>(leaf, p, stride, batch, writes, to);
    else
        sum_pack<Double>(leaf, p, stride, batch, writes, to);
}
