"""Take processors and threads away from a process, before or after it has used them, and compare its results.

    python tests/faults/processors.py --seed 1 --times 200

Each time some of this happens to a process of its own, in random order with calls between: it may run on one processor only, or
on all again; the system refuses new processes, memory for stacks, or every thread from the so many-th on (by a library that is
loaded before others); a region of OpenMP's in other code has threads that call gradclip; joblib's threads do. Results must have
the bits of a plain process. OpenMP ends a process whose threads are refused after it was promised them, and says so."""

from __future__ import annotations

import argparse
import collections
import ctypes
import importlib.util
import os
import resource
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np

if __name__ == "__main__":  # as pytest does by its setting `pythonpath`
    sys.path[:0] = [str(Path(__file__).parents[1])]
from faults.forks import in_threads, work
from oracle.kernel_cases import COMPILER

REFUSE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
static int made;
int pthread_create(pthread_t *thread, const pthread_attr_t *how, void *(*run)(void *), void *with)
{
    int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *) = dlsym(RTLD_NEXT, "pthread_create");
    const char *most = getenv("MOST_THREADS");
    return __sync_fetch_and_add(&made, 1) >= atoi(most) ? EAGAIN : real(thread, how, run, with);
}
"""
NESTED = """
void nested(void (*call)(void), int threads)
{
#pragma omp parallel num_threads(threads)
    call();
}
"""


def library(folder, name, source, *flags):
    """Compile a shared library; return its path."""
    path = Path(folder, f"{name}.so")
    path.with_suffix(".c").write_text(source)
    subprocess.run([COMPILER, "-O1", "-shared", "-fPIC", *flags, str(path.with_suffix(".c")), "-o", str(path)], check=True)
    return path


# ---- what happens to a process -------------------------------------------------------------------------------


def one_processor(expected):
    """Let the calling thread, and those that it starts, run on one processor."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def all_processors(expected):
    """Let it run on all again."""
    os.sched_setaffinity(0, range(os.cpu_count()))


def no_processes(expected):
    """Let the system refuse every new thread of this user, who is not root."""
    if os.getuid() == 0:
        os.setuid(65534)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def no_memory(expected):
    """Let there be no memory for the stack of a thread."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (6 << 20) + 24_000_000, -1))


def inside_of_a_region(expected):
    """Call from the threads of a region of OpenMP's in other code, two of them and one inside of another."""
    run = ctypes.CDLL(os.environ["NESTED"]).nested
    right = []
    called = ctypes.CFUNCTYPE(None)(lambda: right.append(work() == expected))
    run(called, 2)
    run(ctypes.CFUNCTYPE(None)(lambda: run(called, 2)), 1)
    assert right, "no thread came"
    assert all(right), right


def by_joblib(expected):
    """Call from joblib's threads."""
    if importlib.util.find_spec("joblib"):
        from joblib import Parallel, delayed

        assert Parallel(3, backend="threading")(delayed(work)() for _ in range(3)) == [expected] * 3


def by_threads(expected):
    """Call from Python's threads."""
    assert in_threads(expected, 3)


EVENTS = {
    event.__name__: event
    for event in (one_processor, all_processors, no_processes, no_memory, inside_of_a_region, by_joblib, by_threads)
}
STARTS_THREADS = {"inside_of_a_region", "by_joblib", "by_threads"}
REFUSES = {"no_processes", "no_memory"}


def plan(rng):
    """Some events in random order. Nothing but gradclip starts a thread once these are refused: others end then."""
    names = [str(name) for name in rng.choice(list(EVENTS), rng.integers(1, 4), replace=False)]
    return sorted(names, key=lambda name: name in REFUSES)


def happen(names, expected, large):
    """Let all of it happen, with calls between."""
    from gradclip._cpu import machine

    for name in names:
        if large:
            assert work() == expected, f"before {name}"
        EVENTS[name](expected)
        machine.set_threads(0 if name == "one_processor" else 2)
        assert work() == expected, f"after {name}"


def one(rng, plain, environment):
    """Start a process; return what came of it."""
    names = plan(rng)
    refused = rng.random() < 0.3 and not STARTS_THREADS & {*names}
    chosen = {**environment, "GRADCLIP_NUM_THREADS": str(rng.integers(2, 5))}
    if refused:
        chosen |= {"LD_PRELOAD": environment["REFUSE"], "MOST_THREADS": str(rng.integers(4))}
    used = "used" if rng.random() < 0.5 else "new"
    command = [sys.executable, "-W", "ignore", str(Path(__file__).resolve()), "--happen", used, plain, *names]
    done = subprocess.run(command, env=chosen, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode and "libgomp: Thread creation failed" in done.stderr and (refused or REFUSES & {*names}):
        return "threads refused: ended by OpenMP, which said so"
    assert done.returncode == 0, (names, used, chosen.get("MOST_THREADS"), done.returncode, done.stderr[-2000:])
    return f"{'threads refused' if refused or REFUSES & {*names} else 'all else'}: same bits"


def main():
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--happen", nargs="+", help="be a process to which this happens")
    options = parser.parse_args()
    if options.happen:
        used, plain, *names = options.happen
        with np.load(plain, allow_pickle=True) as file:
            expected = [*file["expected"]]
        happen(names, expected, used == "used")
        return
    warnings.simplefilter("ignore")
    rng, counts = np.random.default_rng(options.seed), collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        plain = f"{folder}/plain.npz"
        expected = np.empty(len(found := work()), object)
        expected[:] = found
        np.savez(plain, expected=expected)
        environment = {
            **os.environ,
            "REFUSE": str(library(folder, "refuse", REFUSE, "-ldl")),
            "NESTED": str(library(folder, "nested", NESTED, "-fopenmp")),
        }
        for _ in range(options.times):
            counts[one(rng, plain, environment)] += 1
    print(f"{counts.total():,} processes (seed {options.seed})", *(f"  {n:6,} {what}" for what, n in counts.items()), sep="\n")


if __name__ == "__main__":
    main()
