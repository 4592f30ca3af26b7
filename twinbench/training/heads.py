"""The GAN head: logits from the features of the frozen teacher at (x, t, t).

As in LADD (Sauer et al. 2024, arXiv 2403.12015) and SANA-Sprint, the teacher stays as it is and a small head reads some
of its blocks; each gives a logit a token. Only these heads are trained, saved and averaged over.

Passes: an evaluation is one pass of the teacher on each row, one more where a gradient flows back to x, and the head's
own as a share of a pass, by its parameters: once forward, twice more backward where it is trained, once where it is
not. They are rounded to sixteenths of a pass a row, so that sums are exact in any order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from twinbench.backbones.base import Backbone
from twinbench.errors import UserError
from twinbench.flow import Cond, Counted
from twinbench.randomness import seed_of
from twinbench.training.parallel import ALONE, Group, sharded

TAPS = 4


class Head(nn.Module):
    """A small network on the features of each tapped block; its last layers start at zero: no opinion."""

    def __init__(self, taps: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        self.taps = tuple(taps)
        self.readers = nn.ModuleList([reader(width) for width in widths])

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features [n, (tokens,) width] of each tapped block -> logits [n, k], k the number of tokens of all."""
        return torch.cat([read(h).flatten(1) for read, h in zip(self.readers, features, strict=True)], 1)


def reader(width: int) -> nn.Sequential:
    last = nn.Linear(width, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.LayerNorm(width, elementwise_affine=False), nn.Linear(width, width), nn.SiLU(), last)


class CountedHead:
    """(x, t, cond) -> logits [n, k], as a method asks for them; counts its passes. teacher counts those of its own."""

    def __init__(self, head: nn.Module, teacher: Counted, blocks: Sequence[nn.Module]) -> None:
        assert isinstance(head, Head)
        self.head, self.teacher, self.blocks, self.passes = head, teacher, blocks, 0.0
        assert isinstance(teacher.velocity, nn.Module)
        self.share = size(head) / size(teacher.velocity)

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        with tapped([self.blocks[i] for i in self.head.taps]) as features:
            v = self.teacher(x, t, t, cond)
        logits = self.head(features)
        if sharded(self.teacher.velocity):  # its backward pass begins at its own output
            logits = logits + v[:0].sum()
        trained = any(p.requires_grad for p in self.head.parameters())
        self.passes += len(x) * round(16 * self.share * (1 + (1 + trained) * logits.requires_grad)) / 16
        return logits


def make_head(
    teacher: nn.Module,
    blocks: Sequence[nn.Module],
    codec: Backbone,
    taps: Sequence[int] | None,
    seed: int,
    group: Group = ALONE,
) -> Head:
    """A head for the teacher's blocks, with random weights of this seed. The teacher is asked once, for one row of
    zeros without a prompt, to see how wide its features are. taps: indices of blocks; None for four, evenly spaced, the
    last block among them.

    Raises UserError for a tap that is no block."""
    k = min(TAPS, len(blocks))
    chosen = [(i + 1) * len(blocks) // k - 1 for i in range(k)] if taps is None else list(taps)
    if not chosen or not all(0 <= i < len(blocks) for i in chosen):
        raise UserError(f"taps {chosen} must name blocks of the backbone, 0 to {len(blocks) - 1}")
    one = group.moved((torch.zeros(1, *codec.shape), torch.ones(1), torch.ones(1), codec.null(1)))
    with torch.no_grad(), tapped([blocks[i] for i in chosen]) as features:
        teacher(*one)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "initial head"))
        return Head(chosen, [h.shape[-1] for h in features]).to(group.device)


def blocks_of(backbone: nn.Module) -> Sequence[nn.Module]:
    """The blocks of a backbone. Raises UserError if it names none."""
    blocks = getattr(backbone, "blocks", None)
    if not blocks:
        raise UserError(f"{type(backbone).__name__} names no blocks for a GAN head to read; use a method without one")
    return list(blocks)


@contextmanager
def tapped(blocks: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """What these blocks give, in the order in which they are called; of several outputs the last, the picture's."""
    features: list[Tensor] = []

    def keep(block: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        features.append(output[-1] if isinstance(output, tuple) else output)

    hooks = [block.register_forward_hook(keep) for block in blocks]
    try:
        yield features
    finally:
        for hook in hooks:
            hook.remove()


def size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
