"""The table and the picture (a roofline: speed over size) of the results of ``gradclip bench``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .._cpu import machine
from .._saving import Figure, new_figure
from .._version import __version__
from .terminal import show_table

if TYPE_CHECKING:
    from .bench import Result
else:
    Result = Any  # `bench` imports this file

NAMES = {"limit": "limit", "gradclip": "gradclip", "numpy": "NumPy", "scipy": "SciPy", "torch": "PyTorch"}
COLORS = {"gradclip": "#0072B2", "numpy": "#D55E00", "scipy": "#009E73", "torch": "#CC79A7"}


def limits(results: Sequence[Result]) -> str:
    """Return the memory limits at the largest size as text."""
    read, rewrite = (max((r for r in results if r.clips == c and r.leaves == 1), key=lambda r: r.bytes) for c in (False, True))
    speeds = f"read {read.speed('limit'):.1f} GB/s, read and rewrite {rewrite.speed('limit'):.1f} GB/s"
    return f"{speeds} ({read.name} of {read.dtype})"


def _contenders(results: Sequence[Result]) -> list[str]:
    """Return the names of those that were measured, in the order of the table."""
    return [name for name in NAMES if any(name in r.seconds for r in results)]


def show(results: Sequence[Result]) -> None:
    """Print the table of speeds."""
    names = _contenders(results)
    header = ["", *(NAMES[name] for name in names), "gradclip takes"]
    rows: list[list[str]] = []
    for r in results:
        if [r.kind] not in (row[:1] for row in rows):
            rows.append([r.kind, *[""] * (len(names) + 1)])
        speeds = (f"{r.speed(name):.1f}" if name in r.seconds else "" for name in names)
        rows.append([r.name, *speeds, f"{r.ratio:.2f} x limit"])
    show_table(header, rows, bold=("gradclip", "gradclip takes"))


def draw(results: Sequence[Result]) -> Figure:
    """Return a figure with the rooflines: a row of two per dtype, without and with clipping."""
    lines = [r for r in results if r.leaves == 1]
    kinds = list(dict.fromkeys(r.kind for r in lines))
    figure = new_figure(10, 1.5 + 1.75 * len(kinds))
    panels = figure.subplots(len(kinds) // 2, 2, sharex=True, sharey=True, squeeze=False)
    for axes, kind in zip(panels.flat, kinds, strict=True):
        shown = [r for r in lines if r.kind == kind]
        sizes = [r.bytes for r in shown]
        limit = [r.speed("limit") for r in shown]
        axes.fill_between(sizes, limit, 1e6, color="0.93", linewidth=0)
        axes.plot(sizes, limit, color="black", linewidth=2.5, label="memory limit")
        for name in _contenders(shown)[:0:-1]:
            ours = name == "gradclip"
            style = {"linewidth": 2.5 if ours else 1.2, "marker": "o", "markersize": 6 if ours else 4}
            axes.plot(sizes, [r.speed(name) for r in shown], color=COLORS[name], label=NAMES[name], **style)
        axes.set(xscale="log", yscale="log", xlim=(sizes[0] / 1.3, sizes[-1] * 1.3))
        axes.set_xticks(sizes, [r.name for r in shown], fontsize=8)
        axes.set_xticks([], minor=True)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(color="0.85", linewidth=0.5)
        axes.set_title(f"{kind}: at {shown[-1].name} gradclip takes {shown[-1].ratio:.2f} x limit", fontsize=10)
    speeds = [s for r in lines for name in r.seconds if (s := r.speed(name)) > 0]
    panels[0, 0].set_ylim(min(speeds) / 1.5, max(speeds) * 2)
    for axes in panels[:, 0]:
        axes.set_ylabel("GB of gradient per second")
    for axes in panels[-1]:
        axes.set_xlabel("size of the leaf")
    threads = f"{machine.team()} thread{'s' if machine.team() > 1 else ''}"
    figure.suptitle(f"gradclip {__version__} beside its peers and the memory limit ({threads}, {machine.isa()})")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    order = [0, *range(len(handles) - 1, 0, -1)]
    figure.legend([handles[i] for i in order], [labels[i] for i in order], loc="outside lower center", ncols=len(order))
    return figure
