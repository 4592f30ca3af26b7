"""Processes whose shares of a batch ask the networks different questions.

A sharded network is gathered from all processes for each call, so all must call it, as often and in the same order;
but a method calls it on the rows of a role, and a process may hold none. So before every call the processes agree on
the next one: who has another question, or none any more, joins with one row of zeros whose output nobody reads. If a
gradient flows back through the call, zeros flow back through that row, and the backward passes meet in the same order,
too: autograd takes the calls from the last to the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from twinbench.flow import Cond, held
from twinbench.objectives.derivative import along
from twinbench.training.parallel import Group

DONE = 0


class Lockstep:
    """The networks of a training, called in step by all processes within `together`. shape: of a sample."""

    def __init__(self, group: Group, networks: Sequence[nn.Module], shape: Sequence[int]) -> None:
        self.group, self.networks, self.shape = group, networks, tuple(shape)
        self.cond: Cond | None = None  # of the row that joins a call; None: each process is on its own
        self.joined: list[Tensor] = []
        if group.size > 1:
            for number, network in enumerate(networks):
                network.register_forward_pre_hook(lambda m, args, i=number: self._meet(i, args), prepend=True)

    @contextmanager
    def together(self, cond: Cond) -> Iterator[None]:
        """All processes enter it, and leave it when none has a call left. cond: any conditions, at least one."""
        if self.group.size == 1:
            yield
            return
        self.cond, self.joined = {name: value[:1] for name, value in cond.items()}, []
        try:
            yield
            while code := self._agree(DONE):
                self._join(code)
        finally:
            self.cond = None

    def owed(self, loss: Tensor) -> Tensor:
        """The loss, with the calls that were joined under it: they add nothing, and zeros to the gradients."""
        nothing = [v[:0].sum().to(loss.dtype) for v in self.joined if v.requires_grad]
        self.joined = []
        return torch.stack([loss, *nothing]).sum() if nothing else loss

    def _meet(self, number: int, args: tuple[object, ...]) -> None:
        if self.cond is None:
            return
        gradient = torch.is_grad_enabled()
        trained = gradient and any(p.requires_grad for p in self.networks[number].parameters())
        through = gradient and any(isinstance(a, Tensor) and a.requires_grad for a in args)
        tangent = any(isinstance(a, Tensor) and is_functorch_wrapped_tensor(a) for a in args)
        mine = 1 + (number << 4 | tangent << 3 | gradient << 2 | trained << 1 | through)
        while (code := self._agree(mine)) != mine:
            self._join(code)

    def _agree(self, code: int) -> int:
        """The call that comes next: the largest code that any process asks for."""
        most = torch.tensor(code, device="cpu")
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return int(most)

    def _join(self, code: int) -> None:
        """Take part in a call of others."""
        network = self.networks[(code - 1) >> 4]
        tangent, gradient, trained, through = (bool((code - 1) >> bit & 1) for bit in (3, 2, 1, 0))
        assert self.cond is not None
        cond, self.cond = self.cond, None
        try:
            with held(() if trained else network.parameters()), torch.set_grad_enabled(gradient), self.group.placing():
                x, one = torch.zeros(1, *self.shape, requires_grad=through), torch.ones(1)
                point = (x, one, one)
                self.joined.append(along(network, point, point, cond)[0] if tangent else network(*point, cond))
        finally:
            self.cond = cond
