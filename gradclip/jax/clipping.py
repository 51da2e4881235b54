"""`clip_by_global_norm`: a transformation of Optax's that clips by the exact norm, compiled or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .._core.arguments import Number, number
from .._core.options import Options
from .deciding import Decision, decided


class ClipState(NamedTuple):
    """What the last step measured and did, as the state of `clip_by_global_norm`.

    All numbers are arrays of no dimension, so that a compiled function can return them. They are float32, unless JAX computes
    in 64 bits: a norm beyond that is Inf here, and the update is clipped by its true norm all the same.

    Parameters
    ----------
    step : jax.Array
        How many updates there were.
    norm : jax.Array
        The norm before clipping.
    max_norm : jax.Array
        The threshold that was used.
    scale : jax.Array
        The factor by which the update was multiplied; 1 where nothing was.
    nonfinite : jax.Array
        How many elements were NaN or Inf.
    skipped : jax.Array
        Whether the step was left out.
    optimizer : Any
        The state of the optimizer that was given; of none, an empty one.

    See Also
    --------
    clip_by_global_norm : Returns it.

    Examples
    --------
    >>> import jax.numpy as jnp, gradclip.jax
    >>> clip = gradclip.jax.clip_by_global_norm(1.0)
    >>> grads = jnp.array([3.0, 4.0])
    >>> _, state = clip.update(grads, clip.init(grads))
    >>> float(state.norm), int(state.step), bool(state.skipped)
    (5.0, 1, False)
    """

    step: Any
    norm: Any
    max_norm: Any
    scale: Any
    nonfinite: Any
    skipped: Any
    optimizer: Any


def clip_by_global_norm(
    max_norm: Number | jax.Array | Callable[[Any], Any],
    optimizer: optax.GradientTransformation | None = None,
    *,
    ord: float = 2,
    eps: float = 0.0,
    nonfinite: Literal["raise", "skip", "zero", "propagate"] = "raise",
    grad_scale: float = 1.0,
    skip_above: Number | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Return a transformation that scales updates by one factor so that their global norm is at most `max_norm`.

    It stands where ``optax.clip_by_global_norm`` does, inside of ``jax.jit`` or outside. Updates are any pytree of floating or
    complex arrays.

    Parameters
    ----------
    max_norm : float, jax.Array or callable
        The threshold >= 0: a number, which may be traced, or a schedule, a function from the number of the step to one.
        Rules of `gradclip.thresholds` keep their history in Python, where a compiled step cannot ask them.
    optimizer : optax.GradientTransformation, optional
        What gets the clipped updates. ``nonfinite="skip"`` and `skip_above` need it, in order to leave out its step: updates
        are 0 then, and its state stays as it was.
    ord : float, default 2
        Which norm: any p > 0, or ``inf``.
    eps : float, default 0
        Added to the norm; 1e-6 gives PyTorch's factor.
    nonfinite : {"raise", "skip", "zero", "propagate"}, default "raise"
        What to do about NaN and Inf: raise a ``jax.errors.JaxRuntimeError`` that names the leaf; leave the step of `optimizer`
        out; make them 0 and clip the rest; or follow IEEE arithmetic.
    grad_scale : float, default 1
        The updates hold the true gradient times this. Norm and threshold speak of the true gradient, and what is returned
        is unscaled.
    skip_above : float, optional
        Leave the step out if its norm is above this number.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        Its state is a `ClipState`.

    Raises
    ------
    TypeError, ValueError
        An argument or, when it is traced, an update cannot be used.

    See Also
    --------
    gradclip.clip_by_global_norm : The same between compiled functions, with all options.

    Notes
    -----
    The norm is exact, whatever the dtypes are. The factor is rounded to float32, unless JAX computes in 64 bits, and XLA
    multiplies by it. On other devices than the CPU each step copies the updates to the host.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optax, gradclip.jax
    >>> optimizer = optax.chain(gradclip.jax.clip_by_global_norm(1.0), optax.sgd(0.5))
    >>> grads = {"w": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
    >>> updates, (clipped, _) = jax.jit(optimizer.update)(grads, optimizer.init(grads))
    >>> {name: leaf.tolist() for name, leaf in updates.items()}, float(clipped.norm)
    ({'b': [-0.4000000059604645], 'w': [-0.30000001192092896, -0.0]}, 5.0)
    """
    options = Options(ord, eps, nonfinite, grad_scale, False, _number_alone("skip_above", skip_above))
    max_norm = _number_alone("max_norm", max_norm)
    skips = options.skip_above is not None or nonfinite == "skip"
    if skips and optimizer is None:
        name = 'nonfinite="skip"' if nonfinite == "skip" else "skip_above"
        raise ValueError(
            f"{name} leaves out the step of an optimizer: give it, as in clip_by_global_norm(1.0, optax.adam(1e-3))"
        )
    if not (callable(max_norm) or isinstance(max_norm, jax.Array)):
        max_norm = number("max_norm", max_norm, 0.0)
    inner = optax.with_extra_args_support(optax.identity() if optimizer is None else optimizer)

    def init(params: Any) -> ClipState:
        zero = jnp.zeros((), float)
        nothing = jnp.zeros((), jnp.int32)
        return ClipState(nothing, zero, zero, zero + 1, nothing, jnp.zeros((), bool), inner.init(params))

    def update(updates: Any, state: ClipState, params: Any = None, **extra: Any) -> tuple[Any, ClipState]:
        threshold = max_norm(state.step) if callable(max_norm) else max_norm
        found = decided(updates, threshold, options)
        clipped = jax.tree.map(lambda leaf: _scaled(leaf, found, options.nonfinite == "zero"), updates)

        def made() -> tuple[Any, Any]:
            result: tuple[Any, Any] = inner.update(clipped, state.optimizer, params, **extra)
            return result

        def left_out() -> tuple[Any, Any]:
            shapes = jax.eval_shape(made)[0]
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes), state.optimizer

        result, kept = jax.lax.cond(found.skipped, left_out, made) if skips else made()
        return result, ClipState(state.step + 1, *found[2:], kept)

    return optax.GradientTransformationExtraArgs(init, update)


def _number_alone(name: str, value: Any) -> Any:
    """A threshold as it is; a TypeError says what to do with a rule."""
    if hasattr(value, "next_threshold"):
        raise TypeError(
            f"{name}: {type(value).__name__} keeps its history in Python, where a compiled step cannot ask it; give a number "
            "or a schedule, or call gradclip.clip_by_global_norm between compiled functions"
        )
    return value


def _scaled(leaf: Any, found: Decision, zero: bool) -> Any:
    """A leaf multiplied by the factor, in float32 or wider, and rounded once to its own dtype."""
    leaf = jnp.asarray(leaf)
    if zero:
        leaf = jnp.where(jnp.isfinite(leaf), leaf, jnp.zeros((), leaf.dtype))
    wide = leaf.astype(jnp.promote_types(leaf.dtype, found.factor.dtype))
    return (wide * found.factor * found.rest).astype(leaf.dtype)
