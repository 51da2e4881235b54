# cython: language_level=3, boundscheck=False, wraparound=False
"""Tensors of PyTorch's own type: their memory as arrays, in a fraction of the time that `Tensor.numpy` takes, or on a GPU as
what a CuPy array would tell, in a fraction of the time that one takes to make.

Whatever is not as usual is left to `foreign`, which takes every tensor, or says why it cannot."""
from cpython.ref cimport Py_INCREF
from libc.stdint cimport uintptr_t

import sys

cimport cython
cimport numpy as cnp

from .foreign import BRAIN, brain, torch_dtype, view_on_gpu

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    object PyArray_NewFromDescr(
        void *subtype, void *descr, int ndim, cnp.npy_intp *shape, cnp.npy_intp *strides, void *data, int flags, void *like)

cdef enum:
    MAX_DIMENSIONS = 64     # of PyTorch as of NumPy

cdef dict MODULES = sys.modules
cdef object LIBRARY = None  # PyTorch, once somebody has imported it,
cdef object TENSOR = None   # and its Tensor


cdef bint is_plain_tensor(object node):
    """Whether something is a tensor and of no subclass, a parameter for one; False without PyTorch, which is never imported
    here."""
    global LIBRARY, TENSOR
    if TENSOR is not None and type(node) is TENSOR:
        return True
    library = MODULES.get("torch")
    if library is LIBRARY and (TENSOR is not None or library is None):   # what is asked of every leaf takes no longer
        return False
    found = getattr(library, "Tensor", None)
    with cython.critical_section(MODULES):      # without a GIL several threads may find it
        LIBRARY, TENSOR = library, found
    return type(node) is found


cdef object array_of(object tensor, bint write):
    """The array that has the memory of a plain tensor; None if something about it is unusual."""
    try:
        return viewed(tensor, write)
    except Exception:       # no storage, or one whose address PyTorch does not give away
        return None


cdef class DeviceTensor:
    """The memory of a tensor on a GPU. It tells of itself what a CuPy array does; the array is made when it is asked for."""

    @property
    def data(self):
        """What has the address `ptr`, and the number of the GPU, `device_id`."""
        return self

    @property
    def nbytes(self):
        return self.size * self.itemsize

    @property
    def ndim(self):
        return len(self.shape)

    def array(self):
        """The CuPy array that has this memory."""
        return view_on_gpu(self.tensor)

    def __getattr__(self, name):
        """What else a CuPy array has."""
        return getattr(self.array(), name)

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        return self.array()[index]


cdef object viewed(object tensor, bint write):
    """The array that has the memory of a plain tensor; None or an error if it has none, or must not be written."""
    cdef cnp.npy_intp shape[MAX_DIMENSIONS]
    cdef cnp.npy_intp strides[MAX_DIMENSIONS]
    cdef cnp.npy_intp last, size, count = 1
    cdef int d, ndim
    cdef bint on_host = tensor.is_cpu
    dtype = torch_dtype(tensor.dtype)
    if dtype is None or not (on_host or on_usable_gpu(tensor)) or (write and tensor.requires_grad) or tensor.is_neg():
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
        count *= shape[d]
        last += (shape[d] - 1) * strides[d]
        strides[d] *= size
    if (last + 1) * size > tensor.untyped_storage().nbytes():   # released or cut short
        return None
    if not on_host:
        return on_device(tensor, dtype, data, count, lengths, strides)
    Py_INCREF(dtype)        # which the call takes
    array = PyArray_NewFromDescr(
        <void *>cnp.ndarray, <void *>dtype, ndim, shape, strides, <void *>data, cnp.NPY_ARRAY_WRITEABLE, NULL)
    cnp.set_array_base(array, tensor)
    return array


cdef bint on_usable_gpu(object tensor):
    """Whether a tensor lies on a GPU, and CuPy is there to work with it: the first leaf imports it."""
    return tensor.is_cuda and "cupy" in sys.modules


cdef DeviceTensor on_device(
        object tensor, object dtype, uintptr_t data, cnp.npy_intp count, tuple lengths, cnp.npy_intp *strides):
    """A tensor on a GPU as what has its memory. strides: in bytes"""
    cdef DeviceTensor made = DeviceTensor.__new__(DeviceTensor)
    cdef int d, ndim = <int>len(lengths)
    cdef cnp.npy_intp rows, columns
    made.tensor, made.dtype = tensor, brain() if dtype is BRAIN else dtype
    made.size, made.itemsize, made.ptr, made.device_id = count, dtype.itemsize, data, tensor.get_device()
    made.shape, made.strides = tuple(lengths), tuple([strides[d] for d in range(ndim)])
    made._c_contiguous = made._f_contiguous = True
    rows = columns = made.itemsize
    for d in range(ndim):       # an axis of length 1 may have any stride
        made._f_contiguous = made._f_contiguous and (made.shape[d] == 1 or strides[d] == columns)
        columns *= made.shape[d]
    for d in range(ndim - 1, -1, -1):
        made._c_contiguous = made._c_contiguous and (made.shape[d] == 1 or strides[d] == rows)
        rows *= made.shape[d]
    return made
