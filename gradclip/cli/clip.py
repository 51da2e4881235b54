"""``gradclip clip``: clip the gradients of a file by their global norm, array by array."""

from __future__ import annotations

import errno
import math
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .._core.arguments import flag, number, whole
from .._core.leaf_table import LeafRow, LeafTable
from .._core.options import NormOptions, Options, Unpack
from .._saving import check_writable, replacing
from ..errors import NonFiniteGradientError
from ..measure import Measure, apply_clip_, measure
from ..report import ClipReport
from .files import Piped, Read, Rewrite, Source, file_format, is_gradient
from .npy import Array
from .terminal import progress, say, show_table

LARGE = 2**27  # bytes: a smaller file takes too little time for a progress bar


@dataclass
class Leaf:
    """Name, shape, dtype, bytes and measure of one array of gradients."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    measure: Measure


@dataclass
class Content:
    """The arrays of gradients in a file, and the names of everything else, which is kept as it is."""

    leaves: list[Leaf]
    kept: list[tuple[str, str]]  # names, and dtypes or "no array"


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

    The file is read twice: first every array is measured, then every array is clipped and written.

    Parameters
    ----------
    path : path
        A .npz, .npy, .safetensors, .csv or .txt file; ``-`` is text from standard input. Arrays of integers, booleans,
        text and dates are kept as they are.
    max_norm, **norm
        As for `clip_by_global_norm_`, for all arrays of the file together. Without `max_norm` only the norm is printed.
    out : path, optional
        Where the clipped gradients are written, in the same format; it may be `path` itself. A file of that name is
        replaced at once by the complete new file, or not at all. Without `out` nothing is written.
    dry_run : bool, default False
        Write nothing, even if `out` is given.
    expand : bool, default False
        Read an archive even if it expands to more than 256 MiB and more than a hundred times its size, or if its
        compression is none of NumPy's.
    top : int, default 20
        How many arrays the table shows at most. Those with NaN or Inf come first, then the largest norms.

    Raises
    ------
    NonFiniteGradientError
        An element is NaN or Inf, under ``nonfinite="raise"``.
    ImportError, OSError, TypeError, ValueError
        Safetensors or ml_dtypes is missing, or a file or an argument cannot be used. Nothing is written after any error.
    """
    options, top, expand = Options.of(norm), whole("top", top, 0), flag("expand", expand)
    target = None if out is None or dry_run else Path(out)
    if max_norm is not None:
        max_norm = number("max_norm", max_norm, 0.0)
    elif target is not None:
        raise ValueError(f"{target}: clipped gradients cannot be written without max_norm")
    file = _input(path, expand)
    if target is not None:
        _check_target(target, file.source)

    content = _measured(file, options)
    total = sum(
        (leaf.measure for leaf in content.leaves), measure([], ord=options.ord or math.inf, grad_scale=options.grad_scale)
    )
    threshold = math.inf if max_norm is None else max_norm
    try:
        report = apply_clip_([], total, threshold, **norm)  # decides, and raises the error that NaN or Inf may be
    except NonFiniteGradientError as error:
        raise NonFiniteGradientError(f"{file.source}: {error.path}", error.index, error.count, error.value) from None

    if target is not None and not report.skipped:
        unchanged = report.scale == 1.0 and not (report.nonfinite and options.nonfinite == "zero")
        _write(file, target, None if unchanged else lambda values: apply_clip_(values, total, threshold, **norm), content)
    _show_table(content.leaves, report, max_norm is not None, top)
    _show_rest(content.kept, report, options)
    _show_result(file.source, report, max_norm is not None, None if report.skipped else target)


class Stamp(NamedTuple):
    """Numbers of a file, one of which changes when its content does."""

    st_ino: int
    st_size: int
    st_mtime_ns: int


@dataclass
class Input:
    """The file that is read, the functions of its format, and what is known about it before it is read."""

    source: Source
    read: Read
    rewrite: Rewrite
    stamp: Stamp | None
    expand: bool

    @property
    def large(self) -> bool:
        """Whether it is worth a progress bar."""
        return self.stamp is not None and self.stamp.st_size > LARGE


def _input(path: str | os.PathLike[str], expand: bool) -> Input:
    """Return the file of this name, or standard input for ``-``; raise an error if it cannot be read twice."""
    source: Source = Piped() if os.fspath(path) == "-" else Path(path)
    read, rewrite = file_format(source)
    return Input(source, read, rewrite, _stamp(source), expand)


def _check_target(target: Path, source: Source) -> None:
    """Raise a ValueError if `target` has another format than `source`, an OSError if it cannot be written."""
    suffixes = (".csv", ".txt") if isinstance(source, Piped) else (source.suffix.lower(),)
    if target.suffix.lower() not in suffixes:
        kind = "text" if isinstance(source, Piped) else f"a {source.suffix} file"
        raise ValueError(f"{target}: clipped gradients of {kind} are written to a {' or '.join(suffixes)} file")
    check_writable(target)


def _stamp(source: Source) -> Stamp | None:
    """Return the stamp of a file, or None for standard input, which is kept; raise an OSError if it cannot be read twice."""
    if isinstance(source, Piped):
        return None
    found = source.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "no ordinary file, which could be read twice", str(source))
    return Stamp(found.st_ino, found.st_size, found.st_mtime_ns)


@contextmanager
def _unchanged(source: Source, stamp: Stamp | None) -> Iterator[None]:
    """Raise an OSError after a ``with`` block if the file has changed; it replaces an error that this may have led to."""
    failed = None
    try:
        yield
    except Exception as error:
        failed = error
    if _stamp(source) != stamp:
        raise OSError(errno.EBUSY, "the file changed while it was being read", str(source))
    if failed is not None:
        raise failed


def _measured(file: Input, options: Options) -> Content:
    """Return the content of a file, each array of gradients measured; raise a ValueError if there is none."""
    content = Content([], [])
    size = file.stamp.st_size if file.stamp is not None and file.large else 0
    with progress("measuring", size, file.large) as advance:
        for name, values in file.read(file.source, file.expand):
            if values is None:
                content.kept.append((name, "no array"))
                continue
            if is_gradient(values):
                try:
                    found = measure({name: values}, ord=options.ord or math.inf, grad_scale=options.grad_scale)
                except TypeError as error:
                    raise ValueError(f"{file.source}: {error}") from None
                content.leaves.append(Leaf(name, values.shape, values.dtype.name, values.nbytes, found))
            else:
                content.kept.append((name, values.dtype.name))
            advance(values.nbytes)
            del values  # its memory is free before the next array is read
    if not content.leaves:
        kinds = ", ".join(sorted({dtype for _, dtype in content.kept})) or "nothing"
        raise ValueError(f"{file.source}: no gradients: it holds {kinds}")
    return content


def _write(file: Input, target: Path, clip: Callable[[Array], Any] | None, content: Content) -> None:
    """Write a file to `target` after `clip` has changed each array of gradients in place; copy it if `clip` is None."""
    with replacing(target) as new, _unchanged(file.source, file.stamp):
        if clip is None:
            with file.source.open("rb") as old:
                shutil.copyfileobj(old, new)
            return
        with progress("clipping", sum(leaf.nbytes for leaf in content.leaves), file.large) as advance:

            def change(name: str, values: Array) -> None:
                """Clip one array in place, and move the progress bar."""
                clip(values)
                advance(values.nbytes)

            file.rewrite(file.source, new, change, file.expand)


def _show_table(leaves: list[Leaf], report: ClipReport, clipping: bool, top: int) -> None:
    """Print a table of the arrays that were measured: all of them, or the `top` ones that `LeafTable` has first."""
    table = LeafTable((_row(leaf, report.scale if clipping else None) for leaf in leaves), top)
    if not len(table):
        return
    if len(table) < len(leaves):
        largest = f"{len(table):,} largest norms" if len(table) > 1 else "largest norm"
        say(f"The {largest} of {len(leaves):,} leaves:")
        say()
    show_table(*table.cells())
    say()


def _row(leaf: Leaf, factor: float | None) -> LeafRow:
    """Return the row of one array, which is to be multiplied by a factor, if it is to be clipped."""
    found = leaf.measure
    return LeafRow(leaf.name, leaf.shape, leaf.dtype, found.norm, factor, None, found.max_abs, found._nans, found._infs)


def _show_rest(kept: list[tuple[str, str]], report: ClipReport, options: Options) -> None:
    """Print what was not measured, and where NaN or Inf was found."""
    if kept:
        more = f" and {len(kept) - 5:,} more" if len(kept) > 5 else ""
        say(f"Not counted, and kept as they are: {', '.join(f'{name} ({dtype})' for name, dtype in kept[:5])}{more}")
    if report.first_nonfinite is not None:
        name, index = report.first_nonfinite
        say(f"NaN or Inf: {report.nonfinite:,}, the first at flat index {index:,} of {name}; nonfinite={options.nonfinite!r}")


def _show_result(source: Source, report: ClipReport, clipping: bool, target: Path | None) -> None:
    """Print the last line: the norm, the threshold and the factor, and where the gradients were written."""
    if not clipping:
        say(f"{source}: norm {report.norm!r}, nothing was written")
        return
    within = report.norm <= report.max_norm
    done = "skipped" if report.skipped else "nothing to clip" if within else "clipped" if target else "to be clipped"
    where = f"written to {target}" if target else "nothing was written"
    sign = "<=" if within else "and" if math.isnan(report.norm) else ">"
    say(f"{source}: norm {report.norm!r} {sign} max_norm {report.max_norm!r}, factor {report.scale!r}: {done}, {where}")
