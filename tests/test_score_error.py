"""The measurement of scores says 0, or 1, where the truth is handed in, and what is known where it is not."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from gaussian import MEAN, SCALE, mean_velocity
from twinbench.baselines.consistency import Consistency, ConsistencyDraws, neighbour
from twinbench.baselines.flow_matching import FlowDraws, FlowMatching

from twinbench.backbones.toy import MLP, MLPConfig
from twinbench.data.mixture import Gaussians, clouds, draw
from twinbench.flow import Batch
from twinbench.judges.distances import energy_distance
from twinbench.method import Networks, Turn

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("score_error", FOLDER / "score_error.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["score_error"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["score_error"]


def data(n=256):
    return draw(n, 2)[0].double()


def test_the_true_field_has_no_error_and_a_wrong_one_its_own(script):
    world = clouds()
    assert max(script.errors(world.velocity, world, data(), "x")["velocity"]) < 1e-12
    off = script.errors(lambda x, t: world.velocity(x, t) + torch.tensor([0.3, 0.4]), world, data(), "x")
    assert off["velocity"] == pytest.approx([0.5] * 5)
    assert off["score"] == sorted(off["score"], reverse=True)  # (1 - t)/t times that of the velocity


def test_the_true_fields_push_along_the_reverse_kl(script):
    own = Gaussians(draw(500, 5)[0].double() * 1.1)
    x = data(64) * 1.1
    exact = script.agreement(script.Fields(clouds().velocity, own.velocity, "kl"), own, x)
    assert exact["all"] == pytest.approx(1) and exact["bins"] == pytest.approx([1] * 5)
    swapped = script.agreement(script.Fields(own.velocity, clouds().velocity, "kl"), own, x)
    assert swapped["all"] == pytest.approx(-1)
    plain = script.agreement(script.Fields(clouds().velocity, own.velocity, clamp=1.0), own, x)
    assert 0.5 < plain["all"] < 0.999  # the direction is right, its weight over time is not


def test_the_average_velocity_of_the_ode_is_the_closed_one(script):
    x = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0.1, 1, 6, dtype=torch.float64)
    got = script.to_zero(Gaussians(MEAN[None], SCALE), x, t)
    torch.testing.assert_close(got, mean_velocity(x, t, 0 * t), rtol=1e-3, atol=1e-3)


def test_one_distribution_is_at_no_distance_from_itself():
    same = energy_distance(draw(2000, 6)[0].double(), draw(2000, 7)[0].double())
    other = energy_distance(draw(2000, 6)[0].double() + 0.2, draw(2000, 7)[0].double())
    assert abs(same) < 0.005 < 0.05 < other


def learnt(script, method, seed, steps=200, n=128):
    """A network after some steps of a method on the clouds."""
    torch.manual_seed(seed)
    net, generator = MLP(MLPConfig(world="mixture", width=64, depth=2)), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    for step in range(steps):
        batch = Batch(draw(n, 1000 * seed + step + 10)[0], script.empty(n), script.empty(n))
        t, z = torch.rand(n, generator=generator), torch.randn(n, 2, generator=generator)
        if isinstance(method, Consistency):
            draws = ConsistencyDraws(n, t, neighbour(t, method.config.steps, method.config.spacing), z)
        else:
            draws = FlowDraws(n, t, z, torch.zeros(n, dtype=torch.bool))
        optimizer.zero_grad()
        method.loss(Networks(net), batch, draws, Turn()).total().backward()
        optimizer.step(), falling.step()
    return net.requires_grad_(False)


def test_a_network_of_one_time_is_not_a_score_model(script):
    """Of two networks after equal steps on the same clouds, v(x, t, 0) of the consistency network, read as a velocity,
    gives a score at least 4 times as wrong where t > 0.6. It has learnt another quantity, and is nearer to that."""
    world, found = clouds(), {}
    for name, method, end in (("flow", FlowMatching(), 1), ("consistency", Consistency(), 0)):
        net = learnt(script, method, seed=0)

        def field(x, t, net=net, end=end):
            return net(x.float(), t.float(), end * t.float(), script.empty(len(x))).double()

        found[name] = script.errors(field, world, data(), "x")
    flow, consistency = found["flow"]["score"], found["consistency"]["score"]
    assert all(a > 1.2 * b for a, b in zip(consistency, flow)) and max(flow[3:]) < 0.05
    assert all(a > 4 * b for a, b in zip(consistency[3:], flow[3:]))
    for low, high in script.BINS[3:]:  # `net` is now the consistency network
        t = script.times(low, high, 256)
        x = script.noised(data(), t, f"x {low}")
        v = field(x, t)
        assert script.rms(v - script.to_zero(world, x, t)) < 0.7 * script.rms(v - world.velocity(x, t))


def test_a_stopped_measurement_goes_on_to_the_same_rows(script, tmp_path, monkeypatch):
    small = tmp_path / "score_error.yaml"
    text = (
        (FOLDER / "score_error.yaml").read_text().replace("width: 128", "width: 16").replace("size: 8192", "size: 256")
    )
    small.write_text(text.replace("budget: 600000", "budget: 2000").replace("batch: 256", "batch: 16"))
    for name, value in {"RECIPE": small, "EACH": 8, "ATOMS": 32, "LAG": 2, "MARKS": 3}.items():
        monkeypatch.setattr(script, name, value)
    whole = script.measured("twinflow", 0, "none", tmp_path / "whole", tmp_path / "whole.json")

    class Stop(Exception):
        pass

    measure = script.measure

    def stops(label, trainer, before):
        if trainer.progress > 0.5:
            raise Stop
        return measure(label, trainer, before)

    monkeypatch.setattr(script, "measure", stops)
    with pytest.raises(Stop):
        script.measured("twinflow", 0, "none", tmp_path / "cut", tmp_path / "cut.json")
    monkeypatch.setattr(script, "measure", measure)
    assert script.measured("twinflow", 0, "none", tmp_path / "cut", tmp_path / "cut.json") == whole
    assert len(whole) == 4 and whole[0]["step"] == 0 and whole[-1]["progress"] == 1
    assert "lagged" not in whole[0] and whole[1]["lagged"] != whole[1]["fake"]
