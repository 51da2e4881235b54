"""PyTorch's functions that clip gradients, with gradclip's norm and speed: changing the import is the whole migration.

Importing gradclip does not import this module, nor PyTorch."""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError(f"gradclip.torch needs PyTorch: pip install torch ({error})") from error

from .attaching import Attached, attach
from .clip_grad import clip_grad_norm_, clip_grad_value_, clip_grads_with_norm_, get_total_norm
from .patching import Patch, patch

__all__ = [
    "Attached",
    "Patch",
    "attach",
    "clip_grad_norm_",
    "clip_grad_value_",
    "clip_grads_with_norm_",
    "get_total_norm",
    "patch",
]
