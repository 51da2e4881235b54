"""``gradclip suggest``: files of logged norms, as people and programs write them."""

import csv
import io
import math
import sys

import numpy as np
import pytest

from gradclip import cli
from gradclip.cli import suggest


@pytest.fixture
def log(tmp_path):
    """Write a file of this text; returns its path."""

    def write(text, encoding="utf-8"):
        path = tmp_path / "log.txt"
        path.write_text(text, encoding=encoding)
        return path

    return write


def run(capsys, *argv):
    """Exit status, standard output and standard error of one ``gradclip suggest``."""
    status = cli.main(["suggest", *map(str, argv)])
    return status, *capsys.readouterr()


# --- reading -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected", "name"),
    [
        ("1\n2.5\n3e-4\n", [1, 2.5, 3e-4], "column 1"),
        ("1\n2", [1, 2], "column 1"),
        ("norm\n1\n2\n", [1, 2], "column norm"),
        ("0,1,grad_norm\n8,9,1.5\n", [1.5], "column grad_norm"),
        ("0,1,GRADNORM\n8,9,1.5\n", [1.5], "column GRADNORM"),
        ("step,norm,max_norm\n0,1.5,9\n1,2.5,9\n", [1.5, 2.5], "column norm"),  # as ClipMonitor writes it
        ("step, Norm ,max_norm\n0, 1.5 ,9\n", [1.5], "column Norm"),
        (",norm\n0,1.5\n1,\n2,2.5\n", [1.5, math.nan, 2.5], "column norm"),  # as pandas writes it
        ("step,loss,grad_norm\n0,7,1.5\n1,8,2.5\n", [1.5, 2.5], "column grad_norm"),
        ("step,grad_norm,host\n0,1.5,a\n1,2.5,b\n", [1.5, 2.5], "column grad_norm"),
        ('"Step","run ""a"", norm"\n"0","1.5"\n"1","2.5"\n', [1.5, 2.5], 'column run "a", norm'),
        ("2024-01-01 10:00,1.5\n2024-01-01 10:01,2.5\n", [1.5, 2.5], "column 2"),
        ("a 1.5\nb 2.5\n", [1.5, 2.5], "column 2"),
        ("  a   1.5\n  b   2.5\n", [1.5, 2.5], "column 2"),
        ("step,grad_norm,loss\n0,1.5,7\n1,2.5,8\n", [1.5, 2.5], "column grad_norm"),
        ("step,GradientNorm__MAX,loss\n0,1.5,7\n", [1.5], "column GradientNorm__MAX"),
        ("norm_type,grad_norm,loss\nL2,1.5,7\n", [1.5], "column grad_norm"),
        ("grad_norm,norm,loss\n9,1.5,7\n", [1.5], "column norm"),
        ("step,loss,grad_norm\n0,7,\n1,8,1.5\n", [math.nan, 1.5], "column grad_norm"),  # logged every other step
        ("1.5,\n2.5,\n", [1.5, 2.5], "column 1"),
        ("step;norm\n0;1.5\n", [1.5], "column norm"),
        ("\tnorm\n0\t1.5\n1\t2.5\n", [1.5, 2.5], "column norm"),
        ("# a comment, with commas\n\n  # and one more\nstep norm\n\n0 1.5\n# 9 9\n1 2.5\n\n", [1.5, 2.5], "column norm"),
        ("step,norm\n0,1.5\nstep,norm\n0,2.5\n", [1.5, 2.5], "column norm"),  # resumed
        ("norm\n1\nnan\ninf\n-inf\nNaN\n2\n", [1, math.nan, math.inf, -math.inf, math.nan, 2], "column norm"),
        ("\ufeffnorm\r\n1.5\r\n2.5\r\n", [1.5, 2.5], "column norm"),
        ("norm,step\n1.5\n2.5,1\n", [1.5, 2.5], "column norm"),
    ],
)
def test_formats(log, text, expected, name):
    norms, column = suggest.read_norms(log(text))
    np.testing.assert_array_equal(norms, np.array(expected, float))
    assert column == name


def test_column_by_name(log):
    path = log("step,7,loss,norm\n0,1.5,2.5,3.5\n")
    for name, value in (("loss", 2.5), ("step", 0.0), ("7", 1.5), ("norm", 3.5)):
        norms, column = suggest.read_norms(path, name)
        assert (norms.tolist(), column) == ([value], f"column {name}")


def test_column_by_number_where_there_is_no_header(log):
    path = log("0,2,7\n1,3,8\n")
    for name, values in (("1", [0.0, 1.0]), ("2", [2.0, 3.0]), ("3", [7.0, 8.0])):
        norms, column = suggest.read_norms(path, name)
        assert (norms.tolist(), column) == (values, f"column {name}")


@pytest.mark.parametrize("count", [1, 2, 19, 20])
def test_few_norms_are_said_to_be_few(log, capsys, count):
    status, out, err = run(capsys, log("norm\n" + "2.5\n" * count))
    assert (status, err) == (0, "")
    words = {1: "1 norm is not enough", 2: "2 norms are not enough", 19: "19 norms are not enough"}
    assert (words.get(count, "?") + " for a confident suggestion: log some hundred steps." in out) == (count < 20)
    assert "Try max_norm=2.5: it would clip 0.0% of such steps." in out


def test_standard_input(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\ufeffstep,norm\n0,1.5\n1,2.5\n".encode())))
    status, out, err = run(capsys, "-")
    assert (status, err) == (0, "")
    assert "standard input: 2 norms in column norm;" in out
    sys.stdin.buffer.seek(0)  # it was not closed
    status, out, err = run(capsys, "-", "--column", "loss")
    assert (status, out) == (2, "")
    assert "error: standard input has no column 'loss'" in err
    monkeypatch.setattr(sys, "stdin", None)
    status, out, err = run(capsys, "-")
    assert (status, out, err) == (2, "", "gradclip: error: there is no standard input\n")


def test_numbers_are_those_that_were_written(log):
    expected = np.random.default_rng(0).lognormal(sigma=9, size=2000)
    path = log("".join(f"{i},{norm!r}\n" for i, norm in enumerate(expected.tolist())))
    norms, _ = suggest.read_norms(path, "2")
    assert norms.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("", [], "log.txt has no norms"),
        ("\n# nothing\n", [], "log.txt has no norms"),
        ("step,norm\n", [], "log.txt has no norms"),
        ("nan\ninf\n", [], "none of the 2 norms in column 1 is finite"),
        ("one two\nthree four\n", [], "line 2: no number in 'three four'"),
        ("step,norm\n0,1\n1,high\n", [], "line 3: 'high' in column norm is not a number"),
        ("# a comment\n\n1\n2\nx\n", [], "line 5: 'x' in column 1 is not a number"),
        ("step,norm\n0,1\n1\n", [], "line 3: nothing in column norm: '1'"),
        ("1\n-2\n", [], "line 2: -2.0 in column 1, but a norm is at least 0"),
        ("step,norm\n0,1\n", ["--column", "loss"], "has no column 'loss': the columns are step, norm"),
        ("0,1\n", ["--column", "loss"], "has no column 'loss': the file has no header, the columns are 1, 2"),
        ("step,loss\n0,1\n", [], "no column of numbers is named norm: choose one with --column; the columns are step, loss"),
        (",loss\n0,1\n", [], "no column of numbers is named norm: choose one with --column; the columns are (unnamed), loss"),
        (
            "0,1\n",
            [],
            "no column of numbers is named norm: choose one with --column; the file has no header, the columns are 1, 2",
        ),
        (
            "step,grad_norm,grad_norm__MAX\n0,1,2\n",
            [],
            "several columns may be meant: choose one with --column: grad_norm, grad_norm__MAX\n",
        ),
        ("step,grad_norm\n1,None\n2,1.5\n", [], "line 2: 'None' in column grad_norm is not a number"),
        ("norm_type,grad_norm,step\nL2,None,1\n", [], "choose one with --column: norm_type, grad_norm\n"),
        ("loss\n1\n2\n", [], "no column of numbers is named norm: choose one with --column; the columns are loss\n"),
        ("host,loss\na,1.5\nb,2.5\n", [], "choose one with --column; the columns are host, loss\n"),
        (
            ",".join(f"norm{i}" for i in range(1020)) + "\n" + "1," * 1019 + "1\n",
            [],
            f"choose one with --column: {', '.join(f'norm{i}' for i in range(20))} and 1,000 more\n",
        ),
        ("1," * 1019 + "1\n", [], f"the columns are {', '.join(str(i) for i in range(1, 21))} and 1,000 more\n"),
        ("step,loss\n0,\n1,5\n", [], "no column of numbers is named norm: choose one with --column"),
        ("a,a,norm\n0,1,2\n", ["--column", "a"], "several columns have the name 'a'"),
        ("step,loss\n0,1\n", ["--column", "a"], "has no column 'a': the columns are step, loss\n"),
        ("norm,Norm\n0,1\n", [], "several columns may be meant: choose one with --column: norm, Norm\n"),
        ('a,"' + "b" * 200_000 + '"\n1,2\n', [], "field larger than field limit"),
    ],
)
def test_errors_are_one_line_and_status_2(log, capsys, text, options, words):
    status, out, err = run(capsys, log(text), *options)
    assert (status, out) == (2, "")
    assert err.startswith("gradclip: error: ")
    assert words in err
    assert err.index("\n") == len(err) - 1
    assert len(err) < 500


def test_files_that_are_none(tmp_path, log, capsys):
    np.savez(tmp_path / "norms.npz", norms=np.ones(3))
    utf16 = log("norm\n1.5\n", encoding="utf-16")
    for path in (tmp_path, tmp_path / "missing.csv", tmp_path / "norms.npz", utf16):
        status, out, err = run(capsys, path)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert path.name in err


# --- the command ---------------------------------------------------------------------------------------------


def cells(out):
    """The numbers of the table: percentile -> (norm, clip rate)."""
    rows = [line.split() for line in out.splitlines()]
    return {float(row[0]): (float(row[1]), row[2]) for row in rows if len(row) >= 3 and row[2].endswith("%")}


@pytest.mark.parametrize("terminal", [True, False])
def test_table(log, capsys, monkeypatch, terminal):
    if terminal:
        pytest.importorskip("rich")
        monkeypatch.setenv("FORCE_COLOR", "1")
    norms = np.random.default_rng(1).permutation(np.arange(1, 1002)).astype(float)
    status, out, err = run(capsys, log("norm\n" + "".join(f"{norm}\n" for norm in norms) + "nan\ninf\n\n"))
    assert (status, err) == (0, "")
    assert ("─" in out) == terminal
    assert "1,001 norms in column norm; NaN, Inf or empty, and ignored: 2" in out
    assert "Try max_norm=951: it would clip 5.0% of such steps." in out
    table = cells(out)
    assert list(table) == [0, 50, 75, 90, 95, 99, 99.9, 100]
    for percent, (norm, rate) in table.items():
        assert norm == pytest.approx(1 + 10 * percent)
        assert rate == f"{np.mean(norms > np.percentile(norms, percent)):.2%}"
    assert next(line for line in out.splitlines() if " 951 " in line).rstrip().endswith("suggested")


@pytest.mark.slow
@pytest.mark.parametrize(
    "norms",
    [[1.0, 2.0, 30.0], [0.0, 0.0, 1.0], [0.0, 0.0], [3.0], [5e-324, 1.7e308], [1e308] * 5, [0.1 + 1e-9 * i for i in range(9)]],
)
def test_picture(log, capsys, tmp_path, norms):
    pytest.importorskip("matplotlib")
    plot = tmp_path / "$a$ picture.svg"
    status, out, err = run(capsys, log("\n".join(map(repr, norms))), "--plot", plot)
    assert (status, err) == (0, "")
    assert f"Picture saved as {plot}" in out
    assert plot.read_bytes().startswith(b"<?xml")


def test_histogram_counts_every_norm_above_0():
    pytest.importorskip("matplotlib")
    norms = np.append(np.random.default_rng(2).lognormal(size=1000), [0.0, 0.0])
    figure = suggest._draw(norms, {90: 2.0, 95: 3.0, 99: 5.0}, "$x_1^$")
    (axes,) = figure.axes
    (stairs,) = axes.patches
    counts, edges, _ = stairs.get_data()
    assert counts.sum() == 1000
    inner = np.histogram(norms[norms > 0], [0, *10 ** edges[1:-1], np.inf])[0]
    assert counts.tolist() == inner.tolist()
    assert [10 ** line.get_xdata()[0] for line in axes.lines] == pytest.approx([2, 3, 5])
    figure.draw_without_rendering()  # where mathematics in the title would be an error
    assert axes.get_title() == "$x_1^$: 1,002 norms, 2 zeros not shown"


def test_picture_is_checked_before_the_file_is_read(capsys, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    status, out, err = run(capsys, tmp_path / "missing.csv", "--plot", tmp_path / "no" / "picture.png")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "cannot save a picture" in err
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, out, err = run(capsys, tmp_path / "missing.csv", "--plot", tmp_path / "picture.png")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert 'pip install "gradclip[plot]"' in err


def test_written_by_csv_writer(tmp_path):
    path = tmp_path / "log.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["step", "a, b", "norm"], [0, "x, y", 1.5], [1, 'say "z"', None]])
    norms, _ = suggest.read_norms(path)
    np.testing.assert_array_equal(norms, [1.5, math.nan])
