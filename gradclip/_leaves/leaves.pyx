# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The gate: a nesting of arrays becomes a flat table of raw leaves, checked once.

Everything that can be wrong with an input is found here, before the first read, and named by its path; behind the gate there
are only pointers, sizes and strides. Where a leaf stands is the business of the tree that was walked (tree.pyx); which arrays
can be leaves, of checks.pyx; how their memory is cut, of units.pyx. What remains is to bring these together: for leaves that
are read or written, for those of other nestings that go with them, and for results."""
from cpython.dict cimport PyDict_CheckExact, PyDict_Keys, PyDict_Next, PyDict_SetItem
from cpython.list cimport PyList_CheckExact
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from cpython.ref cimport PyObject
from cpython.tuple cimport PyTuple_CheckExact
from libc.stdint cimport uintptr_t
from libc.string cimport memcpy

import math

cimport cython
import numpy as np
cimport numpy as cnp

from . import foreign, pytorch
from gradclip._leaves.checks cimport describe, describe_on_device, describe_usual
from gradclip._leaves.overlap cimport find_overlap, lie_beside
from gradclip._leaves.tensors cimport DeviceTensor, array_of, is_plain_tensor
from gradclip._leaves.layout cimport GC_BF16, GC_F16, GC_F32, GC_F64, gc_leaf
from gradclip._leaves.tree cimport Tree, flat_leaves, flat_tree, is_cupy
from gradclip._leaves.units cimport FEW_WORDS, Units

cnp.import_array()

cdef extern from "Python.h":
    PyObject **PySequence_Fast_ITEMS(object)
cdef extern from "numpy/arrayobject.h":     # of what is borrowed
    ctypedef struct Borrowed "PyArrayObject":
        pass
    int PyArray_NDIM(const Borrowed *array)
    cnp.npy_intp *PyArray_DIMS(const Borrowed *array)

cdef enum:
    MAX_NDIM = 64       # of NumPy's arrays
    APART = 512         # bytes between the beginnings of arrays in one allocation, as CuPy's pool has it

cdef dict DTYPES = {GC_F16: "float16", GC_BF16: "bfloat16", GC_F32: "float32", GC_F64: "float64",
                    GC_F32 | 4: "complex64", GC_F64 | 4: "complex128"}


cdef object named(object error, str path):
    """An error about a leaf or container that says where this stands."""
    kind = next(kind for kind in (TypeError, ValueError, ImportError, RuntimeError) if isinstance(error, kind))
    return kind(f"{path}: {error}")


cdef class Leaves(Units):
    """The leaves of one nesting, in order, `None` left out.

    Parameters
    ----------
    tree : nesting of arrays
    write : whether the leaves are going to be written
    name : what the nesting is called in messages; "params" may be parameters of PyTorch's
    anew : whether `rebuild` is going to make another such nesting
    walked : the tree of another nesting, in the places of which `tree`, a list of leaves, stands
    """

    def __cinit__(self, object tree, bint write=False, str name="grads", bint anew=False, Tree walked=None):
        cdef bint first = walked is None
        self.name, self.write = name, write
        self._nesting, self._walked = tree, walked
        cdef list given = flat_leaves(tree) if walked is None else tree
        if given is not None:
            if first and PyDict_CheckExact(tree):
                self._keys = PyDict_Keys(tree)
            self.take(given, anew)
        else:
            walked = self._walked = Tree.__new__(Tree)
            walked.walk(tree, name, write, anew)
            self.take(walked.leaves, anew)
            if walked.error is not None:
                raise walked.error
        if write and self.count > 1:
            self.check_apart(None, False)
        if self._foreign is not None and foreign.knows_sparse():
            self.sum_duplicates()
        if first:
            self.note_shapes()

    # ---- taking what the walk found ---------------------------------------------------------

    cdef int take(self, list given, bint anew) except -1:
        """Let leaves pass the gate."""
        cdef Py_ssize_t i, end, n = len(given)
        self._given = given
        self.reserve(n)
        i = self.count = self.units = describe_usual(self.leaf, given, 0, self.write)
        self.arrays = given if i == n else given[:i]
        try:
            while i < n:
                self.take_unusual(given[i], anew)
                i += 1
                end = describe_usual(self.leaf, given, i, self.write)
                if end > i:
                    self.arrays += given[i:end]
                    i = self.count = self.units = end
        except (TypeError, ValueError, ImportError, RuntimeError) as error:
            raise named(error, self.path(self.count)) from None
        return 0

    cdef int take_unusual(self, object given, bint anew) except -1:
        """Let a leaf pass that is not a plain array in the usual state."""
        cdef object array = array_of(given, self.write) if is_plain_tensor(given) else None
        if array is not None:
            self.in_torch_stream |= type(array) is DeviceTensor
            self.remember(given)
        elif cnp.PyArray_Check(given) or is_cupy(given) or type(given) is DeviceTensor:
            array = given
        else:
            array = self.take_foreign(given, anew)
        if cnp.PyArray_Check(array):
            array = describe(&self.leaf[self.count], array, self.write)
        else:
            self.take_from_device(array)
        return self.append(array)

    cdef int take_from_device(self, object array) except -1:
        """Describe a leaf on a GPU. Each of its attributes is asked for once in a call: CuPy makes them anew every time."""
        cdef tuple shape, strides = None
        if type(array) is DeviceTensor:
            shape = (<DeviceTensor>array).shape
            strides = None if (<DeviceTensor>array)._c_contiguous else (<DeviceTensor>array).strides
        else:
            shape = array.shape
            strides = None if array._c_contiguous else array.strides
        describe_on_device(&self.leaf[self.count], array, self.write, shape, strides)
        self.note_there(shape, strides)
        return 0

    cdef object take_foreign(self, object given, bint anew):
        """The array that has the memory of a leaf that is none."""
        view, original = foreign.view(given, self.write, self.name == "params")
        if anew and not foreign.is_rebuildable(given):
            raise TypeError(f"a {foreign.type_name(given)} cannot be made of another array; {foreign.TREES}")
        if is_cupy(view):
            self.in_torch_stream |= pytorch.is_cuda_tensor(given)
        self.remember(original)
        return view

    cdef int remember(self, object original) except -1:
        """Remember what the next leaf is instead of an array."""
        if self._foreign is None:
            self._foreign = {}
        self._foreign[self.count] = original
        return 0

    cdef int sum_duplicates(self) except -1:
        """Where elements of a sparse leaf are stored in parts, let a copy with their sums take its place: after its own
        memory has passed the gate like any other."""
        cdef Py_ssize_t i, first_unit
        for i, node in list(self._foreign.items()):
            if not foreign.is_sparse(node):
                continue
            try:
                canonical = foreign.canonical(node)
                if canonical is node:
                    continue
                replaced = foreign.replaced(node, canonical) if self.write else None
                PyMem_Free(self.leaf[i].axes)
                self.leaf[i].axes = NULL
                first_unit = self.leaf[i].first_unit
                self.arrays[i] = describe(&self.leaf[i], canonical.data, self.write)
                self.leaf[i].first_unit = first_unit
            except (TypeError, ValueError) as error:
                raise named(error, self.path(i)) from None
            self._foreign[i] = canonical
            if self.write:
                if self._replaced is None:
                    self._replaced = []
                self._replaced.append(replaced)
        return 0

    def is_sparse(self, Py_ssize_t i):
        """Whether a leaf is a sparse array."""
        return self._foreign is not None and i in self._foreign and foreign.is_sparse(self._foreign[i])

    def cut(self, list unit_axes):
        """Give every index along some axes of each leaf (a sorted tuple per leaf; empty: none) a norm of its own."""
        cdef Py_ssize_t i
        for i in self._foreign or ():
            if self.is_sparse(i):
                raise TypeError(f"{self.path(i)}: a sparse array is clipped as a whole, not by slice, unit or sample; "
                                "use .toarray()")
        Units.cut(self, unit_axes)

    # ---- what is told of leaves after the call ----------------------------------------------

    cdef int note_shapes(self) except -1:
        """Note the shape and the dtype of each leaf. A call that is over keeps no array that could be asked for them, and few
        reports are: so they are copied in C, in some nanoseconds for each leaf."""
        cdef Py_ssize_t i, d, ndim, at = 0, room = FEW_WORDS
        cdef bint usual = self.on_device == 0 and self._foreign is None
        cdef bint sparse = self._foreign is not None and foreign.knows_sparse()
        cdef PyObject **array = PySequence_Fast_ITEMS(self.arrays)
        cdef Py_ssize_t *word = self._few_words
        cdef const cnp.npy_intp *length
        cdef tuple shape
        cdef const Borrowed *a
        self._shapes = word
        for i in range(self.count):
            if usual:
                a = <const Borrowed *>array[i]
                ndim, length = PyArray_NDIM(a), PyArray_DIMS(a)
            else:
                shape = self._foreign[i].shape if sparse and self.is_sparse(i) else self.shape_of(i)
                ndim = len(shape)
            if at + 1 + ndim > room:
                room = max(2 * room, 3 * self.count) + MAX_NDIM
                self.make_room_for_shapes(at, room)
                word = self._shapes
            word[at] = self.leaf[i].dtype | self.leaf[i].is_complex << 2 | ndim << 8
            at += 1
            for d in range(ndim):
                word[at + d] = length[d] if usual else <Py_ssize_t>shape[d]
            at += ndim
        return 0

    cdef int make_room_for_shapes(self, Py_ssize_t used, Py_ssize_t room) except -1:
        """Make room for some words about shapes; keep those that are used."""
        cdef Py_ssize_t *words = <Py_ssize_t *>PyMem_Realloc(
            NULL if self._shapes == self._few_words else self._shapes, room * sizeof(Py_ssize_t))
        if words == NULL:
            raise MemoryError
        if self._shapes == self._few_words:
            memcpy(words, self._few_words, used * sizeof(Py_ssize_t))
        self._shapes = words
        return 0

    cdef void release(self) noexcept:
        """Let go of all arrays at the end of a call, and keep what `described` tells. This needs no memory, because leaves are
        written by then."""
        cdef object nesting = self._nesting
        if self.leaf != self.few:
            self.free_tables()
        if self._walked is not None:
            self._walked.release()
        self._nesting = () if PyList_CheckExact(nesting) or PyDict_CheckExact(nesting) or PyTuple_CheckExact(nesting) else True
        self.arrays = self._given = None
        if self._foreign is not None:
            self._foreign = self._replaced = None
        if self.on_device:
            self._streams = self.tables = self._there = self._turned = None

    def described(self):
        """Return (path, shape, dtype, number of units) of each leaf, also after the call."""
        cdef Py_ssize_t i, d, at = 0, ndim
        cdef list paths = self.walked().all_paths(), found = []
        for i in range(self.count):
            ndim = self._shapes[at] >> 8
            shape = tuple([self._shapes[at + 1 + d] for d in range(ndim)])
            axes = () if self._unit_axes is None else self._unit_axes[i]
            units = math.prod([shape[d] for d in axes])
            found.append((paths[i], shape, DTYPES[self._shapes[at] & 255], units))
            at += 1 + ndim
        return found

    # ---- around a write pass ----------------------------------------------------------------

    cdef bint has_tensors(self):
        """Whether some leaves are tensors of PyTorch's, which has to be told of what is written."""
        for i in self._foreign or ():
            if is_plain_tensor(self._given[i]) or pytorch.is_tensor(self._given[i]):
                return True
        return False

    def announce(self, written=None):
        """Before a write pass: tell PyTorch of those of its tensors that it is going to change (a bool for each leaf)."""
        tensors = [self._given[i] for i in self._foreign or {} if (written is None or written[i])
                   and (is_plain_tensor(self._given[i]) or pytorch.is_tensor(self._given[i]))]
        if tensors:
            pytorch.announce(tensors)

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

    # ---- places and rebuilding --------------------------------------------------------------

    cdef Tree walked(self):
        """The tree in which these leaves stand. That of a flat list is made when it is asked for."""
        with cython.critical_section(self):     # reports may be asked by several threads
            if self._walked is None:
                given = [True] * self.count if self._given is None else self._given
                self._walked = flat_tree(self._nesting, given, self._keys, self.name)
        return self._walked

    @property
    def tree(self):
        """The nesting in the places of which these leaves stand, as it was given."""
        return self.walked().nesting

    cpdef str path(self, Py_ssize_t index):
        """Where the leaf of this index stands: ``layers/3/weight``; a single array: the name."""
        cdef Py_ssize_t n = self.walked().size()
        return self.walked().path(index % n if self.count > n else index, self.name)  # of `beside`, where gradients stand too

    def paths(self, bint nones=False):
        """The paths of all leaves; with `nones`, also where None stands."""
        return self.walked().paths(nones)

    def naming(self):
        """A function from an index to where this leaf stands, which does not keep any leaf alive."""
        cdef Py_ssize_t n = max(self.walked().size(), 1)
        name = self.walked().naming()
        return lambda index: name(index % n)

    def rebuild(self, list arrays):
        """The same nesting with other arrays in place of the leaves."""
        cdef Py_ssize_t i
        if self._given is not self.arrays:      # some are no plain arrays
            if self._foreign is not None:
                arrays = foreign.as_jax_arrays(self._foreign, arrays)
            arrays = [self.like(i, array) for i, array in enumerate(arrays)]
        return self.walked().rebuild(arrays)

    def like(self, Py_ssize_t i, array):
        """A result as the kind of leaf that stands in its place."""
        given = self._given[i]
        if given is self.arrays[i]:
            return array
        if self._foreign is not None and i in self._foreign:
            return foreign.wrap(self._foreign[i], array)
        try:    # of a subclass of ndarray
            made = given.__array_wrap__(array)
        except Exception as error:
            raise TypeError(f"{self.path(i)}: {foreign.type_name(given)}.__array_wrap__ failed ({error})") from error
        if not cnp.PyArray_Check(made):
            raise TypeError(f"{self.path(i)}: {foreign.type_name(given)}.__array_wrap__ gave no array, but {made!r:.80}")
        return made

    cpdef check_count(self, Py_ssize_t found):
        """There is one of something for each leaf: behind the gate nothing else is checked."""
        if found != self.count:
            raise RuntimeError(f"{self.path(min(found, self.count))}: {self.name} changed during the call")

    # ---- where leaves lie -------------------------------------------------------------------

    def empty_like(self, Py_ssize_t i, shape):
        """A new array like one of these, where it lies."""
        if not self.leaf[i].device:
            return self.new(i, shape)
        return self.stream(self.leaf[i].device - 1).new(shape, self.arrays[i].dtype)

    cdef object new(self, Py_ssize_t i, shape=None):
        """A new array of NumPy like one of these, for what `rebuild` puts in its place. shape: its own, if it is None."""
        if self._foreign is not None and foreign.is_jax_array(self._foreign.get(i)):
            return foreign.aligned(self.arrays[i].shape if shape is None else shape, self.arrays[i].dtype)
        return np.empty_like(self.arrays[i], subok=False, shape=shape)

    def all_empty_like(self):
        """Leaves of new arrays, one like each of these, where it lies."""
        cdef Py_ssize_t i
        cdef list made = [None if self.leaf[i].device else self.new(i) for i in range(self.count)]
        cdef Leaves to = Leaves(made if self.on_device == 0 else [], False, self.name, False, self.walked())
        if self.on_device == 0:
            return to
        to._given = made
        to.reserve(self.count)
        for device in self.devices():
            self.make_there(made, to.leaf, device)
        for i in range(self.count):
            if made[i] is None:         # not contiguous
                made[i] = self.stream(self.leaf[i].device - 1).new_like(self.plain(i))
                to.take_from_device(made[i])
            elif self.leaf[i].device:
                to.note_there(self._there[i], self._turned.get(i))
            else:
                describe(&to.leaf[i], made[i], False)
            to.append(made[i])
        return to

    cdef int make_there(self, list made, gc_leaf *to, int device) except -1:
        """Make new arrays like the contiguous leaves on a GPU in one allocation, each at its place in a list, and describe
        them. Places of other leaves are left alone."""
        cdef Py_ssize_t i, size, total = 0
        cdef uintptr_t start
        cdef list which = [], places = []
        for i in range(self.count):
            size = self.leaf[i].size * self.leaf[i].units * self.leaf[i].itemsize
            if self.leaf[i].device == device + 1 and size and (self.is_in_c_order(i) or self.arrays[i]._f_contiguous):
                which.append(i)
                places.append((self._there[i], self.arrays[i].dtype, total, "C" if self.is_in_c_order(i) else "F"))
                to[i] = self.leaf[i]
                to[i].data, to[i].size = <char *>total, self.leaf[i].size * self.leaf[i].units
                to[i].axes, to[i].ndim, to[i].unit_ndim, to[i].panel, to[i].units = NULL, 0, 0, 0, 1
                total += (size + APART - 1) // APART * APART
        found, first = self.stream(device).slab(total, places)
        start = first
        for i, array in zip(which, found):
            made[i], to[i].data = array, to[i].data + start
        return 0

    cdef object plain(self, Py_ssize_t i):
        """The CuPy array that has the memory of a leaf on a GPU."""
        return self.arrays[i].array() if type(self.arrays[i]) is DeviceTensor else self.arrays[i]

    def stream(self, int device):
        """A device, and the stream in which these are worked on there: found out once."""
        from .._gpu.program import DeviceStream

        if self._streams is None:
            self._streams = {}
        if device not in self._streams:
            self._streams[device] = DeviceStream(device, self.in_torch_stream)
        return self._streams[device]

    def brought(self, array):
        """A leaf, or part of one, as an array of NumPy: from a GPU, a copy."""
        return array if cnp.PyArray_Check(array) else self.stream(array.data.device_id).fetch(array)

    # ---- leaves of other nestings that go with these ----------------------------------------

    def counterpart(self, other, str name, bint write=False, bint spare=False):
        """The leaves of another nesting in the places of these.

        Parameters
        ----------
        other : nesting of arrays
        name : what it is called in messages
        write : whether its leaves are going to be written
        spare : whether it may have something where these have None
        """
        return Leaves(self.walked().match(other, name, spare, write), write, name, False, self.walked())

    def aligned(self, other, str name):
        """What stands in another nesting in the places of these leaves, in order."""
        found = self.walked().match(other, name, True)
        self.check_count(len(found))
        return found

    def match_patterns(self, patterns, str name):
        """For each leaf the index of the first pattern that matches its path, or None: `Tree.match_patterns`."""
        found = self.walked().match_patterns(list(patterns), name)
        self.check_count(len(found))
        return found

    def target(self, out=None):
        """Leaves to write results of these into: new arrays like them, or those of `out`, which may have other real dtypes."""
        cdef Leaves to
        if out is None:
            to = self.all_empty_like()
        else:
            to = self.counterpart(out, "out", True, True)
            self.check_alike(to)
        self.receive(to)
        if out is not None:
            to.check_overlap(self)
            if to.casts:
                self.check_casts(to)
        return to

    def onto(self, params):
        """Leaves of `params`, which a write pass changes by these; the dtypes may differ."""
        cdef Leaves to = self.counterpart(params, "params", True, True)
        self.check_alike(to, False)
        self.receive(to)
        to.check_overlap(self, False)
        return to

    def beside(self, params):
        """These leaves and those of `params`, which are only read, cut alike: leaf i goes with leaf count + i."""
        cdef Leaves other = self.counterpart(params, "params")
        self.check_alike(other, False)
        cdef Leaves both = Leaves(self.arrays + other.arrays, False, self.name, False, self.walked())
        both.in_torch_stream = self.in_torch_stream or other.in_torch_stream
        self.in_torch_stream = both.in_torch_stream
        both.cut(self.unit_axes + self.unit_axes)
        return both

    def receive(self, Leaves to):
        """Let `to` receive what is made of these."""
        self.check_devices(to)
        to.in_torch_stream |= self.in_torch_stream
        self.pair(to)

    # ---- checks of two nestings -------------------------------------------------------------

    def check_alike(self, Leaves to, bint dtypes=True):
        """Shapes, sparsity and whether numbers are complex agree, with `dtypes` complex dtypes too, or a ValueError that names
        the path."""
        cdef Py_ssize_t i
        self.check_count(to.count)
        cdef bint sparse = foreign.knows_sparse()
        mine, theirs = self._foreign or {}, to._foreign or {}
        for i in range(self.count):
            if self.shape_of(i) != to.shape_of(i) or self.leaf[i].is_complex != to.leaf[i].is_complex or \
                    (dtypes and self.leaf[i].is_complex and self.leaf[i].dtype != to.leaf[i].dtype):
                a, b = self.arrays[i], to.arrays[i]
                raise ValueError(f"{self.path(i)}: {self.name} has shape {a.shape} and dtype {foreign.dtype_name(a.dtype)}, "
                                 f"{to.name} has {b.shape} and {foreign.dtype_name(b.dtype)}")
            if sparse and not foreign.same_pattern(mine.get(i, self.arrays[i]), theirs.get(i, to.arrays[i])):
                raise ValueError(
                    f"{self.path(i)}: the stored values of {to.name} stand at other places than those of {self.name}")

    def check_casts(self, Leaves to):
        """No leaf is the memory of that which it is rounded to, or a ValueError that names the path: as float16 and bfloat16
        the same memory may pass for the same view."""
        cdef Py_ssize_t i
        for i in range(self.count):
            if self.leaf[i].dtype != to.leaf[i].dtype and self.leaf[i].size and self.leaf[i].data == to.leaf[i].data:
                raise ValueError(f"{self.path(i)}: {to.name} shares memory with {self.name}, and has another dtype")

    def check_devices(self, Leaves to):
        """Each leaf lies where that of `to` does, or a ValueError that names the path."""
        cdef Py_ssize_t i
        for i in range(self.count):
            if self.leaf[i].device != to.leaf[i].device:
                raise ValueError(f"{self.path(i)}: {self.name} and {to.name} lie on different devices")

    def check_overlap(self, Leaves others=None, bint same_view=True):
        """No two leaves share an element; nor does one with a leaf of `others`, unless (`same_view`) it is the
        very same view at the same place in the nesting."""
        self.check_apart(others, same_view)

    cdef int check_apart(self, Leaves others, bint same_view) except -1:
        if others is not None and self.write and lie_beside(self.leaf, self.count, others.leaf, others.count):
            return 0        # these were compared with each other when they passed the gate
        if others is None:
            found = find_overlap(self.leaf, self.arrays, NULL, None, same_view)
        else:
            found = find_overlap(self.leaf, self.arrays, others.leaf, others.arrays, same_view)
        if found is None:
            return 0
        i, j = found
        if j < self.count:
            raise ValueError(f"{self.path(i)} and {self.path(j)} share memory: an element would be written twice")
        raise ValueError(f"{self.path(i)}: {self.name} shares memory with {others.path(j - self.count)} of {others.name}"
                         + (", but is not the same view" if same_view else ""))
