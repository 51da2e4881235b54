# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The gate: a nesting of arrays becomes a flat table of raw leaves, checked once.

Everything that can be wrong with an input is found here, before the first read, and named by its path;
behind the gate there are only pointers, sizes and strides. A flat list of plain ndarrays, the usual
case, is walked without creating a Python object per leaf: paths are worked out when a message or
a report asks for one.
"""
from cpython.dict cimport PyDict_CheckExact, PyDict_Next, PyDict_SetItem
from cpython.list cimport PyList_Check, PyList_CheckExact, PyList_GET_ITEM
from cpython.mem cimport PyMem_Malloc, PyMem_Realloc, PyMem_Free
from cpython.ref cimport PyObject
from cpython.tuple cimport PyTuple_Check, PyTuple_CheckExact
from libc.stdint cimport int64_t, uintptr_t
from libc.string cimport memset

import sys
import warnings
from collections.abc import Iterator, Mapping
from itertools import islice

import numpy as np
cimport numpy as cnp

from . import _foreign, _pytorch
from ._overlap import overlaps_itself
from gradclip._layout cimport GC_F32, GC_F64, dtype_of, fill, lay_out, number_of, put_view, same_strides
from gradclip._overlap cimport find_overlap

cnp.import_array()

cdef enum:
    DEVICE_WORDS = 21       # of Leaf in _gpu/leaves.cu

cdef Py_ssize_t MAX_UNITS = 1 << 48     # more than fit a memory, and so few that no size that is worked out from them overflows
cdef int MAX_DEPTH = 200    # far above any model, far below what the C stack holds
cdef object CUPY = None     # cupy.ndarray, once somebody has imported it
cdef object MASKED = np.ma.MaskedArray
cdef object PLAIN_VIEW = np.ndarray.view    # not what a subclass makes of it


cdef bint is_cupy(object node):
    """Whether a leaf is a CuPy array: not without CuPy, which is never imported here."""
    global CUPY
    if PyList_Check(node) or PyTuple_Check(node) or PyDict_CheckExact(node):
        return False
    if CUPY is None or type(node) is not CUPY:
        CUPY = getattr(sys.modules.get("cupy"), "ndarray", None)
    return type(node) is CUPY


def paths_in(outline, name, parts=()):
    """The paths of the leaves of an outline, in order."""
    if outline is True:
        yield "/".join(parts) or name
        return
    keys, inner = outline
    for i, child in enumerate(inner):
        if child is not None:
            yield from paths_in(child, name, (*parts, str(i) if keys is None else keys[i]))


def refuse_anew(path, node):
    raise TypeError(f"{path}: {type(node).__name__} makes its values anew, so none can be written in place")


def keys_of(node, inner):
    """How the items of a container are called in paths; None if by number."""
    keys = node if isinstance(node, Mapping) else getattr(node, "_fields", None) if PyTuple_Check(node) else None
    if keys is None or len(keys) != len(inner):     # a named tuple may have other items than it should
        return None
    return list(map(str, keys))


cdef bint is_subclass(object node):
    """Whether a leaf is an array of a subclass of NumPy's: `arrays` has another of the same memory."""
    return cnp.PyArray_Check(node) and not cnp.PyArray_CheckExact(node)


def flat(node):
    """What stands at the leaves of a nesting that `Leaves.matched` returned."""
    if isinstance(node, dict):
        node = node.values()
    elif not isinstance(node, list):
        if node is not None:
            yield node
        return
    for child in node:
        yield from flat(child)


cdef class Leaves:
    """The leaves of one nesting, in order, `None` left out.

    Parameters
    ----------
    tree : nesting of arrays
    write : whether the leaves are going to be written
    name : what the nesting is called in messages; "params" may be parameters of PyTorch's
    anew : whether `rebuild` is going to make another such nesting
    """

    def __cinit__(self, object tree, bint write=False, str name="grads", bint anew=False):
        self.arrays = []
        self.name = name
        self.tree = tree
        self.write = write
        self.anew = anew
        self._capacity = 0
        self.walk(tree, write, 0)
        if write and self.count > 1:
            self.check_overlap()
        if self._foreign is not None:
            self.sum_duplicates(write)

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.count):
            if self.leaf[i].axes != NULL:
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
            total += self.leaf[i].units * self.leaf[i].size >> self.leaf[i].is_complex
        return total

    # ---- walking the nesting ----------------------------------------------------------------

    cdef object children(self, object node, str name=None):
        """What a container holds, in order; None for a leaf. name: of its nesting, if it is another."""
        if PyList_Check(node) or PyTuple_Check(node):
            return node
        if PyDict_CheckExact(node):
            return list(node.values())
        if isinstance(node, str) or _foreign.is_array(node) or (_pytorch.holds_weights(node) and (name or self.name) != "params"):
            return None
        if isinstance(node, dict):
            return list(node.values())
        if isinstance(node, Mapping) or _foreign.is_collection(node):
            if self._materialised is None:
                self._materialised = {}
            if id(node) not in self._materialised:
                items = list(node.values() if isinstance(node, Mapping) else node)
                self._materialised[id(node)] = (node, items)
                if not items and isinstance(node, Iterator):
                    warnings.warn(f"{self.name}: an iterator yielded nothing (was it used up before?)", RuntimeWarning, stacklevel=2)
            return self._materialised[id(node)][1]
        return None

    cdef int walk(self, object node, bint write, int depth) except -1:
        cdef object inner
        cdef list items
        cdef Py_ssize_t i = 0
        if cnp.PyArray_Check(node):
            self.add(node, write)
        elif is_cupy(node):
            self.add_device(node, write)
        elif node is not None:
            inner = self.children(node)
            if inner is None:
                self.add_foreign(node, write)
            else:
                if not (PyList_CheckExact(node) or PyDict_CheckExact(node) or PyTuple_CheckExact(node)):
                    self.check_container(node, inner)
                if depth == MAX_DEPTH:
                    raise ValueError(f"{self.name}: nested deeper than {MAX_DEPTH} levels; does a container hold itself?")
                items = list(inner)     # which no other thread can change, nor drop an array
                self.reserve(len(items))
                while i < len(items) and self.take(<object>PyList_GET_ITEM(items, i), write):
                    i += 1
                if i == self.count:
                    self.arrays = items if i == len(items) else items[:i]
                else:
                    self.arrays += items if i == len(items) else items[:i]
                for i in range(i, len(items)):
                    child = items[i]
                    if cnp.PyArray_Check(child):
                        self.add(child, write)
                    elif is_cupy(child):
                        self.add_device(child, write)
                    elif child is not None:
                        self.walk(child, write, depth + 1)
        return 0

    def check_container(self, node, inner):
        """A container that is not as usual can hold what is going to be written, and be rebuilt where this is meant."""
        if self.write and _foreign.makes_anew(node, inner):
            refuse_anew(self.path_to(node), node)
        if self.anew:
            try:
                _foreign.check_container(node, inner)
            except TypeError as error:
                raise TypeError(f"{self.path_to(node)}: {error}") from error.__cause__

    def add_foreign(self, node, bint write):
        try:
            view, original = _foreign.view(node, write, self.name == "params")
            if self.anew and not _foreign.is_rebuildable(node):
                raise TypeError(f"a {_foreign.kind_of(node)} cannot be made of another array; {_foreign.TREES}")
        except (TypeError, ValueError, ImportError) as error:
            raise type(error)(f"{self.path(self.count)}: {error}") from None
        if cnp.PyArray_Check(view):
            self.add(view, write)
        else:
            self.add_device(view, write)
            self.in_torch_stream |= _pytorch.is_cuda_tensor(node)
        if self._foreign is None:
            self._foreign = {}
        self._foreign[self.count - 1] = (node, original)

    def announce(self, written=None):
        """Before a write pass: tell PyTorch of those of its tensors that it is going to change (a bool for each leaf)."""
        tensors = [node for i, (node, _) in (self._foreign or {}).items()
                   if _pytorch.is_tensor(node) and (written is None or written[i])]
        if tensors:
            _pytorch.announce(tensors)

    cdef int sum_duplicates(self, bint write) except -1:
        """Where elements of a sparse leaf are stored in parts, let a copy with their sums take its place: after its own
        memory has passed the gate like any other."""
        cdef Py_ssize_t i
        for i, (node, _) in list(self._foreign.items()):
            if not _foreign.is_sparse(node):
                continue
            try:
                canonical = _foreign.canonical(node)
                if canonical is node:
                    continue
                replaced = _foreign.replaced(node, canonical) if write else None
            except (TypeError, ValueError) as error:
                raise type(error)(f"{self.path(i)}: {error}") from None
            PyMem_Free(self.leaf[i].axes)
            self.leaf[i].axes = NULL
            self.arrays[i] = self.admit(canonical.data, write, i)
            self._foreign[i] = (node, canonical)
            if write:
                if self._replaced is None:
                    self._replaced = []
                self._replaced.append(replaced)
        return 0

    cpdef written(self):
        """After a write pass: sparse leaves that were worked on as copies get what these hold.

        Neither Ctrl-C nor a lack of memory comes between two leaves: no bytecode runs here, values of keys that a dict has are
        replaced without allocating, and the old ones live on until the call ends."""
        cdef PyObject *name
        cdef PyObject *value
        cdef Py_ssize_t at
        if self._replaced is not None:
            for attributes, new, _ in self._replaced:
                at = 0
                while PyDict_Next(new, &at, &name, &value):
                    PyDict_SetItem(attributes, <object>name, <object>value)

    def refuse_dtype(self, dtype):
        raise TypeError(f"{self.path(self.count)}: dtype {dtype} cannot be clipped; "
                        "float16, bfloat16, float32, float64, complex64 and complex128 can")

    cdef int reserve(self, Py_ssize_t more) except -1:
        """Make room for some more leaves, and for as many again: what is not touched costs nothing, and glibc, which gives
        memory back when twice the largest block lies free, keeps what a call with many leaves needs for the next."""
        cdef gc_leaf *leaf
        if self.count + more > self._capacity:
            self._capacity = 2 * (self.count + more)
            leaf = <gc_leaf *>PyMem_Realloc(self.leaf, self._capacity * sizeof(gc_leaf))
            if leaf == NULL:
                raise MemoryError
            self.leaf = leaf
        return 0

    cdef bint take(self, object node, bint write) noexcept:
        """Describe an array that is as usual in every respect, into room that has been reserved; False: it is for `add`."""
        cdef cnp.ndarray a
        cdef int dtype, flags
        if not cnp.PyArray_CheckExact(node):
            return False
        a = <cnp.ndarray>node
        dtype, flags = dtype_of(a), cnp.PyArray_FLAGS(a)
        if dtype < 0 or not flags & (cnp.NPY_ARRAY_C_CONTIGUOUS | cnp.NPY_ARRAY_F_CONTIGUOUS) or \
                not flags & cnp.NPY_ARRAY_ALIGNED or (write and not flags & cnp.NPY_ARRAY_WRITEABLE) or \
                not cnp.PyArray_ISNOTSWAPPED(a):
            return False
        fill(&self.leaf[self.count], a, dtype, <char *>cnp.PyArray_DATA(a))
        self.leaf[self.count].first_unit = self.count
        self.count += 1
        self.units = self.count
        return True

    cdef int add(self, object node, bint write) except -1:
        self.reserve(1)
        return self.keep(&self.leaf[self.count], self.admit(node, write, self.count))

    cdef cnp.ndarray admit(self, object node, bint write, Py_ssize_t index):
        """Describe an array as the leaf of an index, if it can be one; returns it as a plain ndarray.

        Only this view is asked for anything, here and later: a subclass may override whatever Python can ask."""
        cdef bint exact = cnp.PyArray_CheckExact(node)
        cdef cnp.ndarray a = node if exact else PLAIN_VIEW(node, np.ndarray)
        cdef gc_leaf *leaf = &self.leaf[index]
        cdef int dtype = dtype_of(a), flags = cnp.PyArray_FLAGS(a)
        leaf.axes = NULL
        if dtype < 0:
            self.refuse_dtype((<object>a).dtype)
        if not cnp.PyArray_ISNOTSWAPPED(a):
            raise TypeError(f"{self.path(index)}: byte order of {(<object>a).dtype!r} is not this machine's")
        if not exact and issubclass(type(node), MASKED):
            raise TypeError(f"{self.path(index)}: the mask of a masked array would be ignored; pass .data or .filled(0)")
        if write and not flags & cnp.NPY_ARRAY_WRITEABLE:
            raise ValueError(f"{self.path(index)}: read-only array, which cannot be written")
        if flags & (cnp.NPY_ARRAY_C_CONTIGUOUS | cnp.NPY_ARRAY_F_CONTIGUOUS) and flags & cnp.NPY_ARRAY_ALIGNED:
            fill(leaf, a, dtype, <char *>cnp.PyArray_DATA(a))
        else:
            if write and overlaps_itself(a):
                raise ValueError(f"{self.path(index)}: elements of this view share memory (broadcast or overlapping strides)")
            leaf.device = 0
            lay_out(a, None, leaf, NULL, False)
        leaf.first_unit = index
        return a

    cdef int keep(self, gc_leaf *leaf, object array) except -1:
        leaf.first_unit = self.count
        self.count += 1             # from here on its axes are freed with those of the others
        self.units = self.count
        self.arrays.append(array)
        return 0

    cdef int add_device(self, object array, bint write) except -1:
        """A CuPy array. It has no flag against writing, and its memory cannot be looked at: only addresses are."""
        cdef gc_leaf *leaf
        cdef object dtype = array.dtype, memory = array.data
        cdef uintptr_t start = memory.ptr
        cdef int kind = dtype.num, number = number_of(kind)
        cdef bint is_complex = kind == cnp.NPY_COMPLEX64 or kind == cnp.NPY_COMPLEX128
        cdef int size = 8 if number == GC_F64 else 4 if number == GC_F32 else 2
        cdef bint contiguous = array._c_contiguous or array._f_contiguous
        if number < 0:
            self.refuse_dtype(dtype)
        if not dtype.isnative:
            raise TypeError(f"{self.path(self.count)}: byte order of {dtype!r} is not this machine's")
        if start % size or not contiguous and any(n > 1 and stride % size for n, stride in zip(array.shape, array.strides)):
            raise ValueError(f"{self.path(self.count)}: elements are not aligned, which a GPU cannot read")
        self.reserve(1)
        leaf = &self.leaf[self.count]
        leaf.device = 0
        if contiguous:
            leaf.dtype, leaf.itemsize, leaf.is_complex = number, size, is_complex
            leaf.size = <ptrdiff_t>array.size << is_complex
            leaf.data = <char *>start
            leaf.ndim = leaf.unit_ndim = leaf.panel = 0
            leaf.units = 1
            leaf.axes = NULL
        else:
            if write and overlaps_itself(_foreign.addressed(array)):
                raise ValueError(f"{self.path(self.count)}: elements of this view share memory (broadcast or overlapping strides)")
            lay_out(array, None, leaf, NULL, False)
        leaf.device = 1 + <int>memory.device_id
        self.keep(leaf, array)
        self.on_device += 1
        return 0

    def outline(self, node):
        """The keys of a nesting without its leaves: None, True for a leaf, or (keys, outlines)."""
        if node is None:
            return None
        inner = None if cnp.PyArray_Check(node) or is_cupy(node) else self.children(node)
        if inner is None:
            return True
        return keys_of(node, inner), [self.outline(child) for child in inner]

    def naming(self):
        """A function from an index to where this leaf stands, which does not keep any leaf alive."""
        cdef Leaves named = self if self._named is None else self._named
        outline, name = named.outline(named.tree), named.name
        count = sys.maxsize if self._named is None else named.count     # parameters stand where gradients do
        return lambda index: next(islice(paths_in(outline, name), index % count, None), name)

    def places(self, node, parts=()):
        """(path, node, whether it is a container) of everything in a nesting, in the order of the walk, and worked out only
        as far as it is asked for: a walk that found an error may not have seen an end."""
        inner = None if node is None or cnp.PyArray_Check(node) or is_cupy(node) else self.children(node)
        yield "/".join(parts) or self.name, node, inner is not None
        if inner is not None:
            keys = keys_of(node, inner)
            for i, child in enumerate(inner):
                yield from self.places(child, (*parts, str(i) if keys is None else keys[i]))

    def path(self, Py_ssize_t index):
        """Where the leaf of this index stands: ``layers/3/weight``; a single array: the name."""
        if self._named is not None:
            return self._named.path(index % self._named.count)
        places = (path for path, node, inside in self.places(self.tree) if not inside and node is not None)
        return next(islice(places, index, None), self.name)

    def path_to(self, wanted):
        """Where a container stands."""
        return next(path for path, node, _ in self.places(self.tree) if node is wanted)

    def paths(self, bint nones=False):
        """The paths of all leaves; with `nones`, also where None stands."""
        return [path for path, node, inside in self.places(self.tree) if not inside and (nones or node is not None)]

    def rebuild(self, list arrays):
        """The same nesting with other arrays in place of the leaves."""
        cdef Py_ssize_t position = 0
        made = self.rebuilt(self.tree, arrays, &position)
        self.check_count(position)
        return made

    cdef object rebuilt(self, object node, list arrays, Py_ssize_t *position):
        """One node of it, whose first leaf is that of `position`. A method: a function that knows itself is a reference
        cycle, which would keep the arrays until the garbage collector runs."""
        cdef Py_ssize_t i
        cdef list items = []
        if node is None:
            return None
        inner = None if cnp.PyArray_Check(node) else self.children(node)
        if inner is not None:
            for child in inner:
                items.append(self.rebuilt(child, arrays, position))
            return _foreign.like_container(node, items)
        i = position[0]
        position[0] += 1
        if i < self.count and node is self.arrays[i]:
            return arrays[i]
        if i < self.count and is_subclass(node):
            return self.wrapped(node, arrays[i], i)
        if i >= self.count or self._foreign is None or i not in self._foreign or node is not self._foreign[i][0]:
            self.refuse_change(i)
        return _foreign.wrap(self._foreign[i][1], arrays[i])

    def wrapped(self, node, array, index):
        """A result as the array that a subclass makes of it."""
        try:
            made = node.__array_wrap__(array)
        except Exception as error:
            raise TypeError(f"{self.path(index)}: {_foreign.kind_of(node)}.__array_wrap__ failed ({error})") from error
        if not cnp.PyArray_Check(made):
            raise TypeError(f"{self.path(index)}: {_foreign.kind_of(node)}.__array_wrap__ gave no array, but {made!r:.80}")
        return made

    def refuse_change(self, Py_ssize_t index):
        """The nesting is not what it was when it was walked."""
        raise RuntimeError(f"{self.path(index)}: {self.name} changed during the call")

    cpdef check_count(self, Py_ssize_t found):
        """What was walked again has as many leaves as before: behind the gate nothing else is checked."""
        if found != self.count:
            self.refuse_change(min(found, self.count))

    # ---- units ------------------------------------------------------------------------------

    def cut(self, list unit_axes):
        """Give every index along some axes of each leaf (a sorted tuple per leaf; empty: none) a norm of its own."""
        cdef Py_ssize_t i
        self._unit_axes = unit_axes
        self.units = 0
        for i in range(self.count):
            if self.is_sparse(i):
                raise TypeError(f"{self.path(i)}: a sparse array is clipped as a whole, not by slice, unit or sample; "
                                "use .toarray()")
            PyMem_Free(self.leaf[i].axes)
            self.leaf[i].axes = NULL
            lay_out(self.arrays[i], None, &self.leaf[i], NULL, False, unit_axes[i])
            if self.leaf[i].units > MAX_UNITS - self.units:     # of no elements
                raise ValueError(f"{self.path(i)}: an array of shape {self.arrays[i].shape} has {self.leaf[i].units} slices, "
                                 "units or samples, more than memory can hold a norm of each")
            self.leaf[i].first_unit = self.units
            self.units += self.leaf[i].units

    def is_sparse(self, Py_ssize_t i):
        """Whether a leaf is a sparse array."""
        return self._foreign is not None and i in self._foreign and _foreign.is_sparse(self._foreign[i][0])

    def leaf_units(self):
        """How many units each leaf has."""
        return [self.leaf[i].units for i in range(self.count)]

    def sources_of(self, Py_ssize_t unit):
        """The arrays that a write pass reads for one unit (-1: for all)."""
        cdef Py_ssize_t i = 0
        if unit < 0:
            return self.sources
        while unit >= self.leaf[i].first_unit + self.leaf[i].units:
            i += 1
        axes = () if self.unit_axes is None else self.unit_axes[i]
        array = self.sources[i]
        array = array.transpose((*axes, *(d for d in range(array.ndim) if d not in axes)))
        return [array[np.unravel_index(unit - self.leaf[i].first_unit, array.shape[: len(axes)])]]

    def summed_into(self, Leaves to):
        """Pairs of samples and their sum: every index of the first axis of these goes to the same leaf of `to`."""
        cdef Leaves pairs = Leaves([])
        cdef Py_ssize_t i
        cdef gc_leaf *leaf
        pairs.reserve(self.count)
        pairs.source = <gc_leaf *>PyMem_Malloc(max(self.count, 1) * sizeof(gc_leaf))
        if pairs.source == NULL:
            raise MemoryError
        memset(pairs.source, 0, max(self.count, 1) * sizeof(gc_leaf))
        for i in range(self.count):
            sums = np.broadcast_to(_foreign.addressed(to.arrays[i]), self.arrays[i].shape)
            leaf = &pairs.leaf[i]
            leaf.axes = NULL
            pairs.keep(leaf, to.arrays[i])
            pairs.source[i].device = leaf.device = self.leaf[i].device
            lay_out(self.arrays[i], sums, &pairs.source[i], leaf, False, (0,))
        return pairs

    @property
    def unit_axes(self):
        return self._unit_axes if self._pair is None else self._pair._unit_axes

    # ---- what lies on a GPU -------------------------------------------------------------------

    def devices(self):
        """The numbers of the GPUs that leaves lie on."""
        return sorted({self.leaf[i].device - 1 for i in range(self.count) if self.leaf[i].device})

    def empty_like(self, Py_ssize_t i, shape=None):
        """A new array like one of these, where it lies."""
        if not self.leaf[i].device:
            return np.empty_like(self.arrays[i], subok=False, shape=shape)
        return self.place(self.leaf[i].device - 1).empty_like(self.arrays[i], shape)

    def place(self, int device):
        """A device, and the stream in which these are worked on there: found out once."""
        from ._gpu.program import Place

        if self._places is None:
            self._places = {}
        if device not in self._places:
            self._places[device] = Place(device, self.in_torch_stream)
        return self._places[device]

    def brought(self, array):
        """A leaf, or part of one, as an array of NumPy: from a GPU, a copy."""
        return self.place(array.data.device_id).fetch(array) if is_cupy(array) else array

    def described(self, int device):
        """The leaves on one GPU: (indices of leaves; for each, the words of `Leaf` in _gpu/leaves.cu that say where its
        elements are; the pool of axes). Words that cut the work stay 0."""
        cdef Py_ssize_t i, n = 0
        cdef const gc_leaf *leaf
        cdef int64_t[:, ::1] row
        cdef list pool = []
        which = [i for i in range(self.count) if self.leaf[i].device == device + 1]
        rows = np.zeros((len(which), DEVICE_WORDS), np.int64)
        row = rows
        for n, i in enumerate(which):
            leaf = &self.leaf[i]
            put_view(&row[n, 0], leaf, pool)
            if self.source != NULL:
                put_view(&row[n, 4], &self.source[i], pool)
            else:
                row[n, 4], row[n, 5], row[n, 6], row[n, 7] = row[n, 0], row[n, 1], row[n, 2], row[n, 3]
            row[n, 8], row[n, 9], row[n, 10], row[n, 11] = leaf.size, leaf.units, leaf.first_unit, leaf.unit_ndim
            row[n, 12], row[n, 13] = leaf.is_complex, leaf.panel
        return which, rows, pool

    # ---- where results go -------------------------------------------------------------------

    def target(self, out=None):
        """Leaves to write results of these into: new arrays like them, or those of `out`."""
        cdef Leaves to
        cdef Py_ssize_t i
        if out is None:
            to = Leaves([self.empty_like(i) for i in range(self.count)])
        else:
            to = Leaves(self.matched(self.tree, out, "out", (), False, True), True, "out")
            self.check_alike(to)
        self.pair(to)
        if out is not None:
            to.check_overlap(self)
        return to

    def onto(self, params):
        """Leaves of `params`, which a write pass changes by these; the dtypes may differ."""
        cdef Leaves to = Leaves(self.matched(self.tree, params, "params", (), False, True), True, "params")
        self.check_alike(to, False)
        self.pair(to)
        to.check_overlap(self, False)
        return to

    def aligned(self, other, str name):
        """What stands in another nesting in the places of these leaves, in order."""
        found = list(flat(self.matched(self.tree, other, name, (), True)))
        self.check_count(len(found))
        return found

    def beside(self, params):
        """These leaves and those of `params`, which are only read, cut alike: leaf i goes with leaf count + i."""
        cdef Leaves other = Leaves(self.matched(self.tree, params, "params", ()), False, "params")
        self.check_alike(other, False)
        cdef Leaves both = Leaves(self.arrays + other.arrays)
        both._named = self
        both.in_torch_stream = self.in_torch_stream or other.in_torch_stream
        self.in_torch_stream = both.in_torch_stream
        both.cut(self.unit_axes + self.unit_axes)
        return both

    cdef int pair(self, Leaves to) except -1:
        """Let `to` receive what is made of these, walked in step."""
        cdef Py_ssize_t i
        self.check_devices(to)
        to.in_torch_stream |= self.in_torch_stream
        to.source = <gc_leaf *>PyMem_Malloc(max(to.count, 1) * sizeof(gc_leaf))
        if to.source == NULL:
            raise MemoryError
        memset(to.source, 0, max(to.count, 1) * sizeof(gc_leaf))
        to._pair = self
        to.units = self.units
        for i in range(to.count):
            if self._unit_axes is None and self.leaf[i].ndim == 0 and to.leaf[i].ndim == 0 and \
                    (self.arrays[i].strides == to.arrays[i].strides if self.leaf[i].device else
                     same_strides(self.arrays[i], to.arrays[i])):
                to.source[i] = self.leaf[i]
            else:
                PyMem_Free(to.leaf[i].axes)
                to.leaf[i].axes = NULL
                to.source[i].device = self.leaf[i].device
                lay_out(to.arrays[i], self.arrays[i], &to.leaf[i], &to.source[i], False,
                        () if self._unit_axes is None else self._unit_axes[i])
            to.leaf[i].first_unit = to.source[i].first_unit = self.leaf[i].first_unit
        return 0

    def matched(self, mine, other, str name, parts, bint spare=False, bint write=False):
        """Another nesting of the same shape, dicts brought into the order of these; or a ValueError
        that names the path where they part. `spare`: it may have something where these have None. `write`: what it holds is
        going to be written."""
        path = "/".join(parts) or self.name
        if mine is None and name == "params":   # of a frozen layer: no gradient, nothing to do
            return None
        inner = None if mine is None or cnp.PyArray_Check(mine) else self.children(mine)
        theirs = None if other is None or cnp.PyArray_Check(other) else self.children(other, name)
        if write and theirs is not None and _foreign.makes_anew(other, theirs):
            refuse_anew(path, other)
        if mine is None and spare:
            return None
        if (mine is None) != (other is None) or (inner is None) != (theirs is None):
            raise ValueError(f"{path}: {self.name} and {name} are nested in different ways")
        if inner is None:
            return other
        if isinstance(mine, Mapping) != isinstance(other, Mapping):
            raise ValueError(f"{path}: {self.name} is a {type(mine).__name__}, {name} a {type(other).__name__}")
        if isinstance(mine, Mapping):
            for key in mine:
                if key not in other:
                    raise ValueError(f"{'/'.join((*parts, str(key)))}: {name} has no such entry")
            for key in other:
                if key not in mine:
                    raise ValueError(f"{'/'.join((*parts, str(key)))}: {name} has an entry that {self.name} has not")
            theirs = dict(zip(other, theirs))
            return {key: self.matched(child, theirs[key], name, (*parts, str(key)), spare, write)
                    for key, child in zip(mine, inner)}
        if len(inner) != len(theirs):
            raise ValueError(f"{path}: {self.name} has {len(inner)} entries, {name} has {len(theirs)}")
        return [self.matched(a, b, name, (*parts, str(i)), spare, write) for i, (a, b) in enumerate(zip(inner, theirs))]

    def check_alike(self, Leaves to, bint dtypes=True):
        """Shapes, sparsity and dtypes (or only real and complex) agree, or a ValueError that names the path."""
        cdef Py_ssize_t i
        self.check_count(to.count)
        mine, theirs = self._foreign or {}, to._foreign or {}
        for i in range(self.count):
            a, b = self.arrays[i], to.arrays[i]
            if a.shape != b.shape or (a.dtype != b.dtype if dtypes else (a.dtype.kind == "c") != (b.dtype.kind == "c")):
                raise ValueError(f"{self.path(i)}: {self.name} has shape {a.shape} and dtype {a.dtype}, "
                                 f"{to.name} has {b.shape} and {b.dtype}")
            if not _foreign.same_pattern(mine[i][1] if i in mine else a, theirs[i][1] if i in theirs else b):
                raise ValueError(f"{self.path(i)}: the stored values of {to.name} stand at other places than those of {self.name}")

    def check_devices(self, Leaves to):
        """Each leaf lies where that of `to` does, or a ValueError that names the path."""
        cdef Py_ssize_t i
        for i in range(self.count):
            if self.leaf[i].device != to.leaf[i].device:
                raise ValueError(f"{self.path(i)}: {self.name} and {to.name} lie on different devices")

    @property
    def sources(self):
        """The arrays that a write pass reads."""
        return self.arrays if self._pair is None else self._pair.arrays

    def check_overlap(self, Leaves others=None, bint same_view=True):
        """No two leaves share an element; nor does one with a leaf of `others`, unless (`same_view`) it is the
        very same view at the same place in the nesting."""
        found = find_overlap(self.leaf, self.arrays, [] if others is None else others.arrays, same_view)
        if found is None:
            return
        i, j = found
        if j < self.count:
            raise ValueError(f"{self.path(i)} and {self.path(j)} share memory: an element would be written twice")
        raise ValueError(f"{self.path(i)}: {self.name} shares memory with {others.path(j - self.count)} of {others.name}"
                         + (", but is not the same view" if same_view else ""))
