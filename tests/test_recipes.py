"""docs/recipes.md: each program runs in a training. Those whose package is not installed are skipped."""

import importlib
import math
import os
import re
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import child_process
import numpy as np
import pytest

import gradclip

PAGE = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text(encoding="utf-8")
PROGRAMS = dict(re.findall(r"^## (.*?)\n.*?```python\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL))

pytestmark = pytest.mark.filterwarnings("default")  # those of other packages are no errors here


@pytest.fixture(autouse=True)
def environment():
    """Take back what a package sets in the environment of this process: Dask's nanny sets OMP_NUM_THREADS to 1."""
    with mock.patch.dict(os.environ):
        yield


def run(recipe, **names):
    """The names that the program of a recipe leaves, which begins with some."""
    names = {**names, "gradclip": gradclip, "np": np}
    exec(PROGRAMS[recipe], names)
    return names


def optional(name):
    """A package that .ci/run does not install, where no test that it runs may be left out for others."""
    return pytest.importorskip(name, exc_type=ImportError, reason=f"{name} is not installed")


@pytest.fixture
def torch():
    found = pytest.importorskip("torch")
    importlib.import_module("gradclip.torch")
    found.manual_seed(0)
    return found


def training(torch, size=100):
    """A model, its optimizer and batches of data, the gradients of which are large."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    data = torch.utils.data.TensorDataset(torch.randn(24, 4), size * torch.randn(24, 1))
    return model, torch.optim.SGD(model.parameters(), lr=0.01), data


def norm_of(model):
    return gradclip.global_norm([p.grad for p in model.parameters()])


def test_every_recipe_is_run():
    tests = {name for name in globals() if name.startswith("test_")}
    assert {"test_" + re.sub(r"\W+", "_", name).lower() for name in PROGRAMS} < tests
    assert PAGE.count("```python") == len(PROGRAMS)


def test_lightning(torch, tmp_path):
    lightning = pytest.importorskip("lightning.pytorch", exc_type=ImportError)
    clipping, (body, _, data) = run("Lightning", lightning=lightning)["Clipping"], training(torch)
    norms, logged = [], []

    class Model(clipping):
        def __init__(self):
            super().__init__()
            self.body = body

        def training_step(self, batch, _):
            return torch.nn.functional.mse_loss(self.body(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

        def on_before_zero_grad(self, _):
            if self.body[0].weight.grad is not None:
                norms.append(norm_of(self.body))
                logged.append(float(self.trainer.callback_metrics["grad_norm"]))

    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    trainer.fit(Model(), torch.utils.data.DataLoader(data, batch_size=8))
    assert norms
    assert norms == pytest.approx([1.0] * len(norms), rel=1e-5)
    assert min(logged) > 1.0


def test_fabric(torch):
    fabric = pytest.importorskip("lightning.fabric", exc_type=ImportError).Fabric(accelerator="cpu", devices=1)
    model, optimizer, data = training(torch)
    model, optimizer = fabric.setup(model, optimizer)
    fabric.backward(torch.nn.functional.mse_loss(model(data.tensors[0]), data.tensors[1]))
    before = norm_of(model)
    norm = run("Fabric", fabric=fabric, model=model, optimizer=optimizer)["norm"]
    assert float(norm) == np.float32(before) > 1.0
    assert norm_of(model) == pytest.approx(1.0, rel=1e-5)


def test_accelerate(torch):
    accelerator = pytest.importorskip("accelerate", exc_type=ImportError).Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, optimizer, data = training(torch)
    loader = torch.utils.data.DataLoader(data, batch_size=6)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    clipped = 0
    for x, y in loader:
        with accelerator.accumulate(model):
            accelerator.backward(torch.nn.functional.mse_loss(model(x), y))
            before = norm_of(model)
            norm = run("Accelerate", accelerator=accelerator, model=model).get("norm")
            if norm is not None:
                clipped += 1
                assert float(norm) == np.float32(before) > 1.0
                assert norm_of(model) == pytest.approx(1.0, rel=1e-5)
            optimizer.step()
            optimizer.zero_grad()
    assert clipped == 2


def test_the_trainer_of_transformers(torch, tmp_path):
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    pytest.importorskip("accelerate", exc_type=ImportError)
    callback = run("The Trainer of transformers", transformers=transformers)["Clip"](1.0)
    body, _, data = training(torch)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = body

        def forward(self, x, labels):
            return {"loss": torch.nn.functional.mse_loss(self.body(x), labels)}

    usual = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "logging_steps": 1}
    args = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_grad_norm=0, max_steps=4, per_device_train_batch_size=6, **usual
    )
    rows = [{"x": x, "labels": y} for x, y in data]
    trainer = transformers.Trainer(model=Model(), args=args, train_dataset=rows, callbacks=[callback])
    trainer.train()
    logs = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["clip_rate"] for row in logs] == [1.0] * 4
    assert logs[0]["median_norm"] == callback.monitor.norms[0] > 1.0
    assert callback.monitor.steps == 4


def test_a_gradscaler_that_leaves_a_step_out(torch):
    model, optimizer, data = training(torch)
    step = run("A GradScaler that leaves a step out", torch=torch, model=model, optimizer=optimizer)["step"]
    x, y = data.tensors
    model(x).sub(y).pow(2).mean().backward()
    norm, weights = norm_of(model), [p.detach().clone() for p in model.parameters()]
    report = step(model(x).sub(y).pow(2).mean() * math.inf)
    assert report.skipped
    assert all(torch.equal(p, was) for p, was in zip(model.parameters(), weights, strict=True))
    report = step(model(x).sub(y).pow(2).mean())
    assert (report.skipped, report.norm) == (False, pytest.approx(norm, rel=1e-5))
    change = [p.detach() - was for p, was in zip(model.parameters(), weights, strict=True)]
    assert gradclip.global_norm(change) == pytest.approx(0.01, rel=1e-3)


def test_leaving_spikes_out_from_some_step_on():
    rng = np.random.default_rng(0)
    sizes = np.where(np.isin(np.arange(200), [50, 150]), 1e3, 0.08)
    taken = []
    gradients = [size * rng.standard_normal(100) for size in sizes]
    monitor = run("Leaving spikes out, from some step on", gradients=gradients, update=taken.append)["monitor"]
    assert monitor.summary()["skipped"] == 1
    assert [np.array_equal(a, b) for a, b in zip(taken, gradients[:150] + gradients[151:], strict=True)] == [True] * 199


KERAS = """
import keras
import numpy as np
from test_recipes import run

import gradclip

modules = {}
if keras.backend.backend() == "jax":
    import gradclip.jax
elif keras.backend.backend() == "tensorflow":
    import tensorflow

    modules["tensorflow"] = tensorflow
keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(1)])
model.compile(optimizer=run("Keras", keras=keras, **modules)["ClippedSGD"](0.1), loss="mse")
data = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
for _ in range(2):
    before = [w.copy() for w in model.get_weights()]
    model.fit(data[:, :4], 100 * data[:, 4:], batch_size=6, epochs=1, verbose=0)
    moved = gradclip.global_norm([w - was for w, was in zip(model.get_weights(), before)])
    assert abs(moved - 0.1) < 1e-5, moved
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "jax", "tensorflow"])
def test_keras(backend):
    """A step of SGD goes as far as the learning rate, where the gradient is larger than 1. Keras has one backend a process."""
    for name in ("keras", backend, *(["optax"] if backend == "jax" else [])):
        if find_spec(name) is None:  # to import Keras here would choose a backend
            pytest.skip(f"{name} is not installed")
    folders = os.pathsep.join(map(str, (Path(__file__).parent, Path(gradclip.__file__).parents[1])))
    path = os.pathsep.join(filter(None, (folders, os.environ.get("PYTHONPATH"))))
    done = child_process.run(KERAS, KERAS_BACKEND=backend, PYTHONPATH=path, JAX_PLATFORMS="cpu")
    assert done.returncode == 0, done.stderr


def test_skorch(torch):
    skorch = optional("skorch")
    model, _, data = training(torch)
    net = skorch.NeuralNetRegressor(
        model, max_epochs=2, batch_size=8, train_split=None, verbose=0, callbacks=[run("skorch", skorch=skorch)["Clip"]()]
    )
    net.fit(data.tensors[0].numpy(), data.tensors[1].numpy())
    assert min(batch["grad_norm"] for epoch in net.history for batch in epoch["batches"]) > 1.0
    assert norm_of(net.module_) == pytest.approx(1.0, rel=1e-5)


def test_stable_baselines3(torch, monkeypatch):
    sb3 = optional("stable_baselines3")
    from gradclip.torch import clip_grad

    norms, ours = [], clip_grad.clip_grad_norm_
    monkeypatch.setattr(clip_grad, "clip_grad_norm_", lambda *args, **kw: norms.append(ours(*args, **kw)))
    model = sb3.PPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=64, n_epochs=2, max_grad_norm=0.01, device="cpu", seed=0)
    run("Stable-Baselines3", model=model)
    assert len(norms) == 4
    assert norm_of(model.policy) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("change", [0.0, 5.0])
def test_flower(change):
    app = optional("flwr.app")
    clip_update = run("Flower", ArrayRecord=app.ArrayRecord, Array=app.Array)["clip_update"]

    def record(*arrays):
        return app.ArrayRecord({f"layer{i}": app.Array(np.asarray(a, np.float32)) for i, a in enumerate(arrays)})

    def message(*arrays):
        return SimpleNamespace(content=app.RecordDict({"arrays": record(*arrays)}), has_error=lambda: False)

    def train(sent, _):
        found = sent.content["arrays"].to_numpy_ndarrays()
        return message(found[0] + 0.6 * change, found[1] + 0.8 * change)

    first, second = clip_update(message([1.0], 2.0), None, train).content["arrays"].to_numpy_ndarrays()
    want = [1.6, 2.8] if change else [1.0, 2.0]
    np.testing.assert_allclose([first[0], second], want, rtol=1e-6)


def shards(count=3):
    """The gradients of one model in several nestings, their norm, and what they are when they are clipped together."""
    rng = np.random.default_rng(1)
    made = [{f"layer{i}": rng.standard_normal((4, i + 1)), "bias": rng.standard_normal(3)} for i in range(count)]
    clipped, report = gradclip.clip_by_global_norm(made, 1.0)
    return made, report, clipped


def test_dask():
    distributed = optional("distributed")
    made, report, expected = shards()
    settings = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**settings) as cluster, distributed.Client(cluster) as client:
        found = run("Dask", client=client, shards=made, gradients_of=lambda shard: shard)
        results = [future.result(timeout=60) for future in found["clipped"]]
        norm = found["total"].result(timeout=60).norm
    assert norm == report.norm
    for (grads, told), want in zip(results, expected, strict=True):
        assert (told.norm, told.scale) == (report.norm, report.scale)
        assert all((grads[name] == want[name]).all() for name in want)


def test_ray():
    ray = optional("ray")
    made, report, _ = shards()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        found = run("Ray", ray=ray, shards=made)
    finally:
        ray.shutdown()
    assert found["total"].norm == report.norm
    assert found["scales"] == [report.scale] * len(made)


def test_hips_autograd():
    anp = optional("autograd.numpy")
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((32, 3)), rng.standard_normal(32)

    def loss(params):
        return anp.mean((anp.dot(x, params["layers"][0]) + params["bias"] - y) ** 2)

    params = {"layers": [np.full(3, 50.0)], "bias": np.zeros(())}
    report = run("HIPS autograd", loss=loss, params=params, steps=1)["report"]
    gradient = np.append(2 * x.T @ (x @ np.full(3, 50.0) - y) / 32, 2 * np.mean(x @ np.full(3, 50.0) - y))
    assert report.norm == pytest.approx(np.linalg.norm(gradient))
    assert report.clipped
    moved = np.append(params["layers"][0] - 50.0, params["bias"])
    np.testing.assert_allclose(moved, -0.1 * gradient / np.linalg.norm(gradient))
