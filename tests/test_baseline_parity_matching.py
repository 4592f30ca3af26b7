"""Methods that match distributions (DMD, SiD): the official code's numbers to 1e-10 in float64, and what must hold."""

import json

import pytest
import torch
from gaussian import MEAN, SCALE, mean_velocity
from small import files, resolved, trained
from tiny import Tiny, load, tensor
from twinbench.baselines.dmd import DMD, MatchDraws, direction
from twinbench.baselines.sid import ScoreDraws, SiD, grid

from twinbench.anystep import ROLES
from twinbench.flow import Batch, Counted, expand
from twinbench.judges.distances import frechet
from twinbench.method import Networks, Turn
from twinbench.objectives.losses import l2
from twinbench.randomness import Rng
from twinbench.sampler import Schedule, sample
from twinbench.tensors import read_tensors
from twinbench.training.start import start
from twinbench.twinflow import TwinDraws, TwinFlow

FASTGEN, SID = load("fastgen_dmd"), load("sid_generator")
STUDENT, CRITIC = Turn("student"), Turn("critic")


def close(got, want, tolerance=1e-10):
    want = want if isinstance(want, torch.Tensor) else tensor(want)
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def networks_of(case=FASTGEN["vsd"], turn="student"):
    """Student, teacher and critic of the recorded case; as in training, the turn's network alone takes gradients."""
    student, teacher, critic = (Tiny(case[name]) for name in ("P", "P_teacher", "P_fake"))
    for name, net in {"student": student, "teacher": teacher, "critic": critic}.items():
        net.requires_grad_(name == turn)
    return Networks(Counted(student), teacher=Counted(teacher), critic=Counted(critic))


def gradients(net):
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in net.velocity.named_parameters()}


# ---- recorded numbers ----


@pytest.mark.parametrize("turn, loss, grads", [(STUDENT, "loss", "grads_student"), (CRITIC, "fake_loss", "grads_fake")])
def test_dmd_and_its_gradients(turn, loss, grads):
    case = FASTGEN["vsd"]
    networks = networks_of(case, turn.name)
    batch = Batch(None, {"c": tensor(case["c"])}, {"c": tensor(case["e"])})
    z, stop = tensor(case["z"])[:, None], torch.zeros(len(case["z"]), dtype=torch.long)
    draws = MatchDraws(len(z), z, stop, tensor(case["t"]), tensor(case["eps"]))
    terms = DMD(DMD.Config(cfg_scale=case["cfg"])).loss(networks, batch, draws, turn)
    close(terms.total().detach(), case[loss])
    terms.total().backward()
    trained, other = (networks.student, networks.critic) if turn is STUDENT else (networks.critic, networks.student)
    for name, value in gradients(trained).items():
        close(value, case[grads][name])
    assert not any(value.any() for value in gradients(other).values())


def test_direction_of_dmd2():
    case = FASTGEN["dmd2_edm"]
    x, noise, sigma = (tensor(case[name]) for name in ("x", "noise", "sigma"))
    y = x + expand(sigma, x) * noise
    fake, real = (y @ tensor(case[name]) for name in ("M_fake", "M_real"))
    x.requires_grad_()
    loss = 0.5 * l2(x, x.detach() - direction(x.detach(), fake, real, floor=0)).mean()
    close(loss.detach(), case["loss"])
    close(torch.autograd.grad(loss, x)[0], case["grad_x"])


def linear(matrix):
    """The velocity whose estimate of the clean sample is the linear denoiser D(y) = y M, y = x_t / (1 - t)."""
    return lambda x, t, r, cond: (x - x / expand(1 - t, x) @ matrix) / expand(t, x)


@pytest.mark.parametrize("case", SID["cases"], ids=lambda c: f"alpha{c['alpha']}")
def test_sid_and_its_gradient(case):
    method = SiD(SiD.Config(alpha=case["alpha"], tmax=SID["tmax"] / 1000))
    x, eps = (tensor(SID[name]).flatten(1) for name in ("x", "n_unit"))
    sigma = grid(tensor(SID["u"]).flatten() * method.config.tmax, method.config.sigma_range, method.config.rho)
    z = torch.zeros_like(x)
    v = -x.requires_grad_()  # the student's output: its samples are x
    real, fake = (linear(tensor(SID[name])) for name in ("M_real", "M_fake"))
    networks = Networks(lambda *_: v, teacher=real, critic=fake)
    terms = method.loss(networks, Batch(None, {}, {}), ScoreDraws(len(x), z, sigma, eps), STUDENT)
    dimensions = x.shape[1]
    recorded = tensor(case["loss"]).flatten(1)
    close(terms.losses["fisher"].rows.detach(), recorded.mean(1))
    (grad,) = torch.autograd.grad(terms.losses["fisher"].rows.sum(), x)
    close(grad * dimensions, tensor(case["grad_of_sum"]).flatten(1))


def test_sids_critic_is_edms_denoising_loss():
    sigma = tensor([0.05, 0.7, 9.0])
    z, eps = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = 0.5 * z  # what this student makes of z
    networks = Networks(lambda z, *_: 0.5 * z, teacher=linear(matrix), critic=linear(matrix))
    terms = SiD().loss(networks, Batch(None, {}, {}), ScoreDraws(3, z, sigma, eps), CRITIC)
    weight = (sigma**2 + 0.5**2) / (sigma * 0.5) ** 2
    close(terms.losses["fake"].rows, weight * l2((x + expand(sigma, x) * eps) @ matrix, x))


# ---- what must hold ----


@pytest.mark.parametrize("normalise", ["dmd", "none"])
def test_dmd_on_the_twin_pushes_as_twinflow_rectifies(normalise):
    """With the student's negative times as fake and its own velocity as real field, the gradient at its one-step output
    is TwinFlow's (clamp off, no guidance) times t/2, divided by the row's normaliser."""
    case, n = FASTGEN["vsd"], 4
    cond, z, t, eps = {"c": tensor(case["c"])}, tensor(case["z"]), tensor(case["t"]), tensor(case["eps"])
    net, outputs = Tiny(case["P"]), []

    def student(x, t, r, cond):
        v = net(x, t, r, cond)
        outputs.extend([v] if v.requires_grad else [])
        return v

    def pull(method, networks, draws, term):
        outputs.clear()
        terms = method.loss(networks, Batch(z.flip(0), cond, cond), draws, STUDENT)
        return torch.autograd.grad(terms.losses[term].value(), outputs[0])[0]

    twin = TwinFlow(TwinFlow.Config(rectify=1, metric="l2", match_clamp=None, target="self"))
    one, zero, role = torch.ones_like(t), torch.zeros_like(t), torch.full((n,), ROLES.index("one_step"))
    counts = {name: n if name == "one_step" else 0 for name in ROLES}
    rectify = pull(twin, Networks(student), TwinDraws(n, role, counts, one, zero, z, z_match=eps, t_match=t), "rectify")
    shared = DMD(DMD.Config(fake="shared", normalise=normalise, floor=0))
    draws = MatchDraws(n, z[:, None], zero.long(), t, eps)
    match = pull(shared, Networks(student, teacher=net), draws, "match")
    factor = (match * rectify).sum(1) / rectify.square().sum(1)
    assert factor.min() > 0 and rectify.abs().min() > 1e-4
    close(match, factor[:, None] * rectify, 1e-12)
    with torch.no_grad():
        x = z - net(z, one, zero, cond)
        x_t = expand(1 - t, x) * x + expand(t, x) * eps
        size = (x - (x_t - expand(t, x) * net(x_t, t, t, cond))).abs().mean(1)
    close(factor, t / 2 / (size if normalise == "dmd" else 1), 1e-12)


def shifted(by):
    """The velocity of N(MEAN + by, SCALE^2); the twin's field is the same one."""
    return lambda x, t, r, cond: mean_velocity(x - (1 - expand(t.abs(), x)) * by, t, r) - by


def pull_of(method, by):
    """The loss's gradient at samples of N(MEAN + by, SCALE^2), their velocity being the fake field and that of
    N(MEAN, SCALE^2) the real one."""
    outputs, field = [], shifted(by)

    def student(x, t, r, cond):
        outputs.append(field(x, t, r, cond).requires_grad_())
        return outputs[-1]

    n = 64
    rng = Rng(0, 0, "student", range(n), n, (3,), torch.float64)
    batch = Batch(None, {}, {})
    draws = method.draw(batch, rng, STUDENT)
    terms = method.loss(Networks(student, teacher=mean_velocity, critic=field), batch, draws, STUDENT)
    samples = (draws.z if draws.z.ndim == 2 else draws.z[:, 0]) - outputs[0]
    assert (samples.mean(0) - MEAN - by).abs().max() < 4 * SCALE / n**0.5
    (at_output,) = torch.autograd.grad(
        terms.losses["fisher" if isinstance(method, SiD) else "match"].value(), outputs[0]
    )
    return -n * at_output  # x = z - v


MATCHING = {
    "dmd": DMD(DMD.Config()),
    "dmd-plain": DMD(DMD.Config(normalise="none")),
    "dmd-shared": DMD(DMD.Config(fake="shared")),
    "sid": SiD(),
    "sid-alpha1": SiD(SiD.Config(alpha=1.0)),
}


@pytest.mark.parametrize("method", MATCHING.values(), ids=MATCHING.keys())
def test_samples_that_are_the_data_stay(method):
    assert pull_of(method, 0.0).abs().max() < 1e-12


@pytest.mark.parametrize("method", MATCHING.values(), ids=MATCHING.keys())
@pytest.mark.parametrize("by", [0.2, -0.2])
def test_samples_beside_the_data_move_towards_them(method, by):
    assert (by * pull_of(method, by)).min() > 0


def test_few_step_dmd_trains_on_the_samplers_own_samples():
    times = (1.0, 0.7, 0.4)
    method, networks, n = DMD(DMD.Config(times=times)), networks_of(), 12
    batch = batch_of(n)
    draws = method.draw(batch, rng_of(STUDENT, range(n), n), STUDENT)
    assert {*draws.stop.tolist()} == {0, 1, 2}
    with torch.no_grad():
        x_g = method._generate(networks.student, draws, batch.cond)
    for k in range(3):
        schedule = Schedule(times[: k + 1], "end", renoise=1.0)
        drawn = sample(networks.student, draws.z[:, 0], batch.cond, schedule, lambda i: draws.z[:, i + 1])
        close(x_g[draws.stop == k], drawn[draws.stop == k], 1e-12)
    networks.student.passes = 0
    method.loss(networks, batch, draws, STUDENT)
    assert networks.student.passes == 3 * n + draws.stop.sum()  # all rows jump last with a gradient


def batch_of(n):
    generator = torch.Generator().manual_seed(5)
    c, e = torch.randn(2, n, 2, dtype=torch.float64, generator=generator)
    return Batch(None, {"c": c}, {"c": e})


def rng_of(turn, held, total):
    return Rng(0, turn.step, turn.key, held, total, (3,), torch.float64)


VARIANTS = {
    "dmd": DMD(DMD.Config(cfg_scale=2.0)),
    "dmd-few": DMD(DMD.Config(cfg_scale=2.0, times=(1.0, 0.7, 0.4))),
    "dmd-shared": DMD(DMD.Config(cfg_scale=2.0, fake="shared", times=(1.0, 0.5))),
    "sid": SiD(SiD.Config(cfg_scale=2.0)),
}
both_turns = pytest.mark.parametrize(
    "label, turn", [(label, name) for label, method in VARIANTS.items() for name in sorted({*method.turns(0)})]
)


@both_turns
def test_micro_batches_of_one_add_up_to_the_batch(label, turn):
    method, turn, total = VARIANTS[label], Turn(turn), 8
    batch, results = batch_of(total), []
    for size in (total, 1):
        networks, loss = networks_of(turn=turn.name), 0.0
        for first in range(0, total, size):
            held = list(range(first, first + size))
            part = Batch(None, {"c": batch.cond["c"][held]}, {"c": batch.null["c"][held]})
            terms = method.loss(networks, part, method.draw(part, rng_of(turn, held, total), turn), turn)
            terms.total().backward()
            loss += terms.total().item()
        results.append((loss, [*gradients(networks.student).values(), *gradients(networks.critic).values()]))
    (loss, grads), (loss_1, grads_1) = results
    assert loss == pytest.approx(loss_1, rel=1e-12) and max(value.abs().max() for value in grads) > 0.01
    for one, other in zip(grads, grads_1, strict=True):
        close(one, other, 1e-12)


@both_turns
def test_the_loss_is_pure_and_trains_the_turns_network_alone(label, turn):
    method, turn, networks, batch = VARIANTS[label], Turn(turn), networks_of(turn=turn), batch_of(8)
    draws = method.draw(batch, rng_of(turn, range(8), 8), turn)
    before = {name: value.clone() for name, value in vars(draws).items() if isinstance(value, torch.Tensor)}
    first, second = (method.loss(networks, batch, draws, turn).total() for _ in range(2))
    second.backward()
    assert first.item() == second.item()
    assert all(torch.equal(getattr(draws, name), value) for name, value in before.items())
    for name in ("student", "teacher", "critic"):
        moved = any(value.any() for value in gradients(getattr(networks, name)).values())
        assert moved == (name == turn.name)


# ---- runs ----

TINY = ("backbone.width=16", "backbone.depth=1", "data.size=256", "train.batch=16")


class Recording(DMD):
    """Keeps what it draws."""

    def __init__(self, config):
        super().__init__(config)
        self.drawn = []

    def draw(self, batch, rng, turn):
        draws = super().draw(batch, rng, turn)
        self.drawn.append((turn.name, draws))
        return draws


def test_repeated_turns_of_a_step_draw_their_own_numbers(tmp_path):
    _, trainer = start(resolved("moons", "dmd", "train.budget=2", *TINY), tmp_path)
    trainer.method = Recording(DMD.Config(critic_steps=3))
    trainer.step(), trainer.step()
    assert [name for name, _ in trainer.method.drawn] == ["critic", "critic", "critic", "student"] * 2
    for name in ("z", "eps", "t"):
        numbers = torch.cat([getattr(draws, name).flatten() for _, draws in trainer.method.drawn])
        assert len(numbers.unique()) == len(numbers), name


@pytest.mark.parametrize("label", ["dmd", "sid"])
def test_a_run_with_a_critic_goes_on_where_it_stopped(tmp_path, label):
    settings = ("train.budget=7", "train.save_every=3", "train.decay=0.5", f"methods.{label}.critic_steps=2", *TINY)
    whole = trained(tmp_path / "once", "moons", label, *settings)
    _, trainer = start(resolved("moons", label, *settings), tmp_path / "twice")
    for row in trainer:
        if row["step"] == 5:  # two steps after its last checkpoint
            break
    again = trained(tmp_path / "twice", "moons", label, *settings)
    assert files(again)["weights.safetensors"] == files(whole)["weights.safetensors"]
    last, other = (read_tensors(folder / "checkpoints" / "step-00000007.safetensors")[0] for folder in (whole, again))
    assert last.keys() == other.keys() and all(torch.equal(last[name], other[name]) for name in last)
    assert any(name.startswith("optimizer.critic.") for name in last)
    logs = [[json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()] for folder in (whole, again)]
    timed = {"seconds", "peak_bytes"}
    bare = [[{key: row[key] for key in row.keys() - timed} for row in log] for log in logs]
    assert bare[0] == bare[1] and len(bare[0]) == 7


# Of one row: a forward is 1, a backward through parameters 2, through inputs alone 1.
CRITIC_TURN = 1 + 3  # the student makes the sample; the critic learns
PASSES = {
    # three turns of the critic; the student makes the sample and learns, the critic and the guided teacher look at it
    "dmd": (["critic_steps=3", "cfg_scale=2.0"], 3 * CRITIC_TURN + 3 + 1 + 2),
    # the twin's call is trained too
    "dmd-shared": (["fake=shared"], 3 + 3 + 1),
    # as dmd, and the gradient goes back through the critic's call and the teacher's two
    "sid": (["critic_steps=2", "cfg_scale=2.0"], 2 * CRITIC_TURN + 3 + (1 + 1) + 2 * (1 + 1)),
}


@pytest.mark.parametrize("name", PASSES)
def test_network_passes_are_counted(tmp_path, name):
    settings, each = PASSES[name]
    label = name.split("-")[0]
    sets = [f"methods.{label}.{item}" for item in settings]
    _, trainer = start(resolved("moons", label, "train.budget=3", *TINY, *sets), tmp_path)
    assert [row["passes"] for row in trainer] == [16 * each, 2 * 16 * each, 3 * 16 * each]


LEARNING = ("backbone.width=64", "backbone.depth=2", "data.size=1024", "train.batch=48", "train.save_every=1000")
LEARNERS = {
    "dmd": ["methods.dmd.critic_steps=3", "train.lr=1e-3"],
    # without a second time scale the twin lags, and momentum makes the two circle round each other
    "dmd-shared": ["methods.dmd.fake=shared", "train.lr=5e-4", "train.betas=[0.0,0.95]"],
    "sid": ["methods.sid.critic_steps=3", "train.lr=1e-3"],
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Weights of a velocity trained for some seconds on the moons."""
    folder = tmp_path_factory.mktemp("teacher")
    return trained(folder, "moons", "flow-matching", "train.budget=400", *LEARNING) / "weights.safetensors"


@pytest.mark.parametrize("name", LEARNERS)
def test_a_one_step_student_comes_nearer_to_the_data(tmp_path, teacher, name):
    settings = ("train.budget=200", f"backbone.weights={teacher}", *LEARNING, *LEARNERS[name])
    _, trainer = start(resolved("moons", name.split("-")[0], *settings), tmp_path)
    before = distance(trainer)
    for _ in trainer:
        pass
    assert distance(trainer) < 0.3 * before


def distance(trainer):
    """The Frechet distance of 1000 samples of one evaluation each."""
    z = torch.randn(1000, 2, generator=torch.Generator().manual_seed(1))
    cond = {"tokens": torch.tensor([[1], [2]]).repeat(500, 1)}
    return frechet(sample(trainer.evaluated, z, cond, Schedule((1.0,))), trainer.loader.world.real())
