"""How far the norm of a million elements is from the exact one: `../exactness.py`, kept over commits."""

import sys
from pathlib import Path

from .common import DTYPES, READERS

KINDS = ("normal", "log-normal, sigma 10", "near overflow", "all subnormal")


class Norm:
    """In ulps of float64 at the exact norm. From 2**52 on no digit is right, and an infinite norm counts as such."""

    params = (DTYPES, KINDS, READERS)
    param_names = ("dtype", "distribution", "peer")

    def setup_cache(self):
        sys.path.append(str(Path(__file__).resolve().parents[1]))
        import exactness

        found, contenders = {}, exactness.installed(READERS)
        for name in DTYPES:
            for kind in KINDS:
                norms = exactness.errors(name, kind, 10**6, contenders)["norms"]
                found |= {(name, kind, peer): float(f"{min(error, 2.0**52):.4g}") for peer, error in norms.items()}
        return found

    setup_cache.timeout = 300

    def setup(self, found, *case):
        if case not in found:
            raise NotImplementedError("not installed, or not for this dtype")

    def track_global_norm(self, found, *case):
        return found[case]

    track_global_norm.unit = "ulp"
