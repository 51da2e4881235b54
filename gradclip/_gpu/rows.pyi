import numpy as np

from .._leaves.units import Units

def rows_of(leaves: Units, device: int) -> tuple[list[int], np.ndarray, list[int]]: ...
