/* Loops over float32 that lie in cache, and the kernel: nanoseconds and cycles of each, the fastest of many turns.
 * in_cache.py compiles this with the kernels of one instruction set. */
#include "kernels.c"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { CHAINS = 8, FLOATS = 2 * GC_W, BLOCK = 4096, ROUNDS = 2000 };
typedef float row __attribute__((vector_size(4 * FLOATS)));

static double seconds(void)
{
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double in_float32(const float *p, ptrdiff_t n)
{
    row s[CHAINS] = {{0}};
    for (ptrdiff_t i = 0; i + CHAINS * FLOATS <= n; i += CHAINS * FLOATS)
        for (int j = 0; j < CHAINS; j++) {
            row x;
            memcpy(&x, p + i + j * FLOATS, sizeof x);
            s[j] += x * x;
        }
    for (int j = 1; j < CHAINS; j++)
        s[0] += s[j];
    return s[0][0] + s[0][FLOATS - 1];
}

static double in_float64(const float *p, ptrdiff_t n)
{
    vd s[CHAINS] = {{0}};
    for (ptrdiff_t i = 0; i + CHAINS * GC_W <= n; i += CHAINS * GC_W)
        for (int j = 0; j < CHAINS; j++) {
            vd x = gc_load_f32(p + i + j * GC_W);
            s[j] = gc_multiply_add(x, x, s[j]);
        }
    for (int j = 1; j < CHAINS; j++)
        s[0] += s[j];
    return s[0][0];
}

/* All that a kernel finds, so that no part of it is left out as unused. */
static double whole(gc_sum s) { return s.high + s.low + s.amax; }

/* The main loop of the kernel, over everything at once. */
static double exactly(const float *p, ptrdiff_t n)
{
    vd sum[GC_LANES / GC_W], error[GC_LANES / GC_W];
    int32_t largest[GC_LANES] = {0};
    gc_start(2.0 * 64, sum, error);
    ptrdiff_t i = 0;
#if defined(GC_AVX512)
    i = gc_pairs_of_rows(p, n, sum, error, largest, 0);
#endif
    for (; i + GC_LANES <= n; i += GC_LANES) {
        track_f32(p + i, largest);
        add_squares_f32(p + i, sum, error);
    }
    return whole(gc_fold_lanes(2.0 * 64, sum, error, amax_f32(largest, GC_LANES)));
}

static double by_block(const float *p, ptrdiff_t n)
{
    double total = 0;
    for (ptrdiff_t i = 0; i < n; i += BLOCK)
        total += whole(sum_squares_f32(p + i, n - i < BLOCK ? n - i : BLOCK, 8.0));
    return total;
}

/* Seconds of a cycle: a multiplication that waits for the one before takes three, on x86-64 and on arm64. */
static double cycle(void)
{
    double best = 1;
    for (int k = 0; k < 50; k++) {
        volatile uint64_t seed = 3;
        uint64_t a = seed;
        double start = seconds();
        for (int i = 0; i < 100000; i++)
            a *= a;
        start = seconds() - start;
        seed = a;
        best = start < best ? start : best;
    }
    return best / 300000;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        double (*run)(const float *, ptrdiff_t);
    } loop[] = {{"exact, by the kernel", by_block},
                {"exact, the loop alone", exactly},
                {"a plain sum in float64", in_float64},
                {"a plain sum in float32", in_float32}};
    enum { LOOPS = sizeof loop / sizeof *loop };
    const ptrdiff_t n = argc > 1 ? atoll(argv[1]) : 100000;
    float *p = malloc((size_t)n * sizeof *p);
    double best[LOOPS], one = cycle();
    volatile double sink;
    for (ptrdiff_t i = 0; i < n; i++)
        p[i] = (float)rand() / (float)RAND_MAX - 0.5f;
    for (int k = 0; k < LOOPS; k++)
        best[k] = 1;
    for (int turn = 0; turn < ROUNDS; turn++)
        for (int k = 0; k < LOOPS; k++) {
            double start = seconds();
            sink = loop[k].run(p, n);
            start = seconds() - start;
            best[k] = start < best[k] ? start : best[k];
        }
    (void)sink;
    printf("%td float32, a cycle is %.3f ns\n", n, one * 1e9);
    for (int k = 0; k < LOOPS; k++)
        printf("%-24s %.4f ns per element, %.2f cycles for four\n", loop[k].name, best[k] / (double)n * 1e9,
               4 * best[k] / one / (double)n);
    free(p);
    return 0;
}
