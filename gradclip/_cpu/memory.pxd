"""The memory of one-dimensional or C-contiguous arrays that this library makes for itself.

Typed memoryviews do the same with more checks, and bring 0.1 MB of code to every module that has one."""
cimport numpy as cnp
from libc.stdint cimport int64_t


cdef inline void *memory_of(object array, int kind) except? NULL:
    """The elements of an array; NULL for None. It has to be contiguous and of a dtype of this number."""
    if array is None:
        return NULL
    cdef cnp.ndarray a = array
    if not cnp.PyArray_EquivTypenums(cnp.PyArray_TYPE(a), kind) or not cnp.PyArray_IS_C_CONTIGUOUS(a):
        raise TypeError(f"not a contiguous array of the right dtype: {array.dtype}")
    return cnp.PyArray_DATA(a)


cdef inline double *doubles(object array) except? NULL:
    """The elements of an array of float64."""
    return <double *>memory_of(array, cnp.NPY_FLOAT64)


cdef inline Py_ssize_t *indices(object array) except? NULL:
    """The elements of an array of intp."""
    return <Py_ssize_t *>memory_of(array, cnp.NPY_INTP)


cdef inline int64_t *words(object array) except? NULL:
    """The elements of an array of int64."""
    return <int64_t *>memory_of(array, cnp.NPY_INT64)


cdef inline unsigned char *flags(object array) except? NULL:
    """The elements of an array of uint8."""
    return <unsigned char *>memory_of(array, cnp.NPY_UINT8)
