"""Pictures: whether one can be saved is found out before the work that it shows, and it is saved at once or not at all."""

import io
from pathlib import Path

from . import _replace


def need_matplotlib(what, extra="plot"):
    """An ImportError that says what needs matplotlib, and which extra of gradclip brings it, where it is missing."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError(f'{what} needs matplotlib: pip install "gradclip[{extra}]" ({error})') from error


def check_picture(path):
    """An OSError or ValueError where no picture can be saved as `path`."""
    from matplotlib.figure import Figure

    trial = Figure()
    trial.suptitle("raises for formats that matplotlib does not know, and without LaTeX for some that it knows")
    try:
        trial.savefig(io.BytesIO(), format=_format(path))
        _replace.check(path)
    except (OSError, RuntimeError) as error:
        raise OSError(f"cannot save a picture as {path}: {getattr(error, 'strerror', None) or error}") from None


def save_picture(figure, path, dpi=150):
    """Save a picture; a file of that name is replaced at once, or not at all. The suffix chooses the format (none: PNG)."""
    with _replace.replacing(path) as file:
        figure.savefig(file, format=_format(path), dpi=dpi)


def _format(path):
    return Path(path).suffix[1:].lower() or "png"
