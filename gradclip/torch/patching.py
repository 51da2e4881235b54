"""`patch`: PyTorch's functions are replaced by those of this package, for libraries that look them up when they call."""

from __future__ import annotations

import threading
from types import ModuleType, TracebackType

import torch.nn.utils
from torch.nn.utils import clip_grad as _clip_grad

from . import clip_grad as _ours

_NAMES = "clip_grad_norm_", "clip_grad_value_", "get_total_norm", "clip_grads_with_norm_"

_lock = threading.Lock()
_patches: set[Patch] = set()  # which are in force: the first puts our functions in, the last takes them out
_before: list[tuple[ModuleType, str, object]] = []  # what our functions took the place of


class Patch:
    """PyTorch's functions are those of `gradclip.torch` until `undo`, or until the end of a ``with`` block.

    Patches may be nested, and made by several threads at once: the last one that is undone brings PyTorch's functions back.

    See Also
    --------
    patch : Makes one.

    Examples
    --------
    >>> import torch, gradclip.torch
    >>> patched = gradclip.torch.patch()
    >>> torch.nn.utils.clip_grad_norm_ is gradclip.torch.clip_grad_norm_
    True
    >>> patched.undo()
    >>> torch.nn.utils.clip_grad_norm_ is gradclip.torch.clip_grad_norm_
    False
    """

    def __init__(self) -> None:
        with _lock:
            if not _patches:
                _put()
            _patches.add(self)

    def undo(self) -> None:
        """Bring PyTorch's functions back, if no other patch is in force. A second call does nothing."""
        with _lock:
            if self in _patches:
                _patches.remove(self)
                if not _patches:
                    _take_out()

    def __enter__(self) -> Patch:
        """Return the patch, which is in force already."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Undo the patch."""
        self.undo()


def patch() -> Patch:
    """Put the functions of this module into `torch.nn.utils`: for libraries that call them from there.

    Accelerate, the Trainer of transformers, Lightning and timm look them up in `torch.nn.utils` each time they call them. Code
    that has done ``from torch.nn.utils import clip_grad_norm_`` keeps what it has imported.

    Returns
    -------
    Patch
        For a ``with`` block, or with a method ``undo``. Without either the functions stay for the rest of the process.

    Examples
    --------
    >>> import torch, gradclip.torch
    >>> weight = torch.nn.Parameter(torch.ones(4))
    >>> (1e20 * weight).sum().backward()  # in float32 the norm is finite, and its square is not
    >>> with gradclip.torch.patch():
    ...     norm = torch.nn.utils.clip_grad_norm_([weight], 1.0)
    >>> norm, weight.grad
    (tensor(2.0000e+20), tensor([0.5000, 0.5000, 0.5000, 0.5000]))
    """
    return Patch()


def _put() -> None:
    """Put our functions in the places of PyTorch's: in both modules, under their private names too."""
    for module in (torch.nn.utils, _clip_grad):
        for name in _NAMES:
            for place in (name, f"_{name}"):
                if place in vars(module):
                    _before.append((module, place, vars(module)[place]))
                    setattr(module, place, getattr(_ours, name))


def _take_out() -> None:
    """Bring back what our functions took the place of, except where somebody has put something else since."""
    while _before:
        module, place, function = _before.pop()
        if getattr(module, place, None) is getattr(_ours, place.lstrip("_")):
            setattr(module, place, function)
