"""What this installation is and runs on."""

from __future__ import annotations

import platform

from ._cpu import machine
from ._version import __version__
from .threads import get_num_threads

CUPY = ("cupy", "cupy-cuda12x", "cupy-cuda13x")  # the same package, built from source or for a CUDA
OPTIONAL = ("ml_dtypes", "scipy", "torch", "jax", *CUPY, "mpi4py", "matplotlib", "rich", "safetensors")


def show_config() -> str:
    """Version, instruction set, threads, OpenMP and the optional packages that are installed, as text.

    Returns
    -------
    str

    Examples
    --------
    >>> import gradclip
    >>> gradclip.show_config().splitlines()[0].startswith("gradclip ")
    True
    """
    present = [found for name in OPTIONAL if (found := _installed(name))]
    openmp = f"OpenMP {machine.openmp_version}" if machine.openmp_version else "none (serial build)"
    return "\n".join(
        [
            f"gradclip {__version__}",
            f"python            {platform.python_version()} on {platform.system()} {platform.machine()}",
            f"instruction set   {machine.isa()} (of {', '.join(machine.available_isas())}; GRADCLIP_ISA)",
            f"threads           {get_num_threads()} (GRADCLIP_NUM_THREADS)",
            f"OpenMP            {openmp}",
            f"optional          {', '.join(present) or 'none'}",
        ]
    )


def _installed(name):
    from importlib import metadata  # dear to import, and seldom needed

    try:
        return f"{name} {metadata.version(name)}"
    except metadata.PackageNotFoundError:
        return None
