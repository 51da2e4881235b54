"""The functions of `torch.nn.utils.clip_grad` with its signatures: what they return, warn of and raise is PyTorch's.

Whatever the library cannot view is left to PyTorch's own functions: so the result is always right."""

from __future__ import annotations

import math
import sys
import types
import warnings
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad as _pytorchs

from .._core.call import Request, measured, serve_in_place
from .._core.engine import Engine
from .._core.options import Options
from .._cpu.plan import Plan
from .._cpu.sums import Sums
from .._leaves import Leaves
from ..report import ClipReport
from ..value import clip_by_value_
from .tensors import PLAIN, as_tensor, has_cupy, plain

Tensors: TypeAlias = "Tensor | Iterable[Tensor]"
Result = TypeVar("Result")

EPS = 1e-6  # PyTorch's factor is max_norm / (norm + EPS)
_HOMES = {"torch.distributed.tensor", "torch.distributed._tensor"}  # of DTensor; the second in PyTorch 2.4
_YES = np.ones(1, np.uint8)  # every unit of a plan is brought to its threshold
_UNSEEN = TypeError, ValueError, ImportError  # what the gate says of tensors that it does not take, before it reads or writes

_their_clip_grad_norm_: Callable[..., Tensor] = _pytorchs.clip_grad_norm_
_their_clip_grad_value_: Callable[..., None] = _pytorchs.clip_grad_value_
# Since PyTorch 2.6, under these names. Before, what the library cannot view is an error in the two functions.
_their_get_total_norm: Callable[..., Tensor] | None = getattr(_pytorchs, "_get_total_norm", None)
_their_clip_grads_with_norm_: Callable[..., None] | None = getattr(_pytorchs, "_clip_grads_with_norm_", None)


def clip_grad_norm_(
    parameters: Tensors,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Clip the gradients of parameters by their norm, in place: in place of `torch.nn.utils.clip_grad_norm_`.

    Gradients are multiplied by ``min(1, max_norm / (norm + 1e-6))``. The norm behind the factor is exact to half an ulp of
    float64: gradients whose norm leaves the range of their dtype are clipped, and do not become 0.

    Parameters
    ----------
    parameters : iterable of Tensor or Tensor
        Whose ``.grad`` is clipped. None among the gradients is left out.
    max_norm : float
        The norm to clip to.
    norm_type : float, default 2
        Which norm: any p > 0, or ``inf``. Others are left to PyTorch.
    error_if_nonfinite : bool, default False
        Raise an error if a gradient holds NaN or Inf. Without it, gradients become NaN or 0 as IEEE arithmetic has it.
    foreach : bool, optional
        Changes nothing, except for devices that are left to PyTorch.

    Returns
    -------
    torch.Tensor
        The norm of all gradients before clipping: of no dimension, on the device of the first gradient, of the widest dtype
        among the gradients. If these are DTensors, it is the norm over the ranks of their meshes; if all are on one mesh, it
        is a DTensor too, replicated.

    Raises
    ------
    RuntimeError
        A gradient holds NaN or Inf, and this is to be an error. Nothing was written.
    TypeError
        A DTensor is a partial sum.

    See Also
    --------
    gradclip.clip_by_global_norm_ : The function of the library, with its options and a report.

    Examples
    --------
    >>> import torch, gradclip.torch
    >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> (weight**2 / 2).sum().backward()
    >>> gradclip.torch.clip_grad_norm_([weight], 1.0)
    tensor(5.)
    >>> weight.grad
    tensor([0.6000, 0.8000])
    """
    theirs = _their_clip_grad_norm_, parameters, max_norm, norm_type, error_if_nonfinite, foreach
    if torch.compiler.is_compiling():
        return _left(*theirs)
    parameters = _listed(parameters)
    grads = _gradients(parameters)

    def make(options: Options, threshold: float) -> Request:
        return _Clipping(options, threshold, error_if_nonfinite)

    dtensors = dtensors_module([*parameters, *grads])
    if dtensors is not None:  # also on a rank without gradients: others may have some
        norm: Tensor | None = dtensors.clip(make, parameters, grads, max_norm, norm_type)
        return _left(theirs[0], parameters, *theirs[2:]) if norm is None else norm
    max_norm, order = float(max_norm), float(norm_type)
    if not grads:
        return torch.tensor(0.0)
    report = None
    if max_norm >= 0 and order > 0 and not _without_norm(grads, order):
        report = _served(lambda leaves: serve_in_place(leaves, make(_options(order), max_norm)), grads, True)
    return _left(theirs[0], parameters, *theirs[2:]) if report is None else as_tensor(report.norm, grads)


def clip_grad_value_(parameters: Tensors, clip_value: float, foreach: bool | None = None) -> None:
    """Clip each element of the gradients of parameters, in place: in place of `torch.nn.utils.clip_grad_value_`.

    Parameters
    ----------
    parameters : iterable of Tensor or Tensor
        Whose ``.grad`` is clipped. None among the gradients is left out.
    clip_value : float
        Elements are brought into [-clip_value, clip_value].
    foreach : bool, optional
        Changes nothing, except for devices that are left to PyTorch.

    See Also
    --------
    gradclip.clip_by_value_ : The function of the library, with a report.

    Examples
    --------
    >>> import torch, gradclip.torch
    >>> weight = torch.nn.Parameter(torch.tensor([3.0, 0.5]))
    >>> (weight**2 / 2).sum().backward()
    >>> gradclip.torch.clip_grad_value_(weight, 1.0)
    >>> weight.grad
    tensor([1.0000, 0.5000])
    """
    if torch.compiler.is_compiling():
        _left(_their_clip_grad_value_, parameters, clip_value, foreach)
        return
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    grads, bound = _gradients(parameters), float(clip_value)
    if not grads or _served(lambda leaves: clip_by_value_(leaves, bound), grads, True) is None:  # an error of PyTorch's
        _left(_their_clip_grad_value_, parameters, clip_value, foreach)


def get_total_norm(
    tensors: Tensors, norm_type: float = 2.0, error_if_nonfinite: bool = False, foreach: bool | None = None
) -> Tensor:
    """Return the norm of tensors: in place of `torch.nn.utils.get_total_norm`.

    Parameters
    ----------
    tensors : iterable of Tensor or Tensor
        What is measured.
    norm_type : float, default 2
        Which norm: any p > 0, or ``inf``. Others are left to PyTorch.
    error_if_nonfinite : bool, default False
        Raise an error if a tensor holds NaN or Inf.
    foreach : bool, optional
        Changes nothing, except for devices that are left to PyTorch.

    Returns
    -------
    torch.Tensor
        The norm: of no dimension, on the device of the first tensor, of the widest dtype among the tensors. Of DTensors as
        `clip_grad_norm_` returns it.

    Raises
    ------
    RuntimeError
        A tensor holds NaN or Inf, and this is to be an error.
    TypeError
        A DTensor is a partial sum.

    See Also
    --------
    gradclip.global_norm : The function of the library, which returns a float.

    Examples
    --------
    >>> import torch, gradclip.torch
    >>> gradclip.torch.get_total_norm([torch.tensor([3.0]), torch.tensor([4.0])])
    tensor(5.)
    """
    theirs = _their_get_total_norm, tensors, norm_type, error_if_nonfinite, foreach
    if torch.compiler.is_compiling():
        return _left(*theirs)
    tensors = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    if not tensors:
        return torch.tensor(0.0)
    dtensors = dtensors_module(tensors)
    found = None if dtensors is None else dtensors.measure(tensors, norm_type)
    order = float(norm_type)
    if found is not None:
        if error_if_nonfinite:
            _check_finite(found[0], order)
        shared: Tensor = found[1]
        return shared
    sums = None
    if dtensors is None and order > 0 and not _without_norm(tensors, order):
        sums = _served(lambda leaves: measured(leaves, _options(order))[0], tensors, False)
    if sums is None:
        return _left(theirs[0], tensors, *theirs[2:])
    if error_if_nonfinite:
        _check_finite(sums, order)
    return as_tensor(sums.norm(), tensors)


def clip_grads_with_norm_(parameters: Tensors, max_norm: float, total_norm: Tensor, foreach: bool | None = None) -> None:
    """Clip the gradients of parameters by a norm that is known, in place: in place of `torch.nn.utils.clip_grads_with_norm_`.

    Parameters
    ----------
    parameters : iterable of Tensor or Tensor
        Whose ``.grad`` is clipped. None among the gradients is left out.
    max_norm : float
        The norm to clip to.
    total_norm : Tensor
        The norm of all gradients, as `get_total_norm` returns it.
    foreach : bool, optional
        Changes nothing, except for devices that are left to PyTorch.

    See Also
    --------
    gradclip.apply_clip_ : The function of the library, for measures that are merged exactly.

    Examples
    --------
    >>> import torch, gradclip.torch
    >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> (weight**2 / 2).sum().backward()
    >>> gradclip.torch.clip_grads_with_norm_(weight, 1.0, torch.tensor(10.0))
    >>> weight.grad
    tensor([0.3000, 0.4000])
    """
    if torch.compiler.is_compiling():
        _left(_their_clip_grads_with_norm_, parameters, max_norm, total_norm, foreach)
        return
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    grads, max_norm = _gradients(parameters), float(max_norm)
    if not grads:
        return
    dtensors = dtensors_module([total_norm])
    norm = _number(total_norm if dtensors is None else dtensors.whole(total_norm))
    if norm is not None:
        factor = max_norm / (norm + EPS)
        if factor >= 1 or _served(lambda leaves: serve_in_place(leaves, _Scaling(factor)), grads, True, True) is not None:
            return
    _left(_their_clip_grads_with_norm_, parameters, max_norm, total_norm, foreach)


# ---- what PyTorch's functions have in common ------------------------------------------------------------------------


def _listed(parameters: Tensors) -> list[Tensor]:
    """The parameters as a list; an empty generator, which was used before perhaps, is a warning."""
    if isinstance(parameters, Tensor):
        return [parameters]
    found = list(parameters)
    if not found and isinstance(parameters, types.GeneratorType):
        warnings.warn("`parameters` is an empty generator, no gradient clipping will occur.", stacklevel=3)
    return found


def _gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The gradients that parameters have."""
    return [grad for parameter in parameters if (grad := parameter.grad) is not None]


def _check_finite(sums: Any, order: float) -> None:
    """Raise PyTorch's error if NaN or Inf was found."""
    if sums.nonfinite():
        raise RuntimeError(
            f"The total norm of order {order} for gradients from `parameters` is non-finite, so it cannot be clipped. To "
            "disable this error and scale the gradients by the non-finite norm anyway, set `error_if_nonfinite=False`"
        )


def _number(norm: Any) -> float | None:
    """A norm as a float; None if it is no plain tensor of one number on the host, and not below 0."""
    if type(norm) is not Tensor or norm.dim() or not norm.is_cpu or not norm.is_floating_point():
        return None
    value: float = norm.item()
    return None if value < 0 else value


# ---- what is left to PyTorch, and what is not -----------------------------------------------------------------------


def _left(function: Callable[..., Result] | None, *args: Any) -> Result:
    """What PyTorch's own function returns."""
    if function is None:
        raise TypeError("gradclip cannot view these tensors, and PyTorch before 2.6 has no such function")
    return function(*args)


def dtensors_module(tensors: list[Tensor]) -> Any:
    """The module that serves DTensors, if there are some among tensors, and it can; else None."""
    if PLAIN.issuperset(map(type, tensors)) or not _HOMES & sys.modules.keys():
        return None
    from . import dtensors

    return dtensors if dtensors.viewable(tensors) else None


def _without_norm(tensors: list[Tensor], order: float) -> bool:
    """Whether a norm of order inf is asked of a tensor without elements: an error of PyTorch's."""
    return order == math.inf and not all(map(torch.numel, tensors))


def _served_parts(serve: Callable[[list[Tensor]], Result], tensors: list[Tensor], terms: bool) -> Result | None:
    """What a call returns, a report, that clips the parts of DTensors that this rank holds; None as for `_served`."""
    dtensors = dtensors_module(tensors)
    if dtensors is None:
        return None
    report: Any = _served(serve, dtensors.parts(tensors, True, terms), True)
    if report is not None and report.clipped:
        dtensors.announce(tensors)
    found: Result | None = report
    return found


def _served(serve: Callable[[list[Tensor]], Result], tensors: list[Tensor], write: bool, terms: bool = False) -> Result | None:
    """What a call of the library returns for tensors; None, and nothing was written, if the library cannot view them.

    terms : whether parts of DTensors may be terms of a sum, which a factor may multiply"""
    if not set(map(type, tensors)) <= PLAIN:  # subclasses have arithmetic of their own, such as fake tensors
        return _served_parts(serve, tensors, terms)
    if tensors[0].is_cuda and not has_cupy():
        return None
    try:
        return serve(tensors)
    except _UNSEEN:
        pass
    try:
        views = [plain(tensor, write) for tensor in tensors]
    except (TypeError, RuntimeError):
        return None
    try:
        return serve(views)
    except _UNSEEN:
        return None


@lru_cache(64)
def _options(order: float) -> Options:
    """The options of a call: NaN and Inf are followed as IEEE arithmetic has it."""
    return Options(ord=order, nonfinite="propagate")


class _Clipping(Request):
    """All gradients by PyTorch's factor."""

    def __init__(self, options: Options, max_norm: float, error_if_nonfinite: bool) -> None:
        super().__init__(options, max_norm)
        self.elsewhere = True  # decided on the host, wherever the gradients lie
        self.error_if_nonfinite = error_if_nonfinite
        if options.shared:
            options.also = error_if_nonfinite  # type: ignore[attr-defined]

    def decide(self, engine: Engine, read: Leaves) -> tuple[ClipReport, Plan | None]:
        sums: Any = self.measure(engine, read)
        if self.error_if_nonfinite:
            _check_finite(sums, self.options.ord)
        norm, plan = sums.norm(), Plan(1)
        if norm + EPS <= self.threshold and not sums.nonfinite():
            return ClipReport(sums, self.threshold, 1), None
        if sums.nonfinite():
            plan.scale(self.threshold / norm)
        else:
            plan.decide(sums, self.threshold, EPS, clips=_YES)
        return _report(sums, self.threshold, plan), None if plan.idle() else plan


class _Scaling(Request):
    """All gradients by a factor that is known."""

    def __init__(self, factor: float) -> None:
        super().__init__(_options(2.0), factor)
        self.elsewhere = True

    def decide(self, engine: Engine, read: Leaves) -> tuple[ClipReport, Plan]:
        plan = Plan(1)
        plan.scale(self.threshold)
        return _report(Sums(0, 0, 2.0, 1.0), self.threshold, plan), plan


def _report(sums: Sums, max_norm: float, plan: Plan) -> ClipReport:
    """The report of gradients that are brought to a norm together."""
    return ClipReport(sums, max_norm, 1, plan, plan.acting())
