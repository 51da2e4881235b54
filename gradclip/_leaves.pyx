# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The gate: a nesting of arrays becomes a flat table of raw leaves, checked once.

Everything that can be wrong with an input is found here, before the first read, and named by its path;
behind the gate there are only pointers, sizes and strides. A flat list of plain ndarrays, the usual
case, is walked without creating a Python object per leaf: paths are worked out when a message or
a report asks for one.
"""
from cpython.dict cimport PyDict_Check
from cpython.list cimport PyList_Check
from cpython.mem cimport PyMem_Malloc, PyMem_Realloc, PyMem_Free
from cpython.tuple cimport PyTuple_Check
from libc.stdint cimport uintptr_t
from libc.stdlib cimport qsort
from libc.string cimport memset

import sys
import warnings
from collections.abc import Iterator, Mapping
from itertools import islice

import numpy as np
cimport numpy as cnp

from . import _foreign

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    int NPY_USERDEF

cdef extern from "_cpu/kernels.h":
    int GC_F16, GC_BF16, GC_F32, GC_F64

cdef extern from *:
    """
    typedef struct { uintptr_t low, high; ptrdiff_t index; } gc_extent;
    static int gc_by_low(const void *a, const void *b)
    {
        uintptr_t x = ((const gc_extent *)a)->low, y = ((const gc_extent *)b)->low;
        return (x > y) - (x < y);
    }
    """
    ctypedef struct gc_extent:
        uintptr_t low, high
        ptrdiff_t index
    int gc_by_low(const void *a, const void *b) noexcept nogil

cdef int MAX_DEPTH = 200    # far above any model, far below what the C stack holds
cdef int BFLOAT16 = -1      # NumPy's number for ml_dtypes.bfloat16, once somebody has imported it
cdef object MASKED = np.ma.MaskedArray


cdef int dtype_of(cnp.ndarray a) except -2:
    """The kernel dtype of the real elements, or -1."""
    global BFLOAT16
    cdef int number = cnp.PyArray_TYPE(a)
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


cdef int describe(gc_leaf *leaf, cnp.ndarray a, char *data, int axes, ptrdiff_t *length, ptrdiff_t *stride) except -1:
    cdef int d
    leaf.is_complex = cnp.PyArray_ISCOMPLEX(a)
    leaf.dtype = dtype_of(a)
    leaf.itemsize = <int>cnp.PyArray_ITEMSIZE(a) // (2 if leaf.is_complex else 1)
    leaf.size = cnp.PyArray_SIZE(a) * (2 if leaf.is_complex else 1)
    leaf.data = data
    leaf.ndim = 0
    leaf.axes = NULL
    if leaf.size == 0:
        return 0
    if axes == 0:
        length[0], stride[0], axes = 1, leaf.itemsize, 1
    if axes == 1 and stride[0] == leaf.itemsize and <uintptr_t>data % <uintptr_t>leaf.itemsize == 0:
        return 0
    leaf.axes = <ptrdiff_t *>PyMem_Malloc(2 * axes * sizeof(ptrdiff_t))
    if leaf.axes == NULL:
        raise MemoryError
    leaf.ndim = axes
    for d in range(axes):
        leaf.axes[d] = length[d]
        leaf.axes[axes + d] = stride[d]
    return 0


cdef int lay_out(object primary, object secondary, gc_leaf *p, gc_leaf *s, bint keep_order) except -1:
    """Describe an array, or two of one shape walked in step (`secondary`, `s`; else None, NULL), in
    the memory order of the first, or with `keep_order` in index order."""
    cdef cnp.ndarray a = primary, b = primary if secondary is None else secondary
    cdef ptrdiff_t length[65]   # GC_MAX_AXES
    cdef ptrdiff_t sa[65]
    cdef ptrdiff_t sb[65]
    cdef ptrdiff_t n, x, y
    cdef int d, e, axes = 0
    cdef char *pa = <char *>cnp.PyArray_DATA(a)
    cdef char *pb = <char *>cnp.PyArray_DATA(b)
    for d in range(cnp.PyArray_NDIM(a)):
        n, x, y = cnp.PyArray_DIM(a, d), cnp.PyArray_STRIDE(a, d), cnp.PyArray_STRIDE(b, d)
        if n == 1:
            continue
        if x < 0 and not keep_order:
            pa += (n - 1) * x
            pb += (n - 1) * y
            x, y = -x, -y
        e = axes
        while e > 0 and not keep_order and (sa[e - 1] < x or (sa[e - 1] == x and abs(sb[e - 1]) < abs(y))):
            length[e], sa[e], sb[e] = length[e - 1], sa[e - 1], sb[e - 1]
            e -= 1
        length[e], sa[e], sb[e] = n, x, y
        axes += 1
    if cnp.PyArray_ISCOMPLEX(a):
        n = cnp.PyArray_ITEMSIZE(a) // 2
        length[axes], sa[axes], sb[axes] = 2, n, n
        axes += 1
    if axes:    # merge each axis into the one around it where both arrays allow
        e = 0
        for d in range(1, axes):
            n = length[d]
            if sa[e] == sa[d] * n and sb[e] == sb[d] * n:
                n *= length[e]
            else:
                e += 1
            length[e], sa[e], sb[e] = n, sa[d], sb[d]
        axes = e + 1
    describe(p, a, pa, axes, length, sa)
    if s != NULL:
        describe(s, b, pb, axes, length, sb)
    return 0


cdef bint same_strides(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Whether two arrays of one shape are walked alike."""
    cdef int d
    for d in range(cnp.PyArray_NDIM(a)):
        if cnp.PyArray_STRIDE(a, d) != cnp.PyArray_STRIDE(b, d):
            return False
    return True


cdef bint overlaps_itself(cnp.ndarray a):
    """Whether two indices of one array share memory. Nested strides cannot; what is not nested is
    enumerated, which only as_strided makes necessary."""
    cdef ptrdiff_t reach = cnp.PyArray_ITEMSIZE(a)
    for stride, n in sorted((abs(s), n) for s, n in zip((<object>a).strides, (<object>a).shape) if n > 1):
        if stride < reach:
            break
        reach += stride * (n - 1)
    else:
        return False
    starts = np.zeros(1, np.intp)
    for stride, n in zip((<object>a).strides, (<object>a).shape):
        starts = (starts[:, None] + np.arange(n) * stride).ravel()
    starts.sort()
    return bool((np.diff(starts) < (<object>a).itemsize).any())


cdef bint share_memory(cnp.ndarray a, cnp.ndarray b):
    """Exact; by the greatest common stride first, which settles interleaved columns at once."""
    cdef ptrdiff_t g = 0, x, y, size = cnp.PyArray_ITEMSIZE(a)
    cdef int d
    cdef ptrdiff_t offset = <char *>cnp.PyArray_DATA(b) - <char *>cnp.PyArray_DATA(a)
    for array in (a, b):
        for d in range(cnp.PyArray_NDIM(array)):
            if cnp.PyArray_DIM(array, d) > 1:
                x, y = abs(cnp.PyArray_STRIDE(array, d)), g
                while x:
                    x, y = y % x, x
                g = y
    if g:
        offset = (offset % g + g) % g
        if offset >= size and offset <= g - cnp.PyArray_ITEMSIZE(b):
            return False
    return np.shares_memory(a, b)


cdef class Leaves:
    """The leaves of one nesting, in order, `None` left out.

    Parameters
    ----------
    tree : nesting of arrays
    write : whether the leaves are going to be written
    name : what the nesting is called in messages
    """

    def __cinit__(self, object tree, bint write=False, str name="grads"):
        self.arrays = []
        self.name = name
        self.tree = tree
        self._capacity = 0
        self.walk(tree, write, 0)
        if self.count == 0 and isinstance(tree, Iterator):
            warnings.warn(f"{name}: the iterator yielded no arrays (was it used up before?)", RuntimeWarning, stacklevel=2)
        if write and self.count > 1:
            self.check_overlap([])

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.count):
            PyMem_Free(self.leaf[i].axes)
        if self.source != NULL:
            for i in range(self.count):
                PyMem_Free(self.source[i].axes)
            PyMem_Free(self.source)
        PyMem_Free(self.leaf)

    def __len__(self):
        return self.count

    @property
    def is_target(self):
        """Whether these receive what is made of other leaves."""
        return self.source != NULL

    @property
    def size(self):
        """Elements of all leaves; a complex number is one."""
        cdef Py_ssize_t i, total = 0
        for i in range(self.count):
            total += self.leaf[i].size // (2 if self.leaf[i].is_complex else 1)
        return total

    # ---- walking the nesting ----------------------------------------------------------------

    cdef object children(self, object node):
        """What a container holds, in order; None for a leaf."""
        if PyList_Check(node) or PyTuple_Check(node):
            return node
        if PyDict_Check(node) or isinstance(node, Mapping):
            return list(node.values())
        if _foreign.is_array(node) or isinstance(node, (str, bytes)):
            return None
        if isinstance(node, Iterator) or _foreign.is_collection(node):
            if self._materialised is None:
                self._materialised = {}
            if id(node) not in self._materialised:
                self._materialised[id(node)] = (node, list(node))
            return self._materialised[id(node)][1]
        return None

    cdef int walk(self, object node, bint write, int depth) except -1:
        cdef object inner
        if cnp.PyArray_Check(node):
            self.add(node, write)
        elif node is not None:
            inner = self.children(node)
            if inner is None:
                self.add_foreign(node, write)
            else:
                if depth == MAX_DEPTH:
                    raise ValueError(f"{self.name}: nested deeper than {MAX_DEPTH} levels; does a container hold itself?")
                for child in inner:
                    if cnp.PyArray_Check(child):
                        self.add(child, write)
                    elif child is not None:
                        self.walk(child, write, depth + 1)
        return 0

    def add_foreign(self, node, bint write):
        try:
            view = _foreign.view(node)
        except TypeError as error:
            raise TypeError(f"{self.path(self.count)}: {error}") from None
        self.add(view, write)
        if self._foreign is None:
            self._foreign = []
        self._foreign.extend([None] * (self.count - 1 - len(self._foreign)))
        self._foreign.append(node)

    cdef int add(self, object node, bint write) except -1:
        cdef cnp.ndarray a = node
        cdef gc_leaf *leaf
        cdef int dtype = dtype_of(a)
        if dtype < 0:
            raise TypeError(f"{self.path(self.count)}: dtype {node.dtype} cannot be clipped; "
                            "float16, bfloat16, float32, float64, complex64 and complex128 can")
        if not cnp.PyArray_ISNOTSWAPPED(a):
            raise TypeError(f"{self.path(self.count)}: byte order of {node.dtype!r} is not this machine's")
        if isinstance(node, MASKED):
            raise TypeError(f"{self.path(self.count)}: the mask of a masked array would be ignored; pass .data or .filled(0)")
        if write:
            if not cnp.PyArray_ISWRITEABLE(a):
                raise ValueError(f"{self.path(self.count)}: read-only array in an in-place call")
        if self.count == self._capacity:
            self._capacity = 2 * self._capacity if self._capacity else 16
            leaf = <gc_leaf *>PyMem_Realloc(self.leaf, self._capacity * sizeof(gc_leaf))
            if leaf == NULL:
                raise MemoryError
            self.leaf = leaf
        leaf = &self.leaf[self.count]
        if (cnp.PyArray_IS_C_CONTIGUOUS(a) or cnp.PyArray_IS_F_CONTIGUOUS(a)) and cnp.PyArray_ISALIGNED(a):
            leaf.is_complex = cnp.PyArray_ISCOMPLEX(a)
            leaf.dtype = dtype
            leaf.itemsize = <int>cnp.PyArray_ITEMSIZE(a) // (2 if leaf.is_complex else 1)
            leaf.size = cnp.PyArray_SIZE(a) * (2 if leaf.is_complex else 1)
            leaf.data = <char *>cnp.PyArray_DATA(a)
            leaf.ndim = 0
            leaf.axes = NULL
        else:
            if write and overlaps_itself(a):
                raise ValueError(f"{self.path(self.count)}: elements of this view share memory (broadcast or overlapping strides)")
            lay_out(a, None, leaf, NULL, False)
        self.arrays.append(node)
        self.count += 1
        return 0

    def each_path(self, node, parts=()):
        """The paths of the leaves under a node, in order."""
        inner = None if isinstance(node, np.ndarray) else self.children(node)
        if inner is None:
            yield "/".join(parts) or self.name
            return
        if isinstance(node, Mapping):
            keys = list(node)
        else:
            keys = getattr(node, "_fields", None) or range(len(inner))
        for key, child in zip(keys, inner):
            if child is not None:
                yield from self.each_path(child, (*parts, str(key)))

    def path(self, Py_ssize_t index):
        """Where the leaf of this index stands: ``layers/3/weight``; a single array: the name."""
        return next(islice(self.each_path(self.tree), index, None))

    def paths(self):
        """The paths of all leaves."""
        return [] if self.tree is None else list(self.each_path(self.tree))

    def rebuild(self, list arrays):
        """The same nesting with other arrays in place of the leaves."""
        remaining = iter(arrays)
        cdef Py_ssize_t position = 0
        foreign = self._foreign or []

        def copy(node):
            nonlocal position
            if node is None:
                return None
            inner = None if isinstance(node, np.ndarray) else self.children(node)
            if inner is None:
                array = next(remaining)
                position += 1
                original = foreign[position - 1] if position <= len(foreign) else None
                return array if original is None else _foreign.wrap(original, array)
            items = [copy(child) for child in inner]
            if isinstance(node, Mapping):
                return _foreign.like_mapping(node, items)
            if isinstance(node, tuple):
                return type(node)(*items) if hasattr(node, "_fields") else tuple(items)
            return items

        return copy(self.tree)

    # ---- where results go -------------------------------------------------------------------

    def target(self, out=None):
        """Leaves to write results of these into: new arrays like them, or those of `out`."""
        cdef Leaves to
        cdef Py_ssize_t i
        if out is None:
            arrays = [np.empty_like(a, subok=False) for a in self.arrays]
            to = Leaves(arrays)
        else:
            to = Leaves(out, True, "out")
            self.check_match(to)
        to.source = <gc_leaf *>PyMem_Malloc(max(to.count, 1) * sizeof(gc_leaf))
        if to.source == NULL:
            raise MemoryError
        memset(to.source, 0, max(to.count, 1) * sizeof(gc_leaf))
        to._pair = self
        for i in range(to.count):
            if self.leaf[i].ndim == 0 and to.leaf[i].ndim == 0 and same_strides(self.arrays[i], to.arrays[i]):
                to.source[i] = self.leaf[i]
            else:
                PyMem_Free(to.leaf[i].axes)
                to.leaf[i].axes = NULL
                lay_out(to.arrays[i], self.arrays[i], &to.leaf[i], &to.source[i], False)
        if out is not None:
            to.check_overlap(self.arrays)
        return to

    def check_match(self, Leaves to):
        """Same nesting, shapes and dtypes, or a ValueError that names the path."""
        mine, theirs = self.paths(), to.paths()
        if mine != theirs and not (mine == [self.name] and theirs == [to.name]):
            present, known = set(theirs), set(mine)
            for path in mine:
                if path not in present:
                    raise ValueError(f"{path}: {to.name} has no such leaf")
            for path in theirs:
                if path not in known:
                    raise ValueError(f"{path}: {to.name} has a leaf that {self.name} has not")
            raise ValueError(f"{mine[0]}: {to.name} has its leaves in another order than {self.name}")
        for path, a, b in zip(mine, self.arrays, to.arrays):
            if a.shape != b.shape or a.dtype != b.dtype:
                raise ValueError(f"{path}: {self.name} has shape {a.shape} and dtype {a.dtype}, "
                                 f"{to.name} has {b.shape} and {b.dtype}")

    def check_overlap(self, list sources):
        """No two leaves share an element; nor does one with a leaf of `sources`, unless it is the very
        same view at the same place in the nesting."""
        cdef Py_ssize_t i, j, n = 0, total = self.count + len(sources)
        cdef gc_extent *extent
        cdef cnp.ndarray a
        cdef ptrdiff_t stride
        cdef uintptr_t reach = 0
        cdef int d
        cdef bint sorted_ = True, apart = True
        if total < 2:
            return
        extent = <gc_extent *>PyMem_Malloc(total * sizeof(gc_extent))
        if extent == NULL:
            raise MemoryError
        try:
            for i in range(total):
                a = self.arrays[i] if i < self.count else sources[i - self.count]
                if cnp.PyArray_SIZE(a) == 0:
                    continue
                extent[n].index = i
                extent[n].low = extent[n].high = <uintptr_t>cnp.PyArray_DATA(a)
                if i < self.count and self.leaf[i].ndim == 0 and self.source == NULL:
                    extent[n].high += <uintptr_t>(self.leaf[i].size * self.leaf[i].itemsize)
                else:
                    for d in range(cnp.PyArray_NDIM(a)):
                        stride = cnp.PyArray_STRIDE(a, d) * (cnp.PyArray_DIM(a, d) - 1)
                        if stride < 0:
                            extent[n].low += <uintptr_t>stride
                        else:
                            extent[n].high += <uintptr_t>stride
                    extent[n].high += <uintptr_t>cnp.PyArray_ITEMSIZE(a)
                if n > 0 and extent[n].low < extent[n - 1].low:
                    sorted_ = False
                n += 1
            if not sorted_:
                qsort(extent, n, sizeof(gc_extent), gc_by_low)
            for i in range(n):
                if extent[i].low < reach:
                    apart = False
                    break
                reach = extent[i].high
            if apart:
                return
            for i in range(n):
                j = i + 1
                while j < n and extent[j].low < extent[i].high:
                    self.compare(extent[i].index, extent[j].index, sources)
                    j += 1
        finally:
            PyMem_Free(extent)

    def compare(self, Py_ssize_t i, Py_ssize_t j, list sources):
        if i > j:
            i, j = j, i
        if i >= self.count:
            return                                  # two arrays that are only read
        a = self.arrays[i]
        b = self.arrays[j] if j < self.count else sources[j - self.count]
        if not share_memory(a, b):
            return
        if j < self.count:
            raise ValueError(f"{self.path(i)} and {self.path(j)} share memory: an element would be written twice")
        j -= self.count
        if i == j and a.strides == b.strides and a.__array_interface__["data"][0] == b.__array_interface__["data"][0]:
            return
        raise ValueError(f"{self.path(i)}: out shares memory with {self._pair.path(j)} of the input, but is not the same view")
