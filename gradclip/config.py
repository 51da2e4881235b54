"""`show_config`: what is installed, and what it runs on."""

from __future__ import annotations

import platform

from ._cpu import machine
from ._version import __version__
from .threads import describe, describe_sharing

CUPY = ("cupy", "cupy-cuda12x", "cupy-cuda13x")  # one package: built from source, or for one version of CUDA
OPTIONAL = ("ml_dtypes", "scipy", "torch", "jax", *CUPY, "mpi4py", "matplotlib", "rich", "safetensors")


def show_config() -> str:
    """Return the version, the instruction set, the threads, OpenMP and the installed optional packages as text.

    The number of threads is the one that a large call would use now, and beside it stands everything that bounds it. To find
    it out, so many threads are started and ended once. Whether the machine is busy is known from the large calls that the
    calling thread has made: if other programs hold up its threads, it no longer waits for them, until that has passed.

    Returns
    -------
    str
        A text of seven lines.

    See Also
    --------
    set_num_threads : Change the number of threads.

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
            f"busy machine      {describe_sharing()}",
            f"optional          {', '.join(present) or 'none'}",
        ]
    )


def _installed(name: str) -> str | None:
    """Return the name and the version of a package, or None if it is not installed."""
    from importlib import metadata  # slow to import, and seldom needed

    try:
        return f"{name} {metadata.version(name)}"
    except metadata.PackageNotFoundError:
        return None
