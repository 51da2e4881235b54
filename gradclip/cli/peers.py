"""What is compared: gradclip, and the shortest good way to do the same with NumPy, SciPy, PyTorch and Optax.

Peers have the same methods, as far as their packages know the operation: `gradclip bench` and the suite in benchmarks/
call them. Where a package is missing, or does not know a dtype, `load` or `prepare` raise NotImplementedError: so asv is
told to skip."""

import importlib
import math
from functools import partial

import numpy as np

import gradclip

NAMES = ("gradclip", "numpy", "scipy", "torch")  # those that clip in place
EPS = 1e-3  # of adaptive clipping, in all of them


def module(name):
    """An optional package, or the sign to skip."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise NotImplementedError(f"{name} is not installed") from None


def load(name):
    return {"gradclip": Gradclip, "numpy": NumPy, "scipy": SciPy, "torch": Torch, "optax": Optax}[name]()


class Gradclip:
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

    def prepare(self, leaves):
        """The leaves as the other methods take them."""
        return leaves

    def unscale_and_clip_(self, leaves, max_norm, grad_scale):
        gradclip.clip_by_global_norm_(leaves, max_norm, grad_scale=grad_scale)

    def stepper(self, params, leaves, lr):
        """A function of max_norm: one step of clipped gradient descent, on arrays that are not `prepare`d."""
        return partial(gradclip.sgd_step_, params, leaves, lr)


def _wide(leaf):
    return leaf if leaf.itemsize > 2 else leaf.astype(np.float32)


def _units(leaf, axis):
    """A view whose rows are the units along the first (0) or last (-1) axis; a vector is one unit."""
    if leaf.ndim < 2:
        return leaf.reshape(1, -1)
    return leaf.reshape(len(leaf), -1) if axis == 0 else leaf.reshape(-1, leaf.shape[-1]).T


def _row_squares(rows):
    wide = _wide(rows)
    return np.einsum("ij,ij->i", wide, wide)


def _scale_rows(rows, factors, out=None):
    return np.multiply(rows, np.minimum(factors, 1).astype(rows.dtype)[:, None], out=out)


class NumPy:
    """`numpy.vdot`, which is BLAS, and a multiplication in place. BLAS knows no half precision: such
    leaves are converted to float32, which is faster than NumPy's own product and does not overflow."""

    def prepare(self, leaves):
        return leaves

    def square(self, leaf):
        wide = _wide(leaf)
        return float(np.vdot(wide, wide))

    def scale(self, leaf, factor):
        leaf *= leaf.dtype.type(factor)

    def global_norm(self, leaves, ord=2):
        if ord == 2:
            return math.sqrt(sum(map(self.square, leaves)))
        return float(np.linalg.norm([np.linalg.norm(_wide(leaf).reshape(-1), ord) for leaf in leaves], ord))

    def clip_by_global_norm_(self, leaves, max_norm):
        norm = self.global_norm(leaves)
        if norm > max_norm:
            for leaf in leaves:
                self.scale(leaf, max_norm / norm)

    def clip_by_global_norm(self, leaves, max_norm, out=None):
        factor = min(1.0, max_norm / self.global_norm(leaves))
        to = out or [None] * len(leaves)
        return [np.multiply(leaf, leaf.dtype.type(factor), out=o) for leaf, o in zip(leaves, to, strict=True)]

    def unscale_and_clip_(self, leaves, max_norm, grad_scale):
        norm = self.global_norm(leaves) / grad_scale
        for leaf in leaves:
            self.scale(leaf, min(1.0, max_norm / norm) / grad_scale)

    def clip_by_norm_(self, leaves, max_norm, axis=None):
        """`axis`, of matrices: 0 or -1."""
        for leaf in leaves:
            if axis is None:
                self.clip_by_global_norm_([leaf], max_norm)
            else:
                rows = _units(leaf, -1 - axis)
                _scale_rows(rows, max_norm / np.sqrt(_row_squares(rows)), rows)

    def clip_by_value_(self, leaves, bound):
        for leaf in leaves:
            np.clip(leaf, -bound, bound, out=leaf)

    def normalize_(self, leaves):
        factor = 1.0 / (self.global_norm(leaves) + 1e-12)
        for leaf in leaves:
            self.scale(leaf, factor)

    def clip_adaptive_(self, leaves, params, clip_factor, unit_axis):
        for leaf, param in zip(leaves, params, strict=True):
            rows = _units(leaf, unit_axis)
            _scale_rows(rows, self.adaptive_factors(rows, _units(param, unit_axis), clip_factor), rows)

    def clip_adaptive(self, leaves, params, clip_factor, unit_axis):
        clipped = [np.empty_like(leaf) for leaf in leaves]
        for leaf, param, to in zip(leaves, params, clipped, strict=True):
            rows = _units(leaf, unit_axis)
            _scale_rows(rows, self.adaptive_factors(rows, _units(param, unit_axis), clip_factor), _units(to, unit_axis))
        return clipped

    def adaptive_factors(self, rows, weights, clip_factor):
        return clip_factor * np.maximum(np.sqrt(_row_squares(weights)), EPS) / np.sqrt(_row_squares(rows))

    def sample_factors(self, leaves, max_norm):
        return np.minimum(max_norm / np.sqrt(sum(_row_squares(leaf.reshape(len(leaf), -1)) for leaf in leaves)), 1)

    def clip_per_sample_(self, leaves, max_norm):
        factors = self.sample_factors(leaves, max_norm)
        for leaf in leaves:
            rows = leaf.reshape(len(leaf), -1)
            _scale_rows(rows, factors, rows)

    def per_sample_clip_sum(self, leaves, max_norm):
        factors = self.sample_factors(leaves, max_norm)
        return [(factors @ leaf.reshape(len(leaf), -1)).reshape(leaf.shape[1:]) for leaf in leaves]

    def stepper(self, params, leaves, lr):
        params, leaves = self.prepare(params), self.prepare(leaves)

        def step(max_norm):
            factor = lr * min(1.0, max_norm / self.global_norm(leaves))
            for param, leaf in zip(params, leaves, strict=True):
                self.subtract(param, leaf, factor)

        return step

    def subtract(self, param, leaf, factor):
        param -= leaf * leaf.dtype.type(factor)


class SciPy(NumPy):
    """`nrm2`, `scal` and `axpy` of BLAS, for float32 and float64, on vectors."""

    clip_adaptive_ = clip_adaptive = clip_per_sample_ = per_sample_clip_sum = property()  # which need the shapes

    def prepare(self, leaves):
        blas = module("scipy.linalg.blas")
        kind = {"f": "s", "d": "d"}.get(leaves[0].dtype.char)
        if kind is None:
            raise NotImplementedError("BLAS knows no half precision")
        self.nrm2, self.scal, self.axpy = (getattr(blas, kind + name) for name in ("nrm2", "scal", "axpy"))
        return [leaf.reshape(-1) for leaf in leaves]

    def global_norm(self, leaves):
        return math.hypot(*map(self.nrm2, leaves))  # squares could overflow where nrm2 does not

    def scale(self, leaf, factor):
        self.scal(factor, leaf)

    def subtract(self, param, leaf, factor):
        self.axpy(leaf, param, a=-factor)


class Torch:
    """`torch.nn.utils` (PyTorch 2.6 or newer) on parameters whose `.grad` are the same memory."""

    def __init__(self):
        self.torch = module("torch")
        self.utils = self.torch.nn.utils
        self.threads = self.torch.get_num_threads()

    def set_threads(self, n):
        self.torch.set_num_threads(n)

    def restore_threads(self):
        self.torch.set_num_threads(self.threads)

    def prepare(self, leaves):
        return [self.parameter(leaf) for leaf in leaves]

    def parameter(self, leaf, data=None):
        grad = self.tensor(leaf)
        made = self.torch.nn.Parameter(self.torch.empty_like(grad) if data is None else self.tensor(data))
        made.grad = grad
        return made

    def tensor(self, leaf):
        brain = leaf.dtype.name == "bfloat16"
        take = self.torch.from_numpy if isinstance(leaf, np.ndarray) else self.torch.from_dlpack
        tensor = take(leaf.view(np.int16) if brain else leaf)
        return tensor.view(self.torch.bfloat16) if brain else tensor

    def global_norm(self, parameters, ord=2):
        return float(self.utils.get_total_norm([p.grad for p in parameters], ord))

    def clip_by_global_norm_(self, parameters, max_norm):
        self.utils.clip_grad_norm_(parameters, max_norm)

    def unscale_and_clip_(self, parameters, max_norm, grad_scale):
        self.torch._foreach_mul_([p.grad for p in parameters], 1.0 / grad_scale)
        self.utils.clip_grad_norm_(parameters, max_norm)

    def clip_by_norm_(self, parameters, max_norm, axis=None):
        """`axis`, of matrices: 0 or -1."""
        for parameter in parameters:
            if axis is None:
                self.utils.clip_grad_norm_(parameter, max_norm)
            else:
                parameter.grad.renorm_(2, -1 - axis, max_norm)

    def clip_by_value_(self, parameters, bound):
        self.utils.clip_grad_value_(parameters, bound)

    def normalize_(self, parameters):
        grads = [p.grad for p in parameters]
        self.torch._foreach_mul_(grads, 1.0 / (self.utils.get_total_norm(grads) + 1e-12))

    def sample_factors(self, grads, max_norm):
        norms = [self.torch.linalg.vector_norm(grad.flatten(1), dim=1) for grad in grads]
        return (max_norm / self.torch.linalg.vector_norm(self.torch.stack(norms), dim=0)).clamp_(max=1.0)

    def clip_per_sample_(self, parameters, max_norm):
        grads = [p.grad for p in parameters]
        factors = self.sample_factors(grads, max_norm)
        for grad in grads:
            grad.flatten(1).mul_(factors[:, None])

    def per_sample_clip_sum(self, parameters, max_norm):
        grads = [p.grad for p in parameters]
        factors = self.sample_factors(grads, max_norm)
        return [self.torch.einsum("i,i...->...", factors, grad) for grad in grads]

    def stepper(self, params, leaves, lr):
        parameters = [self.parameter(leaf, param) for leaf, param in zip(leaves, params, strict=True)]
        optimizer = self.torch.optim.SGD(parameters, lr, foreach=True)

        def step(max_norm):
            self.utils.clip_grad_norm_(parameters, max_norm)
            optimizer.step()

        return step


class Optax:
    """Optax, compiled by JAX, on JAX's copies of the leaves. JAX arrays cannot be written: there are only new ones."""

    def __init__(self):
        self.jax, optax = module("jax"), module("optax")
        self.norm = self.jax.jit(optax.tree.norm)
        self.clip = self.jax.jit(lambda grads, max_norm: optax.clip_by_global_norm(max_norm).update(grads, None)[0])
        self.adaptive = self.jax.jit(
            lambda grads, params, factor: optax.adaptive_grad_clip(factor, EPS).update(grads, None, params)[0]
        )
        self.clip_sum = self.jax.jit(optax.per_example_global_norm_clip)

    def prepare(self, leaves):
        if any(leaf.itemsize > 4 for leaf in leaves) and not self.jax.config.jax_enable_x64:
            raise NotImplementedError("JAX takes float64 only after a setting for the whole process")
        return [self.jax.numpy.array(leaf) for leaf in leaves]

    def global_norm(self, grads):
        return float(self.norm(grads))

    def clip_by_global_norm(self, grads, max_norm):
        return self.jax.block_until_ready(self.clip(grads, max_norm))

    def clip_adaptive(self, grads, params, clip_factor, unit_axis):
        if unit_axis != -1:
            raise NotImplementedError("Optax has units along the last axis")
        return self.jax.block_until_ready(self.adaptive(grads, params, clip_factor))

    def per_sample_clip_sum(self, grads, max_norm):
        return self.jax.block_until_ready(self.clip_sum(grads, max_norm)[0])
