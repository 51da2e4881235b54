"""Fused passes beside the same in two calls, and beside memory.

    python benchmarks/saved.py [--elements N] [--seconds S]

Contenders take turns on arrays of their own; the fastest call of each counts. A pass is a read or an in-place rewrite
of one array; `new` writes memory that was not read. Limits are plain reads and rewrites of the same arrays."""

import argparse

import numpy as np

import gradclip
from gradclip._cpu.limits import Stream
from gradclip._leaves import Leaves
from gradclip.cli.bench import best_in_turns

SCALE = 1.001  # so close to 1 that no number of calls leaves the range


def falling(norm):
    """Thresholds that fall faster than unscaling shrinks the gradient: every call has something to clip."""
    while True:
        norm *= 0.998
        yield norm


def limit(reads, rewritten=None):
    """A call that reads some arrays plainly and rewrites one."""
    threads = gradclip.get_num_threads()
    streams = [Stream(Leaves([a])) for a in reads]
    last = None if rewritten is None else Stream(Leaves([rewritten]))

    def call():
        for stream in streams:
            stream.read(threads)
        if last is not None:
            last.rewrite(threads)

    return call


def steps(g):
    p, q, h = g.copy(), g.copy(), g.copy()
    below, clips = 0.9 * gradclip.global_norm(g), falling(gradclip.global_norm(h))

    def apart():
        gradclip.clip_by_global_norm_(h, next(clips))
        gradclip.sgd_step_(q, h, 1e-3)

    return {"fused": lambda: gradclip.sgd_step_(p, g, 1e-3, below), "apart": apart, "limit": limit([g, g], p)}


def unscaling(g):
    a, b = g.copy(), g.copy()
    first, second = falling(gradclip.global_norm(a)), falling(gradclip.global_norm(b))

    def apart():
        np.multiply(b, np.float32(1 / SCALE), out=b)
        gradclip.clip_by_global_norm_(b, next(second))

    return {"fused": lambda: gradclip.clip_by_global_norm_(a, next(first), grad_scale=SCALE), "apart": apart}


def functional(g):
    out, copy = g.copy(), g.copy()
    below = 0.9 * gradclip.global_norm(g)

    def apart():
        np.copyto(copy, g)
        gradclip.clip_by_global_norm_(copy, below)

    return {"fused": lambda: gradclip.clip_by_global_norm(g, below, out=out), "apart": apart}


def per_sample(g):
    batch = g[: g.size // 64 * 64].reshape(64, -1)
    below = 0.9 * gradclip.global_norm(batch[0])
    sums = np.empty_like(batch[0])
    fused = lambda: gradclip.per_sample_clip_sum(batch, below, out=sums)  # noqa: E731
    return {"fused": fused, "limit": limit([batch, batch])}


def adaptive(unit_axis, clips):
    def case(g):
        g = g[: g.size // 4096 * 4096].reshape(-1, 4096)
        a, w = g.copy(), g.copy()
        factors = falling(1.0) if clips else iter(lambda: 1e9, 0)
        fused = lambda: gradclip.clip_adaptive_(a, w, next(factors), unit_axis=unit_axis)  # noqa: E731
        return {"fused": fused, "limit": limit([a, w], a if clips else None)}

    return case


CASES = {
    "sgd_step_ / clip, then step": (steps, "g, g, rewrite p / g, rewrite g, g, rewrite p"),
    "grad_scale / unscale, then clip": (unscaling, "g, rewrite g / rewrite g, g, rewrite g"),
    "functional with out= / copy, then clip": (functional, "g, g, new / g, new, new, rewrite new"),
    "per_sample_clip_sum, 64 samples": (per_sample, "g, g"),
    "clip_adaptive_, rows, nothing to clip": (adaptive(0, False), "g, w"),
    "clip_adaptive_, rows, clipping all": (adaptive(0, True), "g, w, rewrite g"),
    "clip_adaptive_, columns, nothing to clip": (adaptive(-1, False), "g, w"),
    "clip_adaptive_, columns, clipping all": (adaptive(-1, True), "g, w, rewrite g"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=int, default=50_000_000, help="float32 (%(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="per case (%(default)s)")
    options = parser.parse_args()
    print(gradclip.show_config(), end="\n\n")
    g = np.random.default_rng(0).standard_normal(options.elements, np.float32)
    for name, (case, passes) in CASES.items():
        best = best_in_turns(case(g), seconds=options.seconds)
        line = f"{name}: {best['fused'] * 1e3:.1f} ms"
        if "apart" in best:
            line += f" / {best['apart'] * 1e3:.1f} ms = {best['fused'] / best['apart']:.2f}"
        if "limit" in best:
            line += f"; {best['fused'] / best['limit']:.2f} x limit"
        print(f"{line}\n    passes: {passes}", flush=True)


if __name__ == "__main__":
    main()
