"""The official code's numbers, to 1e-10 in float64: components, averages, whole training steps and their gradients.
Steps that were not recorded are worked out here row by row, by a second writing of the equations."""

import json
import math
from fractions import Fraction

import pytest
import torch
from tiny import Tiny, load, tensor
from twinbench.baselines.rcgm import RCGM

from twinbench.flow import Batch, instant, split
from twinbench.method import Networks, Turn
from twinbench.methods.anystep import RECURSIVE, ROLES, AnyStepDraws, Shares
from twinbench.methods.twinflow import TwinDraws, TwinFlow
from twinbench.methods.twinflow_paper import PaperDraws
from twinbench.objectives.losses import barron, l2
from twinbench.objectives.targets import matching_direction, recursive
from twinbench.objectives.times import split_roles, tan_weight
from twinbench.training.ema import Average, next_decay

OURS = {"e2e": "one_step", "mul": "local", "any": "any_step", "adv": "fake", "one": "to_zero"}
COMPONENTS = load("twinflow_components")


def close(got, want, tolerance=1e-10):
    torch.testing.assert_close(torch.as_tensor(got), tensor(want), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", COMPONENTS["losses"]["barron"], ids=lambda c: f"alpha{c['alpha']}-c{c['c']}")
def test_barron(case):
    pred = tensor(COMPONENTS["losses"]["pred"]).requires_grad_()
    loss = barron(pred, tensor(COMPONENTS["losses"]["target"]), case["alpha"], case["c"])
    close(loss, case["loss"])
    loss.sum().backward()
    close(pred.grad, case["grad_of_sum"])


def test_barron_pulls_every_row_with_the_same_strength():
    errors = torch.logspace(-1, 2, 4)[:, None] * torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    (grad,) = torch.autograd.grad(barron(errors.requires_grad_(), torch.zeros(4, 7)).sum(), errors)
    close(grad.norm(dim=1).double(), [2 / 7**0.5] * 4, 1e-2)


def test_l2():
    pred = tensor(COMPONENTS["losses"]["pred"]).requires_grad_()
    loss = l2(pred, tensor(COMPONENTS["losses"]["target"]))
    close(loss, COMPONENTS["losses"]["l2"]["loss"])
    loss.sum().backward()
    close(pred.grad, COMPONENTS["losses"]["l2"]["grad_of_sum"])


def test_tan_weight():
    case = COMPONENTS["tan_weighting"]
    close(tan_weight(tensor(case["t"]), tensor(case["r"])), case["w"])


def test_split():
    case = COMPONENTS["denoise"]
    x, t, r = tensor(case["x"]), tensor(case["t"]), tensor(case["r"])
    with torch.no_grad():
        v = Tiny(case["P"])(x, t, r, {"c": tensor(case["c"])})
    data, noise = split(x, v, t)
    close(v, case["F"]), close(data, case["x_hat"]), close(noise, case["z_hat"])


@pytest.mark.parametrize("case", COMPONENTS["enhance_target"]["cases"], ids=lambda c: f"range{c['range']}")
def test_guided_target(case):
    """Data at 0, and noise that is the recorded target: where the student says 0, the square error's gradient says what
    is asked of it. Local and fake rows alone, so that nothing but guidance moves their targets."""
    shared, fake = COMPONENTS["enhance_target"], torch.tensor(case["adv"])
    t, target, conditional, free = (tensor(shared[k]) for k in ("t", "target", "pred_cond", "pred_uncond"))
    n, zero = len(t), torch.zeros_like(target)
    shares = dict(one_step=0, local=1, any_step=0, fake=1)
    settings = dict(order=0, rectify=0, shares=shares, metric="l2", weighting="none", target="average")
    settings |= dict(cfg_scale=1 / (1 - case["ratio"]), guidance_interval=case["range"])
    role = torch.where(fake, ROLES.index("fake"), ROLES.index("local"))
    counts = {name: int((role == i).sum()) for i, name in enumerate(ROLES)}
    draws = TwinDraws(n, role, counts, t, t, target, z_fake=zero[fake])
    index = torch.arange(n)
    batch = Batch(zero, {"row": index, "free": index < 0}, {"row": index, "free": index >= 0})
    said = zero.clone().requires_grad_()

    def average(x, t, r, cond):
        return torch.where(cond["free"][:, None], free[cond["row"]], conditional[cond["row"]])

    def student(x, t, r, cond):
        return said[cond["row"]]

    terms = TwinFlow(TwinFlow.Config(**settings)).loss(Networks(student, target=average), batch, draws, Turn())
    (grad,) = torch.autograd.grad(terms.total(), said)
    close(-grad * target.numel() / 2, case["out"])


@pytest.mark.parametrize("case", COMPONENTS["rcgm"]["cases"], ids=lambda c: f"N{c['N']}")
def test_recursive_target(case):
    shared = COMPONENTS["rcgm"]
    x, t, r, c = (tensor(shared[k]) for k in "xtrc")
    net = Tiny(shared["P_teacher"])
    target = recursive(net, tensor(case["F_theta"]), tensor(case["v"]), x, t, r, {"c": c}, order=case["N"])
    close(target, case["target"])


def test_recursive_target_where_the_official_one_is_nan():
    shared = COMPONENTS["rcgm"]
    x, c = tensor(shared["x"])[:1], {"c": tensor(shared["c"])[:1]}
    t = tensor([0.4])
    close(recursive(Tiny(shared["P_teacher"]), x, 0.5 * x, x, t, t, c, order=2, clamp=None), (0.5 * x).tolist())


@pytest.mark.parametrize("case", COMPONENTS["rcgm"]["cases"][:3], ids=lambda c: f"N{c['N']}")
def test_recursive_target_in_half_precision(case):
    """Of a network that speaks bfloat16 it is the float64 target but for that rounding, which the first step divides by
    h; times stay float32."""
    shared = COMPONENTS["rcgm"]
    net, c = Tiny(shared["P_teacher"]).requires_grad_(False), {"c": tensor(shared["c"])}
    half = [tensor(value).bfloat16() for value in (case["F_theta"], case["v"], shared["x"])]
    times = [tensor(shared[name]).float() for name in "tr"]
    exact = [value.double() for value in (*half, *times)]

    def speaks_half(x, t, r, cond):
        assert t.dtype == r.dtype == torch.float32
        return net(x.double(), t.double(), r.double(), cond).bfloat16()

    for h in (0.5, 0.125, 0.01):
        for clamp in (1.0, None):
            settings = dict(order=case["N"], h=h, clamp=clamp)
            got, want = recursive(speaks_half, *half, *times, c, **settings), recursive(net, *exact, c, **settings)
            assert got.dtype == torch.bfloat16 and torch.isfinite(got).all()
            assert (got.double() - want).abs().max() < 2**-6 / (1 if clamp else h)


@pytest.mark.parametrize("case", COMPONENTS["dist_match"]["cases"], ids=lambda c: c["name"])
def test_matching_direction(case):
    shared = COMPONENTS["dist_match"]
    x, z, t, c = (tensor(shared[k]) for k in "xztc")
    net = Tiny(case["P"])
    close(matching_direction(instant(net, -1), instant(net), x, z, t, {"c": c}), case["F_grad"])
    push = matching_direction(instant(net, -1), instant(net), x, z, t, {"c": c}, clamp=None)
    close((-t[:, None] * push).clamp(-1, 1), case["x_grad"])


def test_roles_are_dealt_by_the_largest_remainder():
    one = dict.fromkeys(("one_step", "local", "any_step", "fake"), 1.0)
    assert split_roles(one, 6) == {"one_step": 2, "local": 2, "any_step": 1, "fake": 1}  # official: 2, 2, 2, 0
    assert split_roles({**one, "fake": 0}, 16)["fake"] == 0  # official: 1


def official_rounding(shares, n):
    """Each part but the last as Python rounds it, the last what is left."""
    left, rows = n, []
    for share in shares[:-1]:
        rows.append(min(left, round(n * share / sum(shares))))
        left -= rows[-1]
    return [*rows, left]


@pytest.mark.parametrize("parts, table", COMPONENTS["partition_official_rounding"].items())
def test_official_rounding_is_off_by_whole_rows_and_ours_is_not(parts, table):
    """What is left goes to the last role: of four quarters none is fake at B = 6, and without a share some are."""
    shares, wrong, other = json.loads(parts), [], []
    for n, *rows in table["rows"]:
        ours = list(split_roles(shares, n).values())
        exact = [Fraction(n * share, sum(shares.values())) for share in shares.values()]
        off, own = ([abs(k - e) for k, e in zip(counts, exact, strict=True)] for counts in (rows, ours))
        assert rows == official_rounding([*shares.values()], n)
        assert max(own) < 1 and sum(own) <= sum(off)
        wrong += [n] if max(off) >= 1 else []
        other += [n] if ours != rows else []
    equal, none = tuple(shares.values()) == (1, 1, 1, 1), shares["adv"] == 0
    assert wrong == list(range(6, 33, 4) if equal else range(4, 33, 3) if none else ())
    if none:
        assert other == wrong == [n for n, *_, fake in table["rows"] if fake]
    if equal:  # elsewhere one odd row: theirs is the last role's, ours the first's
        assert other == sorted([*wrong, *range(5, 33, 4)])
        assert (table["rows"][2], split_roles(shares, 6)["adv"]) == ([6, 2, 2, 2, 0], 1)


def test_average_follows_the_official_rule():
    for run in load("twinflow_ema")["runs"]:
        start = {name: tensor(value) for name, value in run["P0"].items()}
        student, average = Tiny(run["P0"]), Average(Tiny(run["ema0"]), run["beta_max"])
        for k, (decay, b1) in enumerate(zip(run["decays"], run["ema_b1"], strict=True)):
            for i, name in enumerate(("A", "b1", "b2", "b3", "W", "Bm", "d1", "d2")):
                getattr(student, name).data = start[name] + 0.1 * torch.sin(tensor(0.7 * k + i))
            assert average.decay == pytest.approx(decay, abs=1e-12)
            average.update(student)
            close(average.network.b1, b1)
        for name, value in run["ema_final"].items():
            close(getattr(average.network, name), value)


def test_decay_rises_to_its_limit():
    decay = 0.0
    for _ in range(2000):
        decay = next_decay(decay, 0.99)
    assert decay == pytest.approx(0.99, abs=1e-4)


def official(case):
    """A recorded training step as our method, draws, batch and networks."""
    cfg, roles = case["cfg"], {OURS[k]: v for k, v in case["probs"].items()}
    shares = Shares(**{**dict.fromkeys(ROLES, 0.0), **roles})
    emd, w, free = cfg["ema_decay_rate"], cfg["enhanced_ratio"], cfg["use_image_free"]
    mode = "self" if emd == 0 else "pretrained" if emd == 1 else "average"
    scale = w if free else 1 + w if mode == "pretrained" else 1 / (1 - w)
    loss = cfg["loss_func_type"]
    settings = dict(
        order=cfg["estimate_order"],
        cfg_scale=scale,
        guidance_interval=cfg["enhanced_range"],
        guide_at_one=False if free else None,
        target=mode,
        image_free=free,
        shares=shares.model_dump(),
        any_step_width=cfg["consistc_ratio"],
        times=cfg["time_dist_ctrl"],
        metric="l2" if loss["type"] == "l2" else "barron",
        barron_alpha=loss.get("alpha", 1.0),
    )
    if not any(roles.get(role) for role in RECURSIVE) and settings["order"]:
        del settings["order"]  # of no effect
    draws, expected = case["draws"], case["expected"]
    counts = {role: case["counts"].get(k, 0) for k, role in OURS.items()}
    role = torch.cat([torch.full((case["counts"][k],), ROLES.index(OURS[k])) for k in case["probs"]])
    common = dict(
        rows=case["B"],
        role=role,
        counts=counts,
        t=tensor(expected["t"]).abs(),
        r=tensor(expected["r"]).abs(),
        z=tensor(draws["z"]),
        z_free=tensor(draws["z_datafree"]) if "z_datafree" in draws else None,
        z_fake=tensor(draws["z_gen"]) if "z_gen" in draws else None,
    )
    if "z_dm" in draws or counts["fake"]:
        rectify = cfg["dist_match_cof"] if "z_dm" in draws else 0
        matched = {ours: tensor(draws[k]) for ours, k in (("z_match", "z_dm"), ("t_match", "t_dm")) if k in draws}
        method, drawn = TwinFlow(TwinFlow.Config(**settings, rectify=rectify)), TwinDraws(**common, **matched)
    else:
        method, drawn = RCGM(RCGM.Config(**settings)), AnyStepDraws(**common)
    batch = Batch(tensor(case["x"]), {"c": tensor(case["c"])}, {"c": tensor(case["e"])})
    student, average = Tiny(case["P"]), Average(Tiny(case["E"]), emd)
    average.decay = case["cmd_before"]
    if mode == "average":
        average.update(student)
    networks = Networks(student, target=average.network, teacher=average.network)
    return method, drawn, batch, student, average, networks


def by_hand(case):
    """What is recorded of a training step, from the equations, one row after the other."""
    cfg, given = case["cfg"], {name: tensor(value) for name, value in case["draws"].items()}
    cor, w, order, h = cfg["consistc_ratio"], cfg["enhanced_ratio"], cfg["estimate_order"], 0.01
    emd, free, metric = cfg["ema_decay_rate"], cfg["use_image_free"], cfg["loss_func_type"]
    roles = [name for name in case["probs"] for _ in range(case["counts"][name])]
    student, teacher, decay = Tiny(case["P"]), Tiny(case["E"]), case["cmd_before"]
    if 0 < emd < 1:
        for own, other in zip(teacher.parameters(), student.parameters(), strict=True):
            own.data = decay * own.data + (1 - decay) * other.data
    teacher = student if emd == 0 else teacher
    one, zero = tensor(1.0), tensor(0.0)

    def net(which, x, t, r, c):
        return which(x[None], t[None], r[None], {"c": c[None]})[0]

    def distance(pred, target):
        m, k = (pred - target).square().mean(), abs(metric.get("alpha", 1.0) - 2)
        if metric["type"] == "l2":
            return m
        return m * (1 if k < 1e-5 else (m.detach() / (1e-6 + 1e-8) / k + 1) ** (-k / 2)) / 1e-3

    @torch.no_grad()
    def target(v, x_t, y, t, r, c, e):
        (lo, hi), hops = cfg["enhanced_range"], student if emd == 1 else teacher
        if lo < t < hi:
            told, untold = net(teacher, x_t, t, t, c), net(teacher, x_t, t, t, e)
            y = (untold if free and emd == 1 else y) + w * (told - untold)
        if not order or not cor or not {"e2e", "any", "one"} & {*roles}:
            return y
        x, moved, start = x_t - h * y, 0.0, max(t - h, r)
        for i in range(order if t - r >= h else 0):
            s, s_next = (start + (r - start) * k / order for k in (i, i + 1))
            hop = (s - s_next) * net(hops, x, s, s_next, c)
            x, moved = x - hop, moved + hop
        return v - (((t - r) * v - moved) / h - y if t - r >= h else v - y).clamp(-1, 1)

    times, base, pulls, fakes = [], [], [], 0
    for i, role in enumerate(roles):
        x, z, c, e = (tensor(values[i]) for values in (case["x"], case["draws"]["z"], case["c"], case["e"]))
        t = given["t_base"][i].clamp(0, 1) * cfg["time_dist_ctrl"][2]
        widths = {"mul": ("u_near", min(0.05, cor)), "any": ("u_r", cor)}
        r = t - given[widths[role][0]][i] * widths[role][1] * t if role in widths else t if role == "adv" else zero
        t = one if role == "e2e" else t
        source = given["z_gen"][fakes] if role == "adv" else given["z_datafree"][i] if free else None
        if source is not None:
            x = (source - net(student, source, one, zero, c)).detach()
        x_t, y = (1 - t) * x + t * z, z - x
        if role == "adv":
            t, r, fakes = -t, -r, fakes + 1
        times.append((t, r))
        v = net(student, x_t, t, r, c)
        y = y if role == "adv" else target(v, x_t, y, t, r, c, e)
        if order or role in ("mul", "adv"):
            base.append((1 if role == "adv" else math.tan((1 - (t - r)) * math.pi / 2.5) + 1) * distance(v, y))
        if role == "e2e" and cor == 1:
            s, noise = (given[name][len(pulls)] for name in ("t_dm", "z_dm"))
            with torch.no_grad():
                x_s = (1 - s) * (z - v) + s * noise
                push = (net(student, x_s, -s, -s, c) - net(student, x_s, s, s, c)).clamp(-1, 1)
            pulls.append(cfg["dist_match_cof"] * distance(v, (v - push).detach()))
    loss = sum(base) / len(base) + (sum(pulls) / len(pulls) if pulls else 0)
    loss.backward()
    return {
        "t": [t.item() for t, _ in times],
        "r": [r.item() for _, r in times],
        "loss": loss.item(),
        "grads": {name: p.grad.tolist() for name, p in student.named_parameters()},
        "ema_after": {name: p.tolist() for name, p in teacher.named_parameters()},
        "cmd_after": decay + 0.5 * (1 - decay) * (emd - decay),
    }


STEPS = load("twinflow_train_full")["cases"] + load("twinflow_train_ablations")["cases"]


@pytest.mark.parametrize("case", STEPS, ids=lambda c: c["name"])
def test_the_second_writing_gives_the_recorded_numbers(case):
    step = by_hand(case)
    for name in ("t", "r", "loss"):
        close(tensor(step[name]), case["expected"][name])
    for name, value in case["expected"]["grads"].items():
        close(tensor(step["grads"][name]), value)


def unrecorded(name, probs=None, cfg=None, **noise):
    """The first recorded step with other settings, and with fresh noise [n, 3] under some names."""
    step, generator = STEPS[0], torch.Generator().manual_seed(11)
    fresh = {k: torch.randn(n, 3, dtype=torch.float64, generator=generator).tolist() for k, n in noise.items()}
    case = {**step, "name": name, "cfg": {**step["cfg"], **(cfg or {})}, "draws": {**step["draws"], **fresh}}
    if probs:
        case |= {"probs": probs, "counts": {k: step["B"] * share for k, share in probs.items()}}
        del case["draws"]["z_dm"], case["draws"]["t_dm"]
    return {**case, "expected": by_hand(case)}


UNRECORDED = [
    unrecorded("image_free-w0.8", cfg=dict(use_image_free=True, enhanced_ratio=0.8, ema_decay_rate=1.0), z_datafree=8),
    unrecorded("image_free-w4", cfg=dict(use_image_free=True, enhanced_ratio=4.0, ema_decay_rate=1.0), z_datafree=8),
    unrecorded("adv_only", probs=dict(e2e=0, mul=0, any=0, adv=1), z_gen=8),
]


@pytest.mark.parametrize("case", STEPS + UNRECORDED, ids=lambda c: c["name"])
def test_training_step_and_its_gradients(case):
    method, draws, batch, student, average, networks = official(case)
    before = batch.x.clone()
    terms = method.loss(networks, batch, draws, Turn())
    loss = terms.total()
    close(loss.detach(), case["expected"]["loss"])
    loss.backward()
    for name, value in case["expected"]["grads"].items():
        grad = getattr(student, name).grad
        close(torch.zeros_like(tensor(value)) if grad is None else grad, value)
    if method.config.target == "average":
        for name, value in case["expected"]["ema_after"].items():
            close(getattr(average.network, name), value)
        assert average.decay == pytest.approx(case["expected"]["cmd_after"], abs=1e-12)
    assert torch.equal(batch.x, before), "the official code overwrites its batch; ours must not"


@pytest.mark.parametrize("case", load("twinflow_tutorial")["cases"], ids=lambda c: c["name"])
def test_tutorial_form_and_its_gradients(case):
    cfg, d = case["cfg"], case["draws"]
    scale = 1 / (1 - cfg["enhanced_ratio"])
    method = TwinFlow(TwinFlow.Config(form="tutorial", order=cfg["estimate_order"], cfg_scale=scale))
    student, average = Tiny(case["P"]), Average(Tiny(case["E"]), cfg["ema_decay_rate"])
    average.decay = case["cmd_before"]
    average.update(student)
    t = tensor(d["t"])
    draws = PaperDraws(len(t), t, t - t * tensor(d["u_r"]), tensor(d["z"]), tensor(d["z_dm"]), tensor(d["t_dm"]))
    batch = Batch(tensor(case["x"]), {"c": tensor(case["c"])}, {"c": tensor(case["e"])})
    terms = method.loss(Networks(student, target=average.network), batch, draws, Turn())
    names = dict(any_step="base_rcgm", real="real_velocity", fake="fake_velocity_adv", one_step="one_step_rcgm")
    for ours, theirs in {**names, "rectify": "rectify"}.items():
        close(terms.losses[ours].value().detach(), case["expected"]["terms"][theirs]["mse"])
    loss = terms.total()
    close(loss.detach(), case["expected"]["loss"])
    loss.backward()
    for name, value in case["expected"]["grads"].items():
        close(getattr(student, name).grad, value)
