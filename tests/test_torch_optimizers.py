"""`gradclip.torch.attach`: optimizers that clip at the beginning of a step, or while they make it."""

import math

import pytest

import gradclip
from gradclip.thresholds import Schedule

torch = pytest.importorskip("torch")

from gradclip.torch import attach  # noqa: E402

FUSED = {
    "AdamW": lambda groups: torch.optim.AdamW(groups, fused=True),
    "Adam": lambda groups: torch.optim.Adam(groups, fused=True, amsgrad=True),
    "SGD": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, fused=True),
}
PLAIN = {
    "AdamW": torch.optim.AdamW,
    "SGD": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
    "no foreach": lambda groups: torch.optim.RMSprop(groups, foreach=False),
}
CLOSE = {torch.float32: 1e-6, torch.float64: 1e-7, torch.bfloat16: 2**-7}


def groups(dtype=torch.float32):
    """Two groups of parameters; one of them never has a gradient."""
    torch.manual_seed(0)
    made = [torch.nn.Parameter(torch.randn(shape, dtype=torch.float64).to(dtype)) for shape in ((4, 5), (7,), (3,), (2, 2))]
    return [{"params": made[:2]}, {"params": made[2:], "weight_decay": 0.1}], made


def backward(params, step, scale=1.0):
    """Give all parameters but the third a gradient."""
    torch.manual_seed(step)
    for i, p in enumerate(params):
        p.grad = None if i == 2 else (torch.randn(p.shape, dtype=torch.float64) * (step + 1) * scale).to(p.dtype)


def clipped_then_stepped(make, dtype=torch.float32, max_norm=1.0, steps=4):
    """The parameters after some steps, each clipped by the function of the library before."""
    some, params = groups(dtype)
    optimizer = make(some)
    for step in range(steps):
        backward(params, step)
        gradclip.clip_by_global_norm_([p.grad for p in params], max_norm)
        optimizer.step()
    return [p.detach() for p in params]


@pytest.mark.parametrize("name", PLAIN)
def test_a_step_clips_the_gradients_of_all_groups(name):
    some, params = groups()
    optimizer = PLAIN[name](some)
    attached = attach(optimizer, 1.0)
    assert attached.report is None
    for step in range(4):
        backward(params, step)
        norm = gradclip.global_norm([p.grad for p in params])
        optimizer.step()
        assert attached.report.norm == norm
        assert attached.report.clipped
        assert gradclip.global_norm([p.grad for p in params]) == pytest.approx(1.0)
    for p, want in zip(params, clipped_then_stepped(PLAIN[name]), strict=True):
        assert torch.equal(p, want)
    attached.remove()
    attached.remove()
    backward(params, 9)
    optimizer.step()
    assert gradclip.global_norm([p.grad for p in params]) > 1.0
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("name", FUSED)
def test_fused_optimizers_multiply_by_the_factor_themselves(name, dtype):
    some, params = groups(dtype)
    optimizer = FUSED[name](some)
    attached, seen = attach(optimizer, 1.0, fold=True), []
    optimizer.register_step_pre_hook(lambda *_: seen.append([None if p.grad is None else p.grad.clone() for p in params]))
    for step in range(4):
        backward(params, step)
        before = [None if p.grad is None else p.grad.clone() for p in params]
        optimizer.step()
        assert attached.report.clipped
        for p, was, then in zip(params, before, seen.pop(), strict=True):
            assert was is then is p.grad is None or torch.equal(was, then)  # when the step begins nothing is written
            if was is not None:  # PyTorch stores what it has multiplied
                torch.testing.assert_close(p.grad, (was * attached.report.scale).to(dtype), rtol=CLOSE[dtype], atol=0)
        assert not {"grad_scale", "found_inf"} & vars(optimizer).keys()
    for p, want in zip(params, clipped_then_stepped(FUSED[name], dtype), strict=True):
        torch.testing.assert_close(p.detach(), want, rtol=20 * CLOSE[dtype], atol=20 * CLOSE[dtype])
    with pytest.raises(ValueError, match="clips already"):
        attach(optimizer, math.inf, fold=True)
    attached.remove()
    with_threshold = attach(optimizer, math.inf, fold=True)
    backward(params, 1)
    before = params[0].grad.clone()
    optimizer.step()
    assert not with_threshold.report.clipped
    assert torch.equal(params[0].grad, before)


@pytest.mark.parametrize("fold", [False, True])
def test_a_rule_gives_each_step_its_threshold(fold):
    some, params = groups()
    optimizer = FUSED["AdamW"](some)
    attached = attach(optimizer, Schedule(lambda step: 1.0 + step), fold=fold, ord=1)
    for step in range(3):
        backward(params, step)
        optimizer.step()
        assert attached.report.max_norm == 1.0 + step
        assert gradclip.global_norm([p.grad for p in params], ord=1) == pytest.approx(1.0 + step)


@pytest.mark.parametrize("fold", [False, True])
def test_nan_is_an_error_before_the_step(fold):
    some, params = groups()
    optimizer = FUSED["SGD"](some)
    attach(optimizer, 1.0, fold=fold)
    backward(params, 0)
    params[3].grad[0, 1] = math.nan
    before = [p.detach().clone() for p in params]
    with pytest.raises(gradclip.NonFiniteGradientError, match="1/1: nan at flat index 1"):  # group, parameter in it
        optimizer.step()
    assert all(torch.equal(p, was) for p, was in zip(params, before, strict=True))
    assert "grad_scale" not in vars(optimizer)


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("spike", [math.inf, 1e6])
@pytest.mark.parametrize(("kind", "fold"), [("plain", False), ("fused", False), ("fused", True)])
def test_a_step_that_is_left_out_changes_nothing(kind, fold, spike, closure):
    some, params = groups()
    optimizer = (FUSED if kind == "fused" else PLAIN)["AdamW"](some)
    attached = attach(optimizer, 1.0, fold=fold, nonfinite="skip", skip_above=1e5)

    def step(seed, spike=None):
        def gradients():
            backward(params, seed)
            if spike is not None:
                params[0].grad[0, 0] = spike

        if closure:
            optimizer.step(gradients)
        else:
            gradients()
            optimizer.step()

    step(0)
    before = [p.detach().clone() for p in params]
    momentum = optimizer.state[params[0]]["exp_avg"].clone()
    step(1, spike)
    assert attached.report.skipped
    backward_again = [None if p.grad is None else p.grad.clone() for p in params]
    assert backward_again[0][0, 0] == spike
    assert all(torch.equal(p, was) for p, was in zip(params, before, strict=True))
    assert torch.equal(optimizer.state[params[0]]["exp_avg"], momentum)
    assert optimizer.state[params[0]]["step"].item() == 1
    step(2)
    assert attached.report.clipped
    assert not torch.equal(params[0], before[0])


def test_a_step_that_is_left_out_and_ends_early_keeps_no_later_gradient_back():
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    attached = attach(optimizer, 1.0, skip_above=100.0)

    def fails(*_):
        raise KeyboardInterrupt

    hook = optimizer.register_step_pre_hook(fails)
    weight.grad = torch.tensor([1e6, 0.0])
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    hook.remove()
    weight.grad = torch.tensor([3.0, 4.0])
    optimizer.step()
    assert attached.report.norm == 5.0
    assert weight.grad.tolist() == pytest.approx([0.6, 0.8])


def test_a_hook_that_clears_gradients_clears_those_of_a_step_that_is_left_out():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    optimizer.register_step_post_hook(lambda it, *_: it.zero_grad())
    attached = attach(optimizer, 1.0, nonfinite="skip")
    for grad, skipped in ((math.nan, True), (0.5, False), (0.25, False)):
        weight.grad = torch.tensor([grad]) if weight.grad is None else weight.grad + grad
        optimizer.step()
        assert attached.report.skipped == skipped
    assert weight.item() == -0.75


def test_attributes_that_somebody_else_has_set_stay():
    some, params = groups()
    optimizer = FUSED["SGD"](some)
    attached = attach(optimizer, 1.0, fold=True)

    def sets(it, *_):
        it.grad_scale = torch.tensor(8.0)

    optimizer.register_step_pre_hook(sets)
    backward(params, 0)
    optimizer.step()
    assert optimizer.grad_scale == 8.0
    attached.remove()


def test_gradients_come_back_after_an_error_in_a_step_that_is_left_out():
    some, params = groups()
    optimizer = PLAIN["SGD"](some)
    attached = attach(optimizer, 1.0, skip_above=0.0)

    def fails(*_):
        raise OSError("hook")

    optimizer.register_step_pre_hook(fails)
    backward(params, 0)
    grads = [p.grad for p in params]
    with pytest.raises(OSError, match="hook"):
        optimizer.step()
    attached.remove()
    assert all(p.grad is grad for p, grad in zip(params, grads, strict=True))


def test_other_policies_are_those_of_the_library():
    for nonfinite in ("zero", "propagate"):
        some, params = groups()
        optimizer = PLAIN["SGD"](some)
        attach(optimizer, 1.0, nonfinite=nonfinite)
        backward(params, 0)
        params[0].grad[0, 0] = math.nan
        optimizer.step()
        assert bool(params[1].isnan().any()) == (nonfinite == "propagate")
    some, params = groups()
    optimizer = FUSED["SGD"](some)
    attach(optimizer, 1.0, nonfinite="propagate", fold=True)
    backward(params, 0)
    params[0].grad[0, 0] = math.nan
    optimizer.step()
    assert params[1].isnan().all()


def test_a_threshold_of_zero_can_be_folded():
    some, params = groups()
    optimizer = FUSED["SGD"](some)
    attach(optimizer, 0.0, fold=True)
    backward(params, 0)
    before = params[1].detach().clone()
    optimizer.step()
    assert torch.equal(params[1], before)


@pytest.mark.parametrize("name", ["comm", "owned"])
def test_keywords_of_several_processes_are_refused(name):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=1.0)
    with pytest.raises(TypeError, match=f"attach takes no {name}"):
        attach(optimizer, 1.0, **{name: {"*": True}})


def test_what_cannot_be_folded_is_an_error():
    with pytest.raises(ValueError, match=r"with fused=True; this AdamW is not fused"):
        attach(PLAIN["AdamW"](groups()[0]), 1.0, fold=True)
    for options in ({"nonfinite": "zero"}, {"strict": True}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}=.* cannot be folded"):
            attach(FUSED["AdamW"](groups()[0]), 1.0, fold=True, **options)
    for wrong in ({"max_norm": -1.0}, {"max_norm": 1.0, "fold": 1}, {"max_norm": 1.0, "order": 2}):
        with pytest.raises((TypeError, ValueError)):
            attach(FUSED["AdamW"](groups()[0]), **wrong)


# ---- steps that make their gradients themselves ---------------------------------------------------------------------


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("by_name", [False, True])
def test_gradients_that_a_closure_makes_are_clipped(by_name, fold):
    some, params = groups()
    optimizer = FUSED["AdamW"](some)
    attached, calls = attach(optimizer, 1.0, fold=fold), []

    def closure():
        backward(params, len(calls))
        calls.append(len(calls))
        return torch.tensor(7.0)

    for _ in range(4):
        loss = optimizer.step(closure=closure) if by_name else optimizer.step(closure)
        assert (loss.item(), attached.report.clipped) == (7.0, True)
    for p, want in zip(params, clipped_then_stepped(FUSED["AdamW"]), strict=True):
        torch.testing.assert_close(p.detach(), want, rtol=1e-5, atol=1e-5)


def test_each_call_of_a_closure_is_clipped():
    """L-BFGS makes several."""
    weight, norms = torch.nn.Parameter(torch.tensor([3.0, 4.0])), []
    optimizer = torch.optim.LBFGS([weight], max_iter=3)
    attached = attach(optimizer, 0.5)

    def closure():
        if attached.report is not None:
            norms.append(gradclip.global_norm(weight.grad))
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert norms
    assert max(norms) <= 0.5 + 1e-6


def test_a_step_that_fails_leaves_nothing_behind():
    some, params = groups()
    optimizer = FUSED["SGD"](some)
    attached = attach(optimizer, 1.0, fold=True)
    hook = optimizer.register_step_pre_hook(lambda *_: {}["no such thing"])
    backward(params, 0)
    with pytest.raises(KeyError):
        optimizer.step()
    hook.remove()
    for p in params:
        p.grad = None
    optimizer.step()
    assert attached.report.size == 0
    assert "grad_scale" not in vars(optimizer)
    backward(params, 0)
    optimizer.register_step_pre_hook(lambda *_: {}["no such thing"])
    with pytest.raises(KeyError):
        optimizer.step()
    attached.remove()
    assert "grad_scale" not in vars(optimizer)


# ---- a gradient scaler ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "fold"),
    [(FUSED["AdamW"], False), (FUSED["AdamW"], True), (PLAIN["AdamW"], False)],
    ids=["fused", "folded", "not fused"],
)
@pytest.mark.parametrize("unscaled", [False, True])
def test_with_a_gradient_scaler_norms_are_those_of_the_true_gradient(make, unscaled, fold):
    some, params = groups()
    optimizer, scaler = make(some), torch.amp.GradScaler("cpu", init_scale=256.0)
    attached = attach(optimizer, 1.0, fold=fold)
    for step in range(4):
        backward(params, step)
        norm = gradclip.global_norm([p.grad for p in params])
        for p in params:
            if p.grad is not None:
                p.grad *= 256.0
        if unscaled:
            scaler.scale(torch.ones(()))
            scaler.unscale_(optimizer)
        else:
            scaler.scale(torch.ones(()))
        scaler.step(optimizer)
        scaler.update()
        assert attached.report.norm == pytest.approx(norm)
        assert gradclip.global_norm([p.grad for p in params]) == pytest.approx(1.0, rel=1e-5)
        assert not {"grad_scale", "found_inf"} & vars(optimizer).keys()
    for p, want in zip(params, clipped_then_stepped(make), strict=True):
        torch.testing.assert_close(p.detach(), want, rtol=1e-5, atol=1e-5)
    backward(params, 1)
    params[0].grad[0, 0] = math.inf
    before = params[1].detach().clone()
    scaler.scale(torch.ones(()))
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(params[1], before)
    assert attached.report.skipped == (make is FUSED["AdamW"])  # of another optimizer the scaler does not call the step
    assert scaler.get_scale() == 128.0


def test_values_of_sparse_gradients_are_clipped():
    layer = torch.nn.Embedding(6, 3, sparse=True)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    attached = attach(optimizer, 0.5)
    layer(torch.tensor([1, 1, 2])).sum().backward()
    optimizer.step()
    assert attached.report.norm == pytest.approx(math.sqrt(15))
    assert layer.weight.grad.to_dense().norm().item() == pytest.approx(0.5)
