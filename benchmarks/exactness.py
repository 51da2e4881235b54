"""How exact the norm is, beside its peers.

    python benchmarks/exactness.py [--quick] [--plot docs/exactness.png]

Three questions. *Errors*: how far is the norm from the exact one, over dtypes, distributions and sizes, and how far
are written elements from x * factor? All that is exact is integer arithmetic, as in exact.py. *Bits*: how
many different results do the same numbers give when only the threads, the instruction set, the place in memory,
the split into leaves or the order changes? Every instruction set and number of threads gets a process of its own,
where environment variables choose them, for gradclip and for what its peers run on; all else varies within.
*Middles*: are norms right that lie in the middle between two float64, or next to it, where a sum with an error may fall on
either side (middles.py)?

Every error of a norm is in ulps of float64 at the exact norm, whatever the dtype: that is what gradclip returns
and promises. A library that returns float32 cannot be better than 2**28 of them, and the picture says so. Peers
that are not installed are left out. Exit status 1: gradclip broke a promise."""

import argparse
import hashlib
import io
import json
import math
import os
import subprocess
import sys
from collections import defaultdict
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import middles
import numpy as np
from benchmarks.common import dtype as dtype_of
from exact import FORMAT, element_error, layouts

import gradclip
from gradclip._cpu import machine
from gradclip.cli import peers

DTYPES = ("float16", "bfloat16", "float32", "float64")
SIZES = (1, 7, 100, 4095, 4096, 4097, 65_537, 10**6, 10**7)
CHECKED = 4096  # written elements of a leaf that are held to Fractions, evenly spread
NORM_PROMISE = 0.5  # ulp of float64: correctly rounded
ELEMENT_PROMISE = {"float16": 0.501, "bfloat16": 0.501, "float32": 0.501, "float64": 0.5}  # ulp of the dtype

LARGEST = {"float16": 65504.0, "bfloat16": 3.3e38, "float32": 3.4e38, "float64": 1e300}
DISTRIBUTIONS = {
    "normal": lambda rng, n, small, top: rng.standard_normal(n),
    "uniform 0..1": lambda rng, n, small, top: rng.random(n),
    "log-normal, sigma 10": lambda rng, n, small, top: np.exp(10 * rng.standard_normal(n)),
    "constant 0.1": lambda rng, n, small, top: np.full(n, 0.1),
    "one large, rest tiny": lambda rng, n, small, top: np.where(np.arange(n) == n // 2, 1, small * rng.uniform(0.5, 1, n)),
    "large and tiny in turn": lambda rng, n, small, top: rng.standard_normal(n) * np.where(np.arange(n) % 2, 1, small),
    "near overflow": lambda rng, n, small, top: top * rng.uniform(0.5, 1, n),
    "all subnormal": None,  # any bits below the smallest normal number
}


def values(name, kind, size):
    """Seeded numbers of a dtype, brought into its range."""
    dtype = np.dtype(dtype_of(name))
    rng = np.random.default_rng([size, *kind.encode()])
    if kind == "all subnormal":
        return rng.integers(1, 2 ** (FORMAT[name][0] - 1), size).astype(f"u{dtype.itemsize}").view(dtype)
    top = LARGEST[name]
    x = DISTRIBUTIONS[kind](rng, size, 2.0**-13 if name == "float16" else 2.0**-27, top)
    return np.clip(x, -top, top).astype(dtype)


# ---- errors -------------------------------------------------------------------------------------


def exact_sum(array):
    """Sum of squares as a Fraction: `reference.power_sum` for millions of elements.

    A significand of 53 bits is cut into 17 + 18 + 18, so that the parts of its square lie below 2**38 and 2**15
    of them add up exactly in the float64 of `numpy.bincount`, exponent by exponent."""
    total = defaultdict(int)
    for start in range(0, array.size, 2**15):
        significand, exponent = np.frexp(array[start : start + 2**15].astype(np.float64))
        m = np.abs(significand * 2.0**53).astype(np.int64)
        a, b, c = m >> 36, m >> 18 & 0x3FFFF, m & 0x3FFFF
        for i, part in enumerate((c * c, 2 * b * c, 2 * a * c + b * b, 2 * a * b, a * a)):
            sums = np.bincount(exponent + 1100, part)
            for e in np.flatnonzero(sums):
                total[18 * i + 2 * int(e)] += int(sums[e])
    return Fraction(sum(n << shift for shift, n in total.items()), 1 << 2 * (53 + 1100))


def norm_error(norm, exact):
    """Distance of a norm from the root of an exact sum, in ulps of float64 there."""
    if not math.isfinite(norm):
        return math.inf
    root = Fraction(math.isqrt((exact.numerator << 2400) // exact.denominator), 1 << 1200)
    return float(abs(Fraction(norm) - root) / Fraction(math.ulp(float(root))))


def installed(names=peers.NAMES):
    found = {}
    for name in names:
        with suppress(NotImplementedError):
            peer = peers.load(name)
            peer.prepare([np.ones(1, np.float32)])
            found[name] = peer
    return found


def norm_of(peer, leaves):
    """The norm that a peer finds; None where it cannot take such leaves."""
    try:
        with np.errstate(over="ignore"):
            return float(peer.global_norm(peer.prepare(leaves)))
    except (NotImplementedError, TypeError, ValueError):  # BLAS knows no halves, torch no negative strides
        return None


def errors(name, kind, size, contenders):
    """One cell of the matrix: norm errors by contender, the worst written element, the bits of the sum that are right."""
    x = values(name, kind, size)
    exact = exact_sum(x)
    norms = {peer: norm_of(library, [x]) for peer, library in contenders.items()}
    clipped, report = gradclip.clip_by_global_norm(x, gradclip.global_norm(x) * 0.3)
    some = np.unique(np.linspace(0, size - 1, CHECKED).astype(int))
    off = abs(gradclip.measure(x).power_sum() / exact - 1)
    return {
        "norms": {peer: norm_error(norm, exact) for peer, norm in norms.items() if norm is not None},
        "written": element_error(clipped[some], x[some], report.scale),
        "bits": -math.log2(off) if off else math.inf,
    }


def all_errors(contenders, dtypes=DTYPES, kinds=tuple(DISTRIBUTIONS), sizes=SIZES):
    return {(d, k, n): errors(d, k, n, contenders) for d in dtypes for k in kinds for n in sizes}


# ---- bits ---------------------------------------------------------------------------------------

VARIED = {
    "threads": "threads",
    "sets": "instruction set",
    "place": "alignment",
    "layout": "strides",
    "split": "split into leaves",
    "order": "order of the elements",
    "all": "all of these",
}
BITS_BYTES = 1_280_016  # enough for more than one thread, and whatever the dtype no multiple of 16 elements
WRITTEN = "gradclip, written"
BITS_KINDS = "normal", "log-normal, sigma 10"


def variants(x):
    """(what is varied, leaves, position of their elements in x): the same numbers, in memory of their own."""
    n, here, rng = len(x), np.arange(len(x)), np.random.default_rng(7)
    yield "nothing", [x.copy()], here
    for offset in sorted({k * unit for k in range(1, 8) for unit in (1, x.itemsize)}):
        view = np.ndarray(n, x.dtype, np.empty(x.nbytes + offset, np.uint8), offset)
        view[:] = x
        yield "place", [view], here
    for _, view in layouts(x):
        yield "layout", [view], here
    cuts = [[n // 2], [1], range(1, n, -(-n // 100)), np.sort(rng.integers(0, n, 7))]
    for cut in cuts:
        yield "split", [part.copy() for part in np.split(x, cut)], here
    rising = np.argsort(np.abs(x.astype(np.float64)), kind="stable")
    for order in (rising, rising[::-1], here[::-1], rng.permutation(n), rng.permutation(n)):
        yield "order", [x[order]], order
        yield "order", [part.copy() for part in np.split(x[order], cuts[-1])], order


def results(contenders, size=None, dtypes=DTYPES, kinds=BITS_KINDS):
    """What each contender makes of every variant: lists (column, dtype, distribution, varied, bits)."""
    found = []
    for name in dtypes:
        for kind in kinds:
            x = values(name, kind, size or BITS_BYTES // np.dtype(dtype_of(name)).itemsize)
            for varied, leaves, order in variants(x):
                norms = {peer: norm_of(library, leaves) for peer, library in contenders.items() if peer != "gradclip"}
                norm = gradclip.clip_by_global_norm_(leaves, 1.0).norm
                written = np.empty_like(x)
                written[order] = np.concatenate([leaf.reshape(-1) for leaf in leaves])
                bits = {"gradclip": norm, WRITTEN: hashlib.sha256(written.view(np.uint8)).hexdigest(), **norms}
                found += [[column, name, kind, varied, str(b)] for column, b in bits.items() if b is not None]
    return found


# The variables that choose an instruction set of OpenBLAS and of PyTorch.
SETS = {"baseline": ("Nehalem", "default"), "avx2": ("Haswell", "avx2"), "avx512": ("SkylakeX", "avx512")}


def thread_counts():
    """1, 2 and 4, as far as this process may use as many."""
    counts = set()
    for n in (1, 2, 4):
        with gradclip.num_threads(n):
            counts.add(machine.team())
    return sorted(counts)


def in_processes(names, dtypes, kinds):
    """`results` by (instruction set, threads), each from a process of its own."""
    found = {}
    for isa in machine.available_isas():
        core, capability = SETS[isa]
        for threads in map(str, thread_counts()):
            chosen = {"GRADCLIP_ISA": isa, "OPENBLAS_CORETYPE": core, "ATEN_CPU_CAPABILITY": capability}
            chosen |= dict.fromkeys(("GRADCLIP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), threads)
            command = [sys.executable, __file__, "--results", json.dumps([names, dtypes, kinds])]
            process = subprocess.run(command, env=os.environ | chosen, stdout=subprocess.PIPE, check=True)
            found[isa, threads] = json.loads(process.stdout)
    return found


def distinct(found):
    """(column, varied) -> (most different results of one dtype and distribution, out of how many)."""
    groups = defaultdict(list)
    for (isa, threads), rows in found.items():
        for column, name, kind, varied, bits in rows:
            data = column, name, kind
            groups[("all", *data)].append(bits)
            if varied == "nothing":
                groups[("threads", *data, isa)].append(bits)
                groups[("sets", *data, threads)].append(bits)
            for position in ("place", "layout", "split", "order"):
                if varied in ("nothing", position):
                    groups[(position, *data, isa, threads)].append(bits)
    most = {}
    for (varied, column, *_), same in groups.items():
        most[column, varied] = max(most.get((column, varied), (0, 0)), (len(set(same)), len(same)))
    return dict(sorted(most.items()))


# ---- what is shown ------------------------------------------------------------------------------


def worst(cells, of, **fixed):
    """The largest of `of(cell)` over the cells with that dtype, kind or size; None without one."""
    names = ("dtype", "kind", "size")
    chosen = [of(c) for key, c in cells.items() if all(key[names.index(n)] == v for n, v in fixed.items())]
    return max((c for c in chosen if c is not None), default=None)


def show_errors(cells, contenders):
    sizes = sorted({size for *_, size in cells})
    print(f"Worst error of the norm over sizes {sizes[0]:,} to {sizes[-1]:,}, in ulps of float64 at the exact norm\n")
    print(f"{'':34}" + "".join(f"{peer:>14}" for peer in contenders))
    for name, kind in dict.fromkeys(key[:2] for key in cells):
        found = [worst(cells, lambda c, p=p: c["norms"].get(p), dtype=name, kind=kind) for p in contenders]
        print(f"{name:10}{kind:24}" + "".join(f"{'-' if e is None else format(e, '.4g'):>14}" for e in found))
    print("\nWorst error of elements written by clip_by_global_norm, in ulps of their dtype, against x * scale:")
    for name in dict.fromkeys(key[0] for key in cells):
        print(f"    {name:10}{worst(cells, lambda c: c['written'], dtype=name):.6f}  (promised {ELEMENT_PROMISE[name]})")
    overall = worst(cells, lambda c: c["norms"]["gradclip"])
    print(f"Worst error of gradclip's norm: {overall:.6f} ulp (promised {NORM_PROMISE})")
    print(f"Its sum of squares, before the root, is right to {-worst(cells, lambda c: -c['bits']):.1f} bits at least")


def show_distinct(most, computed):
    columns = list(dict.fromkeys(column for column, _ in most))
    print(f"\n{computed:,} results. Different ones of the same numbers / ways to compute them, at worst:\n")
    print(f"{'':24}" + "".join(f"{peer:>20}" for peer in columns))
    for varied, label in VARIED.items():
        cells = ["{} / {}".format(*most[peer, varied]) if (peer, varied) in most else "-" for peer in columns]
        print(f"{label:24}" + "".join(f"{cell:>20}" for cell in cells))


def broken(cells, most):
    """The promises that do not hold, in words."""
    said = []
    for (name, kind, size), cell in cells.items():
        if not cell["norms"]["gradclip"] <= NORM_PROMISE:
            said.append(f"norm of {size:,} {name}, {kind}: {cell['norms']['gradclip']} ulp")
        if not cell["written"] <= ELEMENT_PROMISE[name]:
            said.append(f"elements of {size:,} {name}, {kind}: {cell['written']} ulp")
    for (peer, varied), (different, ways) in most.items():
        if peer.startswith("gradclip") and different != 1:
            said.append(f"{peer}: {different} different results in {ways} ways to compute them ({VARIED[varied]})")
    return said


COLORS = {"gradclip": "#0072B2", "numpy": "#E69F00", "scipy": "#009E73", "torch": "#CC3311"}
FLOOR, TOP, NO_NUMBER = 1e-3, 3e20, 3e18  # of the axis; Inf is drawn at the last


def draw(cells, most, contenders):
    """Errors above, different results below: a matplotlib figure, outside of pyplot's global state."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ImportError as error:
        raise ImportError('the picture needs matplotlib: pip install "gradclip[demo]"') from error

    figure = Figure(figsize=(11, 8.6), layout="constrained")
    above, below = figure.subfigures(2, height_ratios=(5.6, 3))
    sizes = sorted({size for *_, size in cells})
    above.suptitle(
        f"(a) Error of the norm, in ulps of float64 at the exact norm. Each dot is a size, {sizes[0]:,} to {sizes[-1]:,}: "
        "the larger, the more elements"
    )
    dtypes = list(dict.fromkeys(key[0] for key in cells))
    kinds = list(dict.fromkeys(key[1] for key in cells))
    for axes, name in zip(above.subplots(1, len(dtypes), sharey=True, squeeze=False)[0], dtypes, strict=True):
        _draw_errors(axes, name, kinds, sizes, cells, contenders)
    axes = above.axes[0]
    axes.set_yticks([1e-3, 0.5, 1e3, 1e6, 1e9, 1e12, 1e15, NO_NUMBER])
    axes.set_yticklabels(["≤ 0.001", "0.5", *(f"$10^{{{e}}}$" for e in (3, 6, 9, 12, 15)), "Inf"])
    handles = [Line2D([], [], color=COLORS[peer], marker="o", linestyle="", label=peer) for peer in contenders]
    handles += axes.get_legend_handles_labels()[0]
    above.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9)
    _draw_distinct(below.subplots(), most)
    below.suptitle("(b) Different results of the same numbers / ways to compute them; worst dtype and distribution")
    return figure


def _draw_errors(axes, name, kinds, sizes, cells, contenders):
    for i, peer in enumerate(contenders):
        points = [
            (
                k + 0.16 * (i - (len(contenders) - 1) / 2),
                min(max(cells[name, kind, n]["norms"][peer], FLOOR), NO_NUMBER),
                6 + 7 * s,
            )
            for k, kind in enumerate(kinds)
            for s, n in enumerate(sizes)
            if peer in cells[name, kind, n]["norms"]
        ]
        x, y, area = zip(*points, strict=True) if points else ((), (), ())
        axes.scatter(x, y, area, COLORS[peer], linewidths=0, zorder=3)
    axes.axhline(NORM_PROMISE, color="black", linestyle="--", linewidth=1, label="promised: 0.5 ulp")
    axes.axhline(2.0**28, color="0.45", linestyle=":", linewidth=1.2, label="half an ulp of float32")
    axes.set(yscale="log", ylim=(FLOOR / 3, TOP), title=name, xlim=(-0.6, len(kinds) - 0.4))
    axes.set_xticks(range(len(kinds)), kinds, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
    axes.minorticks_off()
    axes.grid(axis="x", color="0.92")


def _draw_distinct(axes, most):
    axes.axis("off")
    columns = list(dict.fromkeys(peer for peer, _ in most))
    text = [["{} / {}".format(*most[c, v]) if (c, v) in most else "-" for c in columns] for v in VARIED]
    colors = [
        [
            "white" if (c, v) not in most or most[c, v][1] == 1 else "#CDE7F5" if most[c, v][0] == 1 else "#F9D9C4"
            for c in columns
        ]
        for v in VARIED
    ]
    table = axes.table(
        text,
        colors,
        rowLabels=[f"{label}  " for label in VARIED.values()],
        colLabels=columns,
        cellLoc="center",
        bbox=(0.2, 0.0, 0.75, 1.0),
    )
    table.auto_set_font_size(False)
    table.set_fontsize(10)
    for (row, column), cell in table.get_celld().items():
        cell.set_edgecolor("white" if column >= 0 and row else "none")


def save(figure, path):
    """As PNG of few colors, a third of the size."""
    from PIL import Image  # which matplotlib brings

    picture = io.BytesIO()
    figure.savefig(picture, dpi=110)
    Image.open(picture).convert("RGB").quantize(64).save(path, format="png", optimize=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="no leaf of 10,000,000; bits of two dtypes, without torch")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the figure, as PNG")
    parser.add_argument("--results", type=json.loads, help=argparse.SUPPRESS)  # of one process: see in_processes
    options = parser.parse_args()
    if options.results:
        names, dtypes, kinds = options.results
        print(json.dumps(results(installed(names), dtypes=dtypes, kinds=kinds)))
        return 0
    contenders = installed()
    sets = ", ".join(machine.available_isas())
    print(f"Instruction sets run: {sets}; threads: {', '.join(map(str, thread_counts()))}\n")
    cells = all_errors(contenders, sizes=SIZES[:-1] if options.quick else SIZES)
    show_errors(cells, contenders)
    if options.quick:  # torch alone takes seconds to import
        found = in_processes([name for name in contenders if name != "torch"], ("float16", "float64"), BITS_KINDS[:1])
    else:
        found = in_processes(list(contenders), DTYPES, BITS_KINDS)
    most = distinct(found)
    show_distinct(most, sum(map(len, found.values())))
    beside = {name: middles.look(*numbers) for name, numbers in middles.kinds(options.quick).items()}
    middles.show(beside)
    if options.plot:
        save(draw(cells, most, contenders), options.plot)
    said = broken(cells, most) + middles.broken(beside)
    print("", *said or ["Every promise held."], sep="\n")
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
