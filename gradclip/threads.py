"""The number of threads of this library. The setting of the OpenMP runtime, which others share, is never changed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ._cpu import machine

MOST = 2**31 - 1  # the largest int of C


def _quota(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the number of CPUs that the container's quota allows, rounded up; None if there is no quota."""
    for folder, names in ((root, ["cpu.max"]), (root / "cpu", ["cpu.cfs_quota_us", "cpu.cfs_period_us"])):
        try:
            quota, period = " ".join((folder / name).read_text() for name in names).split()
            if quota != "max" and int(quota) > 0:
                return -(-int(quota) // int(period))
        except (OSError, ValueError):
            continue
    return None


def _from_environment() -> int:
    """Return the number in GRADCLIP_NUM_THREADS; 0 if that is not set."""
    wanted = os.environ.get("GRADCLIP_NUM_THREADS")
    if not wanted:
        return 0
    if not wanted.isascii() or not wanted.isdigit() or int(wanted) < 1:
        raise ImportError(f"GRADCLIP_NUM_THREADS must be a positive integer, not {wanted!r}")
    return _checked(int(wanted))


def _checked(n: Any) -> int:
    """Return a number of threads as an int of C; raise an error if it is no whole number above 0."""
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(f"the number of threads must be an integer, not {n!r}")
    count: int = n.__index__()
    if count < 1:
        raise ValueError(f"the number of threads must be at least 1, not {count}")
    return min(count, MOST)


def set_num_threads(n: int) -> None:
    """Set how many threads a call may use, from now on, in the whole process.

    A call never uses more threads than OpenMP would at that moment. That is set by ``OMP_NUM_THREADS``, by threadpoolctl,
    and by ``torch.set_num_threads`` if PyTorch shares the runtime. Nor does it use more than the processors that the process
    may run on, and in a forked process it uses one. Results do not depend on the number.

    Parameters
    ----------
    n : int
        The number, at least 1. In a ``with num_threads(...)`` block the number of that block holds instead.

    Raises
    ------
    TypeError, ValueError
        `n` is no whole number, or is below 1.

    See Also
    --------
    num_threads : Set the number for a ``with`` block.
    get_num_threads : The number that is set.

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
    """Return the number of threads that was set; if none was, the number that a large call would use now.

    Returns
    -------
    int
        The number, at least 1.

    See Also
    --------
    set_num_threads : Set the number for the process.
    show_config : The number and everything that bounds it, as text.

    Examples
    --------
    >>> import gradclip
    >>> gradclip.get_num_threads() >= 1
    True
    """
    return machine.wanted() or machine.allowed_threads()


@contextmanager
def num_threads(n: int) -> Iterator[None]:
    """Set how many threads the calls in a ``with`` block may use.

    The number holds for the running thread or asyncio task alone, because it is a context variable. A thread that is started
    in the block uses the number of the process, unless it is given a copy of the context, as `asyncio.to_thread` does.

    Parameters
    ----------
    n : int
        The number, at least 1. A call uses fewer threads for the reasons that `set_num_threads` names.

    Yields
    ------
    None
        There is nothing to be taken by ``as``.

    Raises
    ------
    TypeError, ValueError
        `n` is no whole number, or is below 1.

    See Also
    --------
    set_num_threads : Set the number for the process.

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
        machine.chosen.set(before)  # not reset(), which fails if a generator is closed in another context


def describe() -> str:
    """Return as text how many threads a large call uses now, and every number that bounds it."""
    used = machine.team()  # first, because it finds out whether the system refuses threads
    bounds = [f"{machine.wanted()} set" if machine.wanted() else "none set"]
    if not machine.wanted() and _limit:
        bounds.append(f"container's quota {_limit}")
    bounds += [f"OpenMP {machine.openmp_threads()}", f"processors {machine.processors()}"]
    return f"{used} ({', '.join(bounds)}{'; ' if machine.alone() else ''}{machine.alone()})"


def describe_sharing() -> str:
    """Return as text whether large passes of the calling thread come late, and what is done then."""
    teams, late, apart, busy, workers = machine.sharing()
    if teams + apart == 0:
        return "unknown: no large pass yet"
    if not busy:
        return f"no ({late} of {teams} large passes came late; {apart} did not wait for threads)"
    who = f"{workers} worker{'s' * (workers > 1)} that it does not wait for" if workers else "no others"
    return f"yes ({late} of {teams} large passes came late; {apart} did not wait for threads; the next one has {who})"


_limit = _quota()
if _limit:
    machine.set_quota(_limit)
machine.set_wanted(_from_environment())
