"""The factor of a step, in the midst of a compiled function: this library reads the memory that XLA computed in.

JAX calls Python there in two ways. `buffer_callback` shows the memory itself, by JAX's foreign function interface.
`pure_callback` makes arrays of JAX's first, which takes longer than to clip: it serves other devices, and versions of JAX that
have no other. A foreign function of our own would be as fast as the first, and bound to the layout of JAX's structs."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._core.arguments import number
from .._core.call import Request
from .._core.engine import HOST
from .._core.options import Options
from .._leaves import Leaves, pytree
from ..errors import NonFiniteGradientError

try:
    from jax.experimental.buffer_callback import buffer_callback
except ImportError:  # before JAX 0.6.1
    buffer_callback = None

DTYPES = frozenset({"float16", "bfloat16", "float32", "float64", "complex64", "complex128"})
TINY, HALFWAY = 2.0**-100, 2.0**-64  # a factor below the first is the product of two that are no subnormal numbers


class Decision(NamedTuple):
    """What was decided of a step: updates are multiplied by `factor` and by `rest`, which is 1 unless the factor is tiny."""

    factor: Any
    rest: Any
    norm: Any
    max_norm: Any
    scale: Any
    nonfinite: Any
    skipped: Any


def decided(updates: Any, max_norm: Any, options: Options) -> Decision:
    """Return what is decided of updates, whose values may be known later only."""
    pairs = jax.tree_util.tree_flatten_with_path(updates)[0]
    names = ["/".join(str(pytree.name_of(key)) for key in path) or "updates" for path, _ in pairs]
    leaves = [jnp.asarray(leaf) for _, leaf in pairs]
    for name, leaf in zip(names, leaves, strict=True):
        if str(leaf.dtype) not in DTYPES:
            raise TypeError(f"{name}: dtype {leaf.dtype} is not one of {', '.join(sorted(DTYPES))}")
    threshold = jnp.asarray(max_norm, float)
    if threshold.ndim:
        raise TypeError(f"max_norm must be a number, not an array of shape {threshold.shape}")
    found = _finder(tuple(names), None if isinstance(max_norm, jax.Array) else float(max_norm), options, threshold.dtype)
    made = Decision(*found(threshold, *leaves))
    return made._replace(nonfinite=made.nonfinite.astype(jnp.int32), skipped=made.skipped > 0)


@lru_cache(256)  # outside of a compiled function, JAX compiles a call of Python once for each object that it is given
def _finder(names: tuple[str, ...], max_norm: float | None, options: Options, dtype: Any) -> Any:
    """The function of a threshold and leaves that finds the numbers of a Decision once their values are there."""
    ask, shape = partial(_ask, names, max_norm, options), jax.ShapeDtypeStruct((len(Decision._fields),), dtype)

    def fill(_: Any, out: Any, *operands: Any) -> None:
        np.asarray(out)[...] = ask(*operands)

    def copied(*operands: Any) -> Any:
        return jax.pure_callback(ask, shape, *operands, vmap_method="sequential")

    shown = copied if buffer_callback is None else buffer_callback(fill, shape, vmap_method="sequential")
    found = jax.custom_jvp(lambda *operands: jax.lax.platform_dependent(*operands, cpu=shown, default=copied))
    found.defjvp(_refuse_derivative)
    return found


def _ask(names: tuple[str, ...], max_norm: float | None, options: Options, threshold: Any, *leaves: Any) -> Any:
    """Measure and decide; returns the numbers of a Decision as an array of the dtype of `threshold`.

    max_norm : the threshold, if it is known before and need not be rounded to the dtype of `threshold`
    """
    threshold = np.asarray(threshold)
    request = Request(options, number("max_norm", float(threshold) if max_norm is None else max_norm, 0.0))
    request.to = read = Leaves([np.asarray(leaf) for leaf in leaves])
    try:
        report, _ = request.decide(HOST, read)
    except NonFiniteGradientError as error:
        told = NonFiniteGradientError(names[int(error.path)], error.index, error.count, error.value)
        raise FloatingPointError(f'{told}; nonfinite="zero", "skip" or "propagate" goes on') from None
    rest = HALFWAY if 0 < report.scale < TINY else 1.0
    numbers = [report.scale / rest, rest, report.norm, request.threshold, report.scale, report.nonfinite, report.skipped]
    with np.errstate(over="ignore", under="ignore"):
        return np.array(numbers, threshold.dtype)


def _refuse_derivative(primals: Any, tangents: Any) -> Any:
    """Raise the error that there is no derivative."""
    raise TypeError("gradclip.jax.clip_by_global_norm has no derivative; use optax.clip_by_global_norm where you need one")
