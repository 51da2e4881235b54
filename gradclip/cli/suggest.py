"""``gradclip suggest``: thresholds worth trying, from a file of logged norms."""

from __future__ import annotations

import csv
import io
import math
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import TextIO

import numpy as np

from .._core.arguments import Floats
from .._saving import Figure, Name, check_picture, need_matplotlib, new_figure, save_picture
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
LISTED = 20  # so many names of columns are listed in an error
FEW = 20  # norms: the 95th percentile of fewer says hardly more than the largest
SUGGESTED = {percent: words for percent, words in PERCENTILES.items() if percent in (90, 95, 99)}


def run(path: Name, column: str | None = None, plot: Name | None = None) -> None:
    """Print percentiles of logged norms with the clip rate that each would give as a threshold.

    Parameters
    ----------
    path, column
        As for `read_norms`.
    plot : path, optional
        Where a histogram of the norms is saved. The suffix chooses its format, PNG if there is none.

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


def read_norms(path: Name, column: str | None = None) -> tuple[Floats, str]:
    """Return the norms in one column of a CSV or text file, which may be of any length.

    The fields of a line are separated by commas if the first line has any, else by semicolons, else by tabs, else by blanks.
    Empty lines and lines that begin with ``#`` are left out. So is a header, also where it is repeated.

    Parameters
    ----------
    path : path
        The file, in UTF-8; ``-`` is standard input.
    column : str, optional
        A name in the header, or the number of the column, from 1, if there is no header. By default it is ``norm``; if
        there is no such column, the only column of numbers whose name contains "norm" in small or capital letters; if there
        is no header, the only column of numbers.

    Returns
    -------
    norms : numpy.ndarray
        Float64, in the order of the lines, NaN and Inf included; an empty field is NaN.
    name : str
        The column, as messages call it.

    Raises
    ------
    OSError, ValueError
        The file cannot be read, the column does not exist or is not clear, or a field is no norm. The message names the line.
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
def _opened(path: Name) -> Iterator[tuple[Name, TextIO]]:
    """Yield what messages call a file, and the file itself, opened as text."""
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


def _fields(line: str, delimiter: str | None) -> list[str]:
    """Return the fields of a line, without the quotes and blanks around them."""
    if '"' in line:
        try:
            line_fields = next(csv.reader([line], delimiter=delimiter or " ", skipinitialspace=True))
        except csv.Error as error:  # not a ValueError
            raise ValueError(f"{line[:40]!r}: {error}") from None
        return [field.strip() for field in line_fields]
    return [field.strip() for field in line.split(delimiter)]


def _is_header(fields: Sequence[str], column: str | None) -> bool:
    """Return whether the fields of the first line are names of columns."""
    if column is not None and column in fields and not is_number(column):  # a number may stand for a column's place
        return True
    return any("norm" in field.lower() for field in fields) or not any(map(is_number, fields))


def _column(path: Name, column: str | None, header: list[str], first: tuple[int, str], delimiter: str | None) -> int:
    """Return the index of the field that holds the norm; raise a ValueError if it is not clear.

    `first` is the number and the text of the first line of data.
    """
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


def _names(header: list[str], count: int) -> list[str]:
    """Return names of `count` columns: those in the header, and for all others their numbers from 1."""
    return header + [str(i + 1) for i in range(len(header), count)]


def _listed(header: list[str], names: list[str]) -> str:
    """Return text that tells which columns a file has."""
    known = f"the columns are {_joined(names)}"
    return known if header else f"the file has no header, {known}"


def _joined(names: list[str]) -> str:
    """Return the names of columns as one text, cut short after so many."""
    more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return ", ".join(name or "(unnamed)" for name in names[:LISTED]) + more


def _draw(norms: Floats, thresholds: Mapping[float, float], path: Name) -> Figure:
    """Return a figure with the histogram of the norms above 0 on a logarithmic axis, and the thresholds by percentile."""
    figure = new_figure(9, 5)
    axes = figure.subplots()
    positive = norms[norms > 0]
    exponents = np.log10(positive) if positive.size else np.zeros(1)
    low, high = exponents.min(), exponents.max()
    if high - low < 0.01:  # the norms are all alike
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
