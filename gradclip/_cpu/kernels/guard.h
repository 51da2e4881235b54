/* What guards the state of machine.pyx in a Python without a GIL. With a GIL it costs no instruction. */
#ifndef GRADCLIP_GUARD_H
#define GRADCLIP_GUARD_H
#include <Python.h>

#ifdef Py_GIL_DISABLED
#ifdef _MSC_VER
typedef volatile int gc_shared_int; /* aligned, so it is read and written whole */
#else
typedef _Atomic int gc_shared_int;
#endif
static PyMutex gc_guard;
static inline void gc_enter(void) { PyMutex_Lock(&gc_guard); }
static inline void gc_leave(void) { PyMutex_Unlock(&gc_guard); }
#else
typedef int gc_shared_int;
static inline void gc_enter(void) {}
static inline void gc_leave(void) {}
#endif

#endif
