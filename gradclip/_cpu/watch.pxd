# cython: cdivision=True
"""Signals during a read pass: every now and then the thread that called lets Python run their handlers. If one raises, no
thread begins another piece of work, and the exception comes out of the call. A write pass does not ask."""
from gradclip._cpu.fpenv cimport gc_fpenv, gc_fp_enter, gc_fp_leave

cdef extern from "signals.h" nogil:
    double gc_seconds()
    bint gc_handle_signals()
    bint gc_is_set(const bint *flag)
    void gc_set(bint *flag)
    int gc_raise() except -1


cdef struct Watch:
    double due          # when to ask next; 0: soon
    bint stopped        # read by all threads, set by one


cdef inline bint interrupted(Watch *watch, int thread, gc_fpenv *saved) noexcept nogil:
    """Whether to stop, asked between pieces of work. `saved`: the floating-point state of the caller, in which handlers
    run; NULL: this is it.

    The GIL may have to be waited for, so it is taken ten times a second; short passes never take it."""
    cdef double now
    if thread == 0 and not gc_is_set(&watch.stopped):       # number 0 of a team is the thread that called
        now = gc_seconds()
        if watch.due == 0:
            watch.due = now + 0.1
        elif now >= watch.due:
            if saved != NULL:
                gc_fp_leave(saved[0])
            if gc_handle_signals():
                gc_set(&watch.stopped)
            if saved != NULL:
                saved[0] = gc_fp_enter()
            watch.due = gc_seconds() + 0.1
    return gc_is_set(&watch.stopped)
