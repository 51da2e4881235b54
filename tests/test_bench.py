"""``gradclip bench``: that it measures what it says. No test looks at how fast anything is."""

import itertools
import math
import sys

import numpy as np
import pytest
from marks import slow

import gradclip
from gradclip import cli
from gradclip._cpu import machine
from gradclip._cpu.limits import Stream
from gradclip._leaves import Leaves
from gradclip.cli import bench, peers, roofline


def run(capsys, *argv):
    """Exit status, standard output and standard error of one command."""
    status = cli.main(["bench", *argv])
    return status, *capsys.readouterr()


@pytest.fixture
def small(monkeypatch):
    """Sizes that take no time, and gradclip beside NumPy alone."""
    monkeypatch.setattr(bench, "SIZES", (4**6, 4**8))
    monkeypatch.setattr(peers, "NAMES", ("gradclip", "numpy"))


@pytest.fixture
def no_measuring(monkeypatch):
    """An error of the input has to be found before the time is spent."""
    monkeypatch.setattr(bench, "installed_peers", lambda: pytest.fail("peers were loaded before the input was checked"))


# --- the limit -----------------------------------------------------------------------------------------------


def words(leaves):
    """All whole words of the leaves, as integers of any size."""
    return [int(word) for leaf in leaves for word in leaf.ravel().view(np.uint8)[: leaf.nbytes // 8 * 8].view(np.uint64)]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_limit_touches_every_word_once(dtype, threads, isa):
    sizes = (1, 7, 1000, 2**15 + 3, 300_001, 0)  # bytes are left over, spans are begun and filled
    leaves = [np.random.default_rng(0).standard_normal(size).astype(dtype) for size in sizes]
    before = words(leaves)
    stream = Stream(Leaves(leaves))
    assert stream.read(threads) == sum(before) % 2**64
    stream.rewrite(threads)
    assert words(leaves) == before
    stream.rewrite(threads, 2**63 + 1)
    assert words(leaves) == [(word + 2**63 + 1) % 2**64 for word in before]


def test_limit_of_nothing_and_of_strided_leaves():
    assert Stream(Leaves([])).read(2) == 0
    with pytest.raises(ValueError, match="1: limits are measured on contiguous leaves"):
        Stream(Leaves([np.ones(3), np.ones(8)[::2]]))


# --- what is timed -------------------------------------------------------------------------------------------


class Spy:
    """A contender that keeps what it was given: norms before and thresholds."""

    def __init__(self, peer):
        self.peer, self.seen = peer, []

    def prepare(self, leaves):
        self.leaves = leaves
        return self.peer.prepare(leaves)

    def clip_by_global_norm_(self, grads, max_norm):
        self.seen.append((gradclip.global_norm(self.leaves), max_norm))
        self.peer.clip_by_global_norm_(grads, max_norm)
        self.after = gradclip.global_norm(self.leaves)


@pytest.mark.parametrize("name", ["gradclip", "numpy", "scipy", "torch"])
@pytest.mark.parametrize("dtype", bench.DTYPES)
@pytest.mark.parametrize("shapes", [(3000,), (50,) * 20], ids=str)
def test_every_timed_call_clips(name, dtype, shapes):
    kind = bench._dtype(dtype)
    try:
        spy = Spy(bench.installed_peers()[name])
        leaves = [np.random.default_rng(0).standard_normal(shape).astype(kind) for shape in shapes]
        spy.peer.prepare(leaves)
    except (KeyError, NotImplementedError):
        pytest.skip(f"no {name}, or not for {dtype}")
    norm = gradclip.global_norm(leaves)
    seconds = bench.fastest({name: spy}, leaves, True)
    assert seconds.keys() == {"limit", name}
    assert len(spy.seen) > 2
    assert all(before > threshold for before, threshold in spy.seen)
    assert spy.after == pytest.approx(spy.seen[-1][1], rel=0.02)
    assert norm / 10 < spy.after < norm


def test_norm_only_leaves_the_leaves_as_they_were():
    leaves = [np.arange(3000, dtype=np.float32)]
    seconds = bench.fastest(bench.installed_peers(), leaves, False)
    assert np.array_equal(leaves[0], np.arange(3000, dtype=np.float32))
    assert all(0 < value < math.inf for value in seconds.values())


def test_turns_and_rounds():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    best = bench.best_in_turns(calls, lambda: order.append("refill"), rounds=3)
    assert [name for name, _ in itertools.groupby(name for name in order if name != "refill")] == ["a", "b"] * 3
    assert order[0] == "refill"
    batches = "".join(name[0] for name in order).split("r")[1:]
    assert 1 <= min(map(len, batches)) <= max(map(len, batches)) <= 100
    assert all(0 < seconds < 1 for seconds in best.values())


# --- the command ---------------------------------------------------------------------------------------------


def check_table(results, out, dtypes, sizes):
    names = [bench._size(n) for n in sizes] + [name for name, _ in bench.MANY]
    assert [(r.dtype, r.clips, r.name) for r in results] == [(d, c, n) for d in dtypes for c in (False, True) for n in names]
    lines = [line.rstrip() for line in out.splitlines()]
    position = 0
    for r in results:
        assert all(seconds > 0 for seconds in r.seconds.values())
        position = next(i for i in range(position, len(lines)) if lines[i].strip().startswith(r.name)) + 1
        assert lines[position - 1].endswith(f" {r.ratio:.2f} x limit")
        assert f"{r.speed('gradclip'):.1f}" in lines[position - 1].split()


@pytest.mark.slow
def test_all_of_it_within_a_small_budget(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    configuration = gradclip.show_config()
    results = bench.run(1.0, plot=tmp_path / "roofline.png")
    out = capsys.readouterr().out
    assert out.startswith(configuration)
    assert "memory limit      read " in out
    check_table(results, out, ["float32"], [r.bytes for r in results if r.leaves == 1 and not r.clips])
    assert results[-1].bytes == 6 * 1000 * 4
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_no_number_is_cut_short_where_a_column_is_wide(capsys):
    slow = bench.Result(
        "bfloat16", True, "1000 leaves x 1000", 1000, 10**12, {"limit": 1.0, "gradclip": 1234567.0, "torch": 0.001}
    )
    roofline.show([slow])
    out = capsys.readouterr().out
    assert "1234567.00 x limit" in out
    assert "1000000.0" in out


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("rich", [*slow([True]), False])
def test_dtypes_and_table_with_and_without_rich(rich, capsys, monkeypatch):
    if rich:
        pytest.importorskip("rich")
    else:
        for module in ("rich", "rich.console", "rich.progress", "rich.table"):
            monkeypatch.setitem(sys.modules, module, None)
    dtypes = ["float64", "float16"]
    results = bench.run(0.1, dtypes=dtypes)
    out = capsys.readouterr().out
    check_table(results, out, dtypes, bench.SIZES)
    for title in ("float64, norm only", "float64, clipping", "float16, norm only", "float16, clipping"):
        assert title in out
    assert "PyTorch" not in out


@pytest.mark.usefixtures("small")
def test_threads_are_those_asked_for_and_given_back(capsys):
    before = gradclip.get_num_threads(), machine.team()
    status, out, err = run(capsys, "--seconds", "0.1", "--threads", "1")
    assert (status, err) == (0, "")
    assert "threads           1 " in out
    assert (gradclip.get_num_threads(), machine.team()) == before


@pytest.mark.usefixtures("small")
def test_rows_that_other_programs_held_up_are_named(monkeypatch, capsys):
    parts = iter([0.0, 0.5, bench.BUSY, 0.2, *[0.0] * 4])
    monkeypatch.setattr(bench.Busy, "part", lambda self, large: next(parts))
    results = bench.run(0.1)
    assert [r.busy for r in results] == [0, 0.5, bench.BUSY, 0.2, 0, 0, 0, 0]
    told = "Not to be believed, because other programs held up this one for much of the time: "
    assert f"{told}64 KiB (float32, norm only, 50%), 6 leaves x 1000 (float32, norm only, 20%).\n" in capsys.readouterr().out


@pytest.mark.usefixtures("small")
def test_a_run_that_was_held_up_all_the_time_says_so(monkeypatch, capsys):
    monkeypatch.setattr(bench.Busy, "part", lambda self, large: 0.5)
    bench.run(0.1)
    assert "for much of the time: all rows.\n" in capsys.readouterr().out


def test_time_without_the_processor_and_passes_without_a_team_are_busy(monkeypatch):
    wall, own, passes = [0.0, 10.0], [0.0, 10.0], [(5, 1, 2, False, 1), (15, 1, 2, False, 1)]

    def part(large=True):
        for name, values in ("perf_counter", wall), ("thread_time", own):
            monkeypatch.setattr(bench, name, iter(values).__next__)
        monkeypatch.setattr(machine, "sharing", iter(passes).__next__)
        return bench.Busy().part(large)

    assert part() == 0
    own[1] = 4.0
    assert part() == 0.6
    passes[1] = (6, 2, 11, True, 1)
    assert part() == 0.9
    assert part(large=False) == 0.6
    own[1] = 10.0
    passes[1] = passes[0]
    assert part() == 0  # no large pass


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("name", "signature"),
    [
        ("a.svg", b"<?xml"),
        ("B.PDF", b"%PDF"),
        ("picture", b"\x89PNG"),
    ],
)
def test_picture(name, signature, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    status, out, err = run(capsys, "--seconds", "0.1", "--dtype", "float32", "float64", "--plot", str(tmp_path / name))
    assert (status, err) == (0, "")
    assert f"Picture saved as {tmp_path / name}" in out
    assert (tmp_path / name).read_bytes().startswith(signature)


@pytest.mark.usefixtures("no_measuring")
@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--dtype", "int8"], "dtype must be one of float16, bfloat16, float32, float64, not 'int8'"),
        (["--dtype", "float32", "complex64"], "not 'complex64'"),
        (["--threads", "0"], "the number of threads must be at least 1, not 0"),
        (["--threads", "-2"], "the number of threads must be at least 1, not -2"),
        (["--threads", "two"], "--threads must be a whole number, not 'two'"),
        (["--seconds", "0"], "seconds must be positive and finite, not 0"),
        (["--seconds", "-1"], "seconds must be positive and finite, not -1"),
        (["--seconds", "inf"], "seconds must be positive and finite, not inf"),
        (["--seconds", "nan"], "seconds must be a number, not nan"),
        (["--seconds", "long"], "--seconds must be a number, not 'long'"),
        (["--plot", "no/such/folder/picture.png"], "cannot save a picture as no/such/folder/picture.png: "),
        (["--plot", "."], "cannot save a picture as .: "),
        (["--plot", "picture.spreadsheet"], "'spreadsheet' is not supported"),
    ],
)
def test_errors_of_the_input_are_one_line_and_status_2(options, text, capsys, tmp_path, monkeypatch):
    if "--plot" in options:
        pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, *options)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("gradclip: error: ")
    assert text in err
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_measuring")
@pytest.mark.parametrize(
    ("module", "options", "extra"),
    [("matplotlib.figure", ["--plot", "a.png"], "plot"), ("ml_dtypes", ["--dtype", "bfloat16"], "bfloat16")],
)
def test_missing_package_names_the_extra(module, options, extra, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    status, out, err = run(capsys, *options)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f'pip install "gradclip[{extra}]"' in err


def test_free_memory_is_the_least_of_system_and_container(tmp_path):
    meminfo = tmp_path / "meminfo"
    assert bench.free_memory(meminfo, tmp_path) == math.inf
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable:   4000 kB\n")
    assert bench.free_memory(meminfo, tmp_path) == 4000 * 1024
    (tmp_path / "memory.current").write_text("1000\n")
    for limit, free in ("max", 4000 * 1024), ("3000", 2000), (str(2**40), 4000 * 1024):
        (tmp_path / "memory.max").write_text(limit)
        assert bench.free_memory(meminfo, tmp_path) == free


@pytest.mark.usefixtures("small")
def test_little_memory_leaves_the_small_sizes(monkeypatch, capsys):
    monkeypatch.setattr(bench, "free_memory", lambda: 4 * 4**6)
    assert {r.bytes for r in bench.run(0.1) if r.leaves == 1} == {4**6}
