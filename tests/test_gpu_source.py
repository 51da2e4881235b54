"""The CUDA source and the CuPy that it meets, as far as both can be looked at without a GPU.

    python -m pip install nvidia-cuda-nvrtc-cu12 cupy-cuda12x && python -m pytest tests/test_gpu_source.py

(CuPy alone imports without a driver; NVRTC compiles without one.)"""

import ctypes
import importlib.util
import inspect
import re
from pathlib import Path

import numpy as np
import pytest

from gradclip._gpu.program import GROUPS, KERNELS, OPTIONS, source

ARCHITECTURES = (70, 75, 80, 86, 89, 90, 100, 120)


@pytest.fixture(scope="module")
def nvrtc():
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else map(Path, spec.submodule_search_locations or [])
    found = sorted(p for f in folders for p in f.rglob("libnvrtc.so.*") if "alt" not in p.name)
    if not found:
        pytest.skip("NVRTC is not installed")
    return ctypes.CDLL(str(found[-1]))


def compiled(nvrtc, code, architecture):
    """PTX, with the options of CuPy: its own come last."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), code.encode(), b"gradclip.cu", 0, None, None) == 0
    options = [o.encode() for o in (*OPTIONS, f"-arch=compute_{architecture}", "-ftz=true")]
    status = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    assert status == 0, log.value.decode()
    assert [line for line in log.value.decode().splitlines() if "deprecated" not in line] == []
    nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetPTX(program, ptx)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return ptx.value.decode()


def entries(ptx):
    """The kernels in it."""
    return sorted(line.split("(")[0].split()[-1] for line in ptx.splitlines() if ".entry" in line)


def test_a_group_of_kernels_is_compiled_alone(nvrtc):
    group = next(group for group in GROUPS if "weigh" in group)
    assert entries(compiled(nvrtc, source(group), 80)) == sorted(group)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_source_compiles(nvrtc, architecture):
    count = ctypes.c_int()
    nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count))
    supported = (ctypes.c_int * count.value)()
    nvrtc.nvrtcGetSupportedArchs(supported)
    if architecture not in list(supported):
        pytest.skip(f"this NVRTC does not know compute capability {architecture / 10}")
    ptx = compiled(nvrtc, source(), architecture)
    assert entries(ptx) == sorted(KERNELS)
    # No operation on values flushes subnormal numbers (comparisons inside of pow do, of numbers that are none), and
    # sums are fused with products only where the source says so.
    assert set(re.findall(r"\b(?:add|sub|mul|fma|div|cvt|mad)\S*\.f32\S*", ptx)) <= {
        *("cvt.f32.f16", "cvt.f64.f32", "cvt.rn.f16.f32", "cvt.rn.f32.f64", "mul.rn.f32", "add.rn.f32", "sub.rn.f32"),
        *("fma.rn.f32", "fma.rz.f32", "cvt.rzi.s32.f32"),  # of digits.cu
    }


def test_sources_are_ascii_and_structs_are_as_python_sees_them():
    """Words of Sum, Write and Leaf: numbered in sums.py, table.py and rows.pyx."""
    from gradclip._core import rounding
    from gradclip._gpu import decisions, reading, sums, table

    code = source()
    assert code.isascii()

    def words(struct):
        found = re.search(rf"struct {struct}(?: : (\w+))? {{([^}}]*)\n}};", code)
        found = found or re.search(rf"struct (){{([^}}]*)}} {struct};", code)
        inherited = words(found[1]) if found[1] else []
        body = found[2]
        body = re.sub(r"/\*.*?\*/", "", body, flags=re.S)
        lines = [re.sub(r"^(double|i64|gc_i64|gc_factor|char|View)\s+", "", line.strip()) for line in body.split(";")]
        names = [name.strip(" *") for line in lines for name in line.split(",") if name.strip()]
        return inherited + [inner for name in names for inner in (words("gc_factor") if name == "factor" else [name])]

    assert words("Sum").index("nans") == sums.NANS
    assert words("Sum").index("infs") == sums.INFS
    assert words("Sum").index("first") == sums.FIRST
    assert len(words("Sum")) == reading.WORDS_OF_SUM
    assert len(words("Write")) == decisions.WORDS_OF_WRITE
    assert words("Write") == ["kind", "clips", "zero", "value", "last", "shift"]
    assert words("View") == ["data", "dtype", "ndim", "axes"]
    assert words("Leaf")[:2] == ["to", "from"]
    views = {"to": 0, "to_dtype": 1, "from": 4, "from_dtype": 5}
    assert {name: 6 + k for k, name in enumerate(words("Leaf")) if k > 1} | views == table.ROW
    assert words("gc_rounding_bound") == list(rounding.RoundingBound._fields)
    flags = re.search(r"enum {\s*(NORMALIZE = 1.*?)\s*}", code, re.S)[1]
    assert {n: getattr(decisions, n) for n in re.findall(r"[A-Z_]+", flags)} == {
        n: int(v) for n, v in re.findall(r"([A-Z_]+) = (\d+)", flags)
    }


def test_the_stand_in_has_what_cupy_has():
    """What gradclip and its stand-in use of CuPy is there, and works where no device is needed."""
    cupy = pytest.importorskip("cupy")
    import fake_cupy

    names = [n for n in vars(fake_cupy.ndarray) if not n.startswith("__") and n not in ("_host", "_device")]
    assert [n for n in names if not hasattr(cupy.ndarray, n)] == []
    for name in ("empty", "empty_like", "asarray"):
        mine = inspect.signature(getattr(fake_cupy, name)).parameters
        theirs = inspect.signature(getattr(cupy, name)).parameters
        assert set(mine) <= set(theirs) | {"array", "dtype", "shape"}, name
    assert hasattr(cupy.RawModule, "get_function")
    assert hasattr(cupy.cuda.runtime, "deviceGetAttribute")
    assert hasattr(cupy.cuda.Device, "__enter__")
    for name in ("record", "wait_event", "is_capturing", "use", "synchronize", "begin_capture", "end_capture"):
        assert set(inspect.signature(getattr(fake_cupy.Stream, name)).parameters) <= set(
            inspect.signature(getattr(cupy.cuda.Stream, name)).parameters
        ) | {"event"}
    assert hasattr(cupy.cuda.Stream, "from_external") or hasattr(cupy.cuda.ExternalStream, "use")
    assert "disable_timing" in inspect.signature(cupy.cuda.Event.__init__).parameters
    copy = re.sub(r"intptr_t |size_t |int ", "", cupy.cuda.runtime.memcpyPeerAsync.__doc__)
    assert copy.startswith("memcpyPeerAsync(dst, dstDevice, src, srcDevice, size, stream)")
    host = np.arange(24, dtype=np.float32)
    memory = cupy.cuda.UnownedMemory(host.ctypes.data, host.nbytes, host, 0)
    a = cupy.ndarray((4, 6), np.float32, cupy.cuda.MemoryPointer(memory, 0))
    assert (a.data.ptr, a.data.device_id, a._c_contiguous, a._f_contiguous) == (host.ctypes.data, 0, True, False)
    turned = a.transpose((1, 0))[::2]
    assert (turned.shape, turned.strides, turned._c_contiguous) == ((3, 4), (8, 24), False)
    import gradclip._leaves.foreign
    from gradclip._gpu.rows import Rows
    from gradclip._leaves import Leaves

    shadow = gradclip._leaves.foreign.addressed(turned)
    assert (shadow.ctypes.data, shadow.shape, shadow.strides) == (turned.data.ptr, turned.shape, turned.strides)
    assert shadow.tolist() == host.reshape(4, 6).T[::2].tolist()  # here it can be looked at
    leaves = Leaves({"w": turned, "b": a[0]})
    assert (leaves.on_device, leaves.size, leaves.devices()) == (2, 18, [0])
    assert Rows(leaves, 0).words[1, 0] == host.ctypes.data
    try:
        import ml_dtypes

        brain = cupy.ndarray((24,), ml_dtypes.bfloat16, cupy.cuda.MemoryPointer(memory, 0))
    except (ImportError, TypeError):  # CuPy before 14
        return
    assert Rows(Leaves([brain]), 0).words[0, 1] == 1
