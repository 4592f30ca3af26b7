"""Every method learns a mixture of eight clouds in the plane from one flow: its one-step samples come within an energy
distance of 0.03 of the truth, from which those of the flow itself are 0.4 and more away."""

import pytest
import torch

from twinbench import plugins
from twinbench.backbones.toy import MLP, MLPConfig
from twinbench.data.mixture import Mixture, MixtureConfig, draw
from twinbench.judges.distances import energy_distance
from twinbench.randomness import request_noise
from twinbench.recipe import Train
from twinbench.training.loop import Trainer

NEAR, FAR = 0.03, 0.4
UNTRAINED = {"pretrained"}
COMMON = dict(budget=150, unit="steps", batch=64, lr=1e-3, decay=0.5, ema=0.98, save_every=10**6)
SOON = dict(warmup=50, times=(0.2, 1.6))  # of sCM; the times are SANA-Sprint's
CASES = {  # a method, its settings, what its training has of its own; a method without a case runs with its defaults
    "kd": ("kd", dict(pairs=2048, steps=8), dict(budget=200)),
    "progressive": ("progressive", dict(steps=4), dict(lr=2e-3, budget=300)),
    "meanflow": ("meanflow", dict(drop=0, instant=0.5), dict(budget=300)),
    "shortcut": ("shortcut", dict(bootstrap=0.5, steps=16, drop=0), {}),
    "ct": ("consistency", {}, {}),
    "cd": ("consistency", dict(form="distillation"), dict(budget=250)),
    "sct": ("scm", SOON, dict(lr=5e-4)),
    "scd": ("scm", dict(form="distillation", **SOON), dict(lr=5e-4)),
    "dmd": ("dmd", dict(critic_steps=2), {}),
    "dmd-self": ("dmd", dict(real="self", critic_steps=2), {}),
    "dmd2": ("dmd2", dict(critic_steps=2), dict(budget=120)),
    # without a second time scale the twin lags, and momentum makes the two circle round each other
    "dmd-shared": ("dmd", dict(fake="shared"), dict(lr=5e-4, betas=(0.0, 0.95))),
    "sid-shared": ("sid", dict(fake="shared"), dict(lr=5e-4, betas=(0.0, 0.95))),
    "sid": ("sid", dict(critic_steps=3), {}),
    "sana-sprint": ("sana-sprint", dict(warmup=50), dict(budget=120, lr=5e-4)),
}
CASES |= {name: (name, {}, {}) for name in {*plugins.names("methods")} - {case[0] for case in CASES.values()}}
ONE_STEP = sorted({*CASES} - UNTRAINED - {"flow-matching"})


@torch.no_grad()
def distance(net, n=3000):
    """Of n samples of one evaluation each from n fresh ones of the mixture."""
    z, one = request_noise((n, 2), "test", "mixture", 0), torch.ones(n)
    return energy_distance(z - net(z, one, 0 * one, net.null(n)), draw(n, 2)[0])


def network():
    torch.manual_seed(0)
    return MLP(MLPConfig(world="mixture", width=64, depth=2))


def trained(folder, case, weights=None):
    """The network that a method leaves, from the flow's weights or from random ones."""
    name, settings, own = case
    net, kind = network(), plugins.method(name)
    if weights:
        net.load_state_dict(weights)
    world = Mixture(MixtureConfig(conditional=False))
    trainer = Trainer(folder, kind(kind.Config(**settings)), net, world, Train(**{**COMMON, **own}), 0)
    for _ in trainer:
        pass
    return trainer.evaluated


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    """The weights of a velocity, trained for some seconds."""
    case = ("flow-matching", {}, dict(budget=600, lr=2e-3))
    return trained(tmp_path_factory.mktemp("flow"), case).state_dict()


def test_the_flow_is_far_away_in_one_step_and_more_training_does_not_help(flow, tmp_path):
    net = network()
    net.load_state_dict(flow)
    assert distance(net) > FAR
    assert distance(trained(tmp_path, CASES["flow-matching"], flow)) > FAR


def test_other_samples_of_the_mixture_are_nearer_than_is_asked():
    (one, cloud), (other, _) = draw(3000, 2), draw(3000, 5)
    assert abs(energy_distance(one, other)) < NEAR / 10
    assert energy_distance(one, other[::2]) < NEAR / 10
    assert energy_distance(one, one[cloud > 1]) > NEAR


@pytest.mark.parametrize("label", ONE_STEP)
def test_a_one_step_student_learns_the_mixture(label, flow, tmp_path):
    assert distance(trained(tmp_path, CASES[label], flow)) < NEAR
