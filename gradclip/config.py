"""What this installation is and runs on."""

from __future__ import annotations

import platform

from ._cpu import machine
from ._version import __version__
from .threads import describe

CUPY = ("cupy", "cupy-cuda12x", "cupy-cuda13x")  # the same package, built from source or for a CUDA
OPTIONAL = ("ml_dtypes", "scipy", "torch", "jax", *CUPY, "mpi4py", "matplotlib", "rich", "safetensors")


def show_config() -> str:
    """Version, instruction set, threads, OpenMP and the optional packages that are installed, as text.

    The number of threads is that of a large call made now, with what bounds it; to find out, they are started once.

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
            f"threads           {describe()}",
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
