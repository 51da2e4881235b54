"""Whom a rank speaks with: communicators of mpi4py and process groups of PyTorch, neither of which is imported here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from .._core.arguments import Words

SUM, MAX = "SUM", "MAX"


class Peers(Protocol):
    """The ranks of one communicator, as far as a call uses them."""

    rank: int
    size: int

    def start(self, words: Words, op: str) -> Callable[[], Words]:
        """Start to reduce int64 words over all ranks by SUM or MAX; returns the function that waits for the result."""


class Alone:
    """The one rank of a call without `comm`."""

    rank, size = 0, 1

    def start(self, words: Words, op: str) -> Callable[[], Words]:
        return lambda: words


class MPIPeers:
    """The ranks of a communicator of mpi4py."""

    def __init__(self, mpi: Any, comm: Any) -> None:
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self._mpi, self._comm = mpi, comm

    def start(self, words: Words, op: str) -> Callable[[], Words]:
        result: Words = words.copy()
        pending = self._comm.Iallreduce(self._mpi.IN_PLACE, result, getattr(self._mpi, op))

        def wait() -> Words:
            pending.Wait()
            return result

        return wait


class TorchPeers:
    """The ranks of a process group of PyTorch. The words travel on the GPU of this rank where the group takes no others."""

    def __init__(self, torch: Any, distributed: Any, group: Any) -> None:
        self.rank, self.size = distributed.get_rank(group), distributed.get_world_size(group)
        self._torch, self._distributed, self._group = torch, distributed, group
        self._device = "cuda" if distributed.get_backend(group) == "nccl" else "cpu"

    def start(self, words: Words, op: str) -> Callable[[], Words]:
        tensor = self._torch.from_numpy(words.copy()).to(self._device)
        pending = self._distributed.all_reduce(tensor, getattr(self._distributed.ReduceOp, op), self._group, async_op=True)

        def wait() -> Words:
            pending.wait()
            result: Words = tensor.cpu().numpy()
            return result

        return wait


class MeshPeers:
    """The ranks of a mesh, each of whose dimensions has a process group for every line along it.

    Words are reduced along one dimension after another: integers may be added in any order."""

    def __init__(self, lines: Sequence[Peers], rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self._lines = lines

    def start(self, words: Words, op: str) -> Callable[[], Words]:
        first, *others = self._lines
        pending = first.start(words, op)

        def wait() -> Words:
            result = pending()
            for line in others:
                result = line.start(result, op)()
            return result

        return wait


def peers_of(comm: Any) -> Peers:
    """The ranks of a communicator or process group; None stands for this rank alone."""
    if comm is None:
        return Alone()
    if isinstance(comm, MeshPeers):
        return comm
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and isinstance(comm, mpi.Comm):
        if comm == mpi.COMM_NULL:
            raise ValueError("comm is MPI's COMM_NULL: this process is in no group")
        if not isinstance(comm, mpi.Intracomm):
            raise TypeError("comm must be an intracommunicator: an intercommunicator reduces the other group's numbers")
        return MPIPeers(mpi, comm)
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available():
        if comm is distributed.GroupMember.NON_GROUP_MEMBER:
            raise ValueError("comm is PyTorch's NON_GROUP_MEMBER: this process is in no group")
        if isinstance(comm, distributed.ProcessGroup):
            return TorchPeers(sys.modules["torch"], distributed, comm)
    raise TypeError(
        "comm must be a communicator of mpi4py (MPI.COMM_WORLD) or a process group of PyTorch (torch.distributed.group.WORLD), "
        f"not {type(comm).__name__}"
    )
