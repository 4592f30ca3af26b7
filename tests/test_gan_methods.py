"""The methods with a GAN head, DMD2 and SANA-Sprint: recorded numbers, gradients by hand, where their terms pull."""

import math
from dataclasses import replace

import pytest
import torch
from gaussian import MEAN, deviation, mean_velocity
from test_baseline_fixed_points import halves_each_time
from tiny import Tiny, load, tensor
from twinbench.baselines.dmd import DMD
from twinbench.baselines.dmd2 import DMD2
from twinbench.baselines.sana_sprint import SanaSprint
from twinbench.baselines.scm import SCM

from twinbench.errors import UserError
from twinbench.flow import Batch, expand, mix
from twinbench.method import Networks, Turn
from twinbench.methods.matching import MatchDraws
from twinbench.objectives.levels import logit_normal
from twinbench.objectives.trigflow import Trig
from twinbench.randomness import Rng

FASTGEN = load("fastgen_dmd")
STUDENT, CRITIC, HEAD = Turn("student", step=10**6), Turn("critic"), Turn("head")
MATRIX = tensor([[0.5, -0.2], [0.3, 0.4], [-0.6, 0.1]])


def close(got, want, tolerance=1e-10):
    want = want if isinstance(want, torch.Tensor) else tensor(want)
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def line(x, t, cond):
    """Two logits, linear in x."""
    return x @ MATRIX


def constant(x, t, cond):
    return torch.full((len(x), 2), 0.7, dtype=x.dtype) + 0 * x[:, :2]


def batch_of(n):
    generator = torch.Generator().manual_seed(5)
    x, c, e = (torch.randn(n, k, dtype=torch.float64, generator=generator) for k in (3, 2, 2))
    return Batch(x, {"c": c}, {"c": e})


def drawn(method, turn, n=8):
    return method.draw(batch_of(n), Rng(0, 0, turn.key, range(n), n, (3,), torch.float64), turn)


def networks_of(head):
    student, teacher, critic = (Tiny(FASTGEN["vsd"][name]) for name in ("P", "P_teacher", "P_fake"))
    return Networks(student, teacher=teacher.requires_grad_(False), critic=critic.requires_grad_(False), head=head)


def gradients(loss, net):
    return torch.autograd.grad(loss, list(net.parameters()), allow_unused=True, materialize_grads=True)


# ---- DMD2 ----


def test_the_gan_terms_are_the_recorded_ones():
    gan = FASTGEN["gan"]
    real, fake = tensor(gan["real_logits"]), tensor(gan["fake_logits"])
    method = DMD2(DMD2.Config(gan=0.03))
    terms = method.loss(networks_of(lambda *_: fake), batch_of(4), drawn(method, STUDENT, 4), STUDENT)
    close(terms.losses["gan"].value(), 0.03 * gan["gen_loss"])
    draws, batch = drawn(method, HEAD, 4), batch_of(4)
    data = mix(batch.x, draws.eps_data, draws.t_data)
    terms = method.loss(networks_of(lambda x, t, c: real if torch.equal(x, data) else fake), batch, draws, HEAD)
    close(terms.total(), gan["disc_loss"])


@pytest.mark.parametrize("turn", [STUDENT, CRITIC], ids=lambda turn: turn.name)
def test_with_a_constant_head_dmd2_is_dmd(turn):
    networks = networks_of(constant)
    net = networks.student if turn is STUDENT else networks.critic.requires_grad_(True)
    draws = drawn(DMD2(), turn)
    other = MatchDraws(draws.rows, draws.z, draws.stop, draws.t, draws.eps)
    own = DMD2(DMD2.Config(cfg_scale=3.0)).loss(networks, batch_of(8), draws, turn).total()
    plain = DMD(DMD.Config(cfg_scale=3.0)).loss(networks, batch_of(8), other, turn).total()
    own, plain = gradients(own, net), gradients(plain, net)
    assert all(torch.equal(one, two) for one, two in zip(own, plain, strict=True))
    assert any(value.abs().max() > 0.01 for value in own)


def test_the_gan_terms_gradient_by_hand():
    """Through x_t = (1 - t) x_g + t eps, x_g = z - v: (1 - t)/k sum_j sigmoid(-D_j) w_j at the student's output."""
    outputs, batch, method = [], batch_of(8), DMD2(DMD2.Config(gan=0.4))

    def student(x, t, r, cond):
        outputs.append((x / 3).requires_grad_())
        return outputs[-1]

    draws = drawn(method, STUDENT)
    terms = method.loss(Networks(student, teacher=student, critic=student, head=line), batch, draws, STUDENT)
    (grad,) = torch.autograd.grad(terms.losses["gan"].rows.sum(), outputs[0])
    x_t = mix(draws.z[:, 0] * (2 / 3), draws.eps, draws.t)
    close(grad, 0.4 * expand(1 - draws.t, grad) * torch.sigmoid(-x_t @ MATRIX) @ MATRIX.T / 2)


def test_r1_is_the_square_of_a_small_steps_difference():
    method = DMD2(DMD2.Config(r1=3.0, r1_noise=0.2))
    draws = drawn(method, HEAD)
    terms = method.loss(networks_of(line), batch_of(8), draws, HEAD)
    close(terms.losses["r1"].rows.detach(), 3 * (0.2 * draws.n @ MATRIX).square().mean(1))
    assert "r1" not in DMD2().loss(networks_of(line), batch_of(8), drawn(DMD2(), HEAD), HEAD).losses


def test_data_and_samples_are_noised_apart_and_the_head_needs_data():
    draws = drawn(DMD2(), HEAD, 64)
    assert not torch.isin(draws.t_data, draws.t).any() and not torch.isin(draws.eps_data, draws.eps).any()
    assert draws.t_data.min() > 0.02 and draws.t_data.max() < 0.98
    batch = batch_of(8)
    with pytest.raises(UserError, match="needs data"):
        DMD2().loss(networks_of(line), Batch(None, batch.cond, batch.null), drawn(DMD2(), HEAD), HEAD)


def test_two_time_scales_are_turns():
    assert DMD2(DMD2.Config(critic_steps=2)).turns(0) == ("critic", "head", "critic", "head", "student")
    shared = DMD2(DMD2.Config(critic_steps=2, fake="shared"))
    assert shared.turns(0) == ("head", "head", "student") and shared.needs == {"teacher", "head"}
    assert DMD2(DMD2.Config(real="average", fake="lora")).needs == {"target", "critic", "head"}
    rated = DMD2(DMD2.Config(critic_rate=2.0, head_rate=3.0))
    assert [rated.rate(turn) for turn in ("student", "critic", "head")] == [1, 2, 3]


# ---- both: where the terms pull ----


def ratio(by):
    """log p(x_t; data) - log p(x_t; samples), the data being N(MEAN, SCALE^2) and the samples N(MEAN + by, SCALE^2)."""

    def head(x, t, cond):
        def log_density(mean):
            return -(((x - (1 - expand(t, x)) * mean) / expand(deviation(t), x)) ** 2).sum(1, keepdim=True) / 2

        return log_density(MEAN) - log_density(MEAN + by)

    return head


@pytest.mark.parametrize("kind", [DMD2, SanaSprint])
@pytest.mark.parametrize("by", [0.2, -0.2])
def test_a_head_that_knows_the_ratio_pulls_samples_to_the_data(kind, by):
    outputs = []

    def student(x, t, r, cond):
        outputs.append((mean_velocity(x - (1 - expand(t.abs(), x)) * by, t, r) - by).detach().requires_grad_())
        return outputs[-1]

    method = kind(kind.Config(**({"derivative": "difference"} if kind is SanaSprint else {})))
    terms = method.loss(
        Networks(student, teacher=mean_velocity, critic=mean_velocity, head=ratio(by)),
        batch_of(64),
        drawn(method, STUDENT, 64),
        STUDENT,
    )
    (at_output,) = torch.autograd.grad(terms.losses["gan"].rows.sum(), outputs[0])
    assert (-by * at_output).min() > 0  # x_g = x_t - t v: against the gradient samples move by -by


# ---- SANA-Sprint ----


def test_sana_sprints_student_is_scm_distillation_and_a_constant_head_adds_nothing():
    method = SanaSprint(SanaSprint.Config(cfg_scale=3.0, scm=0.7, warmup=4))
    scm = SCM(SCM.Config(form="distillation", cfg_scale=3.0, times=(0.2, 1.6), warmup=4))
    networks, batch, turn = networks_of(constant), batch_of(8), Turn(step=3)
    draws = drawn(method, turn)
    terms = method.loss(networks, batch, draws, turn)
    want = scm.loss(networks, batch, drawn(scm, turn), turn)
    close(terms.losses["scm"].rows.detach(), 0.7 * want.losses["scm"].rows.detach(), 1e-14)
    for one, two in zip(gradients(terms.total(), networks.student), gradients(want.total(), networks.student)):
        close(one, 0.7 * two, 1e-13)


def test_sana_sprint_is_still_at_the_flow_map_under_a_constant_head():
    method, outputs = SanaSprint(SanaSprint.Config(derivative="difference", step=1e-3)), []

    def student(x, t, r, cond):
        outputs.append(mean_velocity(x, t, r).detach().requires_grad_())
        return outputs[-1]

    networks = Networks(student, teacher=mean_velocity, head=constant)
    for turn, still in ((STUDENT, True), (Turn(step=0), False)):  # before the warm-up the objective is another
        outputs.clear()
        loss = method.loss(networks, batch_of(8), drawn(method, turn), turn).total()
        moved = max(
            value.abs().max() for value in torch.autograd.grad(loss, outputs, allow_unused=True) if value is not None
        )
        assert (moved < 1e-4) == still, moved


def test_sana_sprint_by_differences_is_still_to_second_order_in_their_step_and_by_jvp_wholly():
    nudge = torch.zeros(8, 3, dtype=torch.float64, requires_grad=True)
    networks = Networks(lambda *point: mean_velocity(*point) + nudge, teacher=mean_velocity, head=constant)
    draws = replace(drawn(SanaSprint(), STUDENT), t=torch.linspace(0.1, 0.9, 8, dtype=torch.float64))

    def moved(**settings):
        loss = SanaSprint(SanaSprint.Config(**settings)).loss(networks, batch_of(8), draws, STUDENT).total()
        return torch.autograd.grad(loss, nudge)[0].norm().item()

    assert moved() < 1e-12
    halves_each_time([moved(derivative="difference", step=step) for step in (0.02, 0.01, 0.005)], 2)


def test_sana_sprints_adversarial_terms_by_hand():
    """Half of the judged samples come of pure noise; all are noised again, and data at the same time apart."""
    n, batch, method = 64, batch_of(64), SanaSprint(SanaSprint.Config(gan=0.5))
    seen = []

    def student(x, t, r, cond):
        seen.append((x, t, r))
        return torch.sin(x) * t[:, None]

    networks = Networks(student, teacher=mean_velocity, head=line)
    for turn in (Turn("head"), Turn("student")):
        seen.clear()
        draws = drawn(method, turn, n)
        terms = method.loss(networks, batch, draws, turn)
        start, t, r = seen[0]
        assert 20 < (t == 1).sum() < 44 and not r.any()
        close(start, mix(batch.x, draws.z_g, t), 0)
        assert torch.equal(start[t == 1], draws.z_g[t == 1])
        fake = mix(start - expand(t, start) * torch.sin(start) * t[:, None], draws.eps, draws.r) @ MATRIX
        if turn.name == "student":
            close(terms.losses["gan"].rows, -0.5 * fake.mean(1))
            continue
        real = mix(batch.x, draws.z, draws.r) @ MATRIX
        want = 0.5 * ((1 - real).clamp(min=0) + (1 + fake).clamp(min=0)).mean(1)
        close(terms.losses["gan"].rows, want)
        assert not torch.isin(draws.z, draws.eps).any() and not torch.isin(draws.z_g, draws.eps).any()


def test_on_latents_of_deviation_1_the_trainers_path_has_sigma_1_and_times_log_2_higher():
    """It halves latents and noise, and draws tan s = e^n / 0.5, n ~ N(0.2, 1.6)."""
    batch, z, n = batch_of(8), drawn(SanaSprint(), STUDENT).z, torch.linspace(-3, 3, 8, dtype=torch.float64)
    s = torch.atan(n.exp() / 0.5)
    t = torch.sigmoid(n + math.log(2))
    trig = Trig(t, mix(batch.x, z, t), 1.0)
    close(trig.s, s, 1e-12)
    close(trig.x / 2, expand(s.cos(), z) * batch.x / 2 + expand(s.sin(), z) * z / 2, 1e-12)


def test_sana_sprints_times_are_its_trainers():
    draws = drawn(SanaSprint(), STUDENT, 4000)
    quarters = tensor([0.25, 0.5, 0.75])
    close(draws.r.quantile(quarters), logit_normal(quarters, -0.6, 1.0), 0.03)
    for t in (draws.t, draws.t_g[draws.t_g < 1]):
        close(t.quantile(quarters), logit_normal(quarters, 0.2, 1.6), 0.05)
    assert SanaSprint().turns(7) == ("head", "student")
