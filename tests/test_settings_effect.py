"""Every setting of a method does something where it is accepted, and is refused in a sentence where it would not."""

import pytest
import torch
import yaml
from pydantic import ValidationError
from test_baseline_parity_matching import Line
from tiny import Tiny, load

from twinbench import plugins
from twinbench.errors import UserError
from twinbench.flow import Batch
from twinbench.method import Networks, Turn
from twinbench.randomness import Rng
from twinbench.sections import Sample
from twinbench.settings import validate

CASE, N = load("fastgen_dmd")["vsd"], 16
BASES = yaml.safe_load("""  # the branches of each method, as settings that open them
flow-matching: [{}]
rcgm:
  - {}
  - {order: 0}
  - {order: 1}
  - {order: 1, derivative: jvp}
  - {shares: {one_step: 0, local: 1, any_step: 0}}
  - {cfg_scale: 2, clamp: null}
  - {image_free: true, target: pretrained, guide_at_one: false}
  - {metric: huber}
  - {metric: l2}
twinflow:
  - {}
  - {order: 0}
  - {cfg_scale: 2, target: self}
  - {rectify: 0}
  - {match_clamp: null}
  - {any_step_width: 0.5}
  - {shares: {fake: 0}}
  - {one_step_base: false}
  - {one_step_base: false, shares: {one_step: 1, local: 0, any_step: 0, fake: 1}}
  - {form: tutorial}
  - {form: paper}
  - {form: paper, twin_share: 1}
dmd: [{}, {fake: shared}, {fake: lora}, {real: self}, {real: average, flow: 0}, {normalise: none}]
dmd2: [{}, {fake: shared}, {gan: 0}, {r1: 1}]
sid: [{}, {fake: shared}, {real: average}]
meanflow: [{}, {cfg_scale: 2}, {instant: 1}, {power: 0}, {derivative: difference}, {warmup: 4}]
shortcut: [{steps: 4, bootstrap: 0.5}, {cfg_scale: 2}]
consistency:
  - {}
  - {form: distillation}
  - {squared: true}
  - {huber: 0.1}
  - {weighting: snr}
  - {weighting: root_snr}
  - {log_level: [-0.5, 1.0]}
scm: [{}, {form: distillation}, {derivative: difference}]
sana-sprint: [{}, {scm: 0}, {gan: 0}, {derivative: difference}]
progressive: [{}, {steps: 1}]
kd: [{}, {metric: huber}]
pretrained: [{}]
""")
OTHER = {  # other values than any default
    **dict(order=3, h=0.03, hop_times="random", derivative="difference", clamp=0.1, cfg_scale=3.0, image_free=True),
    **dict(guidance_interval=(0.3, 0.6), guide_at_one=True, target="self", local_width=0.5, any_step_width=0.02),
    **dict(exact_local=1.0, weighting="none", metric="l2", barron_alpha=0.5, barron_c=0.1, huber_c=0.3, rectify=0.3),
    **dict(form="paper", match_clamp=0.01, match_weight="kl", one_step_base=False, generate="average", fake_steps=2),
    **dict(twin_share=0.5, drop=0.6, real="self", fake="shared", lora={"rank": 3}, critic_steps=3, critic_rate=2.0),
    **dict(flow=0.3, normalise="none", floor=0.3, t_range=(0.2, 0.7), gan=0.7, head_rate=2.0, r1=0.7, r1_noise=0.2),
    **dict(taps=(1,), alpha=0.5, tmax=0.5, sigma_range=(0.1, 10.0), rho=3.0, sigma_data=0.7, p_mean=-1.0, p_std=0.5),
    **dict(instant=0.25, kappa=0.5, power=0.5, const=0.3, warmup=20, step=0.02, bootstrap=0.5, clip=0.3, steps=32),
    **dict(doublings=1, spacing="edm", squared=True, huber=0.3, scm=0.7, head_times=(0.0, 0.5), largest=0.1, pairs=9),
    **dict(shares={"local": 3}, anneal="phase", huber_of="element"),
}
OWN = {  # where the value above is the method's default or none of its choices
    "flow-matching": dict(times=(2.0, 1.0), metric="barron", weighting="tan"),
    **{name: dict(times=(2.0, 1.0, 0.9)) for name in ("rcgm", "twinflow")},
    **{name: dict(times=(1.0, 0.5)) for name in ("dmd", "dmd2")},
    "meanflow": dict(times=(0.0, 0.5), derivative="difference", normalise="gradient"),
    "consistency": dict(times=(2.0, 1.0), target="average", form="distillation", log_level=(-1.1, 2.0)),
    **{name: dict(times=(0.0, 0.5)) for name in ("scm", "sana-sprint")},
    "scm": dict(times=(0.0, 0.5), weighting="prior", form="distillation"),
    "progressive": dict(weighting="truncated"),
    "kd": dict(metric="huber"),
}
# Accepted without a critic, without data rows: recipes have blocks that are `like` one with them.
SILENT = {"dmd": "critic_steps", "sid": "critic_steps", "twinflow": "cfg_scale"}


def said(method, progress):
    """All that a method says: what it asks of the trainer, and of each turn the loss and its gradient."""
    turns = method.turns(0)
    asked = [method.needs, method.taps, method.pairs, turns, method.course(progress)]
    asked += [method.critic, method.critic == "lora" and method.critic_lora]
    generator = torch.Generator().manual_seed(5)
    x, z = torch.randn(2, N, 3, dtype=torch.float64, generator=generator)
    c, e = torch.randn(2, N, 2, dtype=torch.float64, generator=generator)
    batch = Batch(x, {"c": c}, {"c": e}, z if method.pairs else None)
    nets = {
        name: Tiny(CASE[which]) for name, which in {"student": "P", "target": "P_teacher", "critic": "P_fake"}.items()
    }
    nets |= {"teacher": Tiny(CASE["P_teacher"]), "head": Line()}
    for name in sorted({*turns}):
        for other, net in nets.items():
            net.requires_grad_(other == name)
        turn = Turn(name, 10, progress)
        draws = method.draw(batch, Rng(0, 10, name, range(N), N, (3,), torch.float64), turn)
        loss = method.loss(Networks(**nets), batch, draws, turn).total()
        gradient = torch.autograd.grad(loss, list(nets[name].parameters()), allow_unused=True, materialize_grads=True)
        asked += [method.rate(name), loss.item(), *(value.tolist() for value in gradient)]
    return asked


@pytest.mark.parametrize("name", plugins.names("methods"))
def test_a_setting_has_an_effect_or_is_refused(name):
    kind, tried, values = plugins.method(name), set(), {**OTHER, **OWN.get(name, {})}
    moments = (0.0, 0.55)
    for base in BASES[name]:
        plain = {moment: said(kind(kind.Config(**base)), moment) for moment in moments}
        tried |= base.keys()
        for field in kind.Config.model_fields.keys() - base.keys():
            tried.add(field)
            try:
                config = kind.Config(**base, **{field: values[field]})
            except ValidationError as error:
                assert len(error.errors()) == 1
                continue
            assert config != kind.Config(**base), field
            same = all(said(kind(config), moment) == plain[moment] for moment in moments)
            assert not same or SILENT.get(name) == field, (base, field)
    assert tried == kind.Config.model_fields.keys()


@pytest.mark.parametrize(
    "name, settings, words",
    [
        ("meanflow", {"kappa": 0.5}, "kappa has no effect without guidance (cfg_scale above 1)"),
        ("kd", {"huber": 0.1}, "huber has no effect without metric: huber"),
        ("dmd", {"normalise": "none", "floor": 0.1}, "floor has no effect without normalise: dmd"),
        ("sid", {"fake": "shared", "critic_rate": 2.0}, "critic_rate has no effect without a critic"),
        ("dmd2", {"lora": {"rank": 4}}, "lora has no effect without fake: lora"),
        (
            "consistency",
            {"log_level": [-1.1, 2.0], "times": [2.0, 1.0]},
            "times has no effect without Beta times (log_level: null)",
        ),
        ("rcgm", {"cfg_scale": 0.8}, "cfg_scale must be at least 1, got 0.8; below it needs image_free: true"),
        ("rcgm", {"h": 0.02, "order": 1, "derivative": "jvp"}, "h has no effect without a finite step"),
    ],
)
def test_the_sentence_names_the_setting_and_what_it_needs(name, settings, words):
    with pytest.raises(UserError) as error:
        validate(plugins.method(name).Config, settings, "method")
    assert str(error.value).startswith(f"method: {words}") and "\n" not in str(error.value)


def test_times_of_a_schedule_leave_nothing_to_a_gap_or_a_curve():
    with pytest.raises(UserError, match="gap has no effect without steps"):
        validate(Sample, {"times": [0.9], "gap": [0.1, 0.0]}, "sample.1")
