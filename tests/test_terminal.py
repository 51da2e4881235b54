"""Tables and bars, with a terminal and without."""

import os
import sys

import pytest

from gradclip.cli.terminal import progress, show_cursor, show_table

HEADER, ROWS = ("name", "norm", "factor"), [("[red]", "", ""), ("a:smile:" * 30, "1.2345", "1"), ("b", "10", "0.5")]


@pytest.fixture
def terminal(monkeypatch):
    """What rich takes for one, 40 characters wide."""
    pytest.importorskip("rich")
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "40"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("rich", [True, False])
def test_plain_table(capsys, monkeypatch, rich):
    if not rich:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    show_table(HEADER, [ROWS[0], *ROWS[2:]])
    assert capsys.readouterr().out == "name   norm  factor\n[red]\nb        10     0.5\n"
    show_table(HEADER, [("1", "23", "all of it")], words=-1)
    assert capsys.readouterr().out == "name  norm  factor\n   1    23  all of it\n"


@pytest.mark.usefixtures("terminal")
def test_table_on_a_terminal_cuts_no_number_and_takes_text_as_it_is(capsys):
    show_table(HEADER, [*ROWS, ("c", "1" * 60, "2" * 30)], bold=("norm",))
    out = capsys.readouterr().out
    assert "─" in out
    assert "\x1b[1m" in out
    for text in ("[red]", ":smile:", "1.2345", "1" * 60, "2" * 30):
        assert text in out


@pytest.mark.usefixtures("terminal")
def test_bar_is_on_stderr_and_only_if_wanted(capsys):
    for wanted in (True, False):
        with progress("working", 10, wanted) as advance:
            advance()
            advance(9)
        out, err = capsys.readouterr()
        assert out == ""
        assert ("working" in err) == ("100%" in err) == wanted


@pytest.mark.usefixtures("terminal")
def test_a_program_that_ends_at_once_shows_the_cursor_that_a_bar_has_hidden(capsys, monkeypatch):
    written = []
    monkeypatch.setattr(os, "isatty", lambda descriptor: True)
    monkeypatch.setattr(os, "write", lambda *written_now: written.append(written_now))
    show_cursor()
    assert not written
    with progress("working", 10):
        assert "\x1b[?25l" in capsys.readouterr().err
        show_cursor()
    show_cursor()
    assert written == [(2, b"\x1b[?25h")]


@pytest.mark.parametrize("rich", [True, False])
def test_no_bar_where_nobody_looks(capsys, monkeypatch, rich):
    if not rich:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    with progress("working", 10) as advance:
        advance()
    assert capsys.readouterr() == ("", "")
