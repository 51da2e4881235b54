"""Fixtures that many files of tests share, and the number of their processes."""

import gc
import os
import signal
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import pytest
from marks import slow

from gradclip._cpu import machine


def pytest_configure(config):
    """Let Ctrl-C act, and leave the examples out that need PyTorch, or JAX with Optax, where these are not installed."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # so a shell starts what runs in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # else JAX takes most of a GPU from the other workers
    root = Path(__file__).parents[1]
    left_out = [root / "docs" / "conf.py"]  # which needs Sphinx, and has no examples
    if find_spec("torch") is None:
        left_out += [
            root / "gradclip" / "torch",
            root / "tests" / "dtensor_process.py",
            root / "tests" / "interrupted_process.py",
        ]
    if find_spec("jax") is None or find_spec("optax") is None:
        left_out += [root / "gradclip" / "jax", root / "docs" / "jax.md"]
    config.option.ignore = [*(config.option.ignore or []), *map(str, left_out)]


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_auto_num_workers():
    """Return how many workers `-n auto` starts: each imports all libraries, half a GB, and compiles the kernels of the GPU."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, 8)


SETS = machine.available_isas()


@pytest.fixture(params=slow(SETS, fast=(SETS[0], SETS[-1])))
def isa(request):
    """Each instruction set that this machine can run, in turn."""
    before = machine.isa()
    machine.set_isa(request.param)
    yield request.param
    machine.set_isa(before)


@pytest.fixture(params=slow([1, 2, 3, 8], fast=(1, 3)))
def threads(request):
    """Thread counts, whatever is allowed: more threads than cores must give the same bits too."""
    before = machine.get_threads()
    machine.set_threads(request.param)
    yield request.param
    machine.set_threads(before)


@pytest.fixture(scope="module")
def only_new_objects():
    """Garbage collections of a module's tests leave out what lives before them: PyTorch, JAX, all tests.

    Each would take half a second with those, and what a call leaves behind is new."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def uncollected(only_new_objects):
    """Only reference counts give memory back."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="module")
def cupy():
    """CuPy where there is a GPU, or a CUDA runtime without one (gpu_runtime/); else its stand-in (fake_cupy.py).

    The stand-in runs the same kernels on the processor."""
    try:
        import cupy as real

        if real.cuda.is_available():
            yield real
            return
    except ImportError:
        real = None
    import fake_cupy
    from gpu_runtime.kernels import COMPILER

    if COMPILER is None:
        pytest.skip("no GPU, and no C++ compiler for the stand-in of CuPy")
    sys.modules["cupy"] = fake_cupy
    yield fake_cupy
    if real is None:
        del sys.modules["cupy"]
    else:
        sys.modules["cupy"] = real


@pytest.fixture
def timm_utils(monkeypatch):
    """`timm.utils` without what the whole package imports: torchvision, of which PyPI has no build for processors alone."""
    found = find_spec("timm")
    if found is None:
        pytest.skip("could not import 'timm'")
    folder = Path(found.origin).parent
    for name, path in {"timm": folder, "timm.utils": folder / "utils"}.items():
        package = types.ModuleType(name)
        package.__path__ = [str(path)]
        monkeypatch.setitem(sys.modules, name, package)
    yield
    for name in [name for name in sys.modules if name.startswith("timm.utils.")]:
        del sys.modules[name]
