"""``gradclip suggest``: from a file of logged norms to thresholds worth trying."""

from __future__ import annotations

import csv
import io
import math
import os
from array import array
from contextlib import contextmanager
from itertools import chain, islice

import numpy as np

from .._saving import check_picture, need_matplotlib, new_figure, save_picture
from ..thresholds import clip_rate
from .files import delimiter_of, is_data, is_number, standard_input
from .terminal import say, show_table, shown

PERCENTILES = {
    0: "the smallest",
    50: "",
    75: "",
    90: "strict: Quantile's default",
    95: "suggested",
    99: "lenient: spikes only",
    99.9: "",
    100: "the largest",
}
LISTED = 20  # names of columns in an error
FEW = 20  # norms: with fewer, the 95th percentile says next to nothing beyond the largest
SUGGESTED = {percent: words for percent, words in PERCENTILES.items() if percent in (90, 95, 99)}


def run(path: str | os.PathLike[str], column: str | None = None, plot: str | os.PathLike[str] | None = None) -> None:
    """Print percentiles of logged norms, as thresholds with their clip rates; save a picture of them.

    Parameters
    ----------
    path, column
        As for `read_norms`.
    plot : path, optional
        Where the histogram is saved; the suffix chooses its format (none: PNG).

    Raises
    ------
    ImportError, OSError, ValueError
        Matplotlib is missing, or the file or an argument cannot be used.
    """
    if plot is not None:
        need_matplotlib("--plot")
        check_picture(plot)
    norms, name = read_norms(path, column)
    path = "standard input" if os.fspath(path) == "-" else path
    finite = norms[np.isfinite(norms)]
    if not finite.size:
        raise ValueError(f"{path}: none of the {norms.size} norms in {name} is finite")

    thresholds = dict(zip(PERCENTILES, np.percentile(finite, list(PERCENTILES)).tolist(), strict=True))
    rows = [
        (f"{percent:g}", f"{threshold:.6g}", f"{clip_rate(finite, threshold):.2%}", PERCENTILES[percent])
        for percent, threshold in thresholds.items()
    ]
    ignored = norms.size - finite.size
    count = f"{finite.size:,} norm{'s' if finite.size > 1 else ''}"
    say(f"{path}: {count} in {name}; NaN, Inf or empty, and ignored: {ignored:,}")
    say()
    show_table(("percentile", "norm", "clip rate", ""), rows, words=-1)
    say()
    if finite.size < FEW:
        say(f"{count} {'are' if finite.size > 1 else 'is'} not enough for a confident suggestion: log some hundred steps.")
    say(f"Try max_norm={thresholds[95]:.6g}: it would clip {clip_rate(finite, thresholds[95]):.1%} of such steps.")
    if plot is not None:
        save_picture(_draw(finite, {percent: thresholds[percent] for percent in SUGGESTED}, path), plot)
        say(f"Picture saved as {plot}")


def read_norms(path: str | os.PathLike[str], column: str | None = None) -> tuple[np.ndarray, str]:
    """One column of a CSV or text file of any length, line by line.

    The fields of a line are separated by commas, else semicolons, else tabs, else blanks, whichever the first
    line has. Empty lines and lines that begin with ``#`` are left out; so is a header where it is repeated.

    Parameters
    ----------
    path : path
        The file, in UTF-8; ``-`` is standard input.
    column : str, optional
        A name in the header; without a header, the number of the column, from 1. By default ``norm``, else the one
        column of numbers whose name contains "norm" in small or capital letters, else, without a header, the only
        column of numbers.

    Returns
    -------
    norms : numpy.ndarray
        Float64, NaN and Inf included; an empty field is NaN.
    name : str
        Which column that was.

    Raises
    ------
    OSError, ValueError
        The file cannot be read, the column is not there or not clear, or a field is no norm; the message names the line.
    """
    norms = array("d")
    with _opened(path) as (path, file):
        lines = ((n, line.rstrip("\n")) for n, line in enumerate(file, 1) if is_data(line))
        top = list(islice(lines, 2))  # a header and the first line of data, or two of data
        delimiter = delimiter_of(top[0][1]) if top else None
        header = _fields(top[0][1], delimiter) if top else []
        if _is_header(header, column):
            del top[:1]
        else:
            header = []
        if not top:
            raise ValueError(f"{path} has no norms")
        index = _column(path, column, header, top[0], delimiter)
        name = f"column {_names(header, index + 1)[index]}"
        for n, line in chain(top, lines):
            fields = _fields(line, delimiter)
            try:
                norm = float(fields[index] or "nan")
            except IndexError:
                raise ValueError(f"{path}, line {n}: nothing in {name}: {line[:40]!r}") from None
            except ValueError:
                if fields == header:
                    continue
                raise ValueError(f"{path}, line {n}: {fields[index][:40]!r} in {name} is not a number") from None
            if -math.inf < norm < 0:
                raise ValueError(f"{path}, line {n}: {norm!r} in {name}, but a norm is at least 0")
            norms.append(norm)
    return np.frombuffer(norms), name


@contextmanager
def _opened(path):
    """The name of a file, and its lines."""
    if os.fspath(path) != "-":
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            yield path, file
        return
    with standard_input() as stream:
        text = io.TextIOWrapper(stream, "utf-8-sig", "replace")
        try:
            yield "standard input", text
        finally:
            text.detach()  # standard input stays open


def _fields(line, delimiter):
    if '"' in line:
        try:
            line_fields = next(csv.reader([line], delimiter=delimiter or " ", skipinitialspace=True))
        except csv.Error as error:  # not a ValueError
            raise ValueError(f"{line[:40]!r}: {error}") from None
        return [field.strip() for field in line_fields]
    return [field.strip() for field in line.split(delimiter)]


def _is_header(fields, column):
    if column in fields and not is_number(column):  # a number may be meant for the column's place
        return True
    return any("norm" in field.lower() for field in fields) or not any(map(is_number, fields))


def _column(path, column, header, first, delimiter):
    """Which field of a line is the norm."""
    n, line = first
    fields = _fields(line, delimiter)
    names = _names(header, len(fields))
    if column is not None:
        if column not in names:
            raise ValueError(f"{path} has no column {column!r}: {_listed(header, names)}")
        if names.count(column) > 1:
            raise ValueError(f"{path}: several columns have the name {column!r}")
        return names.index(column)
    lower = [name.lower() for name in names]
    exact = [i for i, name in enumerate(lower) if name == "norm"]
    named = [i for i, name in enumerate(lower) if "norm" in name]
    numbers = [i for i, field in enumerate(fields) if is_number(field)]
    empty = [i for i, name in enumerate(header) if name and not any(fields[i : i + 1])]  # numbers may stand further down
    found = exact or sorted({*numbers, *empty}.intersection(named)) or named or ([] if header else numbers)
    if len(found) == 1:
        return found[0]
    if not numbers:
        raise ValueError(f"{path}, line {n}: no number in {line[:40]!r}")
    if exact or named:
        several = [names[i] for i in found]
        raise ValueError(f"{path}: several columns may be meant: choose one with --column: {_joined(several)}")
    raise ValueError(f"{path}: no column of numbers is named norm: choose one with --column; {_listed(header, names)}")


def _names(header, count):
    """Of columns: those of the header, else their numbers from 1."""
    return header + [str(i + 1) for i in range(len(header), count)]


def _listed(header, names):
    known = f"the columns are {_joined(names)}"
    return known if header else f"the file has no header, {known}"


def _joined(names):
    more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return ", ".join(name or "(unnamed)" for name in names[:LISTED]) + more


def _draw(norms, thresholds, path):
    """Histogram of the norms > 0 on a logarithmic axis: a matplotlib figure, outside of pyplot's global state."""
    figure = new_figure(9, 5)
    axes = figure.subplots()
    positive = norms[norms > 0]
    exponents = np.log10(positive) if positive.size else np.zeros(1)
    low, high = exponents.min(), exponents.max()
    if high - low < 0.01:  # all alike
        low, high = low - 0.1, high + 0.1
    counts, edges = np.histogram(exponents if positive.size else [], bins=80, range=(low, high))
    axes.stairs(counts, edges, fill=True, color="#0072B2", alpha=0.6)
    for (percent, threshold), color in zip(thresholds.items(), ("#E69F00", "#D55E00", "black"), strict=True):
        if threshold > 0:
            label = f"{threshold:.4g}: percentile {percent}, {SUGGESTED[percent]}"
            axes.axvline(math.log10(threshold), color=color, linestyle="--", label=label)
    zeros = f", {norms.size - positive.size:,} zeros not shown" if positive.size < norms.size else ""
    axes.set_title(f"{shown(path)}: {norms.size:,} norms{zeros}", parse_math=False)
    axes.set(xlabel="gradient norm", ylabel="steps")
    axes.xaxis.set_major_formatter(lambda exponent, _: f"{10.0 ** min(exponent, 308):.3g}")
    if positive.size:
        figure.legend(loc="outside lower center")
    return figure
