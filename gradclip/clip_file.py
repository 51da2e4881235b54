"""``gradclip clip``: clip the gradients of a file by their global norm, a leaf at a time."""

from __future__ import annotations

import errno
import math
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from . import _replace
from ._arguments import NormOptions, Rule, Unpack, number, whole
from ._terminal import progress, show_table
from .files import file_format, is_gradient
from .measure import Measure, apply_clip_, measure

LARGE = 2**27  # bytes: with less there is no time to look at a progress bar


@dataclass
class Leaf:
    """What is told of one array, or of a file within the file that is none."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    measure: Measure | None  # None: kept as it is


def run(
    path: str | os.PathLike[str],
    max_norm: float,
    out: str | os.PathLike[str] | None = None,
    *,
    dry_run: bool = False,
    top: int = 20,
    **norm: Unpack[NormOptions],
) -> None:
    """Measure a file of gradients, write the clipped ones, and print what was done.

    Two passes over the file: all of it is measured, leaf by leaf, and then, leaf by leaf, clipped and written.

    Parameters
    ----------
    path : path
        A .npz, .safetensors, .csv or .txt file. Arrays of integers, booleans, text and dates are kept as they are.
    max_norm, **norm
        As for `clip_by_global_norm_`, for all arrays of the file together.
    out : path, optional
        Where the clipped gradients are written: of the same format, may be `path` itself. A file of that name is
        replaced at once, or not at all. Without it, nothing is written.
    dry_run : bool, default False
        Write nothing, in spite of `out`.
    top : int, default 20
        How many leaves the table shows at most: those with the largest norms, in the order of the file.

    Raises
    ------
    NonFiniteGradientError
        An element is NaN or Inf, under ``nonfinite="raise"``.
    ImportError, OSError, TypeError, ValueError
        Safetensors or ml_dtypes is missing, or a file or an argument cannot be used. Nothing is written when anything
        is raised.
    """
    rule, max_norm, top = Rule.of(norm), number("max_norm", max_norm, 0.0), whole("top", top, 0)
    path = Path(path)
    read, rewrite = file_format(path)
    stamp = _stamp(path)
    target = None if out is None or dry_run else Path(out)
    if target is not None:
        if target.suffix.lower() != path.suffix.lower():
            raise ValueError(f"{target}: clipped gradients of a {path.suffix} file are written to a {path.suffix} file")
        _replace.check(target)

    large = path.stat().st_size > LARGE
    with progress("measuring", path.stat().st_size, large) as advance:
        leaves = list(_measured(path, read, rule, advance))
    clipped = [leaf for leaf in leaves if leaf.measure is not None]
    total = sum((leaf.measure for leaf in clipped), measure([], **_measured_by(rule)))
    report = apply_clip_([], total, max_norm, **norm)  # decides, and raises what is to be raised

    if target is not None and not report.skipped:
        with _replace.replacing(target) as beside:
            if report.scale == 1.0 and not (report.nonfinite and rule.nonfinite == "zero"):
                shutil.copyfile(path, beside)  # nothing changes
            else:
                with progress("clipping", sum(leaf.nbytes for leaf in clipped), large) as advance:

                    def change(name, values):
                        apply_clip_(values, total, max_norm, **norm)
                        advance(values.nbytes)

                    rewrite(path, beside, change)
            if _stamp(path) != stamp:
                raise OSError(errno.EBUSY, "the file changed while it was being read", str(path))
    _show(path, leaves, report, rule, None if report.skipped else target, top)


def _stamp(path):
    """Changes with the content of a file."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "no ordinary file, which could be read twice", str(path))
    return found.st_ino, found.st_size, found.st_mtime_ns


def _measured_by(rule):
    return {"ord": rule.ord or math.inf, "grad_scale": rule.grad_scale}


def _measured(path, read, rule, advance):
    for name, values in read(path):
        if values is None:
            yield Leaf(name, (), "no array", 0, None)
            continue
        try:
            found = measure({name: values}, **_measured_by(rule)) if is_gradient(values) else None
        except TypeError as error:
            raise ValueError(f"{path}: {error}") from None
        advance(values.nbytes)
        leaf = Leaf(name, values.shape, values.dtype.name, values.nbytes, found)
        del values  # before the next one is read
        yield leaf


def _show(path, leaves, report, rule, target, top):
    """A table of the leaves that were measured, what was kept, and what was done."""
    measured = [leaf for leaf in leaves if leaf.measure is not None]
    shown = measured
    if len(measured) > top:
        shown = sorted(measured, key=lambda leaf: (leaf.measure.nonfinite > 0, leaf.measure.norm), reverse=True)[:top]
    header = ["leaf", "shape", "dtype", "norm", "factor"]
    rows = [[leaf.name, str(leaf.shape), leaf.dtype, f"{leaf.measure.norm:.6g}", f"{report.scale:.6g}"] for leaf in shown]
    if report.nonfinite:
        header.append("NaN or Inf")
        for row, leaf in zip(rows, shown, strict=True):
            row.append(f"{leaf.measure.nonfinite:,}" if leaf.measure.nonfinite else "")
    if shown:
        if len(shown) < len(measured):
            print(f"The {len(shown):,} largest norms of {len(measured):,} leaves:\n")
        show_table(header, rows)
        print()
    kept = [f"{leaf.name} ({leaf.dtype})" for leaf in leaves if leaf.measure is None]
    if kept:
        more = f" and {len(kept) - 5:,} more" if len(kept) > 5 else ""
        print(f"Not counted, and kept as they are: {', '.join(kept[:5])}{more}")
    if report.nonfinite:
        name, index = report.first_nonfinite
        print(f"NaN or Inf: {report.nonfinite:,}, the first at flat index {index:,} of {name}; nonfinite={rule.nonfinite!r}")
    within = report.norm <= report.max_norm
    done = "skipped" if report.skipped else "nothing to clip" if within else "clipped" if target else "to be clipped"
    where = f"written to {target}" if target else "nothing was written"
    sign = "<=" if within else "and" if math.isnan(report.norm) else ">"
    print(f"{path}: norm {report.norm!r} {sign} max_norm {report.max_norm!r}, factor {report.scale!r}: {done}, {where}")
