"""Files that are replaced at once, or not at all."""

import errno
import os
import stat
from contextlib import contextmanager, suppress
from pathlib import Path

_unfinished: set[Path] = set()  # files beside those that they are to replace


def remove_unfinished():
    """Remove what `replacing` writes at this moment, for a program that ends at once."""
    for beside in list(_unfinished):
        with suppress(OSError):
            beside.unlink()


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
    _unfinished.add(beside)
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
        _unfinished.discard(beside)


def _token():
    """What nobody can guess; `secrets` would take milliseconds to import."""
    return os.urandom(8).hex()


def _private(name, flags):
    return os.open(name, flags, 0o600)


def _like(place, beside, descriptor):
    """Give a new file the owner, as far as this user may, and the permissions of the one at `place`."""
    found = place.stat()
    mode = stat.S_IMODE(found.st_mode)
    if hasattr(os, "fchown") and not _give(descriptor, found):  # not on Windows
        mode &= ~0o6070  # what the old group may do is not for another one
    os.chmod(descriptor if os.chmod in os.supports_fd else beside, mode)


def _give(descriptor, found):
    """Whether a file could be given the group that was found; its owner too, where that is allowed."""
    for owner in (found.st_uid, -1):
        with suppress(OSError):
            os.fchown(descriptor, owner, found.st_gid)
            return True
    return False
