"""The gate: from what a caller gives, a nesting of arrays, to a flat table of raw leaves that was checked once."""

from .containers import is_nesting, register_container
from .leaves import Leaves

__all__ = ["Leaves", "is_nesting", "register_container"]
