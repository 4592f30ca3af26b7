"""Are the networks that match distributions score models? Errors of their real and fake fields, as they train.

python benchmarks/score_error.py [--seeds 1] [--runs runs] [--results results] [--figure docs/score-error.png]

On a mixture whose velocity is known in closed form, every method starts from the same teacher and trains with the same
number of network passes. At each tenth of it, by bins of time: how far its field of the data, and that of its own
samples, are from the truth; whether the fake one lags; how the direction in which it pushes its samples agrees with the
gradient of the reverse KL. The true field of own samples is that of 8192 of them, an estimate whose own error is
measured on data (`floor`). Stopped at any moment, the same command goes on.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twinbench import files, recipe
from twinbench.data.mixture import Gaussians, clouds, draw, score_of
from twinbench.flow import Cond, Velocity, instant, mix, one_step
from twinbench.judges.distances import energy_distance
from twinbench.objectives.targets import clip, matching_weight
from twinbench.randomness import normal, seed_of
from twinbench.training.loop import Trainer
from twinbench.training.start import start

RECIPE = Path(__file__).with_name("score_error.yaml")
BINS = ((0.05, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 0.95))
EACH, ATOMS, LAG, MARKS = 256, 8192, 10, 10  # points a bin, own samples, student updates, measurements
Field = Callable[[Tensor, Tensor], Tensor]  # (x, t) -> instantaneous velocity


@dataclass(frozen=True)
class Fields:
    """Where a method keeps what it knows. fake: None where it has no such field. kind: weight of its direction, and
    clamp: its bound."""

    real: Field
    fake: Field | None
    kind: Any = None
    clamp: float | None = None


def fields(label: str, trainer: Trainer) -> Fields:
    """The fields of a method, read as it reads them; the consistency network's one time is read as a velocity."""

    def asked(net: Callable[[Tensor, Tensor, Cond], Tensor]) -> Field:
        return lambda x, t: net(x.float(), t.float(), empty(len(x))).double()

    networks = {name: trained.network for name, trained in trainer.owned.trained.items()}
    student = networks["student"]
    if label == "consistency":
        return Fields(asked(lambda x, t, cond: student(x, t, 0 * t, cond)), None)
    if label == "dmd":
        assert trainer.owned.teacher is not None
        return Fields(asked(instant(trainer.owned.teacher)), asked(instant(networks["critic"])), "dmd")
    return Fields(asked(instant(student)), asked(instant(student, -1)), clamp=1.0)


def empty(n: int) -> Cond:
    return {"tokens": torch.zeros(n, 1, dtype=torch.long)}


def own(net: Velocity, n: int, name: str) -> Tensor:
    """n samples of one evaluation, [n, 2] float64; the name says from which noise."""
    return one_step(net, normal((n, 2), "score-error", name), empty(n)).double()


def times(low: float, high: float, n: int) -> Tensor:
    return low + (high - low) * (torch.arange(n, dtype=torch.float64) + 0.5) / n


def noised(x: Tensor, t: Tensor, name: str) -> Tensor:
    return mix(x, normal(x.shape, "score-error", name).double(), t)


def rms(a: Tensor) -> float:
    return a.square().sum(-1).mean().sqrt().item()


def errors(field: Field, truth: Gaussians, x: Tensor, name: str) -> dict[str, list[float]]:
    """RMS errors of a velocity at noised x [EACH, 2], a bin each; `score`: of the score it stands for, as a share of
    the true one's RMS."""
    out: dict[str, list[float]] = {"velocity": [], "score": []}
    for low, high in BINS:
        t = times(low, high, len(x))
        x_t = noised(x, t, f"{name} {low}")
        v, true = field(x_t, t), truth.velocity(x_t, t)
        out["velocity"].append(rms(v - true))
        out["score"].append(rms(score_of(v, x_t, t) - score_of(true, x_t, t)) / rms(score_of(true, x_t, t)))
    return out


def agreement(method: Fields, truth: Gaussians, x: Tensor) -> dict[str, Any]:
    """The cosine, over all samples x [n, 2], of the method's push with the gradient of the reverse KL, each averaged
    over 16 times and noises; by bins: of v_fake - v_real with the true one, and the RMS of the true one. The push is
    the weighted, clamped direction; the length that a robust metric gives it in each row is left out."""

    def both(x: Tensor, t: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x_t = noised(x, t, name)
        real, own_field = clouds().velocity(x_t, t), truth.velocity(x_t, t)
        guess = method.real(x_t, t)
        return (
            x_t,
            guess,
            clip((method.fake(x_t, t) if method.fake else own_field) - guess, method.clamp),
            own_field - real,
        )

    pushes, gradients = torch.zeros_like(x), torch.zeros_like(x)
    for i in range(16):
        t = times(BINS[0][0], BINS[-1][1], len(x))[torch.randperm(len(x), generator=seeded(f"times {i}"))]
        x_t, guess, push, true = both(x, t, f"agreement {i}")
        weight = matching_weight(method.kind, x, x_t, guess, t)[:, None] if method.kind else 1.0
        pushes, gradients = pushes + weight * push, gradients + matching_weight("kl", x, x_t, guess, t)[:, None] * true
    out: dict[str, Any] = {"all": cosine(pushes, gradients), "bins": [], "size": []}
    for low, high in BINS:
        _, _, push, true = both(x, times(low, high, len(x)), f"agreement {low}")
        out["bins"].append(cosine(push, true))
        out["size"].append(rms(true))
    return out


def seeded(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of("score-error", name))


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


@torch.no_grad()
def measure(label: str, trainer: Trainer, before: dict[str, Tensor] | None) -> dict[str, Any]:
    """All errors at this moment. before: the student's weights LAG updates ago."""
    student, method = trainer.owned.trained["student"].network, fields(label, trainer)
    truth, x = Gaussians(own(student, ATOMS, "atoms")), own(student, EACH, "own")
    row = {"step": trainer.state.step, "passes": trainer.state.passes, "progress": trainer.progress}
    row |= {
        "real": errors(method.real, clouds(), draw(EACH, 2)[0].double(), "real"),
        "agreement": agreement(method, truth, x),
    }
    row["distance"] = energy_distance(own(student, 2048, "distance"), draw(2048, 3)[0].double())
    if method.fake:
        row["fake"] = errors(method.fake, truth, x, "fake")
        if before is not None:
            earlier = copy.deepcopy(student)
            earlier.load_state_dict(before)
            row["lagged"] = errors(method.fake, Gaussians(own(earlier, ATOMS, "atoms")), x, "fake")
    return row


def reference() -> dict[str, Any]:
    """What the truth itself gives. floor: the field of as many data as there are own samples. mean: the exact average
    velocity from t to 0, read as an instantaneous one: what a perfect single-time network would give."""
    world, x = clouds(), draw(EACH, 2)[0].double()
    floor = Gaussians(draw(ATOMS, 4)[0].double()).velocity
    return {"floor": errors(floor, world, x, "real"), "mean": errors(partial(to_zero, world), world, x, "real")}


def to_zero(world: Gaussians, x: Tensor, t: Tensor, steps: int = 200) -> Tensor:
    """The average velocity (x_t - x_0)/t by Heun steps that end just above 0, where the velocity no longer changes."""
    here, falling = x, [t * (1 - i / steps) + 1e-4 * i / steps for i in range(steps + 1)]
    for s, s_next in pairwise(falling):
        v = world.velocity(here, s)
        ahead = here - (s - s_next)[:, None] * v
        here = here - (s - s_next)[:, None] * (v + world.velocity(ahead, s_next)) / 2
    return (x - here) / (t - falling[-1])[:, None]


# ---- runs ----


def measured(label: str, seed: int, weights: str, runs: Path, path: Path) -> list[dict[str, Any]]:
    """The rows of a method, those that are missing measured while it trains."""
    item = recipe.resolve(recipe.load(str(RECIPE), [f"backbone.weights={weights}"]), label, seed)
    run, trainer = start(item, runs)
    kept = json.loads(path.read_text()) if path.exists() else {}
    if kept.get("fingerprint") != run.fingerprint:
        kept = {}
    rows = [row for row in kept.get("rows", ()) if row["step"] <= trainer.state.step]
    if trainer.state.step != (rows[-1]["step"] if rows else 0):  # what was measured on the way is gone
        rows, (run, trainer) = [], start(item, runs, fresh=True)
    head = {"schema": "twinbench.score-error/1", "label": label, "seed": seed, "fingerprint": run.fingerprint}
    for row in _rows(label, trainer, len(rows)):
        rows.append(row)
        files.write_json(path, head | {"settings": item.config, "bins": BINS, "rows": rows})
        print(f"{label} seed {seed}: {row['progress']:.0%}", flush=True)
    return rows


def _rows(label: str, trainer: Trainer, done: int) -> Iterator[dict[str, Any]]:
    """One measurement at each tenth of the budget from number `done` on, each with a checkpoint."""
    if not done:
        yield measure(label, trainer, None)
        done = 1
    past: deque[dict[str, Tensor]] = deque(maxlen=LAG + 1)
    for _ in trainer:
        student = trainer.owned.trained["student"].network
        past.append({name: value.detach().clone() for name, value in student.state_dict().items()})
        if trainer.progress * MARKS >= done:
            yield measure(label, trainer, past[0] if len(past) > LAG else None)
            trainer.save()
            done += 1


def teacher(seed: int, runs: Path) -> str:
    """The file of the common initial weights."""
    _, trainer = start(recipe.resolve(recipe.load(str(RECIPE)), "teacher", seed), runs)
    for _ in trainer:
        pass
    return str(trainer.folder / "weights.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--figure", type=Path, default=Path("docs/score-error.png"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder, rows = arguments.results / "score-error", {}
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / "reference.json", truth := reference())
    for seed in range(arguments.seeds):
        weights = teacher(seed, arguments.runs)
        for label in [name for name in recipe.load(str(RECIPE)).methods if name != "teacher"]:
            path = folder / f"{label}-s{seed}.json"
            rows.setdefault(label, []).append(measured(label, seed, weights, arguments.runs, path))
    from score_error_figure import figure, table

    print(table(rows, truth, BINS))
    figure(rows, truth, BINS, arguments.figure)


if __name__ == "__main__":
    main()
