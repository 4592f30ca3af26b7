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
    """Three tables: scores by bin at the end; one number a method; the directions by bin, over the training."""
    names = [f"t {low:g}-{high:g}" for low, high in bins]
    scores = [["estimate from 8192 points", *truth["floor"]["score"]], ["exact mean velocity", *truth["mean"]["score"]]]
    scores.append(["teacher: real", *mean(rows["dmd"], lambda r: r["real"]["score"])])
    numbers, cosines = [], []
    for label, runs in rows.items():
        for field in ("real", "fake") if "fake" in runs[0][-1] else ("real",):
            scores.append([f"{label}: {field}", *mean(runs, lambda r, f=field: r[f]["score"])])
        error = whole(mean(runs, lambda r: r["real"]["velocity"]))
        distances = (mean(runs, lambda r: r["distance"], which) for which in (0, -1))
        numbers.append([label, error, *_fake(runs), *distances])
        trained = [r["agreement"] for run in runs for r in run[1:]]
        cosines.append([label, *np.mean([a["bins"] for a in trained], 0), np.mean([a["all"] for a in trained])])
    columns = ["method", "real", "fake", "fake / true difference", "lag", "distance, start", "end"]
    parts = {
        "relative RMS error of the score, end of training": tabulate(scores, ["field", *names], floatfmt=".2f"),
        "RMS error of the velocity at the end, and what follows": tabulate(numbers, columns, floatfmt=".3g"),
        "cosine of the direction with the true one, mean over the training": tabulate(
            cosines, ["method", *names, "weighted, all"], floatfmt=".2f"
        ),
    }
    return "\n\n".join(f"{title}\n{part}" for title, part in parts.items())


def _fake(runs: Sequence[Sequence[dict[str, Any]]]) -> list[float | None]:
    """RMS error of the fake velocity; that over the RMS of the true v_fake - v_real; over the error for the samples of
    LAG updates ago, mean over the training (above 1 the field is behind)."""
    if "fake" not in runs[0][-1]:
        return [None, None, None]
    error = whole(mean(runs, lambda r: r["fake"]["velocity"]))
    lag = [whole(r["fake"]["velocity"]) / whole(r["lagged"]["velocity"]) for run in runs for r in run if "lagged" in r]
    return [error, error / whole(mean(runs, lambda r: r["agreement"]["size"])), float(np.mean(lag))]


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
