"""The command ``gradclip``: its options, its exit status, and what is cleaned up when it ends early."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from .. import _saving
from .._version import __version__
from ..config import show_config
from ..errors import NonFiniteGradientError
from ..threads import get_num_threads
from . import terminal
from .terminal import say, shown


class OptionError(Exception):
    """The value of an option cannot be read. It is no ValueError, before which argparse would print its usage."""


class Parser(argparse.ArgumentParser):
    """A parser that prints errors without control characters: they repeat arguments, which may be names of any files."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and end with status 2."""
        super().error(shown(message))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments, by default those of the process. Without any, the help is printed.

    Returns
    -------
    int
        0 after success; 1 if NaN or Inf is an error; 2 after any other error of the input; 130 after Ctrl-C; 141 if the
        reader of standard output has left.
    """
    with _output():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    """Run the command, print its error as one line, and return its exit status."""
    try:
        with _cleaning_up():
            try:
                parser = _parser()
                arguments = parser.parse_args(argv)
                if arguments.run is None:
                    parser.print_help()
                    return 0
                arguments.run(arguments)
                return 0
            finally:
                print(end="", flush=True)  # if the reader has left, the error comes here and not at exit
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141  # the status that a shell gives to a program that SIGPIPE has ended
    except (ImportError, MemoryError, NonFiniteGradientError, OptionError, OSError, ValueError) as error:
        message = str(error).strip("\n") or type(error).__name__
        print(f"gradclip: error: {shown(message)}", file=sys.stderr)
        return 1 if isinstance(error, NonFiniteGradientError) else 2


@contextmanager
def _output() -> Iterator[None]:
    """Let standard output show characters that its encoding lacks as escapes, and drop what it cannot write at the end."""
    stream: Any = sys.stdout
    if not hasattr(stream, "reconfigure"):  # some other object has taken its place
        yield
        return
    errors = stream.errors
    stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        try:
            stream.reconfigure(errors=errors)  # flushes it
        except OSError:  # it was printed already, and Python would print it again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            stream.reconfigure(errors=errors)


@contextmanager
def _cleaning_up() -> Iterator[None]:
    """Leave no temporary file and no hidden cursor behind if SIGTERM or SIGHUP end the program in the ``with`` block."""

    def end(number: int, frame: FrameType | None) -> None:
        """Clean up, and end the program by the same signal."""
        # Not by an exception: if it were raised within a __del__, Python would print it and go on.
        _saving.remove_unfinished()
        terminal.show_cursor()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # no SIGHUP on Windows
    replaced = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    try:
        try:
            for number in replaced:
                signal.signal(number, end)
        except ValueError:  # only the main thread may set handlers
            replaced = []
        yield
    finally:
        for number in replaced:
            signal.signal(number, signal.SIG_DFL)


def _parser() -> Parser:
    """Return the parser of all commands; it sets `run` to the function that runs the command."""
    parser = Parser("gradclip", description="Fast, exact and safe gradient clipping.")
    parser.set_defaults(run=None)
    parser.add_argument("--version", action="version", version=f"gradclip {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    demo = commands.add_parser("demo", help="train a small network without and with clipping")
    demo.add_argument("--plot", metavar="PATH", default="gradclip_demo.png", help="where the picture is saved (%(default)s)")
    _add_number(demo, "--steps", "N", int, 1500, "steps of each training")
    _add_number(demo, "--max-norm", "C", float, 0.75, "threshold of the global norm")
    _add_number(demo, "--seed", "N", int, 0, "of the first weights, the order of the text and the sample")
    demo.set_defaults(run=_demo)

    clip = commands.add_parser("clip", help="clip a file of gradients by its global norm")
    clip.add_argument("file", metavar="FILE", help=".npz, .npy, .safetensors, .csv or .txt; - is text from standard input")
    _add_number(clip, "--max-norm", "C", float, None, "threshold of the norm of all arrays together; needed to write --out")
    clip.add_argument("--out", metavar="FILE", help="where the clipped gradients are written (nowhere); may be the same file")
    clip.add_argument("--dry-run", action="store_true", help="measure only, in spite of --out")
    clip.add_argument("--expand", action="store_true", help="read an archive even if it expands beyond all proportion")
    _add_number(clip, "--ord", "P", float, 2.0, "which norm: any number above 0, or inf")
    _add_number(clip, "--eps", "E", float, 0.0, "added to the norm; 1e-6 gives PyTorch's factor")
    _add_number(clip, "--grad-scale", "S", float, 1.0, "the file holds the gradients times this; they are written without it")
    clip.add_argument(
        "--nonfinite", metavar="DO", default="raise", help="about NaN and Inf: raise, skip, zero or propagate (%(default)s)"
    )
    _add_number(clip, "--top", "N", int, 20, "leaves in the table, at most: NaN and Inf first, then the largest norms")
    clip.set_defaults(run=_clip, parser=clip)

    suggest = commands.add_parser("suggest", help="thresholds from a file of logged norms")
    suggest.add_argument("file", metavar="FILE", help="CSV or text, a norm per line, # for comments; - is standard input")
    suggest.add_argument(
        "--column",
        metavar="NAME",
        help='of the norms (norm, else the one with "norm" in it); its number if no column has a name',
    )
    suggest.add_argument("--plot", metavar="PATH", help="save a histogram with the thresholds")
    suggest.set_defaults(run=_suggest)

    bench = commands.add_parser("bench", help="measure this machine, beside the memory limit, NumPy, SciPy and PyTorch")
    bench.add_argument("--plot", metavar="PATH", help="where a picture is saved (none)")
    bench.add_argument(
        "--dtype", metavar="D", nargs="+", default=["float32"], help="float16, bfloat16, float32, float64 (float32)"
    )
    _add_number(bench, "--threads", "N", int, get_num_threads(), "threads of gradclip, the limit and PyTorch")
    _add_number(bench, "--seconds", "S", float, 50.0, "about what it all may take")
    bench.set_defaults(run=_bench)

    info = commands.add_parser("info", help="version, instruction set, threads and optional packages")
    info.set_defaults(run=_info)
    return parser


def _add_number(
    parser: argparse.ArgumentParser, name: str, metavar: str, kind: type[int | float], default: float | None, text: str
) -> None:
    """Add an option whose value is an int or a float, as `kind` says."""

    def read(value: str) -> float:
        """Return the number that the text of an option stands for."""
        try:
            return kind(value)
        except ValueError:
            words = {int: "a whole number", float: "a number"}[kind]
            raise OptionError(f"{name} must be {words}, not {value!r}") from None

    shown_default = "" if default is None else " (%(default)s)"
    parser.add_argument(name, metavar=metavar, type=read, default=default, help=text + shown_default)


def _demo(arguments: Namespace) -> None:
    """Run ``gradclip demo``."""
    from . import demo

    demo.run(arguments.plot, steps=arguments.steps, max_norm=arguments.max_norm, seed=arguments.seed)


def _clip(arguments: Namespace) -> None:
    """Run ``gradclip clip``."""
    from . import clip

    if arguments.out is not None and arguments.max_norm is None and not arguments.dry_run:
        arguments.parser.error("the following arguments are required to write --out: --max-norm")
    clip.run(
        arguments.file,
        arguments.max_norm,
        arguments.out,
        dry_run=arguments.dry_run,
        expand=arguments.expand,
        top=arguments.top,
        ord=arguments.ord,
        eps=arguments.eps,
        grad_scale=arguments.grad_scale,
        nonfinite=arguments.nonfinite,
    )


def _suggest(arguments: Namespace) -> None:
    """Run ``gradclip suggest``."""
    from . import suggest

    suggest.run(arguments.file, arguments.column, arguments.plot)


def _bench(arguments: Namespace) -> None:
    """Run ``gradclip bench``."""
    from . import bench

    bench.run(arguments.seconds, threads=arguments.threads, dtypes=arguments.dtype, plot=arguments.plot)


def _info(arguments: Namespace) -> None:
    """Run ``gradclip info``."""
    for line in show_config().split("\n"):
        say(line)
