"""One batch, many micro-batches and masked passes are the same training step, in loss and in gradient."""

import pytest
import torch
from tiny import Tiny, load
from twinbench.baselines.consistency import Consistency, ConsistencyDraws
from twinbench.baselines.flow_matching import FlowMatching
from twinbench.baselines.rcgm import RCGM

from twinbench.flow import Batch, Counted, mix
from twinbench.method import Networks, Turn
from twinbench.methods.anystep import ROLES, Shares
from twinbench.methods.twinflow import TwinFlow, TwinShares
from twinbench.objectives.losses import barron
from twinbench.objectives.times import tan_weight
from twinbench.randomness import Rng

CASE = load("twinflow_train_full")["cases"][0]
TOTAL, SHAPE = 8, (3,)
TURN = Turn(step=3)


def data(dtype=torch.float64):
    generator = torch.Generator().manual_seed(5)
    x, c, e = (torch.randn(TOTAL, n, dtype=torch.float64, generator=generator) for n in (3, 2, 2))
    return Batch(x.to(dtype), {"c": c.to(dtype)}, {"c": e.to(dtype)})


def held_of(batch, held):
    return Batch(batch.x[held], {"c": batch.cond["c"][held]}, {"c": batch.null["c"][held]})


def rng_of(held, dtype=torch.float64, seed=0):
    return Rng(seed, TURN.step, TURN.name, held, TOTAL, SHAPE, dtype)


def networks_of(dtype=torch.float64):
    """A student, and another network as target and teacher; all count."""
    student, other = Tiny(CASE["P"]).to(dtype), Tiny(CASE["E"]).to(dtype)
    counted = Counted(other.requires_grad_(False))
    return student, Networks(Counted(student), target=counted, teacher=counted)


def gradient(student):
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in student.named_parameters()}


def step(method, groups, dtype=torch.float64):
    """The loss of the global batch, gone through in groups of samples; with the student's gradient and all logs."""
    student, networks = networks_of(dtype)
    batch, loss, logs = data(dtype), 0.0, []
    for held in groups:
        part = held_of(batch, held)
        terms = method.loss(networks, part, method.draw(part, rng_of(held, dtype), TURN), TURN)
        total = terms.total()
        if total.requires_grad:
            total.backward()
        loss, logs = loss + total.item(), [*logs, terms.logs]
    return loss, gradient(student), logs


def same(one, other, tolerance):
    assert one[0] == pytest.approx(other[0], rel=tolerance)
    assert any(value.abs().max() > 0.1 for value in one[1].values())
    for name, value in one[1].items():
        torch.testing.assert_close(value, other[1][name], rtol=tolerance, atol=tolerance)


METHODS = {
    "flow-matching": FlowMatching(FlowMatching.Config(drop=0.5, metric="barron", weighting="tan", times=(2.0, 1.0))),
    "rcgm": RCGM(RCGM.Config(cfg_scale=2.0)),
    "rcgm-order0": RCGM(RCGM.Config(order=0)),
    "rcgm-self": RCGM(RCGM.Config(target="self", order=1, shares=Shares(to_zero=2), cfg_scale=3.0, guide_at_one=True)),
    "twinflow": TwinFlow(TwinFlow.Config(cfg_scale=2.0)),
    "twinflow-image-free": TwinFlow(TwinFlow.Config(cfg_scale=2.0, image_free=True, target="pretrained")),
    "twinflow-paper": TwinFlow(TwinFlow.Config(form="paper", cfg_scale=2.0)),
    "twinflow-tutorial": TwinFlow(TwinFlow.Config(form="tutorial", cfg_scale=2.0)),
}
everyone = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


@everyone
@pytest.mark.parametrize("groups", [[[i] for i in range(8)], [[7, 2], [0, 1, 5], [3, 4, 6]]], ids=["ones", "uneven"])
def test_micro_batches_add_up_to_the_batch(method, groups):
    same(step(method, [list(range(TOTAL))]), step(method, groups), 1e-12)


@everyone
def test_logs_are_numbers_in_any_micro_batch(method):
    for logs in step(method, [[i] for i in range(TOTAL)])[2]:
        assert all(torch.isfinite(value) for value in logs.values()), logs


@everyone
def test_draws_of_a_micro_batch_are_rows_of_those_of_the_batch(method):
    batch, held = data(), [6, 1, 3]
    whole = vars(method.draw(batch, rng_of(range(TOTAL)), TURN))
    part = vars(method.draw(held_of(batch, held), rng_of(held), TURN))
    assert part["rows"] == whole["rows"] == TOTAL and part.get("counts") == whole.get("counts")
    masks = {"z_fake": "fake", "z_match": "one_step", "t_match": "one_step"} if "role" in whole else {}
    compared = 0
    for name, value in whole.items():
        if isinstance(value, torch.Tensor):
            if name in masks:  # numbers for some rows alone: put them at their rows
                value, mine = torch.zeros(TOTAL, *value.shape[1:], dtype=value.dtype), value
                value[whole["role"] == ROLES.index(masks[name])] = mine
                rows = value[held][part["role"] == ROLES.index(masks[name])]
            else:
                rows = value[held]
            assert torch.equal(part[name], rows), name
            compared += 1
    assert compared >= 3


@everyone
def test_no_number_is_used_twice(method):
    draws = vars(method.draw(data(), rng_of(range(TOTAL)), TURN))
    noise = [value.flatten() for name, value in draws.items() if name.startswith("z") and value is not None]
    assert len(torch.cat(noise).unique()) == sum(map(len, noise))
    if "t_match" in draws and draws["t_match"] is not None:
        assert not torch.isin(draws["t_match"], draws["t"]).any()


@everyone
def test_the_loss_is_pure(method):
    batch = data()
    _, networks = networks_of()
    draws = method.draw(batch, rng_of(range(TOTAL)), TURN)
    before = {name: value.clone() for name, value in vars(draws).items() if isinstance(value, torch.Tensor)}
    first, second = (method.loss(networks, batch, draws, TURN).total().item() for _ in range(2))
    assert first == second
    assert torch.equal(batch.x, data().x)
    assert all(torch.equal(getattr(draws, name), value) for name, value in before.items())


# ---- masked passes ----


def plain_source_form(config, networks, batch, draws):
    """TwinFlow's source form on whole batches: every pass on every row, and a selection afterwards."""
    student = networks.student
    net = {"self": student, "average": networks.target, "pretrained": networks.teacher}[config.target]
    cond, null, t, r = batch.cond, batch.null, draws.t, draws.r
    one, zero = torch.ones_like(t), torch.zeros_like(t)
    is_role = {name: (draws.role == i)[:, None] for i, name in enumerate(ROLES)}
    fake = is_role["fake"]

    def where(role, rows):
        """Numbers of some rows alone, put at their places among all."""
        full = torch.full((TOTAL, *rows.shape[1:]), 0.5, dtype=rows.dtype)
        full[is_role[role][:, 0]] = rows
        return full

    with torch.no_grad():
        x = draws.z_free - student(draws.z_free, one, zero, cond) if config.image_free else batch.x
        z_fake = where("fake", draws.z_fake)
        x = torch.where(fake, z_fake - student(z_fake, one, zero, cond), x)
    x_t, y = mix(x, draws.z, t), draws.z - x
    sign = torch.where(fake[:, 0], -1, 1).to(t.dtype)
    v = student(x_t, sign * t, sign * r, cond)
    with torch.no_grad():
        conditional, free = net(x_t, t, t, cond), net(x_t, t, t, null)
        w = config.cfg_scale
        if config.image_free:
            better = free + w * (conditional - free)
        else:
            better = y + (w - 1 if config.target == "pretrained" else 1 - 1 / w) * (conditional - free)
        y = torch.where(fake | (t == 1)[:, None] | (t == 0)[:, None], y, better)
        hopper = student if config.target == "pretrained" else net
        start = torch.maximum(t - config.h, r)
        s, x_s, moved = start, x_t - config.h * y, 0
        for i in range(config.order):
            s_next = start + (r - start) * (i + 1) / config.order
            f = hopper(x_s, s, s_next, cond)
            x_s, moved, s = x_s - (s - s_next)[:, None] * f, moved + (s - s_next)[:, None] * f, s_next
        far = ((t - r) >= config.h)[:, None]
        delta = torch.where(far, (v * (t - r)[:, None] - moved) / config.h - y, v - y)
        target = torch.where(fake, y, v - delta.clamp(-config.clamp, config.clamp))
    weight = torch.where(fake[:, 0], torch.ones_like(t), tan_weight(t, r))
    base = (weight * barron(v, target)).mean()
    with torch.no_grad():
        x_m = mix(x_t - v, where("one_step", draws.z_match), where("one_step", draws.t_match))
        t_m = where("one_step", draws.t_match)
        push = (student(x_m, -t_m, -t_m, cond) - student(x_m, t_m, t_m, cond)).clamp(-1, 1)
    rows = barron(v, v.detach() - push)
    return base + config.rectify * torch.where(is_role["one_step"][:, 0], rows, 0).sum() / draws.counts["one_step"]


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["64", "32"])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "settings",
    [
        dict(cfg_scale=2.0),
        dict(cfg_scale=4.0, order=3, target="self", shares=TwinShares(one_step=1, local=2, any_step=1, fake=2)),
        dict(cfg_scale=2.0, target="pretrained"),
        dict(cfg_scale=2.0, target="pretrained", image_free=True, guide_at_one=False, local_width=0.5),
    ],
    ids=["average", "self", "pretrained", "image-free"],
)
def test_masked_rows_are_the_whole_batch_form_with_fewer_passes(settings, seed, dtype, tolerance):
    method = TwinFlow(TwinFlow.Config(**settings))
    batch = data(dtype)
    draws = method.draw(batch, rng_of(range(TOTAL), dtype, seed), TURN)
    results, passes = [], []
    for loss_of in (plain_source_form, None):
        student, networks = networks_of(dtype)
        if loss_of:
            loss = loss_of(method.config, networks, batch, draws)
        else:
            loss = method.loss(networks, batch, draws, TURN).total()
        loss.backward()
        results.append((loss.item(), gradient(student)))
        passes.append(networks.student.passes + networks.target.passes)
    same(*results, tolerance)
    assert passes[1] < 0.75 * passes[0]


def test_on_own_samples_each_row_is_generated_once():
    method = TwinFlow(TwinFlow.Config(image_free=True, target="pretrained"))
    student, networks = networks_of()
    rows = []

    def counted(x, t, r, cond):
        if not torch.is_grad_enabled() and (t == 1).all() and (r == 0).all():
            rows.append(len(x))
        return student(x, t, r, cond)

    batch = data()
    draws = method.draw(batch, rng_of(range(TOTAL)), TURN)
    method.loss(Networks(counted, teacher=networks.teacher), batch, draws, TURN)
    assert sorted(rows) == [draws.counts["fake"], TOTAL - draws.counts["fake"]]


# ---- methods that contain each other ----


def identical(one, other):
    """Both methods' loss and gradient on the same batch and keys are the same bits."""
    (loss, grad, _), (loss2, grad2, _) = (step(method, [list(range(TOTAL))]) for method in (one, other))
    assert loss == loss2
    assert all(torch.equal(value, grad2[name]) for name, value in grad.items())
    assert any(value.abs().max() > 0.1 for value in grad.values())


def test_twinflow_without_its_twin_is_rcgm():
    shared = dict(cfg_scale=2.0, order=2)
    identical(TwinFlow(TwinFlow.Config(shares=TwinShares(fake=0), rectify=0, **shared)), RCGM(RCGM.Config(**shared)))


def test_rcgm_of_order_0_on_local_rows_without_width_is_flow_matching():
    local = Shares(one_step=0, local=1, any_step=0)
    rcgm = RCGM(RCGM.Config(order=0, shares=local, any_step_width=0))
    identical(rcgm, FlowMatching(FlowMatching.Config(metric="barron", weighting="tan")))
    # and so is any order: without recursive roles nothing hops
    identical(RCGM(RCGM.Config(order=2, shares=local, any_step_width=0)), rcgm)


@pytest.mark.parametrize("target", ["self", "average"])
def test_rcgm_of_order_1_to_zero_is_discrete_consistency(target):
    """Row by row, with h = 1/N, no clamp and no weights, RCGM's residual v - target is consistency's,
    D(x_t, t) - D'(x_r, r) with r = max(t - h, 0), over -(t - r). Since D = x_t - t v, the square distance is (t - r)^2
    times RCGM's and its gradient t (t - r) times; both once more times the dimension: a sum in place of a mean."""
    n, batch = 2, data()
    shares = Shares(one_step=0, local=0, any_step=0, to_zero=1)
    rcgm = RCGM(RCGM.Config(order=1, h=1 / n, clamp=None, metric="l2", weighting="none", target=target, shares=shares))
    draws = rcgm.draw(batch, rng_of(range(TOTAL)), TURN)
    t, r = draws.t, (draws.t - 1 / n).clamp(min=0)
    assert (r == 0).any() and (r > 0).any() and not draws.r.any()
    consistency = Consistency(Consistency.Config(steps=n, squared=True, weighting="none", target=target))
    results = []
    for method, term, drawn in (
        (rcgm, "base", draws),
        (consistency, "consistency", ConsistencyDraws(TOTAL, t, r, draws.z)),
    ):
        student, networks = networks_of()
        rows = method.loss(networks, batch, drawn, TURN).losses[term].rows
        grads = [
            torch.autograd.grad(row, [*student.parameters()], retain_graph=True, allow_unused=True) for row in rows
        ]
        flat = [torch.cat([g.flatten() for g in grad if g is not None]) for grad in grads]
        results.append((rows.detach(), torch.stack(flat)))
    (rows, grads), (other, other_grads) = results
    size = batch.x.shape[1]
    torch.testing.assert_close(other, size * (t - r) ** 2 * rows, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(other_grads, (size * t * (t - r))[:, None] * grads, rtol=1e-9, atol=1e-12)
    assert rows.min() > 1e-3 and grads.abs().max() > 0.1


def test_a_frozen_target_and_the_student_itself_agree_where_they_are_one_network():
    student, _ = networks_of()
    networks = Networks(student, target=student)
    batch = data()
    for settings in (dict(order=1), dict(order=2, cfg_scale=3.0)):
        losses = []
        for target in ("self", "average"):
            method = RCGM(RCGM.Config(target=target, **settings))
            draws = method.draw(batch, rng_of(range(TOTAL)), TURN)
            losses.append(method.loss(networks, batch, draws, TURN).total().item())
        assert losses[0] == losses[1]


def test_image_free_rows_at_one_are_guided_by_the_frozen_teacher():
    """Unguided, their target is the noise less a sample of other noise: the mean of the student's own samples."""
    base = dict(target="pretrained", image_free=True, cfg_scale=3.0, shares=TwinShares(one_step=1, local=0, any_step=0))
    draw = dict(batch=data(), rng=rng_of(range(TOTAL)), turn=TURN)
    draws = TwinFlow(TwinFlow.Config(**base)).draw(**draw)
    losses = []
    for at_one in (None, True, False):
        method = TwinFlow(TwinFlow.Config(**base, guide_at_one=at_one))
        losses.append(method.loss(networks_of()[1], draw["batch"], draws, TURN).total().item())
    assert losses[0] == losses[1] != losses[2]


def test_naming_one_share_keeps_the_twin():
    assert TwinFlow.Config(shares={"to_zero": 1}).shares.fake == 1


@pytest.mark.parametrize("form", ["paper", "tutorial"])
def test_a_form_refuses_what_it_does_not_use(form):
    with pytest.raises(ValueError, match="rectify"):
        TwinFlow.Config(form=form, rectify=3)


def test_the_papers_form_splits_the_batch():
    method = TwinFlow(TwinFlow.Config(form="paper", twin_share=0.25))
    batch = data()
    draws = method.draw(batch, rng_of(range(TOTAL)), TURN)
    terms = method.loss(networks_of()[1], batch, draws, TURN).losses
    assert draws.twins == TOTAL // 4
    assert {name: (len(term.rows), term.denominator) for name, term in terms.items()} == {
        "any_step": (TOTAL - draws.twins,) * 2,
        "fake": (draws.twins,) * 2,
        "rectify": (draws.twins,) * 2,
    }
