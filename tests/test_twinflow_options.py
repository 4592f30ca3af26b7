"""The settings that take TwinFlow and RCGM apart: each does what its algebra says, and nothing where it is absent."""

from dataclasses import replace

import pytest
import torch
from gaussian import MEAN, SCALE, mean_velocity
from small import QUICK, files, resolved, trained
from test_fixed_point import PLAIN, Student, draws_of, gradients, pairs
from tiny import Tiny, load, tensor
from twinbench.baselines.rcgm import RCGM

from twinbench.backbones.toy import MLP
from twinbench.errors import UserError
from twinbench.flow import Batch, Counted, expand, mix, split
from twinbench.method import Networks, Turn
from twinbench.methods.anystep import AnyStep
from twinbench.methods.matching import direction
from twinbench.methods.roles import ROLES, AnyStepDraws, Shares
from twinbench.methods.twinflow import TwinDraws, TwinFlow
from twinbench.objectives.derivative import along
from twinbench.objectives.losses import barron, huber
from twinbench.objectives.targets import derivative_target, hop_times, matching_weight, recursive
from twinbench.randomness import Rng
from twinbench.settings import validate
from twinbench.training.checkpoint import fill
from twinbench.training.ema import next_decay
from twinbench.training.start import start

QUARTERS = ("one_step", "local", "any_step", "fake")


def rng(total=400, step=0, held=None, turn="student"):
    return Rng(0, step, turn, range(total) if held is None else held, total, (3,), torch.float64)


def refused(kind, **settings):
    with pytest.raises(UserError) as error:
        validate(kind.Config, settings, "method")
    return str(error.value)


def both(method, p, error=0.0, **changes):
    """The loss's parts on Gaussian pairs, and the student that was asked."""
    student = Student(error)
    draws = replace(draws_of(p, TwinDraws), **changes)
    return method.loss(Networks(student, target=mean_velocity), p.batch, draws, Turn()), student, draws


# ---- where hops meet ----


def test_random_hops_are_the_equal_ones_at_the_right_numbers_and_fall_from_start_to_end():
    shared = load("twinflow_components")["rcgm"]
    x, t, r, c = (tensor(shared[k]) for k in "xtrc")
    net, v, order = Tiny(shared["P_teacher"]), tensor(shared["cases"][0]["F_theta"]), 3
    equal = tensor([(order - i - 1) / (order - i) for i in range(order - 1)]).expand(len(t), -1)
    args = (net, v, 0.3 * x, x, t, r, {"c": c})
    torch.testing.assert_close(recursive(*args, order=order, u=equal), recursive(*args, order=order))
    u = torch.rand(len(t), order - 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert (
        recursive(*args, order=order, u=u, clamp=None) - recursive(*args, order=order, clamp=None)
    ).abs().max() > 0.01
    times = torch.stack(hop_times(t, r, order, u))
    assert torch.equal(times[0], t) and torch.equal(times[-1], r) and (times.diff(dim=0) <= 0).all()
    torch.testing.assert_close((times[2] - r) / (times[1] - r).clamp(min=1e-12), torch.where(t > r, u[:, 1], 0.0))


def test_an_exact_flow_map_does_not_care_where_hops_meet():
    p = pairs(["one_step", "any_step", "to_zero"], 0.01)
    draws = draws_of(p)
    u = torch.rand(len(p.t), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    equal = gradients(RCGM(RCGM.Config(order=4, **PLAIN)), p, draws)[0]
    drawn = gradients(RCGM(RCGM.Config(order=4, hop_times="random", **PLAIN)), p, replace(draws, u_hops=u))[0]
    torch.testing.assert_close(drawn, equal, rtol=0, atol=1e-9)


@pytest.mark.parametrize("form", ["source", "paper", "tutorial"])
def test_draws_carry_the_hops_by_sample_and_leave_all_other_numbers(form):
    plain = TwinFlow(TwinFlow.Config(form=form, order=3)).draw(None, rng(), Turn())
    method = TwinFlow(TwinFlow.Config(form=form, order=3, hop_times="random"))
    drawn = method.draw(None, rng(), Turn())
    assert plain.u_hops is None and drawn.u_hops.shape == (400, 2)
    assert drawn.u_hops.mean().item() == pytest.approx(0.5, abs=0.06)
    part = method.draw(None, rng(held=range(7, 11)), Turn())
    assert (
        torch.equal(part.u_hops, drawn.u_hops[7:11]) and torch.equal(plain.z, drawn.z) and torch.equal(plain.r, drawn.r)
    )


# ---- the derivative ----


def test_the_derivative_is_the_limit_of_order_1():
    shared = load("twinflow_components")["rcgm"]
    x, t, r, c = (tensor(shared[k]) for k in "xtrc")
    far = t - r > 0.05
    x, t, r, cond = x[far], t[far], r[far], {"c": c[far]}
    net, y = Tiny(shared["P_teacher"]), 0.4 * x + 0.1
    v = net(x, t, r, cond).detach()
    args = (net, v, y, x, t, r, cond)
    limit = derivative_target(*args, how="jvp", step=0.01, clamp=None)
    gaps = [(recursive(*args, order=1, h=h, clamp=None) - limit).abs().max() for h in (1e-2, 5e-3, 2.5e-3)]
    assert gaps[0] > 1e-3
    assert gaps[0] / gaps[1] == pytest.approx(2, abs=0.1) and gaps[1] / gaps[2] == pytest.approx(2, abs=0.1)
    errors = [
        (derivative_target(*args, how="difference", step=h, clamp=None) - limit).abs().max() for h in (2e-2, 1e-2)
    ]
    assert errors[0] / errors[1] == pytest.approx(4, abs=0.2)


def test_differences_stay_within_the_times_that_are_trained_and_are_exact_for_squares():
    t, asked = torch.tensor([0.0, 0.005, 0.3, 0.995, 1.0], dtype=torch.float64), []

    def net(x, t, r, cond):
        asked.append(t)
        return (x * t[:, None]) ** 2 / 2 + r[:, None]

    x, one = torch.full((5, 1), 3.0, dtype=torch.float64), torch.ones_like(t)
    _, slope = along(net, (x, t, t / 2), (0 * x, one, 0 * t), {}, "difference", step=0.01)
    torch.testing.assert_close(slope, 9 * t[:, None], rtol=0, atol=1e-12)
    assert torch.stack(asked).min() == 0 and torch.stack(asked).max() == 1 and len(asked) == 3
    torch.testing.assert_close(torch.stack(asked)[1:, 2], torch.tensor([0.31, 0.29], dtype=torch.float64))


def test_with_the_derivative_the_exact_velocity_is_a_fixed_point_to_round_off():
    p = pairs(["one_step", "local", "any_step", "to_zero"], 0.01)
    method = RCGM(RCGM.Config(order=1, derivative="jvp", **PLAIN))
    rows, summed = gradients(method, p, draws_of(p))
    assert rows.norm(dim=1).mean() > 0.5 and summed.abs().max() < 1e-10
    assert gradients(method, p, draws_of(p), error=0.1)[1].norm(dim=1).min() > 0.1


def test_the_derivative_of_an_average_lacks_the_pull_that_the_difference_has():
    """Where v is off by e, order 1 corrects by about (t - r) e/h, the derivative by e."""
    p, e = pairs(["any_step"], 0.01), 0.2
    x_t, y = mix(p.x, p.z, p.t), mean_velocity(mix(p.x, p.z, p.t), p.t, p.t)
    v, far = mean_velocity(x_t, p.t, p.r) + e, p.t - p.r > 0.05
    args = (mean_velocity, v, y, x_t, p.t, p.r, p.batch.cond)
    slope = v - derivative_target(*args, how="difference", step=1e-3, clamp=None)
    torch.testing.assert_close(slope, torch.full_like(slope, e), rtol=0, atol=1e-4)
    for h in (1e-2, 1e-3):
        pull = (v - recursive(*args, order=1, h=h, clamp=None))[far] * h
        torch.testing.assert_close(pull, (p.t - p.r)[far, None].expand_as(pull) * e, rtol=0, atol=6 * h)


# ---- the student's own samples ----


@pytest.mark.parametrize("scale", [0.0, 0.8, 1.0, 3.0])
def test_on_its_own_samples_a_student_learns_the_frozen_teacher_at_every_scale(scale):
    """r = t on all rows: the target is the teacher's guided field, which lies 0.1 (scale - 1) beside the student's."""
    shares = dict(one_step=0, local=1, any_step=0, fake=0)
    settings = dict(order=0, shares=shares, exact_local=1.0, weighting="none", metric="l2", target="pretrained")
    method = RCGM(RCGM.Config(image_free=True, cfg_scale=scale, **settings))
    draws = method.draw(None, rng(16), Turn())
    cond, null = ({"shift": torch.full((16, 1), s, dtype=torch.float64)} for s in (0.0, -0.1))

    def teacher(x, t, r, cond):
        return mean_velocity(x, t, r) + cond["shift"]

    terms = method.loss(Networks(mean_velocity, teacher=teacher), Batch(None, cond, null), draws, Turn())
    torch.testing.assert_close(terms.losses["base"].rows, torch.full((16,), (0.1 * (scale - 1)) ** 2).double())


# ---- r = t exactly ----


def test_a_share_of_local_rows_has_r_at_t():
    local = ROLES.index("local")
    plain, half, all_of_them = (RCGM(RCGM.Config(exact_local=e)).draw(None, rng(), Turn()) for e in (None, 0.5, 1.0))
    rows = plain.role == local
    assert (plain.r[rows] < plain.t[rows]).all() and torch.equal(all_of_them.r[rows], plain.t[rows])
    exact = half.r == half.t
    assert (exact & rows).sum() / rows.sum() == pytest.approx(0.5, abs=0.1) and not (exact & ~rows).any()
    assert torch.equal(half.r[~exact], plain.r[~exact])


# ---- the weight of the matching direction ----


def unequal(n=6):
    """One-step rows at which the two fields differ, with a network whose twin knows samples that lie too high."""
    p, shift = pairs(["one_step"], 0.01, each=n), 0.2

    class Shifted(Student):
        def __call__(self, x, t, r, cond):
            moved = mean_velocity(x - (1 - t.abs())[:, None] * shift, t, r) - shift
            plain = super().__call__(x, t, r, cond)
            return plain if torch.is_grad_enabled() else torch.where((t < 0)[:, None], moved, plain)

    return p, Shifted(), shift


def rectification(p, student, **settings):
    """Its gradient at the student's output, the fields' points x_t and times t."""
    draws = draws_of(p, TwinDraws)
    config = dict(rectify=1.0, match_clamp=None, one_step_base=False, **settings)
    terms = TwinFlow(TwinFlow.Config(**config)).loss(Networks(student, target=mean_velocity), p.batch, draws, Turn())
    (v,) = student.outputs
    grad = torch.autograd.grad(terms.losses["rectify"].value(), v)[0] * len(v)
    return grad, draws.z - v.detach(), draws


def test_the_kl_weight_makes_it_the_gradient_of_the_reverse_kl():
    p, student, shift = unequal()
    grad, x, draws = rectification(p, student, match_weight="kl", metric="l2")
    t = draws.t_match[:, None].clamp(min=0.02)
    x_t = mix(x, draws.z_match, draws.t_match)
    variance = (1 - t) ** 2 * SCALE**2 + t**2
    real, fake = (-(x_t - (1 - t) * mean) / variance for mean in (MEAN, MEAN + shift))
    assert (draws.t_match > 0.02).all()
    # d KL / d x_t = s_fake - s_real, and d x_t / d v(z, 1, 0) = -(1 - t); the square error's 2/D stays
    torch.testing.assert_close(grad, 2 / 3 * (fake - real) * -(1 - t), rtol=1e-9, atol=1e-12)


def test_the_dmd_weight_makes_it_dmds_direction():
    p, student, shift = unequal()
    grad, x, draws = rectification(p, student, match_weight="dmd", metric="l2")
    t, x_t = draws.t_match, mix(x, draws.z_match, draws.t_match)
    v_fake = mean_velocity(x_t - expand(1 - t, x_t) * shift, t, t) - shift
    g = direction(x, split(x_t, v_fake, t)[0], split(x_t, mean_velocity(x_t, t, t), t)[0])
    torch.testing.assert_close(grad, -2 / 3 * g, rtol=1e-9, atol=1e-12)  # x = z - v


def test_a_robust_metric_keeps_the_weight():
    p, student, _ = unequal()
    plain, _, draws = rectification(p, student)
    p, student, _ = unequal()
    weighted, x, _ = rectification(p, student, match_weight="kl")
    weight = matching_weight("kl", x, x, x, draws.t_match)
    torch.testing.assert_close(weighted, expand(weight, plain) * plain)


# ---- the paper's partition ----


def test_without_their_base_term_one_step_rows_have_the_rectification_alone():
    p = pairs(QUARTERS, 0.01)
    full, student, _ = both(TwinFlow(TwinFlow.Config(**PLAIN)), p, error=0.1)
    (v,) = student.outputs
    parts = {name: torch.autograd.grad(term.value(), v, retain_graph=True)[0] for name, term in full.losses.items()}
    first = p.role == ROLES.index("one_step")
    split_up, student, _ = both(TwinFlow(TwinFlow.Config(one_step_base=False, **PLAIN)), p, error=0.1)
    grad = torch.autograd.grad(split_up.total(), student.outputs[0])[0]
    others = len(p.t) - int(first.sum())
    assert parts["base"][first].abs().min() > 0
    torch.testing.assert_close(grad[first], parts["rectify"][first])
    torch.testing.assert_close(grad[~first], parts["base"][~first] * len(p.t) / others)
    assert "one_step" not in split_up.logs


def test_targets_are_not_computed_for_rows_without_a_base_term():
    p = pairs(QUARTERS, 0.01)
    calls = []
    for settings in ({}, {"one_step_base": False}):
        net = Counted(mean_velocity)
        TwinFlow(TwinFlow.Config(order=2, **settings)).loss(
            Networks(Student(), target=net), p.batch, draws_of(p, TwinDraws), Turn()
        )
        calls.append(net.passes)
    assert calls[0] - calls[1] == 2 * 16


def test_the_twin_alone_never_asks_the_target_network():
    p = pairs(["one_step", "fake"], 0.01)
    shares = Shares(one_step=1, local=0, any_step=0, fake=1)
    method = TwinFlow(TwinFlow.Config(shares=shares.model_dump(), one_step_base=False))
    net = Counted(mean_velocity)
    terms = method.loss(Networks(Student(), target=net), p.batch, draws_of(p, TwinDraws), Turn())
    assert net.calls == 0 and set(terms.losses) == {"base", "rectify"} and set(terms.logs) >= {"fake", "direction"}


@pytest.mark.parametrize(
    "share, names", [(0, {"any_step"}), (1, {"fake", "rectify"}), (0.5, {"any_step", "fake", "rectify"})]
)
def test_the_papers_share_goes_from_none_to_all(share, names):
    method = TwinFlow(TwinFlow.Config(form="paper", twin_share=share))
    draws = method.draw(None, rng(24), Turn())
    x, cond = torch.randn(24, 3, dtype=torch.float64), {"c": torch.zeros(24, 1)}
    batch = replace(pairs(["local"], 0.01).batch, x=x, cond=cond, null=cond)
    terms = method.loss(Networks(mean_velocity, target=mean_velocity), batch, draws, Turn())
    assert set(terms.losses) == names and all(len(term.rows) == term.denominator for term in terms.losses.values())


def test_a_form_refuses_what_it_does_not_use_by_the_one_that_does():
    assert "set shares and one_step_base, or form: paper" in refused(TwinFlow, twin_share=0.5)
    assert "set rectify or shares.one_step: 0" in refused(TwinFlow, one_step_base=False, rectify=0)
    assert "twin_share belongs to form: paper" in refused(TwinFlow, form="tutorial", twin_share=0.5)
    for form in ("paper", "tutorial"):  # at order 0 their jumps would be asked for the velocity where they start
        assert "set order to 1 or more" in refused(TwinFlow, form=form, order=0)
    for name, value in {"exact_local": 0.5, "match_weight": "kl", "generate": "average", "fake_steps": 2}.items():
        assert f"no {name}; it belongs to form: source" in refused(TwinFlow, form="paper", **{name: value})


# ---- fake rows: whose, and how often ----


def test_fake_rows_may_be_samples_of_the_average():
    p = pairs(["fake", "any_step"], 0.01)
    method = TwinFlow(TwinFlow.Config(generate="average", target="self", metric="l2", weighting="none"))
    assert method.needs == {"target"} and TwinFlow(TwinFlow.Config(target="self")).needs == frozenset()

    def other(x, t, r, cond):
        return mean_velocity(x, t, r) + 0.3

    draws, fake = draws_of(p, TwinDraws), p.role == ROLES.index("fake")
    draws = replace(draws, counts={**draws.counts, "one_step": 0}, z_match=None, t_match=None)
    terms = method.loss(Networks(Student(), target=other), p.batch, draws, Turn())
    t, one = p.t[fake], torch.ones(int(fake.sum()), dtype=torch.float64)
    x = draws.z_fake - other(draws.z_fake, one, 0 * one, None)
    residual = mean_velocity(mix(x, p.z[fake], t), -t, -t) - (p.z[fake] - x)
    torch.testing.assert_close(terms.logs["fake"], residual.square().mean())


def test_more_fake_updates_are_the_fake_part_of_the_base_term_again():
    p = pairs(QUARTERS, 0.01)
    method = TwinFlow(TwinFlow.Config(fake_steps=3, order=2))
    assert list(method.turns(0)) == ["student"] * 3 and list(TwinFlow().turns(0)) == ["student"]
    full, student, draws = both(method, p)
    fake = p.role == ROLES.index("fake")
    again = AnyStepDraws(**{name: getattr(draws, name) for name in AnyStepDraws.__dataclass_fields__})
    net, other = Counted(mean_velocity), Student()
    terms = method.loss(Networks(other, target=net), p.batch, again, Turn(repeat=1))
    assert set(terms.losses) == {"fake_again"} and net.calls == 0
    want = torch.autograd.grad(full.losses["base"].value(), student.outputs[0])[0][fake]
    torch.testing.assert_close(torch.autograd.grad(terms.total(), other.outputs[0])[0], want)


def test_a_step_with_more_fake_updates_counts_them_and_moves_the_average_once(tmp_path):
    costs = []
    for k in (1, 3):
        _, trainer = start(resolved("moons", "twinflow", *QUICK, f"methods.twinflow.fake_steps={k}"), tmp_path / str(k))
        list(trainer)
        costs.append(trainer.state.passes)
    decay = 0.0
    for _ in range(3):
        decay = next_decay(decay, 0.99)
    assert trainer.owned.average.decay == decay
    assert costs[1] - costs[0] == 3 * 2 * 4 * (1 + 3)  # steps, turns, fake rows of 16, a sample and its training


# ---- the metric ----


def test_barron_is_twice_the_pseudo_huber():
    generator = torch.Generator().manual_seed(3)
    pred, target = torch.randn(2, 5, 7, dtype=torch.float64, generator=generator)
    pred = (target + pred * torch.logspace(-4, 1, 5, dtype=torch.float64)[:, None]).requires_grad_()
    for c in (1e-1, 1.0):  # c^2 far above Barron's 1e-8
        one, two = (
            torch.autograd.grad(loss(pred, target, *a).sum(), pred)[0]
            for loss, a in ((huber, (c,)), (barron, (1.0, c)))
        )
        torch.testing.assert_close(two, 2 * one, rtol=1e-5, atol=0)
    m = (pred - target).square().mean(1)
    torch.testing.assert_close(huber(pred, target, 1e-6), m.sqrt(), rtol=0, atol=1e-6)
    torch.testing.assert_close(huber(pred, target, 1e4), m / 2e4, rtol=1e-3, atol=1e-9)


def test_the_method_takes_it():
    x = torch.randn(4, 3, dtype=torch.float64)
    assert torch.equal(AnyStep.metric(RCGM(RCGM.Config(metric="huber", huber_c=0.4)), x, 0 * x), huber(x, 0 * x, 0.4))


# ---- how times enter the network ----


def network(**options):
    return MLP(MLP.Config(world="moons", width=16, depth=1, **options))


def filled(weights, tmp_path, **options):
    other = network(**options)
    fill(other, weights, tmp_path)
    return other


def inputs(n=5):
    generator = torch.Generator().manual_seed(4)
    x, t = torch.randn(n, 2, generator=generator), 0.1 + 0.8 * torch.rand(n, generator=generator)
    return x, t, {"tokens": torch.ones(n, 1, dtype=torch.long)}


def scrambled():
    """Weights of which none is zero."""
    net = network()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return net, net.state_dict()


def test_the_sign_as_an_embedding_leaves_positive_times_and_starts_without_effect(tmp_path):
    plain, weights = scrambled()
    net, (x, t, cond) = filled(weights, tmp_path, sign="embedding"), inputs()
    for r in (t, t / 3, 0 * t):
        assert torch.equal(net(x, t, r, cond), plain(x, t, r, cond))
    assert torch.equal(net(x, -t, -t, cond), net(x, t, t, cond)) and not torch.equal(
        plain(x, -t, -t, cond), plain(x, t, t, cond)
    )
    net(x, -t, -t, cond).square().sum().backward()
    assert net.times.negative.grad.norm() > 0
    with torch.no_grad():
        net.times.negative -= net.times.negative.grad
    assert (net(x, -t, -t, cond) - net(x, t, t, cond)).abs().max() > 1e-3
    assert torch.equal(net(x, t, t, cond), plain(x, t, t, cond))
    again = filled(net.state_dict(), tmp_path, sign="embedding")  # and what was learnt comes back
    assert torch.equal(again.times.negative, net.times.negative)
    with pytest.raises(UserError, match=r"times\.negative"):
        filled(net.state_dict(), tmp_path)


def test_half_the_second_time_is_the_network_at_another_time(tmp_path):
    plain, weights = scrambled()
    net, (x, t, cond) = filled(weights, tmp_path, times="half"), inputs()
    with torch.no_grad():
        plain.times.second[2].weight.zero_(), plain.times.second[2].bias.zero_()
    assert torch.equal(net(x, t, 0 * t, cond), plain(x, t, 0 * t, cond))
    torch.testing.assert_close(net(x, t, t, cond), plain(x, t / 2, t / 2, cond))  # not the velocity at t
    torch.testing.assert_close(net(x, -t, -t, cond), plain(x, -t / 2, -t / 2, cond))
    torch.testing.assert_close(net(x, 0 * t + 0.5, 0 * t, cond), net(x, 0 * t + 0.6, 0 * t + 0.2, cond))


@pytest.mark.parametrize("option", ["sign=embedding", "times=half"])
def test_shipped_weights_fit_and_a_run_resumes_to_the_same_bytes(option, tmp_path):
    items = (*QUICK[:3], "train.unit=steps", f"backbone.{option}", "eval.nfe=[1]")
    whole = trained(tmp_path / "whole", "digits", "twinflow", *items)
    _, trainer = start(resolved("digits", "twinflow", *items), tmp_path / "cut")
    next(iter(trainer)), next(iter(trainer)), trainer.save()
    del trainer
    cut = trained(tmp_path / "cut", "digits", "twinflow", *items)
    assert files(whole)["weights.safetensors"] == files(cut)["weights.safetensors"]
