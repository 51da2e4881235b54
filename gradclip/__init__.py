"""Fast, exact and safe gradient clipping for NumPy and CuPy arrays."""

try:
    from ._cpu.passes import measure as _measure  # noqa: F401
except ModuleNotFoundError as error:
    if error.name is None or not error.name.startswith("gradclip."):
        raise
    raise ImportError(
        f"gradclip's compiled part ({error.name}) is missing: this is an unbuilt source tree. "
        "Run `python -m pip install -e .` in it, or leave its folder to import the installed package."
    ) from None

from . import monitor, thresholds
from ._leaves import register_container
from ._version import __version__
from .adaptive import clip_adaptive, clip_adaptive_
from .config import show_config
from .errors import FrequentClippingWarning, NonFiniteGradientError, VanishingScaleWarning
from .measure import Measure, apply_clip, apply_clip_, measure
from .monitor import ClipMonitor
from .norm import clip_by_global_norm, clip_by_global_norm_, clip_by_norm, clip_by_norm_, global_norm
from .normalize import normalize, normalize_
from .per_sample import clip_per_sample, clip_per_sample_, per_sample_clip_sum
from .report import ClipReport
from .threads import get_num_threads, num_threads, set_num_threads
from .thresholds import clip_rate, gaussian_exceedance, suggest_threshold
from .update import sgd_step_
from .value import clip_by_value, clip_by_value_

__all__ = [
    "ClipMonitor",
    "ClipReport",
    "FrequentClippingWarning",
    "Measure",
    "NonFiniteGradientError",
    "VanishingScaleWarning",
    "__version__",
    "apply_clip",
    "apply_clip_",
    "clip_adaptive",
    "clip_adaptive_",
    "clip_by_global_norm",
    "clip_by_global_norm_",
    "clip_by_norm",
    "clip_by_norm_",
    "clip_by_value",
    "clip_by_value_",
    "clip_per_sample",
    "clip_per_sample_",
    "clip_rate",
    "gaussian_exceedance",
    "get_num_threads",
    "global_norm",
    "measure",
    "monitor",
    "normalize",
    "normalize_",
    "num_threads",
    "per_sample_clip_sum",
    "register_container",
    "set_num_threads",
    "sgd_step_",
    "show_config",
    "suggest_threshold",
    "thresholds",
]
