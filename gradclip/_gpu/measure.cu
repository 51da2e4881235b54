/* The read pass: a Sum for every segment of every unit. They are folded by fold.cu.
 *
 * Which thread adds what to what follows from positions alone, and nothing is added atomically: the same bits on every
 * run and every device. Each thread adds some packs at a time by FastTwoSum (Dekker), from a start above all that is added, and
 * these sums by TwoSum. */
struct Bounds { /* low and high, rounded to each dtype */
    double low[4], high[4];
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

/* How many elements of a whole pack are outside of bounds, compared in float32 if that is what T stands for. */
template <class T>
__device__ int outside_of(const typename T::bits *x, double low, double high)
{
    if constexpr (!T::DIGITS)
        return outside<T>(x, T::PACK, low, high);
    else {
        const float least = to_f32(low), most = to_f32(high);
        int count = 0;
#pragma unroll
        for (int k = 0; k < T::PACK; k++)
            count -= less_f32(T::single(x[k]), least) | less_f32(most, T::single(x[k]));
        return count;
    }
}

/* What is not finite is counted, and becomes 0. */
template <class T>
RARE void drop_nonfinite(typename T::bits *x, Sum *sum, const Job *job, char *base, i64 i)
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
RARE void add_far(Sum *sum, double x, int exponent, double ord)
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
        add_far<ORD>(sum, x, 0, ord);
    else if (ORD != 0)
        add_usual<ORD, T>(r, x);
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

/* The sum of up to eight packs. Squares of float64 are added by TwoSum. The others, which are exact, are added by FastTwoSum, which takes
 * half the operations, from a power of two above eight packs of the largest of them: every difference is exact. */
template <int ORD, class T>
struct Group {
    Running *r;
    double start, sum, low;

    __device__ Group(Running *r, typename T::bits worst) : r(r)
    {
        start = 0;
        if constexpr (!T::WIDE)
            start = __longlong_as_double((i64)(1023 + T::LOG + ORD * ((int)(worst >> T::MANTISSA) + 1 - T::BIAS)) << 52);
        sum = start;
        low = 0;
    }

    __device__ void add(double x)
    {
        if (T::WIDE) {
            add_usual<ORD, T>(r, x);
            return;
        }
        const double next = ORD == 1 ? sum + x : fma(x, x, sum), added = next - sum;
        low += ORD == 1 ? x - added : fma(x, x, -added);
        sum = next;
    }

    __device__ void end()
    {
        if (ORD == 0 || T::WIDE || T::DIGITS)
            return;
        two_sum(&r->high, &r->low, sum - start);
        r->low += low;
    }
};

/* The packs of one group: whether they can be added without functions that are apart. If so, they are. there: how many of them are
 * of the array; the others are zeros. */
template <int ORD, class T, bool COUNTS, int N>
__device__ bool add_packs(Running *r, Digits *d, const uint4 (&pack)[N], int there, double least, double most)
{
    typename T::bits worst = 0;
#pragma unroll
    for (int j = 0; j < N; j++) {
        typename T::bits x[T::PACK];
        unpack(x, pack[j]);
        const typename T::bits found = worst_of<T>(x);
        worst = found > worst ? found : worst;
    }
    if (ORD == 3 || worst >= T::INFINITE || (T::WIDE && ORD != 0 && worst && !in_range(T::wide(worst))))
        return false;
    if constexpr (T::DIGITS)
        if (!can_add<T>(d, worst))
            return false;
    r->top = worst > r->top ? worst : r->top;
    if constexpr (T::DIGITS)
        add_digits<T>(d, pack);
    Group<ORD, T> group(r, worst);
#pragma unroll
    for (int j = 0; j < N; j++) {
        typename T::bits x[T::PACK];
        unpack(x, pack[j]);
        if (COUNTS && j < there)
            r->outside += outside_of<T>(x, least, most);
#pragma unroll
        for (int k = 0; ORD != 0 && !T::DIGITS && k < T::PACK; k++)
            group.add(fabs(T::wide(x[k])));
    }
    group.end();
    return true;
}

/* A pack of finite real elements. */
template <int ORD, class T>
__device__ void add_pack(Running *r, const typename T::bits *x, Sum *sum, double ord)
{
    const u64 worst = worst_of<T>(x);
    r->top = worst > r->top ? worst : r->top;
    for (int k = 0; k < T::PACK; k++)
        add<ORD, T>(r, fabs(T::wide(x[k])), sum, ord);
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
            add_far<ORD>(sum, z, (int)exponent, ord);
    }
}

enum { INEXACT = -100000 }; /* an exponent below which no sum can be shown to be exact */

/* How many elements are not 0, and the exponent of the last bit that is set in any. */
template <class T>
RARE void note_bits(const typename T::bits *x, Sum *sum)
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
RARE void alter(typename T::bits *x, const Write *w, bool is_complex, const Bounds *bounds, i64 dtype);

__device__ u64 cast_of(const Leaf *leaf, double x, const Write *w, const Bounds *bounds);
__device__ bool is_finite(double x);

/* A pack of elements as they would be rounded to another dtype, n of which are there. */
template <int ORD>
RARE void add_cast(Running *r, const Job *job, char *base, i64 i, int n, const Write *made, Sum *sum, double ord)
{
    const Leaf *leaf = job->leaf;
    for (int k = 0; k < n; k++) {
        const char *p = element(&leaf->from, job->pool, base, i + k);
        const double x = fabs(wide_bits(leaf->to.dtype, cast_of(leaf, get(leaf->from.dtype, p), made, 0)));
        if (is_finite(x)) {
            raise_amax(sum, x, 0);
            add<ORD, Double>(r, x, sum, ord);
            continue;
        }
        if (x == GC_INF)
            sum->infs++;
        else
            sum->nans++;
        const i64 at = flat_index(leaf, job->pool, p);
        sum->first = at < sum->first ? at : sum->first;
    }
}

/* Any pack, n of whose elements are there: from wherever they lie, as they are or as `made` would make them. */
template <int ORD, class T>
RARE Running add_any(Running r, const Job *job, char *base, i64 i, int n, const Write *made, const Bounds *bounds, Sum *sum,
                     double ord)
{
    const Leaf *leaf = job->leaf;
    typename T::bits x[T::PACK];
    if (made && leaf->to.dtype != leaf->from.dtype) {
        add_cast<ORD>(&r, job, base, i, n, made, sum, ord);
        return r;
    }
    load<T>(x, &leaf->from, job->pool, base, i, n);
    if (made) {
        alter<T>(x, made, leaf->is_complex, 0, 0);
        note_bits<T>(x, sum);
        if (ORD == 1 && leaf->is_complex)
            sum->first = INEXACT; /* moduli are rounded */
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

/* A pack from element i on, n of whose elements are there, by the functions that are apart. */
template <int ORD, class T>
RARE Running add_apart(Running r, const Job *job, char *base, i64 i, int n, const Write *made, const Bounds *bounds, Sum *sum,
                       double ord)
{
    r.rare = 1;
    return add_any<ORD, T>(r, job, base, i, n, made, bounds, sum, ord);
}

/* This thread's whole packs of the tiles that begin from p to `end`, the last of which begins at or before `last`: those of a tile are
 * loaded before the first is added, since memory is far. Ends at a tile that has something unusual, and returns where. No function that is apart is
 * called here: what is held in registers across a call spills. */
template <int ORD, class T, bool COUNTS>
__device__ const char *add_tiles(Running *r, Digits *digits, const char *p, const char *end, const char *last, i64 step,
                                 double least, double most)
{
    Running own = *r;
    Digits d = *digits;
    for (; end - p >= 0; p += step) { /* not p <= end: that of an empty leaf at no address lies below 0 */
        uint4 pack[AHEAD];
        const i64 left = last - p;
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            pack[j] = uint4{0, 0, 0, 0};
            if (left >= j * APART)
                pack[j] = *(const uint4 *)(p + j * APART);
        }
        if (!add_packs<ORD, T, COUNTS>(&own, &d, pack, COUNTS ? (int)(left / APART) + 1 : 0, least, most))
            break;
    }
    *r = own;
    *digits = d;
    return p;
}

/* This thread's part of a segment of contiguous, aligned elements. */
template <int ORD, class T, bool COUNTS>
__device__ void measure_tiles(Running *r, Fixed *fixed, const Job *job, char *base, const Bounds *bounds, double least,
                              double most, Sum *sum, double ord)
{
    const i64 size = sizeof(typename T::bits), mine = (i64)job->lane * T::PACK, rest = rest_of(job, T::PACK);
    const char *last = base + (job->end - T::PACK) * size;
    const i64 step = job->step * size;
    const char *p = base + (job->first + mine) * size;
    Running own = *r;
    Digits d;
    while (last - p >= 0) {
        const char *end = T::DIGITS && last - p > (RUN - 1) * step ? p + (RUN - 1) * step : last;
        p = add_tiles<ORD, T, COUNTS>(&own, &d, p, end, last, step, least, most);
        if (T::DIGITS && d.limit > 1) /* the run is long enough, or what follows does not fit */
            close(&d, fixed);
        else if (end - p >= 0) {
            for (int j = 0; j < AHEAD && last - p - j * APART >= 0; j++)
                own = add_apart<ORD, T>(own, job, base, (p + j * APART - base) / size, T::PACK, 0, bounds, sum, ord);
            p += step;
        }
    }
    if (rest < job->end)
        own = add_apart<ORD, T>(own, job, base, rest, (int)(job->end - rest), 0, bounds, sum, ord);
    *r = own;
}

template <class T>
RARE void measure_pair_tiles(Running *r, const Job *job, char *base, Sum *sum);

/* This thread's part of a segment. PAIRS: some leaves are complex, and a kernel of its own reads them: of one for all, loops would
 * spill. */
template <int ORD, class T, bool COUNTS, bool PAIRS>
__device__ void measure_run(Running *r, Fixed *fixed, const Job *job, const Write *made, const Bounds *bounds, double ord,
                            Sum *sum)
{
    enum { N = 4 }; /* packs that are loaded before the first is added */
    const View *view = &job->leaf->from;
    char *base = unit_of(view, job->leaf, job->pool, job->unit);
    const i64 stride = (i64)job->lanes * T::PACK;
    const double least = COUNTS ? bounds->low[view->dtype] : 0, most = COUNTS ? bounds->high[view->dtype] : 0;
    const bool plain = view->ndim <= 1 && !job->leaf->is_complex && !made;
    const bool aligned = view->ndim == 0 && (u64)base % sizeof(uint4) == 0;
    if (plain && aligned && job->lanes > 1) {
        measure_tiles<ORD, T, COUNTS>(r, fixed, job, base, bounds, least, most, sum, ord);
        return;
    }
    if constexpr (PAIRS && !T::SHORT)
        if (aligned && job->leaf->is_complex && !made && job->lanes > 1) {
            measure_pair_tiles<T>(r, job, base, sum);
            return;
        }
    Running own = *r;
    Digits d;
    int groups = 0;
    for (i64 tile = job->first; tile < job->end; tile += job->step) {
        const i64 stop = tile + job->tile < job->end ? tile + job->tile : job->end;
        i64 i = tile + job->lane * T::PACK;
        if (plain) {
            const i64 apart = apart_of(view, job->pool);
            for (; i + (N - 1) * stride + T::PACK <= stop; i += N * stride) {
                uint4 pack[N];
#pragma unroll
                for (int j = 0; j < N; j++)
                    pack[j] = load_pack<T>(base + (i + j * stride) * apart, apart, aligned);
                bool done = add_packs<ORD, T, COUNTS>(&own, &d, pack, N, least, most);
                if (T::DIGITS && (!done || ++groups == RUN)) {
                    close(&d, fixed);
                    groups = 0;
                    done = done || add_packs<ORD, T, COUNTS>(&own, &d, pack, N, least, most);
                }
                for (int j = 0; !done && j < N; j++)
                    own = add_apart<ORD, T>(own, job, base, i + j * stride, T::PACK, made, bounds, sum, ord);
            }
        }
        for (; i < stop; i += stride)
            own = add_apart<ORD, T>(own, job, base, i, stop - i < T::PACK ? (int)(stop - i) : (int)T::PACK, made, bounds, sum,
                                    ord);
    }
    if (T::DIGITS)
        close(&d, fixed);
    *r = own;
}

template <int ORD, bool COUNTS, bool PAIRS, template <class> class As>
__device__ void measure(const Leaf *leaf, i64 count, i64 blocks, const Write *writes, const i64 *open, i64 modulo,
                        const Bounds *bounds, i64 by_leaf, double ord, Sum *slots, u32 *ticket)
{
    __shared__ Sum sums[THREADS]; /* of what is rare */
    __shared__ int any; /* whether a thread of the block met it */
    Job job;
    Running r = {0, 0, 0, 0, 0};
    Fixed fixed = {0, 0, 0};
    Sum *sum = &sums[threadIdx.x];
    if (blockIdx.x == 0 && threadIdx.x == 0)
        *ticket = 0; /* for fold_segments */
    if (open && modulo == 1 && !open[0])
        return;
    if (!find_job(&job, leaf, count, blocks, blockIdx.x)) /* of one unit all threads return, or none */
        return;
    if (COUNTS && by_leaf)
        bounds += job.leaf - leaf;
    leaf = job.leaf;
    const i64 index = writes ? (leaf->first_unit + job.unit) % modulo : 0;
    if (open && !open[index])
        return;
    const Write *made = writes ? writes + index : 0;
    const i64 dtype = leaf->from.dtype;
    clear(sum);
    if (dtype == F16)
        measure_run<ORD, As<Half>, COUNTS, PAIRS>(&r, &fixed, &job, made, bounds, ord, sum);
    else if (dtype == BF16)
        measure_run<ORD, As<Brain>, COUNTS, PAIRS>(&r, &fixed, &job, made, bounds, ord, sum);
    else if (dtype == F32)
        measure_run<ORD, As<Single>, COUNTS, PAIRS>(&r, &fixed, &job, made, bounds, ord, sum);
    else
        measure_run<ORD, Double, COUNTS, PAIRS>(&r, &fixed, &job, made, bounds, ord, sum);
    if (!leaf->narrow) {
        if (threadIdx.x == 0)
            any = 0;
        __syncthreads();
        if (r.rare)
            any = 1;
        if (As<Half>::DIGITS)
            merge_fixed(&fixed); /* waits for all, so that `any` is known */
        merge_running(&r, !As<Half>::DIGITS || dtype == F64 || any);
        if (any)
            merge_lanes(sums, THREADS, ord);
    }
    if (As<Half>::DIGITS && (leaf->narrow || threadIdx.x == 0))
        add_fixed(&r.high, &r.low, fixed);
    if (leaf->narrow || threadIdx.x == 0) {
        Sum s = sum_of(&r, wide_bits(dtype, r.top));
        if (leaf->narrow || any)
            merge(&s, sum, ord);
        slots[leaf->first_slot + job.unit * leaf->segments + job.segment] = s;
    }
}

/* writes: null; or one for each unit number modulo so many, and what is measured is the elements as they would be made:
 * of the units that are open, if `open` is not null. bounds: null; or what is counted is the elements outside: of all
 * leaves or, by_leaf, one for each. */
#define MEASURE(name, ORD, COUNTS, PAIRS, AS)                                                                                  \
    KERNEL(name, __launch_bounds__(THREADS, 2))(const Leaf *leaf, i64 count, i64 blocks, const Write *writes, const i64 *open, \
                                                i64 modulo, const Bounds *bounds, i64 by_leaf, double ord, Sum *slots,         \
                                                u32 *ticket)                                                                   \
    {                                                                                                                          \
        measure<ORD, COUNTS, PAIRS, AS>(leaf, count, blocks, writes, open, modulo, bounds, by_leaf, ord, slots, ticket);       \
    }
MEASURE(measure_largest, 0, false, false, Itself)
MEASURE(measure_magnitudes, 1, false, false, Itself)
MEASURE(measure_squares, 2, false, false, Itself)
MEASURE(measure_pairs, 2, false, true, Itself)
MEASURE(measure_powers, 3, false, false, Itself)
MEASURE(measure_and_count, 2, true, false, Itself)
MEASURE(measure_squares_by_digits, 2, false, false, ByDigits)
MEASURE(measure_and_count_by_digits, 2, true, false, ByDigits)
