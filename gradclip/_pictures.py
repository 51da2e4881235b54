"""Where a picture can be saved: found out before the work that it shows."""

import io
from pathlib import Path


def picture_format(path):
    """The format of a picture saved as `path` (by its suffix; none: PNG); an OSError or ValueError where it cannot be saved."""
    from matplotlib.figure import Figure

    path = Path(path)
    trial, suffix = Figure(), path.suffix[1:].lower() or "png"
    trial.suptitle("raises for formats that matplotlib does not know, and without LaTeX for some that it knows")
    try:
        trial.savefig(io.BytesIO(), format=suffix)
        existed = path.exists()
        path.open("ab").close()  # changes nothing in a picture of that name
        if not existed:
            path.unlink()
    except (OSError, RuntimeError) as error:
        raise OSError(f"cannot save a picture as {path}: {getattr(error, 'strerror', None) or error}") from None
    return suffix
