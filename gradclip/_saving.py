"""Saving of files and pictures: a file is replaced at once by a complete new one, or not at all.

Everything that this package writes to disk goes through `replacing`, and every picture through `save_picture`. Whether a
file or a picture can be saved is found out before the work whose result it is to hold: `check_writable`, `check_picture`.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure
else:
    Axes = Figure = Any  # then `typing.get_type_hints` works without matplotlib

Name = str | os.PathLike[str]

_unfinished: set[Path] = set()  # the temporary files that exist at this moment


@contextmanager
def replacing(path: Name) -> Iterator[BinaryIO]:
    """Yield a new binary file, which takes the place of `path` at the end of the ``with`` block.

    The new file lies in the folder of `path`. An exception in the block removes it and leaves `path` as it was. On Linux it
    has no name until it is complete, so that nothing half written remains where the process is killed. Its name cannot be
    guessed, and no file of that name may exist, so that nobody can plant a link there. It has the permissions of the file
    that it replaces before the first byte is written; if there is no such file, those that `open` gives.
    """
    place = check_writable(path)
    beside = place.with_name(f".gradclip-{_token()}")
    _unfinished.add(beside)
    try:
        nameless = _nameless(place)
        with nameless or open(beside, "x+b", opener=_private if place.exists() else None) as file:
            if place.exists():
                _copy_permissions(place, beside, file.fileno())
            yield file
            file.flush()
            os.fsync(file.fileno())
            if nameless:
                _give_name(file, beside)
        os.replace(beside, place)
    finally:
        beside.unlink(missing_ok=True)
        _unfinished.discard(beside)


def remove_unfinished() -> None:
    """Remove the temporary files of `replacing` that exist at this moment, for a program that ends at once."""
    for beside in list(_unfinished):
        with suppress(OSError):
            beside.unlink()


def check_writable(path: Name) -> Path:
    """Return the file that would be written, links followed; raise an OSError if it cannot be written or replaced."""
    place = Path(os.path.realpath(path))  # a link stays, and the file that it points to is replaced
    if not place.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder to write to", str(path))
    if place.exists() and not place.is_file():
        raise OSError(errno.EINVAL, "no ordinary file, which could be replaced", str(path))
    if not os.access(place.parent, os.W_OK) or (place.exists() and not os.access(place, os.W_OK)):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    return place


def _nameless(place: Path) -> BinaryIO | None:
    """Open a new file without a name in the folder of `place`; None where the system or the file system has no such files."""
    kind = getattr(os, "O_TMPFILE", 0)
    if not kind or not os.path.isdir("/proc/self/fd"):
        return None
    try:
        descriptor = os.open(place.parent, kind | os.O_RDWR, 0o600 if place.exists() else 0o666)
    except OSError:  # if it has another reason, a file with a name meets it too
        return None
    return open(descriptor, "w+b")


def _give_name(file: BinaryIO, beside: Path) -> None:
    """Give a file the name `beside`, where it has none. If the system refuses that, as some containers do, make a copy."""
    descriptor = file.fileno()
    try:  # src_dir_fd, which is not looked at, has Python call linkat, which alone can do this
        os.link(f"/proc/self/fd/{descriptor}", beside, src_dir_fd=descriptor, follow_symlinks=True)
    except OSError:
        with open(beside, "x+b", opener=_private) as copy:
            found = os.fstat(descriptor)
            _copy_owner(copy.fileno(), found)
            os.chmod(copy.fileno(), stat.S_IMODE(found.st_mode))
            file.seek(0)
            while data := file.read(2**20):
                copy.write(data)
            copy.flush()
            os.fsync(copy.fileno())


def _token() -> str:
    """Return 16 random letters and digits; the module `secrets` would take milliseconds to import."""
    return os.urandom(8).hex()


def _private(name: str, flags: int) -> int:
    """Open a file that its owner alone may read and write, and return its descriptor: an opener for `open`."""
    return os.open(name, flags, 0o600)


def _copy_permissions(place: Path, beside: Path, descriptor: int) -> None:
    """Give the new file `beside` the permissions of the file `place`, and its owner as far as this user may."""
    found = place.stat()
    mode = stat.S_IMODE(found.st_mode)
    if hasattr(os, "fchown") and not _copy_owner(descriptor, found):  # not on Windows
        mode &= ~0o6070  # rights of the old group are not for another group
    os.chmod(descriptor if os.chmod in os.supports_fd else beside, mode)


def _copy_owner(descriptor: int, found: os.stat_result) -> bool:
    """Give a file the group in `found`, and the owner too where that is allowed; return whether the group could be given."""
    for owner in (found.st_uid, -1):
        with suppress(OSError):
            os.fchown(descriptor, owner, found.st_gid)
            return True
    return False


def need_matplotlib(what: str, extra: str = "plot") -> None:
    """Raise an ImportError if matplotlib is missing: it names what needs it, and the extra of gradclip that brings it."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError(f'{what} needs matplotlib: pip install "gradclip[{extra}]" ({error})') from error


def new_figure(width: float, height: float) -> Figure:
    """Return an empty matplotlib figure of this size in inches, which is not part of pyplot's global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def check_picture(path: Name) -> None:
    """Raise an OSError or ValueError if no picture can be saved as `path`."""
    from matplotlib.figure import Figure

    trial = Figure()  # not `new_figure`: constrained layout may warn of a figure without axes
    trial.suptitle("raises for formats that matplotlib does not know, and without LaTeX for some that it knows")
    try:
        trial.savefig(io.BytesIO(), format=_format(path))
        check_writable(path)
    except (OSError, RuntimeError) as error:
        raise OSError(f"cannot save a picture as {path}: {getattr(error, 'strerror', None) or error}") from None


def save_picture(figure: Figure, path: Name, dpi: int = 150) -> None:
    """Save a matplotlib figure as `path`, in the format that the suffix names (PNG if there is none)."""
    with replacing(path) as file:
        figure.savefig(file, format=_format(path), dpi=dpi)


def _format(path: Name) -> str:
    """Return the format of a picture by the suffix of its name, as matplotlib calls it."""
    return Path(path).suffix[1:].lower() or "png"
