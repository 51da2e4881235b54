"""gradclip on a GPU beside a copy on it, and PyTorch: python benchmarks/device.py [--rounds N] [part of a row ...].

The tables of docs/gpu.md. Events on the device time the passes, a clock of the host the calls; the fastest of several counts. A
share compares the bytes that a pass must move, each once, per second with those that a copy moves. Needs CuPy and a device;
PyTorch's columns are left out where it is missing."""

import argparse
import importlib.util
import math
import time

import cupy
from benchmarks.common import dtype, flat, gpt2_small

import gradclip

SIZE = 2**28  # elements: beyond any cache
SKIP = {"nonfinite": "skip"}  # decided on the device
UNSCALED = {"grad_scale": 1.0001, **SKIP}  # a factor: something is written


def on_device(call, rounds, queued=4):
    """Seconds of a call, by events around some that are begun one after the other: the fastest of several such rounds."""
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    seconds = []
    for _ in range(rounds + 2):
        start.record()
        for _ in range(queued):
            call()
        end.record()
        end.synchronize()
        seconds.append(cupy.cuda.get_elapsed_time(start, end) / 1e3 / queued)
    return min(seconds[2:])


def on_host(call, rounds):
    """Seconds until the fastest call returns."""
    seconds = []
    for _ in range(rounds + 2):
        cupy.cuda.Device().synchronize()
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    cupy.cuda.Device().synchronize()
    return min(seconds[2:])


def normal(size, kind="float32"):
    return cupy.random.standard_normal(size, dtype="float32").astype(kind)


def passes():
    """(name, call, bytes that it must move) of each row."""
    for name in ("float32", "float16", "bfloat16", "float64"):
        x = normal(SIZE // 2 if name == "float64" else SIZE, dtype(name))
        yield f"{name}, norm", lambda x=x: gradclip.clip_by_global_norm_(x, math.inf, **SKIP), x.nbytes
        yield f"{name}, clipping", lambda x=x: gradclip.clip_by_global_norm_(x, math.inf, **UNSCALED), 3 * x.nbytes
        del x
    x, y, half = normal(SIZE), normal(SIZE), normal(SIZE, "float16")
    square = x.reshape(-1, 8192)
    samples = x.reshape(64, -1)
    yield "out=", lambda: gradclip.clip_by_global_norm(x, math.inf, out=y, **UNSCALED), 3 * x.nbytes
    for a, to in ((x, half), (x, normal(SIZE, dtype("bfloat16"))), (half, y)):
        call = lambda a=a, to=to: gradclip.clip_by_global_norm(a, math.inf, out=to, **UNSCALED)  # noqa: E731
        yield f"out=, {a.dtype} to {to.dtype}", call, 2 * a.nbytes + to.nbytes
    yield "rows", lambda: gradclip.clip_by_norm_(square, math.inf, axis=1, **UNSCALED), 3 * x.nbytes
    yield "columns", lambda: gradclip.clip_by_norm_(square, math.inf, axis=0, **UNSCALED), 3 * x.nbytes
    yield "every other element", lambda: gradclip.clip_by_global_norm_(square[:, ::2], math.inf, **UNSCALED), 3 * x.nbytes
    yield "complex64", lambda: gradclip.clip_by_global_norm_(x.view("complex64"), math.inf, **UNSCALED), 3 * x.nbytes
    yield "by value, nothing to clip", lambda: gradclip.clip_by_value_(x, 1e9), x.nbytes
    yield "per-sample sum of 64", lambda: gradclip.per_sample_clip_sum(samples, 1.0, **SKIP), 2 * x.nbytes
    yield "sgd_step_", lambda: gradclip.sgd_step_(y, x, 1e-9, 1.0, **SKIP), 4 * x.nbytes
    yield (
        "sgd_step_ of float32 by float16",
        lambda: gradclip.sgd_step_(y, half, 1e-9, 1.0, **SKIP),
        2 * half.nbytes + 2 * x.nbytes,
    )
    yield "order 1, norm", lambda: gradclip.clip_by_global_norm_(x, math.inf, ord=1, **SKIP), x.nbytes
    yield "order inf, norm", lambda: gradclip.clip_by_global_norm_(x, math.inf, ord=math.inf, **SKIP), x.nbytes


def calls(shapes):
    """(name, call) of each form, over float32 leaves of some shapes."""
    grads, params, out = ([normal(shape) for shape in shapes] for _ in range(3))
    inf = math.inf
    yield "in place, skip", lambda: gradclip.clip_by_global_norm_(grads, inf, **SKIP)
    yield "in place, raise", lambda: gradclip.clip_by_global_norm_(grads, inf)
    yield "out=", lambda: gradclip.clip_by_global_norm(grads, inf, out=out, **SKIP)
    yield "new arrays", lambda: gradclip.clip_by_global_norm(grads, inf, **SKIP)
    yield "sgd_step_", lambda: gradclip.sgd_step_(params, grads, 1e-9, 1.0, **SKIP)
    yield "strict", lambda: gradclip.clip_by_global_norm_(grads, 1e9, strict=True, **SKIP)
    if importlib.util.find_spec("torch"):
        import torch

        from gradclip.torch import clip_grad_norm_

        tensors = [torch.as_tensor(g, device="cuda") for g in grads]
        weights = [torch.nn.Parameter(torch.empty_like(t)) for t in tensors]
        for weight, tensor in zip(weights, tensors, strict=True):
            weight.grad = tensor
        yield "PyTorch's tensors in place", lambda: gradclip.clip_by_global_norm_(tensors, inf, **SKIP)
        yield "gradclip.torch", lambda: clip_grad_norm_(weights, inf)
        yield "PyTorch's own, foreach", lambda: torch.nn.utils.clip_grad_norm_(weights, inf, foreach=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("rows", nargs="*", help="parts of the rows' names")
    options = parser.parse_args()
    x, y = normal(SIZE), normal(SIZE)
    speed = 2 * x.nbytes / on_device(lambda to=y, of=x: cupy.copyto(to, of), options.rounds)
    name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    print(f"{name}; a copy of 1 GiB moves {speed / 1e9:,.0f} GB/s\n")
    del x, y
    for row, call, size in passes():
        if not options.rows or any(part in row for part in options.rows):
            seconds = on_device(call, options.rounds)
            print(f"{row:34s} {seconds * 1e6:9,.0f} us   {size / seconds / speed:5.2f} of a copy", flush=True)
    for case, shapes in {
        "6 leaves of 1000": flat(1000, 6),
        "GPT-2 small, 148": gpt2_small(),
        "1000 of 1000": flat(1000, 1000),
    }.items():
        print(f"\n{case}: until the call returns, and until the device has ended")
        for row, call in calls(shapes):
            if not options.rows or any(part in row for part in options.rows):
                host, device = on_host(call, options.rounds), on_device(call, options.rounds)
                print(f"{row:34s} {host * 1e6:9,.0f} us {device * 1e6:9,.0f} us", flush=True)


if __name__ == "__main__":
    main()
