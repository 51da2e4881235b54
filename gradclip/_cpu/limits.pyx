# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""How fast memory can be read, and read and written in place, with the same threads and instruction set: what
the two passes are held against by ``gradclip bench``.

Words of 64 bits are added up and added to, whatever the leaves' dtype. An integer addition is the least that
can be done to a word and, unlike a product, costs the same for all bits: NaN and subnormal numbers included.
"""
from cpython.mem cimport PyMem_Malloc, PyMem_Free
from cython.parallel cimport prange, threadid
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint64_t

from gradclip._leaves.leaves cimport Leaves
from gradclip._cpu.machine cimport kernels, team_of
from gradclip._cpu.watch cimport Watch, gc_raise, interrupted

cdef enum:
    SPAN = 1 << 15      # words: what a thread takes at a time, as large as a group of float32


cdef struct Span:
    uint64_t *first
    ptrdiff_t words


cdef uint64_t read_span(const Span *span, Watch *watch, int thread) noexcept nogil:
    return 0 if interrupted(watch, thread, NULL) else kernels.read_words(span.first, span.words)


cdef class Stream:
    """The memory of contiguous leaves, cut into spans; up to seven bytes at the end of a leaf are left out."""

    cdef Leaves leaves
    cdef Span *span
    cdef Py_ssize_t count

    def __cinit__(self, Leaves leaves not None):
        cdef Py_ssize_t i, words, first
        self.leaves = leaves    # keeps the memory alive
        for i in range(leaves.count):
            if leaves.leaf[i].ndim:
                raise ValueError(f"{leaves.path(i)}: limits are measured on contiguous leaves")
            self.count += (leaves.leaf[i].size * leaves.leaf[i].itemsize // 8 + SPAN - 1) // SPAN
        self.span = <Span *>PyMem_Malloc(max(self.count, 1) * sizeof(Span))
        if self.span == NULL:
            raise MemoryError
        self.count = 0
        for i in range(leaves.count):
            words = leaves.leaf[i].size * leaves.leaf[i].itemsize // 8
            for first in range(0, words, SPAN):
                self.span[self.count] = Span(<uint64_t *>leaves.leaf[i].data + first, min(<Py_ssize_t>SPAN, words - first))
                self.count += 1

    def __dealloc__(self):
        PyMem_Free(self.span)

    def read(self, int team):
        """The sum of all words, modulo 2**64, by `team` threads or as many as it may have."""
        cdef const Span *span = self.span
        cdef Py_ssize_t i, n = self.count, chunk
        cdef uint64_t total = 0
        cdef Watch watch
        watch.due, watch.stopped = 0, False
        team = team_of(team)
        chunk = max(1, n // (16 * team))
        with nogil:
            if team == 1:
                for i in range(n):
                    total = total + read_span(&span[i], &watch, 0)
            else:
                for i in prange(n, schedule="dynamic", chunksize=chunk, num_threads=team):
                    total += read_span(&span[i], &watch, threadid())
        if watch.stopped:
            gc_raise()
        return total

    def rewrite(self, int team, uint64_t add=0):
        """Every word becomes its sum with `add`; backwards, since what was read last is still in cache."""
        cdef const Span *span = self.span
        cdef Py_ssize_t i, n = self.count, chunk
        team = team_of(team)
        chunk = max(1, n // (16 * team))
        with nogil:
            if team == 1:
                for i in range(n - 1, -1, -1):
                    kernels.rewrite_words(span[i].first, span[i].words, add)
            else:
                for i in prange(n - 1, -1, -1, schedule="dynamic", chunksize=chunk, num_threads=team):
                    kernels.rewrite_words(span[i].first, span[i].words, add)
