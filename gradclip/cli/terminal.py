"""What the commands print: lines, tables and progress bars, by rich where it is installed and somebody looks.

Names come from files, and may hold whatever steers a terminal: all that is printed goes through `shown`."""

import os
from contextlib import contextmanager
from typing import Any

_bars: list[Any] = []  # those that are on the screen


def shown(text):
    """Text as it is, but what cannot be seen (control characters, reversed writing, bytes that are no text) as escapes."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def say(text=""):
    """Print a line: a name with a line break in it makes no second one."""
    print(shown(text))


def show_table(header, rows, words=0, bold=()):
    """Print cells of text as a table: by rich on a terminal, else aligned with spaces.

    words: the column that holds words; all others hold numbers, and are aligned right.
    bold: names of columns that stand out, as rows do that have nothing but their first cell."""
    words %= len(header)
    header, rows = [shown(name) for name in header], [[shown(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    screen = _screen()
    if screen is None or not screen.is_terminal:
        for row in (header, *rows):
            cells = [
                cell.ljust(width) if i == words else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            print("  ".join(cells).rstrip())
        return
    from rich import box, table

    grid = table.Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(header):
        side, style = ("left" if i == words else "right"), ("bold" if name in bold else None)
        grid.add_column(name, justify=side, no_wrap=i != words, overflow="fold", style=style)
    for row in rows:
        grid.add_row(*row, style=None if any(row[1:]) else "bold")
    widths[words] = min(widths[words], 30)
    screen.width = max(screen.width, sum(widths) + 3 * len(widths))  # a number cut short would be a wrong one
    screen.print(grid)


@contextmanager
def progress(what, total, wanted=True):
    """A function that moves a bar on stderr by so many steps (1); the bar is there only while the work lasts."""
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


def show_cursor():
    """Show the cursor that a bar has hidden, for a program that ends at once."""
    if _bars and os.isatty(2) and not _bars[-1].console.is_dumb_terminal:
        os.write(2, b"\x1b[?25h")  # not through a stream, which may be in the middle of a write


def _screen(**where):
    """Rich's idea of the terminal, which takes every text as it is; None without rich."""
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(highlight=False, markup=False, emoji=False, **where)
