"""What one norm over many ranks costs: a model of its exchange, beside the passes, and measured on a few ranks.

    python benchmarks/ranks.py [--plot docs/ranks.svg]      # the model, for 8 to 100,000 ranks, and its picture
    torchrun --nproc-per-node 4 benchmarks/ranks.py         # over gloo: what 1 to 4 ranks take, beside the model
    mpiexec -n 4 python benchmarks/ranks.py                 # over MPI

A call exchanges two arrays, started together: a maximum of 18 words and a sum of 148 words of 8 bytes. A step is one message
there and one back, both at once; it takes a latency, and its bytes over the bandwidth.

  tree (recursive doubling)   log2(ranks) steps, each with all bytes: what libraries take for so few bytes
  ring                        2 (ranks - 1) steps, each with bytes / ranks: what they take for megabytes

The model of a few ranks takes what one rank needs by itself, and a latency measured on two ranks. With more ranks than cores a
step also waits until the system gives its process a core. So the latency is measured twice: with a core for each of the two
ranks, and with one core for both, which is as many ranks on a core as four have on two. An allreduce of 8 bytes in the same run
tells what of a step is the library's.

Then the forms with norms of their own: what each exchanges, counted, and what it takes beside the same call without `comm`, and
beside the same reductions alone."""

import argparse
import math
import os
import time
from contextlib import contextmanager, nullcontext

import numpy as np

import gradclip
from gradclip._ranks.comms import MAX, SUM, MeshPeers, peers_of
from gradclip._ranks.exchange import EXTRA, HEAD, LIMBS, WORDS, Part, Session

FEW, MANY = WORDS + EXTRA, HEAD + LIMBS  # words of a MAX and of a SUM
BYTES = 8 * (FEW + MANY)
RANKS = 8, 64, 512, 4096, 32_768, 100_000
NETWORKS = {"100 Gb/s, RDMA": (5e-6, 12.5e9), "10 Gb/s, TCP": (30e-6, 1.25e9)}  # seconds a step, bytes per second
ELEMENTS = 100_000_000  # of bfloat16 on a rank
MEMORIES = {"host, 200 GB/s": 200e9, "GPU, 3 TB/s": 3e12}
CALLS = 1000
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

ROUNDS = 30  # of each form; the least of them counts
LEAVES, ROWS, COLUMNS, HIGH = 8, 64, 64, 1e9  # of each rank; and a threshold that is not reached
FORMS = {  # a call by its arguments, and how many norms are shared
    "one norm": (lambda g, p, **k: gradclip.clip_by_global_norm_(g, HIGH, **k), 1),
    "one norm, strict": (lambda g, p, **k: gradclip.clip_by_global_norm_(g, 1.0, strict=True, **k), 1),
    "by leaf": (lambda g, p, **k: gradclip.clip_by_norm_(g, HIGH, **k), LEAVES),
    "by leaf, strict": (lambda g, p, **k: gradclip.clip_by_norm_(g, 1.0, strict=True, **k), LEAVES),
    "groups": (lambda g, p, **k: gradclip.clip_by_norm_(g, HIGH, groups={"leaf[0-3]": "a", "*": "b"}, **k), 2),
    "axis=0": (lambda g, p, **k: gradclip.clip_by_norm_(g, HIGH, axis=0, **k), LEAVES * COLUMNS),
    "axis=1, rows whole": (lambda g, p, **k: gradclip.clip_by_norm_(g, HIGH, axis=1, **k), 0),
    "adaptive, rows whole": (lambda g, p, **k: gradclip.clip_adaptive_(g, p, HIGH, **k), 0),
    "by sample": (lambda g, p, **k: gradclip.clip_per_sample_(g, HIGH, **k), ROWS),
}


def tree_steps(ranks):
    return math.ceil(math.log2(ranks))


def ring_steps(ranks):
    return 2 * (ranks - 1)


def tree(ranks, latency, bandwidth):
    """The seconds of an exchange by recursive doubling."""
    return tree_steps(ranks) * (latency + BYTES / bandwidth)


def ring(ranks, latency, bandwidth):
    """The seconds of an exchange by a ring."""
    return ring_steps(ranks) * (latency + BYTES / ranks / bandwidth)


def passes(bandwidth):
    """The seconds of a read pass, and of it with a write pass, over the gradients of a rank."""
    read = 2 * ELEMENTS / bandwidth
    return read, 3 * read


def show_model():
    print(f"{BYTES} bytes for a call; microseconds of one exchange, and kB that a rank sends")
    head = "  ".join(f"{name}: tree / ring" for name in NETWORKS)
    print(f"{'ranks':>8}  {head}  sent: tree / ring")
    for ranks in RANKS:
        times = "  ".join(f"{tree(ranks, *net) * 1e6:14.0f} / {ring(ranks, *net) * 1e6:<9.0f}" for net in NETWORKS.values())
        sent = f"{tree_steps(ranks) * BYTES / 1e3:10.1f} / {ring_steps(ranks) / ranks * BYTES / 1e3:.1f}"
        print(f"{ranks:8,}  {times}  {sent}")
    for name, bandwidth in MEMORIES.items():
        read, both = passes(bandwidth)
        print(
            f"passes over {ELEMENTS / 1e6:.0f}M bfloat16, {name}: read {read * 1e6:.0f} us, read and write {both * 1e6:.0f} us"
        )


def draw(path):
    """Save a picture of who exchanges what, and of the model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    who, model = figure.subplots(1, 2, width_ratios=(1, 1.15))
    for rank in range(4):
        for y, text, color in (
            (2, "leaves", "#DDDDDD"),
            (1, "sum in limbs,\ncounts, flags", "#9ECAE1"),
            (0, "factor", "#A1D99B"),
        ):
            style = {"boxstyle": "round,pad=0.35", "facecolor": color, "edgecolor": "none"}
            who.text(rank, y, text, ha="center", va="center", fontsize=8, bbox=style)
        who.text(rank, 2.45, f"rank {rank}", ha="center", fontsize=9)
        for y, text in (1.55, "read pass"), (0.5, "decide, write pass"):
            who.annotate("", (rank, y - 0.25), (rank, y + 0.2), arrowprops={"arrowstyle": "->"})
            who.text(rank + 0.06, y + 0.2 * (y > 1), text, fontsize=7, va="center")
    for first, second, bend in (0, 1, -0.25), (2, 3, -0.25), (0, 2, -0.5), (1, 3, -0.5):
        arrow = {"arrowstyle": "<->", "color": "#D55E00", "connectionstyle": f"arc3,rad={bend}"}
        who.annotate("", (second - 0.1, 1.22), (first + 0.1, 1.22), arrowprops=arrow)
    who.set(xlim=(-0.6, 3.9), ylim=(-0.4, 2.7), title=f"{BYTES} bytes a step: {8 * FEW} of a MAX, {8 * MANY} of a SUM")
    who.axis("off")
    ranks = np.unique(np.geomspace(2, 100_000, 200).astype(int))
    for (name, net), color in zip(NETWORKS.items(), ("#0072B2", "#D55E00"), strict=True):
        model.loglog(ranks, [tree(r, *net) * 1e6 for r in ranks], color=color, label=f"tree, {name}")
        model.loglog(ranks, [ring(r, *net) * 1e6 for r in ranks], color=color, linestyle=":", label=f"ring, {name}")
    for (name, bandwidth), style in zip(MEMORIES.items(), ("--", "-."), strict=True):
        model.axhline(passes(bandwidth)[1] * 1e6, color="0.4", linestyle=style, label=f"both passes, {name}")
    model.set(xlabel="ranks", ylabel="microseconds", title=f"one exchange, beside {ELEMENTS / 1e6:.0f}M bfloat16 on each rank")
    model.legend(fontsize=7)
    figure.savefig(path)


def groups():
    """The name of the engine, this rank, and the communicators of the first 1, 2, ... ranks: None where it is in none."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        import torch.distributed as dist

        dist.init_process_group("gloo")
        made = [dist.new_group(list(range(size))) for size in range(1, dist.get_world_size() + 1)]
        rank = dist.get_rank()
        return "gloo", rank, [group if rank < size else None for size, group in enumerate(made, 1)], dist.barrier
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    rank = world.Get_rank()
    made = [world.Split(0 if rank < size else 1, rank) for size in range(1, world.Get_size() + 1)]

    def barrier():
        """Wait for all ranks asleep: a rank that waits in MPI keeps its core busy, which those that are measured need."""
        arrived = world.Ibarrier()
        while not arrived.Test():
            time.sleep(0.01)

    return "MPI", rank, [comm if rank < size else None for size, comm in enumerate(made, 1)], barrier


def fastest(*calls, rounds=CALLS):
    """The least time of each call, in microseconds, taken in turn.

    With more ranks than idle cores any other time says how these are shared out."""
    times = [[] for _ in calls]
    for _ in range(rounds):
        for call, found in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            found.append(time.perf_counter() - start)
    return [min(found) * 1e6 for found in times]


@contextmanager
def one_core():
    """Let all threads of this process run on the first of its cores, and then on all of them again."""
    cores = sorted(os.sched_getaffinity(0))
    threads = [int(thread) for thread in os.listdir("/proc/self/task")]
    try:
        for thread in threads:
            os.sched_setaffinity(thread, cores[:1])
        yield
    finally:
        for thread in threads:
            os.sched_setaffinity(thread, cores)


def bare(comm):
    """Return a function that exchanges as many words, without any work on them."""
    peers, few, many = peers_of(comm), np.zeros(FEW, np.int64), np.zeros(MANY, np.int64)

    def exchange():
        first, second = peers.start(few, MAX), peers.start(many, SUM)
        first(), second()

    return exchange


def smallest(comm):
    """Return a function that exchanges 8 bytes."""
    peers, word = peers_of(comm), np.zeros(1, np.int64)

    def exchange():
        peers.start(word, SUM)()

    return exchange


def merged(comm, part):
    """Exchange a part as a call does."""
    with Session(comm) as session:
        session.merge(part, 2.0, 7)


def measure():
    engine, rank, comms, barrier = groups()
    part, found = Part(12345678901234567, -60, 1e-20, max_abs=1.0, size=1000), []
    for comm in comms:
        barrier()
        if comm is not None:
            found.append(fastest(lambda c=comm: merged(c, part), bare(comm), smallest(comm)))
        barrier()
    if comms[1] is not None:
        with one_core() if hasattr(os, "sched_setaffinity") else nullcontext():
            (together,) = fastest(bare(comms[1]))
    barrier()
    if rank == 0:
        none, steps = found[0][1], [time - found[0][1] for time in (found[1][1], together)]
        print(f"{engine}, {CORES} cores: microseconds, the least of {CALLS} calls; two ranks on one core {together:.0f}")
        for ranks, (whole, exchange, word) in enumerate(found, 1):
            by_tree, by_ring = ([none + count * step for step in steps] for count in (tree_steps(ranks), ring_steps(ranks) / 2))
            model = f"tree {by_tree[0]:.0f} to {by_tree[1]:.0f}, ring {by_ring[0]:.0f} to {by_ring[1]:.0f}"
            print(f"  {ranks} ranks: {whole:5.0f}, the reductions alone {exchange:5.0f}, 8 bytes {word:5.0f}; model: {model}")
    barrier()
    if comms[1] is not None:
        measure_forms(comms[1], rank)
    barrier()


class Watched:
    """The ranks of a communicator, whose reductions are noted: when each is started and waited for."""

    def __init__(self, comm):
        self._peers, self.events, self.bytes = peers_of(comm), [], 0
        self.rank, self.size = self._peers.rank, self._peers.size

    def start(self, words, op):
        number, pending = len(self.events), self._peers.start(words, op)
        self.events.append((number, words.size, op))
        self.bytes += words.nbytes

        def wait():
            self.events.append((number, None, None))
            return pending()

        return wait

    def again(self):
        """Make the same reductions, of zeros."""
        waiting = {}
        for number, size, op in self.events:
            if op is None:
                waiting.pop(number)()
            else:
                waiting[number] = self._peers.start(np.zeros(size, np.int64), op)


def measure_forms(comm, rank):
    """Show what each form exchanges, and what it takes."""
    rng = np.random.default_rng(rank)
    grads = {f"leaf{i}": rng.standard_normal((ROWS, COLUMNS)).astype(np.float32) for i in range(LEAVES)}
    params = {name: np.ones_like(leaf) for name, leaf in grads.items()}
    if rank == 0:
        print(f"  2 ranks, {LEAVES} leaves of {ROWS} x {COLUMNS} on each: microseconds, the least of {ROUNDS} calls")
        print(f"  {'form':22} shared norms  reductions   bytes    alone  with comm  the reductions alone")
    for name, (call, norms) in FORMS.items():
        watched = Watched(comm)

        def once(call=call, **comm):
            leaves = {key: leaf.copy() for key, leaf in grads.items()}
            call(leaves, params, **comm)

        once(comm=MeshPeers([watched], watched.rank, watched.size))
        alone, together, bare_ones = fastest(once, lambda: once(comm=comm), watched.again, rounds=ROUNDS)
        if rank == 0:
            count = sum(op is not None for _, _, op in watched.events)
            numbers = f"{norms:12} {count:11} {watched.bytes:7} {alone:8.0f} {together:10.0f} {bare_ones:21.0f}"
            print(f"  {name:22} {numbers}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--plot", help="where a picture of who exchanges what, and of the model, is saved")
    plot = parser.parse_args().plot
    if any(name in os.environ for name in ("TORCHELASTIC_RUN_ID", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")):
        measure()
        return
    show_model()
    if plot:
        draw(plot)


if __name__ == "__main__":
    main()
