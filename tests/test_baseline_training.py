"""MeanFlow, shortcut, consistency models, sCM and progressive distillation in training: micro-batches, purity, and what
is counted."""

from dataclasses import replace

import pytest
import torch
from tiny import Tiny, load
from twinbench.baselines.consistency import Consistency, end
from twinbench.baselines.meanflow import MeanFlow
from twinbench.baselines.progressive import Progressive
from twinbench.baselines.scm import SCM
from twinbench.baselines.shortcut import Shortcut

from twinbench.flow import Batch, Counted
from twinbench.method import Networks, Turn
from twinbench.randomness import Rng

METHODS = {
    "meanflow": MeanFlow(MeanFlow.Config(cfg_scale=2.0, kappa=0.25, drop=0.3, instant=0.5)),
    "meanflow-difference": MeanFlow(MeanFlow.Config(derivative="difference", normalise="gradient")),
    "shortcut": Shortcut(Shortcut.Config(bootstrap=0.5, cfg_scale=2.0, drop=0.3, steps=8)),
    "consistency": Consistency(Consistency.Config()),
    "consistency-distillation": Consistency(
        Consistency.Config(form="distillation", target="average", cfg_scale=2.0, spacing="ratio", doublings=2)
    ),
    "consistency-edm": Consistency(Consistency.Config(spacing="edm", huber=0.03, weighting="snr")),
    "progressive": Progressive(Progressive.Config(steps=4, weighting="truncated")),
    "progressive-first": Progressive(Progressive.Config(steps=1, cfg_scale=2.0)),
    "scm": SCM(SCM.Config(warmup=4)),
    "scm-distillation": SCM(SCM.Config(form="distillation", cfg_scale=2.0, derivative="difference", weighting="prior")),
}
everyone = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
CASE, TOTAL, TURN = load("twinflow_train_full")["cases"][0], 8, Turn(step=3, progress=0.5)


def data():
    generator = torch.Generator().manual_seed(5)
    x, c, e = (torch.randn(TOTAL, n, dtype=torch.float64, generator=generator) for n in (3, 2, 2))
    return Batch(x, {"c": c}, {"c": e})


def step(method, groups):
    """The loss of the global batch, gone through in groups of samples; with the student's gradient and all logs."""
    student, other = Tiny(CASE["P"]), Counted(Tiny(CASE["E"]).requires_grad_(False))
    networks = Networks(Counted(student), target=other, teacher=other)
    batch, loss, logs = data(), 0.0, []
    for held in groups:
        part = Batch(batch.x[held], {"c": batch.cond["c"][held]}, {"c": batch.null["c"][held]})
        draws = method.draw(part, Rng(0, TURN.step, TURN.name, held, TOTAL, (3,), torch.float64), TURN)
        terms = method.loss(networks, part, draws, TURN)
        terms.total().backward()
        loss, logs = loss + terms.total().item(), [*logs, terms.logs]
    return loss, {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}, logs, networks


@everyone
@pytest.mark.parametrize("groups", [[[i] for i in range(8)], [[7, 2], [0, 1, 5], [3, 4, 6]]], ids=["ones", "uneven"])
def test_micro_batches_add_up_to_the_batch(method, groups):
    one, other = step(method, [list(range(TOTAL))]), step(method, groups)
    assert one[0] == pytest.approx(other[0], rel=1e-12)
    assert any(value.abs().max() > 0.05 for value in one[1].values())
    for name, value in one[1].items():
        torch.testing.assert_close(value, other[1][name], rtol=1e-12, atol=1e-12)
    for logs in other[2]:
        assert all(torch.isfinite(value) for value in logs.values()), logs
    for network in ("student", "target"):  # the passes do not depend on how the batch is held
        assert getattr(one[3], network).passes == getattr(other[3], network).passes


@everyone
def test_the_loss_is_pure_and_the_draws_are_all_there_is_of_chance(method):
    batch = data()
    networks = Networks(*[Tiny(CASE["P"]) for _ in range(3)])
    draws = method.draw(batch, Rng(0, 3, "student", range(TOTAL), TOTAL, (3,), torch.float64), TURN)
    kept = replace(draws, **{k: v.clone() for k, v in vars(draws).items() if isinstance(v, torch.Tensor)})
    first, second = (method.loss(networks, batch, draws, TURN).total().item() for _ in range(2))
    assert first == second and torch.equal(batch.x, data().x)
    assert all(torch.equal(getattr(draws, k), v) for k, v in vars(kept).items() if isinstance(v, torch.Tensor))


@everyone
def test_times_are_in_order_and_roles_are_dealt_over_the_batch(method):
    draws = vars(method.draw(data(), Rng(0, 3, "student", range(64), 64, (3,), torch.float64), TURN))
    t, r = draws["t"], draws.get("r", torch.zeros(64, dtype=torch.float64))
    assert ((r >= 0) & (r <= t) & (t <= 1)).all() and (t > 0).all()
    if isinstance(method, MeanFlow):
        assert (r == t).sum() == round(64 * method.config.instant)
    if isinstance(method, Shortcut):
        assert (r == t).sum() == 32 and (t - r == 1).sum() in (10, 11)


def test_a_derivative_is_taken_of_the_rows_that_need_it_and_counted():
    """8 rows of which 6 have r = t: 6 forward and backward, 2 with a tangent beside."""
    method = MeanFlow(MeanFlow.Config())
    student = step(method, [list(range(TOTAL))])[3].student
    assert student.passes == 6 * 3 + 2 * 4
    student = step(MeanFlow(MeanFlow.Config(derivative="difference")), [list(range(TOTAL))])[3].student
    assert student.passes == 6 * 3 + 2 * 5


def test_the_end_of_a_path_at_the_data_is_the_point_itself():
    x, t = torch.randn(3, 2, dtype=torch.float64), torch.tensor([0.0, 0.5, 0.0], dtype=torch.float64)
    asked = []

    def net(x, t, r, cond):
        asked.append(t)
        return torch.ones_like(x)

    got = end(net, x, t, {})
    torch.testing.assert_close(got, x - 0.5 * (t > 0)[:, None])
    assert torch.equal(torch.cat(asked), t[1:2])
    assert torch.equal(end(net, x[:1], t[:1], {}), x[:1]) and len(asked) == 1
