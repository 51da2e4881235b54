"""DTensors: which ranks one norm runs over, and which of them counts a gradient. Imported with the first DTensor.

A gradient is the whole tensor that a DTensor stands for. Each rank holds a shard of it, or a replica: along each dimension of
its mesh on which it is replicated, the first rank counts. A plain tensor beside DTensors is a replica on every rank."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, TypeAlias, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.device_mesh import DeviceMesh

from .._core.call import Request, options_of, serve_in_place, tell_ranks
from .._core.engine import HOST, on_devices
from .._core.options import Options
from .._cpu.sums import Sums
from .._leaves import Leaves
from .._ranks.comms import MeshPeers, peers_of
from .._ranks.exchange import Part, Session
from ..report import ClipReport
from .tensors import PLAIN, as_tensor, has_cupy, plain

try:
    from torch.distributed.tensor import DTensor, Replicate
except ImportError:  # PyTorch 2.4
    from torch.distributed._tensor import DTensor, Replicate  # type: ignore[attr-defined,unused-ignore]

Result = TypeVar("Result")
Serve: TypeAlias = Callable[[list[Any], Options], ClipReport]

DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128}


def clip(
    make: Callable[[Options, float], Request], parameters: Sequence[Tensor], grads: list[Tensor], max_norm: Any, order: Any
) -> Tensor | None:
    """Clip the gradients of parameters, and return their norm as PyTorch does; None if all ranks leave this to PyTorch.

    make : returns the Request of Options and a threshold; max_norm, order : as the caller gave them"""
    sharing = Sharing([*parameters, *grads])
    threshold, order = sharing.numbers(max_norm, order)
    if not (threshold >= 0 and order > 0):
        return None

    def serve(leaves: list[Any], options: Options) -> ClipReport:
        return serve_in_place(leaves, make(options, threshold))

    report = sharing.clip(grads, {"ord": order, "nonfinite": "propagate"}, serve)
    return _as_norm(report.norm, grads or parameters)


def measure(tensors: list[Tensor], order: Any) -> tuple[Sums, Tensor] | None:
    """Return the Sums of all ranks, and the norm as PyTorch returns it; None if all ranks leave this to PyTorch."""
    sharing = Sharing(tensors)
    _, order = sharing.numbers(0.0, order)
    if not order > 0:
        return None

    def serve(found: list[Any], options: Any) -> Sums:
        leaves = Leaves(found)
        engine = on_devices(False) if leaves.devices() else HOST
        request = Request(options, math.inf)
        request.to = leaves
        sums: Sums = options.measure(request, engine, leaves)
        return sums

    sums = sharing.served(tensors, {"ord": order, "nonfinite": "propagate"}, serve, write=False)
    return sums, _as_norm(sums.norm(), tensors)


def _as_norm(norm: float, tensors: Sequence[Tensor]) -> Tensor:
    """Return the norm of tensors as PyTorch does: replicated over the mesh where all of them are DTensors on one."""
    found = as_tensor(norm, tensors)
    mesh, *others = {tensor.device_mesh if type(tensor) is DTensor else None for tensor in tensors}
    return found if others or mesh is None else DTensor.from_local(found, mesh, [Replicate()] * mesh.ndim, run_check=False)


class Sharing:
    """How this rank shares tensors with others, some of which are DTensors.

    One norm runs over the ranks of the largest mesh, if it holds all the others; else over those of all meshes. Where these are
    parts of a larger mesh, it is the part that spans them, so that all ranks come to the same ones.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        found = {id(mesh): mesh for mesh in (t.device_mesh for t in tensors if type(t) is DTensor)}
        meshes = tuple(dict.fromkeys(found.values()))  # which may be equal
        ranks, firsts = _span(meshes)
        self._rank, self._lowest = dist.get_rank(), min(ranks)
        if self._rank not in ranks:
            raise ValueError(f"this process, rank {self._rank}, is in none of the meshes of these DTensors: {meshes}")
        first = dict(zip(meshes, firsts, strict=True))
        self._counts: dict[Any, bool] = {(place, ()): first[mesh] for place, mesh in found.items()}
        self._peers = MeshPeers([peers_of(line) for line in _lines(ranks, meshes)], self._rank, len(ranks))

    def numbers(self, max_norm: Any, order: Any) -> tuple[float, float]:
        """Return a threshold and an order as floats. A rank that cannot fails on all ranks.

        PyTorch's own functions serve some of them. So that none of the ranks waits there for others here, all compare these."""
        try:
            found = float(max_norm), float(order)
        except BaseException as error:
            tell_ranks({"comm": self._peers}, error)
            raise
        if not (found[0] >= 0 and found[1] > 0):
            with Session(self._peers) as session:
                session.merge(Part(), 2.0, zlib.crc32(repr(found).encode()))
        return found

    def owned(self, tensor: Tensor, name: str) -> bool:
        """Return whether this rank counts its part of a gradient.

        name : what a message calls the gradient"""
        if type(tensor) is not DTensor:
            return bool(self._rank == self._lowest)
        key = id(tensor.device_mesh), tensor.placements
        if key not in self._counts:
            check_whole(tensor, name)
            places = tensor.device_mesh.get_coordinate()
            found = places is not None and self._counts[key[0], ()]  # None: this rank is not in the mesh
            self._counts[key] = found and not any(i for i, p in zip(places or (), key[1], strict=True) if p.is_replicate())
        return self._counts[key]

    def clip(self, grads: list[Any], norm: dict[str, Any], serve: Serve, write: bool = True) -> ClipReport:
        """Return the report of a call that clips gradients, as `served` has it; autograd is told of what is written."""
        report = self.served(grads, norm, serve)
        if report.clipped and write:
            announce(_flat(grads))
        return report

    def served(
        self, grads: list[Any], norm: dict[str, Any], serve: Callable[[list[Any], Options], Result], write: bool = True
    ) -> Result:
        """Return what a call returns that is given this rank's parts, and the Options of a norm over all ranks.

        If it fails on one rank, it fails on all.

        grads : a list of gradients, or of lists of them; None is left out
        norm : the keywords of the norm"""
        norm = {**norm, "comm": self._peers}
        try:
            owned = _each(self.owned, grads)
            values = set(_flat(owned))
            norm["owned"] = values.pop() if len(values) == 1 else owned  # the usual cases, and the quick ones
            options: Any = options_of(norm)
            with options.session:
                return serve(parts(grads, write, True), options)
        except BaseException as error:
            tell_ranks(norm, error)
            raise


def viewable(tensors: Sequence[Tensor]) -> bool:
    """Return whether there are DTensors among tensors, and the library can view what a rank holds of all of them.

    This depends on nothing that may differ between ranks."""
    types = set(map(type, tensors))
    if DTensor not in types or not types <= {DTensor, *PLAIN}:
        return False
    kinds = {(tensor.dtype, tensor.device.type) for tensor in tensors}
    return all(dtype in DTYPES and (device == "cpu" or (device == "cuda" and has_cupy())) for dtype, device in kinds)


def check_whole(tensor: Tensor, name: str) -> None:
    """Raise a TypeError if what ranks hold of a gradient are terms of it, and not parts."""
    if type(tensor) is DTensor and any(p.is_partial() for p in tensor.placements):
        raise TypeError(
            f"gradient {name} of shape {tuple(tensor.shape)} has the placements {tensor.placements}: ranks hold terms that are "
            "yet to be reduced, and what holds for terms does not hold for their sum; call redistribute() first"
        )


def parts(grads: list[Any], write: bool = True, terms: bool = False) -> list[Any]:
    """Return a list of gradients, or of lists of them, as what this rank holds of each: the same memory.

    terms : whether they may be terms that are yet to be reduced"""
    if not terms:
        _each(check_whole, grads)
    return _each(lambda tensor, _: _part(tensor, write), grads)


def _part(tensor: Tensor, write: bool) -> Tensor:
    """Return what this rank holds of a tensor, as the library takes it."""
    if type(tensor) is DTensor:
        tensor = tensor._local_tensor
        if isinstance(tensor, AsyncCollectiveTensor):
            tensor = tensor.wait()
    usual = tensor.layout is torch.strided and not tensor.requires_grad and not tensor.is_conj()
    return tensor if usual else plain(tensor, write)


def _flat(values: list[Any]) -> Iterator[Any]:
    """Yield what stands in a list, or in lists of it, other than None."""
    for value in values:
        if type(value) is list:
            yield from _flat(value)
        elif value is not None:
            yield value


def _each(function: Callable[[Tensor, str], Any], grads: list[Any], name: str = "") -> list[Any]:
    """Return what a function makes of each gradient in a list, or in lists of a list, and of the place where it stands."""
    return [
        _each(function, grad, f"{name}{i}/") if type(grad) is list else None if grad is None else function(grad, f"{name}{i}")
        for i, grad in enumerate(grads)
    ]


def whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor that a DTensor stands for, and any other as it is."""
    return tensor.full_tensor() if type(tensor) is DTensor else tensor


def announce(tensors: Iterable[Tensor]) -> None:
    """Count up the versions of DTensors whose parts were written: autograd looks at these."""
    for tensor in tensors:
        if type(tensor) is DTensor:
            torch.autograd.graph.increment_version(tensor)


@lru_cache(32)
def _span(meshes: tuple[DeviceMesh, ...]) -> tuple[frozenset[int], list[bool]]:
    """Return the ranks that a norm over tensors on some meshes runs over, and of each mesh whether its ranks count.

    Parts of one mesh along the same dimensions hold the same: the first of them counts."""
    held = [_ranks(mesh) for mesh in meshes]
    whole = max(held, key=len)
    if not all(ranks <= whole for ranks in held):
        roots: dict[DeviceMesh, frozenset[int]] = {}
        for mesh, ranks in zip(meshes, held, strict=True):
            roots[_root(mesh)] = roots.get(_root(mesh), frozenset()) | ranks
        spans = (root.mesh[_index(root, ranks)].flatten().tolist() for root, ranks in roots.items())
        whole = frozenset().union(*spans)
    firsts = [min(whole & _ranks(_root(mesh))) in ranks for mesh, ranks in zip(meshes, held, strict=True)]
    return whole, firsts


def _ranks(mesh: DeviceMesh) -> frozenset[int]:
    """Return the ranks of a mesh."""
    return frozenset(mesh.mesh.flatten().tolist())


def _root(mesh: DeviceMesh) -> DeviceMesh:
    """Return the mesh that a mesh was cut from; or this one."""
    if hasattr(mesh, "_get_root_mesh"):
        return mesh._get_root_mesh()
    from torch.distributed.device_mesh import _mesh_resources

    return _mesh_resources.get_root_mesh(mesh)  # before PyTorch 2.10


def _index(mesh: DeviceMesh, ranks: frozenset[int]) -> tuple[int | slice, ...]:
    """Return the index of the part of a mesh that spans the dimensions along which some ranks differ."""
    places = torch.isin(mesh.mesh, torch.tensor(sorted(ranks), dtype=mesh.mesh.dtype)).nonzero()
    return tuple(int(line[0]) if bool((line == line[0]).all()) else slice(None) for line in places.T)


def _lines(ranks: frozenset[int], meshes: Sequence[DeviceMesh]) -> list[Any]:
    """Return the process groups that lead from each of some ranks to all of them, one after the other."""
    if len(ranks) == dist.get_world_size():
        return [dist.group.WORLD]
    for mesh in sorted(meshes, key=lambda mesh: mesh.ndim):
        if _ranks(mesh) == ranks:
            return [mesh.get_group(i) for i in range(mesh.ndim)]
    root = _root(meshes[0])
    index = _index(root, ranks)
    if frozenset(root.mesh[index].flatten().tolist()) == ranks:
        return [root.get_group(i) for i, along in enumerate(index) if isinstance(along, slice)]
    raise ValueError(
        f"the meshes of these DTensors hold the ranks {sorted(ranks)}, and no mesh or part of one holds just these: {meshes}"
    )
