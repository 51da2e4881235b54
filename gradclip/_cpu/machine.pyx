# cython: language_level=3
"""What the passes run on: the kernels of one instruction set, and how many threads.

The table is chosen when this module loads: the best set of the machine, or the one that GRADCLIP_ISA
names. Threads are asked for region by region; nothing is set in the OpenMP runtime itself.
"""
import os

from gradclip._cpu.machine cimport gc_kernels

cdef extern from "dispatch.h" nogil:
    int gc_available(const gc_kernels **tables)

cdef extern from "openmp_compat.h" nogil:
    int GC_OPENMP
    int omp_get_max_threads()
    long gc_process()

# Below this many bytes, waking the team costs more than it saves.
cdef enum:
    SERIAL_BYTES = 1 << 20

cdef const gc_kernels *tables[8]
cdef int table_count = gc_available(tables)
cdef int threads = 1
cdef long owner = 0        # the process whose team it is, once there is one

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
    """Threads of the next regions, as asked; `gradclip.threads` keeps them within the machine's."""
    global threads
    threads = n


def get_threads():
    """Threads of the next regions."""
    return threads


def openmp_threads():
    """What the OpenMP runtime would use by itself."""
    return omp_get_max_threads()


cdef int team_size(ptrdiff_t bytes, ptrdiff_t groups):
    """Threads for a region. A forked child has no team, and GNU's runtime would wait for the parent's for
    ever: the process that opened the first region is the only one to open more."""
    global owner
    if threads == 1 or bytes < SERIAL_BYTES:
        return 1
    if owner == 0:
        owner = gc_process()
    return <int>min(threads, groups) if owner == gc_process() else 1


set_isa(os.environ.get("GRADCLIP_ISA") or available_isas()[-1])
