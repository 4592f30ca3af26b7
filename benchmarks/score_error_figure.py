"""The table and the figure of score_error.py: means over seeds."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from twinbench import files
from twinbench.report.plots import COLORS

Rows = dict[str, list[list[dict[str, Any]]]]  # by label, then by seed, then by time of measurement


def mean(
    runs: Sequence[Sequence[dict[str, Any]]], value: Callable[[dict[str, Any]], Any], which: int = -1
) -> np.ndarray:
    """A number, or one a bin, of one measurement, over seeds."""
    return np.mean([value(run[which]) for run in runs], 0)


def whole(bins: Sequence[float]) -> float:
    """One RMS of several, the bins weighing the same."""
    return float(np.sqrt(np.mean(np.square(bins))))


def table(rows: Rows, truth: dict[str, Any], bins: Sequence[Sequence[float]]) -> str:
    """At the end of the budget: relative errors of scores by bin, then what is one number a method."""
    names = [f"t {low:g}-{high:g}" for low, high in bins]
    scores = [
        [f"{name}: exact field", *truth[key]["score"]] for name, key in (("8192 data", "floor"), ("mean", "mean"))
    ]
    scores += [["teacher: real", *mean(rows["dmd"], lambda r: r["real"]["score"])]]
    numbers = []
    for label, runs in rows.items():
        for field in ("real", "fake") if "fake" in runs[0][-1] else ("real",):
            scores.append([f"{label}: {field}", *mean(runs, lambda r, f=field: r[f]["score"])])
        lag = [
            whole(r["fake"]["velocity"]) / whole(r["lagged"]["velocity"]) for run in runs for r in run if "lagged" in r
        ]
        start = mean(runs, lambda r: r["distance"], 0)
        angles = [r["agreement"]["all"] for run in runs for r in run[1:]]
        cosines = np.mean(angles), mean(runs, lambda r: r["agreement"]["all"])
        distances = start, mean(runs, lambda r: r["distance"])
        error = whole(mean(runs, lambda r: r["real"]["velocity"]))
        numbers.append([label, error, *_fake(runs), np.mean(lag) if lag else None, *cosines, *distances])
    columns = [
        "method",
        "real",
        "fake",
        "fake / true difference",
        "lag",
        "cosine, mean",
        "end",
        "distance, start",
        "end",
    ]
    return "\n\n".join(
        [
            "relative RMS error of the score, end of training\n" + tabulate(scores, ["field", *names], floatfmt=".2f"),
            "RMS error of velocities, and what follows\n" + tabulate(numbers, columns, floatfmt=".3f"),
        ]
    )


def _fake(runs: Sequence[Sequence[dict[str, Any]]]) -> list[float | None]:
    if "fake" not in runs[0][-1]:
        return [None, None]
    error = whole(mean(runs, lambda r: r["fake"]["velocity"]))
    return [error, error / whole(mean(runs, lambda r: r["agreement"]["size"]))]


def figure(rows: Rows, truth: dict[str, Any], bins: Sequence[Sequence[float]], path: Path) -> None:
    """PNG: errors of real and fake scores by time at the end; errors, and agreement, during training."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(12.6, 3.5), dpi=110, layout="constrained")
    FigureCanvasAgg(drawn)
    real, fake, course, angle = drawn.subplots(1, 4)
    t = [(low + high) / 2 for low, high in bins]
    for axes, kind in ((real, "real"), (fake, "fake")):
        axes.plot(t, truth["floor"]["score"], color="0.5", linestyle=":", label="estimate's own")
        axes.set(xlabel="t", yscale="log", title=f"error of the {kind} score, end (relative)")
    real.plot(t, truth["mean"]["score"], color="0.2", linestyle="--", label="exact mean velocity")
    for (label, runs), color in zip(rows.items(), COLORS):
        style = {"color": color, "label": label, "marker": ".", "linewidth": 1.2}
        progress = [r["progress"] for r in runs[0]]
        real.plot(t, mean(runs, lambda r: r["real"]["score"]), **style)
        if "fake" in runs[0][-1]:
            fake.plot(t, mean(runs, lambda r: r["fake"]["score"]), **style)
            course.plot(
                progress, [whole(mean(runs, lambda r: r["fake"]["velocity"], i)) for i in range(len(progress))], **style
            )
        angle.plot(progress, [mean(runs, lambda r: r["agreement"]["all"], i) for i in range(len(progress))], **style)
    course.set(xlabel="share of the budget", yscale="log", title="error of the fake velocity (RMS)")
    angle.set(xlabel="share of the budget", title="cosine with the reverse KL's gradient", ylim=(None, 1))
    for axes in (real, fake, course, angle):
        axes.title.set_fontsize(9)
        axes.grid(alpha=0.25)
    angle.legend(fontsize=7)
    real.legend(*_first(real, ("estimate's own", "exact mean velocity")), fontsize=7)
    out = io.BytesIO()
    drawn.savefig(out, format="png", metadata={"Software": None})
    files.replace(path, lambda file: file.write(out.getvalue()))


def _first(axes: Any, names: Sequence[str]) -> tuple[list[Any], list[str]]:
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    return [handles[name] for name in names], list(names)
