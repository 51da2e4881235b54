/* What CUDA C++ has and C++ has not, as far as gradclip's kernels use it. How the threads of a block run is said by the two
 * headers that include this: coroutines.h and threads.h. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <tuple>
#include <utility>

#define __global__
#define __device__
#define __noinline__
#define __launch_bounds__(threads, blocks)
#define __shared__ static
enum { THREADS_OF_BLOCK = 256 };
struct uint4 {
    unsigned x, y, z, w;
};
struct Index {
    unsigned x;
};
static Index blockIdx, gridDim;

template <class T>
static inline T atomicAdd(T *p, T x)
{
    return __atomic_fetch_add(p, x, __ATOMIC_RELAXED);
}
static inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline double __longlong_as_double(long long x)
{
    double y;
    memcpy(&y, &x, 8);
    return y;
}
static inline long long __double_as_longlong(double x)
{
    long long y;
    memcpy(&y, &x, 8);
    return y;
}
static inline float __uint_as_float(unsigned x)
{
    float y;
    memcpy(&y, &x, 4);
    return y;
}
static inline unsigned __float_as_uint(float x)
{
    unsigned y;
    memcpy(&y, &x, 4);
    return y;
}

/* float16, independently of gradclip: the value by its definition, the rounding by a search over neighbours. */
static inline double f16_value(unsigned h)
{
    int e = h >> 10 & 31, m = h & 1023;
    double v = e == 31 ? (m ? NAN : INFINITY) : e ? ldexp(1024 + m, e - 25) : ldexp(m, -24);
    return h & 0x8000 ? -v : v;
}
static inline float from_f16(unsigned short h) { return (float)f16_value(h); }
static inline unsigned short to_f16(float x)
{
    unsigned sign = signbit(x) ? 0x8000 : 0, low = 0, high = 0x7c00;
    double a = fabs((double)x);
    if (isnan(x))
        return (unsigned short)(sign | 0x7e00);
    if (a >= 65520)
        return (unsigned short)(sign | 0x7c00);
    while (high - low > 1) {
        unsigned middle = (low + high) / 2;
        if (f16_value(middle) <= a)
            low = middle;
        else
            high = middle;
    }
    double below = a - f16_value(low), above = (high == 0x7c00 ? 65536 : f16_value(high)) - a;
    return (unsigned short)(sign | (below < above || (below == above && low % 2 == 0) ? low : high));
}

/* x * y + z rounded towards 0, for a product that float64 holds: from the rounded sum and its error. */
static inline float fma_down_f32(float x, float y, float z)
{
    double p = (double)x * y, sum = p + z, virtual_z = sum - p, error = (p - (sum - virtual_z)) + (z - virtual_z);
    float f = (float)sum;
    double over = ((double)f - sum) - error;
    return f > 0 ? (over > 0 ? nextafterf(f, 0) : f) : (over < 0 ? nextafterf(f, 0) : f);
}

/* Thread blocks run one after the other, in another order at each launch: on a device there is none. */
static void (*body)(); /* what each thread of a block does */
static void run_block();

static unsigned drawn()
{
    static unsigned long long state = 1;
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (unsigned)(state >> 33);
}

static unsigned common_divisor(unsigned a, unsigned b) { return b ? common_divisor(b, a % b) : a; }

template <class... A, size_t... I>
static void launch_with(void (*kernel)(A...), unsigned blocks, void **args, std::index_sequence<I...>)
{
    static void (*k)(A...);
    static void **a;
    k = kernel;
    a = args;
    body = [] { k(*(A *)a[I]...); };
    gridDim.x = blocks;
    unsigned step = 1 + drawn() % blocks, first = drawn() % blocks;
    while (common_divisor(step, blocks) != 1) /* else some blocks would run twice, and others never */
        step++;
    for (unsigned long long i = 0; i < blocks; i++) {
        blockIdx.x = (unsigned)((first + i * step) % blocks);
        run_block();
    }
}

template <class... A>
static void launch(void (*kernel)(A...), unsigned blocks, void **args)
{
    launch_with(kernel, blocks, args, std::index_sequence_for<A...>{});
}
