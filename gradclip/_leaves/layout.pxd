cimport numpy as cnp
from libc.stddef cimport ptrdiff_t

cdef extern from "_cpu/kernels/kernels.h":
    int GC_F16, GC_BF16, GC_F32, GC_F64

cdef extern from "_cpu/kernels/leaf.h" nogil:
    enum:
        MAX_AXES "GC_MAX_AXES"
    ctypedef struct gc_leaf:
        char *data
        ptrdiff_t size
        ptrdiff_t units, first_unit
        ptrdiff_t *axes
        unsigned char dtype, itemsize, is_complex, ndim, unit_ndim, device, panel, becomes
    char *gc_unit_data(const gc_leaf *leaf, ptrdiff_t unit)
    gc_leaf gc_unit(const gc_leaf *leaf, ptrdiff_t unit)
    void gc_move(const gc_leaf *leaf, ptrdiff_t first, ptrdiff_t n, char *buffer, int scatter)


cdef inline void fill(gc_leaf *leaf, cnp.ndarray a, int dtype, char *data) noexcept:
    """Describe an array as contiguous from `data`."""
    cdef int d
    leaf.is_complex = cnp.PyArray_ISCOMPLEX(a)
    leaf.dtype = leaf.becomes = dtype
    leaf.itemsize = 8 if dtype == GC_F64 else 4 if dtype == GC_F32 else 2
    leaf.size = 1 << leaf.is_complex
    for d in range(cnp.PyArray_NDIM(a)):
        leaf.size *= cnp.PyArray_DIM(a, d)
    leaf.data = data
    leaf.device = leaf.ndim = leaf.unit_ndim = leaf.panel = 0
    leaf.units = 1
    leaf.first_unit = 0
    leaf.axes = NULL


cdef int number_of(int number) except -2
cdef int dtype_of(cnp.ndarray a) except -2
cdef int lay_out(object primary, object secondary, gc_leaf *p, gc_leaf *s, bint keep_order, object unit_axes=*) except -1
cdef void in_index_order(gc_leaf *leaf, cnp.ndarray a, int dtype, ptrdiff_t *axes) noexcept
cdef bint same_strides(cnp.ndarray a, cnp.ndarray b) noexcept
