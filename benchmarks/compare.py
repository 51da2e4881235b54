"""gradclip beside its peers and the memory limit: python benchmarks/compare.py [--threads N] [--rounds N] [row ...]

All contenders of a row run in turn, round after round, in one process; the best round of each counts. The
limit is a plain read (and, where something is clipped, a plain in-place multiply) of the same bytes by limits.c,
compiled here with the machine's own compiler. Peers that are not installed are left out."""

import argparse
import ctypes
import importlib
import math
import os
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from benchmarks.common import flat, gpt2_small, resnet50

import gradclip


def leaves(shapes, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal(s, np.float32) * 1e-3).astype(dtype) for s in shapes]


ROWS = {
    "GPT-2 small, 148 leaves, 124M f32": (gpt2_small(), np.float32),
    "ResNet-50, 161 leaves, 25M f64": (resnet50(), np.float64),
    "124M f16 in 148 leaves": (gpt2_small(), np.float16),
    "1000 leaves x 1000 f32": (flat(1000, 1000), np.float32),
    "6 leaves x 1000 f32": (flat(1000, 6), np.float32),
    "1 leaf x 10 f32": (flat(10), np.float32),
    "1 leaf x 100,000 f32": (flat(100_000), np.float32),
}


def limits():
    """limits.c as a library, or None without a compiler."""
    source = Path(__file__).with_name("limits.c")
    folder = tempfile.mkdtemp()
    command = [os.environ.get("CC", "cc"), "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", str(source)]
    try:
        subprocess.run([*command, "-o", f"{folder}/limits.so"], check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return ctypes.CDLL(f"{folder}/limits.so")


def contenders(grads, norm, threads):
    """name -> (call that finds nothing to clip, call that clips, by a factor that stays close to 1)."""
    found = {}
    below = [norm]

    def threshold():
        below[0] *= 1 - 1e-4
        return below[0]

    library = limits()
    if library:
        pointers = (ctypes.c_void_p * len(grads))(*(g.ctypes.data for g in grads))
        sizes = (ctypes.c_ssize_t * len(grads))(*(g.nbytes for g in grads))

        def read():
            library.plain_read(pointers, sizes, ctypes.c_ssize_t(len(grads)), threads)

        def read_and_scale():
            read()
            library.plain_scale(pointers, sizes, ctypes.c_ssize_t(len(grads)), threads, ctypes.c_float(1.0))

        found["limit"] = (read, read_and_scale)

    found["gradclip"] = (
        lambda: gradclip.clip_by_global_norm_(grads, math.inf),
        lambda: gradclip.clip_by_global_norm_(grads, threshold()),
    )

    def numpy_clip(limit):
        total = math.sqrt(sum(float(np.dot(flat := g.ravel(), flat)) for g in grads))
        if total > limit:
            for g in grads:
                np.multiply(g, limit / total, out=g)

    found["numpy"] = (lambda: numpy_clip(math.inf), lambda: numpy_clip(threshold()))
    if grads[0].dtype in (np.float32, np.float64):
        try:
            blas = importlib.import_module("scipy.linalg.blas")
            nrm2, scal = (blas.snrm2, blas.sscal) if grads[0].dtype == np.float32 else (blas.dnrm2, blas.dscal)

            def scipy_clip(limit):
                total = math.sqrt(sum(nrm2(g.ravel()) ** 2 for g in grads))
                if total > limit:
                    for g in grads:
                        scal(limit / total, g.ravel())

            found["scipy"] = (lambda: scipy_clip(math.inf), lambda: scipy_clip(threshold()))
        except ImportError:
            pass
    try:
        torch = importlib.import_module("torch")
        torch.set_num_threads(threads)
        parameters = [torch.nn.Parameter(torch.empty(g.shape, dtype=getattr(torch, g.dtype.name))) for g in grads]
        for p, g in zip(parameters, grads, strict=True):
            p.grad = torch.from_numpy(g)
        clip = torch.nn.utils.clip_grad_norm_
        found["torch"] = (lambda: clip(parameters, math.inf), lambda: clip(parameters, threshold()))
    except ImportError:
        pass
    return found


def best(calls, rounds, repeat):
    """Seconds of the best round of each call, interleaved."""
    times = [math.inf] * len(calls)
    for _ in range(rounds):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            for _ in range(repeat):
                call()
            times[i] = min(times[i], (time.perf_counter() - start) / repeat)
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=gradclip.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("rows", nargs="*", help="parts of the rows' names")
    options = parser.parse_args()
    gradclip.set_num_threads(options.threads)
    print(gradclip.show_config(), end="\n\n")
    for name, (shapes, dtype) in ROWS.items():
        if options.rows and not any(part in name for part in options.rows):
            continue
        grads = leaves(shapes, dtype)
        calls = contenders(grads, gradclip.global_norm(grads), options.threads)
        repeat = max(1, 2_000_000 // sum(g.size for g in grads)) if len(grads) < 100 else 1
        repeat = min(repeat, 2000)
        for case, label in enumerate(("nothing to clip", "clipping")):
            times = best([pair[case] for pair in calls.values()], options.rounds, repeat)
            by_name = dict(zip(calls, times, strict=True))
            cells = [f"{key} {seconds * 1e6:,.1f} us" for key, seconds in by_name.items()]
            ratio = f"  = {by_name['gradclip'] / by_name['limit']:.2f} x limit" if "limit" in by_name else ""
            print(f"{name}, {label}:{ratio}\n    {', '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
