from .._core.arguments import Words
from .._leaves.units import Units

class Rows:
    which: list[int]
    words: Words
    pool: list[int]
    def __init__(self, leaves: Units, device: int) -> None: ...
    def fit(self, leaves: Units, device: int) -> bool: ...

def signature(leaves: Units, device: int) -> int: ...
