"""How near clipping comes to the speed of memory: what `gradclip bench` measures, kept over commits.

The limit is a plain read of the gradient and, where it is clipped, a read and a rewrite. All contenders take turns with
it, in one process, and the best of each counts."""

from gradclip.cli import bench

from .common import DTYPES, THREADS, peers

CASES = ("64 KiB", "1 MiB", "16 MiB", "256 MiB", "1000 leaves x 1000")
CLIPS = (False, True)


def setup_cache():
    """Return the Result of each (threads, dtype, clips, case)."""
    found = {}
    for team in THREADS:
        results = bench.run(30.0, threads=None if team == "all" else team, dtypes=DTYPES)
        found |= {(team, r.dtype, r.clips, r.name): r for r in results}
    return found


setup_cache.timeout = 600


def result(found, *case):
    if case not in found:
        raise NotImplementedError("too little memory")
    return found[case]


class Ratio:
    """Time of gradclip over that of the limit: 1 is as fast as memory."""

    params = (THREADS, DTYPES, CLIPS, CASES)
    param_names = ("threads", "dtype", "clips", "case")

    def setup(self, found, *case):
        self.result = result(found, *case)

    def track_clip_by_global_norm_over_limit(self, found, *case):
        return round(self.result.ratio, 3)

    track_clip_by_global_norm_over_limit.unit = "times as long"


class Speed:
    """GB of gradient per second on all threads, of the limit and all contenders."""

    params = (DTYPES, CLIPS, CASES, ("limit", *peers.NAMES))
    param_names = ("dtype", "clips", "case", "peer")

    def setup(self, found, name, clips, case, peer):
        self.result = result(found, "all", name, clips, case)
        if peer not in self.result.seconds:
            raise NotImplementedError(f"no {peer}, or not for {name}")

    def track_clip_by_global_norm_(self, found, name, clips, case, peer):
        return round(self.result.speed(peer), 2)

    track_clip_by_global_norm_.unit = "GB/s"
