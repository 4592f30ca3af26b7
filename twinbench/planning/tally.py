"""The network passes of a method, counted where it runs: its own turns on a network of a few numbers. Nothing is
updated, so a step costs milliseconds, and a method of a third party is counted like any other.

Random numbers belong to samples, so these are the passes of a run of the same seed and batch. A head's own share of a
pass is left out: it is a matter of its size, and small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from twinbench import plugins
from twinbench.backbones.base import Backbone
from twinbench.flow import Batch, Cond
from twinbench.method import Method, Turn
from twinbench.planning.plan import Needs
from twinbench.randomness import Rng, normal
from twinbench.recipe import Resolved
from twinbench.training.heads import TAPS, CountedHead
from twinbench.training.networks import Owned, assemble

STEPS = 8  # over which it is averaged: turns and guided rows may vary
ROWS = 128  # of a larger batch; roles are dealt by proportion
WIDTH = 4


@dataclass(frozen=True)
class Tally:
    """Of one step and one row of its batch: passes; alive, the rows whose activations wait for one backward pass, in
    the turn that has most of them. before: the passes before the first step."""

    passes: float
    alive: float
    before: int


class Twin(Backbone):
    """A network with a backbone's face and next to nothing behind it. depth: of blocks, which a head may read."""

    lora_targets = r"blocks\.\d+\.layer"

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.shape = (WIDTH, 1, 1)
        self.first = nn.Linear(WIDTH + 3, WIDTH)
        self.blocks = nn.ModuleList(nn.Sequential() for _ in range(max(depth, 1)))
        for block in self.blocks:
            assert isinstance(block, nn.Sequential)
            block.add_module("layer", nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor, t: Tensor, r: Tensor, cond: Cond) -> Tensor:
        h = self.first(torch.cat([x.flatten(1), torch.stack([t, r, cond["class"]], 1).to(x.dtype)], 1))
        for block in self.blocks:
            h = block(h)
        return h.view_as(x)

    def encode(self, prompts: Sequence[str]) -> Cond:
        return {"class": torch.tensor([float(len(prompt)) for prompt in prompts])}

    def pixels(self, x: Tensor) -> Tensor:
        return x


def method_of(resolved: Resolved) -> Method:
    kind = plugins.method(resolved.method)
    return kind(kind.Config.model_validate(resolved.config))


def needs(method: Method) -> Needs:
    """What it asks for, as a plan wants to know it."""
    asked = method.needs
    critic = None
    if "critic" in asked:
        critic = method.critic_lora.rank if method.critic == "lora" else 0
    head = None
    if "head" in asked:
        head = TAPS if method.taps is None else len(method.taps)
    return Needs(bool(asked & {"teacher", "head"}), critic, head, method.phase(1.0) > 0)


def tally(resolved: Resolved, depth: int, images: bool, steps: int = STEPS) -> Tally:
    """Count a method's passes. images: whether the data have pictures, or prompts alone."""
    method, train = method_of(resolved), resolved.train
    before = method.pairs.passes if method.pairs else 0
    if not method.turns(0):
        return Tally(0.0, 0.0, before)
    rows = min(train.batch, ROWS)
    plain = train.model_copy(update={"lora": None, "optimizer": "adamw", "precision": "float32"})
    owned = assemble(Twin(depth), method, plain, resolved.seed)
    networks, counters = owned.velocities(method.needs)
    alive = Alive(owned)
    for step in range(steps):
        turns = method.turns(step)
        for i, name in enumerate(turns):
            turn = Turn(name, step, step / steps, turns[:i].count(name))
            owned.train_only(name)
            batch, rng = (
                _batch(method, step, rows, images),
                Rng(resolved.seed, step, turn.key, range(rows), rows, SHAPE),
            )
            draws = method.draw(batch, rng, turn)
            alive.begin()
            method.loss(networks, batch, draws, turn)
    passes = sum(counter.passes for counter in counters if not isinstance(counter, CountedHead))
    return Tally(passes / (steps * rows), alive.most / rows, before)


SHAPE = (WIDTH, 1, 1)


def _batch(method: Method, step: int, rows: int, images: bool) -> Batch:
    x = normal((rows, *SHAPE), "twin", step) if images or method.pairs else None
    cond, null = ({"class": torch.full((rows,), value)} for value in (1.0, 0.0))
    return Batch(x, cond, null, normal((rows, *SHAPE), "twin pairs", step) if method.pairs else None)


class Alive:
    """Counts the rows that networks were asked with a gradient since the turn began."""

    def __init__(self, owned: Owned) -> None:
        self.now = self.most = 0
        for network in owned.sharded:
            network.register_forward_hook(self._see)

    def begin(self) -> None:
        self.now = 0

    def _see(self, network: nn.Module, args: tuple[object, ...], out: Tensor) -> None:
        sources = [*network.parameters(), *(a for a in args if isinstance(a, Tensor))]  # `out` may hide it in a jvp
        self.now += len(out) * (torch.is_grad_enabled() and any(source.requires_grad for source in sources))
        self.most = max(self.most, self.now)
