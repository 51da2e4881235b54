import sys

import pytest

from gradclip._cpu import machine


@pytest.fixture(params=machine.available_isas())
def isa(request):
    """Each instruction set that this machine can run, in turn."""
    before = machine.isa()
    machine.set_isa(request.param)
    yield request.param
    machine.set_isa(before)


@pytest.fixture(params=[1, 2, 3, 8])
def threads(request):
    """Thread counts, uncapped: more threads than cores must give the same bits too."""
    before = machine.get_threads()
    machine.set_threads(request.param)
    yield request.param
    machine.set_threads(before)


@pytest.fixture(scope="module")
def cupy():
    """CuPy where there is a GPU, or a CUDA runtime without one (gpu_runtime/); else its stand-in, which runs the same kernels
    on the processor (fake_cupy.py)."""
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
