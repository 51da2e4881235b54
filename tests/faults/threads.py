"""Let many Python threads call gradclip at once, from the very first call on, while others change what calls depend on.

    python tests/faults/threads.py --seed 1 --processes 50

Each process imports gradclip in all of its threads at the same moment and makes its first calls there. Then its threads make
random calls, of leaves of their own and of leaves that all of them read, small ones and some that are large enough for threads
of their own; half of them by teams of OpenMP's, half by gradclip's workers, or with `--by` by one of these alone. Meanwhile one
thread sets how many threads a call may have, and another one forks children, which make calls too. Every result must have the
bits of a process that has one thread, and every process must end."""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]
from at_once import at_once  # noqa: E402

LIMIT = 60  # seconds for a child, 20 times as many for a process, which a sanitizer makes slow
BALANCE = {"teams": float("inf"), "workers": float("-inf")}


def first_call(number, by):
    """Import gradclip, and make a first call that is small or large."""
    import numpy as np

    import gradclip
    from gradclip._cpu import machine

    machine.set_balance(balance(number, by))
    leaf = np.ones(4 if number % 4 == 3 else 1 << 18)
    return gradclip.global_norm(leaf) == np.sqrt(leaf.size)


def balance(number, by):
    """What has the thread of a number use teams, or workers."""
    return BALANCE.get(by, [*BALANCE.values()][number % 2])


def large_call(shared):
    """What comes of leaves that are large enough for threads, of which the first ones are shared with others."""
    import gradclip

    own = [a.copy() for a in shared]
    report = gradclip.clip_by_global_norm_(own, 3.0)
    norms = gradclip.clip_by_norm(shared, 0.5)[1].norms
    return [report.norm, report.scale, norms.tobytes(), gradclip.measure(shared).norm, *(a.tobytes() for a in own)]


def small_call(name):
    """What a call of tests/calls.py returns and writes."""
    from calls import CALLS, contents, inputs

    x = inputs()
    CALLS[name](x)
    return contents(x)


def child(expected, shared):
    """Fork; raise if the child does not get what is expected in time."""
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            status = 0 if large_call(shared) == expected else 2
        os._exit(status)
    end = time.monotonic() + LIMIT
    while not (done := os.waitpid(pid, os.WNOHANG))[0]:
        assert time.monotonic() < end, "a child hangs"
        time.sleep(0.005)
    assert done[1] == 0, f"a child ended with {os.waitstatus_to_exitcode(done[1])}"


def one_process(seed, count, calls, by, forks):
    """Make all that at once; return how many calls were made and how many children were forked."""
    assert all(at_once(count, lambda number: first_call(number, by)))
    import numpy as np
    from calls import CALLS

    import gradclip
    from gradclip._cpu import machine

    gradclip.set_num_threads(1)
    rng = np.random.default_rng(seed)
    shared = [rng.standard_normal(150_000), rng.standard_normal((300, 500)).astype(np.float32)[:, ::2]]
    expected_large = large_call(shared)
    expected = {name: small_call(name) for name in CALLS}
    gradclip.set_num_threads(3)
    machine.set_threads(3)  # though there may be fewer processors
    over, made = threading.Event(), [0, 0]

    def call(number):
        mine = np.random.default_rng([seed, number])
        machine.set_balance(balance(number, by))
        for _ in range(calls):
            if mine.random() < 0.3:
                assert large_call(shared) == expected_large
            else:
                name = list(CALLS)[mine.integers(len(CALLS))]
                assert small_call(name) == expected[name], name
            made[0] += 1

    def change(number):
        while not over.is_set():
            n = int(rng.integers(1, 5))
            gradclip.set_num_threads(n)
            machine.set_threads(n)
            if forks and rng.random() < 0.1:
                child(expected_large, shared)
                made[1] += 1
            time.sleep(0.001)

    changing = threading.Thread(target=change, args=(0,))
    changing.start()
    try:
        at_once(count, call)
    finally:
        over.set()
        changing.join()
    return made


def main():
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=50)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--calls", type=int, default=40, help="of each thread")
    parser.add_argument("--by", choices=[*BALANCE, "both"], default="both")
    parser.add_argument("--no-forks", action="store_true")
    parser.add_argument("--one", action="store_true", help="be one of the processes")
    options = parser.parse_args()
    if options.one:
        warnings.simplefilter("ignore")  # of fork in a process that has threads
        print(*one_process(options.seed, options.threads, options.calls, options.by, not options.no_forks))
        return
    calls = children = 0
    for number in range(options.processes):
        command = [sys.executable, str(Path(__file__).resolve()), "--one", *sys.argv[1:], "--seed", str(options.seed + number)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=20 * LIMIT, check=True)
        made, forked = map(int, done.stdout.split())
        calls, children = calls + made, children + forked
    print(
        f"{options.processes:,} processes of {options.threads} threads (seed {options.seed}, {options.by}): {calls:,} calls, "
        f"{children:,} children, all right"
    )


if __name__ == "__main__":
    main()
