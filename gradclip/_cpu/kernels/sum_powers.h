/* Sums of powers of any order over a block. */
#ifndef GRADCLIP_SUM_POWERS_H
#define GRADCLIP_SUM_POWERS_H

#include <stddef.h>
#include "../../_scalar/powers.h"
#include "../../_scalar/wide.h"
#include "kernels.h"

/* Sum of |x * 2**exponent|**p over n finite x, as (high + low) * 2**(GC_SHIFT * bin). */
static inline gc_sum gc_sum_powers(const double *x, ptrdiff_t n, int exponent, double p, int64_t *bin)
{
    const gc_order o = gc_order_of(p);
    gc_sum s = {0, 0, 0};
    double largest = 0;
    for (ptrdiff_t i = 0; i < n; i++)
        largest = fabs(x[i]) > largest ? fabs(x[i]) : largest;
    if (largest == 0)
        return s;
    *bin = gc_power_of(largest, exponent, o).bin;
    for (ptrdiff_t i = 0; i < n; i++) {
        if (x[i] == 0)
            continue;
        gc_power r = gc_power_of(fabs(x[i]), exponent, o);
        if (r.bin < *bin - 1) /* far beyond the last bit */
            continue;
        long double t = ldexpl(r.t, r.k + (int)(r.bin - *bin) * GC_SHIFT);
        double head = (double)t;
        s.low += gc_two_sum(&s.high, head) + (double)(t - head);
    }
    return s;
}

#endif
