"""Compiles all C for platforms that are not at hand, with Zig's C compiler: ``python tests/cross_compile.py``.

The compiler comes from PyPI (``python -m pip install ziglang``) and has the C headers of all of them. What is compiled is what
setup.py lists: the kernels once per instruction set, the other C, and what Cython makes of each module. Where this Linux can
run a program of the platform, the kernels must give the hashes that its own compiler's give (kernel_bits.c): with musl, in
``qemu-aarch64`` and in Wine, if they are installed. To link them, Zig first compiles that C library, which it keeps.

Headers of CPython and NumPy are those of this Linux, with the sizes of the platform put in. So this does not show that a
module links with Python there, or loads."""

import argparse
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy
from Cython.Build import cythonize

ROOT = Path(__file__).resolve().parents[1]
KERNELS = "gradclip/_cpu/kernels/"
ZIG = [sys.executable, "-m", "ziglang", "cc"]
# A function without a prototype, and pointers of other types, are errors in C of any origin; all warnings are in our own.
GENERATED = [
    "-w",
    *(f"-Werror={name}" for name in ("implicit-function-declaration", "incompatible-pointer-types", "int-conversion")),
]
OWN = ["-Wall", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-function"]
WINDOWS_PYTHON = """
#define MS_WIN32
#define MS_WIN64
#define MS_WINDOWS
#define NT_THREADS
#define HAVE_DECLSPEC_DLL
#define HAVE_STDDEF_H 1
#define HAVE_SYS_TYPES_H 1
#define HAVE_SYS_STAT_H 1
#define HAVE_PROTOTYPES 1
#define HAVE_LONG_LONG 1
#define SIZEOF_SHORT 2
#define SIZEOF_INT 4
#define SIZEOF_LONG 4
#define SIZEOF_LONG_LONG 8
#define SIZEOF_VOID_P 8
#define SIZEOF_SIZE_T 8
#define SIZEOF_WCHAR_T 2
#define SIZEOF_FLOAT 4
#define SIZEOF_DOUBLE 8
#define ALIGNOF_MAX_ALIGN_T 8
typedef long long Py_ssize_t;
#define PY_SSIZE_T_MAX 9223372036854775807LL
#define WITH_THREAD 1
"""


# What Microsoft's compiler sees of our own C, once Zig's headers have been read by the compiler that they are for.
MICROSOFT = """
#include <float.h>
#include <immintrin.h>
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#undef __GNUC__
#undef __clang__
#define _MSC_VER 1940
#define _M_X64 100
"""


@dataclass
class Platform:
    """A platform: its name, that of Zig, and how what is compiled for it differs."""

    name: str
    target: str
    runner: tuple | None = None  # what runs its programs here
    openmp: bool = True  # whether its usual compiler has it
    sizes: tuple = (8, 16, 4)  # of long, long double and wchar_t
    microsoft: bool = False  # the kernels alone, with the alternatives for Microsoft's compiler

    def runs(self):
        """Whether programs of this platform can be run here."""
        native = self.target.partition("-")[0] == platform.machine()
        return self.runner is not None and all(map(shutil.which, self.runner)) and (native or len(self.runner) > 0)


PLATFORMS = [
    Platform("Linux x86-64, musl", "x86_64-linux-musl", runner=()),
    Platform("Linux arm64, musl", "aarch64-linux-musl", runner=("qemu-aarch64",)),
    Platform("Linux arm64, glibc", "aarch64-linux-gnu"),
    Platform("macOS arm64", "aarch64-macos", openmp=False, sizes=(8, 8, 4)),
    Platform("macOS x86-64", "x86_64-macos", openmp=False),
    Platform("Windows x86-64", "x86_64-windows-gnu", runner=("wine",), sizes=(4, 16, 2)),
    Platform("Windows x86-64, as for Microsoft's compiler", "x86_64-windows-gnu", runner=("wine",), microsoft=True),
]


def build_rule():
    """The extensions that setup.py lists, and the names that it defines."""
    with mock.patch("setuptools.setup") as setup:
        names = runpy.run_path(str(ROOT / "setup.py"))
    return setup.call_args.kwargs["ext_modules"], names


def headers(to, folder):
    """Make copies of the headers of CPython, NumPy and OpenMP with a platform's sizes, and return the flags that name them."""
    shutil.copytree(sysconfig.get_path("include"), folder / "python")
    shutil.copytree(numpy.get_include(), folder / "numpy")
    config = folder / "numpy" / "numpy" / "_numpyconfig.h"
    text = config.read_text()
    for name, size in zip(("LONG", "LONGDOUBLE", "WCHAR_T"), to.sizes, strict=True):
        text, n = re.subn(rf"(?m)^(#define NPY_SIZEOF_{name}) \d+", rf"\1 {size}", text)
        assert n == 1
    if "linux" not in to.target:
        text = text.replace("#define NPY_HAVE_ENDIAN_H 1", "")
    config.write_text(text)
    if "windows" in to.target:
        (folder / "python" / "pyconfig.h").write_text(WINDOWS_PYTHON)
    flags = ["-isystem", f"{folder}/python", "-isystem", f"{folder}/numpy"]
    if to.openmp:  # GCC's header is enough to compile, though not to link
        found = subprocess.run(["cc", "-print-file-name=include/omp.h"], check=True, capture_output=True, text=True).stdout
        shutil.copy(found.strip(), folder / "python")
        flags.append("-fopenmp")
    return flags


def work(to, extensions, rule, folder):
    """List what is to be compiled for a platform: flags, source, object. The tables of kernels come first."""
    folder.mkdir(parents=True)
    flags = ["-target", to.target, "-g0", f"-I{ROOT / KERNELS}", f"-I{ROOT / 'gradclip'}"]
    if to.microsoft:
        (folder / "microsoft.h").write_text(MICROSOFT)
        flags += ["-fms-extensions", "-include", str(folder / "microsoft.h")]
    sets = {"baseline": [], **(rule["AVX"] if to.target.startswith("x86_64") else {})}
    for name, switches in sets.items():
        yield [*flags, *rule["STRICT"], *switches, *OWN, f"-DGC_SET={name}"], ROOT / KERNELS / "kernels.c", folder / f"{name}.o"
    if to.microsoft:
        return
    flags += [*headers(to, folder), *rule["STRICT"], "-O0"]  # to optimise takes the most time, and finds no error here
    flags += [f"-DGC_WITH_{name.upper()}" for name in sets if name != "baseline"]
    flags += [f"-D{name}={value}" for name, value in extensions[0].define_macros if not name.startswith("GC_WITH_")]
    for number, source in enumerate(sorted({source for extension in extensions for source in extension.sources})):
        own = (ROOT / source).is_relative_to(ROOT / KERNELS)
        yield [*flags, *(OWN if own else GENERATED)], ROOT / source, folder / f"{number}.o"


def compile_one(flags, source, made):
    """Compile one file and return what went wrong, or an empty string."""
    done = subprocess.run([*ZIG, *flags, "-c", str(source), "-o", str(made)], check=False, capture_output=True, text=True)
    return f"{source}\n{done.stderr}" if done.returncode else ""


def hashes(compiler, flags, kernels, folder, runner=()):
    """What a table of kernels computes, as hashes: it is linked with kernel_bits.c and run."""
    program = folder / "kernel_bits.exe"
    command = [*compiler, *flags, "-O2", f"-I{ROOT / KERNELS}", str(ROOT / "tests" / "kernel_bits.c"), str(kernels)]
    subprocess.run([*command, "-o", str(program), "-lm"], check=True)
    done = subprocess.run([*runner, str(program)], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return done.stdout.split()


def native(rule, folder):
    """The hashes as this machine's own compiler builds the kernels."""
    made = folder / "native.o"
    source = ROOT / KERNELS / "kernels.c"
    subprocess.run(["cc", *rule["STRICT"], "-DGC_SET=baseline", "-c", str(source), "-o", str(made)], check=True)
    return hashes(["cc"], [], made, folder)


def main():
    """Compile for each platform, run what can be run, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="platforms whose name has this in it")
    only = parser.parse_args().only
    extensions, rule = build_rule()
    failed = False
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(os.cpu_count()) as threads:
        folder = Path(scratch)
        extensions = cythonize(
            extensions, build_dir=f"{scratch}/cython", nthreads=2, quiet=True, compiler_directives=rule["DIRECTIVES"]
        )
        expected = native(rule, folder)
        for number, to in enumerate(to for to in PLATFORMS if only in to.name):
            place = folder / str(number)
            files = list(work(to, extensions, rule, place))
            said = f"{len(files)} files compiled"
            errors = "".join(threads.map(lambda file: compile_one(*file), files))
            if errors:
                said, failed = f"does not compile\n{errors}", True
            elif to.runs():
                same = hashes(ZIG, ["-target", to.target], place / "baseline.o", place, to.runner) == expected
                said += ", the kernels run and give the same bits" if same else ", the kernels give OTHER BITS"
                failed |= not same
            print(f"{to.name}: {said}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
