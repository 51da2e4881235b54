/* What the machine's memory allows: a plain read and a plain in-place multiply of the same bytes, with
 * the same threads, and nothing else. compare.py compiles it on the spot. */
#include <stddef.h>
#include <stdint.h>

enum { CHUNK = 1 << 18 }; /* bytes */

uint64_t plain_read(void **leaf, const ptrdiff_t *bytes, ptrdiff_t n, int threads)
{
    uint64_t total = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
    for (ptrdiff_t i = 0; i < n; i++) {
#pragma omp for schedule(static) nowait
        for (ptrdiff_t start = 0; start < bytes[i]; start += CHUNK) {
            ptrdiff_t end = start + CHUNK < bytes[i] ? start + CHUNK : bytes[i];
            const uint64_t *p = (const uint64_t *)((const char *)leaf[i] + start);
            for (ptrdiff_t j = 0; j < (end - start) / 8; j++)
                total += p[j];
        }
    }
    return total;
}

void plain_scale(void **leaf, const ptrdiff_t *bytes, ptrdiff_t n, int threads, float factor)
{
#pragma omp parallel num_threads(threads)
    for (ptrdiff_t i = 0; i < n; i++) {
#pragma omp for schedule(static) nowait
        for (ptrdiff_t start = 0; start < bytes[i]; start += CHUNK) {
            ptrdiff_t end = start + CHUNK < bytes[i] ? start + CHUNK : bytes[i];
            float *p = (float *)((char *)leaf[i] + start);
            for (ptrdiff_t j = 0; j < (end - start) / 4; j++)
                p[j] *= factor;
        }
    }
}
