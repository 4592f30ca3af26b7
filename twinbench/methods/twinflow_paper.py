"""TwinFlow's loss as the paper writes it, and as its authors' tutorial does (arXiv 2512.05150; tutorials/mnist).

Mean square errors of weight 1, times uniform, no clamp on the matching direction. With x = z - v(z, 1, 0):

    any_step   v(x_t, t, r) -> the recursive target
    fake       v(x'_t', -t', -t') -> z' - x,  x'_t' = (1 - t') x + t' z'
    rectify    v(z, 1, 0) -> v(z, 1, 0) - (v(x''_t'', -t'', -t'') - v(x''_t'', t'', t''))

`paper`: a share of the batch has the one-step terms fake and rectify, the rest any_step; z' is fresh. `tutorial`:
every term on the whole batch, z' = z (so an exact flow map is not quite its fixed point), and two terms more: the real
velocity at r = t, and the recursive target of the jump from 1 to 0, whose y is, as there, that of the noised row.
Recursion times are equally spaced in both, as in all of the authors' code, unless `hop_times: random` draws them as the
paper's text does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from twinbench.flow import Batch, Cond, Velocity, instant, mix, one_step, take
from twinbench.method import Draws, Term, Terms
from twinbench.methods.roles import uniform_hops
from twinbench.objectives.losses import l2
from twinbench.objectives.targets import guidance_direction, matching_direction
from twinbench.objectives.times import split_roles
from twinbench.randomness import Rng


@dataclass(frozen=True)
class PaperDraws(Draws):
    """t, r [n]; z [n, ...] noises the data and generates; z_match [n, ...], t_match [n]: where the fields are compared.
    twin [n]: rows of the one-step terms, twins of the global batch; z_fake [n, ...]: fresh noise for the fake samples.
    In the tutorial's form these three are None, 0 and None. u_hops [n, order - 1]: as in `roles.AnyStepDraws`."""

    t: Tensor
    r: Tensor
    z: Tensor
    z_match: Tensor
    t_match: Tensor
    twin: Tensor | None = None
    twins: int = 0
    z_fake: Tensor | None = None
    u_hops: Tensor | None = None


def draw(rng: Rng, twin_share: float | None, hops: int = 0) -> PaperDraws:
    """twin_share: of the batch for the one-step terms; None for the tutorial's form. hops: random times of a target."""
    t = rng.uniform("t")
    r = (t - t * rng.uniform("u_any")).to(rng.time_dtype)
    common = (rng.total, t.to(rng.time_dtype), r, rng.normal("z"), rng.normal("z_match"))
    t_match = rng.uniform("t_match").to(rng.time_dtype)
    u_hops = uniform_hops(rng, hops) if hops else None
    if twin_share is None:
        return PaperDraws(*common, t_match, u_hops=u_hops)
    counts = split_roles({"base": 1 - twin_share, "twin": twin_share}, rng.total)
    return PaperDraws(*common, t_match, rng.deal(counts) == 1, counts["twin"], rng.normal("z_fake"), u_hops)


def loss(
    student: Velocity, net: Velocity, batch: Batch, draws: PaperDraws, *, weight: float, hops: Callable[..., Tensor]
) -> Terms:
    """The terms of one turn. net gives the targets; weight: of the guidance direction in y; hops: see
    `AnyStep.hops`."""
    assert batch.x is not None
    target = _Targets(net, weight, hops)
    if draws.twin is None:
        return _tutorial(student, target, batch, draws)
    return _paper(student, target, batch, draws, draws.twin)


@dataclass(frozen=True)
class _Targets:
    net: Velocity
    weight: float
    of: Callable[..., Tensor]

    def velocity(self, x_t: Tensor, y: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """The guided velocity of the samples."""
        if self.weight == 0:
            return y
        conditional, free = guidance_direction(self.net, x_t, t, batch.cond, batch.null)
        return y + self.weight * (conditional - free)

    def hops(self, v: Tensor, y: Tensor, x: Tensor, t: Tensor, r: Tensor, cond: Cond, u: Tensor | None) -> Tensor:
        return self.of(self.net, v.detach(), y, x, t, r, cond, u)


def _push(student: Velocity, x: Tensor, z: Tensor, t: Tensor, cond: Cond) -> Tensor:
    return matching_direction(instant(student, -1), instant(student), x, z, t, cond, clamp=None)


def _paper(student: Velocity, target: _Targets, batch: Batch, draws: PaperDraws, twin: Tensor) -> Terms:
    assert batch.x is not None and draws.z_fake is not None
    terms, logs = {}, {}
    base = ~twin
    if base.any():
        t, r, z, part = draws.t[base], draws.r[base], draws.z[base], _rows(batch, base)
        u = None if draws.u_hops is None else draws.u_hops[base]
        x_t = mix(batch.x[base], z, t)
        y = target.velocity(x_t, z - batch.x[base], t, part)
        v = student(x_t, t, r, part.cond)
        terms["any_step"] = Term(l2(v, target.hops(v, y, x_t, t, r, part.cond, u)), draws.rows - draws.twins)
    if twin.any():
        t, z, z_fake, part = draws.t[twin], draws.z[twin], draws.z_fake[twin], _rows(batch, twin)
        one, zero = torch.ones_like(t), torch.zeros_like(t)
        v_one = student(z, one, zero, part.cond)
        x = z - v_one.detach()
        v_fake = student(mix(x, z_fake, t), -t, -t, part.cond)
        push = _push(student, x, draws.z_match[twin], draws.t_match[twin], part.cond)
        terms["fake"] = Term(l2(v_fake, z_fake - x), draws.twins)
        terms["rectify"] = Term(l2(v_one, v_one.detach() - push), draws.twins)
        logs["direction"] = push.square().mean().sqrt()
    return Terms(terms, logs)


def _rows(batch: Batch, rows: Tensor) -> Batch:
    return Batch(None, take(batch.cond, rows), take(batch.null, rows))


def _tutorial(student: Velocity, target: _Targets, batch: Batch, draws: PaperDraws) -> Terms:
    assert batch.x is not None
    t, r, z, cond = draws.t, draws.r, draws.z, batch.cond
    one, zero = torch.ones_like(t), torch.zeros_like(t)
    x_t = mix(batch.x, z, t)
    y = target.velocity(x_t, z - batch.x, t, batch)
    x = one_step(student, z, cond)
    v, v_real = student(x_t, t, r, cond), student(x_t, t, t, cond)
    v_fake, v_one = student(mix(x, z, t), -t, -t, cond), student(z, one, zero, cond)
    push = _push(student, x, draws.z_match, draws.t_match, cond)
    terms = {
        "any_step": l2(v, target.hops(v, y, x_t, t, r, cond, draws.u_hops)),
        "real": l2(v_real, y),
        "fake": l2(v_fake, z - x),
        "rectify": l2(v_one, v_one.detach() - push),
        "one_step": l2(v_one, target.hops(v_one, y, z, one, zero, cond, draws.u_hops)),
    }
    return Terms(
        {name: Term(rows, draws.rows) for name, rows in terms.items()}, {"direction": push.square().mean().sqrt()}
    )
