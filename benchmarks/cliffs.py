"""Time per element over sizes, dtypes, threads and awkward data.

    python benchmarks/cliffs.py [--plot docs/cliffs.png]

`global_norm` of one leaf from one element to 1 GB (at most a quarter of the free memory), best of many calls that take
turns. A cliff is a step by which more elements, another thread, a layout or the values make an element several
times dearer."""

import argparse

import numpy as np
from benchmarks.common import dtype as dtype_of

import gradclip
from gradclip.cli.bench import DTYPES, best_in_turns, free_memory

SIZES = [4**k for k in range(0, 15)] + [10**9]  # bytes
LENGTH = 10**6  # elements of the awkward cases: beyond the nearest caches
EDGE = {"float16": 8.0, "bfloat16": 80.0, "float32": 80.0, "float64": 200.0}  # of exponents, for the wide range


def normal(name, n):
    tile = np.random.default_rng(0).standard_normal(min(n, 2**18), np.float32).astype(dtype_of(name))
    return np.resize(tile, n)


def awkward(name):
    """Layouts and values that slow down other code, by name."""
    plain, dtype = normal(name, LENGTH), np.dtype(dtype_of(name))
    rng = np.random.default_rng(1)
    wide = np.exp(np.clip(10 * rng.standard_normal(LENGTH), -EDGE[name], EDGE[name])).astype(dtype)
    shifted = np.frombuffer(bytearray(plain.nbytes + 1), np.uint8)[1:].view(dtype)
    shifted[...] = plain
    one = plain.copy()
    one[LENGTH // 2] = np.nan
    return {
        "plain": plain,
        "strided [::2]": normal(name, 2 * LENGTH)[::2],
        "transposed": plain.reshape(1000, 1000).T,
        "columns [:, :500]": normal(name, 2 * LENGTH).reshape(2000, 1000)[:, :500],
        "unaligned by 1 byte": shifted,
        "subnormals": rng.integers(1, 1000, LENGTH).astype(f"u{dtype.itemsize}").view(dtype),
        "zeros": np.zeros(LENGTH, dtype),
        "log-normal, sigma 10": wide,
        "one NaN": one,
    }


def by_size(name, threads, seconds):
    """Return nanoseconds per element of each size, and the sizes in bytes."""
    itemsize = np.dtype(dtype_of(name)).itemsize
    sizes = [size for size in SIZES if itemsize <= size <= min(1e9, free_memory() / 4)]
    found = []
    with gradclip.num_threads(threads):
        for size in sizes:
            leaf = normal(name, size // itemsize)
            best = best_in_turns({"": lambda leaf=leaf: gradclip.global_norm(leaf)}, seconds=seconds)
            found.append(best[""] / leaf.size * 1e9)
    return sizes, found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", metavar="PATH")
    parser.add_argument("--seconds", type=float, default=0.3, help="per size (%(default)s)")
    options = parser.parse_args()
    print(gradclip.show_config())
    teams = sorted({1, gradclip.get_num_threads()})
    curves = {}
    for name in DTYPES:
        for threads in teams:
            curves[name, threads] = sizes, found = by_size(name, threads, options.seconds)
            print(f"\n{name}, {threads} thread(s), ns per element:")
            print("  ".join(f"{size:,} B: {ns:.3g}" for size, ns in zip(sizes, found, strict=True)), flush=True)
    print(f"\n{LENGTH:,} elements, one thread, time over that of the plain array:")
    with gradclip.num_threads(1):
        for name in DTYPES:
            cases = awkward(name)
            calls = {k: lambda leaf=leaf: gradclip.global_norm(leaf) for k, leaf in cases.items()}
            best = best_in_turns(calls, seconds=10 * options.seconds)
            ratios = ", ".join(f"{k} {best[k] / best['plain']:.2f}" for k in cases if k != "plain")
            print(f"{name}: {ratios}", flush=True)
    if options.plot:
        draw(curves, options.plot)


def draw(curves, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for _i, (name, threads) in enumerate(curves):
        sizes, found = curves[name, threads]
        style = {"color": f"C{DTYPES.index(name)}", "linestyle": "-" if threads == 1 else "--"}
        axes.loglog(sizes, found, label=f"{name}, {threads} thread{'s' * (threads > 1)}", **style)
    axes.set(xlabel="bytes of the leaf", ylabel="ns per element of global_norm")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
