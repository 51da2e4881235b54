/* Which table of kernels this processor runs. */
#ifndef GRADCLIP_DISPATCH_H
#define GRADCLIP_DISPATCH_H

#include "kernels.h"

/* The tables compiled in that this machine can run, baseline first, best last. Returns how many;
 * `tables` has room for GC_MAX_SETS. */
enum { GC_MAX_SETS = 4 };
int gc_available(const gc_kernels *tables[]);

#endif
