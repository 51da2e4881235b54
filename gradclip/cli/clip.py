"""``gradclip clip``: clip the gradients of a file by their global norm, a leaf at a time."""

from __future__ import annotations

import errno
import math
import os
import shutil
import stat
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .._arguments import NormOptions, Rule, Unpack, flag, number, whole
from .._saving import check_writable, replacing
from ..errors import NonFiniteGradientError
from ..measure import Measure, apply_clip_, measure
from .files import Piped, file_format, is_gradient
from .terminal import progress, say, show_table

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
    max_norm: float | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    dry_run: bool = False,
    expand: bool = False,
    top: int = 20,
    **norm: Unpack[NormOptions],
) -> None:
    """Measure a file of gradients, write the clipped ones, and print what was done.

    Two passes over the file: all of it is measured, leaf by leaf, and then, leaf by leaf, clipped and written.

    Parameters
    ----------
    path : path
        A .npz, .npy, .safetensors, .csv or .txt file; ``-`` is text from standard input. Arrays of integers, booleans,
        text and dates are kept as they are.
    max_norm, **norm
        As for `clip_by_global_norm_`, for all arrays of the file together. Without `max_norm`, the norm is told alone.
    out : path, optional
        Where the clipped gradients are written: of the same format, may be `path` itself. A file of that name is
        replaced at once, or not at all. Without it, nothing is written.
    dry_run : bool, default False
        Write nothing, in spite of `out`.
    expand : bool, default False
        Read an archive that expands to more than 256 MiB and more than a hundred times its size, or whose compression
        is none of NumPy's.
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
    rule, top, expand = Rule.of(norm), whole("top", top, 0), flag("expand", expand)
    target = None if out is None or dry_run else Path(out)
    if max_norm is not None:
        max_norm = number("max_norm", max_norm, 0.0)
    elif target is not None:
        raise ValueError(f"{target}: clipped gradients cannot be written without max_norm")
    source: Any = Piped() if os.fspath(path) == "-" else Path(path)
    read, rewrite = file_format(source)
    stamp = _stamp(source)
    if target is not None:
        _check_target(target, source)

    large = stamp is not None and stamp.st_size > LARGE
    with progress("measuring", stamp.st_size if large else 0, large) as advance:
        leaves = list(_measured(source, read, rule, expand, advance))
    clipped = [leaf for leaf in leaves if leaf.measure is not None]
    if not clipped:
        kinds = ", ".join(sorted({leaf.dtype for leaf in leaves})) or "nothing"
        raise ValueError(f"{source}: no gradients: it holds {kinds}")
    total = sum((leaf.measure for leaf in clipped), measure([], **_measured_by(rule)))
    threshold = math.inf if max_norm is None else max_norm
    try:
        report = apply_clip_([], total, threshold, **norm)  # decides, and raises what is to be raised
    except NonFiniteGradientError as error:
        raise NonFiniteGradientError(f"{source}: {error.path}", error.index, error.count, error.value) from None

    if target is not None and not report.skipped:
        with replacing(target) as file, _unchanged(source, stamp):
            if report.scale == 1.0 and not (report.nonfinite and rule.nonfinite == "zero"):
                with source.open("rb") as old:
                    shutil.copyfileobj(old, file)  # nothing changes
            else:
                with progress("clipping", sum(leaf.nbytes for leaf in clipped), large) as advance:

                    def change(name, values):
                        apply_clip_(values, total, threshold, **norm)
                        advance(values.nbytes)

                    rewrite(source, file, change, expand)
    _show(source, leaves, report, rule, max_norm, None if report.skipped else target, top)


def _check_target(target, path):
    suffixes = (".csv", ".txt") if isinstance(path, Piped) else (path.suffix.lower(),)
    if target.suffix.lower() not in suffixes:
        kind = "text" if isinstance(path, Piped) else f"a {path.suffix} file"
        raise ValueError(f"{target}: clipped gradients of {kind} are written to a {' or '.join(suffixes)} file")
    check_writable(target)


class Stamp(NamedTuple):
    """Changes with the content of a file."""

    st_ino: int
    st_size: int
    st_mtime_ns: int


def _stamp(path):
    """The stamp of a file that can be read twice; None for what was piped, which is kept."""
    if isinstance(path, Piped):
        return None
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "no ordinary file, which could be read twice", str(path))
    return Stamp(found.st_ino, found.st_size, found.st_mtime_ns)


@contextmanager
def _unchanged(path, stamp):
    """An error where the file changed meanwhile, which comes before those that it may have led to."""
    failed = None
    try:
        yield
    except Exception as error:
        failed = error
    if _stamp(path) != stamp:
        raise OSError(errno.EBUSY, "the file changed while it was being read", str(path))
    if failed is not None:
        raise failed


def _measured_by(rule):
    return {"ord": rule.ord or math.inf, "grad_scale": rule.grad_scale}


def _measured(path, read, rule, expand, advance):
    for name, values in read(path, expand):
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


def _show(path, leaves, report, rule, max_norm, target, top):
    """A table of the leaves that were measured, what was kept, and what was done."""
    measured = [leaf for leaf in leaves if leaf.measure is not None]
    shown = measured
    if len(measured) > top:
        shown = sorted(measured, key=lambda leaf: (leaf.measure.nonfinite > 0, leaf.measure.norm), reverse=True)[:top]
    header = ["leaf", "shape", "dtype", "norm"]
    rows = [[leaf.name, str(leaf.shape), leaf.dtype, f"{leaf.measure.norm:.6g}"] for leaf in shown]
    if max_norm is not None:
        header.append("factor")
        for row in rows:
            row.append(f"{report.scale:.6g}")
    if report.nonfinite:
        header.append("NaN or Inf")
        for row, leaf in zip(rows, shown, strict=True):
            row.append(f"{leaf.measure.nonfinite:,}" if leaf.measure.nonfinite else "")
    if shown:
        if len(shown) < len(measured):
            largest = f"{len(shown):,} largest norms" if len(shown) > 1 else "largest norm"
            say(f"The {largest} of {len(measured):,} leaves:")
            say()
        show_table(header, rows)
        say()
    kept = [f"{leaf.name} ({leaf.dtype})" for leaf in leaves if leaf.measure is None]
    if kept:
        more = f" and {len(kept) - 5:,} more" if len(kept) > 5 else ""
        say(f"Not counted, and kept as they are: {', '.join(kept[:5])}{more}")
    if report.nonfinite:
        name, index = report.first_nonfinite
        say(f"NaN or Inf: {report.nonfinite:,}, the first at flat index {index:,} of {name}; nonfinite={rule.nonfinite!r}")
    if max_norm is None:
        say(f"{path}: norm {report.norm!r}, nothing was written")
        return
    within = report.norm <= report.max_norm
    done = "skipped" if report.skipped else "nothing to clip" if within else "clipped" if target else "to be clipped"
    where = f"written to {target}" if target else "nothing was written"
    sign = "<=" if within else "and" if math.isnan(report.norm) else ">"
    say(f"{path}: norm {report.norm!r} {sign} max_norm {report.max_norm!r}, factor {report.scale!r}: {done}, {where}")
