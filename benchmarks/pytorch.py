"""gradclip.torch beside PyTorch: its functions, and a step of a fused AdamW that clips.

    python benchmarks/pytorch.py [THREADS]

Both are run in turn in one process, best of many: the ratio says more than either number."""

import sys
import time

import torch

import gradclip
import gradclip.torch as ours

theirs = torch.nn.utils

# What is clipped: tensors, elements of each, dtype, calls.
ROWS = {
    "one of 10 f32": (1, 10, torch.float32, 3000),
    "6 x 1000 f32": (6, 1000, torch.float32, 1500),
    "1000 x 1000 f32": (1000, 1000, torch.float32, 100),
    "161, 25M f64": (161, 158_000, torch.float64, 20),
    "148, 124M f32": (148, 840_000, torch.float32, 15),
    "148, 124M f16": (148, 840_000, torch.float16, 10),
    "180 x 1M f32": (180, 1_000_000, torch.float32, 10),
    "180 x 1M bf16": (180, 1_000_000, torch.bfloat16, 10),
}


def with_gradients(count, size, dtype):
    params = [torch.nn.Parameter(torch.zeros(size, dtype=dtype)) for _ in range(count)]
    for p in params:
        p.grad = torch.randn(size).to(dtype)
    return params


def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def best_of_clipping(params, calls, clips):
    """The best time of PyTorch's function and of ours. Where they clip, each call has a little less to reach than the last."""
    norm = ours.get_total_norm([p.grad for p in params]).item() if clips else float("inf")
    best = [float("inf")] * 2
    for _ in range(calls):
        for i, module in enumerate((theirs, ours)):
            norm *= 0.98
            best[i] = min(best[i], seconds(lambda module=module, norm=norm: module.clip_grad_norm_(params, norm)))
    return best


def functions():
    for name, (count, size, dtype, calls) in ROWS.items():
        params = with_gradients(count, size, dtype)
        for clips in (False, True):
            a, b = best_of_clipping(params, calls, clips)
            what = "clipping" if clips else "nothing to clip"
            print(
                f"{name:16} {what:15}  PyTorch {a * 1e6:10.1f} us  gradclip.torch {b * 1e6:10.1f} us  {a / b:5.2f} x",
                flush=True,
            )


def steps(count=148, size=840_000, rounds=10):
    """A step of AdamW alone, after a clip, and with a clip attached."""
    params = with_gradients(count, size, torch.float32)
    optimizer = torch.optim.AdamW(params, lr=1e-9, fused=True)
    grads, best = [p.grad.clone() for p in params], {}

    def timed(name, call):
        for p, grad in zip(params, grads, strict=True):
            p.grad.copy_(grad)
        best[name] = min(best.get(name, float("inf")), seconds(call))

    optimizer.step()
    for _ in range(rounds):
        timed("step alone", optimizer.step)
        timed("PyTorch's clip, step", lambda: (theirs.clip_grad_norm_(params, 1.0), optimizer.step()))
        timed("our clip, step", lambda: (ours.clip_grad_norm_(params, 1.0), optimizer.step()))
        for fold in (False, True):
            attached = ours.attach(optimizer, 1.0, fold=fold)
            timed(f"attach, fold={fold}", optimizer.step)
            attached.remove()
    for name, found in best.items():
        print(f"AdamW fused, {count * size / 1e6:.0f}M f32: {name:22} {found * 1e3:7.1f} ms", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        torch.set_num_threads(int(sys.argv[1]))
        gradclip.set_num_threads(int(sys.argv[1]))
    functions()
    steps()
