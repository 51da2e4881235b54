/* Runs every kernel of one table over random blocks and prints a hash of all results, by dtype. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include "kernels.h"

extern const gc_kernels gc_kernels_baseline;

static uint64_t state = 88172645463325252u, hash;

static uint64_t next_random(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static void mix(const void *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        hash = (hash ^ ((const unsigned char *)p)[i]) * 1099511628211u;
}

int main(void)
{
    static const size_t size[] = {2, 2, 4, 8};
    static union {
        uint16_t half[GC_BLOCK];
        float single[GC_BLOCK];
        double full[GC_BLOCK];
    } x, y;
    static double wide[GC_BLOCK], factor[GC_PANEL], total[GC_PANEL], rest[GC_PANEL], column_max[GC_PANEL];
    const gc_kernels *k = &gc_kernels_baseline;
    for (int t = 0; t < GC_DTYPES; t++) {
        hash = 14695981039346656037u;
        for (int round = 0; round < 400; round++) {
            int n = 1 + (int)(next_random() % (round % 2 ? GC_BLOCK : 3 * GC_LANES)), spread = 1 + (int)(next_random() % 40);
            for (int i = 0; i < n; i++) {
                double v = (double)(int64_t)next_random() / 9.3e18;
                for (int e = (int)(next_random() % spread); e > 0; e--)
                    v /= 2;
                float f = (float)v;
                uint32_t u;
                memcpy(&u, &f, 4);
                if (t == GC_F16) /* any bits but Inf and NaN */
                    x.half[i] = (uint16_t)(next_random() & 0xbbff);
                else if (t == GC_BF16)
                    x.half[i] = (uint16_t)(u >> 16);
                else if (t == GC_F32)
                    x.single[i] = f;
                else
                    x.full[i] = v;
            }
            double amax = k->amax[t](&x, n);
            mix(&amax, 8);
            double bound = 1.0 / 1024; /* at times too low, at times just right, at times far above */
            while (round % 4 && bound < amax)
                bound *= 2;
            gc_sum squares = k->sum_squares[t](&x, n, bound), sum = k->sum_abs[t](&x, n, bound);
            gc_sum ahead = k->ahead->sum_squares[t](&x, n, bound);
            if (amax > bound && n > GC_LANES) /* the sums mean nothing */
                squares.high = squares.low = sum.high = sum.low = ahead.high = ahead.low = 0;
            mix(&squares, sizeof squares);
            mix(&sum, sizeof sum);
            if (memcmp(&squares, &ahead, sizeof ahead))
                return 1;
            k->scale[t](&y, &x, n, 0.37e-3);
            mix(&y, (size_t)n * size[t]);
            k->ahead->scale[t](&y, &x, n, 0.37e-3);
            mix(&y, (size_t)n * size[t]);
            for (int other = 0; other < 3; other++) { /* bounds that differ, are alike, and are 0 */
                const double low = other == 2 ? 0 : -0.125, high = other == 2 ? 0 : other ? 0.125 : 0.25;
                ptrdiff_t outside = k->clamp[t](&y, &x, n, low, high);
                mix(&y, (size_t)n * size[t]);
                mix(&outside, sizeof outside);
                outside = k->count_outside[t](&x, n, low, high);
                mix(&outside, sizeof outside);
            }
            k->step[t](&y, &x, n, -0.3e-2);
            mix(&y, (size_t)n * size[t]);
            k->widen[t](wide, &x, n);
            mix(wide, (size_t)n * sizeof *wide);
            for (int i = 0; i < n; i++)
                wide[i] *= 0.7;
            k->narrow[t](&y, wide, n);
            mix(&y, (size_t)n * size[t]);
            ptrdiff_t width = 1 + n % (round % 2 ? GC_PANEL : 64), rows = n / width, stride = width * (ptrdiff_t)size[t];
            for (ptrdiff_t j = 0; j < width; j++)
                factor[j] = 0.37e-3 * (double)(j + 1);
            for (int ord = 1; ord <= 2; ord++) {
                k->sum_columns[t](&x, stride, rows, width, ord, total, rest, column_max);
                mix(total, (size_t)width * sizeof *total);
                mix(rest, (size_t)width * sizeof *rest);
                mix(column_max, (size_t)width * sizeof *column_max);
            }
            k->scale_columns[t](&y, stride, &x, stride, rows, width, factor);
            mix(&y, (size_t)(rows * stride));
            memset(total, 0, sizeof total);
            memset(rest, 0, sizeof rest);
            const ptrdiff_t samples = 1 + round % GC_TOGETHER, strip = n / samples < GC_STRIP ? n / samples : GC_STRIP;
            k->add_samples[t](total, rest, &x, &x, strip * (ptrdiff_t)size[t], samples, strip, factor);
            mix(total, (size_t)strip * sizeof *total);
            mix(rest, (size_t)strip * sizeof *rest);
        }
        printf("%016llx\n", (unsigned long long)hash);
    }
    return 0;
}
