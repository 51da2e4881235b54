"""The kernels by other roads: no vector types at all (what MSVC gets), Clang, and arm64 in an emulator."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SOURCE = TESTS.parent / "gradclip" / "_cpu" / "kernels"
FLAGS = ["-O3", "-ffp-contract=off", "-fno-strict-aliasing", "-fno-math-errno", "-DGC_SET=baseline"]
X86 = platform.machine() in ("x86_64", "AMD64")


def bits(folder, compiler, *flags, runner=()):
    """The hashes of the kernels as one compiler builds them."""
    if shutil.which(compiler) is None or not all(map(shutil.which, runner[:1])):
        pytest.skip(f"{compiler} or {' '.join(runner)} is not installed")
    program = str(folder / "kernel_bits")
    objects = []
    for source in (SOURCE / "kernels.c", TESTS / "kernel_bits.c"):
        objects.append(str(folder / f"{source.stem}.o"))
        extra = flags if source.stem == "kernels" else ()
        subprocess.run([compiler, *FLAGS, *extra, f"-I{SOURCE}", "-c", str(source), "-o", objects[-1]], check=True)
    subprocess.run([compiler, *objects, *(["-static"] if runner else []), "-o", program, "-lm"], check=True)
    return subprocess.run([*runner, program], check=True, capture_output=True, text=True).stdout.split()


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The hashes as this machine's own compiler builds the kernels."""
    found = bits(tmp_path_factory.mktemp("cc"), "cc")
    assert len(found) == 4
    return found


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="drives a Unix compiler")
@pytest.mark.parametrize(
    ("compiler", "flags", "runner"),
    [
        ("cc", ["-U__GNUC__"], ()),
        pytest.param("cc", ["-U__GNUC__", "-mavx2", "-mfma"], (), marks=pytest.mark.skipif(not X86, reason="x86 flags")),
        ("clang", [], ()),
        ("aarch64-linux-gnu-gcc", [], ("qemu-aarch64",)),
    ],
    ids=["no vectors", "no vectors, AVX2", "clang", "arm64"],
)
def test_every_road_gives_the_same_bits(tmp_path, expected, compiler, flags, runner):
    assert bits(tmp_path, compiler, *flags, runner=runner) == expected
