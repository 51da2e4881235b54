"""Kill one of several ranks at a random moment, and look whether the others end, and what is in their leaves.

    python tests/faults/ranks.py --seed 1 --times 50 --by gloo
    python tests/faults/ranks.py --seed 1 --times 50 --by mpi

Each time some processes clip their leaves together, call after call, until one of them is killed. The others must end in time.
With gloo each gets an error of PyTorch's, and every leaf must be what it was before that call. mpiexec ends all processes when
one has died, which is MPI's own way; what their leaves hold then, nobody can ask."""

from __future__ import annotations

import argparse
import collections
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

if __name__ == "__main__":  # as pytest does by its setting `pythonpath`
    sys.path[:0] = [str(Path(__file__).parents[1])]
from launch import ENVIRONMENT, MPIEXEC

import gradclip

LIMIT = 120  # seconds from the first process to the end of the last one, on a busy machine
CALLS = (
    lambda grads, comm: gradclip.clip_by_global_norm_(grads, 1.0, comm=comm),
    lambda grads, comm: gradclip.clip_by_norm_(grads, 0.5, comm=comm),
    lambda grads, comm: gradclip.normalize_(grads, 2.0, comm=comm, strict=True),
    lambda grads, comm: gradclip.clip_per_sample_(grads, 0.5, comm=comm),
)


def leaves(rank, step):
    """The leaves of a rank in one step: parts of some that all ranks have, and one that is large."""
    rng = np.random.default_rng([rank, step])
    return {"w": rng.standard_normal((4, 5)), "b": rng.standard_normal((4, 50_000)).astype(np.float32)}


def work(comm, rank, victim, seconds):
    """Clip until an error comes; the victim is killed some time after the first call. Return 3 if no byte changed."""
    step = 0
    while True:
        grads = leaves(rank, step)
        before = {name: a.copy() for name, a in grads.items()}
        try:
            CALLS[step % len(CALLS)](grads, comm)
        except Exception as error:
            torn = [name for name, a in grads.items() if a.tobytes() != before[name].tobytes()]
            print(f"{type(error).__name__} in step {step}, changed: {torn}", flush=True)
            return 4 if torn else 3
        if rank == victim and step == 0:
            timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
            timer.daemon = True
            timer.start()
        step += 1


def be_a_rank(kind, victim, seconds, *meeting):
    """Join the others and work."""
    if kind == "mpi":
        from mpi4py import MPI

        comm, rank = MPI.COMM_WORLD, MPI.COMM_WORLD.Get_rank()
    else:
        import torch.distributed as dist

        rank, size, place = int(meeting[0]), int(meeting[1]), meeting[2]
        dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=size)
        comm = dist.group.WORLD
    os._exit(work(comm, rank, int(victim), float(seconds)))


def ended(processes, end):
    """The exit statuses of processes; raise if one has not ended by then."""
    try:
        return [process.wait(timeout=max(0.0, end - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def one(rng, kind):
    """Kill one rank of some; return what came of it."""
    size = int(rng.integers(2, 5))
    victim, seconds = int(rng.integers(size)), float(rng.random()) * 0.3
    program = [sys.executable, "-W", "ignore", str(Path(__file__).resolve()), "--rank", kind, str(victim), str(seconds)]
    end = time.monotonic() + LIMIT
    with tempfile.TemporaryDirectory() as folder:
        if kind == "mpi":
            commands = [[MPIEXEC, "-n", str(size), *program]]
        else:
            commands = [[*program, str(rank), str(size), f"{folder}/meeting"] for rank in range(size)]
        nowhere = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        started = [subprocess.Popen(command, env=ENVIRONMENT, text=True, **nowhere) for command in commands]
        statuses = ended(started, end)
        said = "".join(process.stdout.read() for process in started)
    if kind == "mpi":
        assert statuses[0] != 0, said
        return f"{size} ranks: mpiexec ended all"
    assert statuses.pop(victim) == -signal.SIGKILL, said
    assert statuses == [3] * (size - 1), (statuses, said)
    return f"{size} ranks: the others got an error, and every leaf was as before"


def main():
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--by", choices=("gloo", "mpi"), default="gloo")
    parser.add_argument("--rank", nargs="+", help="be one of the ranks")
    options = parser.parse_args()
    if options.rank:
        be_a_rank(*options.rank)
    rng = np.random.default_rng(options.seed)
    counts = collections.Counter(one(rng, options.by) for _ in range(options.times))
    print(f"{counts.total():,} ranks killed (seed {options.seed}, {options.by}): all others ended")
    for what, count in counts.most_common():
        print(f"  {count:6,} {what}")


if __name__ == "__main__":
    main()
