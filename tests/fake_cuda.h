/* Enough of CUDA to run gradclip's kernels on a processor: thread blocks one after the other, each thread a coroutine
 * that gives way at __syncthreads. Slow, and the same arithmetic. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <utility>
#include <tuple>

#define __global__
#define __device__
#define __noinline__
#define __launch_bounds__(threads, blocks)
#define __shared__ static
struct uint4 { unsigned x, y, z, w; };
struct Index { unsigned x; };
static Index threadIdx, blockIdx;

template <class T> static inline T atomicAdd(T *p, T x) { T before = *p; *p += x; return before; }
static inline double __longlong_as_double(long long x) { double y; memcpy(&y, &x, 8); return y; }
static inline long long __double_as_longlong(double x) { long long y; memcpy(&y, &x, 8); return y; }
static inline float __uint_as_float(unsigned x) { float y; memcpy(&y, &x, 4); return y; }
static inline unsigned __float_as_uint(float x) { unsigned y; memcpy(&y, &x, 4); return y; }

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

enum { FIBRES = 256, STACK = 1 << 16 };
static ucontext_t scheduler, fibre[FIBRES];
static char *stacks;
static int running, finished[FIBRES];
static void (*body)();

static inline void __syncthreads() { swapcontext(&fibre[running], &scheduler); }

static void start()
{
    body();
    finished[running] = 1;
}

static void run_block()
{
    int left = FIBRES;
    if (!stacks)
        stacks = (char *)malloc((size_t)FIBRES * STACK);
    for (int i = 0; i < FIBRES; i++) {
        getcontext(&fibre[i]);
        fibre[i].uc_stack.ss_sp = stacks + (size_t)i * STACK;
        fibre[i].uc_stack.ss_size = STACK;
        fibre[i].uc_link = &scheduler;
        finished[i] = 0;
        makecontext(&fibre[i], start, 0);
    }
    while (left)
        for (running = 0; running < FIBRES; running++)
            if (!finished[running]) {
                threadIdx.x = running;
                swapcontext(&scheduler, &fibre[running]);
                left -= finished[running];
            }
}

template <class... A, size_t... I>
static void launch_with(void (*kernel)(A...), unsigned blocks, void **args, std::index_sequence<I...>)
{
    static void (*k)(A...);
    static void **a;
    k = kernel;
    a = args;
    body = [] { k(*(A *)a[I]...); };
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++)
        run_block();
}

template <class... A>
static void launch(void (*kernel)(A...), unsigned blocks, void **args)
{
    launch_with(kernel, blocks, args, std::index_sequence_for<A...>{});
}
