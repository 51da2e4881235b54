"""The read pass: one norm over all leaves."""

from .common import COUNTS, DTYPES, MODELS, READERS, SIZES, THREADS, Bench, flat, peers, ten_to


class Size(Bench):
    """One float32 leaf, from cache to memory."""

    params = (SIZES, READERS)
    param_names = ("log10_elements", "peer")

    def setup(self, elements, peer):
        self.start(peer, flat(ten_to(elements)), refill=False)

    def time_global_norm(self, elements, peer):
        self.peer.global_norm(self.grads)


class Leaves(Bench):
    """What a leaf costs: many of 1000 float32; not with JAX, which would compile for minutes."""

    params = (COUNTS, peers.NAMES)
    param_names = ("log10_leaves", "peer")

    def setup(self, leaves, peer):
        self.start(peer, flat(1000, ten_to(leaves)), refill=False)

    def time_global_norm(self, leaves, peer):
        self.peer.global_norm(self.grads)


class DType(Bench):
    """One leaf of 10 million elements."""

    params = (DTYPES, READERS)
    param_names = ("dtype", "peer")

    def setup(self, name, peer):
        self.start(peer, flat(10**7), name, refill=False)

    def time_global_norm(self, name, peer):
        self.peer.global_norm(self.grads)


class Order(Bench):
    """Norms of other orders, of one leaf of a million elements."""

    params = ((1, 2, 3, float("inf")), ("float16", "float32"), ("gradclip", "numpy", "torch"))
    param_names = ("ord", "dtype", "peer")

    def setup(self, ord, name, peer):
        self.start(peer, flat(10**6), name, refill=False)

    def time_global_norm(self, ord, name, peer):
        self.peer.global_norm(self.grads, ord)


class Model(Bench):
    """The real leaves of a model, float32."""

    params = (list(MODELS), READERS)
    param_names = ("model", "peer")

    def setup(self, model, peer):
        self.start(peer, MODELS[model](), refill=False)

    def time_global_norm(self, model, peer):
        self.peer.global_norm(self.grads)


class Threads(Bench):
    """ResNet-50 on one thread and on all. NumPy and SciPy have no call for it."""

    params = (THREADS, ["gradclip", "torch"])
    param_names = ("threads", "peer")

    def setup(self, threads, peer):
        self.start(peer, MODELS["ResNet-50"](), refill=False)
        if threads != "all":
            self.peer.set_threads(threads)

    def time_global_norm(self, threads, peer):
        self.peer.global_norm(self.grads)
