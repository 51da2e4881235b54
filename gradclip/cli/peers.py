"""The contenders of benchmarks: gradclip, and the shortest good way to do the same with NumPy, SciPy, PyTorch and Optax.

All have the same methods, as far as their packages know the operation. `gradclip bench` and the suite in benchmarks/ call
them. If a package is missing, or does not know a dtype, `load` or `prepare` raise a NotImplementedError, which tells asv to
skip the benchmark.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

import gradclip

from .npy import Array

NAMES = ("gradclip", "numpy", "scipy", "torch")  # those that clip in place
EPS = 1e-3  # the smallest weight norm of adaptive clipping, in all of them

Leaves = Sequence[Array]


def module(name: str) -> Any:
    """Return an optional package; raise a NotImplementedError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise NotImplementedError(f"{name} is not installed") from None


def load(name: str) -> Any:
    """Return the contender of this name; raise a NotImplementedError if its package is not installed."""
    contenders: dict[str, Callable[[], Any]]
    contenders = {
        "gradclip": Gradclip,
        "gradclip on JAX": GradclipOnJax,
        "numpy": NumPy,
        "scipy": SciPy,
        "torch": Torch,
        "optax": Optax,
    }
    return contenders[name]()


class Gradclip:
    """The contender that is gradclip itself."""

    global_norm = staticmethod(gradclip.global_norm)
    clip_by_global_norm_ = staticmethod(gradclip.clip_by_global_norm_)
    clip_by_global_norm = staticmethod(gradclip.clip_by_global_norm)
    clip_by_norm_ = staticmethod(gradclip.clip_by_norm_)
    clip_by_value_ = staticmethod(gradclip.clip_by_value_)
    normalize_ = staticmethod(gradclip.normalize_)
    clip_adaptive_ = staticmethod(gradclip.clip_adaptive_)
    clip_adaptive = staticmethod(gradclip.clip_adaptive)
    clip_per_sample_ = staticmethod(gradclip.clip_per_sample_)
    per_sample_clip_sum = staticmethod(gradclip.per_sample_clip_sum)
    set_threads = staticmethod(gradclip.set_num_threads)

    def prepare(self, leaves: Leaves) -> Leaves:
        """Return the leaves as the other methods take them."""
        return leaves

    def unscale_and_clip_(self, leaves: Leaves, max_norm: float, grad_scale: float) -> None:
        """Clip by the global norm after a division by `grad_scale`."""
        gradclip.clip_by_global_norm_(leaves, max_norm, grad_scale=grad_scale)

    def stepper(self, params: Leaves, leaves: Leaves, lr: float) -> Callable[..., Any]:
        """Return a function of max_norm that makes one step of clipped gradient descent, on arrays as they are."""
        return partial(gradclip.sgd_step_, params, leaves, lr)


def _wide(leaf: Array) -> Array:
    """Return a leaf of half precision as float32, any other as it is."""
    return leaf if leaf.itemsize > 2 else leaf.astype(np.float32)


def _units(leaf: Array, axis: int) -> Array:
    """Return a view whose rows are the units along the first (0) or the last (-1) axis; a vector is one unit."""
    if leaf.ndim < 2:
        return leaf.reshape(1, -1)
    return leaf.reshape(len(leaf), -1) if axis == 0 else leaf.reshape(-1, leaf.shape[-1]).T


def _row_squares(rows: Array) -> Array:
    """Return the sum of squares of each row."""
    wide = _wide(rows)
    squares: Array = np.einsum("ij,ij->i", wide, wide)
    return squares


def _scale_rows(rows: Array, factors: Array, out: Array | None = None) -> Array:
    """Return each row times its factor, but at most times 1; `out` takes the result."""
    scaled: Array = np.multiply(rows, np.minimum(factors, 1).astype(rows.dtype)[:, None], out=out)
    return scaled


class NumPy:
    """`numpy.vdot`, which is BLAS, and a multiplication in place.

    BLAS knows no half precision. Such leaves are converted to float32, which is faster than NumPy's own product and does not
    overflow.
    """

    def prepare(self, leaves: Leaves) -> Leaves:
        """Return the leaves as they are."""
        return leaves

    def square(self, leaf: Array) -> float:
        """Return the sum of squares of a leaf."""
        wide = _wide(leaf)
        return float(np.vdot(wide, wide))

    def scale(self, leaf: Array, factor: float) -> None:
        """Multiply a leaf by a factor, in place."""
        leaf *= leaf.dtype.type(factor)

    def global_norm(self, leaves: Leaves, ord: float = 2) -> float:
        """Return the norm of all leaves together."""
        if ord == 2:
            return math.sqrt(sum(map(self.square, leaves)))
        return float(np.linalg.norm([np.linalg.norm(_wide(leaf).reshape(-1), ord) for leaf in leaves], ord))

    def clip_by_global_norm_(self, leaves: Leaves, max_norm: float) -> None:
        """Clip by the norm of all leaves together, in place."""
        norm = self.global_norm(leaves)
        if norm > max_norm:
            for leaf in leaves:
                self.scale(leaf, max_norm / norm)

    def clip_by_global_norm(self, leaves: Leaves, max_norm: float, out: Any = None) -> Any:
        """Return new leaves, clipped by the norm of all together."""
        factor = min(1.0, max_norm / self.global_norm(leaves))
        to = out or [None] * len(leaves)
        return [np.multiply(leaf, leaf.dtype.type(factor), out=o) for leaf, o in zip(leaves, to, strict=True)]

    def unscale_and_clip_(self, leaves: Leaves, max_norm: float, grad_scale: float) -> None:
        """Clip by the global norm after a division by `grad_scale`."""
        norm = self.global_norm(leaves) / grad_scale
        for leaf in leaves:
            self.scale(leaf, min(1.0, max_norm / norm) / grad_scale)

    def clip_by_norm_(self, leaves: Leaves, max_norm: float, axis: int | None = None) -> None:
        """Clip each leaf by its own norm, or matrices by norms along the axis 0 or -1, in place."""
        for leaf in leaves:
            if axis is None:
                self.clip_by_global_norm_([leaf], max_norm)
            else:
                rows = _units(leaf, -1 - axis)
                _scale_rows(rows, max_norm / np.sqrt(_row_squares(rows)), rows)

    def clip_by_value_(self, leaves: Leaves, bound: float) -> None:
        """Clip each element to at most `bound` in magnitude, in place."""
        for leaf in leaves:
            np.clip(leaf, -bound, bound, out=leaf)

    def normalize_(self, leaves: Leaves) -> None:
        """Scale to a norm of 1, in place."""
        factor = 1.0 / (self.global_norm(leaves) + 1e-12)
        for leaf in leaves:
            self.scale(leaf, factor)

    def clip_adaptive_(self, leaves: Leaves, params: Leaves, clip_factor: float, unit_axis: int) -> None:
        """Clip each unit against the norm of its weights, in place."""
        for leaf, param in zip(leaves, params, strict=True):
            rows = _units(leaf, unit_axis)
            _scale_rows(rows, self.adaptive_factors(rows, _units(param, unit_axis), clip_factor), rows)

    def clip_adaptive(self, leaves: Leaves, params: Leaves, clip_factor: float, unit_axis: int) -> Any:
        """Return new leaves, each unit clipped against the norm of its weights."""
        clipped = [np.empty_like(leaf) for leaf in leaves]
        for leaf, param, to in zip(leaves, params, clipped, strict=True):
            rows = _units(leaf, unit_axis)
            _scale_rows(rows, self.adaptive_factors(rows, _units(param, unit_axis), clip_factor), _units(to, unit_axis))
        return clipped

    def adaptive_factors(self, rows: Array, weights: Array, clip_factor: float) -> Array:
        """Return the factor of each unit."""
        return clip_factor * np.maximum(np.sqrt(_row_squares(weights)), EPS) / np.sqrt(_row_squares(rows))

    def sample_factors(self, leaves: Leaves, max_norm: float) -> Any:
        """Return the factor of each sample."""
        return np.minimum(max_norm / np.sqrt(sum(_row_squares(leaf.reshape(len(leaf), -1)) for leaf in leaves)), 1)

    def clip_per_sample_(self, leaves: Leaves, max_norm: float) -> None:
        """Clip each sample by its own norm, in place."""
        factors = self.sample_factors(leaves, max_norm)
        for leaf in leaves:
            rows = leaf.reshape(len(leaf), -1)
            _scale_rows(rows, factors, rows)

    def per_sample_clip_sum(self, leaves: Leaves, max_norm: float) -> Any:
        """Return the sums over the samples, each clipped by its own norm."""
        factors = self.sample_factors(leaves, max_norm)
        return [(factors @ leaf.reshape(len(leaf), -1)).reshape(leaf.shape[1:]) for leaf in leaves]

    def stepper(self, params: Leaves, leaves: Leaves, lr: float) -> Callable[[float], None]:
        """Return a function of max_norm that makes one step of clipped gradient descent."""
        params, leaves = self.prepare(params), self.prepare(leaves)

        def step(max_norm: float) -> None:
            """Make one step."""
            factor = lr * min(1.0, max_norm / self.global_norm(leaves))
            for param, leaf in zip(params, leaves, strict=True):
                self.subtract(param, leaf, factor)

        return step

    def subtract(self, param: Any, leaf: Array, factor: float) -> None:
        """Subtract a leaf times a factor from a parameter, in place."""
        param -= leaf * leaf.dtype.type(factor)


class SciPy(NumPy):
    """`nrm2`, `scal` and `axpy` of BLAS, for float32 and float64, on vectors."""

    # These need the shapes, which `prepare` takes away.
    clip_adaptive_ = clip_adaptive = clip_per_sample_ = per_sample_clip_sum = property()

    def prepare(self, leaves: Leaves) -> Any:
        """Return the leaves as the other methods take them."""
        blas = module("scipy.linalg.blas")
        kind = {"f": "s", "d": "d"}.get(leaves[0].dtype.char)
        if kind is None:
            raise NotImplementedError("BLAS knows no half precision")
        self.nrm2, self.scal, self.axpy = (getattr(blas, kind + name) for name in ("nrm2", "scal", "axpy"))
        return [leaf.reshape(-1) for leaf in leaves]

    def global_norm(self, leaves: Leaves) -> float:  # type: ignore[override]  # nrm2 knows no other order
        """Return the norm of all leaves together."""
        return math.hypot(*map(self.nrm2, leaves))  # squares could overflow where nrm2 does not

    def scale(self, leaf: Array, factor: float) -> None:
        """Multiply a leaf by a factor, in place."""
        self.scal(factor, leaf)

    def subtract(self, param: Any, leaf: Array, factor: float) -> None:
        """Subtract a leaf times a factor from a parameter, in place."""
        self.axpy(leaf, param, a=-factor)


class Torch:
    """`torch.nn.utils` (PyTorch 2.6 or newer) on parameters whose `.grad` has the memory of the leaves."""

    def __init__(self) -> None:
        self.torch = module("torch")
        self.utils = self.torch.nn.utils
        self.threads = self.torch.get_num_threads()

    def set_threads(self, n: int) -> None:
        """Set the number of threads of PyTorch."""
        self.torch.set_num_threads(n)

    def restore_threads(self) -> None:
        """Set the number of threads that PyTorch had at first."""
        self.torch.set_num_threads(self.threads)

    def prepare(self, leaves: Leaves) -> Any:
        """Return the leaves as the other methods take them."""
        return [self.parameter(leaf) for leaf in leaves]

    def parameter(self, leaf: Array, data: Any = None) -> Any:
        """Return a parameter whose `.grad` has the memory of a leaf."""
        grad = self.tensor(leaf)
        made = self.torch.nn.Parameter(self.torch.empty_like(grad) if data is None else self.tensor(data))
        made.grad = grad
        return made

    def tensor(self, leaf: Array) -> Any:
        """Return a tensor with the memory of a leaf."""
        brain = leaf.dtype.name == "bfloat16"
        take = self.torch.from_numpy if isinstance(leaf, np.ndarray) else self.torch.from_dlpack
        tensor = take(leaf.view(np.int16) if brain else leaf)
        return tensor.view(self.torch.bfloat16) if brain else tensor

    def global_norm(self, parameters: Sequence[Any], ord: float = 2) -> float:
        """Return the norm of all leaves together."""
        return float(self.utils.get_total_norm([p.grad for p in parameters], ord))

    def clip_by_global_norm_(self, parameters: Sequence[Any], max_norm: float) -> None:
        """Clip by the norm of all leaves together, in place."""
        self.utils.clip_grad_norm_(parameters, max_norm)

    def unscale_and_clip_(self, parameters: Sequence[Any], max_norm: float, grad_scale: float) -> None:
        """Clip by the global norm after a division by `grad_scale`."""
        self.torch._foreach_mul_([p.grad for p in parameters], 1.0 / grad_scale)
        self.utils.clip_grad_norm_(parameters, max_norm)

    def clip_by_norm_(self, parameters: Sequence[Any], max_norm: float, axis: int | None = None) -> None:
        """Clip each leaf by its own norm, or matrices by norms along the axis 0 or -1, in place."""
        for parameter in parameters:
            if axis is None:
                self.utils.clip_grad_norm_(parameter, max_norm)
            else:
                parameter.grad.renorm_(2, -1 - axis, max_norm)

    def clip_by_value_(self, parameters: Sequence[Any], bound: float) -> None:
        """Clip each element to at most `bound` in magnitude, in place."""
        self.utils.clip_grad_value_(parameters, bound)

    def normalize_(self, parameters: Sequence[Any]) -> None:
        """Scale to a norm of 1, in place."""
        grads = [p.grad for p in parameters]
        self.torch._foreach_mul_(grads, 1.0 / (self.utils.get_total_norm(grads) + 1e-12))

    def sample_factors(self, grads: Any, max_norm: float) -> Any:
        """Return the factor of each sample."""
        norms = [self.torch.linalg.vector_norm(grad.flatten(1), dim=1) for grad in grads]
        return (max_norm / self.torch.linalg.vector_norm(self.torch.stack(norms), dim=0)).clamp_(max=1.0)

    def clip_per_sample_(self, parameters: Sequence[Any], max_norm: float) -> None:
        """Clip each sample by its own norm, in place."""
        grads = [p.grad for p in parameters]
        factors = self.sample_factors(grads, max_norm)
        for grad in grads:
            grad.flatten(1).mul_(factors[:, None])

    def per_sample_clip_sum(self, parameters: Sequence[Any], max_norm: float) -> Any:
        """Return the sums over the samples, each clipped by its own norm."""
        grads = [p.grad for p in parameters]
        factors = self.sample_factors(grads, max_norm)
        return [self.torch.einsum("i,i...->...", factors, grad) for grad in grads]

    def stepper(self, params: Leaves, leaves: Leaves, lr: float) -> Callable[[float], None]:
        """Return a function of max_norm that makes one step of clipped gradient descent."""
        parameters = [self.parameter(leaf, param) for leaf, param in zip(leaves, params, strict=True)]
        optimizer = self.torch.optim.SGD(parameters, lr, foreach=True)

        def step(max_norm: float) -> None:
            """Make one step."""
            self.utils.clip_grad_norm_(parameters, max_norm)
            optimizer.step()

        return step


class Optax:
    """Optax, compiled by JAX, on copies of the leaves. It returns new arrays only, because JAX arrays cannot be written."""

    def __init__(self) -> None:
        self.jax, optax = module("jax"), module("optax")
        self.norm = self.jax.jit(optax.tree.norm)
        self.clip = self.jax.jit(lambda grads, max_norm: optax.clip_by_global_norm(max_norm).update(grads, None)[0])
        self.adaptive = self.jax.jit(
            lambda grads, params, factor: optax.adaptive_grad_clip(factor, EPS).update(grads, None, params)[0]
        )
        self.clip_sum = self.jax.jit(optax.per_example_global_norm_clip)

    def prepare(self, leaves: Leaves) -> Any:
        """Return the leaves as the other methods take them."""
        if any(leaf.itemsize > 4 for leaf in leaves) and not self.jax.config.jax_enable_x64:
            raise NotImplementedError("JAX takes float64 only after a setting for the whole process")
        return [self.jax.numpy.array(leaf) for leaf in leaves]

    def global_norm(self, grads: Any) -> float:
        """Return the norm of all leaves together."""
        return float(self.norm(grads))

    def clip_by_global_norm(self, grads: Any, max_norm: float) -> Any:
        """Return new leaves, clipped by the norm of all together."""
        return self.jax.block_until_ready(self.clip(grads, max_norm))

    def clip_adaptive(self, grads: Any, params: Leaves, clip_factor: float, unit_axis: int) -> Any:
        """Return new leaves, each unit clipped against the norm of its weights."""
        if unit_axis != -1:
            raise NotImplementedError("Optax has units along the last axis")
        return self.jax.block_until_ready(self.adaptive(grads, params, clip_factor))

    def per_sample_clip_sum(self, grads: Any, max_norm: float) -> Any:
        """Return the sums over the samples, each clipped by its own norm."""
        return self.jax.block_until_ready(self.clip_sum(grads, max_norm)[0])


class GradclipOnJax:
    """Gradclip, called on the arrays of JAX that Optax gets."""

    def __init__(self) -> None:
        self.jax = module("jax")

    def prepare(self, leaves: Leaves) -> Any:
        """Return the leaves as the other methods take them."""
        return Optax().prepare(leaves)

    def clip_by_global_norm(self, grads: Any, max_norm: float) -> Any:
        """Return new leaves, clipped by the norm of all together."""
        return self.jax.block_until_ready(gradclip.clip_by_global_norm(grads, max_norm)[0])
