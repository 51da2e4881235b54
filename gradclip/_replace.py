"""Files that are replaced at once, or not at all."""

import errno
import os
import shutil
from contextlib import contextmanager
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
    """A name beside `path` to write to; takes the place of `path` where all went well, and is removed if not."""
    place = check(path)
    beside = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        yield beside
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        if place.exists():
            shutil.copymode(place, beside)
        os.replace(beside, place)
    finally:
        beside.unlink(missing_ok=True)
