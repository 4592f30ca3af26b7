"""Methods that match distributions (DMD, DMD2, SiD): the official code's numbers to 1e-10 in float64, and what must
hold, whoever the real and the fake field are."""

import hypothesis
import pytest
import torch
from gaussian import MEAN, SCALE, mean_velocity
from hypothesis import strategies as st
from tiny import Tiny, load, tensor
from twinbench.baselines.dmd import DMD
from twinbench.baselines.dmd2 import DMD2, HeadDraws
from twinbench.baselines.sid import ScoreDraws, SiD, fisher, grid

from twinbench.flow import Batch, Counted, expand, split
from twinbench.method import Networks, Turn
from twinbench.methods.anystep import ROLES
from twinbench.methods.matching import MatchDraws, direction, generate
from twinbench.methods.twinflow import TwinDraws, TwinFlow
from twinbench.objectives.losses import l2
from twinbench.randomness import Rng
from twinbench.sampler import Schedule, sample

FASTGEN, SID = load("fastgen_dmd"), load("sid_generator")
STUDENT, CRITIC = Turn("student"), Turn("critic")


def close(got, want, tolerance=1e-10):
    want = want if isinstance(want, torch.Tensor) else tensor(want)
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


class Line(torch.nn.Module):
    """A head: two logits, linear in x."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(tensor([[0.5, -0.2], [0.3, 0.4], [-0.6, 0.1]]))

    def forward(self, x, t, cond):
        return x @ self.w + t[:, None] + cond["c"]


def networks_of(case=FASTGEN["vsd"], turn="student"):
    """Student, teacher and critic of the recorded case, the average like the teacher, and a head; as in training, the
    turn's network alone takes gradients."""
    student, teacher, critic, head = *(Tiny(case[name]) for name in ("P", "P_teacher", "P_fake")), Line()
    for name, net in {"student": student, "teacher": teacher, "critic": critic, "head": head}.items():
        net.requires_grad_(name == turn)
    student, teacher, critic = (Counted(net) for net in (student, teacher, critic))
    return Networks(student, target=teacher, teacher=teacher, critic=critic, head=head)


def gradients(net):
    net = getattr(net, "velocity", net)
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in net.named_parameters()}


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


@pytest.mark.parametrize("real", ["teacher", "self"])
@pytest.mark.parametrize("normalise", ["dmd", "none"])
def test_dmd_on_the_twin_pushes_as_twinflow_rectifies(normalise, real):
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
    settings = {"flow": 0} if real == "self" else {}
    settings |= {"floor": 0} if normalise == "dmd" else {}
    shared = DMD(DMD.Config(fake="shared", real=real, normalise=normalise, **settings))
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


@pytest.mark.parametrize("kind, term", [(DMD, "match"), (SiD, "fisher")])
def test_the_students_own_fields_move_its_samples_and_not_themselves(kind, term):
    """The gradient is that of frozen copies in their place."""
    net, batch = Tiny(FASTGEN["vsd"]["P"]), batch_of(8)
    copy = Tiny(FASTGEN["vsd"]["P"]).requires_grad_(False)
    others = Networks(Counted(net), teacher=copy, critic=lambda x, t, r, cond: copy(x, -t, -t, cond))
    results = []
    for networks, settings in ((Networks(Counted(net)), {"real": "self", "fake": "shared"}), (others, {})):
        method = kind(kind.Config(cfg_scale=2.0, **settings))
        draws = method.draw(batch, rng_of(STUDENT, range(8), 8), STUDENT)
        loss = method.loss(networks, batch, draws, STUDENT).losses[term].value()
        results.append(torch.autograd.grad(loss, list(net.parameters())))
    assert all(p.requires_grad for p in net.parameters())
    for own, other in zip(*results, strict=True):
        close(own, other, 1e-12)


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
    networks = Networks(student, mean_velocity, mean_velocity, field, lambda x, t, cond: x[:, :1] * 0 + 0.7)
    terms = method.loss(networks, batch, draws, STUDENT)
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
    "dmd-average": DMD(DMD.Config(real="average", flow=0)),
    "dmd-average-shared": DMD(DMD.Config(real="average", fake="shared", flow=0)),
    "dmd2": DMD2(),
    "sid": SiD(),
    "sid-alpha1": SiD(SiD.Config(alpha=1.0)),
    "sid-shared": SiD(SiD.Config(fake="shared")),
    "sid-average-lora": SiD(SiD.Config(real="average", fake="lora", flow=0)),
}


@pytest.mark.parametrize("method", MATCHING.values(), ids=MATCHING.keys())
def test_samples_that_are_the_data_stay(method):
    assert pull_of(method, 0.0).abs().max() < 1e-12


@pytest.mark.parametrize("method", MATCHING.values(), ids=MATCHING.keys())
@pytest.mark.parametrize("by", [0.2, -0.2])
def test_samples_beside_the_data_move_towards_them(method, by):
    assert (by * pull_of(method, by)).min() > 0


FITS = {
    "dmd": (DMD(), CRITIC),
    "dmd-lora": (DMD(DMD.Config(fake="lora")), CRITIC),
    "dmd-shared": (DMD(DMD.Config(fake="shared")), STUDENT),
    "dmd2": (DMD2(), CRITIC),
    "sid": (SiD(), CRITIC),
    "sid-shared": (SiD(SiD.Config(fake="shared")), STUDENT),
}


def fit_of(method, turn, error=0.0):
    """The gradient at the fake field's output, of single rows and summed over mirrored pairs (see test_fixed_point).
    The student is the exact flow map, the field the exact velocity of its samples, plus an error."""
    n, outputs = 16, []
    x_t, y = torch.randn(2, n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    x_t, t = x_t.repeat(2, 1), torch.linspace(0.1, 0.9, n, dtype=torch.float64).repeat(2)
    x, eps = split(x_t, torch.cat([y, 2 * mean_velocity(x_t, t, t)[:n] - y]), t)
    z = (x - MEAN) / SCALE  # what the flow map carries to x

    def field(x, t, r, cond):
        outputs.append((mean_velocity(x, t, r) + error).requires_grad_(torch.is_grad_enabled()))
        return outputs[-1]

    def student(x, t, r, cond):
        return field(x, t, r, cond) if (t < 0).all() else mean_velocity(x, t, r)

    if isinstance(method, SiD):
        draws = ScoreDraws(2 * n, z, t / (1 - t), eps)
    else:
        draws = HeadDraws(2 * n, z[:, None], torch.zeros(2 * n, dtype=torch.long), t, eps)
    networks = Networks(student, teacher=mean_velocity, critic=field, head=Line())
    terms = method.loss(networks, Batch(None, {}, {}), draws, turn)
    grad = torch.autograd.grad(terms.losses["fake"].rows.sum(), outputs[0])[0]
    return grad, grad[:n] + grad[n:]


@pytest.mark.parametrize("method, turn", FITS.values(), ids=FITS.keys())
def test_the_fake_field_stays_at_the_velocity_of_the_samples_and_a_wrong_one_is_pulled_to_it(method, turn):
    rows, summed = fit_of(method, turn)
    assert rows.norm(dim=1).min() > 0.05 and summed.abs().max() < 1e-10
    for error in (0.1, -0.1):
        assert (fit_of(method, turn, error)[1] / error).min() > 0.5  # against the gradient it loses its error


def test_few_step_dmd_trains_on_the_samplers_own_samples():
    times = (1.0, 0.7, 0.4)
    method, networks, n = DMD(DMD.Config(times=times)), networks_of(), 12
    batch = batch_of(n)
    draws = method.draw(batch, rng_of(STUDENT, range(n), n), STUDENT)
    assert {*draws.stop.tolist()} == {0, 1, 2}
    with torch.no_grad():
        x_g = generate(networks.student, draws.z, draws.stop, times, batch.cond)
    for k in range(3):
        schedule = Schedule(times[: k + 1], "end", renoise=1.0)
        drawn = sample(networks.student, draws.z[:, 0], batch.cond, schedule, lambda i: draws.z[:, i + 1])
        close(x_g[draws.stop == k], drawn[draws.stop == k], 1e-12)
    networks.student.passes = 0
    method.loss(networks, batch, draws, STUDENT)
    assert networks.student.passes == 3 * n + draws.stop.sum()  # all rows jump last with a gradient


@pytest.mark.parametrize("alpha", [0.0, 1.0, 1.2])
def test_where_the_fields_know_the_sample_sid_pulls_as_dmd(alpha):
    """With estimates of the clean sample that do not move with it, SiD's gradient is DMD's, for every alpha: they part
    in what flows through the two fields."""
    n, points = 8, torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    method = SiD(SiD.Config(alpha=alpha, real="self", fake="shared", flow=0))
    outputs = []

    def student(x, t, r, cond):  # all of the mass of the data, and of the twin's, lies in one point
        if (r == 0).all():
            outputs.append((x / 2).requires_grad_())
            return outputs[-1]
        return (x - points[(t < 0).long()]) / expand(t.abs(), x)

    batch = Batch(None, {}, {})
    draws = method.draw(batch, Rng(0, 0, "student", range(n), n, (3,), torch.float64), STUDENT)
    rows = method.loss(Networks(student), batch, draws, STUDENT).losses["fisher"].rows
    (grad,) = torch.autograd.grad(rows.sum(), outputs[0])
    x = draws.z / 2
    close(-3 * grad, direction(x, points[1].expand(n, 3), points[0].expand(n, 3), floor=0))  # a mean over 3 numbers


@hypothesis.given(*[st.floats(0.2, 3.0)] * 3)
@hypothesis.settings(deadline=None, max_examples=25)
def test_half_of_the_square_off_is_sids_exact_gradient(scale, sigma, true):
    """Samples x = scale n, data of deviation `true`, y = x + sigma eps, both fields exact. All is quadratic in n and
    eps, so that three points of each give the expectations."""
    points, weights = tensor([-(3**0.5), 0, 3**0.5]), tensor([1 / 6, 2 / 3, 1 / 6])
    n, eps = (grid.reshape(-1, 1) for grid in torch.meshgrid(points, points, indexing="ij"))
    share = (weights[:, None] * weights).reshape(-1)

    def of_samples(scale):
        return scale**2 / (scale**2 + sigma**2)

    def gradient(expectation):
        (at,) = torch.autograd.grad(expectation, scales[-1])
        return at.item()

    scales = [tensor(scale).requires_grad_()]
    real, exact = of_samples(tensor(true)), of_samples(scales[0])
    want = gradient((real - exact) ** 2 * (scales[0] ** 2 + sigma**2))
    found = []
    for alpha in (0.0, 0.5, 1.2):
        scales.append(tensor(scale).requires_grad_())
        x = scales[-1] * n
        y = x + sigma * eps
        rows = fisher(x, real * y, of_samples(tensor(scale)) * y, alpha) * (x - real * y).detach().abs().clamp(min=1e-5)
        found.append(gradient((rows[:, 0] * share).sum()))
    assert found[1] == pytest.approx(want / 2, rel=1e-6, abs=1e-12)
    assert abs(scale - true) < 0.05 or max(abs(found[i] - want / 2) for i in (0, 2)) > 1e-3 * abs(want)


def batch_of(n):
    generator = torch.Generator().manual_seed(5)
    c, e = torch.randn(2, n, 2, dtype=torch.float64, generator=generator)
    return Batch(torch.randn(n, 3, dtype=torch.float64, generator=generator), {"c": c}, {"c": e})


def rng_of(turn, held, total):
    return Rng(0, turn.step, turn.key, held, total, (3,), torch.float64)


VARIANTS = {
    "dmd": DMD(DMD.Config(cfg_scale=2.0)),
    "dmd-few": DMD(DMD.Config(cfg_scale=2.0, times=(1.0, 0.7, 0.4))),
    "dmd-shared": DMD(DMD.Config(cfg_scale=2.0, fake="shared", times=(1.0, 0.5))),
    "dmd-self": DMD(DMD.Config(cfg_scale=2.0, real="self", drop=0.5)),
    "dmd-average-shared": DMD(DMD.Config(cfg_scale=2.0, real="average", fake="shared", drop=0.5)),
    "dmd2": DMD2(DMD2.Config(cfg_scale=2.0, gan=0.5, r1=0.7)),
    "sid": SiD(SiD.Config(cfg_scale=2.0)),
    "sid-self": SiD(SiD.Config(cfg_scale=2.0, real="self", drop=0.5)),
    "sid-self-shared": SiD(SiD.Config(cfg_scale=2.0, real="self", fake="shared", drop=0.5)),
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
            part = Batch(batch.x[held], {"c": batch.cond["c"][held]}, {"c": batch.null["c"][held]})
            terms = method.loss(networks, part, method.draw(part, rng_of(turn, held, total), turn), turn)
            terms.total().backward()
            loss += terms.total().item()
        held = (networks.student, networks.critic, networks.head)
        results.append((loss, [value for net in held for value in gradients(net).values()]))
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
    for name in ("student", "teacher", "critic", "head"):
        moved = any(value.any() for value in gradients(getattr(networks, name)).values())
        assert moved == (name == turn.name)
