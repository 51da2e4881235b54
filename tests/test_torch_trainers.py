"""`gradclip.torch.patch` under the trainers of others, which look PyTorch's functions up when they call them."""

import logging
import math

import pytest

torch = pytest.importorskip("torch")

import gradclip.torch  # noqa: E402
from gradclip.torch import clip_grad  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # those of other packages are no errors here


@pytest.fixture
def calls(monkeypatch):
    """The norms that our function has returned to somebody."""
    made, ours = [], clip_grad.clip_grad_norm_

    def counting(*args, **kwargs):
        made.append(float(ours(*args, **kwargs)))
        return torch.tensor(made[-1])

    monkeypatch.setattr(clip_grad, "clip_grad_norm_", counting)
    return made


def model_and_data():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    return model, torch.utils.data.TensorDataset(torch.randn(24, 4), 5 * torch.randn(24, 1))


def assert_same_training(train, calls):
    """A training gives the same losses with PyTorch's functions and with ours, which are called, and do clip."""
    want = train()
    assert not calls
    with gradclip.torch.patch():
        found = train()
    assert len(calls) == len(want) > 3
    assert max(calls) > 0.1
    assert found == pytest.approx(want, rel=1e-5)
    del calls[:]
    assert train() == want
    assert not calls


def test_accelerate(calls, tmp_path):
    accelerate = pytest.importorskip("accelerate", exc_type=ImportError)

    def train():
        model, data = model_and_data()
        accelerator = accelerate.Accelerator(cpu=True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        loader = torch.utils.data.DataLoader(data, batch_size=4)
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        losses = []
        for x, y in loader:
            loss = torch.nn.functional.mse_loss(model(x), y)
            accelerator.backward(loss)
            norm = accelerator.clip_grad_norm_(model.parameters(), 0.1)
            assert math.isfinite(norm)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    assert_same_training(train, calls)


def test_the_trainer_of_transformers(calls, tmp_path):
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    pytest.importorskip("accelerate", exc_type=ImportError)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body, _ = model_and_data()

        def forward(self, x, labels):
            return {"loss": torch.nn.functional.mse_loss(self.body(x), labels)}

    def train():
        model, data = Model(), model_and_data()[1]
        args = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            max_grad_norm=0.1,
            max_steps=6,
            per_device_train_batch_size=4,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        rows = [{"x": x, "labels": y} for x, y in data]
        trainer = transformers.Trainer(model=model, args=args, train_dataset=rows)
        trainer.train()
        return [row["loss"] for row in trainer.state.log_history if "loss" in row]

    assert_same_training(train, calls)


def test_lightning(calls, tmp_path, monkeypatch):
    lightning = pytest.importorskip("lightning.pytorch", exc_type=ImportError)
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "level", logging.ERROR)
    losses = []

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.body, _ = model_and_data()

        def training_step(self, batch, _):
            x, y = batch
            loss = torch.nn.functional.mse_loss(self.body(x), y)
            losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=0.01)

    def train():
        del losses[:]
        trainer = lightning.Trainer(
            max_epochs=1,
            gradient_clip_val=0.1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(Module(), torch.utils.data.DataLoader(model_and_data()[1], batch_size=4))
        return list(losses)

    assert_same_training(train, calls)


def test_an_attached_optimizer_under_lightning(tmp_path):
    """It gives each step a closure, which makes the gradients."""
    lightning = pytest.importorskip("lightning.pytorch", exc_type=ImportError)

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.body, _ = model_and_data()

        def training_step(self, batch, _):
            x, y = batch
            return torch.nn.functional.mse_loss(self.body(x), y)

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.01, fused=True)
            self.attached = gradclip.torch.attach(optimizer, 0.1, fold=True)
            return optimizer

    module = Module()
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, torch.utils.data.DataLoader(model_and_data()[1], batch_size=4))
    assert module.attached.report.clipped
    assert module.attached.report.norm > 0.1


def test_timm(calls, timm_utils):
    from timm.utils import clip_grad as utils

    def train():
        model, data = model_and_data()
        optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1), []
        for x, y in torch.utils.data.DataLoader(data, batch_size=4):
            loss = torch.nn.functional.mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            utils.dispatch_clip_grad(model.parameters(), 0.1, mode="norm")
            optimizer.step()
            losses.append(loss.item())
        return losses

    assert_same_training(train, calls)
