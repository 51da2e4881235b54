"""Clipping the sharded gradients of FSDP2 on processors, as with CPU offload: gradclip.torch beside PyTorch.

    torchrun --nproc-per-node 2 benchmarks/fsdp2.py

Ranks run on gloo, with one thread each. Both functions are called in turn; a time is that of the slowest rank, best of many.
The norms of both are printed to the last bit: ours does not depend on the number of ranks."""

import time

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import gradclip
import gradclip.torch as ours

LAYERS, WIDTH, CALLS = 90, 516, 15  # 180 tensors, 24M elements


def model(mesh, dtype):
    """A model each layer of which is sharded, and its gradients: the same whatever the number of ranks."""
    torch.manual_seed(0)
    made = torch.nn.Sequential(*[torch.nn.Linear(WIDTH, WIDTH, dtype=dtype) for _ in range(LAYERS)])
    for layer in made:
        fully_shard(layer, mesh=mesh)
    fully_shard(made, mesh=mesh)
    for i, p in enumerate(made.parameters()):
        p.grad = torch.zeros_like(p)
        whole = torch.randn(p.shape, generator=torch.Generator().manual_seed(i)).to(dtype)
        rows = whole.chunk(dist.get_world_size())
        if dist.get_rank() < len(rows):
            p.grad.to_local().copy_(rows[dist.get_rank()])
    return made


def seconds(call):
    """The time of a call on the slowest rank."""
    dist.barrier()
    start = time.perf_counter()
    call()
    found = torch.tensor(time.perf_counter() - start)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return found.item()


def main():
    torch.set_num_threads(1)
    gradclip.set_num_threads(1)
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for dtype in (torch.float32, torch.bfloat16):
        params = list(model(mesh, dtype).parameters())
        found = [f.get_total_norm([p.grad for p in params]).full_tensor().item() for f in (torch.nn.utils, ours)]
        if dist.get_rank() == 0:
            norms = " and ".join(map(float.hex, found))
            print(f"{dist.get_world_size()} ranks, {dtype}: norms of PyTorch and here {norms}", flush=True)
        for clips in (False, True):
            norm, best = found[1] if clips else float("inf"), [float("inf")] * 2
            for _ in range(CALLS):
                for i, module in enumerate((torch.nn.utils, ours)):
                    norm *= 0.98
                    time_taken = seconds(lambda f=module, c=norm, p=params: f.clip_grad_norm_(p, c).full_tensor())
                    best[i] = min(best[i], time_taken)
            if dist.get_rank() == 0:
                what, (a, b) = "clipping" if clips else "nothing to clip", best
                print(f"  {what:15}  PyTorch {a * 1e3:6.2f} ms  gradclip.torch {b * 1e3:6.2f} ms  {a / b:5.2f} x", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
