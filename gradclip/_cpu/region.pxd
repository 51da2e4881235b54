"""The list of work of a pass, and what its chunks share (region.pyx)."""
from libc.stddef cimport ptrdiff_t

from gradclip._leaves.layout cimport gc_leaf
from gradclip._leaves.leaves cimport Leaves
from gradclip._cpu.fold cimport Sum
from gradclip._cpu.machine cimport Scratch
from gradclip._cpu.middle cimport Precision
from gradclip._cpu.plan cimport Write
from gradclip._cpu.scalar cimport gc_measured
from gradclip._cpu.sums cimport Sums
from gradclip._cpu.watch cimport Watch
from gradclip._cpu.work cimport Group

cdef enum Stage:            # of a pass that clamps: which groups are its business
    ALL_GROUPS
    UNTIL_OUTSIDE           # those of a unit until one with an element outside the bounds; nothing is written
    SINCE_OUTSIDE           # the others, that one included
    NOT_FINITE              # those in which such elements are still to be brought within the bounds

cdef enum:                  # as many need no memory of their own, which takes as long as to sum a small leaf
    FEW_GROUPS = 2
    FEW_TOTALS = 3

cdef enum:
    LATER = -1              # elements outside, in a group that was left out


cdef struct Task:           # what the chunks of one pass share
    const gc_leaf *leaf     # what is read or written
    const gc_leaf *source   # of a write pass
    const gc_leaf *to       # of a pass that clamps as it reads, what it writes; else NULL
    const Group *group
    Stage stage
    bint ahead              # whether there is more of it than caches hold
    double ord
    const Write *bounds     # of every leaf or, where leaves differ, of the first; else NULL
    ptrdiff_t apart         # how many bounds on those of the next leaf are: 1 if leaves differ, else 0
    const Write *write      # of the write pass, or what a read pass makes of the elements first
    bint per_unit           # whether that differs by unit
    Sum *part               # one per group
    Sum *slot               # of each unit in a group that has only some of its elements
    gc_measured *unit       # of each unit, once it is complete
    const Precision *norm   # of all together, where it is told; else NULL
    const Precision *norms  # of the units, likewise
    Precision precision     # what those two point to
    bint uncertain          # whether some sum does not tell its norm; set by any thread
    char *room              # ROOM bytes for each thread
    Watch watch             # of a read pass
    Sum few[FEW_TOTALS]     # the room of a few totals


cdef struct Work:           # the list of it
    Group *group
    Py_ssize_t count, chunk, chunks
    Py_ssize_t slots        # Sums that groups need beside those of whole units
    ptrdiff_t elements      # a complex number is one
    Py_ssize_t elsewhere    # leaves that do not lie on the host, of which nothing is done
    bint ahead              # whether there is more of it than caches hold
    int team
    Group few[FEW_GROUPS]   # the room of a few groups


cdef int cut(Work *work, const gc_leaf *leaf, const gc_leaf *source, Py_ssize_t count, bint columns) except -1
cdef void discard(Work *work) noexcept
cdef void run(Task *t, const Work *work, bint writing) noexcept nogil
cdef void fold_groups(Task *t, Py_ssize_t n, Sum *total) noexcept nogil
cdef int begin(Task *task, Work *work, Scratch *scratch, const gc_leaf *leaf, Leaves leaves, Sums sums, bint columns) except -1
cdef void end(Task *task, Work *work, Scratch *scratch) noexcept
cdef void look_for_middles(Task *task, Sums sums) noexcept
