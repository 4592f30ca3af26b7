"""Drawing: the same bytes for a request, however many are asked for, in whatever order, by whichever run."""

import copy
import random

import pytest
import torch
from small import TINY, resolved

from twinbench import plugins
from twinbench.errors import UserError
from twinbench.flow import Counted, guided
from twinbench.randomness import request_noise
from twinbench.sampler import Plan, Schedule, plan, sample
from twinbench.sources.drawing import Drawing, drawing_of
from twinbench.sources.stored import SHARD
from twinbench.training.networks import make_backbone

ONE, TWO = Plan(1, Schedule((1.0,))), Plan(2, Schedule((1.0, 0.5), renoise=1.0))
FOUR = Plan(4, Schedule((1.0, 0.5), "same"), guidance=2.0)


@pytest.fixture(scope="module")
def backbone():
    return filled(resolved("shapes", "rcgm", *TINY))


def filled(item):
    """A network whose outputs depend on all that it is given: the last layers start at zero, so they are filled."""
    made = make_backbone(item.backbone, 0)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def requests():
    """64 requests of all tasks, mixed."""
    every = [r for r in plugins.dataset("shapes").requests("evaluation", 6) if r.split == "evaluation"]
    return random.Random(0).sample(every, 64)


def drawing(folder, backbone, plan=TWO, chunk=16):
    return Drawing(folder, backbone, plan, "shapes", chunk)


def draw(folder, backbone, requests, plan=TWO, chunk=16):
    it = drawing(folder, backbone, plan, chunk)
    assert [*it.draw(requests)][-1] == len(requests)
    return it.read(requests)


def shards(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize("plan", [ONE, TWO, FOUR], ids=lambda p: str(p.nfe))
def test_a_request_has_the_same_bytes_for_any_number_asked_and_any_order(tmp_path, backbone, requests, plan):
    whole = draw(tmp_path / "64", backbone, requests, plan)
    assert torch.equal(draw(tmp_path / "7", backbone, requests[:7], plan), whole[:7])
    assert torch.equal(draw(tmp_path / "1", backbone, requests[33:34], plan), whole[33:34])
    order = random.Random(1).sample(range(64), 64)
    assert torch.equal(draw(tmp_path / "mixed", backbone, [requests[i] for i in order], plan), whole[order])
    assert len({row.numpy().tobytes() for row in whole}) == 64  # and no two of them are equal


def test_points_too_which_are_stored_to_the_last_bit_have_the_same_bytes(tmp_path):
    """Bytes of a picture hide what a kernel rounds otherwise for another number of rows; points do not."""
    network = filled(resolved("moons", "rcgm", "backbone.width=128"))
    every = plugins.dataset("moons").requests("evaluation", 32)[:64]
    whole = draw(tmp_path / "64", network, every, FOUR)
    for n in (1, 2, 3, 7, 33):
        assert torch.equal(draw(tmp_path / str(n), network, every[-n:], FOUR), whole[-n:])


def test_what_is_stored_is_what_the_sampler_gives(tmp_path, backbone, requests):
    rows = requests[:16]
    noise = [torch.stack([request_noise((3, 16, 16), "shapes", r.key, r.copy, n) for r in rows]) for n in ("init", "0")]
    cond = backbone.encode([r.prompt for r in rows])
    x = sample(backbone, noise[0], cond, TWO.schedule, lambda i: noise[1 + i])
    assert torch.equal(draw(tmp_path, backbone, rows), backbone.pixels(x))


def test_copies_of_a_prompt_differ_by_their_noise_alone(tmp_path, backbone, requests):
    pairs = plugins.dataset("shapes").requests("evaluation", 1)[:2]
    assert pairs[0].key == pairs[1].key and pairs[0].prompt == pairs[1].prompt
    a, b = draw(tmp_path, backbone, pairs)
    assert not torch.equal(a, b)


def test_other_methods_and_budgets_start_from_the_same_noise(tmp_path, backbone, requests):
    """Seen at the network: the x of the first call is the request's noise, for every network, plan and run."""
    seen = {}
    other = copy.deepcopy(backbone)
    with torch.no_grad():
        other.last.weight.mul_(-1)
    for name, network in (("a", backbone), ("b", other)):
        for chosen in (ONE, TWO, FOUR):
            calls = []
            handle = network.register_forward_pre_hook(lambda _, given, calls=calls: calls.append(given[0].clone()))
            draw(tmp_path / f"{name}{chosen.nfe}", network, requests[:16], chosen)
            handle.remove()
            assert len(calls) == chosen.nfe
            seen[name, chosen.nfe] = calls[0]
    want = torch.stack([request_noise((3, 16, 16), "shapes", r.key, r.copy) for r in requests[:16]])
    assert all(torch.equal(x, want) for x in seen.values())


def test_another_run_does_not_touch_the_samples_of_the_first(tmp_path, backbone, requests):
    first = drawing_of({"weights_sha256": "a"}, backbone, TWO, "shapes", 16, tmp_path)
    last = [*first.draw(requests)]
    before = shards(first.folder)
    for record, chosen, chunk in (("b", TWO, 16), ("a", ONE, 16), ("a", FOUR, 16), ("a", TWO, 8)):
        other = drawing_of({"weights_sha256": record}, backbone, chosen, "shapes", chunk, tmp_path)
        assert other.folder != first.folder
        assert [*other.draw(requests)][-1] == last[-1] == 64
    assert shards(first.folder) == before
    assert drawing_of({"weights_sha256": "a"}, backbone, TWO, "shapes", 16, tmp_path).folder == first.folder


def test_drawing_goes_on_without_drawing_again_what_is_stored(tmp_path, backbone):
    many = plugins.dataset("shapes").requests("evaluation", 30)[: 2 * SHARD + 5]
    whole = draw(tmp_path / "whole", backbone, many, ONE)
    halted = drawing(tmp_path / "halted", backbone, ONE)
    progress = halted.draw(many)
    assert [next(progress), next(progress)] == [0, SHARD]  # then stopped
    before = shards(halted.folder)
    calls = []
    handle = backbone.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    assert [*halted.draw(many)] == [SHARD, 2 * SHARD, 2 * SHARD + 5]
    assert calls == [16] * (SHARD // 16 + 1)  # the missing shard and five more, in chunks of exactly 16
    assert [*halted.draw(many)] == [2 * SHARD + 5] and len(calls) == SHARD // 16 + 1
    handle.remove()
    assert len(before) == 1 and shards(halted.folder).items() >= before.items()
    assert torch.equal(halted.read(many), whole)


def test_a_damaged_shard_is_named(tmp_path, backbone, requests):
    draw(tmp_path, backbone, requests[:16])
    (shard,) = shards(tmp_path)
    content = shard.read_bytes()
    for damage in (content[: len(content) // 2], b"", b"\xff" * 64):
        shard.write_bytes(damage)
        with pytest.raises(UserError, match=shard.name):
            draw(tmp_path, backbone, requests)
        with pytest.raises(UserError, match=shard.name):
            drawing(tmp_path, backbone).read(requests[:16])
    shard.unlink()
    assert torch.equal(draw(tmp_path, backbone, requests[:16]), draw(tmp_path / "new", backbone, requests[:16]))


def test_a_sample_that_is_not_there_is_named(tmp_path, backbone, requests):
    draw(tmp_path, backbone, requests[:3])
    with pytest.raises(UserError, match=requests[3].key):
        drawing(tmp_path, backbone).read(requests[:4])


# ---- evaluations are counted ----


def test_guidance_doubles_the_evaluations(backbone, requests):
    cond, null = backbone.encode([r.prompt for r in requests[:2]]), backbone.null(2)
    z = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for scale, times in ((1.0, 1), (2.0, 2), (0.0, 2)):
        counted = Counted(backbone)
        sample(guided(counted, null, scale), z, cond, Schedule((1.0, 0.7, 0.3), "same"))
        assert counted.calls == 3 * times == Plan(0, Schedule((1.0, 0.7, 0.3), "same"), scale).counted


@pytest.mark.parametrize(
    "settings, taken",
    [
        ("sample.2={steps: 3}", 3),
        ("sample.4={steps: 4, guidance: 2.0}", 8),
        ("sample.4={times: [0.9, 0.5]}", 2),
        ("sample.3={steps: 3, heun: true, hop: same, gap: [0.01, 0.0]}", 5),
    ],
)
def test_a_schedule_that_takes_other_evaluations_than_its_key_is_refused(settings, taken):
    nfe = int(settings[7])
    with pytest.raises(UserError, match=f"sample.{nfe}: this schedule takes {taken} evaluations"):
        plan(resolved("shapes", "rcgm", settings), nfe)
    right = plan(resolved("shapes", "rcgm", settings.replace(f".{nfe}=", f".{taken}=")), taken)
    assert right.counted == right.nfe == taken
