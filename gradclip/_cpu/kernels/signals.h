/* How a long pass lets Python see to signals: Ctrl-C, above all. */
#ifndef GRADCLIP_SIGNALS_H
#define GRADCLIP_SIGNALS_H

#include <Python.h>

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <windows.h>
static inline double gc_seconds(void) { return (double)GetTickCount64() * 1e-3; }
#else
#include <time.h>
/* Returns the seconds since some moment in the past. */
static inline double gc_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}
#endif

/* Runs the handlers of signals that have come, if this is Python's main thread. Takes the GIL, which the caller has not got.
 * Returns whether one raised; the exception then waits for gc_raise. */
static inline int gc_handle_signals(void)
{
    PyGILState_STATE state = PyGILState_Ensure();
    int raised = PyErr_CheckSignals() < 0;
    PyGILState_Release(state);
    return raised;
}

/* A flag that one thread sets while others read it; what else they wrote is not ordered by it. */
#if defined(_MSC_VER) && !defined(__clang__)
static inline int gc_is_set(const volatile int *flag) { return *flag; }
static inline void gc_set(volatile int *flag) { *flag = 1; }
#else
static inline int gc_is_set(const int *flag) { return __atomic_load_n(flag, __ATOMIC_RELAXED); }
static inline void gc_set(int *flag) { __atomic_store_n(flag, 1, __ATOMIC_RELAXED); }
#endif

/* Says to Cython that an exception has been set. */
static inline int gc_raise(void) { return -1; }

#endif
