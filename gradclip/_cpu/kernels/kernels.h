/* The table of leaf kernels: what one instruction set offers.
 *
 * A kernel is a serial, allocation-free function on (pointer, count) over contiguous elements; it
 * knows nothing of Python, threads, strides or policies. kernels.c is compiled once per
 * instruction set and fills one table; dispatch.c picks one when the library loads. ../README.md
 * states the contract that every kernel keeps.
 */
#ifndef GRADCLIP_KERNELS_H
#define GRADCLIP_KERNELS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "../../_scalar/range.h"

/* Elements per block and float64 lanes per block. Fixed: results depend on both, so they are the
 * same for every instruction set and thread count. */
enum { GC_BLOCK = 4096, GC_LANES = 16 };

/* Columns that are worked on together: long pieces of rows, which memory delivers twice as fast as short ones. No more, as
 * what scale_columns notes of them lies on the stack, of which a thread may have no more than 64 KiB. */
enum { GC_PANEL = 2048 };

/* Elements of a sample: with their sums they stay in the nearest cache. Samples that are added together, and how many elements
 * of each: the widest vector, so that every set does the same with them. */
enum { GC_STRIP = 1024, GC_TOGETHER = 8, GC_EIGHT = 8 };

enum { GC_F16, GC_BF16, GC_F32, GC_F64, GC_DTYPES };

/* high + low, unevaluated: the sum of one block, to about 100 bits; and its largest magnitude, not finite
 * (Inf or NaN) exactly when some element is not, in which case the sum means nothing. */
typedef struct {
    double high, low, amax;
} gc_sum;

typedef struct gc_kernels gc_kernels;
struct gc_kernels {
    const char *name;
    /* Largest magnitude; not finite (Inf or NaN) exactly when some element is not. Any n. */
    double (*amax[GC_DTYPES])(const void *x, ptrdiff_t n);
    /* Sum of squares and of magnitudes of n <= GC_BLOCK elements whose magnitudes are not above
     * `bound`, a power of two: if the amax that comes back is, the sum means nothing. The error is
     * relative to the bound. For float64 it lies within GC_TINY .. GC_HUGE. sum_squares of n <= GC_LANES asks for no bound,
     * and means nothing where amax is outside that range. */
    gc_sum (*sum_squares[GC_DTYPES])(const void *x, ptrdiff_t n, double bound);
    gc_sum (*sum_abs[GC_DTYPES])(const void *x, ptrdiff_t n, double bound);
    /* y = x * factor, rounded once to the dtype (f32, f16, bf16: within 0.501 ulp). y may be x. */
    void (*scale[GC_DTYPES])(void *y, const void *x, ptrdiff_t n, double factor);
    /* y = x with every element that is not finite replaced by 0. y may be x. */
    void (*zero_nonfinite[GC_DTYPES])(void *y, const void *x, ptrdiff_t n);
    /* y = n <= GC_BLOCK elements x brought into [low, high], both representable in the dtype; returns how many were outside.
     * NaN stays, and so does a zero of any sign where a bound is 0. y may be x. */
    ptrdiff_t (*clamp[GC_DTYPES])(void *y, const void *x, ptrdiff_t n, double low, double high);
    /* How many clamp would change. */
    ptrdiff_t (*count_outside[GC_DTYPES])(const void *x, ptrdiff_t n, double low, double high);
    /* y = y - x * factor: the product and the difference each rounded once, in float32 for halves, then to the dtype. */
    void (*step[GC_DTYPES])(void *y, const void *x, ptrdiff_t n, double factor);
    /* To float64, and back, rounded (halves by way of float32). */
    void (*widen[GC_DTYPES])(double *y, const void *x, ptrdiff_t n);
    void (*narrow[GC_DTYPES])(void *y, const double *x, ptrdiff_t n);
    /* y = x * factor, element by element: the exact product, rounded once. */
    void (*cast[GC_DTYPES])(void *y, const double *x, const double *factor, ptrdiff_t n);
    /* sum + error += x * factor, element by element, over `rows` rows of n <= GC_STRIP elements that lie `stride` bytes
     * apart, each with a factor; the product is rounded to the dtype. Sums are float64, with what their additions
     * lost in `error`. Both have room for whole vectors. next: rows to be added next, which need not exist. */
    void (*add_samples[GC_DTYPES])(double *sum, double *error, const void *x, const void *next, ptrdiff_t stride,
                                   ptrdiff_t rows, ptrdiff_t n, const double *factor);
    /* Columns of a panel, `rows` rows of n <= GC_PANEL elements that lie `stride` bytes apart: each column's sum of squares
     * (ord 2) or magnitudes (ord 1) as sum + error, and its largest magnitude, not finite if some element is not.
     * Sums of columns whose largest magnitude is outside GC_TINY .. GC_HUGE mean nothing. All three have room for n rounded
     * up to GC_LANES; of sum and error the rest becomes 0. */
    void (*sum_columns[GC_DTYPES])(const void *x, ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t n, int ord, double *sum,
                                   double *error, double *amax);
    /* y = x * factor, column by column (n <= GC_PANEL), as `scale` does it with one factor. y may be x. */
    void (*scale_columns[GC_DTYPES])(void *y, ptrdiff_t y_stride, const void *x, ptrdiff_t x_stride, ptrdiff_t rows,
                                     ptrdiff_t n, const double *factor);
    /* How many elements are NaN and Inf, of a block that amax found not finite. */
    ptrdiff_t (*count_nan[GC_DTYPES])(const void *x, ptrdiff_t n);
    ptrdiff_t (*count_inf[GC_DTYPES])(const void *x, ptrdiff_t n);
    /* Whether some of n sums high + low, of usual blocks, may be that of a norm in the middle between two float64: near.h. */
    int (*any_near_middle)(const double *high, const double *low, ptrdiff_t n, int squares, double error);
    /* What memory allows, for limits.pyx: the sum of n words; x += add. */
    uint64_t (*read_words)(const uint64_t *x, ptrdiff_t n);
    void (*rewrite_words)(uint64_t *x, ptrdiff_t n, uint64_t add);
    /* The same kernels, for long units in a pass over more than the caches hold: they ask for memory a page ahead, which takes
     * up to a tenth more time in cache. */
    const gc_kernels *ahead;
};

/* The power of two some binades above a magnitude in GC_TINY .. GC_HUGE. */
static inline double gc_bound(double amax, int binades)
{
    uint64_t u;
    memcpy(&u, &amax, 8);
    u = ((u >> 52) + 1 + (uint64_t)binades) << 52;
    memcpy(&amax, &u, 8);
    return amax;
}

#endif
