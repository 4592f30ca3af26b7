"""Several processes at one training, as torchrun starts them: PyTorch's fully sharded data parallelism (FSDP2).

Every process holds a share of the rows of each batch, and of the weights, gradients, moments and average of every
network: a block is gathered for the length of its forward or backward pass. Adapters and heads are small, and whole in
every process. A process alone shards nothing, and none of this is between it and its networks.

What a Term divides by is a count of the global batch, so gradients are summed over processes, not averaged.

Every network lets go of its gathered weights after each forward pass, its root too. FSDP's default keeps the root's for
the backward pass; after a pass without one they would stay, and what is written into the shards later (an average, an
optimizer's step, a clipped gradient) would not be seen by the next pass.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from twinbench.errors import UserError, WorkError
from twinbench.ranks import Ranks, meeting
from twinbench.run import alone
from twinbench.sections import Train
from twinbench.training.aside import Aside

T = TypeVar("T")
N = TypeVar("N", bound=nn.Module)
CPU = torch.device("cpu")
PATIENCE = timedelta(minutes=30)  # until all processes have started
LOST = "another process of this training failed or was lost; the same command goes on from the last save"


@dataclass(frozen=True)
class Group(Ranks):
    """The processes of one training and what each of them needs to know. mesh: None for a process alone."""

    device: torch.device = CPU
    mesh: DeviceMesh | None = None
    precision: torch.dtype | None = None  # of gathered weights; None: as they are stored
    offload: bool = False  # shards wait in the memory of the host
    aside: Aside | None = None  # writes checkpoints while training goes on; None: they are waited for

    # ---- rows and numbers ----

    def rows(self, total: int) -> range:
        """This process's part of the rows of a batch: as many in each, one after the other."""
        part = total // self.size
        return range(self.rank * part, (self.rank + 1) * part)

    def every(self, value: T) -> list[T]:
        """What every process has, in their order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()

    def settle(self) -> None:
        """Wait for what is still being written."""
        if self.aside:
            self.aside.settle()

    def any(self, yes: bool) -> bool:
        return any(self.every(yes))

    def sums(self, values: dict[str, float]) -> dict[str, float]:
        """The sums over all processes, by name; a process may lack a name."""
        every = self.every(values)
        if self.size == 1:
            return values
        return {name: sum(v.get(name, 0.0) for v in every) for name in dict.fromkeys(k for v in every for k in v)}

    def holding(self, folder: Path) -> AbstractContextManager[None]:
        """Hold a run's folder for all processes. Raises UserError if another training does."""
        return alone(folder) if self.first else nullcontext()

    # ---- devices ----

    def moved(self, value: T) -> T:
        """Tensors, or what holds them, on this process's device."""
        return value if self.device.type == "cpu" else moved(value, self.device)

    def placing(self) -> Any:
        """Within it, new tensors are made on this process's device."""
        return nullcontext() if self.device.type == "cpu" else self.device

    # ---- networks ----

    def copies(self, network: nn.Module) -> Callable[[torch.dtype | None], nn.Module]:
        """A maker of copies of a network, which itself is sharded here. A copy is made of the shards alone, so no
        process ever holds a second network whole. It is stored in the precision that the maker is given, if any."""
        if self.mesh is None:
            return lambda dtype: stored(copy.deepcopy(network), dtype)
        empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in network.parameters()}
        bare = copy.deepcopy(network, {**empty})
        self.shard(network)

        def copied(dtype: torch.dtype | None) -> nn.Module:
            twin = self.shard(stored(copy.deepcopy(bare), dtype))
            own = twin.state_dict()
            twin.load_state_dict(
                {k: v.to(own[k].dtype, copy=True) for k, v in network.state_dict().items()}, assign=True
            )
            return twin

        return copied

    def shard(self, network: nn.Module, whole: Iterable[nn.Parameter] = ()) -> nn.Module:
        """Deal a network's parameters to the processes, in place, block by block; but for those that stay `whole`."""
        if self.mesh is None:
            return network
        options: dict[str, Any] = {
            "mesh": self.mesh,
            "reshard_after_forward": True,
            "mp_policy": MixedPrecisionPolicy(self.precision, torch.float32, cast_forward_inputs=False),
            "offload_policy": CPUOffloadPolicy(self.device.type == "cuda") if self.offload else OffloadPolicy(),
            "ignored_params": set(whole),
        }
        for module in (*(getattr(network, "blocks", None) or ()), network):
            fully_shard(module, **options)
        for module in network.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        return network

    def add_gradients(self, network: nn.Module) -> None:
        """Sum the gradients of parameters that are whole in every process; those of shards are sums already."""
        if self.size == 1:
            return
        own = [p for p in network.parameters() if p.requires_grad and not isinstance(p, DTensor)]
        if not own:
            return
        used = torch.tensor([p.grad is not None for p in own], dtype=torch.int32, device=self.device)
        dist.all_reduce(used, dist.ReduceOp.MAX)
        own = [p for p, yes in zip(own, used.tolist(), strict=True) if yes]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in own])
        dist.all_reduce(flat)
        for p, part in zip(own, flat.split([p.numel() for p in own]), strict=True):
            p.grad = part.view_as(p)


ALONE = Group()


def lower(train: Train) -> torch.dtype | None:
    """The precision of products, where it is lower than that of trained weights."""
    return torch.bfloat16 if train.precision == "bfloat16" else None


def casting(train: Train, device: torch.device) -> torch.autocast:
    """Within it, networks are asked in the precision of products."""
    return torch.autocast(device.type, lower(train) or torch.bfloat16, enabled=lower(train) is not None)


def stored(network: N, dtype: torch.dtype | None) -> N:
    """The network, its parameters kept in this precision from now on; None: as they are."""
    for p in network.parameters():
        p.data = p.data.to(dtype or p.dtype)
    return network


def sharded(network: Any) -> bool:
    """Whether a network's own parameters are dealt to several processes."""
    return isinstance(network, nn.Module) and any(isinstance(p, DTensor) for p in network.parameters())


def whole(value: Tensor) -> Tensor:
    """A tensor in one piece; all processes must ask for it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def gathered(tensors: dict[str, Tensor], group: Group) -> dict[str, Tensor]:
    """Tensors in one piece, in the memory of the first process's host alone; all must ask for them."""
    ready = {}
    for name, value in tensors.items():
        one = whole(value)
        if group.first:
            ready[name] = one.cpu()  # an accelerator may hold shards, and one whole tensor beside
    return ready


def local(values: Iterable[Tensor]) -> list[Tensor]:
    """The parts of tensors that this process holds."""
    return [value.to_local() if isinstance(value, DTensor) else value for value in values]


def moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, tuple):
        return tuple(moved(part, device) for part in value)
    if isinstance(value, dict):
        return {name: moved(part, device) for name, part in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: moved(getattr(value, f.name), device) for f in fields(value)})
    return value


@contextmanager
def joined(train: Train, gpu: bool) -> Iterator[Group]:
    """The processes that torchrun started (by RANK and WORLD_SIZE), or this one alone. gpu: train on GPUs, if there are
    any: the one of LOCAL_RANK.

    Raises UserError for a batch that cannot be dealt, WorkError where another process is lost."""
    size, local_rank = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    gpu = gpu and torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if gpu else torch.device("cpu")
    if size == 1:
        for name in ("offload", "save_aside"):
            if getattr(train, name):
                raise UserError(f"train.{name} goes with sharding; train with torchrun --nproc-per-node 2 or more")
        yield Group(device=device)
        return
    if train.batch % size:
        raise UserError(f"train.batch {train.batch} cannot be dealt to {size} processes; make it a multiple of {size}")
    if gpu:
        torch.cuda.set_device(device)
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # methods change nothing in place
    lost = False
    try:
        store, rank, _ = meeting(PATIENCE)
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", store=store, rank=rank, world_size=size)
        mesh = init_device_mesh(device.type, (size,))
        aside = Aside() if train.save_aside else None
        group = Group(dist.get_rank(), size, device, mesh, lower(train), bool(train.offload), aside)
        yield group
        group.settle()
    except (RuntimeError, CheckpointException) as error:
        lost = isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL", "Connection"))
        if lost:
            raise WorkError(LOST) from error
        raise
    finally:
        if not lost and dist.is_initialized():  # it would wait for those that are gone
            dist.destroy_process_group()
