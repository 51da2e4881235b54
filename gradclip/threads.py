"""How many threads the passes use: this library alone, never the OpenMP runtime's own setting."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ._cpu import machine


def _affinity():
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


def _quota(root=Path("/sys/fs/cgroup")):
    """The CPUs that the container's quota allows, rounded up; None without a quota."""
    for folder, names in ((root, ["cpu.max"]), (root / "cpu", ["cpu.cfs_quota_us", "cpu.cfs_period_us"])):
        try:
            quota, period = " ".join((folder / name).read_text() for name in names).split()
            if quota != "max" and int(quota) > 0:
                return -(-int(quota) // int(period))
        except (OSError, ValueError):
            continue
    return None


def _default():
    """GRADCLIP_NUM_THREADS, else what OpenMP gives (OMP_NUM_THREADS included), within affinity and quota."""
    wanted = os.environ.get("GRADCLIP_NUM_THREADS")
    if wanted:
        if not wanted.isascii() or not wanted.isdigit() or int(wanted) < 1:
            raise ImportError(f"GRADCLIP_NUM_THREADS must be a positive integer, not {wanted!r}")
        return int(wanted)
    return max(1, min(machine.openmp_threads(), _affinity(), _quota() or _affinity()))


def set_num_threads(n: int) -> None:
    """Let the passes use up to `n` threads, from now on, in the whole process.

    Parameters
    ----------
    n : int
        At least 1. No more than the CPU affinity allows are ever started. Results do not depend on it.

    Examples
    --------
    >>> import gradclip
    >>> before = gradclip.get_num_threads()
    >>> gradclip.set_num_threads(1)
    >>> gradclip.get_num_threads()
    1
    >>> gradclip.set_num_threads(before)
    """
    global _wanted
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(f"the number of threads must be an integer, not {n!r}")
    n = n.__index__()
    if n < 1:
        raise ValueError(f"the number of threads must be at least 1, not {n}")
    _wanted = n
    machine.set_threads(min(n, _affinity()) if machine.openmp_version else 1)


def get_num_threads() -> int:
    """The number of threads that was set, or the default.

    Examples
    --------
    >>> import gradclip
    >>> gradclip.get_num_threads() >= 1
    True
    """
    return _wanted


@contextmanager
def num_threads(n: int) -> Iterator[None]:
    """`set_num_threads` for the length of a ``with`` block.

    Parameters
    ----------
    n : int
        At least 1.

    Examples
    --------
    >>> import gradclip
    >>> with gradclip.num_threads(1):
    ...     gradclip.get_num_threads()
    1
    """
    before = _wanted
    set_num_threads(n)
    try:
        yield
    finally:
        set_num_threads(before)


_wanted = 1
set_num_threads(_default())
