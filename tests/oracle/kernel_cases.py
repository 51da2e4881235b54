"""Compare every kernel of the host with integers, on random bits, sizes and offsets.

    python tests/oracle/kernel_cases.py --seed 1 --seconds 60 --dtype float16 --isa avx2

Without `--dtype` and `--isa` it takes all dtypes and all instruction sets of this machine, and divides the time among them. It
stops at the first difference, prints the round that shows it again (`--first ROUND --rounds 1`) and exits with status 1. The
tables of kernels are those of the built extension. Needs a C compiler that knows 128-bit integers (GCC, Clang)."""

from __future__ import annotations

import argparse
import ctypes
import itertools
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gradclip._cpu import machine

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parents[1] / "gradclip" / "_cpu" / "kernels"
DTYPES = ("float16", "bfloat16", "float32", "float64")
OPERATIONS = (
    "amax", "sum_squares", "sum_abs", "scale", "zero_nonfinite", "clamp", "step", "widen", "narrow", "cast", "add_samples",
    "sum_columns", "scale_columns", "count",
)  # fmt: skip
COMPILER = None if sys.platform == "win32" else shutil.which("cc")
AT_ONCE = 64  # rounds: of halves, all 65,536 numbers


class Oracle:
    """The compiled driver, and the tables of kernels of the built extension by their names."""

    def __init__(self, folder):
        """Compile the driver into a folder."""
        library = Path(folder) / "oracle.so"
        flags = ["-O1", "-shared", "-fPIC", f"-I{KERNELS}"]
        subprocess.run([COMPILER, *flags, str(HERE / "oracle.c"), "-o", str(library)], check=True)
        self._library = ctypes.CDLL(str(library))
        self._run = self._library.oracle_run
        self._run.restype = ctypes.c_int64
        self._run.argtypes = [
            ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p,
            ctypes.c_size_t,
        ]  # fmt: skip
        tables = (ctypes.c_void_p * 8)()
        count = ctypes.CDLL(machine.__file__).gc_available(tables)
        self.tables = dict(zip(machine.available_isas(), tables[:count], strict=True))

    def run(self, isa, dtype, seed, first, rounds):
        """Return the cases of each operation in some rounds, the first round that failed (or None) and what was wrong."""
        cases, message = (ctypes.c_int64 * len(OPERATIONS))(), ctypes.create_string_buffer(500)
        table, number = self.tables[isa], DTYPES.index(dtype)
        wrong = self._run(table, number, seed, first, rounds, cases, message, len(message))
        return list(cases), None if wrong < 0 else wrong, message.value.decode()


def rounds_of(options):
    """Yield the numbers of first rounds and how many follow, for as long as was asked for."""
    if options.rounds is not None:
        yield options.first, options.rounds
        return
    end = time.monotonic() + options.seconds
    for first in itertools.count(options.first, AT_ONCE):
        yield first, AT_ONCE
        if time.monotonic() > end:
            return


def main():
    """Run what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60, help="for all dtypes and instruction sets together")
    parser.add_argument("--dtype", choices=DTYPES, action="append")
    parser.add_argument("--isa", choices=machine.available_isas(), action="append")
    parser.add_argument("--first", type=int, default=0, help="the first round")
    parser.add_argument("--rounds", type=int, help="how many, instead of seconds")
    options = parser.parse_args()
    todo = list(itertools.product(options.isa or machine.available_isas(), options.dtype or DTYPES))
    options.seconds /= len(todo)
    with tempfile.TemporaryDirectory() as folder:
        oracle = Oracle(folder)
        for isa, dtype in todo:
            totals = [0] * len(OPERATIONS)
            for first, count in rounds_of(options):
                cases, wrong, message = oracle.run(isa, dtype, options.seed, first, count)
                totals = list(map(sum, zip(totals, cases, strict=True)))
                if wrong is not None:
                    print(f"{isa} {dtype}: {message} (--seed {options.seed} --first {wrong} --rounds 1)")
                    return 1
            each = ", ".join(f"{name} {n:.2e}" for name, n in zip(OPERATIONS, totals, strict=True))
            print(f"{isa} {dtype}: {sum(totals):.2e} cases, none wrong, {first + count} rounds ({each})", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
