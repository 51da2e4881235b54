"""``gradclip suggest``: from a file of logged norms to thresholds worth trying."""

from __future__ import annotations

import csv
import math
import os
from array import array
from itertools import chain, islice

import numpy as np

from ._pictures import check_picture, need_matplotlib, save_picture
from ._terminal import show_table
from .files import delimiter_of, is_data, is_number
from .thresholds import clip_rate, suggest_threshold

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
    finite = norms[np.isfinite(norms)]
    if not finite.size:
        raise ValueError(f"{path}: none of the {norms.size} norms in {name} is finite")

    thresholds = {percent: suggest_threshold(finite, percent) for percent in PERCENTILES}
    rows = [
        (f"{percent:g}", f"{threshold:.6g}", f"{clip_rate(finite, threshold):.2%}", PERCENTILES[percent])
        for percent, threshold in thresholds.items()
    ]
    ignored = norms.size - finite.size
    print(f"{path}: {finite.size:,} norms in {name}; NaN, Inf or empty, and ignored: {ignored:,}\n")
    show_table(("percentile", "norm", "clip rate", ""), rows, words=-1)
    print(f"\nTry max_norm={thresholds[95]:.6g}: it would clip {clip_rate(finite, thresholds[95]):.1%} of such steps.")
    if plot is not None:
        save_picture(_draw(finite, {percent: thresholds[percent] for percent in SUGGESTED}, path), plot)
        print(f"Picture saved as {plot}")


def read_norms(path: str | os.PathLike[str], column: str | None = None) -> tuple[np.ndarray, str]:
    """One column of a CSV or text file of any length, line by line.

    The fields of a line are separated by commas, else semicolons, else tabs, else blanks, whichever the first
    line has. Empty lines and lines that begin with ``#`` are left out; so is a header where it is repeated.

    Parameters
    ----------
    path : path
        The file, in UTF-8.
    column : str, optional
        A name in the header. By default ``norm``, and where there is none, the last column that holds a number in
        the first line of data.

    Returns
    -------
    norms : numpy.ndarray
        Float64, NaN and Inf included; an empty field is NaN.
    name : str
        Which column that was.

    Raises
    ------
    OSError, ValueError
        The file cannot be read, there is no such column, or a field is no norm; the message names the line.
    """
    norms = array("d")
    with open(path, encoding="utf-8-sig", errors="replace") as file:
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
        name = f"column {header[index]}" if index < len(header) else f"column {index + 1}"
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


def _fields(line, delimiter):
    if '"' in line:
        try:
            line_fields = next(csv.reader([line], delimiter=delimiter or " ", skipinitialspace=True))
        except csv.Error as error:  # not a ValueError
            raise ValueError(f"{line[:40]!r}: {error}") from None
        return [field.strip() for field in line_fields]
    return [field.strip() for field in line.split(delimiter)]


def _is_header(fields, column):
    return "norm" in map(str.lower, fields) or column in fields or not any(map(is_number, fields))


def _column(path, column, header, first, delimiter):
    """Which field of a line is the norm."""
    if column is not None:
        if column not in header:
            known = f"the columns are {', '.join(header)}" if header else "the file has no header"
            raise ValueError(f"{path} has no column {column!r}: {known}")
        return header.index(column)
    lower = [name.lower() for name in header]
    if "norm" in lower:
        return lower.index("norm")
    n, line = first
    numbers = [i for i, field in enumerate(_fields(line, delimiter)) if is_number(field)]
    if not numbers:
        raise ValueError(f"{path}, line {n}: no number in {line[:40]!r}")
    return numbers[-1]


def _draw(norms, thresholds, path):
    """Histogram of the norms > 0 on a logarithmic axis: a matplotlib figure, outside of pyplot's global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
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
    axes.set_title(f"{path}: {norms.size:,} norms{zeros}", parse_math=False)
    axes.set(xlabel="gradient norm", ylabel="steps")
    axes.xaxis.set_major_formatter(lambda exponent, _: f"{10.0 ** min(exponent, 308):.3g}")
    if positive.size:
        figure.legend(loc="outside lower center")
    return figure
