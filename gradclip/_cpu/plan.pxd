from gradclip._cpu.scalar cimport gc_factor

cdef struct Write:
    int kind            # GC_KEEP, ...
    bint acts           # whether the unit is brought to its threshold
    bint zero           # first bring elements that are not finite to 0
    gc_factor factor    # of GC_SCALE and GC_STEP
    double low[4]       # of GC_CLAMP: the bounds, rounded to each dtype
    double high[4]


cdef class Plan:
    cdef readonly Py_ssize_t count
    cdef Write *write
