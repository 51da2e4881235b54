"""Call every public function many times and look at the memory of the process; and once with very large or very many leaves.

    python tests/faults/growth.py --steps 10000
    python tests/faults/growth.py --large
    python tests/faults/growth.py --many 1000000

Steps: each call of tests/calls.py, so many times. What Python holds (tracemalloc) and what the system holds for the process
may not grow from the first tenth on. Large: 2**31 + 9 elements of float16, and more than 2**32 bytes of float64, most of them
pages of zeros that take no memory, with other elements at both ends and about every power of two. Many: so many leaves in one
call."""

from __future__ import annotations

import argparse
import gc
import math
import mmap
import resource
import sys
import tracemalloc
import warnings
from pathlib import Path

import numpy as np

if __name__ == "__main__":  # as pytest does by its setting `pythonpath`
    sys.path[:0] = [str(Path(__file__).parents[1])]
from calls import CALLS, inputs

import gradclip

MARGIN = 1 << 20  # bytes that the process may have more; Python may have a sixteenth of that


def resident():
    """Bytes that the system holds for this process: the most so far where it does not tell more."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def repeat(call, steps):
    """By how many bytes Python and the process grew from the first tenth of some calls to the last one."""
    x = inputs()
    before = 0
    for step in range(steps):
        if step == steps // 10:
            gc.collect()
            tracemalloc.start()
            before = resident()
        call(x)
    gc.collect()  # with what Python keeps for new tuples
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return held, resident() - before


def steps(count):
    """Make every call so many times; return how many were made."""
    resident()
    for name, call in CALLS.items():
        held, grown = repeat(call, count)
        assert held < MARGIN // 16, f"{name}: Python holds {held:,} bytes more after {count:,} calls"
        assert grown < MARGIN, f"{name}: the process has {grown:,} bytes more after {count:,} calls"
    return count * len(CALLS)


def sparse_pages(size, dtype):
    """So many zeros, whose pages take no memory until they are written."""
    room = mmap.mmap(-1, size * np.dtype(dtype).itemsize, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(room, dtype)


def places(size):
    """The first and the last elements, and some about every power of two."""
    found = {0, 1, size - 2, size - 1}
    for power in range(20, size.bit_length()):
        found |= {at for at in (2**power - 1, 2**power, 2**power + 1) if at < size}
    return sorted(found)


def large():
    """Clip arrays of more elements or bytes than 32 bits count; return how many numbers were looked at.

    The threshold is far above most of the norm, so that pages of zeros are read, and in place those alone are written that hold
    other numbers: a factor of 1 writes nothing, and clipping by value writes where something is outside."""
    looked = 0
    for size, dtype in ((2**31 + 9, np.float16), (2**29 + 2**27 + 5, np.float64)):
        a = sparse_pages(size, dtype)
        at = np.array(places(size))
        values = np.arange(1.0, len(at) + 1)
        a[at] = values
        norm = math.sqrt(float((values * values).sum()))
        assert gradclip.global_norm(a) == norm
        assert gradclip.measure(a[::-3]).norm == gradclip.global_norm(np.ascontiguousarray(a[::-3][a[::-3] != 0]))
        assert gradclip.global_norm(a, ord=math.inf) == len(at)
        assert gradclip.clip_by_global_norm_(a, norm * 2).scale == 1.0
        a[-1] = np.nan
        report = gradclip.clip_by_global_norm_(a, 1.0, nonfinite="skip")
        assert report.skipped
        assert report.first_nonfinite[1] == size - 1
        assert a[at[:-1]].tolist() == values[:-1].tolist()
        looked += 4 * size
    return looked


def many(count):
    """Clip so many leaves in one call, by one norm and by their own; return how many there were."""
    block = np.ones(count)
    grads = list(block.reshape(count, 1))
    report = gradclip.clip_by_global_norm_(grads, math.sqrt(count) / 2)
    assert report.norm == math.sqrt(count)
    assert (block == 0.5).all()
    report = gradclip.clip_by_norm_(grads, 0.25)
    assert len(report.norms) == report.clipped_count == count
    assert (block == 0.25).all()
    grads[count // 2] = np.array([np.nan])
    found = gradclip.clip_by_global_norm_(grads, 0.1, nonfinite="skip")
    assert found.skipped
    assert found.first_nonfinite == (str(count // 2), 0)
    assert block.min() == block.max() == 0.25
    return count


def main():
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--many", type=int)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.steps:
        print(f"{steps(options.steps):,} calls, {options.steps:,} of each kind: no growth", flush=True)
    if options.large:
        print(f"{large():,} numbers in arrays of 2**31 + 9 elements or more than 2**32 bytes: all right", flush=True)
    if options.many:
        print(f"{many(options.many):,} leaves in one call: all right", flush=True)


if __name__ == "__main__":
    main()
