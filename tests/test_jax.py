"""`gradclip.jax`: the transformation of Optax's, compiled and not."""

import importlib
import math
import os
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

import gradclip

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")

import jax.numpy as jnp  # noqa: E402

from gradclip.jax import ClipState, clip_by_global_norm, deciding  # noqa: E402


@jax.tree_util.register_pytree_with_keys_class
class Layer:
    """A container that JAX knows."""

    def __init__(self, weight, bias):
        self.weight, self.bias = weight, bias

    def tree_flatten_with_keys(self):
        key = jax.tree_util.GetAttrKey
        return ((key("weight"), self.weight), (key("bias"), self.bias)), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def mixed(size=30.0):
    """Gradients of all dtypes that JAX has by default, in containers."""
    rng = np.random.default_rng(0)

    def made(dtype, *shape):
        return jnp.asarray(size * rng.standard_normal(shape), dtype)

    body = Layer(made("float16", 3, 5), made("bfloat16", 7))
    phases = jnp.asarray(size * (rng.standard_normal(4) + 1j * rng.standard_normal(4)), "complex64")
    return {"body": [body, None], "head": made("float32", 300), "empty": made("float32", 0, 3), "phases": phases}


def exact_norm(tree):
    """The norm in float32, rounded once from the exact sum of squares."""
    parts = [part for leaf in jax.tree.leaves(tree) for part in (leaf.real, leaf.imag)]
    total = sum(Fraction(x) ** 2 for part in parts for x in np.asarray(part, np.float64).ravel().tolist())
    return np.float32(math.sqrt(total))


def clipped_by(clip, grads, *, jit=True):
    """What a transformation makes of gradients, and its state, each compiled or not."""
    return (jax.jit(clip.update) if jit else clip.update)(grads, clip.init(grads))


@pytest.mark.parametrize("jit", [True, False], ids=["compiled", "eager"])
def test_one_factor_by_the_exact_norm(jit):
    grads = mixed()
    found, state = clipped_by(clip_by_global_norm(2.0), grads, jit=jit)
    assert state.norm == exact_norm(grads)
    assert state.scale == np.float32(2.0 / gradclip.global_norm(grads))
    assert jax.tree.structure(found) == jax.tree.structure(grads)
    for x, was in zip(jax.tree.leaves(found), jax.tree.leaves(grads), strict=True):
        wide = np.asarray(was, np.complex128 if was.dtype == "complex64" else np.float64)
        want = jnp.asarray(wide * float(state.scale), was.dtype)
        unit = float(jnp.finfo(was.dtype).eps)
        assert x.dtype == was.dtype
        np.testing.assert_allclose(np.asarray(x, wide.dtype), np.asarray(want, wide.dtype), rtol=unit, atol=0)
    assert exact_norm(found) == pytest.approx(2.0, rel=1e-2)
    assert isinstance(state, ClipState)
    assert (int(state.step), float(state.max_norm), int(state.nonfinite), bool(state.skipped)) == (1, 2.0, 0, False)


def test_norms_at_the_threshold_change_no_bit():
    grads = mixed(0.01)
    found, state = clipped_by(clip_by_global_norm(gradclip.global_norm(grads)), grads)
    assert state.scale == 1.0
    for x, was in zip(jax.tree.leaves(found), jax.tree.leaves(grads), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(was).tobytes()


@pytest.mark.parametrize("size", [1e-30, 1e20, 3e38])
def test_squares_and_factors_beyond_float32(size):
    """Optax's norms are 0 or Inf here; the factor for the last is no normal float32."""
    found, _ = clipped_by(clip_by_global_norm(size / 1e30 if size < 1 else 1.0), [jnp.full(4, size, "float32")])
    want = min(size, size / 1e30 / 2 if size < 1 else 0.5)
    np.testing.assert_allclose(found[0], np.full(4, want, "float32"), rtol=3e-7)


def test_a_training_goes_as_with_optax():
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((16, 3)).astype("float32"), rng.standard_normal(16).astype("float32")

    def loss_of(params):
        return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)

    def trained(clip):
        optimizer = optax.chain(clip, optax.adam(0.1))
        params = {"w": jnp.zeros(3), "b": jnp.zeros(())}

        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss_of)(params), state, params)
            return (optax.apply_updates(params, updates), state), state[0]

        (params, _), states = jax.jit(lambda carry: jax.lax.scan(step, carry, None, 8))((params, optimizer.init(params)))
        return params, states

    ours, states = trained(clip_by_global_norm(0.5))
    theirs, _ = trained(optax.clip_by_global_norm(0.5))
    assert states.step.tolist() == list(range(1, 9))
    assert (states.scale < 1).any()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5)


def test_what_becomes_of_nan():
    grads = {"a": jnp.array([0.0, 3.0]), "b": [jnp.array([4.0, math.nan, math.inf])]}
    with pytest.raises(jax.errors.JaxRuntimeError, match=r'b/0: nan at flat index 1 .*: 2\); nothing was .*nonfinite="zero"'):
        jax.block_until_ready(clipped_by(clip_by_global_norm(1.0), grads))
    found, state = clipped_by(clip_by_global_norm(1.0, nonfinite="zero"), grads)
    assert (float(state.norm), int(state.nonfinite)) == (5.0, 2)
    np.testing.assert_allclose(np.concatenate([found["a"], found["b"][0]]), [0.0, 0.6, 0.8, 0.0, 0.0], rtol=1e-6)
    found, state = clipped_by(clip_by_global_norm(1.0, nonfinite="propagate"), grads)
    assert math.isnan(state.norm)
    assert np.isnan(found["b"][0]).all()
    found, state = clipped_by(optax.apply_if_finite(clip_by_global_norm(1.0, nonfinite="propagate"), 5), grads)
    assert int(state.notfinite_count) == 1
    assert not np.concatenate([found["a"], found["b"][0]]).any()


@pytest.mark.parametrize("how", [{"nonfinite": "skip"}, {"skip_above": 100.0}], ids=["NaN", "spike"])
def test_a_step_that_is_left_out(how):
    optimizer = clip_by_global_norm(1.0, optax.sgd(0.5, momentum=0.9), **how)
    bad = jnp.array([math.nan if "nonfinite" in how else 300.0, 0.0])
    update, state = jax.jit(optimizer.update), optimizer.init(bad)
    updates, state = update(jnp.array([3.0, 4.0]), state)
    np.testing.assert_allclose(updates, [-0.3, -0.4], rtol=1e-6)
    before = state.optimizer
    updates, state = update(bad, state)
    assert (updates.tolist(), bool(state.skipped), float(state.scale)) == ([0.0, 0.0], True, 1.0)
    assert [x.tolist() for x in jax.tree.leaves(state.optimizer)] == [x.tolist() for x in jax.tree.leaves(before)]
    updates, state = update(jnp.zeros(2), state)
    assert not state.skipped
    np.testing.assert_allclose(updates, [-0.27, -0.36], rtol=1e-6)  # by the momentum of the first step


def test_thresholds_that_change():
    grads = jnp.array([3.0, 4.0])
    clip = clip_by_global_norm(lambda step: 1.0 + step)
    update, state = jax.jit(clip.update), clip.init(grads)
    for want in (1.0, 2.0, 3.0):
        found, state = update(grads, state)
        assert float(state.max_norm) == want
        np.testing.assert_allclose(np.linalg.norm(found), want, rtol=1e-6)
    injected = optax.inject_hyperparams(clip_by_global_norm, static_args=("ord", "eps", "grad_scale"))(1.0)
    update, state = jax.jit(injected.update), injected.init(grads)
    state.hyperparams["max_norm"] = jnp.asarray(2.5)
    found, state = update(grads, state)
    assert found.tolist() == [1.5, 2.0]
    state.hyperparams["max_norm"] = jnp.asarray(-1.0)
    with pytest.raises((ValueError, jax.errors.JaxRuntimeError), match=r"max_norm must .*-1\.0"):
        jax.block_until_ready(update(grads, state))


def test_other_options():
    grads = jnp.array([3.0, -4.0])
    found, state = clipped_by(clip_by_global_norm(3.5, ord=1, eps=1.0), grads)
    assert (float(state.norm), float(state.scale)) == (7.0, 3.5 / 8)
    found, state = clipped_by(clip_by_global_norm(10.0, grad_scale=4.0), grads)
    assert (float(state.norm), found.tolist()) == (1.25, [0.75, -1.0])


def test_each_of_many_by_its_own_norm():
    clip = clip_by_global_norm(1.0)
    rows = jnp.array([[3.0, 4.0], [0.3, 0.4], [30.0, 40.0]])
    found, state = jax.jit(jax.vmap(lambda row: clip.update(row, clip.init(row))))(rows)
    assert state.norm.tolist() == [5.0, 0.5, 50.0]
    np.testing.assert_allclose(found, [[0.6, 0.8], [0.3, 0.4], [0.6, 0.8]], rtol=1e-6)


def test_the_way_for_other_devices(monkeypatch):
    """Here it gives the same."""
    grads = {"w": jnp.array([3.0, 4.0])}
    monkeypatch.setattr(deciding, "buffer_callback", None)
    monkeypatch.setattr(deciding, "_finder", deciding._finder.__wrapped__)
    found, state = clipped_by(clip_by_global_norm(1.0), grads)
    assert float(state.norm) == 5.0
    np.testing.assert_allclose(found["w"], [0.6, 0.8], rtol=1e-6)
    with pytest.raises(jax.errors.JaxRuntimeError, match="w: nan at flat index 0"):
        jax.block_until_ready(clipped_by(clip_by_global_norm(1.0), {"w": jnp.array([math.nan])}))


def test_in_64_bits_results_are_those_between_compiled_functions():
    grads = {"a": np.random.default_rng(2).standard_normal(100), "b": np.linspace(0, 1, 7, dtype=np.float32)}
    in_64_bits = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64  # of older versions
    with in_64_bits(True):
        found, state = clipped_by(clip_by_global_norm(0.7), {name: jnp.asarray(x) for name, x in grads.items()})
        want, report = gradclip.clip_by_global_norm(grads, 0.7)
        assert (float(state.norm), float(state.scale)) == (report.norm, report.scale)
        for name, leaf in want.items():
            assert np.asarray(found[name]).tobytes() == leaf.tobytes()


def test_containers_of_flax_and_equinox():
    nnx, equinox = pytest.importorskip("flax.nnx"), pytest.importorskip("equinox")
    clip, x = clip_by_global_norm(1.0), jnp.full((1, 2), 10.0)
    linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    network = equinox.nn.MLP(2, 1, 4, 1, key=jax.random.key(0))
    for grads in (nnx.grad(lambda m: (m(x) ** 2).sum())(linear), equinox.filter_grad(lambda m: m(10 * x[0]).sum())(network)):
        found, state = equinox.filter_jit(clip.update)(grads, clip.init(grads))
        assert jax.tree.structure(found) == jax.tree.structure(grads)
        assert state.norm == exact_norm(grads) > 1
        assert exact_norm(found) == pytest.approx(1.0, rel=1e-6)


def test_errors_say_what_to_do():
    grads = jnp.array([3.0, 4.0])
    for rule in ({"max_norm": gradclip.thresholds.Quantile()}, {"max_norm": 1.0, "skip_above": gradclip.thresholds.ZScore()}):
        with pytest.raises(TypeError, match="keeps its history in Python.*schedule.*between compiled functions"):
            clip_by_global_norm(**rule)
    for how, name in (({"nonfinite": "skip"}, 'nonfinite="skip"'), ({"skip_above": 9.0}, "skip_above")):
        with pytest.raises(ValueError, match=f"^{name} leaves out the step of an optimizer: give it"):
            clip_by_global_norm(1.0, **how)
    with pytest.raises(ValueError, match="max_norm"):
        clip_by_global_norm(-1.0)
    with pytest.raises(TypeError, match=r"max_norm must be a number, not an array of shape \(2,\)"):
        clipped_by(clip_by_global_norm(grads), grads)
    with pytest.raises(TypeError, match="^w/0: dtype int32 is not one of"):
        clipped_by(clip_by_global_norm(1.0), {"w": [jnp.arange(3)]})
    clip = clip_by_global_norm(1.0)
    with pytest.raises(TypeError, match=r"no derivative; use optax\.clip_by_global_norm"):
        jax.grad(lambda x: clip.update(x, clip.init(x))[0].sum())(grads)
    with pytest.raises(TypeError, match=r"^w: .*no values while JAX traces.*gradclip\.jax\.clip_by_global_norm.*between"):
        jax.jit(lambda x: gradclip.clip_by_global_norm({"w": x}, 1.0)[0])(grads)


@pytest.mark.parametrize("missing", ["jax", "optax"])
def test_the_extra_is_named_where_something_is_missing(missing, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("gradclip.jax")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r'pip install "gradclip\[jax\]"'):
        importlib.import_module("gradclip.jax")


@pytest.mark.slow
def test_sharded_arrays_have_one_norm():
    """In `shard_map` each device has its own."""
    program = """if True:
        import jax, jax.numpy as jnp, numpy as np
        from gradclip.jax import clip_by_global_norm
        places = jax.sharding.NamedSharding(jax.make_mesh((2,), ("d",)), jax.sharding.PartitionSpec("d"))
        grads = jax.device_put(jnp.array([3.0, 4.0]), places)
        clip = clip_by_global_norm(2.5)
        found, state = jax.jit(clip.update)(grads, clip.init(grads))
        print(float(state.norm), found.tolist(), found.sharding == places)
        where = {"mesh": places.mesh, "in_specs": places.spec, "out_specs": places.spec}
        alone = jax.shard_map(lambda x: clip.update(x, clip.init(x))[0], **where)
        print(jax.jit(alone)(grads).tolist())
    """
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    assert done.stdout == "5.0 [1.5, 2.0] True\n[2.5, 2.5]\n", done.stderr
