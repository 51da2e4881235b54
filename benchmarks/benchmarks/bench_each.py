"""Clipping by leaf, by slice and by element, and normalising."""

from .common import DTYPES, SIZES, Bench, flat, ten_to

CASES = {"1 leaf of 10 million": flat(10**7), "1000 leaves of 1000": flat(1000, 1000)}
MATRICES = {"1 of 3000 x 3000": ((3000, 3000),), "100 of 100 x 100": ((100, 100),) * 100}
THRESHOLDS = {"one number": 1.0, "a list": [1.0] * 1000, "patterns": {"1*": 0.5, "[2-5]*": 2.0, "*": 1.0}}
GROUPS = {"a list": [f"group {i % 10}" for i in range(1000)], "patterns": {f"*{i}": f"group {i}" for i in range(10)}}
PEERS = ("gradclip", "numpy", "torch")


class Leaf(Bench):
    """Each leaf by its own norm, about a third of the elements by their magnitude, and all leaves to norm 1."""

    params = (list(CASES), PEERS)
    param_names = ("float32", "peer")

    def setup(self, case, peer):
        self.start(peer, CASES[case])

    def time_clip_by_norm_(self, case, peer):
        self.peer.clip_by_norm_(self.grads, 1.0)

    def time_clip_by_value_(self, case, peer):
        self.peer.clip_by_value_(self.grads, 1.0)

    def time_normalize_(self, case, peer):
        self.peer.normalize_(self.grads)


class Value(Bench):
    """Each element to at most a magnitude that none has, or that one in three exceeds."""

    params = (SIZES, DTYPES, (False, True), PEERS)
    param_names = ("log10_elements", "dtype", "clips", "peer")

    def setup(self, k, name, clips, peer):
        self.start(peer, flat(ten_to(k)), name)
        self.bound = 1.0 if clips else 9.0

    def time_clip_by_value_(self, k, name, clips, peer):
        self.peer.clip_by_value_(self.grads, self.bound)


class Axis(Bench):
    """Every row (axis -1) or column (axis 0) of matrices by its own norm."""

    params = (list(MATRICES), (0, -1), PEERS)
    param_names = ("float32", "axis", "peer")

    def setup(self, case, axis, peer):
        self.start(peer, MATRICES[case])

    def time_clip_by_norm_(self, case, axis, peer):
        self.peer.clip_by_norm_(self.grads, 1.0, axis=axis)


class Thresholds(Bench):
    """What it costs to find the thresholds of 1000 leaves of 1000."""

    params = tuple(THRESHOLDS)
    param_names = ("thresholds",)

    def setup(self, case):
        self.start("gradclip", flat(1000, 1000))

    def time_clip_by_norm_(self, case):
        self.peer.clip_by_norm_(self.grads, THRESHOLDS[case])


class Groups(Bench):
    """1000 leaves of 1000 in 10 groups: by a list of names and by patterns."""

    params = tuple(GROUPS)
    param_names = ("groups",)

    def setup(self, case):
        self.start("gradclip", flat(1000, 1000))

    def time_clip_by_norm_(self, case):
        self.peer.clip_by_norm_(self.grads, 1.0, groups=GROUPS[case])
