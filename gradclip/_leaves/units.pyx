# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Leaves as the passes see them: a table of raw memory, and the units that it is cut into."""
from cpython.mem cimport PyMem_Malloc, PyMem_Realloc, PyMem_Free
from libc.string cimport memcpy, memset

import numpy as np

from .foreign import addressed
from gradclip._leaves.layout cimport gc_leaf, lay_out, same_strides

cdef Py_ssize_t MAX_UNITS = 1 << 48     # more than fit a memory, and so few that no size that is worked out from them overflows


cdef class Units:
    """A table of leaves, each cut into units: what shares one norm and one factor."""

    def __dealloc__(self):
        self.free_tables()
        if self._shapes != self._few_words:
            PyMem_Free(self._shapes)

    cdef void free_tables(self) noexcept:
        """Free the memory of the tables, of which only the number of leaves remains."""
        cdef Py_ssize_t i
        if self.leaf == NULL:
            return
        for i in range(self.count):
            if self.leaf[i].axes != NULL:
                PyMem_Free(self.leaf[i].axes)
        if self.source != NULL:
            for i in range(self.count):
                PyMem_Free(self.source[i].axes)
            PyMem_Free(self.source)
        if self.leaf != self.few:
            PyMem_Free(self.leaf)
        self.leaf = self.source = NULL

    def __len__(self):
        return self.count

    @property
    def is_target(self):
        """Whether these receive what is made of other leaves."""
        return self.source != NULL

    @property
    def casts(self):
        """Whether some leaf receives what is made of one of another dtype."""
        cdef Py_ssize_t i
        for i in range(self.count if self.source != NULL else 0):
            if self.source[i].dtype != self.leaf[i].dtype:
                return True
        return False

    @property
    def size(self):
        """Elements of all leaves; a complex number is one."""
        cdef Py_ssize_t i, total = 0
        for i in range(self.count):
            total += self.leaf[i].units * self.leaf[i].size >> self.leaf[i].is_complex
        return total

    def kinds(self):
        """[(elements, elements of one unit of each leaf, dtype)] of the leaves of each dtype together."""
        cdef Py_ssize_t elements[8]
        cdef Py_ssize_t of_units[8]
        cdef Py_ssize_t i, size
        cdef int kind
        cdef list dtypes = [None] * 8
        for i in range(self.count):
            kind = self.leaf[i].dtype | self.leaf[i].is_complex << 2
            if dtypes[kind] is None:
                dtypes[kind] = self.arrays[i].dtype
                elements[kind] = of_units[kind] = 0
            size = self.leaf[i].size >> self.leaf[i].is_complex
            elements[kind] += size * self.leaf[i].units
            of_units[kind] += size if self.leaf[i].units else 0
        return [(elements[kind], of_units[kind], dtypes[kind]) for kind in range(8) if dtypes[kind] is not None]

    @property
    def sources(self):
        """The arrays that a write pass reads."""
        return self.arrays if self._pair is None else self._pair.arrays

    @property
    def unit_axes(self):
        """The axes along which the units of each leaf lie; None for leaves that are not cut."""
        return self._unit_axes if self._pair is None else self._pair._unit_axes

    cpdef str path(self, Py_ssize_t index):
        """What a leaf is called in messages."""
        return str(index)

    # ---- the table --------------------------------------------------------------------------

    cdef int reserve(self, Py_ssize_t more) except -1:
        """Make room for some more leaves. A few need no memory of their own, which takes as long as clipping a small leaf. Many
        get room for as many again: what is not touched costs nothing, and glibc, which gives memory back when twice the largest
        block lies free, keeps what a call with many leaves needs for the next."""
        cdef gc_leaf *leaf
        if self.leaf == NULL:
            self.leaf, self._capacity = self.few, FEW
        if self.count + more > self._capacity:
            leaf = <gc_leaf *>PyMem_Realloc(
                NULL if self.leaf == self.few else self.leaf, 2 * (self.count + more) * sizeof(gc_leaf))
            if leaf == NULL:
                raise MemoryError
            if self.leaf == self.few:
                memcpy(leaf, self.few, self.count * sizeof(gc_leaf))
            self.leaf, self._capacity = leaf, 2 * (self.count + more)
        return 0

    cdef int append(self, object array) except -1:
        """Count one more leaf, which is described already."""
        self.leaf[self.count].first_unit = self.count
        self.on_device += self.leaf[self.count].device != 0
        self.count += 1             # from here on its axes are freed with those of the others
        self.units = self.count
        self.arrays.append(array)
        return 0

    cdef int make_room_for_sources(self) except -1:
        """Make the table of sources: a row for each leaf, without axes so far."""
        cdef size_t size = max(self.count, 1) * sizeof(gc_leaf)
        self.source = <gc_leaf *>PyMem_Malloc(size)
        if self.source == NULL:
            raise MemoryError
        memset(self.source, 0, size)
        return 0

    # ---- what CuPy's arrays tell of themselves ----------------------------------------------

    cdef int note_there(self, tuple shape, tuple strides) except -1:
        """Note shape and strides of the next leaf, which lies on a GPU. strides : None if its elements are in C order"""
        if self._there is None:
            self._there, self._turned = {}, {}
        self._there[self.count] = shape
        if strides is not None:
            self._turned[self.count] = strides
        return 0

    cdef tuple shape_of(self, Py_ssize_t i):
        """The shape of a leaf."""
        return <tuple>self._there[i] if self.leaf[i].device and self._there is not None else <tuple>self.arrays[i].shape

    cdef bint is_in_c_order(self, Py_ssize_t i):
        """Whether the elements of a leaf on a GPU lie side by side in C order."""
        return i not in self._turned

    cdef bint lies_like(self, Py_ssize_t i, Units other):
        """Whether two leaves on a GPU, of one shape and number, have the same strides."""
        return self._turned.get(i) == other._turned.get(i)

    def turned(self, int device):
        """[(index, shape, strides)] of the leaves that a write pass reads on a GPU, of those that are not in C order."""
        cdef Units read = self if self._pair is None else self._pair
        cdef Py_ssize_t i
        return [(i, read._there[i], strides) for i, strides in read._turned.items() if read.leaf[i].device == device + 1]

    # ---- cutting ----------------------------------------------------------------------------

    def cut(self, list unit_axes):
        """Give every index along some axes of each leaf (a sorted tuple per leaf; empty: none) a norm of its own."""
        cdef Py_ssize_t i
        cdef int dtype
        self._unit_axes = unit_axes
        self.units = 0
        for i in range(self.count):
            PyMem_Free(self.leaf[i].axes)
            self.leaf[i].axes = NULL
            dtype = self.leaf[i].dtype
            lay_out(self.arrays[i], None, &self.leaf[i], NULL, False, unit_axes[i])
            self.check_dtype(i, self.leaf[i].dtype == dtype or self.leaf[i].device)
            if self.leaf[i].units > MAX_UNITS - self.units:     # of no elements
                raise ValueError(f"{self.path(i)}: an array of shape {self.arrays[i].shape} has {self.leaf[i].units} slices, "
                                 "units or samples, more than memory can hold a norm of each")
            self.leaf[i].first_unit = self.units
            self.units += self.leaf[i].units

    def leaf_units(self):
        """How many units each leaf has."""
        return [self.leaf[i].units for i in range(self.count)]

    def devices(self):
        """The numbers of the GPUs that leaves lie on."""
        return sorted({self.leaf[i].device - 1 for i in range(self.count) if self.leaf[i].device})

    # ---- two tables walked in step ----------------------------------------------------------

    cdef int check_dtype(self, Py_ssize_t i, bint same) except -1:
        """Raise a RuntimeError if a leaf has another dtype than when it was described."""
        if not same:
            raise RuntimeError(f"{self.path(i)}: {self.name} changed during the call")
        return 0

    cdef int pair(self, Units to) except -1:
        """Let `to` receive what is made of these, walked in step."""
        cdef Py_ssize_t i
        cdef int dtype
        to.make_room_for_sources()
        to._pair = self
        to.units = self.units
        for i in range(to.count):
            if self._unit_axes is None and self.leaf[i].ndim == 0 and to.leaf[i].ndim == 0 and \
                    (self.lies_like(i, to) if self.leaf[i].device else same_strides(self.arrays[i], to.arrays[i])):
                to.source[i] = self.leaf[i]
            else:
                PyMem_Free(to.leaf[i].axes)
                to.leaf[i].axes = NULL
                to.source[i].device = self.leaf[i].device
                dtype = to.leaf[i].dtype
                lay_out(to.arrays[i], self.arrays[i], &to.leaf[i], &to.source[i], False,
                        () if self._unit_axes is None else self._unit_axes[i])
                self.check_dtype(i, self.leaf[i].device or (to.leaf[i].dtype == dtype and
                                                            to.source[i].dtype == self.leaf[i].dtype))
            to.leaf[i].first_unit = to.source[i].first_unit = self.leaf[i].first_unit
            to.source[i].becomes = to.leaf[i].dtype
        return 0

    def summed_into(self, Units to):
        """Return a table that pairs samples with their sum: every index of their first axis goes to the same leaf of `to`."""
        cdef Units pairs = Units.__new__(Units)
        cdef Py_ssize_t i
        cdef gc_leaf *leaf
        pairs.arrays = []
        pairs.reserve(self.count)
        for i in range(self.count):
            leaf = &pairs.leaf[i]
            leaf.axes, leaf.device = NULL, self.leaf[i].device
            pairs.append(to.arrays[i])
        pairs.make_room_for_sources()
        for i in range(self.count):
            pairs.source[i].device = self.leaf[i].device
            sums = np.broadcast_to(addressed(to.arrays[i]), self.arrays[i].shape)
            lay_out(self.arrays[i], sums, &pairs.source[i], &pairs.leaf[i], False, (0,))
        return pairs
