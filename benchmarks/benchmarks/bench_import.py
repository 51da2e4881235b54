"""What importing costs a fresh interpreter: gradclip alone, where NumPy is there already, and the peers."""

from .common import peers

STATEMENTS = {
    "gradclip": "import gradclip",
    "gradclip, after numpy": ("import gradclip", "import numpy"),
    "numpy": "import numpy",
    "scipy": "import scipy.linalg.blas",
    "torch": "import torch",
    "optax": "import optax",
}


class Import:
    """Seconds of one import."""

    params = tuple(STATEMENTS)
    param_names = ("package",)
    repeat = (3, 10, 2.0)

    def setup(self, package):
        peers.module(package.split(",")[0])

    def timeraw_import(self, package):
        return STATEMENTS[package]
