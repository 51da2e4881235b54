"""Files that are replaced at once, or not at all."""

import errno
import os
import stat
from contextlib import contextmanager, suppress
from pathlib import Path


def check(path):
    """An OSError where no file can be written as `path`, or take its place: found out before the work."""
    place = Path(os.path.realpath(path))  # a link stays, and what it points to is replaced
    if not place.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder to write to", str(path))
    if place.exists() and not place.is_file():
        raise OSError(errno.EINVAL, "no ordinary file, which could be replaced", str(path))
    if not os.access(place.parent, os.W_OK) or (place.exists() and not os.access(place, os.W_OK)):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    return place


@contextmanager
def replacing(path):
    """A binary file beside `path` to write to; takes the place of `path` where all went well, and is removed if not.

    Its name cannot be guessed and must be new, so that no link is followed that was planted there. It has the permissions
    of the file that it replaces before a byte is written; where there is none, those that `open` gives a new file."""
    place = check(path)
    beside = place.with_name(f".gradclip-{_token()}")
    try:
        with open(beside, "x+b", opener=_private if place.exists() else None) as file:
            if place.exists():
                _like(place, beside, file.fileno())
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, place)
    finally:
        beside.unlink(missing_ok=True)


def _token():
    """What nobody can guess; `secrets` would take milliseconds to import."""
    return os.urandom(8).hex()


def _private(name, flags):
    return os.open(name, flags, 0o600)


def _like(place, beside, descriptor):
    """Give a new file the owner, as far as this user may, and the permissions of the one at `place`."""
    found = place.stat()
    if hasattr(os, "fchown"):  # not on Windows
        with suppress(OSError):
            os.fchown(descriptor, found.st_uid, found.st_gid)
    os.chmod(descriptor if os.chmod in os.supports_fd else beside, stat.S_IMODE(found.st_mode))
