"""Files of gradients to be clipped: how they are made, read and compared."""

import numpy as np
from safetensors.numpy import load_file, save_file

from gradclip import cli

SUFFIXES = (".npz", ".npy", ".safetensors", ".csv", ".txt")


def run(capsys, *argv):
    """Exit status, standard output and standard error of one ``gradclip clip``."""
    status = cli.main(["clip", *map(str, argv)])
    return status, *capsys.readouterr()


def gradients():
    rng = np.random.default_rng(0)
    return {
        "layers.0/weight": rng.standard_normal((30, 7)).astype(np.float32),
        "half": rng.standard_normal(50).astype(np.float16),
        "complex": (rng.standard_normal((3, 2)) + 1j).astype(np.complex64),
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.array(-2.5),
    }


def write(path, grads):
    """A file of these gradients; text and .npy hold one array."""
    if path.suffix == ".npz":
        np.savez(path, **grads)
    elif path.suffix == ".npy":
        np.save(path, *grads.values())
    elif path.suffix == ".safetensors":
        save_file(grads, path, metadata={"format": "pt", "step": "7"})
    else:
        (grads,) = grads.values()
        path.write_text("".join(", ".join(map(repr, row)) + "\n" for row in grads.tolist()))
    return path


def read(path):
    if path.suffix == ".npz":
        with np.load(path) as file:
            return dict(file)
    if path.suffix == ".npy":
        return {"grads": np.load(path)}
    return load_file(path) if path.suffix == ".safetensors" else {"grads": np.loadtxt(path, delimiter=",", ndmin=2)}


def same(a, b):
    """The same names, dtypes, shapes and bits; in the same order where a format has one."""
    assert sorted(a) == sorted(b)
    for name in a:
        assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape)
        assert a[name].tobytes() == b[name].tobytes()
