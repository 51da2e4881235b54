# cython: language_level=3
"""What the passes run on: the kernels of one instruction set, and how many threads.

The table is chosen when this module loads: the best set of the machine, or the one that GRADCLIP_ISA
names. Threads are asked for pass by pass; nothing is set in the OpenMP runtime itself.

How many a pass gets is asked anew each time, where it is large enough to be shared out at all: the number that was
set (for the running context, else for the process), OpenMP's own limit, the processors of this process. It is one
in a forked process, and once the system has refused to start a thread. Which threads they are, is for kernels/share.c.
"""
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.stdint cimport uintptr_t

import os
import warnings

from cpython.contextvars cimport PyContextVar_New_with_default, get_value
from libc.limits cimport INT_MAX
from gradclip._cpu.machine cimport gc_kernels
from gradclip._cpu.work cimport LINE
from gradclip._leaves.tree cimport frames_of_gradclip

cdef extern from "dispatch.h" nogil:
    int gc_available(const gc_kernels **tables)

cdef extern from "openmp_compat.h" nogil:
    int GC_OPENMP
    int omp_get_max_threads()
    int omp_get_thread_limit()
    int omp_get_num_procs()

cdef extern from "guard.h" nogil:
    ctypedef int gc_shared_int
    void gc_enter()
    void gc_leave()

cdef extern from "team.h" nogil:
    int gc_team_init()
    bint gc_forked()
    int gc_try_threads(int n)

cdef extern from "share.h" nogil:
    ctypedef struct gc_sharing:
        double balance
        long teams, late, apart
    void gc_share_out(Chunk chunk, void *of, ptrdiff_t n, int team)
    double gc_balance_after(double balance, double busy, double waited, ptrdiff_t own, ptrdiff_t n, int team)
    double gc_balance_repaid(double balance, double seconds)
    gc_sharing gc_sharing_now()
    void gc_set_balance(double balance)
    int gc_pool_workers()

cdef const gc_kernels *tables[8]
cdef int table_count = gc_available(tables)
cdef gc_shared_int set_for_process = 0  # 0: not set
cdef gc_shared_int quota = INT_MAX      # of a process for which nothing is set
cdef gc_shared_int forced = 0           # by tests
cdef gc_shared_int refused = 0          # why the system started no threads: an errno

openmp_version = GC_OPENMP


def available_isas():
    """Names of the instruction sets that this machine can run, best last."""
    return [tables[i].name.decode() for i in range(table_count)]


def isa():
    """The instruction set in use."""
    return kernels.name.decode()


def set_isa(str name):
    """Use the kernels of one set. Not for use while another thread is clipping."""
    global kernels
    for i in range(table_count):
        if tables[i].name.decode() == name:
            kernels = tables[i]
            return
    raise ImportError(f"GRADCLIP_ISA={name!r}: this machine and build offer {', '.join(available_isas())}")


def set_threads(int n):
    """Force regions to n threads, more than are allowed if need be: for tests. 0: as allowed."""
    global forced
    forced = n


def get_threads():
    """The number of threads that was forced, or 0."""
    return forced


def set_wanted(int n):
    """Set the threads of the whole process, 0 for the default. Threads that were refused are asked for again."""
    global set_for_process, refused
    set_for_process, refused = n, 0


def set_quota(int n):
    """Set the most threads of a process for which no number is set."""
    global quota
    quota = n


def wanted():
    """The number of threads that was set, for the running context or else for the process; 0 if none was."""
    return get_value(chosen) or set_for_process


cpdef int openmp_threads() except -1:
    """The number of threads that OpenMP would use here and now by itself."""
    return min(omp_get_max_threads(), omp_get_thread_limit())


cpdef int processors() except -1:
    """The number of processors that this process may run on now. Where OpenMP has pinned its threads, the calling
    thread's affinity does not say."""
    return omp_get_num_procs()


def alone():
    """Why this process works on one thread whatever was set, or an empty string."""
    if not GC_OPENMP:
        return "a serial build"
    if gc_forked():
        return "a forked process works alone"
    return f"the system refused more: {os.strerror(refused)}" if refused else ""


def allowed_threads():
    """The number of threads of a large region now, unless the system refuses them."""
    return 1 if alone() else allowed()


def team():
    """The number of threads of a large region now; they are tried."""
    return team_size(INT_MAX)


cdef int allowed() except -1:
    """The smallest bound on a team. The system is asked last, which takes about a microsecond."""
    cdef int n = wanted() or quota
    if n > 1:
        n = min(n, openmp_threads())
    if n > 1:
        n = min(n, processors())
    return max(n, 1)


cdef int team_of(int n) except -1:
    """n threads for a region, or as many as it may have. Warns, once, if the system refuses them."""
    global refused
    if n <= 1 or GC_OPENMP == 0 or refused or gc_forked():
        return 1
    if not forced:
        n = min(n, allowed())
    if n == 1:
        return 1
    refused = gc_try_threads(n - 1)
    if refused:
        warnings.warn(
            f"the system refuses to start {n} threads ({os.strerror(refused)}): gradclip goes on with one. Limits on "
            "processes and memory, OMP_STACKSIZE and OMP_PLACES can be why; set_num_threads(n) tries again",
            RuntimeWarning, stacklevel=frames_of_gradclip(),
        )
        return 1
    return n


cdef int team_size(ptrdiff_t groups) except -1:
    """The number of threads for a region over SERIAL_BYTES or more."""
    return team_of(<int>min(forced or <int>INT_MAX, groups))


cdef void share_out(Chunk chunk, void *of, ptrdiff_t n, int team) noexcept nogil:
    """Do chunks 0 to n - 1 of a pass, each once, on up to `team` threads."""
    gc_share_out(chunk, of, n, team)


def sharing():
    """What has become of the large passes of the calling thread: how many a team of OpenMP's did, how many of these came late,
    how many were done without waiting for threads, whether the next one will be, and how many workers the process has."""
    cdef gc_sharing now = gc_sharing_now()
    return now.teams, now.late, now.apart, now.balance < 0, 0 if gc_forked() else gc_pool_workers()


def set_balance(double balance):
    """Set the account of the calling thread (kernels/share.c), for tests: infinity has teams do all of its passes, minus
    infinity workers."""
    gc_set_balance(balance)


def balance_after(double balance, double busy, double waited, ptrdiff_t own, ptrdiff_t n, int team):
    """The account after a pass by a team (kernels/share.h)."""
    return gc_balance_after(balance, busy, waited, own, n, team)


def balance_repaid(double balance, double seconds):
    """The account after a pass by workers."""
    return gc_balance_repaid(balance, seconds)


cdef Scratch spare         # what the last pass gave back
spare.memory = NULL


cdef int take_scratch(Scratch *scratch, int team) except -1:
    """Take memory for each thread of a team to work in, since their stacks may have 64 KiB only.

    What the last pass gave back is taken if it is large enough: it is still in cache."""
    gc_enter()
    cdef bint found = spare.memory != NULL and spare.team >= team
    if found:
        scratch[0] = spare
        spare.memory = NULL
    gc_leave()
    if found:
        return 0
    scratch.memory = PyMem_RawMalloc(team * <size_t>ROOM + LINE)
    if scratch.memory == NULL:
        raise MemoryError
    scratch.room = <char *>((<uintptr_t>scratch.memory + LINE - 1) // LINE * LINE)
    scratch.team = team
    return 0


cdef void give_scratch(Scratch *scratch) noexcept:
    """Give the memory of a team back: the larger one of this and the one that is kept is kept for the next pass."""
    cdef void *memory = scratch.memory
    gc_enter()
    if spare.memory == NULL or spare.team < scratch.team:
        memory = spare.memory
        spare.memory, spare.room, spare.team = scratch.memory, scratch.room, scratch.team
    gc_leave()
    PyMem_RawFree(memory)


if gc_team_init():
    raise MemoryError
chosen = PyContextVar_New_with_default("gradclip.num_threads", 0)   # threads of the running context, 0: not set
set_isa(os.environ.get("GRADCLIP_ISA") or available_isas()[-1])
