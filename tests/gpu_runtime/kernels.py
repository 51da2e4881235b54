"""The CUDA source as a library for the processor: a function `launch_NAME(blocks, arguments)` for each of its KERNELS."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

from gradclip._gpu.program import KERNELS

COMPILER = shutil.which("g++") if sys.platform == "linux" else None
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-U_FORTIFY_SOURCE", "-w", "-shared", "-fPIC"]
FLAGS += ["-mfma"] if platform.machine() == "x86_64" else []  # `fma` is one instruction, or a slow function


def build(source, library, threads="coroutines"):
    """Compile the source, so that threads of a block are "coroutines" or "threads" (see the headers of these names)."""
    launchers = [f'extern "C" void launch_{n}(unsigned blocks, void **args) {{ launch({n}, blocks, args); }}' for n in KERNELS]
    code = Path(library).with_suffix(".cpp")
    code.write_text("\n".join([f'#include "{threads}.h"', source, *launchers]), encoding="utf-8")
    folder = Path(__file__).parent
    subprocess.run([COMPILER, *FLAGS, "-pthread", f"-I{folder}", str(code), "-o", str(library)], check=True)
