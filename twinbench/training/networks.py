"""The networks of a run: what is trained, what follows it, what stays frozen; and their optimizers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from twinbench import plugins, run
from twinbench.backbones.base import Backbone
from twinbench.errors import UserError
from twinbench.flow import Counted
from twinbench.method import Method, Networks
from twinbench.randomness import seed_of
from twinbench.sections import BackboneSection, DataSection, Train
from twinbench.settings import validate
from twinbench.training.adapters import Adapters
from twinbench.training.ema import Average
from twinbench.training.heads import CountedHead, blocks_of, make_head
from twinbench.training.parallel import ALONE, Group, casting, lower, stored
from twinbench.weights import FOLDER


@dataclass
class Trained:
    """A network with its optimizers: several where parameters of different kinds want different ones."""

    network: nn.Module
    optimizers: list[torch.optim.Optimizer]


@dataclass
class Owned:
    """Everything that a run holds. trained: by the name of the turn that updates it."""

    trained: dict[str, Trained]
    average: Average | None
    teacher: nn.Module | None
    base: nn.Module | None = None  # what adapters sit on; it may be the teacher
    blocks: Sequence[nn.Module] = ()  # of the teacher, for a head to read

    def velocities(self, needs: frozenset[str]) -> tuple[Networks, list[Counted | CountedHead]]:
        """The velocities that a method asked for, and all counters."""
        student = Counted(self.trained["student"].network)
        critic = Counted(self.trained["critic"].network) if "critic" in self.trained else None
        target = Counted(self.networks["average"]) if "target" in needs else None
        teacher = Counted(self.teacher) if self.teacher is not None else None
        head = None
        if "head" in self.trained:
            assert teacher is not None
            head = CountedHead(self.trained["head"].network, teacher, self.blocks)
        counters = [c for c in (student, critic, target, teacher, head) if c is not None]
        return Networks(student, target=target, teacher=teacher, critic=critic, head=head), counters

    @property
    def networks(self) -> dict[str, nn.Module]:
        """What changes: the trained networks by their turns, and the average."""
        held = {turn: trained.network for turn, trained in self.trained.items()}
        return held | ({"average": self.average.network} if self.average else {})

    @property
    def sharded(self) -> list[nn.Module]:
        """The networks that several processes hold in shards: all but heads."""
        every = [network for name, network in self.networks.items() if name != "head"]
        return [*dict.fromkeys([*every, *([self.teacher] if self.teacher is not None else [])])]

    def train_only(self, turn: str) -> None:
        """Let the turn's network alone take gradients; through the others they flow to inputs only."""
        for name, trained in self.trained.items():
            trained.network.requires_grad_(name == turn)

    def held(self) -> list[dict[str, Any]]:
        """Name, parameters and bytes of every network, with what training keeps beside it."""
        rows = [_weight(f"{turn} (trained)", t.network, 4) for turn, t in self.trained.items()]
        if self.average:
            rows.append(_weight("average", self.average.network, 1))
        if self.teacher is not None:
            rows.append(_weight("teacher (frozen)", self.teacher, 1))
        if self.base is not None and self.base is not self.teacher:
            rows.append(_weight("base of adapters (frozen)", self.base, 1))
        return rows


def _weight(name: str, network: nn.Module, copies: int) -> dict[str, Any]:
    """copies: 4 for a trained network (weights, gradients, two moments), 1 for a frozen one."""
    parameters = sum(p.numel() for p in network.parameters())
    size = sum(p.numel() * p.element_size() for p in network.parameters())
    return {"name": name, "parameters": parameters, "bytes": size * copies}


def make_backbone(section: BackboneSection, seed: int) -> Backbone:
    """The backbone with random weights of this seed. Raises UserError for a wrong setting."""
    kind = plugins.backbone(section.name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "initial weights"))
        return built(kind, section.options, f"backbone {section.name!r}")


def make_data(section: DataSection) -> Any:
    """The dataset of a recipe. Raises UserError for a wrong setting."""
    kind = plugins.dataset(section.kind)
    return built(kind, section.options, f"data {section.kind!r}")


def built(kind: Any, options: dict[str, Any], where: str) -> Any:
    """A plug-in from a recipe's section. Raises UserError for a setting that its Config or the plug-in refuses."""
    config = validate(kind.Config, options, where)
    try:
        return kind(config)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def weights_file(section: BackboneSection, data: DataSection, runs: Path) -> Path | None:
    """Where the initial weights lie; None for random ones. Raises UserError if they cannot be found."""
    name = section.weights
    if name == "none":
        return None
    if name == "shipped":
        path = FOLDER / f"{data.kind}-teacher.safetensors"
        if not path.is_file():
            raise UserError(f"no weights are shipped for {data.kind!r}; set backbone.weights: none, or a file")
        return path
    if name.startswith("run:"):
        folder, *others = run.find(runs, [name.removeprefix("run:")])
        if others:
            raise UserError(
                f"weights {name!r} may mean {folder.name} or {others[0].name}; give more of the fingerprint"
            )
        path = folder / "weights.safetensors"
        if not path.is_file():
            raise UserError(f"run {folder.name} is not finished; train it first")
        return path
    path = Path(name)
    if not path.is_file():
        raise UserError(f"weights {name!r} not found; give none, shipped, run:<fingerprint> or a safetensors file")
    return path


def make_optimizers(network: nn.Module, train: Train) -> list[torch.optim.Optimizer]:
    """AdamW or RAdam for all; or Muon for the matrices inside blocks, which it orthogonalises, AdamW for the rest."""
    settings: dict[str, Any] = {"lr": train.lr, "weight_decay": train.weight_decay}
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    if train.optimizer == "adamw":
        return [torch.optim.AdamW([p for _, p in named], betas=train.betas, **settings)]
    if train.optimizer == "radam":
        return [torch.optim.RAdam([p for _, p in named], betas=train.betas, decoupled_weight_decay=True, **settings)]
    matrices = [p for name, p in named if p.ndim == 2 and "blocks" in name]
    if not matrices:
        raise UserError("muon trains matrices inside blocks, and this backbone has none; set train.optimizer: adamw")
    rest = [p for name, p in named if not (p.ndim == 2 and "blocks" in name)]
    muon = torch.optim.Muon(matrices, momentum=0.95, adjust_lr_fn="match_rms_adamw", **settings)
    return [muon, torch.optim.AdamW(rest, betas=train.betas, **settings)]


def averaged(method: Method, train: Train) -> bool:
    """Whether anything reads the student's average: else none is held."""
    return train.evaluate == "average" or "target" in method.needs or method.phase(1.0) > 0


def assemble(student: Backbone, method: Method, train: Train, seed: int = 0, group: Group = ALONE) -> Owned:
    """All networks of a run, starting from the student's initial weights; of several processes, each holds its shards.
    A frozen copy is asked and never changed by small steps, so it is stored as products want it. seed: of adapters' and
    head's random part.

    Raises UserError for adapters, or a head, on a backbone that takes none."""
    needs = method.needs
    networks: dict[str, nn.Module] = {"student": student}
    follower: nn.Module | None = None
    teacher: nn.Module | None = None
    base: nn.Module | None = None
    frozen, critic = bool(needs & {"teacher", "head"}), method.critic if "critic" in needs else None
    if train.lora and critic == "network":
        networks["critic"] = group.shard(copy.deepcopy(student))
    if train.lora or critic == "lora":
        adapters = Adapters(student if train.lora else stored(copy.deepcopy(student), lower(train)))
    if train.lora:
        networks["student"] = adapters.add("student", train.lora, seed)
    if critic == "lora":
        networks["critic"] = adapters.add("critic", method.critic_lora, seed)
    if train.lora and averaged(method, train):
        follower = adapters.add("average", train.lora, seed)
    if train.lora and frozen and method.phase(1.0) > 0:  # a teacher that changes is an adapter, too
        teacher = Average(networks["student"], 0, adapters.add("teacher", train.lora, seed)).network
    if train.lora or critic == "lora":
        base = adapters.dealt(group)
    if not train.lora:
        copied = group.copies(student)
        if averaged(method, train):
            follower = copied(None)
        if critic == "network":
            networks["critic"] = copied(None)
    if frozen:
        teacher = teacher or base or Average(student, 0, copied(lower(train))).network
    trained = {turn: Trained(network, make_optimizers(network, train)) for turn, network in networks.items()}
    blocks: Sequence[nn.Module] = ()
    if "head" in needs:
        assert teacher is not None
        blocks = blocks_of(adapters.base if base else teacher)
        with casting(train, group.device):
            head = make_head(teacher, blocks, student, method.taps, seed, group)
        trained["head"] = Trained(head, make_optimizers(head, train.model_copy(update={"optimizer": "adamw"})))
    average = Average(networks["student"], train.ema, follower) if follower else None
    return Owned(trained, average, teacher, base, blocks)
