/* The read pass: a Sum for every segment of every unit; then units, and all of them, folded in order.
 *
 * Which thread adds what to what follows from positions alone, and nothing is added atomically: the same bits on every
 * run and every device. Sums are taken by TwoSum, which needs no bound on the elements, and costs less than memory. */
struct Bounds { /* low and high, rounded to each dtype */
    double low[4], high[4];
};

/* The rare and the general are functions that are not inlined: the loops of the usual case keep few registers, so that many
 * threads hide the distance of memory, and the source compiles in seconds. */
#define APART static __noinline__ __device__

struct Running {            /* of one thread: sum so far, bits of the largest magnitude, elements outside the bounds */
    double high, low;
    u64 top;
    int outside;
};

template <class T>
__device__ int outside(const typename T::bits *x, int n, double low, double high)
{
    int count = 0;
#pragma unroll
    for (int k = 0; k < T::PACK; k++) {
        double v = T::wide(x[k]);
        count += (k < n) & ((v < low) | (v > high));
    }
    return count;
}

/* What is not finite is counted, and becomes 0. */
template <class T>
APART void drop_nonfinite(typename T::bits *x, Sum *sum, const Job *job, char *base, i64 i)
{
    const int step = job->leaf->is_complex ? 2 : 1;
    for (int k = 0; k < T::PACK; k += step) {
        typename T::bits a = x[k] & T::MASK, b = step == 2 ? x[k + 1] & T::MASK : 0;
        if (a < T::INFINITE && b < T::INFINITE)
            continue;
        if (a > T::INFINITE || b > T::INFINITE)
            sum->nans++;
        else
            sum->infs++;
        i64 at = flat_index(job->leaf, job->pool, element(&job->leaf->from, job->pool, base, i + k));
        sum->first = at < sum->first ? at : sum->first;
        x[k] = 0;
        if (step == 2)
            x[k + 1] = 0;
    }
}

/* A magnitude (times 2**exponent) whose square or sum float64 might not hold, in a bin of its own; or any power. */
template <int ORD>
APART void add_apart(Sum *sum, double x, int exponent, double ord)
{
    if (x == 0)
        return;
    if (ORD == 3) {
        add_power(sum, x, exponent, gc_order_of(ord), ord);
        return;
    }
    const i64 bin = exponent > 0 || x > GC_HUGE ? 1 : exponent < 0 || x < GC_TINY ? -1 : 0;
    x = ldexp(x, exponent - GC_SHIFT * (int)bin);
    if (ORD == 2)
        fold(sum, x * x, fma(x, x, -(x * x)), bin, ord);
    else
        fold(sum, x, 0, bin, ord);
}

__device__ bool in_range(double x) { return (x >= GC_TINY) & (x <= GC_HUGE); }

/* One finite magnitude, of which neither square nor sum leaves the range. */
template <int ORD, class T>
__device__ void add_usual(Running *r, double x)
{
    if (ORD == 1) {
        two_sum(&r->high, &r->low, x);
    } else if (T::WIDE) {
        const double square = x * x;
        two_sum(&r->high, &r->low, square);
        r->low += fma(x, x, -square);
    } else { /* the square is exact */
        double t = fma(x, x, r->high), part = t - r->high;
        r->low += (r->high - (t - part)) + fma(x, x, -part);
        r->high = t;
    }
}

template <int ORD, class T>
__device__ void add(Running *r, double x, Sum *sum, double ord)
{
    if (ORD == 3 || (T::WIDE && !in_range(x)))
        add_apart<ORD>(sum, x, 0, ord);
    else if (ORD != 0)
        add_usual<ORD, T>(r, x);
}

/* Whether eight squares of a pack add without rounding; zeros do not matter. */
template <class T>
__device__ bool short_span(const typename T::bits *x)
{
    u32 largest = 0, least = T::MASK;
#pragma unroll
    for (int k = 0; k < T::PACK; k++) {
        u32 a = x[k] & T::MASK, b = (a - 1) & T::MASK; /* 0 becomes the largest */
        largest = a > largest ? a : largest;
        least = b < least ? b : least;
    }
    int high = largest >> T::MANTISSA, low = (least + 1) >> T::MANTISSA;
    return high - (low > 1 ? low : 1) <= T::EIGHT; /* subnormal numbers have the unit of exponent 1 */
}

template <class T>
__device__ u64 worst_of(const typename T::bits *x)
{
    typename T::bits worst = 0;
#pragma unroll
    for (int k = 0; k < T::PACK; k++)
        worst = (x[k] & T::MASK) > worst ? x[k] & T::MASK : worst;
    return worst;
}

/* Whether a pack can be added without functions that are apart. */
template <int ORD, class T>
__device__ bool is_usual(const typename T::bits *x)
{
    bool usual = (ORD != 3) & (worst_of<T>(x) < T::INFINITE);
    if constexpr (T::WIDE && ORD != 0) {
#pragma unroll
        for (int k = 0; k < T::PACK; k++)
            usual &= ((x[k] & T::MASK) == 0) | in_range(fabs(T::wide(x[k])));
    }
    return usual;
}

/* A pack of real elements that is usual, or (sum given) only finite. */
template <int ORD, class T>
__device__ void add_pack(Running *r, const typename T::bits *x, Sum *sum, double ord)
{
    const u64 worst = worst_of<T>(x);
    r->top = worst > r->top ? worst : r->top;
    if constexpr (ORD == 2 && T::SHORT)
        if (short_span<T>(x)) { /* a third of the arithmetic */
            double eight = 0;
#pragma unroll
            for (int k = 0; k < T::PACK; k++) {
                double v = T::wide(x[k]);
                eight = fma(v, v, eight);
            }
            two_sum(&r->high, &r->low, eight);
            return;
        }
    if constexpr (ORD != 0) {
#pragma unroll
        for (int k = 0; k < T::PACK; k++)
            if (sum)
                add<ORD, T>(r, fabs(T::wide(x[k])), sum, ord);
            else
                add_usual<ORD, T>(r, fabs(T::wide(x[k])));
    }
}

template <int ORD, class T>
__device__ void add_pairs(Running *r, const typename T::bits *x, Sum *sum, double ord)
{
    for (int k = 0; k < T::PACK; k += 2) {
        double a = fabs(T::wide(x[k])), b = fabs(T::wide(x[k + 1]));
        i64 exponent;
        double z = modulus(a, b, &exponent);
        raise_amax(sum, exponent < 0 ? ldexp(z, (int)exponent) : z, exponent < 0 ? 0 : exponent);
        if (ORD == 2) {
            add<2, T>(r, a, sum, ord);
            add<2, T>(r, b, sum, ord);
        } else if (ORD == 1 && exponent == 0 && z >= GC_TINY && z <= GC_HUGE)
            two_sum(&r->high, &r->low, z);
        else if (ORD != 0)
            add_apart<ORD>(sum, z, (int)exponent, ord);
    }
}

/* How many elements are not 0, and the exponent of the last bit that is set in any. */
template <class T>
APART void note_bits(const typename T::bits *x, Sum *sum)
{
    for (int k = 0; k < T::PACK; k++) {
        int exponent, last;
        const i64 whole = (i64)ldexp(frexp(fabs(T::wide(x[k])), &exponent), 53);
        frexp((double)(whole & -whole), &last);
        last += exponent - 54;
        sum->outside += whole != 0;
        if (whole && last < sum->first)
            sum->first = last;
    }
}

template <class T>
APART void alter(typename T::bits *x, const Write *w, bool is_complex, const Bounds *bounds, i64 dtype);

/* Any pack, n of whose elements are there: from wherever they lie, as they are or as `made` would make them. */
template <int ORD, class T>
APART Running add_any(Running r, const Job *job, char *base, i64 i, int n, const Write *made, const Bounds *bounds, Sum *sum,
                      double ord)
{
    const Leaf *leaf = job->leaf;
    typename T::bits x[T::PACK];
    load<T>(x, &leaf->from, job->pool, base, i, n);
    if (made) {
        alter<T>(x, made, leaf->is_complex, 0, 0);
        if (made->kind == GC_KEEP)
            note_bits<T>(x, sum);
    } else if (bounds)
        r.outside += outside<T>(x, n, bounds->low[leaf->from.dtype], bounds->high[leaf->from.dtype]);
    if (worst_of<T>(x) >= T::INFINITE)
        drop_nonfinite<T>(x, sum, job, base, i);
    if (leaf->is_complex)
        add_pairs<ORD, T>(&r, x, sum, ord);
    else
        add_pack<ORD, T>(&r, x, sum, ord);
    return r;
}

/* AHEAD whole packs of contiguous elements, all loaded before the first is added: memory is far. */
template <int ORD, class T, bool COUNTS, int AHEAD>
__device__ void add_ahead(Running *r, const Job *job, char *base, i64 i, i64 stride, bool aligned, const Bounds *bounds, Sum *sum,
                          double ord)
{
    uint4 pack[AHEAD];
    bool usual = true;
#pragma unroll
    for (int j = 0; j < AHEAD; j++)
        pack[j] = load_pack<T>(base + (i + j * stride) * sizeof(typename T::bits), aligned);
#pragma unroll
    for (int j = 0; j < AHEAD; j++) {
        typename T::bits x[T::PACK];
        unpack(x, pack[j]);
        usual &= is_usual<ORD, T>(x); /* of all, or loads would wait for branches */
    }
    if (!usual) { /* they are read again, so that none is held in registers across a call */
        for (int j = 0; j < AHEAD; j++)
            *r = add_any<ORD, T>(*r, job, base, i + j * stride, T::PACK, 0, bounds, sum, ord);
        return;
    }
#pragma unroll
    for (int j = 0; j < AHEAD; j++) {
        typename T::bits x[T::PACK];
        unpack(x, pack[j]);
        if (COUNTS)
            r->outside += outside<T>(x, T::PACK, bounds->low[job->leaf->from.dtype], bounds->high[job->leaf->from.dtype]);
        add_pack<ORD, T>(r, x, 0, ord);
    }
}

/* This thread's part of a segment. */
template <int ORD, class T, bool COUNTS>
__device__ void measure_run(const Job *job, const Write *made, const Bounds *bounds, double ord, Sum *sum)
{
    const View *view = &job->leaf->from;
    char *base = unit_of(view, job->leaf, job->pool, job->unit);
    const i64 stride = (i64)job->lanes * T::PACK, last = job->end - T::PACK; /* from where a whole pack can be read */
    i64 i = job->first + job->lane * T::PACK;
    Running r = {0, 0, 0, 0};
    if (view->ndim == 0 && !job->leaf->is_complex && !made) {
        const bool aligned = (u64)base % 16 == 0;
        for (; i + 3 * stride <= last; i += 4 * stride)
            add_ahead<ORD, T, COUNTS, 4>(&r, job, base, i, stride, aligned, bounds, sum, ord);
        for (; i <= last; i += stride)
            add_ahead<ORD, T, COUNTS, 1>(&r, job, base, i, stride, aligned, bounds, sum, ord);
    }
    for (; i < job->end; i += stride)
        r = add_any<ORD, T>(r, job, base, i, job->end - i < T::PACK ? (int)(job->end - i) : (int)T::PACK, made, bounds, sum, ord);
    fold(sum, r.high, r.low, 0, ord);
    raise_amax(sum, T::wide((typename T::bits)r.top), 0);
    sum->outside += r.outside;
}

template <int ORD, bool COUNTS>
__device__ void measure(const Leaf *leaf, i64 count, const Write *writes, const i64 *open, i64 modulo, const Bounds *bounds,
                        double ord, Sum *slots)
{
    __shared__ Sum sums[THREADS];
    Job job;
    Sum *sum = &sums[threadIdx.x];
    if (!find_job(&job, leaf, count)) /* of one unit all threads return, or none */
        return;
    leaf = job.leaf;
    const i64 index = writes ? (leaf->first_unit + job.unit) % modulo : 0;
    if (open && !open[index])
        return;
    const Write *made = writes ? writes + index : 0;
    clear(sum);
    if (leaf->from.dtype == F16)
        measure_run<ORD, Half, COUNTS>(&job, made, bounds, ord, sum);
    else if (leaf->from.dtype == BF16)
        measure_run<ORD, Brain, COUNTS>(&job, made, bounds, ord, sum);
    else if (leaf->from.dtype == F32)
        measure_run<ORD, Single, COUNTS>(&job, made, bounds, ord, sum);
    else
        measure_run<ORD, Double, COUNTS>(&job, made, bounds, ord, sum);
    if (!leaf->narrow)
        merge_lanes(sums, THREADS, ord);
    if (leaf->narrow || threadIdx.x == 0)
        slots[leaf->first_slot + job.unit * leaf->segments + job.segment] = *sum;
}

/* writes: null; or one for each unit number modulo so many, and what is measured is the elements as they would be made:
 * of the units that are open, if `open` is not null. bounds: null; or what is counted is the elements outside. */
#define MEASURE(name, ORD, COUNTS)                                                                                       \
    extern "C" __global__ __launch_bounds__(THREADS, 3) void name(const Leaf *leaf, i64 count, const Write *writes,      \
                                                                  const i64 *open, i64 modulo, const Bounds *bounds,     \
                                                                  double ord, Sum *slots)                                \
    {                                                                                                                    \
        measure<ORD, COUNTS>(leaf, count, writes, open, modulo, bounds, ord, slots);                                     \
    }
MEASURE(measure_largest, 0, false)
MEASURE(measure_magnitudes, 1, false)
MEASURE(measure_squares, 2, false)
MEASURE(measure_powers, 3, false)
MEASURE(measure_and_count, 2, true)

/* ---- folding ------------------------------------------------------------------------------------------------------- */

/* Every `lanes` threads fold one unit; those of a thread block, its partial sum of all. from_leaves: of the segments in
 * `from`; else unit i is the sum of i, i + units, i + 2 * units ... of the `count` Sums in `from`. */
__device__ void fold_units(const Leaf *leaf, i64 count, const Sum *from, i64 units, bool from_leaves, i64 lanes, double ord,
                           Sum *unit, Sum *partial)
{
    __shared__ Sum sums[THREADS];
    Sum *sum = &sums[threadIdx.x];
    const i64 index = ((i64)blockIdx.x * THREADS + threadIdx.x) / lanes, lane = threadIdx.x % lanes;
    clear(sum);
    if (index < units) {
        i64 start = index, step = units, n = (count - index + units - 1) / units;
        if (from_leaves) {
            leaf = leaf_at(leaf, count, &Leaf::first_unit, index);
            start = leaf->first_slot + (index - leaf->first_unit) * leaf->segments;
            n = leaf->segments;
            step = 1;
        }
        for (i64 k = lane; k < n; k += lanes)
            merge(sum, &from[start + k * step], ord);
    }
    merge_lanes(sums, (int)lanes, ord);
    if (index < units && lane == 0)
        unit[index] = *sum;
    if (lane != 0)
        clear(sum); /* it is in that of lane 0 */
    merge_lanes(sums, THREADS, ord);
    if (threadIdx.x == 0)
        partial[blockIdx.x] = *sum;
}

extern "C" __global__ void fold_segments(const Leaf *leaf, i64 count, const Sum *slots, i64 units, i64 lanes, double ord,
                                         Sum *unit, Sum *partial)
{
    fold_units(leaf, count, slots, units, true, lanes, ord, unit, partial);
}

/* Units i, i + owners, i + 2 * owners ... belong to owner i. */
extern "C" __global__ void fold_owners(const Sum *unit, i64 count, i64 owners, double ord, Sum *owner, Sum *partial)
{
    fold_units(0, count, unit, owners, false, 1, ord, owner, partial);
}

/* One thread block. */
extern "C" __global__ void fold_total(const Sum *partial, i64 n, double ord, Sum *total)
{
    __shared__ Sum sums[THREADS];
    Sum *sum = &sums[threadIdx.x];
    clear(sum);
    for (i64 i = threadIdx.x; i < n; i += THREADS)
        merge(sum, &partial[i], ord);
    merge_lanes(sums, THREADS, ord);
    if (threadIdx.x == 0)
        *total = *sum;
}
