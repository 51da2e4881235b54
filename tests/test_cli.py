"""The command line, and the demo behind it."""

import io
import math
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest

import gradclip
from gradclip import cli
from gradclip.cli import demo


def run(capsys, *argv):
    """Exit status, standard output and standard error of one command."""
    status = cli.main(list(argv))
    return status, *capsys.readouterr()


def run_process(*argv):
    command = [sys.executable, "-m", "gradclip", *argv]
    return subprocess.run(command, capture_output=True, check=False, text=True, timeout=60)


@pytest.fixture
def extra():
    """What ``pip install "gradclip[demo]"`` brings."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("rich")


@pytest.fixture
def no_training(monkeypatch):
    """An error of the input has to be found before any work is done."""
    monkeypatch.setattr(demo, "train", lambda *args: pytest.fail("trained before the input was checked"))


# --- the command ---------------------------------------------------------------------------------------------


def test_info_prints_the_configuration(capsys):
    assert run(capsys, "info") == (0, gradclip.show_config() + "\n", "")


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert (stopped.value.code, capsys.readouterr().out) == (0, f"gradclip {gradclip.__version__}\n")


def test_module_is_the_command():
    done = run_process("info")
    assert (done.returncode, done.stderr) == (0, "")
    here = [line for line in gradclip.show_config().splitlines() if not line.startswith("busy machine")]  # by its own calls
    assert [line for line in done.stdout.splitlines() if line != "busy machine      unknown: no large pass yet"] == here


@pytest.mark.parametrize("argv", [["demo", "--steps"], ["demo", "--learning-rate", "1"], ["no-such-command"]])
def test_missing_and_unknown_arguments_give_usage_and_status_2(argv):
    done = run_process(*argv)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: gradclip")
    assert "Traceback" not in done.stderr


def test_without_a_command_the_help_is_printed():
    done = run_process()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == run_process("--help").stdout
    for command in ("demo", "clip", "suggest", "bench", "info"):
        assert f"\n    {command} " in done.stdout


@pytest.mark.parametrize("argv", [["--help"], ["demo", "--help"]])
def test_help(argv, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(argv)
    assert end.value.code == 0
    assert "usage: gradclip" in capsys.readouterr().out


@pytest.mark.usefixtures("extra", "no_training")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--steps", "0"], "steps must be at least 1, not 0"),
        (["--steps", "-3"], "steps must be at least 1, not -3"),
        (["--steps", "many"], "--steps must be a whole number, not 'many'"),
        (["--steps", "1.5"], "--steps must be a whole number, not '1.5'"),
        (["--seed", "-1"], "seed must be at least 0, not -1"),
        (["--max-norm", "-0.5"], "max_norm must be at least 0, not -0.5"),
        (["--max-norm", "nan"], "max_norm must be at least 0, not nan"),
        (["--max-norm", "one"], "--max-norm must be a number, not 'one'"),
        (["--plot", "no/such/folder/picture.png"], "cannot save a picture as no/such/folder/picture.png: "),
        (["--plot", "."], "cannot save a picture as .: "),
        (["--plot", "picture.spreadsheet"], "'spreadsheet' is not supported"),
    ],
)
def test_errors_of_the_input_are_one_line_and_status_2(options, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, "demo", *options)
    assert (status, out) == (2, "")
    assert err.startswith("gradclip: error: ")
    assert words in err
    assert err.index("\n") == len(err) - 1
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("extra", "no_training")
def test_folder_without_permission(capsys, tmp_path):
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("this user may write everywhere")
    status, out, err = run(capsys, "demo", "--plot", str(tmp_path / "picture.png"))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "cannot save a picture" in err


@pytest.mark.usefixtures("extra")
def test_ctrl_c_is_status_130_and_leaves_the_old_picture(capsys, tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "train", interrupted)
    (tmp_path / "old.png").write_bytes(b"old")
    for name in ("old.png", "new.png"):
        status, _, err = run(capsys, "demo", "--plot", str(tmp_path / name))
        assert (status, err) == (130, "")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("old.png", b"old")]


@pytest.mark.parametrize("module", ["rich.console", "matplotlib.figure"])
def test_missing_package_names_the_extra(module, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    status, out, err = run(capsys, "demo")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert 'pip install "gradclip[demo]"' in err


@pytest.mark.usefixtures("extra", "no_training")
def test_python_without_its_sources(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(demo.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    status, out, err = run(capsys, "demo", "--plot", str(tmp_path / "picture.png"))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "argparse.py" in err


@pytest.mark.skipif(sys.platform == "win32", reason="pipes break in another way there")
@pytest.mark.parametrize("argv", [["info"], ["--help"]])
def test_a_reader_that_leaves_is_no_traceback(argv):
    command = [sys.executable, "-m", "gradclip", *argv]
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}  # with it argparse itself passes over a broken pipe
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141  # 1 would mean NaN


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written_is_one_line_and_status_2(unbuffered):
    command = [sys.executable, "-m", "gradclip", "info"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stderr) == (2, "gradclip: error: [Errno 28] No space left on device\n")


def test_a_name_that_standard_output_cannot_encode(tmp_path):
    np.savez(tmp_path / "grads.npz", **{"é": np.ones(3)})
    command = [sys.executable, "-m", "gradclip", "clip", "grads.npz", "--max-norm", "1", "--out", "out.npz"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"\xe9" in done.stdout
    assert b"written to out.npz" in done.stdout


def test_standard_output_is_found_as_it_was(capsys, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), "ascii", "strict")
    monkeypatch.setattr(sys, "stdout", stream)
    assert cli.main(["info"]) == 0
    assert stream.errors == "strict"
    assert stream.buffer.getvalue().startswith(b"gradclip ")
    monkeypatch.setattr(sys, "stdout", io.StringIO())  # which has no encoding
    assert cli.main(["info"]) == 0


def test_blanks_of_a_name_are_kept_and_line_breaks_are_shown(capsys):
    status, out, err = run(capsys, "suggest", "a  b\nc.txt", "--column", "x")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert r"a  b\nc.txt" in err


# --- the network ---------------------------------------------------------------------------------------------


def test_gradients_are_those_of_finite_differences():
    rng = np.random.default_rng(0)
    network = demo.Network(rng, characters="abcde", units=4, dtype=np.float64)
    for name in network.weights:
        network.weights[name] += 0.3 * rng.standard_normal(network.weights[name].shape)  # none is zero
    x, y = rng.integers(5, size=(2, 7, 3))
    _, gradients = network.loss_and_gradients(x, y)
    assert gradients.keys() == network.weights.keys()
    for name, weights in network.weights.items():
        expected = np.empty_like(weights)
        for index in np.ndindex(weights.shape):
            expected[index] = central_difference(network, weights, index, x, y)
        np.testing.assert_allclose(gradients[name], expected, rtol=1e-6, atol=1e-9)


def central_difference(network, weights, index, x, y, step=1e-5):
    losses = []
    before = weights[index]
    for sign in (1, -1):
        weights[index] = before + sign * step
        losses.append(network.loss_and_gradients(x, y)[0])
    weights[index] = before
    return (losses[0] - losses[1]) / (2 * step)


def test_first_weights():
    network = demo.Network(np.random.default_rng(0))
    assert {weights.dtype for weights in network.weights.values()} == {np.dtype(np.float32)}
    singular_values = np.linalg.svd(network.weights["recurrent"], compute_uv=False)
    np.testing.assert_allclose(singular_values, 1.5, rtol=1e-5)
    text = demo.standard_library()[:303]
    loss, _ = network.loss_and_gradients(text[:-1].reshape(-1, 2), text[1:].reshape(-1, 2))
    assert loss == pytest.approx(math.log(len(demo.CHARACTERS)), abs=0.05)  # as good as guessing


def test_sample_has_the_length_and_the_characters():
    sample = demo.Network(np.random.default_rng(0)).sample(np.random.default_rng(1), 30)
    assert len(sample) == 31
    assert set(sample) <= set(demo.CHARACTERS)


# --- the trainings -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text():
    return demo.standard_library()


def test_text_is_printable_source_code(text):
    written = "".join(demo.CHARACTERS[i] for i in text)
    assert len(text) > 300_000
    assert "\ndef " in written
    assert "\nimport " in written
    assert all(character == "\n" or character.isprintable() for character in set(written))


@pytest.mark.slow
def test_clipping_is_the_only_difference(text):
    without = demo.train(text, 8, None, 0)
    idle = demo.train(text, 8, math.inf, 0)
    assert idle.losses == without.losses
    assert idle.norms == without.norms
    assert not any(idle.clipped)


@pytest.mark.slow
def test_seed_decides_the_numbers(text):
    first, second, other = (demo.train(text, 3, 0.75, seed) for seed in (5, 5, 6))
    assert first.losses == second.losses != other.losses


@pytest.mark.slow
def test_default_settings_separate(text):
    without = demo.train(text, 120, None, 0)
    clipped = demo.train(text, 120, 0.75, 0)
    assert clipped.losses[0] == without.losses[0] == pytest.approx(4.57, abs=0.05)
    assert clipped.norms[0] == without.norms[0]
    assert clipped.final_loss < 3.7
    assert not without.final_loss < 1.3 * without.losses[0]  # far above it, or NaN
    assert np.nanmax(without.norms) > 2 * max(clipped.norms)
    assert 0 < np.mean(clipped.clipped) <= 1
    assert [norm > 0.75 for norm in clipped.norms] == clipped.clipped


@pytest.mark.parametrize("max_norm", [None, math.inf])
def test_training_ends_where_the_gradient_is_no_longer_finite(text, max_norm, monkeypatch):
    monkeypatch.setattr(demo, "LEARNING_RATE", 1e38)
    training = demo.train(text, 20, max_norm, 0)
    assert len(training.losses) == len(training.norms) == len(training.clipped) < 20
    assert not math.isfinite(training.norms[-1])
    assert all(map(math.isfinite, training.norms[:-1]))
    assert math.isnan(training.final_loss)


# --- the demo ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("extra")
def test_short_demo_prints_a_table_and_saves_a_picture(capsys, tmp_path):
    plot = tmp_path / "a [red] picture.png"
    status, out, err = run(capsys, "demo", "--steps", "3", "--plot", str(plot))
    assert (status, err) == (0, "")
    assert plot.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert f"Picture saved as {plot}" in out
    for words in ("without clipping", "clipped at 0.75", "first loss", "final loss", "largest", "clip rate", "share"):
        assert words in out


@pytest.mark.slow
@pytest.mark.usefixtures("extra")
@pytest.mark.parametrize(
    ("name", "signature"),
    [
        ("picture.svg", b"<?xml"),
        ("PICTURE.PDF", b"%PDF"),
        ("picture", b"\x89PNG"),
    ],
)
def test_suffix_chooses_the_format(name, signature, tmp_path, capsys):
    demo.run(tmp_path / name, steps=1)
    assert (tmp_path / name).read_bytes().startswith(signature)


@pytest.mark.slow
@pytest.mark.usefixtures("extra")
def test_nan_and_extreme_thresholds_are_shown(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "LEARNING_RATE", 1e38)
    plot = str(tmp_path / "picture.png")
    for max_norm in ("inf", "0"):
        status, out, err = run(capsys, "demo", "--steps", "20", "--max-norm", max_norm, "--plot", plot)
        assert (status, err) == (0, "")
        assert "nan" in out


@pytest.mark.slow
@pytest.mark.usefixtures("extra")
def test_demo_leaves_matplotlib_and_numpy_as_they_were(capsys, tmp_path):
    import matplotlib

    settings, errors = dict(matplotlib.rcParams), np.geterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        demo.run(tmp_path / "picture.png", steps=2)
    assert dict(matplotlib.rcParams) == settings
    assert np.geterr() == errors
