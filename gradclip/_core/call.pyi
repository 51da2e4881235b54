from fractions import Fraction
from typing import Any

from gradclip._core.arguments import Floats
from gradclip._core.engine import AnySums, Engine
from gradclip._core.mode import Mode
from gradclip._core.options import Options
from gradclip._leaves import Leaves
from gradclip.report import ClipReport
from gradclip.thresholds import Threshold

class Request:
    options: Options
    threshold: Any  # a float or a Threshold; or one of each unit: Floats, or arrays on devices
    shown: Any
    mode: Mode
    lr: float
    to: Leaves
    fresh: bool
    by_owner: bool
    owner: Any  # Indices, where the host decides, or None
    counted: int | None
    share: Fraction | float
    norms: Floats | None
    elsewhere: bool
    skips: bool
    def __init__(self, options: Options, threshold: Any, shown: Any = None, mode: Mode = ...) -> None: ...
    def prepare(self, leaves: Leaves) -> Leaves: ...
    def target(self, leaves: Leaves, out: Any) -> Leaves: ...
    def decide(self, engine: Engine, read: Leaves) -> tuple[ClipReport, Any]: ...
    def measure(self, engine: Engine, read: Leaves) -> AnySums: ...
    def write(self, engine: Engine, plan: Any) -> None: ...

class ByValue(Request):
    low: float | Floats

def total_threshold(max_norm: Any) -> float | Threshold: ...
def in_place(grads: Any, request: Request) -> ClipReport: ...
def functional(grads: Any, request: Request, out: Any) -> tuple[Any, ClipReport]: ...
def onto(params: Any, grads: Any, request: Request) -> ClipReport: ...
def measured(grads: Any, options: Options) -> tuple[AnySums, bool]: ...
