"""`SharedUnits`: a call in which leaves, groups, units or samples have norms of their own, each over the leaves of all ranks.

What shares a norm is known by a name: the path of a leaf, or the name of a group (table.py). Where a merged sum does not tell
the norm, which all ranks see alike, these names alone are summed exactly. `strict` exchanges what would be written (held.py).

Several shards of a leaf are rows of it: they differ along axis 0. So units that lie along axis 0, as those of adaptive clipping
usually do, are whole on their rank, and only the others are shared by path and index."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from .._core.dyadic import dyadic
from .._core.options import refuse_skip_above
from .._core.rounding import RATIONAL, RoundingBound, Worst, exact_order
from .._core.strict import power_of
from .._cpu.exact import exact_sums, merged_sums
from .._cpu.plan import StandardState
from ..report import everywhere
from .comms import MAX
from .exchange import NONE, Part, bits_of, number_of
from .held import Held
from .shared import SharedOptions, counted_leaves, unsettled
from .table import Block, Table, exchanged, hashed, numbers_of

if TYPE_CHECKING:
    from .._core.arguments import Flags, Floats, Indices
    from .._core.call import Request
    from .._core.engine import Engine
    from .._cpu.plan import Plan
    from .._cpu.sums import Sums
    from .._leaves import Leaves
    from ..report import ClipReport

CUT = 2.0**-200  # a bound on the relative error that leaving out the rest makes, for up to 2**50 ranks
NAMES, UNNAMED, COUNT, BATCH, UNBATCH, LEAST, MOST, ROUGH, INEXACT = range(9)  # extra words of the first exchange


class SharedUnits(SharedOptions):
    """The Options of a call with `comm` or `owned` in which units have norms of their own."""

    __slots__ = ("blocks", "first", "inexact", "leaves", "mine", "sizes", "table", "values", "worst")

    blocks: Sequence[Block]
    first: Part  # what the first exchange found
    table: Table
    values: list[Fraction]  # the sum behind each norm, exact where `strict` asks for it
    sizes: list[int]  # elements behind each norm
    mine: Indices  # the owner of each unit, -1 for those of leaves that another rank counts
    worst: Worst  # how the coarsest dtypes of all ranks round
    leaves: Leaves | None  # those that are clipped, where others are read behind them
    inexact: bool  # whether some rank cannot add samples as they are

    def __init__(self, norm: Mapping[str, Any]) -> None:
        refuse_skip_above(norm)
        super().__init__(norm)
        self.inexact, self.leaves = False, None

    def measure(self, request: Request, engine: Engine, read: Leaves) -> Sums:
        """Return the Sums of leaves or slices whose norms run over all ranks."""
        if self.session.alone:
            self.refuse_unowned(read)
        blocks = [] if self.session.alone else blocks_of(read, request.threshold)
        units: Any = engine.measure(read, self.ord, self.grad_scale, self.finite_only, norms=False)
        return self.join(request, engine, read, units, blocks)

    def refuse_unowned(self, leaves: Leaves) -> None:
        """Raise an error if a leaf is not owned, and so would have no norm: there is no other rank that counts it."""
        for i in self.unowned(leaves):
            raise TypeError(
                f"{leaves.path(i)}: not owned, so it has no norm; without comm, owned is for leaves that others decide for"
            )

    def unowned(self, leaves: Leaves) -> list[int]:
        """Return the indices of the leaves that another rank counts."""
        counted = counted_leaves(leaves, self.owned)
        return [] if counted is None else sorted({*range(leaves.count)} - {*counted})

    def join(
        self,
        request: Request,
        engine: Engine,
        read: Leaves,
        units: Sums,
        blocks: Sequence[Block],
        everything: Sums | None = None,
        batch: int | None = None,
    ) -> Sums:
        """Return the Sums of units, or of their owners, after the exchanges that tell them.

        everything : the Sums of the owners here, if units have owners: `request.owner` says which
        batch : how many samples there are, if these are the owners"""
        owner, leaves = request.owner, self.leaves or read
        if everything is None or owner is None:
            owner = np.full(read.units, -1)
            owner[: units.count] = np.arange(units.count)
            everything = units.by_owner(units.count, owner)
        self.mine = mine = self._owned(leaves, owner)
        own = everything if mine is owner else units.by_owner(everything.count, mine)
        with StandardState():
            held, counted = (_sizes(leaves, of, everything.count) for of in (owner, mine))
            self._meet(request, read, own, everything, blocks, counted, batch)
            whole = self._whole(read, mine)
            merged = self._merged(read, own, everything, blocks, counted, mine, self.grad_scale)
            self.session.end()
            self.sizes, self.blocks = held, blocks
            self._refuse_uncounted(merged)
            engine.settle(everything, read, 0, False)
            self._keep(read, everything, blocks, merged, owner)
            sums = merged_sums(units, owner, everything, numbers_of(blocks), merged, self._sums(whole))
        if not self.session.alone:
            sums.first_value = None  # which the other ranks do not know
        return sums

    def beside(self, engine: Engine, read: Leaves, leaves: Leaves, both: Sums, blocks: Sequence[Block]) -> Sums:
        """Return the Sums of gradients and, behind them, parameters; the norms of these run over all ranks."""
        first, owner = leaves.units, np.arange(both.count)
        mine = np.full(both.count, -1)
        mine[first:] = np.where(self._owned(leaves, owner[:first]) >= 0, owner[first:], -1)
        moved = [b._replace(first=b.first + first) for b in blocks]
        with StandardState():
            sizes = [0] * both.count  # nobody asks
            self.session.begin()
            merged = self._merged(read, both.by_owner(both.count, mine), both, moved, sizes, mine, 1.0)
            self.session.end()
            engine.settle(both, read, first, False)
            return merged_sums(both, owner, both, numbers_of(moved), merged, both)

    def adaptive(self, request: Any, engine: Engine, read: Leaves, both: Sums) -> tuple[Sums, Floats]:
        """Return the Sums of the units of gradients, and their thresholds, which follow from the norms of parameters.

        request : of adaptive clipping; both : what was measured of gradients and, behind them, parameters"""
        leaves = self.leaves = request.leaves
        if self.session.alone:
            self.refuse_unowned(leaves)
        self.also = request.eps
        blocks = [] if self.session.alone else blocks_of(leaves, request.factor)
        sums = self.join(request, engine, read, both.of_units(0, leaves.units, self.grad_scale), blocks)
        return sums, self.beside(engine, read, leaves, both, blocks).weigh(leaves.units, request.factor, request.eps)

    def named(self, names: Sequence[str], count: int, alike: Sequence[Any]) -> list[Block]:
        """Return the blocks of groups or of parts of samples, each of `count` norms."""
        known = map(str, range(len(names))) if self.session.alone else names  # alone, paths may be the same
        return [Block(name, k * count, count, value) for k, (name, value) in enumerate(zip(known, alike, strict=True))]

    def check_samples(self, leaves: Leaves, by_leaf: bool, needs_all: bool) -> None:
        """Raise an error if parts of samples would have no norm, or no name of their own.

        by_leaf : whether these are leaves; needs_all : whether every leaf needs a bound"""
        if self.session.alone and (by_leaf or needs_all):
            self.refuse_unowned(leaves)
        if by_leaf and not self.session.alone:
            blocks_of(leaves, None)

    def _owned(self, leaves: Leaves, owner: Indices) -> Indices:
        """Return the owners of units, -1 for those of leaves that another rank counts: the same array if there are none."""
        unowned = self.unowned(leaves)
        if unowned:
            owner, ends = owner.copy(), np.cumsum([0, *leaves.leaf_units()]).tolist()
            for i in unowned:
                owner[ends[i] : ends[i + 1]] = -1
        return owner

    # ---- the exchanges ------------------------------------------------------------------------------

    def _meet(
        self,
        request: Request,
        read: Leaves,
        own: Sums,
        everything: Sums,
        blocks: Sequence[Block],
        sizes: list[int],
        batch: int | None,
    ) -> None:
        """Exchange what there is one of, and agree on the table of names."""
        worst = Worst.of(request.to.arrays, self.grad_scale)
        names = hashed([tuple(b._replace(first=0)) for b in blocks])
        many = NONE if batch is None or not read.count else batch
        extra = [names, -names, len(blocks), many, NONE if many == NONE else -many]
        extra += [bits_of(worst.least), -bits_of(worst.most), int(not worst.exact), int(self.inexact)]
        total, exponent = dyadic(*own.scaled())
        error = own.error if self.ord in (1.0, 2.0) else 0.0
        part = Part(total, exponent, error, not exact_order(self.ord, read.sources), *everything.parts(), everything.max_abs())
        part = part._replace(first=everything.first_nonfinite, size=sum(sizes))
        self.first = self._merge(request, part, extra)
        found = self.session.extra
        if found[BATCH] != NONE and found[BATCH] != -found[UNBATCH]:
            self.session.open = False
            raise ValueError(f"batches differ between ranks, from {-found[UNBATCH]} to {found[BATCH]} samples")
        self.session.begin()
        self.inexact = bool(found[INEXACT])
        self.worst = Worst(self.first.half, number_of(found[LEAST]), number_of(-found[MOST]), not found[ROUGH])
        self.table = Table.of(self.session, blocks, found[NAMES] == -found[UNNAMED], found[COUNT])

    def _whole(self, read: Leaves, owner: Indices) -> Part:
        """Return what the first exchange found, with an exact sum where the other does not tell the norm of all."""
        whole = self.first
        if not unsettled(whole, self):
            return whole
        alike = np.where(owner >= 0, 0, -1)
        exact = Part(*dyadic(exact_sums(read, self.ord, np.zeros(1, np.intp), alike)[0], 0))
        found = self.session.merge(exact, self.ord, self.alike)
        return whole._replace(total=found.total, exponent=found.exponent, error=0.0)

    def _merged(
        self,
        read: Leaves,
        own: Sums,
        everything: Sums,
        blocks: Sequence[Block],
        sizes: list[int],
        owner: Indices,
        grad_scale: float,
    ) -> list[Part]:
        """Return what all ranks found for each norm of the blocks, in their order.

        own, everything : the Sums of what is counted here, and of what is here; sizes : of what is counted"""
        which, place = numbers_of(blocks), self.table.places(blocks)
        exact = self.strict and self.ord in (1.0, 2.0) and not self.rounded
        sums = [dyadic(total, 0) for total in self._exact(read, which, owner)] if exact else own.dyadics(which)
        found_here = [everything.parts(k) for k in which]
        parts = [
            Part(*total, nans=nans, infs=infs, size=sizes[k])
            for total, (nans, infs), k in zip(sums, found_here, which, strict=True)
        ]
        found = exchanged(self.session, parts, place, self.table.count, self.ord, exact)
        error = 0.0 if exact else self.first.error + CUT
        found = [p._replace(error=error, rounded=self.rounded) for p in found]
        open_ = [] if exact else [k for k, p in enumerate(found) if unsettled(p, self, grad_scale)]
        if open_:
            self._make_exact(read, which, place, found, open_, owner)
        return [found[k] for k in place]

    def _exact(self, read: Leaves, which: Sequence[int], owner: Indices) -> list[Fraction]:
        """Return the exact sums of some owners, which are in rising order."""
        return exact_sums(read, self.ord, np.array(which, np.intp), owner) if which else []

    def _make_exact(
        self, read: Leaves, which: Sequence[int], place: Sequence[int], found: list[Part], open_: Sequence[int], owner: Indices
    ) -> None:
        """Replace those sums of the table by exact ones that do not tell their norms."""
        at = {k: i for i, k in enumerate(open_)}
        here = sorted((unit, at[k]) for unit, k in zip(which, place, strict=True) if k in at)
        parts = [Part(*dyadic(total, 0)) for total in self._exact(read, [unit for unit, _ in here], owner)]
        for k, p in zip(open_, exchanged(self.session, parts, [i for _, i in here], len(open_), self.ord, True), strict=True):
            found[k] = found[k]._replace(total=p.total, exponent=p.exponent, error=0.0)

    def _keep(self, read: Leaves, everything: Sums, blocks: Sequence[Block], merged: Sequence[Part], owner: Indices) -> None:
        """Remember sizes and sums behind norms, which `strict` and sums of samples ask for."""
        shared = dict(zip(numbers_of(blocks), merged, strict=True))
        self.sizes = [shared[k].size if k in shared else size for k, size in enumerate(self.sizes)]
        if self.strict and self.ord in RATIONAL and not self.rounded:
            local = [k for k in range(everything.count) if k not in shared]
            totals = [everything.exact(k) for k in local] if self.ord == math.inf else self._exact(read, local, owner)
            values = dict(zip(local, totals, strict=True))
            self.values = [shared[k].value() if k in shared else values[k] for k in range(everything.count)]

    def _refuse_uncounted(self, merged: Sequence[Part]) -> None:
        """Raise an error if no rank counts the elements behind a norm that are here."""
        for part, (k, name) in zip(merged, ((b.first + i, b.name) for b in self.blocks for i in range(b.size)), strict=True):
            if self.sizes[k] and not part.size:
                raise TypeError(f"{name or 'grads'}: owned by no rank, so it has no norm")

    def agree_on_thresholds(self, threshold: Floats) -> None:
        """Raise an error if a rule failed on some rank, or gave another threshold there.

        threshold : of each norm, as the rules of this rank gave it"""
        if not self.session.open:
            return
        self.session.merge(Part(), self.ord, self.alike)
        self.session.begin()
        words = np.full((self.table.count, 2), np.iinfo(np.int64).min, np.int64)  # below the bits of -inf
        for k, place in zip(numbers_of(self.blocks), self.table.places(self.blocks), strict=True):
            words[place] = bits_of(float(threshold[k])), -bits_of(float(threshold[k]))
        words = self.session.reduce(words.ravel(), MAX).reshape(-1, 2)
        if (words[:, 0] != -words[:, 1]).any():
            self.session.open = False
            raise ValueError("the rules of different ranks give different thresholds to what shares a norm")
        self.session.end()

    # ---- decisions ----------------------------------------------------------------------------------

    def exceeding(self, sums: Sums, threshold: Floats) -> Flags | None:
        """Return whether each norm exceeds its threshold in exact arithmetic, as uint8; None if only norms tell."""
        if self.ord not in RATIONAL or self.rounded:
            return None
        scale, found = power_of(self.grad_scale, self.ord), np.zeros(len(threshold), np.uint8)
        for k, bound in enumerate(threshold.tolist()):
            if bound < math.inf:
                found[k] = sums.shows_nonfinite(k) or self.values[k] > power_of(bound, self.ord) * scale
        return found

    def safe(self, k: int, bound: float, finite: bool = True) -> float:
        """Return a norm that unit k may be brought to: it keeps the bound however the elements on all ranks are rounded.

        finite : whether no element may leave the range of the dtype whose range is the least"""
        rounding = RoundingBound.of_worst(self.sizes[k], self.worst, self.ord)
        return bound if bound == math.inf else rounding.threshold(min(bound, self.worst.most) if finite else bound)

    def safe_norms(self, limit: Floats) -> Floats:
        """Return `safe` of each sample in each part."""
        return np.array([self.safe(k, bound) for k, bound in enumerate(limit.tolist())], np.float64)

    def hold(self, engine: Engine, request: Request, plan: Plan, sums: Sums) -> None:
        """Shrink factors until what all ranks would write keeps the threshold of each norm in exact arithmetic."""
        Held(self, engine, request, plan, sums).shrink()

    def conclude(self, request: Request, report: ClipReport) -> ClipReport:
        """Agree with the other ranks that nothing failed, and on the smallest factor; then all write."""
        return self.agree(report)[0] if self.session.open else report

    def agree(self, report: ClipReport) -> tuple[ClipReport, int, int]:
        """Do what `conclude` does; returns also how many samples of how many were clipped, where only samples are."""
        scale, counts = report.scale, (report.clipped_count, report.size)
        if not self.session.open:
            return report, *counts
        word = 1 if math.isnan(scale) else -bits_of(scale if len(report.norms) else math.inf)  # inf: without units, no factor
        extra = [word, int(report.clipped), *counts]
        self.session.merge(Part(), self.ord, self.alike, extra)
        self.session.open = False
        least, clipped, count, size = self.session.extra[:4]
        smallest = math.nan if least == 1 else number_of(-least)
        smallest = scale if smallest == math.inf else smallest  # no rank has a norm
        return everywhere(report, smallest, bool(clipped)), count, size


def blocks_of(leaves: Leaves, threshold: Any) -> list[Block]:
    """Return the blocks of leaves that are clipped each on its own, or in units.

    Units that lie along axis 0 are whole here. Their block has no norms, and says only what shape their rows have.

    threshold : of each unit, or anything else that is not compared"""
    paths, axes, counts = leaves.paths(), leaves.unit_axes, leaves.leaf_units()
    for path, count in Counter(paths).items():
        if count > 1:
            raise ValueError(f"comm knows leaves by their paths, but {count} have the path {path}")
    first, blocks = 0, []
    for i, (path, count) in enumerate(zip(paths, counts, strict=True)):
        along = axes[i] if axes is not None else ()
        row = (along, leaves.arrays[i].shape[1:]) if along else None
        if 0 not in along:
            value = float(threshold[first]) if isinstance(threshold, np.ndarray) and count else None
            blocks.append(Block(path, first, count, (value, row)))
        elif leaves.arrays[i].size:
            blocks.append(Block(path, first, 0, row))
        first += count
    return blocks


def _sizes(leaves: Leaves, owner: Indices, count: int) -> list[int]:
    """Return how many elements each owner has."""
    each = [a.size // max(n, 1) for a, n in zip(leaves.arrays, leaves.leaf_units(), strict=True)]
    units = np.repeat(each, leaves.leaf_units()) if each else np.zeros(0)
    owner = owner[: len(units)]
    kept = owner >= 0
    found: list[int] = np.bincount(owner[kept], units[kept], count).astype(np.int64).tolist()
    return found
