"""TwinFlow: one network that is teacher, student and fake score (Cheng et al., arXiv 2512.05150, ICLR 2026).

On negative times the network learns the velocity of its own one-step samples (the twin). Where the two fields differ,
the one-step samples differ from the data, and their difference pushes the one-step output:

    base      any-step objective on data rows (`anystep`), and flow matching of own samples at t < 0 on fake rows
    rectify   v(z,1,0) -> v(z,1,0) - clamp( v(x',-t',-t') - v(x',t',t') ),  x' = (1 - t') (z - v(z,1,0)) + t' z'

`form: source` is the official training code: roles share one batch, robust loss, tan weight, clamps. In the paper's
partition one-step rows have no base term (`one_step_base: false`); with no data rows beside them the twin is alone
(`shares: {one_step: 1, local: 0, any_step: 0, fake: 1}`). `form: paper` and `form: tutorial` are the paper's loss and
the one of its authors' tutorial (`twinflow_paper`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor

from twinbench.flow import Batch, Hop, Velocity, instant, split, take
from twinbench.method import Draws, Networks, Term, Terms, Turn
from twinbench.methods import twinflow_paper
from twinbench.methods.anystep import OF_TARGETS, AnyStep, Step
from twinbench.methods.roles import AnyStepDraws, Shares, fake_rows
from twinbench.objectives.targets import MatchWeight, clip, matching_fields, matching_weight
from twinbench.randomness import Rng

SOURCE_ONLY = (  # settings of the source form
    *("shares", "rectify", "match_clamp", "metric", "barron_alpha", "barron_c", "weighting", "times"),
    *("local_width", "any_step_width", "guidance_interval", "guide_at_one", "exact_local", "huber_c"),
    *("match_weight", "one_step_base", "generate", "fake_steps"),
)

OF_DATA = ("order", *OF_TARGETS, "weighting")  # settings of rows of data


@dataclass(frozen=True)
class TwinDraws(AnyStepDraws):
    """z_match [k, ...], t_match [k]: noise and times at which the two fields are compared, for the one-step rows."""

    z_match: Tensor | None = None
    t_match: Tensor | None = None


class TwinShares(Shares):
    """The official mixture: a quarter each."""

    fake: float = Field(1, ge=0)


class TwinFlow(AnyStep):
    class Config(AnyStep.Config):
        form: Literal["source", "tutorial", "paper"] = Field("source", description="whose loss; see the module")
        shares: TwinShares = TwinShares()
        rectify: float = Field(0.5, ge=0, description="of the rectification (source form); none if any_step_width < 1")
        match_clamp: float | None = Field(1.0, gt=0, description="bound of the matching direction; null for none")
        match_weight: MatchWeight | None = Field(
            None, description="weight of a rectified row: kl, (1-t)^2/t, the reverse KL's own; dmd, DMD's; null: 1"
        )
        one_step_base: bool | None = Field(
            None, description="false: one-step rows have the rectification alone; null: the base term too"
        )
        generate: Literal["average"] | None = Field(None, description="whose samples the fake rows are; null: student")
        fake_steps: int | None = Field(None, ge=1, description="updates of the fake rows a step; null: 1")
        twin_share: float = Field(1 / 3, ge=0, le=1, description="share of the batch with one-step terms (paper form)")

        @model_validator(mode="after")
        def _form_uses_its_settings(self) -> TwinFlow.Config:
            if self.form == "source":
                return self._twin_is_there()
            if self.form == "tutorial" and self.twin_share != 1 / 3:
                raise ValueError("form: tutorial has every term on the whole batch; twin_share belongs to form: paper")
            if self.order == 0:
                raise ValueError(f"form: {self.form} has jumps to learn, and order: 0 has none; set order to 1 or more")
            if self.target == "pretrained" or self.image_free:
                raise ValueError(f"form: {self.form} takes its targets from the student or its average, on data")
            for name in SOURCE_ONLY:
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"form: {self.form} has no {name}; it belongs to form: source")
            self.idle_unless(self.twin_share < 1, "any-step rows (twin_share below 1)", *OF_DATA, "cfg_scale")
            return self

        def _twin_is_there(self) -> TwinFlow.Config:
            if self.twin_share != 1 / 3:
                raise ValueError("form: source deals rows by shares; set shares and one_step_base, or form: paper")
            if self.one_step_base is False and self.shares.one_step and not self.rectifies:
                raise ValueError(
                    "one_step_base: false leaves one-step rows untrained; set rectify or shares.one_step: 0"
                )
            self.idle_unless(self.order > 0, "order above 0", "one_step_base")
            data = self.shares.local + self.shares.any_step + self.shares.to_zero > 0
            self.idle_unless(data or self.one_step_base is not False, "data rows with a base term", *OF_DATA)
            rows = "rectified rows (shares.one_step, any_step_width: 1)"
            self.idle_unless(self.rectifies or self.rectify == 0, rows, "rectify")
            self.idle_unless(self.rectifies, "a rectification (rectify above 0)", "match_clamp", "match_weight")
            self.idle_unless(self.shares.fake > 0, "fake rows (shares.fake)", "generate", "fake_steps")
            return self

        @property
        def rectifies(self) -> bool:
            return self.rectify > 0 and self.any_step_width == 1 and self.shares.one_step > 0

    config: Config
    hop: ClassVar[Hop] = "next"

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | ({"target"} if self.config.generate == "average" else set())

    def turns(self, step: int) -> Sequence[str]:
        """The student's update; then, on fresh numbers, those of its fake rows alone."""
        return ("student",) * (self.config.fake_steps or 1)

    def draw(self, batch: Batch, rng: Rng, turn: Turn) -> Draws:
        if self.config.form == "source":
            return self.deal(rng) if turn.repeat else self._draw_source(rng)
        share = self.config.twin_share if self.config.form == "paper" else None
        return twinflow_paper.draw(rng, share, self._meetings)

    def loss(self, networks: Networks, batch: Batch, draws: Draws, turn: Turn) -> Terms:
        if isinstance(draws, twinflow_paper.PaperDraws):
            net, weight = self._target_network(networks), 1 - 1 / self.config.cfg_scale
            return twinflow_paper.loss(networks.student, net, batch, draws, weight=weight, hops=self.hops)
        assert isinstance(draws, AnyStepDraws)
        if turn.repeat:
            return self._loss_fake(networks, batch, draws)
        assert isinstance(draws, TwinDraws)
        return self._loss_source(networks, batch, draws)

    # ---- the source form ----

    def _draw_source(self, rng: Rng) -> TwinDraws:
        base = self.deal(rng)
        if not self.config.rectifies:
            return TwinDraws(**vars(base))
        rows = base.rows_of("one_step")
        t_match = rng.uniform("t_match", rows).to(rng.time_dtype)
        return TwinDraws(**vars(base), z_match=rng.normal("z_match", rows), t_match=t_match)

    @property
    def trained(self) -> tuple[str, ...]:
        alone = self.config.one_step_base is False
        return tuple(role for role in super().trained if not (alone and role == "one_step"))

    def generator(self, networks: Networks) -> Velocity:
        if self.config.generate != "average":
            return super().generator(networks)
        assert networks.target is not None
        return networks.target

    def _loss_source(self, networks: Networks, batch: Batch, draws: TwinDraws) -> Terms:
        step = self.base(networks, batch, draws)
        if draws.z_match is None or draws.t_match is None:
            return Terms({"base": step.term}, step.logs)
        rectify, push = self._rectify(networks, step, batch, draws)
        logs = dict(step.logs)
        if len(push):  # a micro-batch may hold no one-step row
            logs |= {"direction": push.square().mean().sqrt(), "rectify": rectify.detach().mean()}
        return Terms({"base": step.term, "rectify": Term(rectify, draws.counts["one_step"])}, logs)

    def _rectify(self, networks: Networks, step: Step, batch: Batch, draws: TwinDraws) -> tuple[Tensor, Tensor]:
        """The rectification's rows, and how the samples of these rows differ from data by the student's two fields."""
        c, rows = self.config, draws.rows_of("one_step")
        v, cond = step.v[rows], take(batch.cond, rows)
        x, _ = split(step.x_t[rows], v.detach(), draws.t[rows])
        if not len(x):
            return self.metric(v, v.detach()), x
        assert draws.z_match is not None and draws.t_match is not None
        fake, real = instant(networks.student, -1), instant(networks.student)
        x_t, v_fake, v_real = matching_fields(fake, real, x, draws.z_match, draws.t_match, cond)
        push = clip(v_fake - v_real, c.match_clamp)
        loss = c.rectify * self.metric(v, v.detach() - push)
        if c.match_weight:  # of the row, not of its target: a robust metric would forget it
            loss = loss * matching_weight(c.match_weight, x, x_t, v_real, draws.t_match).to(loss.dtype)
        return loss, push

    def _loss_fake(self, networks: Networks, batch: Batch, draws: AnyStepDraws) -> Terms:
        """One more update of the twin: the base term of fake rows, with the weight that it has in the whole batch."""
        part, held = fake_rows(batch, draws)
        if not len(held.role):
            return Terms({"fake_again": Term(held.z.flatten(1).sum(1), held.rows)})
        return Terms({"fake_again": self.base(networks, part, held).term})
