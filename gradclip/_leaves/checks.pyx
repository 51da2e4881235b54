# cython: language_level=3, boundscheck=False, wraparound=False
"""Which arrays can be leaves: everything that can be wrong with a single one. Errors do not say where it stands: `Leaves`
does."""
from cpython.list cimport PyList_GET_ITEM
from libc.stdint cimport uintptr_t

import numpy as np
cimport numpy as cnp

from .foreign import addressed
from .overlap import overlaps_itself
from gradclip._leaves.layout cimport GC_F32, GC_F64, dtype_of, fill, lay_out, number_of
from gradclip._leaves.tensors cimport DeviceTensor

cnp.import_array()

cdef object MASKED = np.ma.MaskedArray
cdef object PLAIN_VIEW = np.ndarray.view    # not what a subclass makes of it


cdef Py_ssize_t describe_usual(gc_leaf *leaf, list given, Py_ssize_t first, bint write) noexcept:
    """Describe arrays that are as usual in every respect, from one on and up to the next that is not; returns its index.
    No Python object is made, and nothing but the array is looked at: a leaf costs nanoseconds."""
    cdef Py_ssize_t i, n = len(given)
    cdef cnp.ndarray a
    cdef int dtype, flags
    for i in range(first, n):
        if not cnp.PyArray_CheckExact(<object>PyList_GET_ITEM(given, i)):
            return i
        a = <cnp.ndarray>PyList_GET_ITEM(given, i)
        dtype, flags = dtype_of(a), cnp.PyArray_FLAGS(a)
        if dtype < 0 or not flags & (cnp.NPY_ARRAY_C_CONTIGUOUS | cnp.NPY_ARRAY_F_CONTIGUOUS) or \
                not flags & cnp.NPY_ARRAY_ALIGNED or (write and not flags & cnp.NPY_ARRAY_WRITEABLE) or \
                not cnp.PyArray_ISNOTSWAPPED(a):
            return i
        fill(&leaf[i], a, dtype, <char *>cnp.PyArray_DATA(a))
        leaf[i].first_unit = i
    return n


cdef cnp.ndarray describe(gc_leaf *leaf, object given, bint write):
    """Describe any array, if it can be a leaf; returns it as a plain ndarray.

    Only this view is asked for anything, here and later: a subclass may override whatever Python can ask."""
    cdef bint exact = cnp.PyArray_CheckExact(given)
    cdef cnp.ndarray a = given if exact else PLAIN_VIEW(given, np.ndarray)
    cdef int dtype = dtype_of(a), flags = cnp.PyArray_FLAGS(a)
    if dtype < 0:
        refuse_dtype((<object>a).dtype)
    if not cnp.PyArray_ISNOTSWAPPED(a):
        raise TypeError(f"byte order of {(<object>a).dtype!r} is not this machine's")
    if not exact and issubclass(type(given), MASKED):
        raise TypeError("the mask of a masked array would be ignored; pass .data or .filled(0)")
    if write and not flags & cnp.NPY_ARRAY_WRITEABLE:
        raise ValueError("read-only array, which cannot be written")
    if flags & (cnp.NPY_ARRAY_C_CONTIGUOUS | cnp.NPY_ARRAY_F_CONTIGUOUS) and flags & cnp.NPY_ARRAY_ALIGNED:
        fill(leaf, a, dtype, <char *>cnp.PyArray_DATA(a))
    else:
        if write:
            check_apart(a)
        leaf.device = 0
        lay_out(a, None, leaf, NULL, False)
    return a


cdef int describe_on_device(gc_leaf *leaf, object array, bint write, tuple shape, tuple strides) except -1:
    """Describe a CuPy array, or what stands for one. It has no flag against writing, and its memory cannot be looked at: only
    addresses are. shape: its own. strides: its own too, unless it is in C order; else None"""
    cdef cnp.dtype dtype = array.dtype
    cdef object memory
    cdef uintptr_t start
    cdef ptrdiff_t count = 1, n
    cdef int device
    if type(array) is DeviceTensor:     # whose attributes are read in C
        start, device = (<DeviceTensor>array).ptr, (<DeviceTensor>array).device_id
    else:
        memory = array.data
        start, device = memory.ptr, memory.device_id
    cdef bint contiguous = strides is None or array._f_contiguous
    cdef int kind = dtype.type_num, number = number_of(kind)
    cdef bint is_complex = kind == cnp.NPY_COMPLEX64 or kind == cnp.NPY_COMPLEX128
    cdef int size = 8 if number == GC_F64 else 4 if number == GC_F32 else 2
    if number < 0:
        refuse_dtype(dtype)
    if dtype.byteorder != c"=" and not (<object>dtype).isnative:
        raise TypeError(f"byte order of {dtype!r} is not this machine's")
    if start % size or not contiguous and any([n > 1 and stride % size for n, stride in zip(shape, strides)]):
        raise ValueError("elements are not aligned, which a GPU cannot read")
    leaf.device = 0
    if contiguous:
        for n in shape:
            count *= n
        leaf.dtype = leaf.becomes = number
        leaf.itemsize, leaf.is_complex = size, is_complex
        leaf.size = count << is_complex
        leaf.data = <char *>start
        leaf.ndim = leaf.unit_ndim = leaf.panel = 0
        leaf.units = 1
        leaf.axes = NULL
    else:
        if write:
            check_apart(addressed(array))
        lay_out(array, None, leaf, NULL, False)
    leaf.device = 1 + device
    return 0


cdef int check_apart(cnp.ndarray a) except -1:
    """Raise a ValueError if two elements of an array share memory, so that it cannot be written."""
    if overlaps_itself(a):
        raise ValueError("elements of this view share memory (broadcast or overlapping strides)")
    return 0


def refuse_dtype(dtype):
    """Raise the TypeError about an array that holds no floating-point numbers, or such as the passes do not know."""
    raise TypeError(f"dtype {dtype} cannot be clipped; "
                    "float16, bfloat16, float32, float64, complex64 and complex128 can")
