/* The constants of range, for kernels and for the arithmetic of a unit. */
#ifndef GRADCLIP_RANGE_H
#define GRADCLIP_RANGE_H

/* The range of maxima under which bounds (up to 16 times as large), squares, their rounding errors and the sum of
 * any number of them that fits a memory (2**57) stay normal float64 numbers; outside it a block is first multiplied by
 * 2**-+GC_SHIFT. A bin is that many binades. */
#define GC_TINY 0x1p-430
#define GC_HUGE 0x1p+479
#define GC_SHIFT 600

enum {
    GC_FAR = 40,         /* bins between two sums of which the smaller is beyond the last bit of the larger */
    GC_DENORMAL = -1074, /* exponent of the smallest float64 */
};

#endif
