# cython: language_level=3, boundscheck=False, wraparound=False
"""Tensors of PyTorch's own type on the host: their memory as arrays, in a fraction of the time that `Tensor.numpy` takes.

Whatever is not as usual is left to `foreign`, which takes every tensor, or says why it cannot."""
from cpython.ref cimport Py_INCREF
from libc.stdint cimport uintptr_t

import sys

cimport numpy as cnp

from .foreign import torch_dtype

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    object PyArray_NewFromDescr(
        void *subtype, void *descr, int ndim, cnp.npy_intp *shape, cnp.npy_intp *strides, void *data, int flags, void *like)

cdef enum:
    MAX_DIMENSIONS = 64     # of PyTorch as of NumPy

cdef object TENSOR = None   # torch.Tensor, once somebody has imported it


cdef bint is_plain_tensor(object node):
    """Whether something is a tensor and of no subclass, a parameter for one; False without PyTorch, which is never imported
    here."""
    global TENSOR
    if TENSOR is None or type(node) is not TENSOR:
        TENSOR = getattr(sys.modules.get("torch"), "Tensor", None)
    return type(node) is TENSOR


cdef object array_of(object tensor, bint write):
    """The array that has the memory of a plain tensor; None if something about it is unusual."""
    try:
        return viewed(tensor, write)
    except Exception:       # no storage, or one whose address PyTorch does not give away
        return None


cdef object viewed(object tensor, bint write):
    """The array that has the memory of a plain tensor; None or an error if it has none, or must not be written."""
    cdef cnp.npy_intp shape[MAX_DIMENSIONS]
    cdef cnp.npy_intp strides[MAX_DIMENSIONS]
    cdef cnp.npy_intp last, size
    cdef int d, ndim
    dtype = torch_dtype(tensor.dtype)
    if dtype is None or not tensor.is_cpu or (write and tensor.requires_grad) or tensor.is_neg():
        return None
    if dtype.kind == "c" and tensor.is_conj():
        return None
    cdef uintptr_t data = tensor.data_ptr()
    cdef tuple lengths = <tuple>tensor.shape       # a torch.Size
    cdef tuple steps = <tuple>tensor.stride()
    ndim, size, last = <int>len(lengths), dtype.itemsize, tensor.storage_offset()
    if data == 0 or ndim > MAX_DIMENSIONS or len(steps) != ndim:
        return None
    for d in range(ndim):
        shape[d], strides[d] = lengths[d], steps[d]
        if shape[d] == 0:
            return None
        last += (shape[d] - 1) * strides[d]
        strides[d] *= size
    if (last + 1) * size > tensor.untyped_storage().nbytes():   # released or cut short
        return None
    Py_INCREF(dtype)        # which the call takes
    array = PyArray_NewFromDescr(
        <void *>cnp.ndarray, <void *>dtype, ndim, shape, strides, <void *>data, cnp.NPY_ARRAY_WRITEABLE, NULL)
    cnp.set_array_base(array, tensor)
    return array
