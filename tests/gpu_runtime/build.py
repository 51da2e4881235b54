"""Make the CUDA runtime without a device, and a CuPy that is linked to it.

    python tests/gpu_runtime/build.py --out FOLDER

Needs pip with an index, g++ and the headers of Python. Only FOLDER is written to: CuPy and what it needs of CUDA are put there
beside the environment that runs this, which stays as it is. What lies there from an earlier run is not fetched again."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CUPY = "14.2.0"
PACKAGES = [f"cupy-cuda13x=={CUPY}", "cuda-pathfinder<2"]
PACKAGES += [f"nvidia-cuda-{part}==13.*" for part in ("nvrtc", "runtime", "crt", "profiler-api")]
TRANSLATOR = "cython>=3.1,<3.3"
RUNTIME = "cupy_backends/cuda/api/runtime"
# What CuPy's own build sets for Cython, for CUDA 13.
DIRECTIVES = "embedsignature=True,binding=False,c_api_binop_methods=True"
SETTINGS = {
    "CUPY_USE_CUDA_PYTHON": False,
    "CUPY_CUFFT_STATIC": False,
    "CUPY_CYTHON_VERSION": "'3.2'",
    "CUPY_CUDA_VERSION": 13000,
    "CUPY_HIP_VERSION": 0,
}
# pip asks the build backend of an sdist for metadata before it hands it out, and CuPy's wants a whole CUDA toolkit for that.
BACKEND = f"""
from pathlib import Path

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    made = Path(folder, "cupy-{CUPY}.dist-info")
    made.mkdir()
    (made / "METADATA").write_text("Metadata-Version: 2.1\\nName: cupy\\nVersion: {CUPY}\\n")
    return made.name
"""


def run(*command, **environment):
    """Returns what it says, which is shown only if it fails."""
    done = subprocess.run(
        [str(c) for c in command], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(done.args)}\n{done.stdout}{done.stderr}")
    return done.stdout


def install(folder, *packages):
    if not folder.exists():
        run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, *packages)


def fetch_source(out):
    """The folder of CuPy's sdist."""
    source = out / f"cupy-{CUPY}"
    if not source.exists():
        backend = out / "backend" / "setuptools"
        backend.mkdir(parents=True, exist_ok=True)
        (backend / "__init__.py").touch()
        (backend / "build_meta.py").write_text(BACKEND, encoding="utf-8")
        options = ("-q", "--no-deps", "--no-binary", "cupy", "--no-build-isolation", "--dest", out)
        run(sys.executable, "-m", "pip", "download", *options, f"cupy=={CUPY}", PYTHONPATH=str(backend.parent))
        with tarfile.open(out / f"cupy-{CUPY}.tar.gz") as archive:
            archive.extractall(out, [m for m in archive if m.name.startswith(f"cupy-{CUPY}/cupy_backends/")], filter="data")
    return source


def functions(option, *objects):
    """Names of the CUDA runtime's functions that objects define or need."""
    return set(re.findall(r" (cuda\w+)$", run("nm", option, *objects), re.M))


def build_runtime(out, source, site):
    """libcuda.so.1, and CuPy's module of the runtime, linked to it."""
    objects, library = out / "objects", out / "lib" / "libcuda.so.1"
    objects.mkdir(exist_ok=True)
    library.parent.mkdir(exist_ok=True)
    compiler, include = ("g++", "-std=c++17", "-O1", "-fPIC"), f"-I{site / 'nvidia/cu13/include'}"

    module = source / f"{RUNTIME}.cpp"
    settings = [f"-E{name}={value}" for name, value in SETTINGS.items()]
    translate = ("-m", "cython", "--cplus", "-3", "-X", DIRECTIVES, *settings)
    run(sys.executable, *translate, module.with_suffix(".pyx"), PYTHONPATH=str(out / "cython"))
    paths = [f"-I{p}" for p in (sysconfig.get_path("include"), source / "cupy_backends", source)]
    run(*compiler, "-c", "-w", "-DNDEBUG", include, *paths, module, "-o", objects / "cupy.o")

    own = {path: objects / f"{path.stem}.o" for path in sorted(HERE.glob("*.cpp"))}
    for path, made in own.items():
        run(*compiler, "-c", include, path, "-o", made)
    lacks = sorted(functions("-u", objects / "cupy.o") - functions("--defined-only", *own.values()))
    stubs = [f'int {name}() {{ return gpu_runtime_lacks("{name}"); }}' for name in lacks]
    (objects / "stubs.c").write_text("\n".join(["int gpu_runtime_lacks(const char *);", *stubs, ""]), encoding="utf-8")
    run("gcc", "-c", "-fPIC", objects / "stubs.c", "-o", objects / "stubs.o")

    run("g++", "-shared", *own.values(), objects / "stubs.o", "-o", library, "-ldl", "-pthread", f"-Wl,-soname,{library.name}")
    installed = site / f"{RUNTIME}{sysconfig.get_config_var('EXT_SUFFIX')}"
    run("g++", "-shared", objects / "cupy.o", "-o", installed, f"-L{library.parent}", f"-l:{library.name}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    out = parser.parse_args().out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    install(out / "site", *PACKAGES)
    install(out / "cython", TRANSLATOR)
    build_runtime(out, fetch_source(out), out / "site")


if __name__ == "__main__":
    main()
