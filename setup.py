"""The one build rule; everything else is in pyproject.toml.

The kernel file is compiled once per instruction set, with that set's flags on it alone, and linked into the Cython passes."""

import os
import re
import sys
import sysconfig
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, takewhile
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist
from setuptools.errors import CompileError

KERNELS = "gradclip/_cpu/kernels/"
DEPENDS = [KERNELS + "kernels.c", "gradclip/_cpu/README.md"]
DEPENDS += sorted(str(p) for p in Path("gradclip").rglob("*") if p.suffix in {".h", ".pxd"})
MSVC = sys.platform == "win32"
X86 = sysconfig.get_platform().endswith(("x86_64", "amd64"))  # not a universal2 build, which is arm64 too

# No contraction: every set must round alike. No -ffast-math, no -march=native, ever.
STRICT = ["/fp:precise", "/O2"] if MSVC else ["-O3", "-ffp-contract=off", "-fno-strict-aliasing", "-fno-math-errno"]
# What is not a kernel is a tenth smaller by it, and as fast.
SMALLER = [] if MSVC else ["-O2"]
# Modules of whose code a small call on NumPy arrays runs next to nothing: they are a third smaller by it.
SMALLEST = [] if MSVC else ["-Os"]
RARE = {"accumulate", "exact", "layout", "limits", "machine", "nonfinite", "plan", "rows", "tensors", "tree"}
# Python's own flags ask for debug symbols, which are five times as large as the code. Tables that tell debuggers and profilers
# how stacks are unwound are a twentieth of it.
if MSVC or os.environ.get("GRADCLIP_DEBUG"):
    STRIP = []
else:
    STRICT += ["-g0", "-fno-asynchronous-unwind-tables"]
    STRIP = ["-Wl,-s"] if sys.platform == "linux" else []
AVX = {
    "avx2": ["/arch:AVX2"] if MSVC else ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["/arch:AVX512"]
    if MSVC
    else ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c", "-mprefer-vector-width=512"],
}
SETS = {"baseline": [], **(AVX if X86 else {})}
# Functions of C: the others bring a type of their own to every module. Nor is a class pickled that does not say how.
DIRECTIVES = {"auto_pickle": False, "binding": False, "embedsignature": True, "embedsignature.format": "clinic"}
DIRECTIVES["freethreading_compatible"] = True  # what threads share is guarded: gradclip/_cpu/kernels/guard.h


NO_COMPILER = """no C compiler that works: {tried}
gradclip is compiled when it is installed, and a program of two lines did not compile. To get a compiler:
  Debian, Ubuntu  apt install gcc python3-dev
  Fedora          dnf install gcc python3-devel
  macOS           xcode-select --install
  Windows         the workload "Desktop development with C++" of Visual Studio Build Tools
Except on Windows, the environment variable CC chooses another one."""


class Build(build_ext):
    """Adds OpenMP where the compiler has it, and the kernels of every instruction set."""

    def build_extensions(self):
        """Compile the kernels, then the extensions."""
        error = self.attempt("#include <Python.h>\nint main(void) { return 0; }\n")
        if error:
            command = takewhile(lambda word: word[0] != "-", getattr(self.compiler, "compiler_so", ["Microsoft Visual C++"]))
            raise CompileError(NO_COMPILER.format(tried=f"{' '.join(command)} ({error})"))
        openmp = self.openmp_flags()
        self.parallel = self.parallel or os.cpu_count()
        processes = self.parallel if sys.platform == "linux" else 0  # elsewhere they would run this file again
        translated = cythonize(
            self.extensions,
            build_dir=f"{self.build_temp}/cython",
            nthreads=processes,
            compiler_directives=DIRECTIVES,
        )
        for extension, made in zip(self.extensions, translated, strict=True):
            extension.sources = made.sources  # here alone: an sdist holds no generated C
            forget_place_of_numpy(Path(made.sources[0]))
        with ThreadPoolExecutor(self.parallel) as threads:
            kernels = list(chain.from_iterable(threads.map(self.compile_kernels, SETS)))
        for extension in self.extensions:
            rare = extension.name.rpartition(".")[2] in RARE
            extension.extra_compile_args += STRICT + (SMALLEST if rare else SMALLER) + openmp
            extension.extra_link_args += STRIP + ([] if MSVC else openmp)
            if extension.name.endswith("machine"):
                extension.extra_objects += kernels
        super().build_extensions()

    def compile_kernels(self, name):
        """Compile the kernels of one instruction set; return the object files."""
        return self.compiler.compile(
            [KERNELS + "kernels.c"],
            output_dir=f"{self.build_temp}/{name}",
            macros=[("GC_SET", name)],
            extra_postargs=STRICT + SETS[name],
            depends=DEPENDS,
        )

    def openmp_flags(self):
        """The compiler's OpenMP switch, or none and a warning."""
        flags = ["/openmp"] if MSVC else ["-fopenmp"]
        program = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"
        if self.attempt(program, flags, link=True):
            warnings.warn("this C compiler has no OpenMP: gradclip is built to run on one thread", stacklevel=1)
            return []
        return flags

    def attempt(self, program, flags=(), link=False):
        """What goes wrong when a program is compiled; None if nothing does."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "probe.c"
            source.write_text(program)
            try:
                objects = self.compiler.compile([str(source)], output_dir=folder, extra_postargs=list(flags))
                if link:
                    self.compiler.link_executable(objects, f"{folder}/probe", extra_postargs=[] if MSVC else list(flags))
            except Exception as error:
                return error


def forget_place_of_numpy(source):
    """Shorten the path of NumPy's declarations in generated C: the extension would hold it, and pip has another each time."""
    text = source.read_text(encoding="utf-8")
    shorter = re.sub(r'"[^"\n]*/(numpy/__init__[^"\n]*\.pxd)"', r'"\1"', text)
    if shorter != text:
        source.write_text(shorter, encoding="utf-8")


def extension(name, *sources):
    """Return the Cython module of that name, with C sources beside its own."""
    path = name.replace(".", "/") + ".pyx"
    macros = [(f"GC_WITH_{isa.upper()}", "1") for isa in SETS if isa != "baseline"]
    return Extension(
        name,
        [path, *sources],
        include_dirs=[numpy.get_include(), KERNELS, "gradclip"],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"), *macros],
        depends=DEPENDS,
        extra_compile_args=[],
        extra_link_args=[],
        extra_objects=[],
        libraries=[] if MSVC else ["m"],
    )


class Sdist(sdist):
    """Takes along everything that the tests need."""

    # Not `add_defaults`: that is called on a class of setuptools' own, which makes the list of sources.
    def make_release_tree(self, base_dir, files):
        """Copy what setuptools found and what it did not."""
        super().make_release_tree(base_dir, sorted({*files, *filter(os.path.isfile, along())}))


def along():
    """Files of the folders whose content no other command lists, without what was made in them."""
    for top in ("gradclip", "tests", "docs", "benchmarks"):
        for path in Path(top).rglob("*"):
            made = path.suffix in {".so", ".pyd", ".pyc"} or (path.suffix == ".c" and path.with_suffix(".pyx").exists())
            if not made and not any(part[0] == "." or part in {"__pycache__", "_build"} for part in path.parts):
                yield str(path)


def described():
    """The README, its links made absolute by the address in pyproject.toml: elsewhere there is nothing beside it."""
    address = re.search('^Source = "(.*)"', Path("pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[1]
    text = Path("README.md").read_text(encoding="utf-8")
    text = re.sub(r"(!\[[^\]]*\]\()(?!https?:|#)", rf"\1{address}/raw/HEAD/", text)
    return re.sub(r"(\]\()(?!https?:|#)", rf"\1{address}/blob/HEAD/", text)


setup(
    ext_modules=[
        extension("gradclip.report"),
        extension("gradclip._core.call"),
        extension("gradclip._gpu.rows"),
        *(
            extension(f"gradclip._leaves.{name}")
            for name in ("checks", "layout", "leaves", "overlap", "tensors", "tree", "units")
        ),
        extension("gradclip._cpu.machine", *(KERNELS + name for name in ("dispatch.c", "team.c", "pool.c", "share.c"))),
        *(
            extension(f"gradclip._cpu.{name}")
            for name in ("sums", "plan", "exact", "region", "nonfinite", "clamp", "passes", "accumulate", "limits")
        ),
    ],
    long_description=described(),
    long_description_content_type="text/markdown",
    cmdclass={"build_ext": Build, "sdist": Sdist},
)
