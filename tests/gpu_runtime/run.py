"""Run tests on CuPy and the CUDA runtime that build.py made.

    python tests/gpu_runtime/run.py --out FOLDER tests/test_gpu*.py
    python tests/gpu_runtime/run.py --out FOLDER --threads --guarded --eager 30 --every 11 tests/test_gpu.py

What is not named here goes to pytest."""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
from pathlib import Path


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="that of build.py")
    parser.add_argument("--threads", action="store_true", help="a real thread for each of CUDA's, instead of coroutines")
    parser.add_argument("--guarded", action="store_true", help="no memory pool, and a guard page behind each allocation")
    parser.add_argument("--eager", type=int, default=0, metavar="PERCENT", help="chance that a call lets streams work on")
    parser.add_argument("--seed", type=int, default=0, help="of what --eager chooses")
    parser.add_argument("--stream", action="store_true", help="all in a stream that is not the default one")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only each N-th test")
    return parser.parse_known_args()


def environment(chosen):
    """Of a process in which CuPy is that of build.py. The loader reads LD_LIBRARY_PATH as a process begins."""
    out = chosen.out.resolve()
    before = [p for p in (os.environ.get("PYTHONPATH"),) if p]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(out / "site"), *before]),
        "LD_LIBRARY_PATH": os.pathsep.join([str(out / "lib"), str(out / "site/nvidia/cu13/lib")]),
        "CUPY_CACHE_DIR": str(out / "cache"),
        "GPU_KERNELS": str(out / f"{'threads' if chosen.threads else 'coroutines'}.so"),
        "GPU_MEMORY": "guarded" if chosen.guarded else "hidden",
        "GPU_EAGER": str(chosen.eager),
        "GPU_SEED": str(chosen.seed),
    }


class Every:
    """A plugin of pytest that keeps each N-th test."""

    def __init__(self, count):
        self.count = count

    def pytest_collection_modifyitems(self, config, items):
        config.hook.pytest_deselected(items=[item for k, item in enumerate(items) if k % self.count])
        items[:] = items[:: self.count]


def main():
    chosen, rest = options()
    wanted = environment(chosen)
    if os.environ.get("GPU_KERNELS") != wanted["GPU_KERNELS"]:
        os.execve(sys.executable, [sys.executable, *sys.argv], wanted)
    # CuPy takes the NVRTC that is loaded; else it would look into this environment first, where PyTorch may have brought one.
    ctypes.CDLL(str(chosen.out.resolve() / "site/nvidia/cu13/lib/libnvrtc.so.13"))
    import cupy
    import kernels
    import pytest

    from gradclip._gpu.program import source

    assert cupy.__file__.startswith(str(chosen.out.resolve())), "another CuPy was found"
    kernels.build(source(), wanted["GPU_KERNELS"], "threads" if chosen.threads else "coroutines")
    if chosen.guarded:
        cupy.cuda.set_allocator(None)
        cupy.cuda.set_pinned_memory_allocator(None)
    if chosen.stream:
        for device in range(cupy.cuda.runtime.getDeviceCount()):
            with cupy.cuda.Device(device):
                cupy.cuda.Stream(non_blocking=True).use()
    sys.exit(pytest.main(rest, plugins=[Every(chosen.every)]))


if __name__ == "__main__":
    main()
