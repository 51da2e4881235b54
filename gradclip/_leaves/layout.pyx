# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""How an array lies in memory, as the passes see it (_cpu/kernels/leaf.h): from dtype, shape and strides to a gc_leaf."""
from cpython.mem cimport PyMem_Malloc
from libc.stdint cimport uintptr_t

import sys

import numpy as np
cimport numpy as cnp

from .foreign import BRAIN, addressed

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    int NPY_USERDEF

cdef int BFLOAT16 = -1      # NumPy's number for ml_dtypes.bfloat16, once somebody has imported it: the same for all threads
cdef object TENSORS = BRAIN   # and the dtype that PyTorch's bfloat16 has here


cdef int number_of(int number) except -2:
    global BFLOAT16
    if number == cnp.NPY_FLOAT32 or number == cnp.NPY_COMPLEX64:
        return GC_F32
    if number == cnp.NPY_FLOAT64 or number == cnp.NPY_COMPLEX128:
        return GC_F64
    if number == cnp.NPY_FLOAT16:
        return GC_F16
    if number >= NPY_USERDEF:
        if BFLOAT16 < 0 and "ml_dtypes" in sys.modules:
            BFLOAT16 = np.dtype(sys.modules["ml_dtypes"].bfloat16).num
        if number == BFLOAT16:
            return GC_BF16
    return -1


cdef int dtype_of(cnp.ndarray a) except -2:
    """The kernel dtype of the real elements, or -1."""
    cdef int number = cnp.PyArray_TYPE(a)
    if number == cnp.NPY_VOID:
        return GC_BF16 if <void *>cnp.PyArray_DESCR(a) == <void *>TENSORS else -1
    return number_of(number)


cdef struct Axes:
    int count
    ptrdiff_t length[MAX_AXES]
    ptrdiff_t stride[MAX_AXES]


cdef int describe(gc_leaf *leaf, cnp.ndarray a, char *data, Axes *inner, Axes *unit) except -1:
    """Describe an array by the axes of a unit, already ordered and merged, and those along which units lie."""
    cdef int d
    cdef ptrdiff_t first = leaf.first_unit
    cdef int device = leaf.device
    fill(leaf, a, dtype_of(a), data)
    leaf.first_unit, leaf.device = first, device
    for d in range(unit.count):
        leaf.units *= unit.length[d]
        if unit.length[d]:
            leaf.size //= unit.length[d]
    if leaf.size == 0 or leaf.units == 0:
        return 0
    cdef bint aligned = <uintptr_t>data % <uintptr_t>leaf.itemsize == 0
    for d in range(unit.count):
        aligned = aligned and unit.stride[d] % leaf.itemsize == 0
    if inner.count == 0:
        inner.length[0], inner.stride[0], inner.count = 1, leaf.itemsize, 1
    leaf.ndim = 0 if aligned and inner.count == 1 and inner.stride[0] == leaf.itemsize else inner.count
    leaf.unit_ndim = unit.count
    leaf.panel = (aligned and leaf.ndim == 1 and unit.count == 1 and unit.stride[0] == leaf.itemsize
                  and inner.stride[0] % leaf.itemsize == 0 and not leaf.is_complex)
    if leaf.ndim + leaf.unit_ndim == 0:
        return 0
    leaf.axes = <ptrdiff_t *>PyMem_Malloc(2 * (leaf.ndim + leaf.unit_ndim) * sizeof(ptrdiff_t))
    if leaf.axes == NULL:
        raise MemoryError
    cdef ptrdiff_t *p = leaf.axes
    for d in range(leaf.ndim):
        p[d], p[leaf.ndim + d] = inner.length[d], inner.stride[d]
    p += 2 * leaf.ndim
    for d in range(unit.count):
        p[d], p[unit.count + d] = unit.length[d], unit.stride[d]
    return 0


cdef int lay_out(object primary, object secondary, gc_leaf *p, gc_leaf *s, bint keep_order, object unit_axes=()) except -1:
    """Describe an array, or two of one shape walked in step (`secondary`, `s`; else None, NULL), in
    the memory order of the first, or with `keep_order` in index order."""
    cdef cnp.ndarray a = addressed(primary), b = a if secondary is None else addressed(secondary)
    cdef Axes x, y, ux, uy
    cdef ptrdiff_t n, i, j
    cdef int d, e
    cdef char *pa = <char *>cnp.PyArray_DATA(a)
    cdef char *pb = <char *>cnp.PyArray_DATA(b)
    x.count = y.count = ux.count = uy.count = 0
    # Another thread may have set the shape or the dtype of one since they were compared.
    if not cnp.PyArray_SAMESHAPE(a, b):
        raise RuntimeError(f"an array changed during the call, its shape from {primary.shape} to {secondary.shape}")
    if cnp.PyArray_Check(primary) and (dtype_of(a) < 0 or dtype_of(b) < 0):
        raise RuntimeError(f"an array changed during the call, its dtype to {(<object>(a if dtype_of(a) < 0 else b)).dtype}")
    for d in range(cnp.PyArray_NDIM(a)):
        n, i, j = cnp.PyArray_DIM(a, d), cnp.PyArray_STRIDE(a, d), cnp.PyArray_STRIDE(b, d)
        if n == 1:
            continue
        if d in unit_axes:
            put(&ux, &uy, ux.count, n, i, j)
            continue
        if i < 0 and not keep_order:
            pa += (n - 1) * i
            pb += (n - 1) * j
            i, j = -i, -j
        e = x.count
        while e > 0 and not keep_order and (x.stride[e - 1] < i or (x.stride[e - 1] == i and abs(y.stride[e - 1]) < abs(j))):
            x.length[e], x.stride[e], y.stride[e] = x.length[e - 1], x.stride[e - 1], y.stride[e - 1]
            e -= 1
        put(&x, &y, e, n, i, j)
    if cnp.PyArray_ISCOMPLEX(a):
        put(&x, &y, x.count, 2, cnp.PyArray_ITEMSIZE(a) // 2, cnp.PyArray_ITEMSIZE(b) // 2)
    join(&x, &y)
    join(&ux, &uy)
    describe(p, a, pa, &x, &ux)
    if s != NULL:
        describe(s, b, pb, &y, &uy)
    return 0


cdef void in_index_order(gc_leaf *leaf, cnp.ndarray a, int dtype, ptrdiff_t *axes) noexcept:
    """Describe an array of the host in index order, with its axes in room for 2 * MAX_AXES that the caller has: no memory is
    needed."""
    cdef int d, inner = cnp.PyArray_NDIM(a)
    cdef int count = max(inner + cnp.PyArray_ISCOMPLEX(a), 1)
    fill(leaf, a, dtype, <char *>cnp.PyArray_DATA(a))
    if cnp.PyArray_IS_C_CONTIGUOUS(a) and <uintptr_t>leaf.data % <uintptr_t>leaf.itemsize == 0:
        return
    leaf.ndim, leaf.axes = count, axes
    axes[count - 1], axes[2 * count - 1] = 1 << leaf.is_complex, leaf.itemsize
    for d in range(inner):
        axes[d], axes[count + d] = cnp.PyArray_DIM(a, d), cnp.PyArray_STRIDE(a, d)


cdef void put(Axes *x, Axes *y, int where, ptrdiff_t n, ptrdiff_t i, ptrdiff_t j) noexcept:
    """Put an axis into a place that was made for it."""
    x.length[where], y.length[where], x.stride[where], y.stride[where] = n, n, i, j
    x.count += 1
    y.count += 1


cdef void join(Axes *x, Axes *y) noexcept:
    """Merge each axis into the one around it where both arrays allow."""
    cdef int d, e = 0
    cdef ptrdiff_t n
    for d in range(1, x.count):
        n = x.length[d]
        if x.stride[e] == x.stride[d] * n and y.stride[e] == y.stride[d] * n:
            n *= x.length[e]
        else:
            e += 1
        x.length[e], x.stride[e], y.stride[e] = n, x.stride[d], y.stride[d]
    x.count = y.count = min(e + 1, x.count)
    for d in range(x.count):
        y.length[d] = x.length[d]


cdef bint same_strides(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Whether two arrays of one shape are walked alike."""
    cdef int d
    for d in range(cnp.PyArray_NDIM(a)):
        if cnp.PyArray_STRIDE(a, d) != cnp.PyArray_STRIDE(b, d):
            return False
    return True
