"""Threads, processes, the floating-point state, interruption and instruction sets."""

import ctypes
import ctypes.util
import os
import platform
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from child_process import run
from reference import REAL, gradient

import gradclip
from gradclip._cpu import machine
from gradclip.threads import _quota


def test_set_get_and_context():
    before = gradclip.get_num_threads()
    with gradclip.num_threads(1):
        assert gradclip.get_num_threads() == 1
        with gradclip.num_threads(2):
            assert gradclip.get_num_threads() == 2
        assert gradclip.get_num_threads() == 1
    with pytest.raises(KeyError), gradclip.num_threads(1):
        raise KeyError
    assert gradclip.get_num_threads() == before
    for more_than_any_machine_has in (10_000, 10**30):
        gradclip.set_num_threads(more_than_any_machine_has)
        assert machine.team() <= os.cpu_count()
    gradclip.set_num_threads(before)


@pytest.mark.parametrize(
    ("bad", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("2", TypeError), (True, TypeError)]
)
def test_bad_thread_counts(bad, error):
    with pytest.raises(error, match="number of threads"):
        gradclip.set_num_threads(bad)


def test_environment_is_obeyed():
    show = "import gradclip; print(gradclip.get_num_threads())"
    assert run(show, GRADCLIP_NUM_THREADS="3").stdout.strip() == "3"
    if machine.openmp_version:
        assert run(show, OMP_NUM_THREADS="1").stdout.strip() == "1"
    for bad in ("many", "0", "-1"):
        assert "GRADCLIP_NUM_THREADS must be a positive integer" in run(show, GRADCLIP_NUM_THREADS=bad).stderr


def test_cgroup_quota(tmp_path):
    assert _quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert _quota(tmp_path) == 2
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert _quota(tmp_path) is None
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert _quota(tmp_path) is None
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("400000\n")
    assert _quota(tmp_path) == 4


def test_isa_can_be_forced_and_is_refused_loudly():
    for name in machine.available_isas():
        assert run("from gradclip._cpu import machine; print(machine.isa())", GRADCLIP_ISA=name).stdout.strip() == name
    refused = run("import gradclip", GRADCLIP_ISA="sve9")
    assert refused.returncode != 0
    assert "GRADCLIP_ISA='sve9': this machine and build offer baseline" in refused.stderr


def test_an_unbuilt_source_tree_says_what_to_do(tmp_path):
    source = Path(gradclip.__file__).parent
    shutil.copytree(source, tmp_path / "gradclip", ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__"))
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import gradclip"
    found = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False)
    assert "this is an unbuilt source tree. Run `python -m pip install -e .`" in found.stderr


def test_import_changes_nothing_outside():
    code = """
    import os, sys
    before = dict(os.environ)
    import numpy
    loaded = set(sys.modules)
    import gradclip
    assert dict(os.environ) == before
    new = {m.partition(".")[0] for m in set(sys.modules) - loaded}
    assert not new & {"cupy", "torch", "jax", "scipy", "matplotlib", "rich", "ml_dtypes", "mpi4py"}, new
    print("fine")
    """
    result = run(code)
    assert result.stdout.strip() == "fine", result.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("fork", ["os.fork()", "ctypes.PyDLL(None).fork()"], ids=["Python's", "C's, which Python does not see"])
def test_a_forked_child_clips_serially_and_does_not_hang(fork):
    code = f"""
    import ctypes, os, warnings
    import numpy as np, gradclip
    from gradclip._cpu import machine
    machine.set_threads(4)
    a = np.ones(2_000_000, np.float32)
    norm = gradclip.global_norm(a)
    warnings.simplefilter("ignore", DeprecationWarning)
    child = {fork}
    if child == 0:
        os._exit(0 if gradclip.global_norm(a) == norm == gradclip.clip_by_global_norm_(a, 1.0).norm else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    result = run(code)
    assert result.stdout.strip() == "0", result.stderr


def test_many_python_threads_at_once():
    a = [gradient(np.float32, 400_000, seed=s) for s in range(4)]
    expected = [gradclip.global_norm(x) for x in a]
    found = {}

    def work(i):
        found[i] = [gradclip.global_norm(a[i]) for _ in range(5)]

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert all(found[i] == [expected[i]] * 5 for i in range(4))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64], ids=str)
def test_a_thread_with_a_small_stack_is_enough(dtype):
    """Musl gives a thread 128 KiB; here some of that is the interpreter's."""
    done = run(
        f"""
        import threading
        import numpy as np
        import gradclip

        gradclip.set_num_threads(1)
        wide = np.ones((20, 20_000), np.{np.dtype(dtype).name})
        gradclip.clip_by_norm(wide[:, ::2], 1.0, axis=0)    # Python's part of the work: imports, caches


        def clip():
            gradclip.clip_by_norm_(wide, 1.0, axis=0)
            gradclip.clip_by_norm_(wide[:, ::2], 0.5, axis=1, ord=3)
            gradclip.per_sample_clip_sum(wide, 0.25)
            gradclip.sgd_step_(wide[:, ::2].astype(np.float64), wide[:, 1::2], 0.1, 0.125, nonfinite="zero")
            print("done")


        threading.stack_size(160 * 1024)
        thread = threading.Thread(target=clip)
        thread.start()
        thread.join()
        """
    )
    assert done.stdout == "done\n", (done.returncode, done.stderr)


# ---- the floating-point state ---------------------------------------------------------------------------------

ROUNDING = {"nearest": 0, "down": 0x400, "up": 0x800, "to zero": 0xC00}
x86_linux = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="the modes are numbers of glibc on x86-64"
)


@x86_linux
@pytest.mark.parametrize("mode", ROUNDING)
@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_a_rounding_mode_set_outside_changes_no_bit_and_stays(dtype, mode):
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    grads = [gradient(dtype, 30_000, "lognormal"), gradient(dtype, 300_000)]
    norm = gradclip.global_norm(grads)
    expected, report = gradclip.clip_by_global_norm(grads, norm / 3, grad_scale=3.0, eps=1e-7)
    try:
        assert libm.fesetround(ROUNDING[mode]) == 0
        found, again = gradclip.clip_by_global_norm(grads, norm / 3, grad_scale=3.0, eps=1e-7)
        mode_after = libm.fegetround()
    finally:
        libm.fesetround(0)
    assert mode_after == ROUNDING[mode]
    assert (again.norm, again.scale, again.max_abs) == (report.norm, report.scale, report.max_abs)
    assert [a.tobytes() for a in found] == [a.tobytes() for a in expected]


@x86_linux
@pytest.mark.parametrize("set_before", [0, 0x20, 0x24])
def test_exception_flags_are_left_as_they_were(set_before):
    """Those of the x87 unit too, where long doubles of very different size underflow."""
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    grads = [np.array([1e300]), np.array([1e-300])]
    libm.feclearexcept(0x3D)
    libm.feraiseexcept(set_before)
    try:
        gradclip.global_norm(grads, 1000.0)
        assert libm.fetestexcept(0x3D) == set_before
    finally:
        libm.feclearexcept(0x3D)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="flush-to-zero is set through torch on x86-64")
def test_flush_to_zero_set_outside_changes_no_bit():
    torch = pytest.importorskip("torch")
    tiny = np.array([3e-310, 4e-310])
    half = np.array([2.0**-24, 3 * 2.0**-24], np.float16)
    expected = gradclip.clip_by_global_norm([tiny, half], 1e-7)
    smallest = gradclip.clip_by_global_norm(tiny, 2e-310)
    strict = gradclip.clip_by_global_norm(tiny, 2e-310, strict=True)[0].tobytes()
    small_and_one = np.array([1e-40, 1.0], np.float32)
    value = gradclip.clip_by_value(small_and_one, 1e-40)[0].tobytes()
    applied = gradclip.apply_clip(tiny, gradclip.measure(tiny, ord=np.inf), 2e-310)[0].tobytes()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush")
    try:
        found = gradclip.clip_by_global_norm([tiny, half], 1e-7)
        small = gradclip.clip_by_global_norm(tiny, 2e-310)
        assert gradclip.clip_by_global_norm(tiny, 2e-310, strict=True)[0].tobytes() == strict
        assert gradclip.clip_by_value(small_and_one, 1e-40)[0].tobytes() == value
        assert gradclip.apply_clip(tiny, gradclip.measure(tiny, ord=np.inf), 2e-310)[0].tobytes() == applied
    finally:
        torch.set_flush_denormal(False)
    assert found[1].norm == expected[1].norm
    assert [a.tobytes() for a in found[0]] == [a.tobytes() for a in expected[0]]
    assert small[1].norm.hex() == smallest[1].norm.hex()
    assert small[1].clipped
    assert small[0].tobytes() == smallest[0].tobytes()


# ---- interruption -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to itself")
def test_ctrl_c_acts_before_the_write():
    """A signal that arrives during the read pass raises before a byte is written."""
    code = """
    import os, signal, threading
    import numpy as np, gradclip
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have background jobs ignore it
    a = np.ones(60_000_000, np.float32)
    for wait in (0.0, 0.001, 0.003, 0.01):
        timer = threading.Timer(wait, os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            for _ in range(1000):
                gradclip.clip_by_global_norm_(a, 0.5 * gradclip.global_norm(a))
        except KeyboardInterrupt:
            pass
        timer.join()
        assert (a == a[0]).all(), "half clipped"
    print("whole")
    """
    result = run(code)
    assert result.stdout.strip() == "whole", result.stderr
