"""DMD: distribution matching distillation (Yin et al., arXiv 2311.18828; DMD2, 2405.14867; VSD, 2305.16213).

Samples x_g of the student move down the reverse KL to the distribution of real data. Its gradient is the difference of
two scores at noised samples x_t = (1 - t) x_g + t eps; here of two estimates of the clean one, x0 = x_t - t v(x_t,t,t):

    student   1/2 mean |x_g - sg(x_g - g)|^2,   g = (x0_fake - x0_real) / (mean_D |x_g - x0_real| + floor)
    critic    mean |v_fake(x_t, t, t) - (eps - sg(x_g))|^2,   flow matching of the student's own samples

By default real is the frozen teacher with guidance, fake a network of its own; `matching` has the other choices.
`normalise: none` leaves g undivided (VSD). DMD2's two time scales are `critic_steps` turns of the critic to one of the
student; its few-step form (backward simulation) is `times`, the falling times of the student's sampler: each row starts
from where that sampler, without gradient, has carried it by a random one of them. DMD2's GAN term is in `dmd2`.

`fake: shared` has no critic and a single time scale: both losses are one student turn, and with momentum student and
twin circle round each other, so give it `train: {betas: [0.0, 0.95]}`.

Turns draw numbers of their own, so the critic sees fresh samples in each; DMD2 shares those of the student's turn with
one of the critic's. The prompts are the batch's in all turns of a step.
"""

from __future__ import annotations

from typing import ClassVar

from twinbench.flow import Batch, Hop
from twinbench.method import Draws, Networks, Terms, Turn
from twinbench.methods.matching import MatchDraws, ReverseKL


class DMD(ReverseKL):
    hop: ClassVar[Hop] = "end"

    def loss(self, networks: Networks, batch: Batch, draws: Draws, turn: Turn) -> Terms:
        assert isinstance(draws, MatchDraws)
        if turn.name == "critic":
            return self.fit(networks, batch, draws)
        return self.match(networks, batch, draws, self.samples(networks, batch, draws))
