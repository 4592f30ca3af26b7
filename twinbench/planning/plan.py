"""What a training holds, and whether it fits: arithmetic alone. What is counted comes from `meta` (a backbone without
weights) and `tally` (a method's passes). No torch here.

A plan mirrors what `training.networks.assemble` makes and how `training.parallel` deals it: blocks and roots of whole
networks are sharded over all GPUs, adapters and heads lie whole in each. Bytes; GB are 10^9.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

RESERVE = 2_000_000_000  # of every GPU, for CUDA, NCCL and what the allocator cannot use
RANK = 64  # of adapters, where they are proposed
FULL = 4  # bytes of a number of an adapter or a head: float32


@dataclass(frozen=True)
class Model:
    """A backbone. parameters; trained: those that an optimizer moves; matrices: those of them that Muon takes; block:
    of the largest of `depth` blocks; root: outside of them; adapter: of an adapter, for each rank; full: what it trains
    whole beside. size: bytes of a stored number; products: of a number in a product.

    Of one row's pass with a gradient: flops; saved, kept: bytes of activations without and with recomputation; largest:
    those of one block; widths: of what blocks give. latent, words: bytes of a sample in the cache."""

    parameters: int
    trained: int
    matrices: int
    block: int
    root: int
    depth: int
    adapter: int
    full: int
    size: int
    products: int
    flops: float
    saved: int
    kept: int
    largest: int
    widths: tuple[int, ...]
    latent: int
    words: int

    @property
    def frozen(self) -> int:
        """Bytes of a number of a frozen copy."""
        return min(self.size, self.products)

    def of_rank(self, rank: int) -> int:
        """Parameters of an adapter."""
        return rank * self.adapter + self.full


@dataclass(frozen=True)
class Needs:
    """What a method asks for (`Method`). critic: the rank of its adapter, 0 for a network of its own, None for none.
    head: how many blocks it reads, None for none; phases: whether its teacher changes."""

    teacher: bool = False
    critic: int | None = None
    head: int | None = None
    phases: bool = False


@dataclass(frozen=True)
class Setup:
    """How it is trained. memory: bytes of a GPU; micro: rows at once on it, None for all that are its own; offload: the
    shards wait in the host's memory; lora: the rank, None for all weights; average: whether there is one."""

    gpus: int
    memory: float
    batch: int
    micro: int | None = None
    recompute: bool = False
    offload: bool = False
    lora: int | None = None
    optimizer: str = "adamw"
    average: bool = True

    @property
    def rows(self) -> int:
        """At once on a GPU."""
        own = math.ceil(self.batch / self.gpus)
        return min(self.micro or own, own)


@dataclass(frozen=True)
class Part:
    """A network in all, in bytes. sharded: dealt to the GPUs; else every GPU has it whole."""

    name: str
    parameters: int
    weights: float
    gradients: float = 0
    optimizer: float = 0
    trained: int = 0
    sharded: bool = True

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer

    def per_gpu(self, gpus: int) -> float:
        return self.total / gpus if self.sharded else self.total


@dataclass(frozen=True)
class Plan:
    """A method with its setup. alive: rows whose activations wait for one backward pass, for each row at once. bare:
    the settings under which there is no average; none where the method cannot do without."""

    model: Model
    needs: Needs
    setup: Setup
    alive: float
    bare: tuple[str, ...] = ()

    @cached_property
    def parts(self) -> list[Part]:
        return list(self._parts())

    def _parts(self) -> Iterator[Part]:
        m, s, needs = self.model, self.setup, self.needs
        on_base = bool(needs.critic)
        yield self._adapter("student", s.lora) if s.lora else self._whole("student")
        if needs.critic is not None:
            yield self._adapter("critic", needs.critic) if needs.critic else self._whole("critic")
        if needs.head is not None:
            taps = min(needs.head, m.depth)
            widths = [m.widths[(i + 1) * m.depth // taps - 1] for i in range(taps)]  # evenly spaced
            yield _trained("head", sum(w * w + 2 * w + 1 for w in widths), FULL, 2, sharded=False)
        if s.average:
            number = m.of_rank(s.lora) if s.lora else m.parameters
            yield Part("average", number, number * (FULL if s.lora else m.size), sharded=not s.lora)
        based = bool(s.lora or on_base)
        if based:
            what = "base, teacher" if needs.teacher and not (s.lora and needs.phases) else "base"
            yield Part(what, m.parameters, m.parameters * (m.size if s.lora else m.frozen))
        if needs.teacher and not based:
            yield Part("teacher", m.parameters, m.parameters * m.frozen)
        if needs.teacher and s.lora and needs.phases:
            yield Part("teacher", m.of_rank(s.lora), m.of_rank(s.lora) * FULL, sharded=False)

    def _whole(self, name: str) -> Part:
        m = self.model
        moments = 2 - m.matrices / m.trained if self.setup.optimizer == "muon" else 2
        return replace(
            _trained(name, m.trained, m.size, moments), parameters=m.parameters, weights=m.parameters * m.size
        )

    def _adapter(self, name: str, rank: int) -> Part:
        return _trained(name, self.model.of_rank(rank), FULL, 2, sharded=False)

    # ---- of one GPU ----

    @property
    def shards(self) -> float:
        """Of all networks: weights, gradients, moments, average."""
        return sum(part.per_gpu(self.setup.gpus) for part in self.parts)

    @property
    def states(self) -> float:
        """Of that, what lies in the GPU's memory."""
        return self.shards - self.host

    @property
    def host(self) -> float:
        """What waits in the host's memory, of one GPU's part."""
        away = [part.per_gpu(self.setup.gpus) for part in self.parts if part.sharded]
        return sum(away) if self.setup.offload and self.setup.gpus > 1 else 0.0

    @property
    def working(self) -> float:
        """Weights as products want them: sharded, two blocks and the root gathered, and a block's gradients before
        they are dealt; alone, a copy in the precision of products, where that is lower."""
        m = self.model
        whole = not self.setup.lora
        if self.setup.gpus > 1:
            return (2 * m.block + m.root) * m.products + whole * m.block * (m.products + FULL)
        return m.parameters * m.products if m.products < m.size else 0.0

    @property
    def activations(self) -> float:
        """Of the rows at once, and the blocks that are computed anew for them."""
        m, rows = self.model, self.setup.rows
        if self.setup.recompute:
            return rows * (self.alive * m.kept + m.largest)
        return rows * self.alive * m.saved

    @property
    def total(self) -> float:
        return self.states + self.working + self.activations + RESERVE

    @property
    def fits(self) -> bool:
        return self.total <= self.setup.memory


def _trained(name: str, parameters: int, size: int, moments: float, sharded: bool = True) -> Part:
    weights = parameters * size
    return Part(name, parameters, weights, weights, moments * weights, parameters, sharded)


# ---- what would make it fit ----


def changes(plan: Plan) -> Iterator[tuple[list[str], Plan]]:
    """What may be changed, in this order, and the plan after it: at first what costs time alone, each by itself, then
    together; with these, no average; fewer trained weights; or more GPUs; at last the host's memory."""
    setup = plan.setup
    recompute = ["--set train.recompute=true"] * (not setup.recompute)
    if recompute:
        yield recompute, replace(plan, setup=replace(setup, recompute=True))
    for rows in halves(setup.rows):
        yield [f"--set train.micro_batch={rows}"], replace(plan, setup=replace(setup, micro=rows))
    small = [*recompute, *["--set train.micro_batch=1"] * (setup.rows > 1)]
    least = replace(setup, recompute=True, micro=1)
    if small:
        yield small, replace(plan, setup=least)
    if setup.average and plan.bare:
        yield [*small, *plan.bare], replace(plan, setup=replace(least, average=False))
    if plan.model.adapter and not setup.lora:
        yield [*small, f"--set train.lora.rank={RANK}"], replace(plan, setup=replace(least, lora=RANK))
    gpus = setup.gpus
    while (gpus := 2 * gpus) <= setup.batch and setup.batch % gpus == 0:
        yield [*small, f"--gpus {gpus}"], replace(plan, setup=replace(least, gpus=gpus))
    if setup.gpus > 1 and not setup.offload:
        yield [*small, "--set train.offload=true"], replace(plan, setup=replace(least, offload=True))


def cheapest(plan: Plan) -> tuple[list[str], Plan] | None:
    """The first of the changes after which it fits; None where none is enough."""
    return next(((words, changed) for words, changed in changes(plan) if changed.fits), None)


def halves(rows: int) -> list[int]:
    """Smaller and smaller ones: 16 -> 8, 4, 2, 1."""
    out = []
    while rows > 1:
        rows = math.ceil(rows / 2)
        out.append(rows)
    return out
