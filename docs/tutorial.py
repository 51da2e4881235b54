"""The trainings of the tutorial: ``python docs/tutorial.py`` runs them and draws the pictures.

There are ten trainings of 2000 steps, which take about ten seconds on one core. All start from the same weights and see the
same batches.
"""

import argparse
import io
import math
from pathlib import Path

import numpy as np

import gradclip
from gradclip.thresholds import Quantile, ZScore

INPUTS, HIDDEN, BATCH = 10, 32, 32
LEARNING_RATE, STEPS = 0.1, 2000
BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "0.7"


def truth(x):
    """Return the function that is to be learned, at the rows of `x`."""
    return np.sin(x[:, 0]) + x[:, 1] * np.tanh(x[:, 2])


def batch(rng):
    """Return inputs and noisy labels; the noise is Student's t of 1.5 degrees: mostly small, with infinite variance."""
    x = rng.standard_normal((BATCH, INPUTS))
    return x, truth(x) + 0.5 * rng.standard_t(1.5, BATCH)


def first_weights(rng):
    """Return the weights that every training starts from."""
    return {
        "hidden/weight": rng.standard_normal((INPUTS, HIDDEN)) / math.sqrt(INPUTS),
        "hidden/bias": np.zeros(HIDDEN),
        "output/weight": rng.standard_normal(HIDDEN) / math.sqrt(HIDDEN),
    }


def predict(weights, x):
    """Return the outputs of the network for the rows of `x`."""
    return np.tanh(x @ weights["hidden/weight"] + weights["hidden/bias"]) @ weights["output/weight"]


def per_sample_gradients(weights, x, y):
    """Return the gradients of half the squared error of each sample, as leaves of shape (batch, ...)."""
    hidden = np.tanh(x @ weights["hidden/weight"] + weights["hidden/bias"])
    error = hidden @ weights["output/weight"] - y
    inner = error[:, None] * weights["output/weight"] * (1 - hidden**2)
    return {
        "hidden/weight": x[:, :, None] * inner[:, None, :],
        "hidden/bias": inner,
        "output/weight": error[:, None] * hidden,
    }


def mean(samples):
    """Return the mean of the gradients of all samples."""
    return {path: leaf.mean(axis=0) for path, leaf in samples.items()}


# A technique takes the gradients of the samples and the weights. It returns the gradient of the step, the report, and the
# number that it compares with its threshold (the largest, if there are several).


def no_clipping(samples, weights):
    """Measure only."""
    grads = mean(samples)
    report = gradclip.clip_by_global_norm_(grads, math.inf)  # measures only
    return grads, report, report.norm


def by_value(samples, weights, c=0.2):
    """Clip each element."""
    grads = mean(samples)
    report = gradclip.clip_by_value_(grads, c)
    return grads, report, report.max_abs


def by_norm(samples, weights, max_norm=0.5):
    """Clip each leaf by its own norm."""
    grads = mean(samples)
    report = gradclip.clip_by_norm_(grads, max_norm)
    return grads, report, report.norms.max()


def by_global_norm(samples, weights, max_norm=2.0):
    """Clip all leaves by one norm."""
    grads = mean(samples)
    report = gradclip.clip_by_global_norm_(grads, max_norm)
    return grads, report, report.norm


def normalized(samples, weights, target=0.5):
    """Scale the gradient to one norm."""
    grads = mean(samples)
    report = gradclip.normalize_(grads, target)
    return grads, report, report.norm


def adaptive(samples, weights, clip_factor=0.2, eps=0.3):
    """Clip each unit by the norm of its weights."""
    grads = mean(samples)
    report = gradclip.clip_adaptive_(grads, weights, clip_factor, eps=eps, unit_axis=-1)  # weights: (inputs, outputs)
    units = [np.linalg.norm(weights["hidden/weight"], axis=0)]  # only for the picture; each 1-d leaf is one unit
    units += [[np.linalg.norm(weights[path])] for path in ("hidden/bias", "output/weight")]
    return grads, report, (report.norms / np.maximum(np.concatenate(units), eps)).max()


def per_sample(samples, weights, max_norm=4.0):
    """Clip each sample by its own norm, and take the mean."""
    sums, report = gradclip.per_sample_clip_sum(samples, max_norm)
    return {path: leaf / BATCH for path, leaf in sums.items()}, report, report.norms.max()


def techniques():
    """Return for each name a technique with new rules, what it compares with its threshold, and what it clips."""
    quantile, zscore = Quantile(q=0.9, warmup=20), ZScore()
    return {
        "no clipping": (no_clipping, "global norm", "steps"),
        "by value": (by_value, "largest element", "elements"),
        "by norm": (by_norm, "largest norm of a leaf", "leaves"),
        "by global norm": (by_global_norm, "global norm", "steps"),
        "Quantile": (lambda samples, weights: by_global_norm(samples, weights, quantile), "global norm", "steps"),
        "ZScore": (lambda samples, weights: by_global_norm(samples, weights, zscore), "global norm", "steps"),
        "normalised": (normalized, "global norm", "steps"),
        "adaptive (AGC)": (adaptive, "largest ratio of a unit", "units"),
        "per sample": (per_sample, "largest norm of a sample", "samples"),
    }


class Training:
    """The losses after each step, without the noise of labels, and the numbers in the reports."""

    def __init__(self, technique, steps, learning_rate=LEARNING_RATE):
        rng = np.random.default_rng(0)
        unseen = np.random.default_rng(1).standard_normal((1000, INPUTS))
        weights = first_weights(rng)
        self.losses, self.compared, self.thresholds, self.clipped, self.shares = [], [], [], [], []
        for _ in range(steps):
            grads, report, compared = technique(per_sample_gradients(weights, *batch(rng)), weights)
            gradclip.sgd_step_(weights, grads, learning_rate)
            self.losses.append(np.mean((predict(weights, unseen) - truth(unseen)) ** 2))
            self.compared.append(compared)
            self.thresholds.append(report.max_norm)
            self.clipped.append(report.clipped)
            self.shares.append(report.clipped_count / report.size)

    def final_loss(self):
        """Return the median of the last 300 losses."""
        return np.median(self.losses[-300:])

    def worst_loss(self):
        """Return the largest loss of the second half."""
        return np.max(self.losses[len(self.losses) // 2 :])


def grid(title, ylabel):
    """Return a figure of nine panels, which is not part of pyplot's global state, and the panels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7.5), layout="constrained")
    panels = figure.subplots(3, 3, sharex=True, sharey=ylabel is not None)
    figure.suptitle(title)
    for axes in panels.flat:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[-1]:
        axes.set_xlabel("step")
    for axes in panels[:, 0] if ylabel else ():
        axes.set_ylabel(ylabel)
    return figure, panels.flat


def draw_losses(runs, slow):
    """Return the figure of losses; `slow` is the training with a tenth of the learning rate."""
    figure, panels = grid("Loss on unseen data: median of the last 300 steps, and worst of the second half", "loss")
    without = runs["no clipping"]
    for axes, (name, run) in zip(panels, runs.items(), strict=True):
        axes.plot(without.losses, color=GREY, lw=0.7, label=f"no clipping, learning rate {LEARNING_RATE:g}")
        if run is without:
            axes.plot(slow.losses, color=ORANGE, lw=1.4, label=f"no clipping, learning rate {LEARNING_RATE / 10:g}")
        else:
            axes.plot(run.losses, color=BLUE, lw=0.9, label=f"this technique, learning rate {LEARNING_RATE:g}")
        worst = f"{run.worst_loss():.2f}" if run.worst_loss() < 10 else f"{run.worst_loss():.0f}"
        axes.set_title(f"{name}: {run.final_loss():.2f}, worst {worst}", loc="left", fontsize=10)
    handles = [*panels[0].get_lines(), panels[1].get_lines()[1]]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def draw_norms(runs):
    """Return the figure of the numbers that are compared with thresholds."""
    figure, panels = grid("What each technique compares with its threshold, step by step", None)
    for axes, (name, run) in zip(panels, runs.items(), strict=True):
        _, compared, what = techniques()[name]
        steps, values, clipped = np.arange(len(run.losses)), np.array(run.compared), np.array(run.clipped)
        axes.plot(steps[~clipped], values[~clipped], ".", color=BLUE, ms=2, label="not clipped")
        axes.plot(steps[clipped], values[clipped], ".", color=ORANGE, ms=2, label="clipped")
        axes.plot(steps, np.where(np.isinf(run.thresholds), np.nan, run.thresholds), "k", lw=0.8, label="threshold")
        axes.set_title(f"{name}: clipped {np.mean(run.shares):.0%} of {what}", loc="left", fontsize=10)
        axes.set_ylabel(compared, fontsize=9)
    figure.legend(handles=panels[0].get_lines(), loc="outside lower center", ncols=3, frameon=False, markerscale=4)
    return figure


def save(figure, path):
    """Save a figure as a PNG of 128 colours, which has less than half of the usual size."""
    from PIL import Image

    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=90)
    Image.open(picture).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def main(steps=STEPS, folder=Path(__file__).parent):
    """Train with each technique, save both pictures in `folder`, and return the trainings by name."""
    runs = {name: Training(technique, steps) for name, (technique, *_) in techniques().items()}
    slow = Training(no_clipping, steps, LEARNING_RATE / 10)
    for name, figure in ("losses", draw_losses(runs, slow)), ("norms", draw_norms(runs)):
        save(figure, Path(folder) / f"tutorial_{name}.png")
    for name, run in {**runs, "no clipping, a tenth of the rate": slow}.items():
        print(f"{name:33} loss {run.final_loss():6.3f}, worst {run.worst_loss():7.3g}, clipped {np.mean(run.shares):6.1%}")
    return runs


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent)
    main(**vars(parser.parse_args()))
