"""docs/migrating.md: what its tables say is the same, for the peers that are installed. PyTorch's are in test_torch."""

import math

import numpy as np
import pytest

import gradclip

pytestmark = pytest.mark.filterwarnings("default")  # those of other packages are no errors here


def optional(name):
    """A package that .ci/run does not install, where no test that it runs may be left out for others."""
    return pytest.importorskip(name, exc_type=ImportError, reason=f"{name} is not installed")


def arrays(seed=0, size=3.0):
    rng = np.random.default_rng(seed)
    shapes = {"kernel": (5, 3), "bias": (3,), "conv": (2, 2, 3, 4)}
    return {name: (size * rng.standard_normal(shape)).astype("float32") for name, shape in shapes.items()}


def assert_close(found, want, rtol=1e-5):
    for a, b in zip(found, want, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=1e-6)


ROWS_OF_OPTAX = {
    "clip": (lambda o: o.clip(0.5), lambda g, p: gradclip.clip_by_value(g, 0.5)),
    "clip_by_block_rms": (
        lambda o: o.clip_by_block_rms(1.0),
        lambda g, p: gradclip.clip_by_norm(g, {name: 1.0 * leaf.size**0.5 for name, leaf in g.items()}),
    ),
    "clip_by_global_norm": (
        lambda o: o.clip_by_global_norm(2.0),
        lambda g, p: gradclip.clip_by_global_norm(g, 2.0, nonfinite="propagate"),
    ),
    "adaptive_grad_clip": (
        lambda o: o.adaptive_grad_clip(0.1, 1e-3),
        lambda g, p: gradclip.clip_adaptive(g, p, 0.1, eps=1e-3, unit_axis=-1),
    ),
    "normalize_by_update_norm": (lambda o: o.normalize_by_update_norm(2.0), lambda g, p: gradclip.normalize(g, 2.0, eps=1e-6)),
}


@pytest.mark.parametrize("row", ROWS_OF_OPTAX)
def test_optax(row):
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    make, ours = ROWS_OF_OPTAX[row]
    grads, params, transform = arrays(), arrays(1, 0.5), make(optax)
    on_jax = jax.tree.map(jax.numpy.asarray, (grads, params))
    found, _ = transform.update(on_jax[0], transform.init(on_jax[1]), on_jax[1])
    want, report = ours(grads, params)
    assert report.clipped
    assert_close([found[name] for name in grads], want.values())


def test_samples_of_optax():
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    grads = list(arrays().values())
    grads = [np.stack([leaf, 0.01 * leaf, -2 * leaf]) for leaf in grads]
    on_jax = list(map(jax.numpy.asarray, grads))
    found, count = optax.per_example_global_norm_clip(on_jax, 1.0)
    want, report = gradclip.per_sample_clip_sum(grads, 1.0)
    assert (int(count), report.clipped_count) == (2, 2)
    assert_close(found, want)
    found, _ = optax.per_example_layer_norm_clip(on_jax, 1.0)
    assert_close(found, [gradclip.per_sample_clip_sum(leaf, 1.0 / math.sqrt(len(grads)))[0] for leaf in grads])


@pytest.mark.parametrize("layers", [False, True], ids=["flat", "per layer"])
def test_opacus(layers):
    torch = pytest.importorskip("torch")
    optimizers = optional("opacus.optimizers")
    samples = [np.stack([leaf, 0.01 * leaf, -2 * leaf]) for leaf in arrays().values()]
    params = [torch.nn.Parameter(torch.zeros(leaf.shape[1:])) for leaf in samples]
    for p, leaf in zip(params, samples, strict=True):
        p.grad_sample = torch.from_numpy(leaf.copy())
    thresholds = [1.0, 0.5, 2.0]
    kind = optimizers.DPPerLayerOptimizer if layers else optimizers.DPOptimizer
    sgd = torch.optim.SGD(params, lr=1.0)
    optimizer = kind(sgd, noise_multiplier=0.0, max_grad_norm=thresholds if layers else 1.5, expected_batch_size=3)
    optimizer.clip_and_accumulate()
    if layers:
        want = [gradclip.per_sample_clip_sum(leaf, c)[0] for leaf, c in zip(samples, thresholds, strict=True)]
        assert optimizer.max_grad_norm == pytest.approx(math.sqrt(sum(c * c for c in thresholds)))
    else:
        want, _ = gradclip.per_sample_clip_sum(samples, 1.5)
    assert_close([p.summed_grad for p in params], want)


def test_jax_privacy():
    pytest.importorskip("jax")
    clipping = optional("jax_privacy.clipping")
    x = np.random.default_rng(0).standard_normal((6, 4)).astype("float32")
    weights = np.ones(4, np.float32)
    summed = clipping.clipped_grad(lambda w, row: (row @ w) ** 2 / 2, l2_clip_norm=1.0, keep_batch_dim=False)
    samples = (x @ weights)[:, None] * x
    want, report = gradclip.per_sample_clip_sum(samples, 1.0)
    assert 0 < report.clipped_count < 6
    assert_close([summed(weights, x)], [want])


def test_zclip():
    """Its variance is taken around the new mean, ours around the old one: a factor of alpha**2 on what a step adds to it."""
    torch = pytest.importorskip("torch")
    zclip = optional("zclip")
    norms = np.random.default_rng(0).lognormal(sigma=0.3, size=300)
    norms[60::40] *= 10
    model = torch.nn.Linear(1, 1, bias=False)
    theirs, clipped = zclip.ZClip(max_grad_norm=None), []
    rule, thresholds = gradclip.thresholds.ZScore(z=2.5, alpha=0.97, warmup=25), []
    for norm in norms:
        model.weight.grad = torch.full((1, 1), norm)
        theirs.step(model)
        clipped.append(model.weight.grad.item())
        thresholds.append(rule.next_threshold(norm))
    ours = np.minimum(norms, thresholds)
    spikes = norms > 5
    assert spikes.sum() >= 6
    assert (ours[spikes] < 0.5 * norms[spikes]).all()
    np.testing.assert_allclose(clipped, ours, rtol=0.05)


def test_timm(timm_utils):
    torch = pytest.importorskip("torch")
    from timm.utils import agc

    params = [torch.nn.Parameter(torch.from_numpy(leaf)) for leaf in arrays(1, 0.5).values()]
    for p, grad in zip(params, arrays().values(), strict=True):
        p.grad = torch.from_numpy(grad)
    ours = [torch.from_numpy(grad.copy()) for grad in arrays().values()]
    agc.adaptive_clip_grad(params, 0.1, eps=1e-3)
    assert gradclip.clip_adaptive_(ours, [p.detach() for p in params], 0.1, eps=1e-3).clipped
    assert_close([p.grad for p in params], ours)
