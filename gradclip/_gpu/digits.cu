/* Sums of squares of 16 and 32 bits without float64, for cards that have little of it: in integers.
 *
 * A thread scales magnitudes by a power of two to y < 1 and cuts them into digits, y = A / 2**23 + B / 2**46 + r. The first is cut
 * off, so that A is 0 where the last bits of y are in r. Sums of A * A, A * B and B * B are exact; of r, which is below 2**-47 and 0
 * unless y is below 2**-23 (16 bits: 2**-39), 2 * r * y is added in float32 or, of 16 bits, nothing. An element loses 2**-88 (of 16
 * bits: 2**-85) by that. The largest y that a thread has seen is at least 2**-(1 + SPARE). A run ends after RUN groups of packs, of
 * up to 64 elements: so it loses less than 2**-71 of its sum. */
template <class T>
struct ByDigits : T {
    enum { DIGITS = 1 };
};
template <class T>
using Itself = T; /* added in float64 */

enum { DIGIT = 23, SPARE = 2, RUN = 4 };

/* The integer high * 2**64 + low, times 2**exponent. */
struct Fixed {
    u64 high, low;
    int exponent;
};

/* The sum of two, in the unit of the larger exponent; what is below it is cut off. */
__device__ Fixed plus(Fixed a, Fixed b)
{
    if (!(a.high | a.low))
        return b;
    if (!(b.high | b.low))
        return a;
    if (a.exponent < b.exponent) {
        const Fixed c = a;
        a = b;
        b = c;
    }
    const int down = a.exponent - b.exponent;
    const u64 high = down < 64 ? b.high >> down : 0;
    const u64 low = down == 0    ? b.low
                    : down < 64  ? b.low >> down | b.high << (64 - down)
                    : down < 128 ? b.high >> (down - 64)
                                 : 0;
    const Fixed sum = {a.high + high + (a.low + low < low), a.low + low, a.exponent};
    return sum;
}

/* Add one to a pair of float64. */
RARE void add_fixed(double *high, double *low, Fixed sum)
{
    const u64 part[4] = {sum.high >> 32, sum.high & 0xffffffff, sum.low >> 32, sum.low & 0xffffffff};
    for (int k = 0; k < 4; k++) /* each is exact */
        two_sum(high, low, ldexp((double)part[k], sum.exponent + 96 - 32 * k));
}

/* What a run has added so far. */
struct Digits {
    float scale;
    u32 limit; /* magnitudes whose bits are not below this are too large; closed: 1, and only zeros may be added */
    u64 aa, ab, bb;

    __device__ Digits() : scale(0), limit(1), aa(0), ab(0), bb(0) {}
};

/* Whether elements up to `worst` can be added: a run begins with them, unless they are near the end of float32's range, or they are
 * not too large for the one that is open. */
template <class T>
__device__ bool can_add(Digits *d, u32 worst)
{
    if (worst < d->limit)
        return true;
    if (d->limit > 1)
        return false;
    if (T::DTYPE == F16) { /* all of them, exactly */
        d->limit = T::INFINITE;
        d->scale = 0x1p-16f;
        return true;
    }
    const u32 exponent = worst >> T::MANTISSA;
    d->limit = (exponent + 1 + SPARE) << T::MANTISSA;
    d->scale = __uint_as_float((2 * T::BIAS - 1 - SPARE - exponent) << 23);
    if (exponent <= 2 * T::BIAS - 2 - SPARE)
        return true;
    d->limit = 1;
    return false;
}

/* The squares of some packs for which `can_add` is true. */
template <class T, int N>
__device__ void add_digits(Digits *d, const uint4 (&pack)[N])
{
    const float one = 1, below = 0x1p-23f; /* 2**-DIGIT; their last places are the digits' */
    const u32 mask = T::SHORT ? 0x7fff7fff : 0x7fffffff;
    float rest = 0;
#pragma unroll
    for (int j = 0; j < N; j++) {
        typename T::bits x[T::PACK];
        unpack(x, uint4{pack[j].x & mask, pack[j].y & mask, pack[j].z & mask, pack[j].w & mask});
#pragma unroll
        for (int k = 0; k < T::PACK; k++) {
            const float y = T::single(x[k]), first = fma_down_f32(y, d->scale, one),
                        left = fma_f32(y, d->scale, minus_f32(one, first)), second = plus_f32(left, below);
            const u32 a = bits_of(first) - bits_of(one), b = bits_of(second) - bits_of(below);
            d->aa += (u64)a * a;
            d->ab += (u64)a * b;
            d->bb += (u64)b * b;
            if (!T::SHORT)
                rest = fma_f32(minus_f32(left, minus_f32(second, below)), left, rest);
        }
    }
    if (!T::SHORT)
        d->bb += (i64)to_int(times_f32(rest, 0x1p93f));
}

/* Add a run to a sum, and let none be open. Apart from the loops, which would spill with it. */
RARE void close(Digits *d, Fixed *sum)
{
    const int exponent = 2 * (127 - (int)(bits_of(d->scale) >> 23) - 2 * DIGIT);
    const u64 tail[2] = {(u64)((i64)d->bb >> 63), d->bb}, middle[2] = {d->ab >> 40, d->ab << 24},
              head[2] = {d->aa >> 18, d->aa << 46};
    Fixed run = {head[0] + middle[0], head[1] + middle[1], exponent};
    run.high += run.low < middle[1];
    run.low += tail[1];
    run.high += tail[0] + (run.low < tail[1]);
    *sum = plus(*sum, run);
    *d = Digits();
}

/* The sums of all threads of a block, in that of the first: a tree, so that the order is fixed. */
__device__ void merge_fixed(Fixed *own)
{
    __shared__ u64 high[THREADS], low[THREADS];
    __shared__ int exponent[THREADS];
    const int thread = threadIdx.x;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (thread >= half && thread < 2 * half) {
            high[thread] = own->high;
            low[thread] = own->low;
            exponent[thread] = own->exponent;
        }
        __syncthreads();
        if (thread < half) {
            const Fixed other = {high[thread + half], low[thread + half], exponent[thread + half]};
            *own = plus(*own, other);
        }
    }
}
