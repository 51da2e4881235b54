"""Ctrl-C at a chosen line of gradclip."""

import sys


def arrive():
    """Raise what Ctrl-C raises."""
    raise KeyboardInterrupt


def interrupted(call, after, act=arrive, others=True):
    """Make a call in which Ctrl-C comes at the so many-th line of gradclip; return whether KeyboardInterrupt came of it.

    act: what happens there. others: whether calls of others' code are counted too."""
    left = after

    def trace(frame, event, arg):
        nonlocal left
        own = frame.f_globals["__name__"].startswith("gradclip")
        left -= own or others
        if left == 0:
            left = -1  # once
            act()
        return trace if own else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False
