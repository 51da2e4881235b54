"""Run every public function in odd floating-point states, and with nonsense in the environment: no bit of a result may change.

    python tests/faults/environment.py --seed 1 --times 300

Floating-point states (x86-64): flush-to-zero, denormals-are-zero, the four rounding modes, and x87 precision of 24, 53 and 64
bits, each combination of them. Reports are read in that state too, and it must be found as it was.

Environments: some variables of OpenMP's, Python's and this library's own at random, with sensible and senseless values, in a
process of its own each time. OpenMP may end a process that it cannot serve, which it says; a process that ends well must have
printed what one without such variables prints."""

from __future__ import annotations

import argparse
import collections
import ctypes
import hashlib
import itertools
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np

if __name__ == "__main__":  # as pytest does by its setting `pythonpath`
    sys.path[:0] = [str(Path(__file__).parents[1])]
from calls import CALLS, flat, inputs
from oracle.kernel_cases import COMPILER

import gradclip

STATE = """
#include <stdint.h>
#include <xmmintrin.h>
void set_state(unsigned mxcsr, unsigned x87) {
    uint16_t word = (uint16_t)x87;
    _mm_setcsr(mxcsr);
    __asm__ volatile("fldcw %0" : : "m"(word));
}
unsigned mxcsr(void) { return _mm_getcsr() & ~0x3fu; }
unsigned x87(void) {
    uint16_t word;
    __asm__ volatile("fnstcw %0" : "=m"(word));
    return word;
}
"""
USUAL = 0x1F80, 0x037F
STATES = [
    (0x1F80 | ftz << 15 | daz << 6 | mode << 13, (0x007F | precision << 8 | mode << 10))
    for ftz, daz, mode, precision in itertools.product((0, 1), (0, 1), range(4), (0, 2, 3))
]
READ = ("norm", "scale", "max_abs", "norms", "scales", "clipped", "clipped_count", "nonfinite", "size", "sensitivity")
NUMBERS = ("0", "-1", "1", "2", "3,2", "1000000", "99999999999999999999", "", " ", "abc", "2.5", "0x2")
VARIABLES = {
    "OMP_NUM_THREADS": NUMBERS,
    "OMP_THREAD_LIMIT": NUMBERS,
    "OMP_MAX_ACTIVE_LEVELS": NUMBERS,
    "OMP_DYNAMIC": ("true", "false", "perhaps"),
    "OMP_NESTED": ("true", "false", "perhaps"),
    "OMP_PROC_BIND": ("true", "close", "spread", "master", "nowhere"),
    "OMP_PLACES": ("threads", "cores", "{0}", "{0},{1}", "{0:2}", "{", "{99}", "moon"),
    "OMP_SCHEDULE": ("static", "dynamic,1", "guided", "random,x"),
    "OMP_STACKSIZE": ("64k", "16M", "1", "0", "-1", "huge"),
    "OMP_WAIT_POLICY": ("active", "passive", "impatient"),
    "OMP_CANCELLATION": ("true", "x"),
    "OMP_DISPLAY_ENV": ("false", "x"),
    "GOMP_SPINCOUNT": ("0", "infinity", "x"),
    "GOMP_CPU_AFFINITY": ("0", "0-1", "1 0", "7-9", "x"),
    "KMP_AFFINITY": ("compact", "x"),
    "MALLOC_ARENA_MAX": ("1",),
    "MALLOC_PERTURB_": ("165",),
    "LC_ALL": ("C", "de_DE.UTF-8", "tr_TR.UTF-8"),
    "PYTHONMALLOC": ("debug", "malloc"),
    "PYTHONHASHSEED": ("0", "7"),
    "GRADCLIP_NUM_THREADS": ("1", "2", "3"),
}


def digest():
    """A hash of what all calls return and write, and of a call that is large enough for threads."""
    found = results()
    large = np.random.default_rng(0).standard_normal(1_500_000)
    found["large"] = told(gradclip.clip_by_global_norm([large, large[::3] * 1e-310], 3.0))
    return hashlib.sha256(repr(found).encode()).hexdigest()


def states():
    """Compare the digest in every floating-point state; return how many there are."""
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "state.c"), Path(folder, "state.so")
        source.write_text(STATE)
        subprocess.run([COMPILER, "-O1", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
        state = ctypes.CDLL(str(library))
    usual = results()
    for mxcsr, x87 in STATES:
        for name, expected in usual.items():
            x = inputs()
            call = CALLS[name]
            state.set_state(mxcsr, x87)
            try:
                read = told(call(x))
                left = state.mxcsr(), state.x87()
            finally:
                state.set_state(*USUAL)
            assert left == (mxcsr, x87), (name, left)
            assert [*read, *told(x)] == expected, f"{name} in state {mxcsr:#x}, {x87:#x}"
    return len(STATES) * len(usual)


def results():
    """What each call returns and writes in the usual state."""
    found = {}
    for name, call in CALLS.items():
        x = inputs()
        read = told(call(x))
        found[name] = [*read, *told(x)]
    return found


def told(returned):
    """The bytes of arrays, and the numbers in reports, measures and floats."""
    found = []
    for leaf in flat(list(returned) if isinstance(returned, tuple) else returned):
        if isinstance(leaf, np.ndarray | np.generic):
            found.append(leaf.tobytes())
        elif isinstance(leaf, float):
            found.append(leaf)
        else:
            numbers = [getattr(leaf, name, None) for name in READ]
            found += [n.tobytes() if isinstance(n, np.ndarray) else n for n in numbers]
    return found


def environments(seed, times):
    """Compare the digest in random environments; return what came of them."""
    rng = np.random.default_rng(seed)
    plain = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    plain["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")])
    )
    command = [sys.executable, "-W", "ignore", str(Path(__file__).resolve()), "--digest"]
    expected = subprocess.run(command, env=plain, capture_output=True, text=True, check=True).stdout
    counts = collections.Counter()
    for _ in range(times):
        names = rng.choice(list(VARIABLES), rng.integers(1, 5), replace=False)
        chosen = {str(name): str(rng.choice(VARIABLES[name])) for name in names}
        done = subprocess.run(command, env=plain | chosen, capture_output=True, text=True, check=False, timeout=300)
        if done.returncode:
            assert "libgomp" in done.stderr, (chosen, done.returncode, done.stderr)
            counts["ended by OpenMP, which said why"] += 1
        else:
            assert done.stdout == expected, (chosen, done.stdout)
            counts["same bits"] += 1
    return counts


def main():
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--times", type=int, default=300, help="environments")
    parser.add_argument("--digest", action="store_true", help="print a hash of all results, and no more")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.digest:
        print(digest())
        return
    print(f"{states():,} calls in {len(STATES)} floating-point states: no bit changed, every state as it was", flush=True)
    counts = environments(options.seed, options.times)
    print(
        f"{counts.total():,} environments (seed {options.seed})", *(f"  {n:6,} {what}" for what, n in counts.items()), sep="\n"
    )


if __name__ == "__main__":
    main()
