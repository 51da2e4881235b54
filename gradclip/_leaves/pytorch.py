"""Tensors of PyTorch's: which may be used, and what PyTorch is told. It is never imported here."""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any


def is_tensor(node: Any) -> bool:
    """Whether something is a tensor, of a subclass too; without an import, and before PyTorch is imported as a whole."""
    return is_tensor_type(type(node))


def is_tensor_type(cls: Any) -> bool:
    """Whether objects of a type are tensors."""
    return _is_tensor_type(cls)


@lru_cache(256)
def _is_tensor_type(cls: Any) -> bool:
    return any(c.__name__ == "Tensor" and c.__module__ == "torch" for c in cls.__mro__)


def is_cuda_tensor(node: Any) -> bool:
    """Whether something is a tensor on a GPU."""
    return is_tensor(node) and bool(node.is_cuda)


def is_module(node: Any) -> bool:
    """Whether something is a `torch.nn.Module`."""
    return _is_of_nn(node, "Module")


def is_parameter(node: Any) -> bool:
    """Whether something is a `torch.nn.Parameter`."""
    return _is_of_nn(node, "Parameter")


def holds_weights(node: Any) -> bool:
    """Whether something is a `torch.nn.Parameter`, or a module of them."""
    return is_module(node) or is_parameter(node)


def _is_of_nn(node: Any, name: str) -> bool:
    nn = getattr(sys.modules.get("torch"), "nn", None)
    return nn is not None and isinstance(node, getattr(nn, name))


def plain(tensor: Any, write: bool) -> Any:
    """Return the tensor without its graph; or raise a TypeError if it has no plain memory, or must not be written."""
    torch = sys.modules["torch"]
    if write and tensor.requires_grad:
        raise TypeError("it requires grad: a parameter or part of a graph; pass p.grad, or p.data if it is to be changed")
    tensor = tensor.detach()
    if tensor.layout != torch.strided:
        raise TypeError(f"layout {tensor.layout}; only strided tensors have plain memory")
    if tensor.is_conj() or tensor.is_neg():
        raise TypeError("a lazily conjugated or negated view; pass .resolve_conj().resolve_neg()")
    _check_storage(tensor)
    return tensor


def reach_of(tensor: Any) -> int:
    """How many elements of memory lie between the first and the last of a tensor that has some, both included."""
    if tensor.is_contiguous():
        return int(tensor.numel())
    reach: int = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return reach


def _check_storage(tensor: Any) -> None:
    """Raise a TypeError if elements of a tensor are not in its storage: NumPy would make memory of its own for them."""
    storage = tensor.untyped_storage()
    # The storage's own device is what a fake tensor cannot hide, and slow to ask for where there is memory on a GPU.
    if not (tensor.is_cuda and tensor.data_ptr()) and storage.device.type == "meta":
        raise TypeError("a meta or fake tensor, which has no memory")
    needed = (tensor.storage_offset() + reach_of(tensor)) * tensor.element_size() if tensor.numel() else 0
    if storage.nbytes() < needed:
        raise TypeError(f"its storage was released or cut short: it holds {storage.nbytes()} of {needed} bytes")


def announce(tensors: list[Any]) -> None:
    """Count up the versions of tensors that are about to be written.

    By its version a backward pass that still needs what a tensor holds notices the write."""
    tell = getattr(sys.modules["torch"].autograd.graph, "increment_version", _write_nothing)
    try:
        tell(tensors)
    except (AttributeError, TypeError, RuntimeError):  # older versions take no list
        for tensor in tensors:
            if not tensor.is_inference():  # those have no version
                tell(tensor)


def _write_nothing(tensor: Any) -> None:
    """Write no element of a tensor in place, which counts as a write."""
    tensor.detach().unsqueeze(0)[:0].zero_()
