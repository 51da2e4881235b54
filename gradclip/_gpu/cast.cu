/* The write pass of leaves that are rounded to another dtype. */
__device__ bool is_finite(double x) { return fabs(x) < GC_INF; }

/* x * factor, rounded once to another dtype: as cast_kernels.h does it, but each product that is not exact is rounded to odd twice,
 * to 53 and to 24 bits. */
template <class TO>
__device__ typename TO::bits cast_product(double x, double factor)
{
    const double product = x * factor, rest = fma(x, factor, -product);
    u64 u = (u64)__double_as_longlong(product);
    if constexpr (TO::WIDE)
        return u;
    if (is_finite(product) && rest != 0 && !(u & 1))
        u += (rest < 0) == (product < 0) ? 1 : -1;
    const double exact = __longlong_as_double((i64)u);
    if constexpr (!TO::SHORT)
        return TO::narrow(exact);
    const u64 sign = u & 1ULL << 63, behind = 0x1fffffff;
    if (TO::DTYPE == BF16 && fabs(exact) < 0x1p-126) /* subnormal in float32 too */
        return TO::narrow(__longlong_as_double((i64)((u64)__double_as_longlong((fabs(exact) + 0x1.8p-81) - 0x1.8p-81) | sign)));
    return TO::narrow(__longlong_as_double((i64)((u | ((u & behind) + behind)) & ~behind)));
}

/* The bits, in the dtype that is written, of what the plan makes of an element of another dtype; a step is left to `step_apart`. */
__device__ u64 cast_of(const Leaf *leaf, double x, const Write *w, const Bounds *bounds)
{
    if (w->zero && !is_finite(x))
        x = 0;
    double factor = 1;
    if (w->kind == GC_CLAMP) {
        const double low = bounds->low[leaf->from.dtype], high = bounds->high[leaf->from.dtype];
        x = x < low ? low : x > high ? high : x; /* NaN stays */
    } else if (w->kind == GC_SCALE) {
        factor = w->factor.last;
        if (w->factor.shift) {
            const int half = (int)(w->factor.shift / 2);
            x = x * ldexp(1.0, half) * ldexp(1.0, (int)w->factor.shift - half);
        }
    }
    const i64 dtype = leaf->to.dtype;
    return dtype == F16    ? cast_product<Half>(x, factor)
           : dtype == BF16 ? cast_product<Brain>(x, factor)
           : dtype == F32  ? cast_product<Single>(x, factor)
                           : cast_product<Double>(x, factor);
}

__device__ void put_bits(i64 dtype, char *p, u64 bits)
{
    if (dtype == F64)
        *(u64 *)p = bits;
    else if (dtype == F32)
        *(u32 *)p = (u32)bits;
    else
        *(u16 *)p = (u16)bits;
}

/* This thread's part of a segment whose elements lie anywhere. */
RARE void cast_run(const Job *job, const Write *w, const Bounds *bounds, char *from, char *to)
{
    const Leaf *leaf = job->leaf;
    for (i64 tile = job->first; tile < job->end; tile += job->step)
        for (i64 i = tile + job->lane; i < tile + job->tile && i < job->end; i += job->lanes) {
            const double x = get(leaf->from.dtype, element(&leaf->from, job->pool, from, i));
            put_bits(leaf->to.dtype, element(&leaf->to, job->pool, to, i), cast_of(leaf, x, w, bounds));
        }
}

/* This thread's part of a segment of contiguous elements, which become min(max(x, low), high) * factor. A group of them is whole
 * packs of either dtype, 8 elements at most; all of N groups are loaded before the first is stored. What is behind the last 8 elements
 * is left. */
template <class TO, class T>
RARE void cast_tiles(const Job *job, double low, double high, double factor, const char *from, char *to)
{
    enum { GROUP = TO::PACK > T::PACK ? TO::PACK : T::PACK, PACKS = GROUP / T::PACK, N = PACKS == 4 ? 2 : 4 };
    const i64 apart = (i64)job->lanes * GROUP, last = job->end / 8 * 8 - GROUP;
    for (i64 tile = job->first; tile < job->end; tile += job->step) {
        const i64 stop = tile + job->tile - GROUP < last ? tile + job->tile - GROUP : last;
        for (i64 i = tile + job->lane * GROUP; i <= stop; i += N * apart) {
            uint4 pack[N * PACKS];
#pragma unroll
            for (int j = 0; j < N * PACKS; j++) {
                const i64 at = i + j / PACKS * apart;
                if (at <= stop)
                    pack[j] = ((const uint4 *)(from + at * sizeof(typename T::bits)))[j % PACKS];
            }
#pragma unroll
            for (int j = 0; j < N; j++) {
                const i64 at = i + j * apart;
                if (at > stop)
                    break;
                typename T::bits x[GROUP];
                typename TO::bits y[GROUP];
#pragma unroll
                for (int k = 0; k < PACKS; k++)
                    unpack(x + k * T::PACK, pack[j * PACKS + k]);
#pragma unroll
                for (int k = 0; k < GROUP; k++) {
                    const double v = T::wide(x[k]);
                    y[k] = cast_product<TO>(v < low ? low : v > high ? high : v, factor); /* NaN stays */
                }
#pragma unroll
                for (int k = 0; k < GROUP / TO::PACK; k++)
                    ((uint4 *)(to + at * sizeof(typename TO::bits)))[k] = packed(y + k * TO::PACK);
            }
        }
    }
}

template <class TO, class T>
__device__ bool cast_to(const Job *job, double low, double high, double factor, const char *from, char *to)
{
    if constexpr ((int)TO::DTYPE != (int)T::DTYPE)
        if (job->leaf->to.dtype == TO::DTYPE) {
            cast_tiles<TO, T>(job, low, high, factor, from, to);
            return true;
        }
    return false;
}

template <class T>
__device__ void cast_from(const Job *job, const Write *w, const Bounds *bounds, char *from, char *to)
{
    const i64 becomes = job->leaf->to.dtype, rest = rest_of(job, 8);
    const bool clamps = w->kind == GC_CLAMP;
    const double low = clamps ? bounds->low[T::DTYPE] : -GC_INF, high = clamps ? bounds->high[T::DTYPE] : GC_INF;
    const double factor = w->kind == GC_SCALE ? w->factor.last : 1;
    cast_to<Half, T>(job, low, high, factor, from, to) || cast_to<Brain, T>(job, low, high, factor, from, to) ||
        cast_to<Single, T>(job, low, high, factor, from, to) || cast_to<Double, T>(job, low, high, factor, from, to);
    for (i64 i = rest; i < job->end; i++) {
        const double x = T::wide(((const typename T::bits *)from)[i]);
        put_bits(becomes, to + i * size_of(becomes), cast_of(job->leaf, x, w, bounds));
    }
}

/* This thread's part of a segment that is rounded to another dtype. */
__device__ void cast_leaf(const Job *job, const Write *w, const Bounds *bounds, char *from, char *to)
{
    const Leaf *leaf = job->leaf;
    if (w->zero || w->factor.shift || leaf->from.ndim || leaf->to.ndim || ((u64)from | (u64)to) % sizeof(uint4))
        cast_run(job, w, bounds, from, to);
    else if (leaf->from.dtype == F16)
        cast_from<Half>(job, w, bounds, from, to);
    else if (leaf->from.dtype == BF16)
        cast_from<Brain>(job, w, bounds, from, to);
    else if (leaf->from.dtype == F32)
        cast_from<Single>(job, w, bounds, from, to);
    else
        cast_from<Double>(job, w, bounds, from, to);
}
