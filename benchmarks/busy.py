"""gradclip beside other programs: how long calls take while some processes compute, and how long the longest takes.

    python benchmarks/busy.py [--busy N ...] [--mib SIZE ...] [--calls N]

A call is `clip_by_global_norm_` of one float32 leaf with nothing to clip: one read pass. Contenders are gradclip with its
default number of threads, gradclip on one thread and, if it is installed, PyTorch on as many threads as gradclip. They take
turns of some calls, with a pause between turns in which the threads of the last one fall asleep. Ten calls of each do not
count: in these, gradclip finds out that its threads come late. kernels/share.c says why they do, and what is done.

What counts is the sum of all calls, which is what a training loses, and the longest. Other programs that run meanwhile count as
busy processes: the load is printed."""

import argparse
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from time import perf_counter, sleep

import numpy as np

import gradclip
from gradclip._cpu import machine
from gradclip.cli import bench
from gradclip.threads import describe_sharing

FIRST = 10  # calls that do not count
TURN = 20  # calls
PAUSE = 0.01  # seconds
LARGE = 2**34  # bytes that a contender reads at most, but for a few calls


@contextmanager
def busy_processes(n):
    """So many processes that compute without an end."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        sleep(0.3)  # they are still importing
        yield
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()


def contenders(leaf):
    """Return the calls by name."""
    peers = bench.installed_peers()
    ours = peers["gradclip"]

    def alone():
        with gradclip.num_threads(1):
            ours.clip_by_global_norm_(grads, np.inf)

    grads = ours.prepare([leaf])
    found = {f"{machine.team()} threads": lambda: ours.clip_by_global_norm_(grads, np.inf), "one thread": alone}
    if "torch" in peers:
        theirs = peers["torch"].prepare([leaf])
        found["PyTorch"] = lambda: peers["torch"].clip_by_global_norm_(theirs, np.inf)
    return found


def in_turns(calls, count):
    """Return the milliseconds of so many calls of each, sorted."""
    taken = {name: [] for name in calls}
    while len(taken[next(iter(calls))]) < FIRST + count:
        for name, call in calls.items():
            for _ in range(min(TURN, FIRST + count - len(taken[name]))):
                started = perf_counter()
                call()
                taken[name].append((perf_counter() - started) * 1e3)
            sleep(PAUSE)
    return {name: sorted(all_of_them[FIRST:]) for name, all_of_them in taken.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2, 4], metavar="N", help="numbers of processes")
    parser.add_argument("--mib", type=float, nargs="+", default=[0.25, 1, 4, 16, 64, 256], metavar="SIZE")
    parser.add_argument("--calls", type=int, default=1000, help="of each contender, fewer where leaves are large (%(default)s)")
    options = parser.parse_args()
    print(gradclip.show_config())
    for busy in options.busy:
        for mib in options.mib:
            # In a thread of its own, because gradclip keeps account of late threads for each thread that calls it.
            case = threading.Thread(target=measure, args=(busy, mib, options.calls))
            case.start()
            case.join()


def measure(busy, mib, most):
    """Measure one case and print its rows."""
    leaf = np.random.default_rng(0).standard_normal(int(mib * 2**18), np.float32)
    calls, count = contenders(leaf), min(most, max(20, LARGE // leaf.nbytes))
    with busy_processes(busy):
        taken = in_turns(calls, count)
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""  # not on Windows
    print(f"\n{busy} busy, {mib:g} MiB, {count} calls{load}; ms: sum, median, 99 %, longest")
    alone = taken["one thread"]
    for name, t in taken.items():
        ratios = f"sum {sum(t) / sum(alone):.2f} x one thread, longest {t[-1] / alone[-1]:.2f} x"
        print(f"{name:>12} {sum(t):10.1f} {t[count // 2]:9.3f} {t[count * 99 // 100]:9.2f} {t[-1]:9.2f}   {ratios}", flush=True)
    print(f"{'':>12} busy machine: {describe_sharing()}")


if __name__ == "__main__":
    main()
