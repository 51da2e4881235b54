"""Tensors as the library takes them, and numbers as PyTorch returns them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache, lru_cache, reduce
from importlib.util import find_spec

import torch
from torch import Tensor

PLAIN = {Tensor, torch.nn.Parameter}


def as_tensor(norm: float, tensors: Sequence[Tensor]) -> Tensor:
    """A norm as PyTorch returns it: on the device of the first tensor, of the widest dtype."""
    dtype, device = _widest(frozenset([tensor.dtype for tensor in tensors])), tensors[0].device
    try:
        return torch.scalar_tensor(norm, dtype=dtype, device=device)
    except RuntimeError:  # beyond the range of the dtype
        return torch.scalar_tensor(norm, dtype=torch.float64, device=device).to(dtype)


@lru_cache(64)
def _widest(dtypes: frozenset[torch.dtype]) -> torch.dtype:
    """The dtype of a norm over tensors of these dtypes."""
    return reduce(torch.promote_types, dtypes).to_real()


@cache
def has_cupy() -> bool:
    """Whether the library can view memory on a GPU. To find out that it cannot takes longer than a call."""
    return "cupy" in sys.modules or find_spec("cupy") is not None


def plain(tensor: Tensor, write: bool) -> Tensor:
    """A tensor of the same memory that the library takes: without its graph, or the values of a sparse one.

    A sparse tensor that is to be written, and stores an element in parts, gets their sum first."""
    with torch.no_grad():
        if tensor.layout is not torch.sparse_coo:
            tensor = tensor.detach()
            return tensor.conj() if tensor.is_conj() else tensor  # a factor, and a norm, is that of the conjugate too
        if tensor.is_coalesced():
            return tensor.values().detach()
        whole = tensor.coalesce()
        return (tensor.copy_(whole) if write else whole).values().detach()
