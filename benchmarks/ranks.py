"""What one norm over many ranks costs: a model of its exchange, beside the passes, and measured on a few ranks.

    python benchmarks/ranks.py [--plot docs/ranks.svg]      # the model, for 8 to 100,000 ranks, and its picture
    torchrun --nproc-per-node 4 benchmarks/ranks.py         # over gloo: what 1 to 4 ranks take, beside the model
    mpiexec -n 4 python benchmarks/ranks.py                 # over MPI

A call exchanges two arrays, started together: a maximum of 18 words and a sum of 148 words of 8 bytes. A step is one message
there and one back, both at once; it takes a latency, and its bytes over the bandwidth.

  tree (recursive doubling)   log2(ranks) steps, each with all bytes: what libraries take for so few bytes
  ring                        2 (ranks - 1) steps, each with bytes / ranks: what they take for megabytes

The model of a few ranks takes what one rank needs by itself, and a latency measured on two ranks."""

import argparse
import math
import os
import time

import numpy as np

from gradclip._ranks.comms import MAX, SUM, peers_of
from gradclip._ranks.exchange import EXTRA, HEAD, LIMBS, WORDS, Part, Session

FEW, MANY = WORDS + EXTRA, HEAD + LIMBS  # words of a MAX and of a SUM
BYTES = 8 * (FEW + MANY)
RANKS = 8, 64, 512, 4096, 32_768, 100_000
NETWORKS = {"100 Gb/s, RDMA": (5e-6, 12.5e9), "10 Gb/s, TCP": (30e-6, 1.25e9)}  # seconds a step, bytes per second
ELEMENTS = 100_000_000  # of bfloat16 on a rank
MEMORIES = {"host, 200 GB/s": 200e9, "GPU, 3 TB/s": 3e12}
CALLS = 1000


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
    return "MPI", rank, [comm if rank < size else None for size, comm in enumerate(made, 1)], world.Barrier


def fastest(call):
    """The least time of a call, in microseconds: with more ranks than idle cores any other says how these are shared out."""
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times) * 1e6


def bare(comm):
    """Return a function that exchanges as many words, without any work on them."""
    peers, few, many = peers_of(comm), np.zeros(FEW, np.int64), np.zeros(MANY, np.int64)

    def exchange():
        first, second = peers.start(few, MAX), peers.start(many, SUM)
        first(), second()

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
            found.append((fastest(lambda c=comm: merged(c, part)), fastest(bare(comm))))
        barrier()
    if rank == 0:
        none, step = found[0][1], found[1][1] - found[0][1]
        print(f"{engine}, {os.cpu_count()} cores: microseconds, the least of {CALLS} calls; a step {step:.0f} by two ranks")
        for ranks, (whole, exchange) in enumerate(found, 1):
            by_tree, by_ring = none + tree_steps(ranks) * step, none + ring_steps(ranks) * step / 2
            model = f"model: tree {by_tree:5.0f}, ring {by_ring:5.0f}"
            print(f"  {ranks} ranks: {whole:5.0f}, the reductions alone {exchange:5.0f}; {model}")


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
