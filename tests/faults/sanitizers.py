"""Build the library with a sanitizer in a folder of its own, and run tests on it; or run the kernels under valgrind.

    python tests/faults/sanitizers.py address undefined
    python tests/faults/sanitizers.py thread
    python tests/faults/sanitizers.py valgrind

address, undefined: GCC's or Clang's sanitizers of these names in the C and Cython code, so that the first error ends the run.
The tests are those of kernels, passes and whole calls against integers, unless others are named behind `--tests`.

thread: the baseline kernels under tests/faults/threads.py, by gradclip's own workers alone. How OpenMP's runtime has its teams
wait is hidden from it: each chunk would seem to race with what its caller did before the region and does after it.

valgrind: the extension as it is installed, its baseline kernels driven by tests/oracle/kernel_cases.py, and every access to
memory watched. Valgrind computes long double with 64 bits, so only kernels, which have none, can be held to exact results
there; and 3.19 ends at an instruction of AVX (`vmovq` between registers), so the other sets are left to the pages that may not
be touched."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = (
    "tests/test_oracle.py",
    "tests/test_passes.py",
    "tests/test_value_pass.py",
    "tests/test_cast.py",
    "tests/test_faults.py",
)
LOADER = """
{
   glibc's loader compares strings by words, which may reach beyond their end
   Memcheck:Addr8
   fun:strncmp
   fun:is_dst
}
"""
RUNTIMES = {"address": "libasan.so", "undefined": "libubsan.so", "thread": "libtsan.so"}


def copy(folder):
    """Copy what git tracks to a folder, and what Cython has made of it here."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    packed = subprocess.run(["tar", "-c", "--null", "-T", "-"], cwd=ROOT, input=names, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x"], cwd=folder, input=packed, check=True)
    for made in ROOT.glob("build/*/cython"):
        shutil.copytree(made, Path(folder) / made.relative_to(ROOT), dirs_exist_ok=True)


def built(kinds, folder):
    """Build with some sanitizers; return the environment in which Python can import it."""
    copy(folder)
    recover = "" if kinds == ["thread"] else "-fno-sanitize-recover=all"
    flags = f"-fsanitize={','.join(kinds)} {recover} -fno-omit-frame-pointer -g1"
    # By the compiler's name, so that setup.py's trials are linked with them too; and -O1 behind setup.py's -O3, which takes
    # minutes to instrument.
    compiler, wrapped = os.environ.get("CC", "cc"), Path(folder, "cc")
    wrapped.write_text(f'#!/bin/sh\nexec {compiler} "$@" {flags} -O1\n')
    wrapped.chmod(0o755)
    environment = {**os.environ, "CC": str(wrapped), "GRADCLIP_DEBUG": "1", "PYTHONPATH": str(folder)}
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(build, cwd=folder, env=environment, check=True)
    places = [[*compiler.split(), f"-print-file-name={RUNTIMES[kind]}"] for kind in kinds]
    preload = [subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() for command in places]
    # Tests compile a driver, which is none of this.
    return environment | {"LD_PRELOAD": " ".join(preload), "CC": compiler}


def with_sanitizers(kinds, tests, folder):
    """Build with some sanitizers and run tests; return the exit status of pytest."""
    # What Python itself never gives back is not looked for; memory that is refused is what tests ask for.
    options = {
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    environment = built(kinds, folder) | options
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", *tests]
    return subprocess.run(command, cwd=folder, env=environment, check=False).returncode


def with_threads(processes, folder):
    """Build with the sanitizer of threads and run many of them; return the exit status."""
    environment = built(["thread"], folder) | {"GRADCLIP_ISA": "baseline"}
    # Forked children of a process that has threads are looked at too. setarch: the sanitizer of some versions of GCC cannot
    # run where memory lies at addresses that are too random.
    environment["TSAN_OPTIONS"] = "exitcode=66:die_after_fork=0:report_signal_unsafe=0"
    command = ["setarch", "-R", sys.executable, "tests/faults/threads.py", "--by", "workers", "--calls", "10"]
    command += ["--processes", str(processes), "--threads", "4"]
    return subprocess.run(command, cwd=folder, env=environment, check=False).returncode


def with_valgrind(folder):
    """Run every kernel under valgrind; return its exit status."""
    suppressions = Path(folder, "loader.supp")
    suppressions.write_text(LOADER)
    command = [
        "valgrind", "--quiet", "--error-exitcode=9", f"--suppressions={suppressions}", "--undef-value-errors=no",
        sys.executable, str(ROOT / "tests" / "oracle" / "kernel_cases.py"), "--rounds", "12", "--isa", "baseline",
    ]  # fmt: skip
    return subprocess.run(command, env={**os.environ, "PYTHONMALLOC": "malloc"}, check=False).returncode


def main():
    """Run what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="+", choices=[*RUNTIMES, "valgrind"])
    parser.add_argument("--tests", nargs="+", default=TESTS, help="for the sanitizers of addresses and of undefined behaviour")
    parser.add_argument("--processes", type=int, default=6, help="for that of threads")
    options = parser.parse_args()
    kinds = [kind for kind in options.kinds if kind not in ("valgrind", "thread")]
    runs = [lambda folder: with_sanitizers(kinds, options.tests, folder)] if kinds else []
    runs += [lambda folder: with_threads(options.processes, folder)] if "thread" in options.kinds else []
    runs += [with_valgrind] if "valgrind" in options.kinds else []
    status = 0
    for run in runs:
        with tempfile.TemporaryDirectory() as folder:
            status = status or run(folder)
    print("no error" if status == 0 else f"exit status {status}")
    return status


if __name__ == "__main__":
    sys.exit(main())
