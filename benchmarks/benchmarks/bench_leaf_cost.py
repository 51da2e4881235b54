"""What one more leaf costs: many small leaves against one leaf of as many elements, in ns per leaf."""

from gradclip.bench import best_in_turns

from .common import Bench, flat, named, peers

COUNTS = named(10, 100, 1000, 10_000, 100_000)
SIZE = 16  # elements of a leaf


class Leaf(Bench):
    params = (list(COUNTS), peers.NAMES)
    param_names = ("leaves", "peer")

    def setup(self, leaves, peer):
        count = COUNTS[leaves]
        self.start(peer, flat(SIZE, count), refill=False)
        self.one = self.peer.prepare([self.work.leaves[0].repeat(count)])

    def track_global_norm(self, leaves, peer):
        calls = {"many": lambda: self.peer.global_norm(self.grads), "one": lambda: self.peer.global_norm(self.one)}
        best = best_in_turns(calls, rounds=5, seconds=0.2)
        return round((best["many"] - best["one"]) / (COUNTS[leaves] - 1) * 1e9, 2)

    track_global_norm.unit = "ns/leaf"
