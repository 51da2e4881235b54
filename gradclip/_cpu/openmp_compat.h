/* OpenMP's few questions, answered by a compiler without it too; and which process asks. */
#ifndef GRADCLIP_OPENMP_COMPAT_H
#define GRADCLIP_OPENMP_COMPAT_H

#ifdef _OPENMP
#include <omp.h>
#define GC_OPENMP _OPENMP
#else
#define GC_OPENMP 0
static inline int omp_get_max_threads(void) { return 1; }
#endif

#ifdef _WIN32 /* has no fork */
static inline long gc_process(void) { return 1; }
#else
#include <unistd.h>
static inline long gc_process(void) { return (long)getpid(); }
#endif

#endif
