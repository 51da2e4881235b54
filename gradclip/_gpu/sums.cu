/* Sums, folded in pairs of float64 (a GPU has no long double, in which _cpu/kernels/fold.h folds).
 *
 * The headers of _scalar and the .cu files of this folder are one source: joined in the order that program.py gives and compiled by
 * NVRTC, without any other header, for the device at hand. Every struct is made of 8-byte words, so that NumPy can take
 * them as int64 and float64. */
typedef gc_i64 i64;
typedef unsigned long long u64;
typedef unsigned int u32;
typedef unsigned short u16;

#define NONE 0x7fffffffffffffffLL

/* Begins a kernel. What program.py defines for its name says whether a compilation has it: else it is a function that nobody calls. */
#define KERNEL(name, bounds) KERNEL_##name(bounds) void name

/* The rare and the general are functions that are not inlined: the loops of the usual case keep few registers, so that many
 * threads hide the distance of memory, and the source compiles in seconds. */
#define RARE static __noinline__ __device__

/* Threads of a block; packs of 16 bytes that each of them loads before it uses the first, and bytes from one of these to the next. */
enum { THREADS = 256, AHEAD = 8, APART = THREADS * 16 };

struct Sum : gc_measured {
    i64 first;              /* flat index in its leaf of the first element that is not finite, or NONE */
    /* outside, first: where `strict` measures what it may keep, what note_bits tells; outside of a total:
                               what `decide_units` counts */
};

struct Write {
    i64 kind, clips, zero; /* kind: GC_KEEP, ... */
    gc_factor factor;
};

__device__ void clear(Sum *s)
{
    s->high = s->low = s->amax = 0;
    s->bin = s->exponent = s->nans = s->infs = s->outside = 0;
    s->first = NONE;
}

__device__ void two_sum(double *high, double *low, double term) { *low += gc_two_sum(high, term); }

__noinline__ __device__ void fold(Sum *into, double high, double low, i64 bin, double ord)
{
    if (high == 0 && low == 0)
        return;
    if (into->high == 0 && into->low == 0) {
        into->high = high;
        into->low = low;
        into->bin = bin;
        return;
    }
    if (bin != into->bin) {
        i64 apart = bin > into->bin ? bin - into->bin : into->bin - bin;
        int down = -gc_bin_width(ord) * (int)(apart < GC_FAR ? apart : GC_FAR);
        if (bin < into->bin) {
            high = ldexp(high, down);
            low = ldexp(low, down);
        } else {
            into->high = ldexp(into->high, down);
            into->low = ldexp(into->low, down);
            into->bin = bin;
        }
    }
    two_sum(&into->high, &into->low, high);
    into->low += low;
}

__device__ void raise_amax(Sum *into, double amax, i64 exponent)
{
    if (exponent > into->exponent || (exponent == into->exponent && amax > into->amax)) {
        into->amax = amax;
        into->exponent = exponent;
    }
}

__device__ void merge(Sum *into, const Sum *s, double ord)
{
    if (into->bin == s->bin) {
        two_sum(&into->high, &into->low, s->high);
        into->low += s->low;
    } else { /* a copy, whose address may be known elsewhere */
        Sum sum = *into;
        fold(&sum, s->high, s->low, s->bin, ord);
        into->high = sum.high;
        into->low = sum.low;
        into->bin = sum.bin;
    }
    raise_amax(into, s->amax, s->exponent);
    into->nans += s->nans;
    into->infs += s->infs;
    into->outside += s->outside;
    into->first = s->first < into->first ? s->first : into->first;
}

/* The Sums of `lanes` neighbouring threads (a power of two) into that of the first: a tree, so that the order is fixed. */
__noinline__ __device__ void merge_lanes(Sum *shared, int lanes, double ord)
{
    const int thread = threadIdx.x, lane = thread % lanes;
    for (int half = lanes / 2; half > 0; half /= 2) {
        __syncthreads();
        if (lane < half) { /* in registers: two addresses might be one */
            const Sum other = shared[thread + half];
            Sum own = shared[thread];
            merge(&own, &other, ord);
            shared[thread] = own;
        }
    }
    __syncthreads();
}

struct Running { /* of one thread: sum so far, bits of the largest magnitude, elements outside the bounds, and whether its
                               Sum in shared memory holds something too */
    double high, low;
    u64 top;
    int outside, rare;
};

/* What all threads of a block ran up, in that of the first: a tree, so that the order is fixed. sums: whether any has a sum. */
__device__ void merge_running(Running *r, bool sums)
{
    __shared__ double high[THREADS], low[THREADS];
    __shared__ u64 top[THREADS];
    __shared__ int outside[THREADS];
    const int thread = threadIdx.x;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (thread >= half && thread < 2 * half) {
            if (sums) {
                high[thread] = r->high;
                low[thread] = r->low;
            }
            top[thread] = r->top;
            outside[thread] = r->outside;
        }
        __syncthreads();
        if (thread < half) {
            if (sums) {
                two_sum(&r->high, &r->low, high[thread + half]);
                r->low += low[thread + half];
            }
            r->top = top[thread + half] > r->top ? top[thread + half] : r->top;
            r->outside += outside[thread + half];
        }
    }
}

__device__ Sum sum_of(const Running *r, double top)
{
    Sum s;
    clear(&s);
    s.high = r->high;
    s.low = r->low;
    s.amax = top;
    s.outside = r->outside;
    return s;
}

/* Add (x * 2**exponent)**p for x > 0. */
__noinline__ __device__ void add_power(Sum *into, double x, int exponent, gc_order o, double ord)
{
    const gc_power power = gc_power_of(x, exponent, o);
    fold(into, ldexp(power.t, power.k), 0, power.bin, ord);
}

/* sqrt(a*a + b*b) as result * 2**exponent, the exponent 0 where it can be, for finite a, b: to half an ulp and a little. */
__noinline__ __device__ double modulus(double a, double b, i64 *exponent)
{
    a = fabs(a);
    b = fabs(b);
    double large = a > b ? a : b, small = a > b ? b : a;
    *exponent = 0;
    if (small == 0)
        return large;
    int e;
    frexp(large, &e);
    large = ldexp(large, -e);
    small = ldexp(small, -e); /* what underflows here is far below the last bit */
    double p = large * large, q = small * small, t = p + q;
    double rest = ((p - t) + q) + (fma(large, large, -p) + fma(small, small, -q));
    double r = sqrt(t);
    r += (fma(-r, r, t) + rest) / (2 * r);
    *exponent = !(ldexp(r, e) < GC_INF) ? 2 : e < -900 ? -GC_SHIFT : 0; /* where float64 has not the range, or not the bits */
    return ldexp(r, e - (int)*exponent);
}
