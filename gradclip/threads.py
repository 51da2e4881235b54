"""How many threads the passes use: this library alone, never the OpenMP runtime's own setting."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ._cpu import machine

MOST = 2**31 - 1  # a C int


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


def _from_environment():
    """GRADCLIP_NUM_THREADS, or 0 where it is not set."""
    wanted = os.environ.get("GRADCLIP_NUM_THREADS")
    if not wanted:
        return 0
    if not wanted.isascii() or not wanted.isdigit() or int(wanted) < 1:
        raise ImportError(f"GRADCLIP_NUM_THREADS must be a positive integer, not {wanted!r}")
    return _checked(int(wanted))


def _checked(n):
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(f"the number of threads must be an integer, not {n!r}")
    n = n.__index__()
    if n < 1:
        raise ValueError(f"the number of threads must be at least 1, not {n}")
    return min(n, MOST)


def set_num_threads(n: int) -> None:
    """Let the passes use up to `n` threads, from now on, in the whole process.

    A call never uses more than OpenMP itself would at that moment (``OMP_NUM_THREADS``, threadpoolctl, PyTorch's
    ``torch.set_num_threads`` where it shares the runtime), nor more than the processors that the process may run on; and
    one thread in a forked process. Results do not depend on it.

    Parameters
    ----------
    n : int
        At least 1. Inside a `num_threads` block that block's number goes first.

    Examples
    --------
    >>> import gradclip
    >>> before = gradclip.get_num_threads()
    >>> gradclip.set_num_threads(1)
    >>> gradclip.get_num_threads()
    1
    >>> gradclip.set_num_threads(before)
    """
    machine.set_wanted(_checked(n))


def get_num_threads() -> int:
    """The number of threads that was set, or else what a large call would use now.

    Examples
    --------
    >>> import gradclip
    >>> gradclip.get_num_threads() >= 1
    True
    """
    return machine.wanted() or machine.allowed_threads()


@contextmanager
def num_threads(n: int) -> Iterator[None]:
    """Let the calls of a ``with`` block use up to `n` threads.

    The number is a context variable: it holds for the running thread or asyncio task alone. A thread that is started
    in the block has the number of the process, unless it is given a copy of the context, as `asyncio.to_thread` does.

    Parameters
    ----------
    n : int
        At least 1; bounded as in `set_num_threads`.

    Examples
    --------
    >>> import gradclip
    >>> with gradclip.num_threads(1):
    ...     gradclip.get_num_threads()
    1
    """
    before = machine.chosen.get()
    machine.chosen.set(_checked(n))
    try:
        yield
    finally:
        machine.chosen.set(before)  # not reset(): a generator may be closed in another context


def describe() -> str:
    """How many threads a large call uses now, and every number that bounds it."""
    used = machine.team()  # first: it finds out whether the system refuses them
    bounds = [f"{machine.wanted()} set" if machine.wanted() else "none set"]
    if not machine.wanted() and _limit:
        bounds.append(f"container's quota {_limit}")
    bounds += [f"OpenMP {machine.openmp_threads()}", f"processors {machine.processors()}"]
    return f"{used} ({', '.join(bounds)}{'; ' if machine.alone() else ''}{machine.alone()})"


_limit = _quota()
if _limit:
    machine.set_quota(_limit)
machine.set_wanted(_from_environment())
