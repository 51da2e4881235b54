/* Where elements lie: the table of leaves, a row of 8-byte words for each (from rows.pyx and table.py),
 * behind the rows a pool of axes; and the dtypes. */
struct View {               /* one array, walked unit by unit */
    char *data;             /* of the first unit */
    i64 dtype, ndim;        /* ndim 0: a unit is contiguous */
    i64 axes;               /* place in the pool: ndim lengths, ndim strides, unit_ndim lengths, unit_ndim strides */
};

struct Leaf {
    View to, from;          /* what a write pass writes, and what either pass reads; walked in step */
    i64 size;               /* real elements of a unit */
    i64 units, first_unit, unit_ndim;
    i64 is_complex;
    i64 narrow;             /* a thread, not a block of threads, for a segment of a unit */
    i64 tile, segments;     /* elements of a tile; segments of a unit, to which its tiles belong in turn */
    i64 first_block;        /* thread blocks of the leaf begin here, */
    i64 first_slot;         /* Sums of its segments here: unit by unit */
    char *origin;           /* lowest address; from it and these axes (length, stride, weight, reversed?) follow */
    i64 index_ndim, index_axes; /* flat indices */
};

enum { F16, BF16, F32, F64 };

__device__ u32 bits_of(float x) { return __float_as_uint(x); }

/* All that is done in float32, in instructions that keep subnormal numbers: CuPy compiles with -ftz=true, under which the
 * operators of C do not. */
#ifdef __CUDACC__
#define INSTRUCTION(name, text, out_type, out, in_type, in) \
    __device__ out_type name(in_type x)                     \
    {                                                       \
        out_type y;                                         \
        asm(text " %0, %1;" : "=" out(y) : in(x));          \
        return y;                                           \
    }
INSTRUCTION(from_f16, "cvt.f32.f16", float, "f", u16, "h")
INSTRUCTION(to_f16, "cvt.rn.f16.f32", u16, "h", float, "f")
INSTRUCTION(widen, "cvt.f64.f32", double, "d", float, "f")
INSTRUCTION(to_f32, "cvt.rn.f32.f64", float, "f", double, "d")
INSTRUCTION(to_int, "cvt.rzi.s32.f32", int, "r", float, "f")

#define BINARY(name, text, type, out)                           \
    __device__ type name(float x, float y)                      \
    {                                                           \
        type z;                                                 \
        asm(text " %0, %1, %2;" : "=" out(z) : "f"(x), "f"(y)); \
        return z;                                               \
    }
BINARY(times_f32, "mul.rn.f32", float, "f")
BINARY(plus_f32, "add.rn.f32", float, "f")
BINARY(minus_f32, "sub.rn.f32", float, "f")
BINARY(less_f32, "set.lt.s32.f32", int, "r") /* -1 or 0 */

#define TERNARY(name, text)                                              \
    __device__ float name(float x, float y, float z)                     \
    {                                                                    \
        float w;                                                         \
        asm(text " %0, %1, %2, %3;" : "=f"(w) : "f"(x), "f"(y), "f"(z)); \
        return w;                                                        \
    }
TERNARY(fma_f32, "fma.rn.f32")
TERNARY(fma_down_f32, "fma.rz.f32") /* towards 0 */
#else /* what compiles this for a processor has the first two, and the last */
float from_f16(u16 h);
u16 to_f16(float x);
double widen(float x) { return x; }
float to_f32(double x) { return (float)x; }
int to_int(float x) { return (int)x; }
float times_f32(float x, float y) { return x * y; }
float plus_f32(float x, float y) { return x + y; }
float minus_f32(float x, float y) { return x - y; }
int less_f32(float x, float y) { return -(x < y); }
float fma_f32(float x, float y, float z) { return fmaf(x, y, z); }
float fma_down_f32(float x, float y, float z);
#endif

__device__ u16 to_bf16(float x)
{
    u32 u = bits_of(x);
    return (u & 0x7fffffff) > 0x7f800000 ? u >> 16 | 0x40 : (u + 0x7fff + (u >> 16 & 1)) >> 16;
}

/* The dtypes. PACK elements are 16 bytes, the most that a thread loads at once; eight packs are 2**LOG elements.
 * BIAS: of the exponent, whose bits are above MANTISSA others. SHORT: of 16 bits. WIDE: squares are not exact in float64.
 * DIGITS: squares are added by digits.cu. */
struct Half {
    typedef u16 bits;
    enum {
        DTYPE = F16,
        PACK = 8,
        MASK = 0x7fff,
        INFINITE = 0x7c00,
        MANTISSA = 10,
        BIAS = 15,
        LOG = 6,
        SHORT = 1,
        WIDE = 0,
        DIGITS = 0
    };
    static __device__ float single(bits x) { return from_f16(x); }
    static __device__ bits narrowed(float x) { return to_f16(x); }
    static __device__ double wide(bits x) { return widen(from_f16(x)); }
    static __device__ bits narrow(double x) { return to_f16(to_f32(x)); }
};

struct Brain {
    typedef u16 bits;
    enum {
        DTYPE = BF16,
        PACK = 8,
        MASK = 0x7fff,
        INFINITE = 0x7f80,
        MANTISSA = 7,
        BIAS = 127,
        LOG = 6,
        SHORT = 1,
        WIDE = 0,
        DIGITS = 0
    };
    static __device__ float single(bits x) { return __uint_as_float((u32)x << 16); }
    static __device__ bits narrowed(float x) { return to_bf16(x); }
    static __device__ double wide(bits x) { return widen(single(x)); }
    static __device__ bits narrow(double x) { return to_bf16(to_f32(x)); }
};

struct Single {
    typedef u32 bits;
    enum {
        DTYPE = F32,
        PACK = 4,
        MASK = 0x7fffffff,
        INFINITE = 0x7f800000,
        MANTISSA = 23,
        BIAS = 127,
        LOG = 5,
        SHORT = 0,
        WIDE = 0,
        DIGITS = 0
    };
    static __device__ float single(bits x) { return __uint_as_float(x); }
    static __device__ double wide(bits x) { return widen(single(x)); }
    static __device__ bits narrow(double x) { return bits_of(to_f32(x)); }
};

struct Double {
    typedef u64 bits;
    static const u64 MASK = 0x7fffffffffffffffULL, INFINITE = 0x7ff0000000000000ULL;
    enum { DTYPE = F64, PACK = 2, MANTISSA = 52, SHORT = 0, WIDE = 1, DIGITS = 0 };
    static __device__ double wide(bits x) { return __longlong_as_double((i64)x); }
    static __device__ bits narrow(double x) { return (u64)__double_as_longlong(x); }
};

__device__ int size_of(i64 dtype) { return dtype == F64 ? 8 : dtype == F32 ? 4 : 2; }

/* The value of an element's bits. */
__device__ double wide_bits(i64 dtype, u64 bits)
{
    return dtype == F16    ? Half::wide((u16)bits)
           : dtype == BF16 ? Brain::wide((u16)bits)
           : dtype == F32  ? Single::wide((u32)bits)
                           : Double::wide(bits);
}

__device__ double get(i64 dtype, const char *p)
{
    return dtype == F16    ? Half::wide(*(const u16 *)p)
           : dtype == BF16 ? Brain::wide(*(const u16 *)p)
           : dtype == F32  ? Single::wide(*(const u32 *)p)
                           : Double::wide(*(const u64 *)p);
}

__device__ void put(i64 dtype, char *p, double x)
{
    if (dtype == F16)
        *(u16 *)p = Half::narrow(x);
    else if (dtype == BF16)
        *(u16 *)p = Brain::narrow(x);
    else if (dtype == F32)
        *(u32 *)p = Single::narrow(x);
    else
        *(u64 *)p = Double::narrow(x);
}

/* The last leaf whose `first` (block, unit) is at or before a place. Leaves that have none share it with the next. */
__device__ const Leaf *leaf_at(const Leaf *leaf, i64 count, i64 Leaf::*first, i64 place)
{
    i64 low = 0, high = count;
    while (high - low > 1) {
        i64 middle = (low + high) / 2;
        if (leaf[middle].*first <= place)
            low = middle;
        else
            high = middle;
    }
    return leaf + low;
}

__device__ const i64 *pool_of(const Leaf *leaf, i64 count) { return (const i64 *)(leaf + count); }

__noinline__ __device__ i64 walk(const i64 *axes, i64 ndim, i64 i)
{
    i64 offset = 0;
    for (i64 d = ndim - 1; d > 0; d--) {
        offset += i % axes[d] * axes[ndim + d];
        i /= axes[d];
    }
    return ndim ? offset + i * axes[ndim] : 0;
}

__device__ char *unit_of(const View *view, const Leaf *leaf, const i64 *pool, i64 unit)
{
    return leaf->unit_ndim ? view->data + walk(pool + view->axes + 2 * view->ndim, leaf->unit_ndim, unit) : view->data;
}

/* Element i of the unit at `base`. */
__device__ char *element(const View *view, const i64 *pool, char *base, i64 i)
{
    return base + (view->ndim == 0   ? i * size_of(view->dtype)
                   : view->ndim == 1 ? i * pool[view->axes + 1]
                                     : walk(pool + view->axes, view->ndim, i));
}

/* The elements of 16 bytes, and back: by shifts, since what is indexed through a union ends up in memory. */
__device__ void unpack(u16 *x, uint4 v)
{
    const u32 word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int k = 0; k < 8; k++)
        x[k] = (u16)(word[k / 2] >> 16 * (k % 2));
}

__device__ void unpack(u32 *x, uint4 v)
{
    x[0] = v.x;
    x[1] = v.y;
    x[2] = v.z;
    x[3] = v.w;
}

__device__ void unpack(u64 *x, uint4 v)
{
    x[0] = (u64)v.y << 32 | v.x;
    x[1] = (u64)v.w << 32 | v.z;
}

__device__ uint4 packed(const u16 *x)
{
    uint4 v = {x[0] | (u32)x[1] << 16, x[2] | (u32)x[3] << 16, x[4] | (u32)x[5] << 16, x[6] | (u32)x[7] << 16};
    return v;
}

__device__ uint4 packed(const u32 *x)
{
    uint4 v = {x[0], x[1], x[2], x[3]};
    return v;
}

__device__ uint4 packed(const u64 *x)
{
    uint4 v = {(u32)x[0], (u32)(x[0] >> 32), (u32)x[1], (u32)(x[1] >> 32)};
    return v;
}

/* A whole pack of elements that lie `apart` bytes from each other: at once where `aligned` says that they can be. */
template <class T>
__device__ uint4 load_pack(const char *p, i64 apart, bool aligned)
{
    if (aligned)
        return *(const uint4 *)p;
    typename T::bits x[T::PACK];
#pragma unroll
    for (int k = 0; k < T::PACK; k++)
        x[k] = *(const typename T::bits *)(p + k * apart);
    return packed(x);
}

template <class T>
__device__ void store_pack(char *p, const typename T::bits *x, i64 apart, bool aligned)
{
    if (aligned) {
        *(uint4 *)p = packed(x);
        return;
    }
#pragma unroll
    for (int k = 0; k < T::PACK; k++)
        *(typename T::bits *)(p + k * apart) = x[k];
}

/* Bytes from one element of a unit to the next, where that is always the same. */
__device__ i64 apart_of(const View *view, const i64 *pool) { return view->ndim ? pool[view->axes + 1] : size_of(view->dtype); }

/* Elements i .. i + n of a unit, wherever they lie. */
template <class T>
__noinline__ __device__ void load(typename T::bits *x, const View *view, const i64 *pool, char *base, i64 i, int n)
{
    for (int k = 0; k < T::PACK; k++)
        x[k] = k < n ? *(const typename T::bits *)element(view, pool, base, i + k) : 0;
}

template <class T>
__noinline__ __device__ void store(const typename T::bits *x, const View *view, const i64 *pool, char *base, i64 i, int n)
{
    for (int k = 0; k < n; k++)
        *(typename T::bits *)element(view, pool, base, i + k) = x[k];
}

/* The flat index, in C order, of the element at an address. */
__noinline__ __device__ i64 flat_index(const Leaf *leaf, const i64 *pool, const char *p)
{
    i64 offset = p - leaf->origin, index = 0;
    const i64 *axis = pool + leaf->index_axes;
    for (i64 d = 0; d < leaf->index_ndim; d++, axis += 4) {
        i64 at = offset / axis[1];
        offset -= at * axis[1];
        index += (axis[3] ? axis[0] - 1 - at : at) * axis[2];
    }
    return index;
}

/* What this thread does in a pass over the leaves: of each tile (from `first` to `end`, one every `step` elements) packs lane,
 * lane + lanes ... What runs at the same time lies side by side: segments that each were one stretch of memory cost writing a tenth. */
struct Job {
    const Leaf *leaf;
    const i64 *pool;
    i64 unit, segment, first, tile, step, end;
    int lane, lanes;
};

/* blocks: words from the table's start to the list that says of which leaf each thread block is. False where there is nothing
 * for this thread. */
__device__ bool find_job(Job *job, const Leaf *leaf, i64 count, i64 blocks, u32 block)
{
    job->pool = pool_of(leaf, count);
    job->leaf = leaf += ((const u32 *)((const i64 *)leaf + blocks))[block];
    const u32 local = block - (u32)leaf->first_block, segments = (u32)leaf->segments,
              unit = segments == 1 ? local : local / segments;
    job->segment = local - unit * segments;
    job->unit = unit;
    job->lane = leaf->narrow ? 0 : threadIdx.x;
    job->lanes = leaf->narrow ? 1 : THREADS;
    if (leaf->narrow)
        job->unit = job->unit * THREADS + threadIdx.x;
    job->tile = leaf->tile;
    job->first = job->segment * leaf->tile;
    job->step = leaf->segments * leaf->tile;
    job->end = leaf->size;
    return job->unit < leaf->units;
}

/* The first element behind the last whole pack of a unit, if it is this thread's; else the unit's end. */
__device__ i64 rest_of(const Job *job, int pack)
{
    const i64 rest = job->end / pack * pack, tile = rest / job->tile * job->tile;
    const bool own = (tile - job->first) % job->step == 0 && (rest - tile) / pack % job->lanes == job->lane;
    return own ? rest : job->end;
}
