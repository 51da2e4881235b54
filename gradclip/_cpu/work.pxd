# cython: cdivision=True
"""The list of work of a pass: how units are cut and put together into groups, by position alone."""
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stddef cimport ptrdiff_t

from gradclip._cpu.fold cimport Sum
from gradclip._cpu.machine cimport LINE, SERIAL_BYTES, team_size
from gradclip._layout cimport gc_leaf

cdef enum:
    BLOCK = 4096            # GC_BLOCK
    LANES = 16              # GC_LANES
    GROUP = 16 * BLOCK
    SETUP = 128             # elements that take as long as starting with a unit
    PANEL = 2048            # GC_PANEL
    AREA = 1 << 18          # elements of a panel, at least;
    SHARE = 16              # a leaf has so many panels, unless they were smaller than that or
    LARGEST = 1 << 22       # larger than this
    FEWEST = 512            # rows of a panel, if the leaf has them: a sum per column costs as much as some fifty
    MOST = 1 << 17          # rows, so that their sums stay exact enough
    BITS_OF_BYTES = 62      # of the bytes of all leaves, so that no sum of sizes overflows


cdef enum Part:
    WHOLE           # units, as many as there are, over leaves perhaps
    SEGMENT         # some elements of one unit
    COLUMNS         # some rows of some units that are columns


cdef struct Group:
    Part part
    ptrdiff_t leaf, unit    # the first,
    ptrdiff_t count         # of so many units
    ptrdiff_t first, rows   # elements (rows) of a segment (of columns): from, how many
    ptrdiff_t slot          # where the Sums of such parts stand, of columns also their pairs


cdef struct Work:
    Group *group
    Py_ssize_t count, chunk, chunks
    Py_ssize_t slots        # Sums that groups need beside those of whole units
    ptrdiff_t elements      # a complex number is one
    Py_ssize_t elsewhere    # leaves that do not lie on the host, of which nothing is done
    int team


cdef inline ptrdiff_t padded(ptrdiff_t columns) noexcept nogil:
    return (columns + LANES - 1) // LANES * LANES


cdef inline ptrdiff_t slots_of(ptrdiff_t columns) noexcept nogil:
    """Room for so many Sums and, from the start of a line, three arrays of double."""
    return columns + (3 * padded(columns) * <ptrdiff_t>sizeof(double) + LINE) // <ptrdiff_t>sizeof(Sum) + 1


cdef inline ptrdiff_t area_of(const gc_leaf *leaf) noexcept:
    return min(max(leaf.units * leaf.size // SHARE, <ptrdiff_t>AREA), <ptrdiff_t>LARGEST)


cdef inline Work cut(const gc_leaf *leaf, const gc_leaf *source, Py_ssize_t count, bint columns) except *:
    """Groups of about GROUP elements: short units together, long ones in segments; shared out in chunks, a few
    per thread, so that a thread that the system holds up does not hold up the others. Units that are columns come
    in panels, or with `columns` False one by one."""
    cdef Work work
    cdef Group *g
    cdef Py_ssize_t i, n = 0, room = 0
    cdef ptrdiff_t unit, first, rows, whole, area, wide, more, held = GROUP, bytes = 0, short = 0
    work.elements = work.elsewhere = 0
    for i in range(count):
        if leaf[i].device:
            work.elsewhere += 1
            room += 1
            continue
        more = leaf[i].units * leaf[i].size * leaf[i].itemsize      # NumPy sees to it that this much can be counted
        if more > (<ptrdiff_t>1 << BITS_OF_BYTES) - bytes:
            raise ValueError(f"the leaves hold more than 2**{BITS_OF_BYTES} bytes: broadcast views, then, which take years to read")
        bytes += more + leaf[i].units * (SETUP * 4)
        if leaf[i].size > GROUP:
            room += leaf[i].units * (leaf[i].size // GROUP + 1) + 1     # a group of short units ends there
        else:
            short += leaf[i].units * (leaf[i].size + SETUP)
        if columns and leaf[i].panel:
            area = area_of(leaf + i)
            wide = min(<ptrdiff_t>PANEL, area // FEWEST)
            room += (leaf[i].units // wide + 1) * (leaf[i].size // min(area // wide, <ptrdiff_t>MOST) + 1) + 1
        work.elements += leaf[i].units * leaf[i].size >> leaf[i].is_complex
    room += short // GROUP * 2 + 2      # any two groups in a row hold more than GROUP
    work.group = g = <Group *>PyMem_Malloc(room * sizeof(Group))
    if g == NULL:
        raise MemoryError
    work.slots = 0
    for i in range(count):
        if leaf[i].device:      # units of a group stand side by side
            held = GROUP
            continue
        if columns and leaf[i].panel and source[i].panel and leaf[i].units > 1:
            area = area_of(leaf + i)
            wide = min(<ptrdiff_t>PANEL, area // FEWEST)
            unit = 0
            while unit < leaf[i].units:
                whole = min(wide, leaf[i].units - unit)
                rows = min(area // whole, <ptrdiff_t>MOST)
                rows = (leaf[i].size - 1) // ((leaf[i].size - 1) // rows + 1) + 1   # alike, none left over
                first = 0
                while first < leaf[i].size:
                    g[n] = Group(Part.COLUMNS, i, unit, whole, first, min(rows, leaf[i].size - first), work.slots)
                    work.slots += slots_of(whole)
                    n += 1
                    first += rows
                unit += whole
            held = GROUP
        elif leaf[i].size > GROUP:
            for unit in range(leaf[i].units):
                first = 0
                while first < leaf[i].size:
                    g[n] = Group(Part.SEGMENT, i, unit, 1, first, min(<ptrdiff_t>GROUP, leaf[i].size - first), work.slots)
                    work.slots += 1
                    n += 1
                    first += GROUP
            held = GROUP
        else:
            unit = 0
            while unit < leaf[i].units:
                if held + leaf[i].size + SETUP > GROUP:
                    g[n] = Group(Part.WHOLE, i, unit, 0, 0, 0, 0)
                    n += 1
                    held = 0
                whole = leaf[i].units - unit
                if whole > 1:
                    whole = min(max((GROUP - held) // (leaf[i].size + SETUP), 1), whole)
                g[n - 1].count += whole
                held += whole * (leaf[i].size + SETUP)
                unit += whole
    work.count = n
    work.team = 1
    if bytes >= SERIAL_BYTES:
        try:
            work.team = team_size(n)
        except:     # a warning that is an error
            PyMem_Free(work.group)
            raise
    work.chunk = n if work.team == 1 else max(1, n // (16 * work.team))
    work.chunks = (n + work.chunk - 1) // work.chunk if n else 0
    return work
