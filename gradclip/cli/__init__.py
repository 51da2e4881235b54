"""The command ``gradclip``: each command is a file of this folder, and `main` runs the one that is asked for."""

from .command import main

__all__ = ["main"]
