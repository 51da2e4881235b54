"""Printing of lines, tables and progress bars: by rich if it is installed and the output is a terminal.

Names come from files, and may hold characters that control a terminal. So all text is printed through `shown`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .._core.leaf_table import printable

_bars: list[Any] = []  # the progress bars on the screen


def shown(text: object) -> str:
    """Return text with escapes for all that cannot be seen: control characters, reversed writing, bytes that are no text."""
    return printable(str(text))


def say(text: str = "") -> None:
    """Print exactly one line, even if a name in it has a line break."""
    print(shown(text))


def show_table(header: Sequence[str], rows: Sequence[Sequence[str]], words: int = 0, bold: Collection[str] = ()) -> None:
    """Print cells of text as a table: by rich on a terminal, else aligned with spaces.

    Parameters
    ----------
    header : sequence of str
        The names of the columns.
    rows : sequence of sequences of str
        The cells. A row with nothing but its first cell is a heading, and bold on a terminal.
    words : int, default 0
        The column that holds words. All others hold numbers, which are aligned right.
    bold : collection of str
        The names of columns that are bold on a terminal.
    """
    words %= len(header)
    header, rows = [shown(name) for name in header], [[shown(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    screen = _screen()
    if screen is not None and screen.is_terminal:
        _show_grid(screen, header, rows, widths, words, bold)
        return
    for row in (header, *rows):
        cells = [
            cell.ljust(width) if i == words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def _show_grid(
    screen: Any,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    widths: list[int],
    words: int,
    bold: Collection[str],
) -> None:
    """Print a table on a console of rich, whose columns have these widths."""
    from rich import box, table

    grid = table.Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(header):
        style = "bold" if name in bold else None
        grid.add_column(name, justify="left" if i == words else "right", no_wrap=i != words, overflow="fold", style=style)
    for row in rows:
        grid.add_row(*row, style=None if any(row[1:]) else "bold")
    widths[words] = min(widths[words], 30)
    screen.width = max(screen.width, sum(widths) + 3 * len(widths))  # a number must not be cut short
    screen.print(grid)


@contextmanager
def progress(what: str, total: int, wanted: bool = True) -> Iterator[Callable[..., None]]:
    """Show a progress bar on standard error during a ``with`` block.

    Yields a function that moves the bar by a number of steps, one by default. There is no bar without rich, or if standard
    error is no terminal, or if `wanted` is false.
    """
    screen = _screen(stderr=True)
    if screen is None:
        yield lambda steps=1: None
        return
    from rich.progress import Progress

    with Progress(console=screen, transient=True, disable=not (wanted and screen.is_terminal)) as bar:
        task = bar.add_task(what, total=total)
        _bars.append(bar)
        try:
            yield lambda steps=1: bar.advance(task, steps)
        finally:
            _bars.remove(bar)


def show_cursor() -> None:
    """Show the cursor that a progress bar has hidden, for a program that ends at once."""
    if _bars and os.isatty(2) and not _bars[-1].console.is_dumb_terminal:
        os.write(2, b"\x1b[?25h")  # not through a stream, which may be in the middle of a write


def _screen(stderr: bool = False) -> Any:
    """Return a console of rich that prints every text as it is; None if rich is not installed."""
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(highlight=False, markup=False, emoji=False, stderr=stderr)
