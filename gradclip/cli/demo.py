"""``gradclip demo``: a small recurrent network, trained once without clipping and once with it.

A recurrent network multiplies by the same matrix at every time step, so the gradient that flows back through T steps holds
products of T Jacobians. If singular values of that matrix exceed 1, these products can grow exponentially with T: the loss,
as a function of the weights, has cliffs. One plain gradient step at a cliff goes so far that the network is worse than at the
start, and it does not recover. Clipping by the global norm keeps the direction of that step and bounds its length (Pascanu,
Mikolov, Bengio, "On the difficulty of training recurrent neural networks", ICML 2013).

Nothing is staged: both networks start from the same weights, read the same text in the same order and take plain SGD steps
with the same learning rate. Nor is that rate too large in itself: if `d_later` is kept at 0, so that no gradient flows through
time, the network learns without clipping too, but less.

Under mpiexec, ranks share out the batch and the rows of the weights. A rank finds the gradients of some parts of the batch. The
parts are the same for any number of ranks, and are added up in the same order: so gradients have the same bits. Each rank clips
its rows by the norm of all rows, which has the same bits too, and makes its step with these.
"""

from __future__ import annotations

import math
import operator
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

import gradclip

from .._core.arguments import number
from .._saving import Figure, Name, check_picture, need_matplotlib, new_figure, save_picture
from .npy import Array
from .sharing import Ranks, started_together
from .terminal import show_table, shown

# Real text that comes with Python: some 450,000 characters of its standard library.
SOURCES = "argparse", "csv", "difflib", "inspect", "json/decoder", "shutil", "statistics", "textwrap"
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))

# At 16 x 128 the products of one time step are too small for OpenBLAS to use several threads, which would wait for each other
# longer than they work, and on a busy machine much longer.
BATCH, UNITS, LENGTH = 16, 128, 100
PARTS = 4  # of a batch
LEARNING_RATE = 1.0
AVERAGED = 50  # the final loss is the mean of so many steps


class Network:
    """A vanilla recurrent network: h[t] = tanh(W_in[x[t]] + h[t-1] W_rec + b), logits[t] = h[t] W_out + c.

    W_rec starts as 1.5 times a random orthogonal matrix, so all of its singular values are 1.5. The other weights start small,
    so that all characters are predicted with nearly the same probability at first.
    """

    def __init__(
        self, rng: np.random.Generator, characters: str = CHARACTERS, units: int = UNITS, dtype: Any = np.float32
    ) -> None:
        orthogonal, _ = np.linalg.qr(rng.standard_normal((units, units)))
        weights = {
            "input": 0.1 * rng.standard_normal((len(characters), units)),
            "recurrent": 1.5 * orthogonal,
            "bias": np.zeros(units),
            "output": 0.1 / math.sqrt(units) * rng.standard_normal((units, len(characters))),
            "output_bias": np.zeros(len(characters)),
        }
        self.weights: dict[str, Array] = {name: values.astype(dtype) for name, values in weights.items()}

    def next_state(self, state: Array, character: Any) -> Array:
        """Return the state after reading one more character, given by its position in `CHARACTERS`."""
        w = self.weights
        new: Array = np.tanh(w["input"][character] + state @ w["recurrent"] + w["bias"])
        return new

    def loss_and_gradients(self, x: Array, y: Array) -> tuple[float, dict[str, Array]]:
        """Return the mean cross-entropy (nats per character) of predicting `y` from `x`, and its gradients by weight.

        `x` and `y` are positions of characters, with the shape (time, batch).
        """
        w = self.weights
        states = np.zeros((len(x) + 1, x.shape[1], len(w["bias"])), w["bias"].dtype)
        for t, character in enumerate(x):
            states[t + 1] = self.next_state(states[t], character)
        before, after = states[:-1], states[1:]

        logits = after @ w["output"] + w["output_bias"]
        logits -= logits.max(axis=-1, keepdims=True)
        log_chances = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        loss = -np.take_along_axis(log_chances, y[..., None], axis=-1).mean()

        # Back-propagation through time: the derivative by a state, through its own output and through all later ones.
        one_hot = np.eye(logits.shape[-1], dtype=logits.dtype)
        d_logits = (np.exp(log_chances) - one_hot[y]) / y.size
        d_state, d_later = d_logits @ w["output"].T, 0
        d_inner = 1 - after**2  # the derivative of tanh
        for t in reversed(range(len(x))):
            d_inner[t] *= d_state[t] + d_later
            d_later = d_inner[t] @ w["recurrent"].T
        return float(loss), {
            "input": _sum_of_products(one_hot[x], d_inner),
            "recurrent": _sum_of_products(before, d_inner),
            "bias": d_inner.sum(axis=(0, 1)),
            "output": _sum_of_products(after, d_logits),
            "output_bias": d_logits.sum(axis=(0, 1)),
        }

    @np.errstate(over="ignore", invalid="ignore")
    def sample(self, rng: np.random.Generator, count: int, temperature: float = 0.8) -> str:
        """Return a line break and the `count` characters that the network writes after it."""
        text, state = "\n", np.zeros_like(self.weights["bias"])
        for _ in range(count):
            state = self.next_state(state, CHARACTERS.index(text[-1]))
            logits = state @ self.weights["output"] + self.weights["output_bias"]
            text += CHARACTERS[np.argmax(logits / temperature + rng.gumbel(size=len(logits)))]
        return text


def _sum_of_products(a: Array, b: Array) -> Array:
    """Return the sum over time of a[t].T @ b[t], products that are small enough for one thread."""
    products: Array = a.swapaxes(1, 2) @ b
    total: Array = products.sum(axis=0)
    return total


@dataclass
class Training:
    """The losses, norms and times of one training, to its end or to the first gradient that is not finite."""

    network: Network
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    clipped: list[bool] = field(default_factory=list)
    seconds: float = 0.0
    clipping_seconds: float = 0.0

    @property
    def final_loss(self) -> Any:
        """The mean of the last losses; NaN if the training ended early."""
        return np.mean(self.losses[-AVERAGED:]) if math.isfinite(self.norms[-1]) else math.nan


@np.errstate(over="ignore", invalid="ignore")  # a diverging network may overflow: that is its result
def train(
    text: Array,
    steps: int,
    max_norm: float | None,
    seed: int,
    watch: Callable[[float], None] = lambda loss: None,
    ranks: Ranks | None = None,
) -> Training:
    """Return a training by plain SGD on random stretches of `text`, without clipping if `max_norm` is None.

    `watch` is called with the loss of each step. `ranks` share out the work, by default this process has it alone.
    """
    ranks = ranks or Ranks()
    rng = np.random.default_rng(seed)
    run = Training(Network(rng))
    started = time.perf_counter()
    for _ in range(steps):
        batch = text[rng.integers(len(text) - LENGTH, size=BATCH) + np.arange(LENGTH + 1)[:, None]]
        own = [run.network.loss_and_gradients(x[:-1], x[1:]) for x in ranks.share(np.split(batch, PARTS, axis=1))]
        found = ranks.together(own)  # in the order of the parts: what is added up does not depend on the ranks
        loss = sum(loss for loss, _ in found) / PARTS
        weights = run.network.weights
        gradients = {name: reduce(np.add, [ranks.rows(part[name]) for _, part in found]) / PARTS for name in weights}
        before = time.perf_counter()
        report = _clip(gradients, max_norm, ranks)
        run.clipping_seconds += time.perf_counter() - before
        run.losses.append(loss)
        run.norms.append(report.norm)
        run.clipped.append(report.clipped)
        watch(loss)
        if not math.isfinite(report.norm):
            break  # this step would make all weights NaN
        for name, gradient in gradients.items():
            stepped = ranks.rows(weights[name]) - LEARNING_RATE * gradient
            weights[name] = np.concatenate(ranks.together([stepped]))
    run.seconds = time.perf_counter() - started
    return run


def _clip(gradients: dict[str, Array], max_norm: float | None, ranks: Ranks) -> gradclip.ClipReport:
    """Clip this rank's gradients by the norm of all, which is the one difference between the two trainings: None only measures.

    NaN and Inf are let through, since no threshold helps: train() ends."""
    threshold = math.inf if max_norm is None else max_norm
    return gradclip.clip_by_global_norm_(gradients, threshold, nonfinite="propagate", comm=ranks.comm)


def standard_library() -> Array:
    """Return the text as positions in `CHARACTERS`, without the few characters that are not in it."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    try:
        text = "\n".join((folder / f"{name}.py").read_text(encoding="utf-8") for name in SOURCES)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"the demo needs the sources of Python's standard library: no {error.filename}") from None
    position = {character: i for i, character in enumerate(CHARACTERS)}
    return np.array([position[character] for character in text if character in position])


def run(
    plot: Name = "gradclip_demo.png", *, steps: int = 1500, max_norm: float = 0.75, seed: int = 0
) -> tuple[Training, Training]:
    """Train the network without and with clipping, print a table and save a picture.

    Under mpiexec all ranks train together, with the same numbers as one process. The first rank prints and saves.

    Parameters
    ----------
    plot : path, default "gradclip_demo.png"
        Where the picture is saved. The suffix chooses its format, PNG if there is none.
    steps : int, default 1500
        The number of steps of each training, at least 1.
    max_norm : float, default 0.75
        The threshold of the training with clipping.
    seed : int, default 0
        The seed of the first weights, of the order of the text and of the sample.

    Returns
    -------
    without, clipped : Training
        The losses (nats per character), the gradient norms and the times (seconds) of both trainings.

    Raises
    ------
    ImportError, OSError, ValueError
        Matplotlib, rich, mpi4py under mpiexec or Python's own sources are missing, or an argument cannot be used.
    """
    need_matplotlib("the demo", extra="demo")
    try:
        import rich.console
    except ImportError as error:
        raise ImportError(f'the demo needs rich: pip install "gradclip[demo]" ({error})') from error
    check_picture(plot)
    for name, value, least in ("steps", steps, 1), ("seed", seed, 0):
        if operator.index(value) < least:
            raise ValueError(f"{name} must be at least {least}, not {value}")
    max_norm = number("max_norm", max_norm, 0.0)
    text, ranks = standard_library(), started_together()

    show = rich.console.Console(highlight=False, markup=False, emoji=False, soft_wrap=True, quiet=ranks.rank > 0)
    network = f"{UNITS} tanh units, SGD with learning rate {LEARNING_RATE}, seed {seed}"
    together = f": {ranks.size} ranks share each batch" if ranks.size > 1 else ""
    show.print(f"A recurrent network ({network})\nreads {len(text):,} characters of Python's standard library{together}.\n")
    without, clipped = _train_both(show, text, steps, max_norm, seed, ranks)
    if ranks.rank > 0:
        return without, clipped
    show_table(("", "without clipping", f"clipped at {max_norm:g}"), _rows(without, clipped))
    save_picture(_draw(without, clipped, max_norm, network), plot)
    show.print(f"\nPicture saved as {shown(plot)}\n\nThe network trained with clipping writes:")
    show.print(clipped.network.sample(np.random.default_rng(seed), 250))
    return without, clipped


def _train_both(console: Any, text: Array, steps: int, max_norm: float, seed: int, ranks: Ranks) -> tuple[Training, Training]:
    """Return the two trainings, without and with clipping, and show progress bars on a terminal."""
    from rich.progress import Progress, TextColumn

    columns = *Progress.get_default_columns(), TextColumn("loss {task.fields[loss]:.2f}")
    runs = []
    with Progress(*columns, console=console, disable=console.quiet or not console.is_terminal) as progress:
        for name, threshold in ("without clipping", None), ("with clipping", max_norm):
            task = progress.add_task(name, total=steps, loss=math.nan)

            def watch(loss: float, task: Any = task) -> None:
                """Move the progress bar of this training by one step."""
                progress.update(task, advance=1, loss=loss)

            runs.append(train(text, steps, threshold, seed, watch, ranks))
    without, clipped = runs
    return without, clipped


def _rows(without: Training, clipped: Training) -> list[tuple[str, str, str]]:
    """Return the rows of the table: what is compared, and its value in each of the two trainings."""
    cells: dict[str, Callable[[Training], str]] = {
        "first loss, nats per character": lambda run: f"{run.losses[0]:.2f}",
        f"final loss, mean of last {min(AVERAGED, len(clipped.losses))} steps": lambda run: f"{run.final_loss:.2f}",
        "gradient norm, median": lambda run: f"{np.median(run.norms):.3g}",
        "gradient norm, largest": lambda run: f"{np.max(run.norms):.3g}",
        "steps taken before NaN or Inf": lambda run: f"{np.isfinite(run.norms).sum():,}",
        "clip rate": lambda run: "-" if run is without else f"{np.mean(run.clipped):.1%}",
        "time": lambda run: f"{run.seconds:.1f} s",
        "of it in clipping": lambda run: "-" if run is without else f"{run.clipping_seconds:.3f} s",
        "share of clipping": lambda run: "-" if run is without else f"{run.clipping_seconds / run.seconds:.2%}",
    }
    return [(name, cell(without), cell(clipped)) for name, cell in cells.items()]


def _draw(without: Training, clipped: Training, max_norm: float, network: str) -> Figure:
    """Return a figure with the loss and the gradient norm of both trainings."""
    from matplotlib.ticker import LogLocator

    figure = new_figure(9, 7.5)
    loss, norm = figure.subplots(2, sharex=True)
    for run, name, color in (without, "without clipping", "#D55E00"), (clipped, "with clipping", "#0072B2"):
        for axes, values in (loss, run.losses), (norm, run.norms):
            smooth = [np.median(values[i - min(i, 12) : i + min(i, 12) + 1]) for i in range(len(values))]
            axes.loglog(range(1, len(values) + 1), values, color=color, alpha=0.4, linewidth=0.7)
            axes.loglog(range(1, len(values) + 1), smooth, color=color, linewidth=2, label=name)
    guess = loss.axhline(math.log(len(CHARACTERS)), color="0.3", linestyle=":", label="loss of uniform guessing")
    norm.axhline(max_norm, color="black", linestyle="--", label=f"threshold {max_norm:g}")
    where = np.flatnonzero(clipped.clipped)
    norm.plot(where + 1, np.array(clipped.norms)[where], "k.", ms=3, label=f"clipped steps ({np.mean(clipped.clipped):.0%})")
    if norm.get_ylim()[1] > 1e4:
        norm.set_ylim(np.nanmin(clipped.norms) / 2, 1e4)  # higher spikes would flatten all the rest

    ends = f"the loss ends at {without.final_loss:.2f} nats without clipping, at {clipped.final_loss:.2f} with it"
    figure.suptitle(f"Same start, same text, same learning rate: {ends}")
    loss.set_title(f"{network}; thick lines: running median of 25 steps", fontsize=9)
    norm.set_title(f"largest: {np.max(without.norms):.3g} without clipping, {np.max(clipped.norms):.3g} with it", fontsize=9)
    loss.set_ylabel("loss (nats per character)")
    norm.set(xlabel="training step", ylabel="global norm of the gradient")
    loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    loss.yaxis.set_minor_formatter("")
    for axis in loss.yaxis, norm.yaxis, norm.xaxis:
        axis.set_major_formatter("{x:g}")
    handles = [*norm.get_legend_handles_labels()[0], guess]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9)
    return figure
