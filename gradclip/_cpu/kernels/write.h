/* What a write pass does to a unit. */
#ifndef GRADCLIP_WRITE_H
#define GRADCLIP_WRITE_H

#include "../../_scalar/unit.h"
#include "kernels.h"

typedef struct {
    int kind;               /* GC_KEEP, ... */
    int clips;               /* whether the unit is brought to its threshold */
    int zero;               /* first bring elements that are not finite to 0 */
    gc_factor factor;       /* of GC_SCALE and GC_STEP */
    double low[GC_DTYPES];  /* of GC_CLAMP: the bounds, rounded to each dtype */
    double high[GC_DTYPES];
} gc_write;

#endif
