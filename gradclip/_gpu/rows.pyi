from .._core.arguments import Words
from .._leaves.units import Units

def rows_of(leaves: Units, device: int) -> tuple[list[int], Words, list[int]]: ...
