"""The processes that share out a batch: those that mpiexec has started, or this one alone."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from .npy import Array

T = TypeVar("T")

# What the common starters tell each process: Open MPI; MPICH, Intel's and Microsoft's.
_STARTED = "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"


class Ranks:
    """The ranks of a communicator of mpi4py; without one, this process alone.

    Attributes
    ----------
    comm : mpi4py communicator or None
    rank, size : int
        The number of this process, from 0 on, and how many there are.
    """

    rank: int
    size: int

    def __init__(self, comm: Any = None) -> None:
        self.comm = comm
        self.rank, self.size = (0, 1) if comm is None else (comm.Get_rank(), comm.Get_size())

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return the items that are this rank's: those of all ranks, one after the other, are `items`."""
        first, end = (len(items) * rank // self.size for rank in (self.rank, self.rank + 1))
        return items[first:end]

    def rows(self, array: Array) -> Array:
        """Return the rows of an array that are this rank's, a view."""
        view: Array = np.array_split(array, self.size)[self.rank]
        return view

    def together(self, items: list[T]) -> list[T]:
        """Return the items of all ranks, in the order of these."""
        return items if self.comm is None else [item for of_rank in self.comm.allgather(items) for item in of_rank]


def started_together() -> Ranks:
    """Return the ranks that mpiexec has started this process with; or raise an ImportError if mpi4py is missing."""
    if not any(int(os.environ.get(name, "1")) > 1 for name in _STARTED):
        return Ranks()
    try:
        mpi: Any = importlib.import_module("mpi4py.MPI")
    except ImportError as error:
        raise ImportError(f'under mpiexec the demo needs mpi4py: pip install "gradclip[mpi]" ({error})') from error
    return Ranks(mpi.COMM_WORLD)
