"""Clipping by value beside NumPy, PyTorch and the memory limit.

    python benchmarks/values.py [--threads N] [--seconds S] [--sizes N ...] [--dtypes D ...] [--new]

Contenders take turns; the fastest call of each counts. `nothing`: no element lies outside the bounds, which takes one read.
`changes`: each call has tighter bounds than the one before, so that about a third of the elements change, in every block;
that takes one read and rewrite, and so does `outliers`, where one element in a thousand changes. The sum is
`gradclip.global_norm`: what the report of clipping by value costs, where memory has not to be waited for. With `--new` results
are new arrays, and the limit is not known."""

import argparse
import math
from functools import partial

import numpy as np
from benchmarks.common import DTYPES, gradients

import gradclip
from gradclip._cpu.limits import Stream
from gradclip._leaves import Leaves
from gradclip.cli import bench, peers

SIZES = (1000, 10_000, 100_000, 1_000_000, 10_000_000, 124_439_808)
CASES = {"nothing": 9.0, "changes": 1.0, "outliers": 3.3}


class Bounds:
    """Bounds that fall with each call, so that each has something to clip; or that never do."""

    def __init__(self, array, first, falls):
        self.array, self.fresh, self.first, self.falls = array, array.copy(), first, falls
        self.bound = first

    def refill(self):
        self.bound = self.first
        self.array[...] = self.fresh

    def next(self):
        self.bound *= self.falls
        return self.bound


def contenders(array, bounds, new):
    """Every contender's call, by name; PyTorch is left out if it is not installed."""
    calls = {"gradclip": lambda: gradclip.clip_by_value_(array, bounds.next()), "sum": lambda: gradclip.global_norm(array)}
    if new:
        calls["gradclip"] = lambda: gradclip.clip_by_value(array, bounds.next())

    def clip():
        bound = bounds.next()
        np.clip(array, -bound, bound, out=None if new else array)

    calls["np.clip"] = clip
    try:
        torch = peers.load("torch")
    except NotImplementedError:
        return calls
    torch.set_threads(gradclip.get_num_threads())
    tensor = torch.tensor(array)

    def clamp():
        bound = bounds.next()
        (tensor.clamp if new else tensor.clamp_)(-bound, bound)

    return calls | {"torch.clamp": clamp}


def row(array, case, options):
    """The fastest call of each contender, in seconds."""
    array = array.copy()  # the case before has clipped its own
    bounds = Bounds(array, CASES[case], 1.0 if case == "nothing" else 0.999)
    stream, limits = Stream(Leaves(array)), {}
    for team in {1, gradclip.get_num_threads()}:
        limits[team] = partial(stream.read if case == "nothing" else stream.rewrite, team)
    rounds = bench.best_in_turns(limits | contenders(array, bounds, options.new), bounds.refill, seconds=options.seconds)
    return {"limit": min(rounds.pop(team) for team in limits), **rounds}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=gradclip.get_num_threads())
    parser.add_argument("--seconds", type=float, default=2.0, help="for each row, at least (%(default)s)")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--dtypes", nargs="+", default=DTYPES)
    parser.add_argument("--new", action="store_true", help="results are new arrays")
    options = parser.parse_args()
    gradclip.set_num_threads(options.threads)
    print(gradclip.show_config(), end="\n\n")
    for dtype in options.dtypes:
        for size in options.sizes:
            (array,) = gradients([(size,)], dtype)
            for case in CASES:
                seconds = row(array, case, options)
                cells = [f"{name} {best * 1e6:,.1f}" for name, best in seconds.items()]
                peer = min((s for name, s in seconds.items() if name not in ("limit", "sum", "gradclip")), default=math.nan)
                ours = seconds["gradclip"]
                ratios = f"{ours / seconds['limit']:.2f} x limit, {ours / peer:.2f} x the faster peer"
                print(f"{size:>11,} {dtype}, {case}: {', '.join(cells)} us = {ratios}", flush=True)


if __name__ == "__main__":
    main()
