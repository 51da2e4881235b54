"""``gradclip clip``: what is written, what is said, and what is left behind when something goes wrong."""

import os
import subprocess
import sys

import numpy as np
import pytest
from gradient_files import SUFFIXES, read, run, same, write

import gradclip
from gradclip import _saving, cli
from gradclip.cli import clip as clip_file

ONE_ARRAY = (".npy", ".csv", ".txt")


@pytest.fixture(params=SUFFIXES)
def file(request, tmp_path):
    """A file of each format, of norm 13."""
    return write(tmp_path / f"grads{request.param}", {"grads": np.array([[3.0, 4.0], [0.0, -12.0]])})


# --- what is written, and what is not ------------------------------------------------------------------------


def test_without_out_and_with_dry_run_nothing_is_written(capsys, file):
    before = file.read_bytes()
    for options in ([], ["--dry-run"], ["--out", file, "--dry-run"]):
        status, out, err = run(capsys, file, "--max-norm", "1", *options)
        assert (status, err) == (0, "")
        assert "norm 13.0 > max_norm 1.0, factor 0.07692307692307693: to be clipped, nothing was written" in out
        assert file.read_bytes() == before
        assert os.listdir(file.parent) == [file.name]


def test_what_needs_no_clipping_is_copied_byte_for_byte(capsys, file):
    out = file.with_name("out" + file.suffix)
    status, text, _ = run(capsys, file, "--max-norm", "13", "--out", out)
    assert status == 0
    assert out.read_bytes() == file.read_bytes()
    assert f"norm 13.0 <= max_norm 13.0, factor 1.0: nothing to clip, written to {out}" in text


def test_clipping_in_place_and_again(capsys, file):
    for _ in range(2):
        assert run(capsys, file, "--max-norm", "6.5", "--out", file)[0] == 0
        same(read(file), {"grads": np.array([[1.5, 2.0], [0.0, -6.0]])})
    assert os.listdir(file.parent) == [file.name]


@pytest.mark.skipif(sys.platform == "win32", reason="links and permissions are others there")
def test_replaced_files_keep_permissions_and_links(capsys, file):
    target, link = file.with_name("old" + file.suffix), file.with_name("link" + file.suffix)
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to(target)
    assert run(capsys, file, "--max-norm", "1", "--out", link)[0] == 0
    assert link.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o640
    assert gradclip.global_norm(read(target)) == pytest.approx(1.0)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("existed", [True, False])
def test_a_write_that_fails_half_way_leaves_the_old_file(capsys, tmp_path, monkeypatch, suffix, existed, error):
    grads = {"w": np.ones((4, 4))} if suffix in ONE_ARRAY else {f"w{i}": np.ones(2**15) for i in range(4)}
    path, out = write(tmp_path / f"in{suffix}", grads), tmp_path / f"out{suffix}"
    if existed:
        out.write_bytes(b"old")
    begun = []

    def failing(values, *args, **norm):
        if isinstance(values, np.ndarray):
            begun.append([p.name for p in tmp_path.iterdir() if p not in (path, out)])
            if len(begun) == len(grads) // 2 + 1 or suffix in ONE_ARRAY:
                raise error
        return gradclip.apply_clip_(values, *args, **norm)

    monkeypatch.setattr(clip_file, "apply_clip_", failing)
    monkeypatch.setattr(_saving, "_nameless", lambda place: None)  # so that half a file can be seen
    before = path.read_bytes()
    status, _, err = run(capsys, path, "--max-norm", "1", "--out", out)
    assert (status, err.count("\n")) == ((130, 0) if isinstance(error, KeyboardInterrupt) else (2, 1))
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == sorted([path.name, out.name] if existed else [path.name])
    assert not existed or out.read_bytes() == b"old"
    assert suffix in ONE_ARRAY or len(begun[-1]) == 1  # there was half a file


def test_a_file_that_changes_between_the_passes(capsys, file, monkeypatch):
    out = file.with_name("out" + file.suffix)
    decide = gradclip.apply_clip_

    def meanwhile(values, *args, **norm):
        if not isinstance(values, np.ndarray):
            os.utime(file, ns=(1, 1))
        return decide(values, *args, **norm)

    monkeypatch.setattr(clip_file, "apply_clip_", meanwhile)
    status, _, err = run(capsys, file, "--max-norm", "1", "--out", out)
    assert (status, err.count("\n")) == (2, 1)
    assert "the file changed while it was being read" in err
    assert os.listdir(file.parent) == [file.name]


MEASURE_MEMORY = """
import re, sys
from pathlib import Path
from gradclip.cli import clip as clip_file

def peak():  # of this program alone: getrusage knows of the one that started it
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])

small, large, out = sys.argv[1:]
clip_file.run(small, 1.0, out)  # imports, buffers, threads
before = peak()
clip_file.run(large, 1.0, out)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux tells the peak of a program's memory")
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_memory_is_that_of_a_leaf(tmp_path, suffix):
    leaf = np.ones(2**19, np.float32)  # 2 MiB
    small = write(tmp_path / f"small{suffix}", {"w": leaf})
    large = write(tmp_path / f"large{suffix}", {f"w{i}": leaf for i in range(30)})
    assert large.stat().st_size > 60 * 2**20
    code = [sys.executable, "-c", MEASURE_MEMORY, str(small), str(large), str(tmp_path / f"out{suffix}")]
    done = subprocess.run(code, capture_output=True, check=True, text=True, timeout=60)
    assert f"{large}: norm 3965.9" in done.stdout
    assert ": clipped, written to" in done.stdout
    assert int(done.stdout.split()[-1]) < 12 * 2**10  # KiB


# --- NaN and Inf ---------------------------------------------------------------------------------------------


@pytest.fixture
def bad(tmp_path):
    return write(tmp_path / "bad.npz", {"a": np.array([3.0, 4.0]), "b": np.array([1.0, np.nan, np.inf]), "c": np.array([12.0])})


def test_nan_is_status_1_and_names_the_leaf(capsys, bad):
    out = bad.with_name("out.npz")
    for options in ([], ["--nonfinite", "raise"]):
        status, text, err = run(capsys, bad, "--max-norm", "1", "--out", out, *options)
        assert (status, text, err.count("\n")) == (1, "", 1)
        assert err.startswith(f"gradclip: error: {bad}: b: NaN or Inf at flat index 1 (NaN or Inf in all leaves: 2)")
        assert not out.exists()


def test_skip_writes_nothing(capsys, bad):
    out = bad.with_name("out.npz")
    status, text, err = run(capsys, bad, "--max-norm", "1", "--out", out, "--nonfinite", "skip")
    assert (status, err) == (0, "")
    assert text.endswith("norm nan and max_norm 1.0, factor 1.0: skipped, nothing was written\n")
    assert os.listdir(bad.parent) == [bad.name]


@pytest.mark.parametrize("policy", ["zero", "propagate"])
@pytest.mark.parametrize("max_norm", ["1", "inf"])
def test_other_policies_are_the_librarys(capsys, bad, policy, max_norm):
    out = bad.with_name("out.npz")
    expected, _ = gradclip.clip_by_global_norm(read(bad), float(max_norm), nonfinite=policy)
    status, text, err = run(capsys, bad, "--max-norm", max_norm, "--out", out, "--nonfinite", policy)
    assert (status, err) == (0, "")
    for name, grad in read(out).items():
        np.testing.assert_array_equal(grad, expected[name])
    assert f"NaN or Inf: 2, the first at flat index 1 of b; nonfinite={policy!r}" in text
    assert [line.split()[-2:] for line in text.splitlines() if line.startswith("b ")] == [["1", "1"]]


# --- errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-norm", "-1"], "max_norm must be at least 0, not -1.0"),
        (["--max-norm", "nan"], "max_norm must be at least 0, not nan"),
        (["--max-norm", "one"], "--max-norm must be a number, not 'one'"),
        (["--max-norm", "1", "--ord", "0"], "ord must be above 0, not 0.0"),
        (["--max-norm", "1", "--eps", "-1"], "eps must be at least 0, not -1.0"),
        (["--max-norm", "1", "--grad-scale", "0"], "grad_scale must be positive and finite, not 0.0"),
        (
            ["--max-norm", "1", "--nonfinite", "ignore"],
            "nonfinite must be one of 'raise', 'skip', 'zero', 'propagate', not 'ignore'",
        ),
        (["--max-norm", "1", "--top", "-1"], "top must be at least 0, not -1"),
        (["--max-norm", "1", "--out", "no/such/out.npz"], "no such folder to write to: 'no/such/out.npz'"),
        (["--max-norm", "1", "--out", "out.csv"], "out.csv: clipped gradients of a .npz file are written to a .npz file"),
        (["--max-norm", "1", "--out", "folder.npz"], "no ordinary file, which could be replaced: 'folder.npz'"),
    ],
)
def test_errors_of_arguments_come_before_reading(capsys, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.npz").mkdir()
    write(tmp_path / "grads.npz", {"w": np.ones(3)})
    monkeypatch.setattr(clip_file, "measure", lambda *args, **norm: pytest.fail("read before the arguments were checked"))
    status, out, err = run(capsys, "grads.npz", *options)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("gradclip: error: ")
    assert words in err
    assert sorted(os.listdir()) == ["folder.npz", "grads.npz"]


def test_max_norm_is_needed_to_write(capsys, file):
    out = file.with_name("out" + file.suffix)
    with pytest.raises(SystemExit) as end:
        cli.main(["clip", str(file), "--out", str(out)])
    assert end.value.code == 2
    assert "required to write --out: --max-norm" in capsys.readouterr().err
    with pytest.raises(ValueError, match="cannot be written without max_norm"):
        clip_file.run(file, out=out)
    for options in ([], ["--out", out, "--dry-run"]):
        status, text, err = run(capsys, file, *options)
        assert (status, err) == (0, "")
        assert text.endswith(f"\n\n{file}: norm 13.0, nothing was written\n")
        assert "factor" not in text
        assert "largest  NaN  Inf" in text
    assert os.listdir(file.parent) == [file.name]


def test_a_file_without_gradients_is_an_error(capsys, tmp_path):
    for name, arrays in ("empty.npz", {}), ("integers.npz", {"a": np.arange(3), "m": np.array([True]), "n": np.array(["x"])}):
        path = write(tmp_path / name, arrays)
        for options in ([], ["--max-norm", "1", "--out", path]):
            status, out, err = run(capsys, path, *options)
            assert (status, out, err.count("\n")) == (2, "", 1)
            assert f"gradclip: error: {path}: no gradients: it holds {'bool, int64, str' if arrays else 'nothing'}" in err
    path = write(tmp_path / "integers.safetensors", {"a": np.arange(3)})
    assert run(capsys, path)[0] == 2
    np.save(tmp_path / "integers.npy", np.arange(3))
    assert run(capsys, tmp_path / "integers.npy")[0] == 2
    np.savez(path.with_suffix(".npz"), w=np.zeros((0, 3)), step=1)
    assert run(capsys, path.with_suffix(".npz"))[0] == 0  # an empty gradient is one


@pytest.mark.parametrize("output", ["grads.npz", "out.npz"])
def test_folders_and_files_without_permission(capsys, tmp_path, output):
    path = write(tmp_path / "grads.npz", {"w": np.ones(3)})
    path.chmod(0o400)
    tmp_path.chmod(0o500 if output == "out.npz" else 0o700)
    try:
        if os.access(tmp_path / output if output == "grads.npz" else tmp_path, os.W_OK):
            pytest.skip("this user may write everywhere")
        status, out, err = run(capsys, path, "--max-norm", "1", "--out", tmp_path / output)
    finally:
        tmp_path.chmod(0o700)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "Permission denied" in err


# --- the table -----------------------------------------------------------------------------------------------


def test_the_largest_norms_are_shown_where_there_are_many(capsys, tmp_path):
    path = write(tmp_path / "grads.npz", {f"w{i:03}": np.array([float(i * 7 % 100)]) for i in range(100)})
    for options, count in (([], 20), (["--top", "3"], 3), (["--top", "1"], 1), (["--top", "100"], 100)):
        status, out, _ = run(capsys, path, "--max-norm", "1", *options)
        rows = [line.split() for line in out.splitlines() if line.startswith("w")]
        norms = [float(row[3]) for row in rows]
        assert status == 0
        assert len(rows) == count
        assert norms == [99.0 - i for i in range(count)]
        largest = "largest norm" if count == 1 else f"{count} largest norms"
        assert (f"The {largest} of 100 leaves:" in out) == (count < 100)
    assert run(capsys, path, "--max-norm", "1", "--top", "0")[1].count("\n") <= 2


def test_progress_of_large_files_is_shown_on_a_terminal_only(capsys, file, monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setattr(clip_file, "LARGE", 0)
    assert run(capsys, file, "--max-norm", "1", "--out", file)[2] == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    _, out, err = run(capsys, file, "--max-norm", "0.5", "--out", file)
    assert "measuring" in err
    assert "clipping" in err
    assert "measuring" not in out
