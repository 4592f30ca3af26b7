"""DMD and SiD in training, whoever the real and the fake field are: repeated turns, and what is counted."""

import pytest
import torch
from small import resolved
from twinbench.baselines.dmd import DMD

from twinbench.training.start import start

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


# Of one row: a forward is 1, a backward through parameters 2, through inputs alone 1.
CRITIC_TURN = 1 + 3  # the student makes the sample; the critic learns
PASSES = {
    # three turns of the critic; the student makes the sample and learns, the critic and the guided teacher look at it
    "dmd": (["critic_steps=3", "cfg_scale=2.0"], 3 * CRITIC_TURN + 3 + 1 + 2),
    # the twin's call is trained too
    "dmd-shared": (["fake=shared"], 3 + 3 + 1),
    # the student is held to the data, and it is the guided real field
    "dmd-self": (["critic_steps=1", "cfg_scale=2.0", "real=self"], CRITIC_TURN + 3 + 3 + 1 + 2),
    "dmd-average-shared": (["fake=shared", "real=average", "flow=0"], 3 + 3 + 1),
    # as dmd, and the gradient goes back through the critic's call and the teacher's two
    "sid": (["critic_steps=2", "cfg_scale=2.0"], 2 * CRITIC_TURN + 3 + (1 + 1) + 2 * (1 + 1)),
    # the twin is fitted in one call, and the gradient goes back to the samples through another, and through the teacher
    "sid-shared": (["fake=shared"], 3 + 3 + (1 + 1) + (1 + 1)),
    "sid-self-shared": (["fake=shared", "real=self"], 3 + 3 + 3 + (1 + 1) + (1 + 1)),
}


@pytest.mark.parametrize("name", PASSES)
def test_network_passes_are_counted(tmp_path, name):
    settings, each = PASSES[name]
    label = name.split("-")[0]
    sets = [f"methods.{label}.{item}" for item in settings]
    _, trainer = start(resolved("moons", label, "train.budget=3", *TINY, *sets), tmp_path)
    assert [row["passes"] for row in trainer] == [16 * each, 2 * 16 * each, 3 * 16 * each]
