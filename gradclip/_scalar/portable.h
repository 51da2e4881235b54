/* What lets one source be C, included by the passes, and CUDA, joined to the kernels: the arithmetic of a unit, written once.
 *
 * _gpu/program.py defines GC_CUDA and joins these headers, in their order, before the .cu files; NVRTC has no headers of its own.
 * Every function is for the standard floating-point state (_cpu/kernels/fpenv.h) and must round alike in both languages. */
#ifndef GRADCLIP_PORTABLE_H
#define GRADCLIP_PORTABLE_H

#ifdef GC_CUDA

typedef long long gc_i64;
typedef double gc_long; /* a GPU has nothing wider */
#define GC_SCALAR __device__
#define GC_SCALAR_APART __noinline__ __device__
#define GC_INF __longlong_as_double(0x7ff0000000000000LL)
#define GC_NAN __longlong_as_double(0x7ff8000000000000LL)
#define GC_LONG(number) number
#define gc_exp2l exp2
#define gc_log2l log2
#define gc_rintl rint

#else

#include <math.h>
#include <stdint.h>
typedef int64_t gc_i64;
typedef long double gc_long; /* on some machines no more than a double */
#define GC_SCALAR static inline
#define GC_SCALAR_APART static inline
#define GC_INF INFINITY
#define GC_NAN NAN
#define GC_LONG(number) number##L
#define gc_exp2l exp2l
#define gc_log2l log2l
#define gc_rintl rintl

#endif

#endif
