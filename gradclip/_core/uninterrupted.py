"""`Uninterrupted`: a stretch of code that Ctrl-C waits for, where several devices or processes have to do the same."""

from __future__ import annotations

import signal
from threading import current_thread, main_thread
from types import FrameType
from typing import Any


class Uninterrupted:
    """A ``with`` block that Ctrl-C waits for: of several writes all are made, or none."""

    def __enter__(self) -> None:
        self._handler: Any = None  # Python's own, or that of the caller
        self._caught: tuple[int, FrameType | None] | None = None
        if current_thread() is main_thread():
            found = signal.getsignal(signal.SIGINT)
            if callable(found):  # else it ends the process at once, or is ignored
                self._handler = found
                signal.signal(signal.SIGINT, self._catch)

    def _catch(self, *args: Any) -> None:
        self._caught = args

    def __exit__(self, *exception: object) -> None:
        if self._handler is not None:
            handler, self._handler = self._handler, None
            signal.signal(signal.SIGINT, handler)
            caught, self._caught = self._caught, None  # a frame, which knows this block
            if caught is not None:
                handler(*caught)
