"""Files that are replaced: with which permissions, past which links, and what stays behind when the program is ended."""

import errno
import os
import signal
import stat
import subprocess
import sys
import threading

import numpy as np
import pytest
from gradient_files import run, write

from gradclip import ClipMonitor, _saving, cli
from gradclip._saving import replacing

posix = pytest.mark.skipif(sys.platform == "win32", reason="links, permissions and signals are others there")


NAMELESS = hasattr(os, "O_TMPFILE")


def refuse(*args, **options):
    """Make no link, as some containers do."""
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.fixture(params=["no name", "a copy", "a name"])
def name_of_new_file(request, monkeypatch):
    """New files have no name until they are complete, where the system has such files; or one of their own from the start.

    What has no name is copied where it cannot be given one."""
    if request.param == "a copy":
        monkeypatch.setattr(os, "link", refuse)
    if request.param == "a name":
        monkeypatch.setattr(_saving, "_nameless", lambda place: None)
    elif not NAMELESS:
        pytest.skip("this system has no files without a name")
    return request.param


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


@posix
@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("existing", [0o600, 0o644, 0o666, 0o444 | 0o200, None])
def test_permissions_are_right_from_the_start(tmp_path, existing, name_of_new_file):
    path = tmp_path / "file"
    if existing is not None:
        path.write_bytes(b"old")
        path.chmod(existing)
    expected = 0o640 if existing is None else existing  # 0o666 without what the umask takes
    with replacing(path) as file:
        beside = set(tmp_path.iterdir()) - {path}
        assert len(beside) == (name_of_new_file == "a name")
        assert {mode(file.fileno()), *map(mode, beside)} == {expected}
        file.write(b"new")
    assert mode(path) == expected
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@posix
@pytest.mark.usefixtures("name_of_new_file")
def test_a_planted_link_is_not_followed(capsys, tmp_path, monkeypatch):
    path, victim = write(tmp_path / "grads.npz", {"w": np.ones(3)}), tmp_path / "victim"
    victim.write_bytes(b"victim")
    (tmp_path / f".grads.npz.{os.getpid()}").symlink_to(victim)  # where a name can be guessed
    assert run(capsys, path, "--max-norm", "1", "--out", path)[0] == 0
    assert victim.read_bytes() == b"victim"
    monkeypatch.setattr(os, "urandom", bytes)  # so that the name can be guessed
    (tmp_path / f".gradclip-{bytes(8).hex()}").symlink_to(victim)
    with pytest.raises(FileExistsError), replacing(path):
        pass
    assert victim.read_bytes() == b"victim"


@posix
def test_names_as_long_as_the_file_system_takes(tmp_path):
    path = tmp_path / ("x" * 251 + ".csv")
    ClipMonitor().to_csv(path)
    assert path.exists()


@pytest.mark.usefixtures("name_of_new_file")
def test_an_error_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(error):
        with replacing(path) as file:
            file.write(b"half")
            raise error

    for error in (RuntimeError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error):
            fail(error)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@posix
def test_pictures_are_replaced_like_other_files(capsys, tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure")
    log, plot = tmp_path / "log.csv", tmp_path / "picture.png"
    log.write_text("norm\n1\n2\n")
    plot.write_bytes(b"old")
    plot.chmod(0o600)
    save = figure.Figure.savefig

    def full(self, file, **options):
        save(self, file, **options)
        if hasattr(file, "fileno") and self.axes:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(figure.Figure, "savefig", full)
        assert cli.main(["suggest", str(log), "--plot", str(plot)]) == 2
    assert "No space left" in capsys.readouterr().err
    assert plot.read_bytes() == b"old"
    assert cli.main(["suggest", str(log), "--plot", str(plot)]) == 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert mode(plot) == 0o600
    assert sorted(tmp_path.iterdir()) == [log, plot]


# --- signals -------------------------------------------------------------------------------------------------

WAITING = """
import sys, time
import numpy as np
from gradclip import cli
from gradclip.cli import clip as clip_file

def wait(values, *args, **norm):
    if isinstance(values, np.ndarray):
        print("writing", flush=True)
        time.sleep(60)
    return apply(values, *args, **norm)

apply, clip_file.apply_clip_ = clip_file.apply_clip_, wait
sys.exit(cli.main(["clip", sys.argv[1], "--max-norm", "1", "--out", sys.argv[1]]))
"""


@posix
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT", *(["SIGKILL"] if NAMELESS else [])])
def test_a_signal_ends_the_command_and_leaves_nothing_behind(tmp_path, name):
    path = write(tmp_path / "grads.npz", {"w": np.ones(3)})
    before, number = path.read_bytes(), getattr(signal, name)
    # `nohup` and shells ignore signals for what they start, and a child inherits that
    handler = "default_int_handler" if name == "SIGINT" else "SIG_DFL"
    usual = "" if name == "SIGKILL" else f"import signal; signal.signal(signal.{name}, signal.{handler})"
    command = [sys.executable, "-c", usual + WAITING, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        assert len(os.listdir(tmp_path)) == (1 if NAMELESS else 2)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130 if name == "SIGINT" else -number, "", "")
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_bytes() == before


IN_A_FINALIZER = """
import os, signal, sys
from gradclip import cli
from gradclip.cli import clip as clip_file

class Last:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        sum(range(1000))  # the handler has come and gone

def drop(*args, **norm):
    Last()
    return apply(*args, **norm)

apply, clip_file.apply_clip_ = clip_file.apply_clip_, drop
sys.exit(cli.main(["clip", sys.argv[1], "--max-norm", "1", "--out", sys.argv[1]]))
"""


@posix
def test_a_signal_is_not_lost_in_a_finalizer(tmp_path):
    path = write(tmp_path / "grads.npz", {"w": np.ones(3)})
    command = [sys.executable, "-c", IN_A_FINALIZER, str(path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGTERM, "", "")
    assert os.listdir(tmp_path) == [path.name]


@posix
@pytest.mark.parametrize("refused", ["nothing", "the owner", "all"])
def test_a_group_that_may_not_be_given_loses_its_permissions(tmp_path, monkeypatch, refused):
    path, asked = tmp_path / "file", []
    path.write_bytes(b"old")
    path.chmod(0o2664)
    found = path.stat()

    def fchown(descriptor, owner, group):
        asked.append((owner, group))
        if refused == "all" or (refused == "the owner" and owner != -1):
            raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", fchown)
    with replacing(path) as file:
        file.write(b"new")
    both = [(found.st_uid, found.st_gid), (-1, found.st_gid)]
    assert asked == (both[:1] if refused == "nothing" else both)
    assert mode(path) == (0o604 if refused == "all" else 0o2664)


@posix
def test_handlers_are_found_as_they_were(capsys):
    def own(number, frame):
        """Somebody else's, who also wants to know."""

    for handler in (signal.SIG_DFL, signal.SIG_IGN, own):
        before = signal.signal(signal.SIGHUP, handler)
        try:
            assert cli.main(["info"]) == 0
            assert signal.getsignal(signal.SIGHUP) is handler
        finally:
            signal.signal(signal.SIGHUP, before)
    statuses = []
    thread = threading.Thread(target=lambda: statuses.append(cli.main(["info"])))  # no signal goes to it
    thread.start()
    thread.join()
    assert statuses == [0]
    capsys.readouterr()
