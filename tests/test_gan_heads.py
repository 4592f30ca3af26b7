"""The GAN head: what it reads, what it learns, what is counted, and runs that go on where they stopped."""

import json

import pytest
import torch
from small import files, resolved, trained
from torch import nn

from twinbench.errors import UserError
from twinbench.flow import Counted
from twinbench.method import Turn
from twinbench.tensors import read_tensors
from twinbench.training.heads import CountedHead, make_head
from twinbench.training.networks import make_backbone
from twinbench.training.start import start

TINY = ("backbone.width=16", "backbone.depth=2", "data.size=256", "train.batch=16")


def backbone(recipe="shapes", depth=4, width=16):
    items = (f"backbone.width={width}", f"backbone.depth={depth}", "backbone.weights=none")
    return make_backbone(resolved(recipe, "dmd", *items).backbone, 0)


def inputs(net, n=3):
    x = torch.randn(n, *net.shape, generator=torch.Generator().manual_seed(0))
    return x, torch.linspace(0.1, 0.9, n), net.null(n)


def opinionated(head):
    """The head with random last layers: fresh ones are zero."""
    for network in head.readers:
        nn.init.normal_(network[-1].weight, generator=torch.Generator().manual_seed(1))
    return head


@pytest.mark.parametrize(
    "recipe, depth, taps, chosen", [("shapes", 4, None, 4), ("shapes", 6, (1, 3), 2), ("moons", 2, None, 2)]
)
def test_a_head_reads_the_blocks_that_it_taps(recipe, depth, taps, chosen):
    net = backbone(recipe, depth).requires_grad_(False)
    head = make_head(net, net.blocks, net, taps, 0)
    x, t, cond = inputs(net)
    judge = CountedHead(head, Counted(net), net.blocks)
    assert not judge(x, t, cond).any()  # no opinion yet
    opinionated(head)
    kept = [[] for _ in net.blocks]
    for block, outputs in zip(net.blocks, kept):
        block.register_forward_hook(lambda _, __, out, outputs=outputs: outputs.append(out))
    logits = judge(x, t, cond)
    assert len(head.taps) == chosen and head.taps[-1] == (depth - 1 if taps is None else taps[-1])
    want = [read(kept[i][0]).flatten(1) for i, read in zip(head.taps, head.readers)]
    assert torch.equal(logits, torch.cat(want, 1)) and logits.std() > 0.1
    assert all(len(outputs) == 1 for outputs in kept)


def test_a_heads_weights_are_its_seeds_and_its_hooks_go():
    net = backbone()
    one, two, other = (make_head(net, net.blocks, net, None, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["readers.0.1.weight"], other["readers.0.1.weight"])
    assert not torch.equal(one["readers.0.1.weight"], one["readers.1.1.weight"])
    assert not any(block._forward_hooks for block in net.blocks)
    assert not any("blocks" in name for name in backbone("moons").state_dict())


@pytest.mark.parametrize("taps", [(4,), (-1,), ()])
def test_taps_that_are_no_blocks_are_refused(taps):
    net = backbone()
    with pytest.raises(UserError, match="0 to 3"):
        make_head(net, net.blocks, net, taps, 0)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_only_the_turns_network_learns_and_the_teacher_never(tmp_path, optimizer):
    items = ("train.budget=2", f"train.optimizer={optimizer}", "backbone.weights=none", "backbone.heads=2", *TINY)
    _, trainer = start(resolved("shapes", "dmd2", *items, "methods.dmd2.gan=1"), tmp_path)
    owned = trainer.owned
    opinionated(owned.trained["head"].network)
    networks = {**{name: t.network for name, t in owned.trained.items()}, "teacher": owned.teacher}
    for turn in ("critic", "head", "student"):
        before = {name: [p.clone() for p in net.parameters()] for name, net in networks.items()}
        trainer._turn(Turn(turn))
        for name, net in networks.items():
            moved = any(not torch.equal(p, q) for p, q in zip(net.parameters(), before[name]))
            assert moved == (name == turn), (turn, name)
            assert all(p.grad is None for p in net.parameters())
    names = [row["name"] for row in owned.held()]
    assert names == ["student (trained)", "critic (trained)", "head (trained)", "average", "teacher (frozen)"]


def share_of_a_pass():
    """Parameters of the heads over those of the network: MLP of width 16 and two layers, both tapped."""
    w = 16
    two_times, token, ends = 2 * 2 * (w * w + w), 3 * w, (2 * w + w) + (w * 2 + 2)
    layers = 2 * ((w * 2 * w + 2 * w) + (w * w + w))
    return 2 * (w * w + w + w + 1) / (two_times + token + ends + layers)


def sixteenths(passes):
    return round(16 * passes) / 16


LOOK = 1 + sixteenths(share_of_a_pass())  # a frozen head at a point
JUDGED = 2 + sixteenths(2 * share_of_a_pass())  # and the gradient back to the point
LEARNT = 1 + sixteenths(3 * share_of_a_pass())  # the head learns of a point
PASSES = {
    # twice: the critic's turn, the head's (a sample; sample and data); the student's: match as DMD, and it is judged
    "dmd2": (["critic_steps=2", "cfg_scale=2.0"], 2 * (1 + 3 + 1 + 2 * LEARNT) + 3 + 1 + 2 + JUDGED),
    "dmd2-r1": (["critic_steps=1", "r1=1.0"], 1 + 3 + 1 + 3 * LEARNT + 3 + 1 + 1 + JUDGED),
    "dmd2-shared": (["critic_steps=1", "fake=shared"], 1 + 2 * LEARNT + 3 + 3 + 1 + JUDGED),
    # its teacher is the base of the critic's adapter
    "dmd2-lora": (["critic_steps=1", "fake=lora"], 1 + 3 + 1 + 2 * LEARNT + 3 + 1 + 1 + JUDGED),
    # the head's turn; sCM's derivative beside its gradient, the guided teacher, and the sample that is judged
    "sana-sprint": (["cfg_scale=2.0"], 1 + 2 * LEARNT + (3 + 1) + 2 + 3 + JUDGED),
}


@pytest.mark.parametrize("name", PASSES)
def test_network_passes_are_counted(tmp_path, name):
    settings, each = PASSES[name]
    label = name if name == "sana-sprint" else "dmd2"
    sets = [f"methods.{label}.{item}" for item in settings]
    items = ("train.budget=3", "train.micro_batch=5", *TINY, *sets)
    _, trainer = start(resolved("moons", label, *items), tmp_path)
    assert 0.1 < share_of_a_pass() < 0.3
    assert [row["passes"] for row in trainer] == [16 * each, 2 * 16 * each, 3 * 16 * each]


@pytest.mark.parametrize("label", ["dmd2", "sana-sprint"])
def test_a_run_with_a_head_goes_on_where_it_stopped(tmp_path, label):
    items = ("train.budget=2400", "train.unit=passes", "train.save_every=2", "train.decay=0.5", *TINY)
    items += ("methods.dmd2.critic_steps=1", "methods.dmd2.gan=1")
    whole = trained(tmp_path / "once", "moons", label, *items)
    _, trainer = start(resolved("moons", label, *items), tmp_path / "twice")
    for row in trainer:
        if row["step"] == 5:  # a step after its last checkpoint
            break
    again = trained(tmp_path / "twice", "moons", label, *items)
    assert files(again)["weights.safetensors"] == files(whole)["weights.safetensors"]
    last, other = (read_tensors(sorted((f / "checkpoints").iterdir())[-1])[0] for f in (whole, again))
    assert last.keys() == other.keys() and all(torch.equal(last[name], other[name]) for name in last)
    for prefix in ("head.readers.", "optimizer.head.0."):
        assert any(name.startswith(prefix) and value.any() for name, value in last.items())
    logs = [[json.loads(line) for line in (f / "log.jsonl").read_text().splitlines()] for f in (whole, again)]
    timed = {"seconds", "peak_bytes"}
    bare = [[{key: row[key] for key in row.keys() - timed} for row in log] for log in logs]
    assert bare[0] == bare[1] and len(bare[0]) > 6
