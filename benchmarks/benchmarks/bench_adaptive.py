"""Adaptive clipping: every unit's gradient against its own parameters."""

from .common import Bench, resnet50

# Of PyTorch's layout, where units lie along axis 0; of JAX's, where they lie along the last, the shapes are reversed.
CASES = {"1 of 3000 x 2000": ((3000, 2000),), "ResNet-50": resnet50()}


def layout(case, unit_axis):
    return CASES[case] if unit_axis == 0 else tuple(shape[::-1] for shape in CASES[case])


class InPlace(Bench):
    """Seconds of adaptive clipping in place, by layout of the weights."""

    params = (list(CASES), (0, -1), (False, True), ("gradclip", "numpy"))
    param_names = ("float32", "unit_axis", "clips", "peer")

    def setup(self, case, unit_axis, clips, peer):
        self.start(peer, layout(case, unit_axis), clips=clips)
        self.params_of = self.work.params

    def time_clip_adaptive_(self, case, unit_axis, clips, peer):
        self.peer.clip_adaptive_(self.grads, self.params_of, self.ratio, unit_axis=unit_axis)


class New(Bench):
    """The functional form, in JAX's layout, beside `optax.adaptive_grad_clip`."""

    params = (list(CASES), (False, True), ("gradclip", "numpy", "optax"))
    param_names = ("float32", "clips", "peer")

    def setup(self, case, clips, peer):
        self.start(peer, layout(case, -1), clips=clips, refill=False)
        self.params_of = self.work.params

    def time_clip_adaptive(self, case, clips, peer):
        self.peer.clip_adaptive(self.grads, self.params_of, self.ratio, unit_axis=-1)
