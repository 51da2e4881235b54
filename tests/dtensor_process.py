"""One rank of tests/test_torch_dtensors.py: runs all cases, and prints what came out as a line of JSON for each.

python dtensor_process.py RANK SIZE FILE        a process group of gloo that meets at a file"""

import json
import math
import re
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

import gradclip
import gradclip.torch as ours

ROWS, COLUMNS, ALL = Shard(0), Shard(1), Replicate()
SHAPES = (5, 7), (3, 2), (1, 4), (16, 3), (2, 2), (4, 6)  # some of which leave ranks without a row


def gradients(dtype=torch.float64):
    """The gradients that ranks share, the same in every process."""
    numbers = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=numbers, dtype=torch.float64).to(dtype) * 3 for shape in SHAPES]


def parameter(grad, mesh=None, *placements):
    """A parameter with a gradient that ranks share so; of a plain tensor each has a replica."""
    shared = [grad.clone() if mesh is None else distribute_tensor(grad.clone(), mesh, placements) for _ in range(2)]
    made = torch.nn.Parameter(shared[0])
    made.grad = shared[1]
    return made


def shown(norm, parameters=()):
    """A norm to the last bit, its type, and the whole gradients."""
    grads = [p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad for p in parameters]
    value = norm.full_tensor() if isinstance(norm, DTensor) else norm
    return {"norm": value.item().hex(), "type": type(norm).__name__, "grads": [g.double().tolist() for g in grads]}


def clip(parameters, max_norm=1.0, order=2.0):
    return shown(ours.clip_grad_norm_(parameters, max_norm, order), parameters)


class Ranks:
    """The cases, methods without a leading underscore, and the meshes that they share tensors over."""

    def __init__(self, rank, size):
        self._rank, self._size = rank, size
        self._line = init_device_mesh("cpu", (size,), mesh_dim_names=("all",))
        self._grid = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("rows", "columns"))
        self._halves = [DeviceMesh("cpu", half) for half in torch.arange(size).chunk(2)]
        self._alone = DeviceMesh("cpu", [0])
        self._pair = DeviceMesh("cpu", [[0], [1]])
        self._chain = [DeviceMesh("cpu", [i, i + 1]) for i in range(min(size, 3) - 1)]

    def _like(self, mesh, *placements):
        return [parameter(grad, mesh, *placements) for grad in gradients()]

    # ---- placements ------------------------------------------------------------------------------

    def rows(self):
        return clip(self._like(self._line, ROWS))

    def columns(self):
        return clip(self._like(self._line, COLUMNS))

    def replicas(self):
        return clip(self._like(self._line, ALL))

    def hybrid(self):  # as HSDP
        return clip(self._like(self._grid, ALL, ROWS))

    def turned(self):
        return clip(self._like(self._grid, ROWS, ALL))

    def both(self):
        return clip(self._like(self._grid, ROWS, COLUMNS))

    def strided(self):  # as tensor parallelism below FSDP2
        grads = [grad.repeat(4, 1) for grad in gradients()]
        places = self._grid.get_coordinate()
        made = []
        for grad in grads:
            part = grad.chunk(self._size // 2)[places[1]].chunk(2)[places[0]]
            placements = [_StridedShard(0, split_factor=self._size // 2), ROWS]
            shared = DTensor.from_local(part.clone(), self._grid, placements, run_check=False)
            made.append(torch.nn.Parameter(torch.zeros_like(shared)))
            made[-1].grad = shared
        return shown(ours.clip_grad_norm_(made, 1.0))

    # ---- several meshes --------------------------------------------------------------------------

    def several(self):
        a, b, c, d, e, f = gradients()
        rows, columns = self._grid["rows"], self._grid["columns"]
        shared = [parameter(a, self._line, ROWS), parameter(b, self._grid, ALL, ROWS), parameter(c, rows, ROWS)]
        return clip([*shared, parameter(d, columns, ALL), parameter(e), parameter(f, columns, COLUMNS)])

    def parts(self):  # no mesh holds all ranks, and each rank sees two parts of one that does
        a, b, c, d, e, f = gradients()
        rows, columns = self._grid["rows"], self._grid["columns"]
        shared = [parameter(a, rows, ROWS), parameter(b, rows, ALL), parameter(c, columns, ROWS)]
        return clip([*shared, parameter(d, columns, ALL), parameter(e), parameter(f, rows, COLUMNS)])

    def part(self):
        a, b, *others = gradients()
        shared = [parameter(a, self._grid["columns"], ROWS), parameter(b, self._grid["columns"], ALL)]
        return clip([*shared, *map(parameter, others)])

    def halves(self):  # a rank is in one of two meshes, and holds nothing of what is in the other
        a, b, c, d, *others = gradients()
        here, there = self._halves
        shared = [parameter(a, here, ROWS), parameter(b, here, ALL), parameter(c, there, ROWS), parameter(d, there, ALL)]
        return shown(ours.clip_grad_norm_([*shared, *map(parameter, others)], 1.0))

    def chain(self):  # ranks 0, 1 and 1, 2, of which no group is known if there are more
        made = [p for mesh in self._chain for p in self._like(mesh, ROWS)]
        return shown(ours.clip_grad_norm_(made, 1.0))

    def pair(self):  # of two dimensions, and not all ranks
        if self._rank < 2:
            return clip(self._like(self._pair, ROWS, ALL))
        return None

    def outside(self):
        return clip(self._like(self._alone, ROWS))

    # ---- functions and options -------------------------------------------------------------------

    def orders(self):
        return [clip(self._like(self._grid, ROWS, ALL), order=order) for order in (1.0, 3.0, math.inf)]

    def inside(self):
        made = self._like(self._line, ROWS)
        before = [p.grad._version for p in made]
        found = clip(made, 1e9)
        assert before == [p.grad._version for p in made]
        clip(made)
        assert all(p.grad._version > version for p, version in zip(made, before, strict=True))
        return found

    def bfloat16(self):
        return clip([parameter(grad, self._line, ROWS) for grad in gradients(torch.bfloat16)])

    def halfway(self):
        made = self._like(self._line, ROWS)
        norm = ours.get_total_norm([p.grad for p in made])
        ours.clip_grads_with_norm_(made, 1.0, norm)
        plain = self._like(self._line, ROWS)
        before = plain[0].grad._version
        ours.clip_grads_with_norm_(plain, 1.0, norm.full_tensor())
        assert plain[0].grad._version > before
        assert all(torch.equal(p.grad.to_local(), q.grad.to_local()) for p, q in zip(made, plain, strict=True))
        return shown(norm, made)

    def values(self):
        made = [*self._like(self._grid, ALL, ROWS), *self._like(self._line, COLUMNS)]
        ours.clip_grad_value_(made, 1.5)
        return shown(torch.tensor(0.0), made)

    def memory(self):
        made = self._like(self._line, ROWS)
        before = [p.grad.to_local().data_ptr() for p in made]
        clip(made)
        assert before == [p.grad.to_local().data_ptr() for p in made]

    def patched(self):
        made = self._like(self._line, ROWS)
        with ours.patch():
            return shown(torch.nn.utils.clip_grad_norm_(made, 1.0), made)

    # ---- what ranks agree on ---------------------------------------------------------------------

    def first(self):  # the others have no gradients
        made = self._like(self._line, ROWS)
        for p in made:
            if self._rank:
                p.grad = None
        return shown(ours.clip_grad_norm_(made, 1.0))

    def nobody(self):
        made = self._like(self._line, ROWS)
        for p in made:
            p.grad = None
        return shown(ours.clip_grad_norm_(made, 1.0))

    def nan(self):
        found = []
        for strictly in (True, False):
            made = self._like(self._line, ROWS)
            if self._rank == self._size - 1:
                made[3].grad.to_local()[0, 1] = math.nan
            before = [p.grad.to_local().clone() for p in made]
            try:
                norm = ours.clip_grad_norm_(made, 1.0, error_if_nonfinite=strictly).item()
            except RuntimeError as error:
                norm = str(error)
            same = all(torch.equal(p.grad.to_local().isnan(), x.isnan()) for p, x in zip(made, before, strict=True))
            found.append([norm, same])
        return [found[0], [math.isnan(found[1][0]), found[1][1]]]

    def differ(self):
        return clip(self._like(self._line, ROWS), 1.0 + self._rank)

    def unlike(self):  # arguments on the last rank, some of which PyTorch's function serves or refuses
        last, found = self._rank == self._size - 1, []
        for args in ((-1.0 if last else 1.0,), (1.0, 0.0 if last else 2.0), (1.0, 2.0, last), ("x" if last else 1.0,)):
            made = self._like(self._line, ROWS)
            before = [p.grad.to_local().clone() for p in made]
            try:
                ours.clip_grad_norm_(made, *args)
            except (RuntimeError, ValueError) as error:
                found.append(f"{type(error).__name__}: {error}")
            assert all(torch.equal(p.grad.to_local(), x) for p, x in zip(made, before, strict=True))
        return found

    def terms(self):
        made = self._like(self._line, ALL)
        made[1].grad = DTensor.from_local(torch.ones(3, 2, dtype=torch.float64), self._line, [Partial()], run_check=False)
        found = []
        calls = (ours.clip_grad_norm_, ours.clip_grad_value_, lambda ps, _: ours.get_total_norm([p.grad for p in ps]))
        for call in calls:
            try:
                call(made, 1.0)
            except TypeError as error:
                found.append(str(error))
        ours.clip_grads_with_norm_(made, 1.0, torch.tensor(2.0))  # a factor of terms is one of their sum
        return [*found, made[1].grad.full_tensor().mean().item()]

    def left(self):  # to PyTorch, by all ranks
        return shown(ours.clip_grad_norm_(self._like(self._line, ROWS), 1.0, 0.0))

    # ---- training --------------------------------------------------------------------------------

    def fsdp2(self):
        return train(lambda module: fully_shard(module, mesh=self._line))

    def offloaded(self):
        policy = CPUOffloadPolicy(pin_memory=False)  # pinning needs a GPU
        return train(lambda module: fully_shard(module, mesh=self._line, offload_policy=policy))

    def page(self):
        """The program of docs/distributed.md."""
        text = (Path(__file__).parents[1] / "docs" / "distributed.md").read_text(encoding="utf-8")
        (program,) = (p for p in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "import clip_grad_norm_" in p)
        names = {
            "torch": torch,
            "model": network(),
            "batches": [data()] * 3,
            "loss_of": lambda m, x: 100 * m(x).square().mean(),
        }
        exec(program, names)
        assert names["norm"].item() > 1.0
        parts = [p.grad.to_local().cpu().numpy() for p in names["model"].parameters()]
        return gradclip.clip_by_global_norm(parts, math.inf, comm=dist.group.WORLD)[1].norm

    def attached(self):
        return [train(lambda m: fully_shard(m, mesh=self._grid), attached=True, fold=fold) for fold in (False, True)]

    def spike(self):
        """A step is left out on all ranks because of one."""
        model = network(lambda module: fully_shard(module, mesh=self._line))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        attached = ours.attach(optimizer, 1.0, nonfinite="skip")
        model(data()).square().mean().backward()
        if self._rank == self._size - 1:
            list(model.parameters())[2].grad.to_local()[0, 0] = math.inf
        before = [p.to_local().clone() for p in model.parameters()]
        optimizer.step()
        same = all(torch.equal(p.to_local(), x) for p, x in zip(model.parameters(), before, strict=True))
        return [attached.report.skipped, same, attached.report.first_nonfinite]


def data():
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(5))


def network(share=lambda module: None):
    """A small network, each layer shared, the same in every process."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.Tanh(), torch.nn.Linear(9, 8))
    share(model[0])
    share(model)
    return model


def train(share=lambda module: None, attached=False, fold=False):
    """The norms of a short training, and its weights. All ranks read the same data, so that the mean over them is exact."""
    model, norms = network(share), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fold)
    hook = ours.attach(optimizer, 0.05, fold=fold) if attached else None
    for _ in range(3):
        optimizer.zero_grad()
        model(data()).square().mean().backward()
        norm = None if attached else ours.clip_grad_norm_(model.parameters(), 0.05)
        optimizer.step()
        norms.append((hook.report.norm if attached else norm.item()).hex())
    weights = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
    return [norms, [w.tolist() for w in weights]]


CASES = [name for name in vars(Ranks) if not name.startswith("_")]

if __name__ == "__main__":
    rank, size = map(int, sys.argv[1:3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method="file://" + sys.argv[3], rank=rank, world_size=size)
    ranks = Ranks(rank, size)
    for name in CASES:
        try:
            found = getattr(ranks, name)()
        except (TypeError, ValueError) as error:
            found = {"error": type(error).__name__, "text": str(error)}
        print("CASE " + json.dumps([name, found]), flush=True)
    dist.barrier()
    dist.destroy_process_group()
