"""What an exact sum costs where memory costs nothing: the kernel for float32 beside plain loops over the same elements.

    python benchmarks/in_cache.py [--isa avx2] [elements]

This compiles the kernels of one instruction set and in_cache.c with the C compiler that $CC names (GCC or Clang)."""

import argparse
import os
import shlex
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
FLAGS = {  # as setup.py has them
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c", "-mprefer-vector-width=512"],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--isa", choices=FLAGS, default="avx2")
    parser.add_argument("elements", type=int, nargs="?", default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "in_cache")
        flags = ["-O3", "-ffp-contract=off", "-fno-strict-aliasing", "-fno-math-errno", "-w", f"-DGC_SET={options.isa}"]
        include = f"-I{HERE.parent / 'gradclip' / '_cpu' / 'kernels'}"
        compiler = shlex.split(os.environ.get("CC", "cc"))
        source = HERE / "in_cache.c"
        subprocess.run([*compiler, *flags, *FLAGS[options.isa], include, source, "-o", program, "-lm"], check=True)
        subprocess.run([program, str(options.elements)], check=True)


if __name__ == "__main__":
    main()
