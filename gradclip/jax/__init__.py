"""Clipping inside of compiled functions of JAX, as a transformation of Optax's.

Importing gradclip does not import this module, nor JAX, nor Optax."""

try:
    import jax as _jax  # noqa: F401
    import optax as _optax  # noqa: F401
except ImportError as error:
    raise ImportError(f'gradclip.jax needs JAX and Optax: pip install "gradclip[jax]" ({error})') from error

from .clipping import ClipState, clip_by_global_norm

__all__ = ["ClipState", "clip_by_global_norm"]
