"""`attach`: an optimizer clips the gradients of its parameters at the beginning of each step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.optim import Optimizer

from .._core.arguments import Number, flag
from .._core.call import Request, serve_in_place, total_threshold
from .._core.engine import Engine
from .._core.options import SHARED, NormOptions, Options, Unpack, spelled_out_for_one_process
from ..report import ClipReport
from ..thresholds import Threshold
from .clip_grad import dtensors_module
from .tensors import plain

_SCALING = "grad_scale", "found_inf"  # what fused optimizers look for: GradScaler sets them for the time of a step

_attached: WeakSet[Optimizer] = WeakSet()  # which clip now


class Attached:
    """The clipping of an optimizer, as `attach` returns it.

    Attributes
    ----------
    report : ClipReport or None
        What the last step measured and did; None before the first.

    See Also
    --------
    attach : Makes one.

    Examples
    --------
    >>> import torch, gradclip.torch
    >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> optimizer = torch.optim.SGD([weight], lr=1.0)
    >>> attached = gradclip.torch.attach(optimizer, 1.0)
    >>> attached.report is None
    True
    >>> attached.remove()
    """

    report: ClipReport | None

    def __init__(self, optimizer: Optimizer, serve: Callable[[list[Any], dict[str, Any]], ClipReport], fold: bool) -> None:
        self.report = None
        self._optimizer, self._serve, self._fold = optimizer, serve, fold
        self._set: dict[str, tuple[Any, Any]] = {}  # what the optimizer got, and had before, under the names of _SCALING
        self._withheld: list[tuple[Tensor, Tensor]] = []  # parameters and their gradients, in a step that is left out
        before, after = optimizer.register_step_pre_hook(self._before), optimizer.register_step_post_hook(self._after)
        hooks = after.hooks_dict_ref()
        if hooks is not None:  # other hooks see the gradients, and may clear them
            hooks.move_to_end(after.id, last=False)
        self._hooks = [before, after]
        _attached.add(optimizer)

    def remove(self) -> None:
        """Clip no more. A second call does nothing."""
        self._after()
        if self._hooks:
            _attached.discard(self._optimizer)
        while self._hooks:
            self._hooks.pop().remove()

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Clip; or where the step is given a closure, which makes the gradients, have it clip what it has made."""
        self._after()  # of a step that was left by an error
        by_name = kwargs.get("closure") is not None
        closure = kwargs["closure"] if by_name else args[1] if len(args) > 1 else None
        if closure is None:
            self._clip()
            return None

        def clipped() -> Any:
            self._after()
            loss = closure()
            self._clip()
            return loss

        return (args, {**kwargs, "closure": clipped}) if by_name else ((args[0], clipped, *args[2:]), kwargs)

    def _clip(self) -> None:
        """Clip the gradients that there are now, or tell the optimizer by what it is to divide them."""
        optimizer = self._optimizer
        grads = [[None if p.grad is None else _view(p.grad) for p in group["params"]] for group in optimizer.param_groups]
        loss_scale, found_inf = (getattr(optimizer, name, None) for name in _SCALING)
        changes: dict[str, Any] = {} if loss_scale is None else {"grad_scale": float(loss_scale)}
        if found_inf is not None and found_inf.item():  # the scaler knows, and the optimizer leaves out the step
            changes["nonfinite"] = "skip"
        self.report = report = self._serve(grads, changes)
        if not self._fold:
            if report.skipped:
                self._withhold()
            elif loss_scale is not None:  # which has been divided by
                self._tell("grad_scale", None)
        elif report.skipped:
            self._tell("found_inf", torch.ones((), device=_device(grads)))
        elif report.scale != 1.0:
            self._tell("grad_scale", _divisor(report.scale, _device(grads)))

    def _withhold(self) -> None:
        """Take the gradients away for the time of a step: an optimizer leaves alone what has none."""
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._withheld.append((parameter, parameter.grad))
                    parameter.grad = None

    def _tell(self, name: str, value: Tensor | None) -> None:
        """Give the optimizer an attribute for the time of a step."""
        self._set[name] = value, vars(self._optimizer).get(name, self)
        setattr(self._optimizer, name, value)

    def _after(self, *_: Any) -> None:
        """Give back the optimizer's attributes and the parameters' gradients, except where there are others since."""
        while self._withheld:
            parameter, grad = self._withheld.pop()
            if parameter.grad is None:
                parameter.grad = grad
        while self._set:
            name, (given, had) = self._set.popitem()
            if vars(self._optimizer).get(name, self) is not given:
                continue
            if had is self:  # there was none
                delattr(self._optimizer, name)
            else:
                setattr(self._optimizer, name, had)


@spelled_out_for_one_process
def attach(optimizer: Optimizer, max_norm: Number | Threshold, *, fold: bool = False, **norm: Unpack[NormOptions]) -> Attached:
    """Have an optimizer clip the gradients of all its parameters by their global norm, whenever it makes a step.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        It clips in a hook at the beginning of ``step``; where that is given a closure, after the closure. If a
        ``torch.amp.GradScaler`` leaves the unscaling to the optimizer, as it does with fused ones, norms and thresholds are
        those of the unscaled gradient.
    max_norm : float or Threshold
        The threshold >= 0, or a rule of `gradclip.thresholds` that gives each step its threshold. Where parameters are DTensors
        the norm runs over the ranks of their meshes, and so do the report and what happens to NaN and Inf.
    fold : bool, default False
        Write no gradient: have a fused optimizer (``fused=True``) multiply by the factor, which is rounded to float32, while it
        reads the gradient anyway. PyTorch's fused optimizers store the product in the gradient.
    ord : float, default 2
        Which norm: any p > 0, or ``inf``.
    eps : float, default 0
        Added to the norm; 1e-6 gives PyTorch's factor.
    nonfinite : {"raise", "skip", "zero", "propagate"}, default "raise"
        What to do about NaN and Inf. With ``"skip"`` the step changes nothing: while it lasts, the optimizer sees no gradients
        (with `fold`, it is told of the Inf). If a closure is called several times, as by L-BFGS, only what is left of the step
        changes nothing. ``"zero"`` cannot be folded.
    grad_scale : float, default 1
        The gradients hold the true gradient times this.
    strict : bool, default False
        Guarantee, in exact arithmetic, that the norm is at most `max_norm`. This cannot be folded.
    skip_above : float or Threshold, optional
        Leave the step out, as ``"skip"`` does, if its norm is above this: `gradclip.clip_by_global_norm_` says how.

    Returns
    -------
    Attached
        With the report of the last step, and a method to remove it.

    Raises
    ------
    TypeError, ValueError
        An argument cannot be used; the optimizer clips already; or `fold` is asked of an optimizer that is not fused, or with
        options that need a write.

    See Also
    --------
    gradclip.clip_by_global_norm_ : Is called by the hook.

    Examples
    --------
    >>> import torch, gradclip.torch
    >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> optimizer = torch.optim.SGD([weight], lr=1.0)
    >>> attached = gradclip.torch.attach(optimizer, 1.0)
    >>> (weight**2 / 2).sum().backward()
    >>> optimizer.step()
    >>> attached.report
    ClipReport(norm=5.0, max_norm=1.0, scale=0.2, clipped=True)
    >>> weight
    Parameter containing:
    tensor([2.4000, 3.2000], requires_grad=True)
    """
    for name in SHARED:
        if norm.get(name) is not None:
            raise TypeError(f"attach takes no {name}: clip before the step, by gradclip.clip_by_global_norm_(..., {name}=...)")
    options, threshold = Options.of(norm), total_threshold(max_norm)
    if optimizer in _attached:
        raise ValueError(f"this {type(optimizer).__name__} clips already: remove() what attach returned before")
    if flag("fold", fold):
        _check_foldable(optimizer, options)
    kind = _Folded if fold else Request

    def serve(grads: list[Any], changes: dict[str, Any]) -> ClipReport:
        asked: dict[str, Any] = {**norm, **changes}
        if "grad_scale" in changes:
            asked["grad_scale"] *= options.grad_scale
        shared = _as_dtensors(optimizer)
        if shared is None:
            return serve_in_place(grads, kind(Options.of(asked) if changes else options, threshold))

        def serve_parts(leaves: Any, found: Options) -> ClipReport:
            return serve_in_place(leaves, kind(found, threshold))

        report: ClipReport = shared.clip(grads, asked, serve_parts, not fold)
        return report

    return Attached(optimizer, serve, fold)


class _Folded(Request):
    """All leaves to a threshold by one factor, which somebody else multiplies by."""

    def write(self, engine: Engine, plan: Any) -> None:
        """Write nothing."""


def _as_dtensors(optimizer: Optimizer) -> Any:
    """How ranks share the parameters of an optimizer, a Sharing; None if none of them is a DTensor."""
    tensors = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    dtensors = dtensors_module([*tensors, *(tensor.grad for tensor in tensors if tensor.grad is not None)])
    return None if dtensors is None else dtensors.Sharing(tensors)


def _check_foldable(optimizer: Optimizer, options: Options) -> None:
    """Raise a ValueError if an optimizer does not multiply by a factor, or if more than a factor is needed."""
    if not (getattr(optimizer, "_step_supports_amp_scaling", False) and all(g.get("fused") for g in optimizer.param_groups)):
        raise ValueError(f"fold needs an optimizer of PyTorch's with fused=True; this {type(optimizer).__name__} is not fused")
    if options.strict or options.finite_only:
        name = "strict=True" if options.strict else 'nonfinite="zero"'
        raise ValueError(f"{name} cannot be folded: it needs gradients to be written")


def _view(grad: Tensor) -> Tensor:
    """A gradient as the library takes it: the values of a sparse one."""
    return plain(grad, True) if grad.layout is torch.sparse_coo else grad


def _divisor(factor: float, device: torch.device) -> Tensor:
    """What fused optimizers divide by, to multiply by a factor: they take it in float32."""
    return torch.tensor(math.inf if factor == 0 else 1 / factor, dtype=torch.float32, device=device)


def _device(grads: list[Any]) -> torch.device:
    """The device of the first gradient."""
    return next((grad.device for group in grads for grad in group if grad is not None), torch.device("cpu"))
