# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""How fast memory can be read, and read and written in place, with the same threads and instruction set: what
the two passes are held against by ``gradclip bench``.

Words of 64 bits are added up and added to, whatever the leaves' dtype. An integer addition is the least that
can be done to a word and, unlike a product, costs the same for all bits: NaN and subnormal numbers included.
"""
from cpython.mem cimport PyMem_Malloc, PyMem_Free
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint64_t

from gradclip._leaves.leaves cimport Leaves
from gradclip._cpu.machine cimport kernels, share_out, team_of
from gradclip._cpu.watch cimport Watch, gc_raise, interrupted

cdef enum:
    SPAN = 1 << 15      # words: what a thread takes at a time, as large as a group of float32


cdef struct Span:
    uint64_t *first
    ptrdiff_t words


cdef struct Share:      # what the threads of a team share
    const Span *span
    Py_ssize_t count, chunk, chunks
    uint64_t add
    uint64_t *total     # of each chunk
    Watch watch


cdef void read_chunk(void *of, ptrdiff_t i, int thread) noexcept nogil:
    cdef Share *s = <Share *>of
    cdef Py_ssize_t k
    s.total[i] = 0
    for k in range(i * s.chunk, min((i + 1) * s.chunk, s.count)):
        if interrupted(&s.watch, thread, NULL):
            break
        s.total[i] += kernels.read_words(s.span[k].first, s.span[k].words)


cdef void rewrite_chunk(void *of, ptrdiff_t i, int thread) noexcept nogil:
    cdef const Share *s = <const Share *>of
    cdef Py_ssize_t k, begin = (s.chunks - 1 - i) * s.chunk
    for k in range(min(begin + s.chunk, s.count) - 1, begin - 1, -1):
        kernels.rewrite_words(s.span[k].first, s.span[k].words, s.add)


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

    cdef Share shared(self, int team) noexcept:
        """The spans, in chunks for a team."""
        cdef Share share
        share.span, share.count, share.chunk = self.span, self.count, max(1, self.count // (16 * team))
        share.chunks = (self.count + share.chunk - 1) // share.chunk
        share.add, share.total = 0, NULL
        share.watch.due, share.watch.stopped = 0, False
        return share

    def read(self, int team):
        """The sum of all words, modulo 2**64, by `team` threads or as many as it may have."""
        cdef Py_ssize_t i
        cdef uint64_t total = 0
        cdef Share share
        team = team_of(team)
        share = self.shared(team)
        share.total = <uint64_t *>PyMem_Malloc(max(share.chunks, 1) * sizeof(uint64_t))
        if share.total == NULL:
            raise MemoryError
        with nogil:
            share_out(read_chunk, &share, share.chunks, team)
        for i in range(share.chunks):
            total = total + share.total[i]
        PyMem_Free(share.total)
        if share.watch.stopped:
            gc_raise()
        return total

    def rewrite(self, int team, uint64_t add=0):
        """Every word becomes its sum with `add`; backwards, since what was read last is still in cache."""
        cdef Share share
        team = team_of(team)
        share = self.shared(team)
        share.add = add
        with nogil:
            share_out(rewrite_chunk, &share, share.chunks, team)
