"""What one more leaf costs: many small leaves against one leaf of as many elements, in ns per leaf."""

from gradclip.cli.bench import best_in_turns

from .common import Bench, flat, peers, ten_to

SIZE = 16  # elements of a leaf


class Leaf(Bench):
    """Nanoseconds that one more leaf costs."""

    params = ((1, 2, 3, 4, 5), peers.NAMES)
    param_names = ("log10_leaves", "peer")

    def setup(self, leaves, peer):
        self.count = ten_to(leaves)
        self.start(peer, flat(SIZE, self.count), refill=False)
        self.one = self.peer.prepare([self.work.leaves[0].repeat(self.count)])

    def track_global_norm(self, leaves, peer):
        calls = {"many": lambda: self.peer.global_norm(self.grads), "one": lambda: self.peer.global_norm(self.one)}
        best = best_in_turns(calls, rounds=5, seconds=0.2)
        return round((best["many"] - best["one"]) / (self.count - 1) * 1e9, 2)

    track_global_norm.unit = "ns/leaf"
