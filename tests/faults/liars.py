"""Objects that lie about their memory, in the place of a leaf: a part of tests/faults/meddling.py.

They offer `__array_interface__`, DLPack or `__cuda_array_interface__`, of which some field is wrong, or changes from one time
to the next, or raises an error. A call must give a result, or an error that says where it stands and changes no byte."""

import numpy as np
from calls import flat, inputs

TREES = ("grads", "params", "out", "sums")
SHAPES = [(3,), (2, 2), (), (0,), (-1,), ("x",), "x", None, (2**62, 2**62), (1.5,), [3], (True,), 3, (3,) * 70]
STRIDES = [None, (4,), (8,), (4, 8), ("x",), (0,), 4, (1.5,), ()]
TYPES = ["<f4", "<f8", "<f2", ">f4", "<i4", "|V2", "<f9", "x", "", None, 3, b"<f4", "<c8"]
VERSIONS = [3, 2, 99, "x", None]


class Liar:
    """An object with interfaces that say something else each time, of memory that is really there."""

    memory = np.zeros(1 << 16, np.uint8)

    def __init__(self, rng, names):
        """Take the random numbers, and the names of its interfaces."""
        self._rng, self._names = rng, names

    def __getattr__(self, name):
        if name.startswith("_rng") or name not in self._names:
            raise AttributeError(name)
        rng = self._rng
        if rng.random() < 0.1:
            raise [AttributeError, KeyError, ValueError, RuntimeError, BufferError][rng.integers(5)](name)
        if "dlpack" in name:
            return self._dlpack if name == "__dlpack__" else self._device
        if name == "__array__":
            return lambda *_, **__: [None, 3, "x", [1.0], np.ones(3), np.ones(3, ">f4"), object()][rng.integers(7)]
        if name in ("shape", "dtype", "ndim", "size"):
            return [3, "x", None, (2,), np.float32, np.dtype("f8"), -1][rng.integers(7)]
        found = {"version": 3, "typestr": "<f4", "shape": (3,), "data": (self.memory.ctypes.data, False)}
        odd = {
            "typestr": TYPES,
            "version": VERSIONS,
            "strides": STRIDES,
            "data": [None, 3, (0, False), ("x", 1), (), b"x", self],
        }
        odd |= {
            "shape": SHAPES,
            "descr": [None, 3, [("", "<f4")]],
            "mask": [None, 3, np.ones(3, bool)],
            "stream": [0, 1, -5, "x"],
        }
        for key in rng.choice(list(odd), rng.integers(1, 3), replace=False):
            found[str(key)] = odd[key][rng.integers(len(odd[key]))]
        if rng.random() < 0.2:
            del found[list(found)[rng.integers(len(found))]]
        return found if rng.random() < 0.95 else [None, 3, "x", [found]][rng.integers(4)]

    def _dlpack(self, *_, **__):
        kind = self._rng.integers(4)
        return np.ones(int(self._rng.integers(1, 5)), "f4").__dlpack__() if kind == 0 else [None, 3, object()][kind - 1]

    def _device(self):
        return [(1, 0), (2, 0), (13, 0), (77, 0), None, (), "x", 1][self._rng.integers(8)]


INTERFACES = [
    ("__array_interface__",),
    ("__cuda_array_interface__",),
    ("__dlpack__", "__dlpack_device__"),
    ("__dlpack__",),
    ("__array_interface__", "__array__"),
    ("__array__", "shape", "dtype"),
    ("__cuda_array_interface__", "shape", "dtype", "ndim"),
]


def lied_to(rng, call, name):
    """Put a liar into the place of a leaf."""
    x = inputs()
    names = INTERFACES[rng.integers(len(INTERFACES))]
    tree, liar = getattr(x, TREES[rng.integers(4)]), Liar(rng, names)
    inner = rng.random() < 0.5
    if inner:
        tree["b"][0] = liar
    else:
        tree["w"] = liar
    leaves = [a for a in flat(x) if isinstance(a, np.ndarray)]
    before, memory = [a.tobytes() for a in leaves], liar.memory.tobytes()
    try:
        call(x)
    except Exception as caught:
        error = caught
    else:
        return "a liar: a result"
    # An ImportError: what says that it lies on a GPU needs CuPy.
    assert isinstance(error, (TypeError, ValueError, ImportError)), (name, names, type(error), error)
    assert ("b/0" if inner else "w") in str(error) or "sums" in str(error), (name, names, str(error))
    assert [a.tobytes() for a in leaves] == before, (name, names)
    assert liar.memory.tobytes() == memory, (name, names)
    return f"a liar: {type(error).__name__}"
