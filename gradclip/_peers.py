"""What is compared: gradclip, and the shortest good way to do the same with NumPy, SciPy and PyTorch.

Peers have the same methods: `gradclip bench` and the suite in benchmarks/ call them. Where a package is missing, or does
not know a dtype, `load` or `prepare` raise NotImplementedError: so asv is told to skip."""

import importlib
import math

import numpy as np

import gradclip

NAMES = ("gradclip", "numpy", "scipy", "torch")


def module(name):
    """An optional package, or the sign to skip."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise NotImplementedError(f"{name} is not installed") from None


def load(name):
    return {"gradclip": Gradclip, "numpy": NumPy, "scipy": SciPy, "torch": Torch}[name]()


class Gradclip:
    global_norm = staticmethod(gradclip.global_norm)
    clip_by_global_norm_ = staticmethod(gradclip.clip_by_global_norm_)
    clip_by_global_norm = staticmethod(gradclip.clip_by_global_norm)
    clip_by_norm_ = staticmethod(gradclip.clip_by_norm_)
    clip_by_value_ = staticmethod(gradclip.clip_by_value_)
    normalize_ = staticmethod(gradclip.normalize_)
    set_threads = staticmethod(gradclip.set_num_threads)

    def prepare(self, leaves):
        """The leaves as the other methods take them."""
        return leaves


class NumPy:
    """`numpy.vdot`, which is BLAS, and a multiplication in place. BLAS knows no half precision: such
    leaves are converted to float32, which is faster than NumPy's own product and does not overflow."""

    def prepare(self, leaves):
        return leaves

    def square(self, leaf):
        wide = leaf if leaf.itemsize > 2 else leaf.astype(np.float32)
        return float(np.vdot(wide, wide))

    def scale(self, leaf, factor):
        leaf *= leaf.dtype.type(factor)

    def global_norm(self, leaves):
        return math.sqrt(sum(map(self.square, leaves)))

    def clip_by_global_norm_(self, leaves, max_norm):
        norm = self.global_norm(leaves)
        if norm > max_norm:
            for leaf in leaves:
                self.scale(leaf, max_norm / norm)

    def clip_by_global_norm(self, leaves, max_norm, out):
        factor = min(1.0, max_norm / self.global_norm(leaves))
        for leaf, to in zip(leaves, out, strict=True):
            np.multiply(leaf, leaf.dtype.type(factor), out=to)

    def clip_by_norm_(self, leaves, max_norm):
        for leaf in leaves:
            self.clip_by_global_norm_([leaf], max_norm)

    def clip_by_value_(self, leaves, bound):
        for leaf in leaves:
            np.clip(leaf, -bound, bound, out=leaf)

    def normalize_(self, leaves):
        factor = 1.0 / (self.global_norm(leaves) + 1e-12)
        for leaf in leaves:
            self.scale(leaf, factor)


class SciPy(NumPy):
    """`nrm2` and `scal` of BLAS, for float32 and float64."""

    def prepare(self, leaves):
        blas = module("scipy.linalg.blas")
        kind = {"f": "s", "d": "d"}.get(leaves[0].dtype.char)
        if kind is None:
            raise NotImplementedError("BLAS knows no half precision")
        self.nrm2, self.scal = getattr(blas, f"{kind}nrm2"), getattr(blas, f"{kind}scal")
        return [leaf.reshape(-1) for leaf in leaves]

    def global_norm(self, leaves):
        return math.hypot(*map(self.nrm2, leaves))  # squares could overflow where nrm2 does not

    def scale(self, leaf, factor):
        self.scal(factor, leaf)


class Torch:
    """`torch.nn.utils` (PyTorch 2.6 or newer) on parameters whose `.grad` are the same memory."""

    def __init__(self):
        self.torch = module("torch")
        self.utils = self.torch.nn.utils

    def set_threads(self, n):
        self.torch.set_num_threads(n)

    def prepare(self, leaves):
        return [self.parameter(leaf) for leaf in leaves]

    def parameter(self, leaf):
        brain = leaf.dtype.name == "bfloat16"
        grad = self.torch.from_numpy(leaf.view(np.int16) if brain else leaf)
        grad = grad.view(self.torch.bfloat16) if brain else grad
        made = self.torch.nn.Parameter(self.torch.empty_like(grad))
        made.grad = grad
        return made

    def global_norm(self, parameters):
        return float(self.utils.get_total_norm([p.grad for p in parameters]))

    def clip_by_global_norm_(self, parameters, max_norm):
        self.utils.clip_grad_norm_(parameters, max_norm)

    def clip_by_norm_(self, parameters, max_norm):
        for parameter in parameters:
            self.utils.clip_grad_norm_(parameter, max_norm)

    def clip_by_value_(self, parameters, bound):
        self.utils.clip_grad_value_(parameters, bound)

    def normalize_(self, parameters):
        grads = [p.grad for p in parameters]
        self.torch._foreach_mul_(grads, 1.0 / (self.utils.get_total_norm(grads) + 1e-12))
