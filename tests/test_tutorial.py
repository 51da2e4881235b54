"""The documentation: the tutorial's script runs, its pictures are there, and the API page lists every public name."""

import ast
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

import gradclip

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def tutorial():
    spec = importlib.util.spec_from_file_location("gradclip_tutorial", DOCS / "tutorial.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_every_technique_trains_and_is_drawn(tutorial, tmp_path):
    pytest.importorskip("matplotlib")
    runs = tutorial.main(100, tmp_path)
    assert list(runs) == list(tutorial.techniques())
    for name, run in runs.items():
        assert len(run.losses) == 100
        assert np.isfinite(run.losses).all()
        assert any(run.clipped) == (name != "no clipping")
    for name in "losses", "norms":
        assert (tmp_path / f"tutorial_{name}.png").read_bytes().startswith(b"\x89PNG")
        assert 10_000 < (DOCS / f"tutorial_{name}.png").stat().st_size < 120_000


def test_gradients_of_the_tutorial_are_those_of_its_loss(tutorial):
    rng = np.random.default_rng(0)
    weights, (x, y) = tutorial.first_weights(rng), tutorial.batch(rng)
    grads = tutorial.mean(tutorial.per_sample_gradients(weights, x, y))

    def loss():
        return np.mean((tutorial.predict(weights, x) - y) ** 2) / 2

    for path, grad in grads.items():
        for index in np.ndindex(grad.shape):
            if rng.random() < 20 / grad.size:
                kept, values = weights[path][index], []
                for step in 1e-5, -1e-5:
                    weights[path][index] = kept + step
                    values.append(loss())
                weights[path][index] = kept
                assert grad[index] == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-6)


def test_the_api_page_lists_every_public_name():
    listed = set(re.findall(r"^\.\. auto\w+:: (?:gradclip\.)?(\S+)$", (DOCS / "api.md").read_text("utf-8"), re.MULTILINE))
    public = set(gradclip.__all__) - {"__version__", "monitor", "thresholds"}
    for room in (gradclip.monitor, gradclip.thresholds):
        own = set(room.__all__) - set(gradclip.__all__)
        public |= {f"{room.__name__.removeprefix('gradclip.')}.{name}" for name in own}
    for room in ("torch", "jax"):  # which may not be importable here
        text = (Path(gradclip.__file__).parent / room / "__init__.py").read_text("utf-8")
        names = re.search(r"^__all__ = (\[.*?\])", text, re.MULTILINE | re.DOTALL)[1]
        public |= {f"{room}.{name}" for name in ast.literal_eval(names)}
    assert listed == public


def test_every_page_is_in_a_toctree():
    toctrees = re.findall(r"```\{toctree\}\n(.*?)```", (DOCS / "index.md").read_text("utf-8"), re.DOTALL)
    listed = [line for block in toctrees for line in block.split("\n") if line and not line.startswith(":")]
    pages = {str(page.relative_to(DOCS).with_suffix("")).replace("\\", "/") for page in DOCS.rglob("*.md")} - {"index"}
    assert sorted(listed) == sorted(pages)
