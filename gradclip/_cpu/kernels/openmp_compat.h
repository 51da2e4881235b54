/* OpenMP's few questions, answered by a compiler without it too. */
#ifndef GRADCLIP_OPENMP_COMPAT_H
#define GRADCLIP_OPENMP_COMPAT_H

#ifdef _OPENMP
#include <omp.h>
#define GC_OPENMP _OPENMP
#else
#define GC_OPENMP 0
static inline int omp_get_max_threads(void) { return 1; }
static inline int omp_get_num_procs(void) { return 1; }
#endif

#if GC_OPENMP < 200805
static inline int omp_get_thread_limit(void) { return omp_get_max_threads(); }
#endif

#endif
