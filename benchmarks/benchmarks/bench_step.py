"""Clipping and a step of gradient descent: fused, by a folded factor, or one after the other."""

from .common import MODELS, Bench, flat, peers

CASES = {"GPT-2 small": MODELS["GPT-2 small"](), "1000 leaves of 1000": flat(1000, 1000)}


class Step(Bench):
    """Seconds of a clip and a step.

    PyTorch clips and then steps by `torch.optim.SGD(foreach=True)`, so its gradients are given back; the others do not write
    them. Parameters move on from call to call."""

    params = (list(CASES), peers.NAMES)
    param_names = ("float32", "peer")

    def setup(self, case, peer):
        self.start(peer, CASES[case])
        self.step = self.work.step

    def time_sgd_step_(self, case, peer):
        self.step(self.max_norm)
