"""Fork processes in which several libraries have run threads, and look whether every child works and ends.

    python tests/faults/forks.py --forks 1000

gradclip, PyTorch and scikit-learn (those that are installed; each brings an OpenMP runtime of its own) are imported in every
order, and used with threads in every order, each pair of orders in a process of its own. It then forks children, one after
another, and works on between: so many that all processes together reach the number that was asked for. A child clips small and
large leaves, from its first thread and from four others, and must get the bits of its parent in time. At the end four Python
threads and joblib's, if there is joblib, clip at once in the parent."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

LIMIT = 600  # seconds that a child may take: on a busy machine one that needs half a second may take minutes
LIBRARIES = {"gradclip": "gradclip", "torch": "torch", "sklearn": "sklearn.cluster"}


def work():
    """What a process computes with gradclip: norms and the bytes of clipped leaves, small and large enough for threads."""
    import numpy as np

    import gradclip

    large = np.arange(1.0, 700_001.0)
    small = np.arange(5, dtype=np.float32)
    return [
        part
        for grads in ([small], [large], [large[::2], small])
        for clipped, report in [gradclip.clip_by_global_norm(grads, 3.0)]
        for part in (report.norm, *(a.tobytes() for a in clipped))
    ]


def use(name):
    """Let a library run threads."""
    if name == "gradclip":
        work()
    elif name == "torch":
        import torch

        torch.set_num_threads(2)
        a = torch.ones(600, 600)
        float((a @ a).sum() + torch.ones(3_000_000).exp().sum())
    else:
        import numpy as np
        from sklearn.cluster import KMeans

        KMeans(3, n_init=1, max_iter=5).fit(np.random.default_rng(0).standard_normal((3000, 4)))


def in_threads(expected, count=4):
    """Whether so many Python threads get what is expected, all at once."""
    right = []
    threads = [threading.Thread(target=lambda: right.append(work() == expected)) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return right == [True] * count


def child(expected):
    """Fork; return the exit status of a child that works, or -9 if it hangs."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = 0 if work() == expected and in_threads(expected) else 2
        finally:
            os._exit(status)
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def one_process(imports, uses, forks):
    """Import and use libraries in these orders, then fork; raise if a child fails or hangs."""
    warnings.simplefilter("ignore")  # of fork in a process that has threads
    for name in imports:
        importlib.import_module(LIBRARIES[name])
    for name in uses:
        use(name)
    expected = work()
    for number in range(forks):
        status = child(expected)
        assert status == 0, f"child {number}: exit status {status}"
        if number % 8 == 0:
            use(uses[number // 8 % len(uses)])
            assert work() == expected
    assert in_threads(expected)
    if importlib.util.find_spec("joblib"):
        from joblib import Parallel, delayed

        for backend in ("threading", "loky"):
            assert Parallel(3, backend=backend)(delayed(work)() for _ in range(3)) == [expected] * 3


def main():
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--forks", type=int, default=1000)
    parser.add_argument("--orders", nargs=2, help="of imports and of uses, with commas: what one process does")
    options = parser.parse_args()
    if options.orders:
        imports, uses = (order.split(",") for order in options.orders)
        one_process(imports, uses, options.forks)
        return
    found = [name for name in LIBRARIES if importlib.util.find_spec(name)]
    orders = [",".join(order) for order in itertools.permutations(found)]
    pairs = list(itertools.product(orders, orders))
    each = -(-options.forks // len(pairs))
    for number, (imports, uses) in enumerate(pairs, 1):
        command = [sys.executable, str(Path(__file__).resolve()), "--forks", str(each), "--orders", imports, uses]
        subprocess.run(command, check=True, timeout=LIMIT * (each + 10))
        print(f"{number} of {len(pairs)}: {each} forks, imports {imports}, uses {uses}", flush=True)
    print(
        f"{each * len(pairs):,} forks of {len(pairs)} processes with {', '.join(found)} in every order: all worked, all ended"
    )


if __name__ == "__main__":
    main()
