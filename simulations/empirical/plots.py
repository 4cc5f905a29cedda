"""The pictures of an audit: scores of canaries that were in and out, and the attack's ROC."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from scipy import stats

from common.canvas import INK, MUTED, PAGE, PALETTE, panels, style
from common.durable import write_atomic
from simulations.empirical.canaries import DELTA, CanaryRun
from simulations.empirical.findings import NOT_A_PROOF
from simulations.empirical.lira import Attack
from simulations.empirical.product import noise_for

IN, OUT = PALETTE[1], PALETTE[0]
_BINS: Final = 60


def plot_canaries(runs: Sequence[CanaryRun], *, width: float = PAGE) -> Figure:
    """Draw the scores of included and excluded canaries, a panel a claim."""
    probes = list(dict.fromkeys(run.epsilon_probe for run in runs))
    figure, plots = panels(len(probes), width=width, height=3.2)
    for axes, probe in zip(plots, probes, strict=True):
        _draw_scores(axes, [run for run in runs if run.epsilon_probe == probe])
    figure.supxlabel(f"score of a canary, in clips; {NOT_A_PROOF}", fontsize=10, color=INK)
    return figure


def _draw_scores(axes: Axes, runs: Sequence[CanaryRun]) -> None:
    noise = noise_for(runs[0].epsilon_probe, delta=DELTA)
    scores = {
        "left out": np.concatenate([run.scores[~run.included] for run in runs]),
        "included": np.concatenate([run.scores[run.included] for run in runs]),
    }
    both = np.concatenate(list(scores.values()))
    low, high = min(float(both.min()), -3 * noise), max(float(both.max()), 1 + 3 * noise)
    edges = np.linspace(low, high, _BINS + 1)
    curve = np.linspace(low, high, 400)
    for (name, values), colour, mean in zip(scores.items(), (OUT, IN), (0.0, 1.0), strict=True):
        axes.hist(
            values, edges.tolist(), density=True, color=colour, alpha=0.28, label=f"{name}, found"
        )
        expected = stats.norm.pdf(curve, mean, noise)
        axes.plot(curve, expected, color=colour, linewidth=1.8, label=f"{name}, claimed")
    worst = max(run.epsilon_hat for run in runs)
    style(axes, title=f"ε = {runs[0].epsilon_probe:g}: ε̂ up to {worst:.2f} in {_runs(runs)}")
    axes.set_ylabel("density")
    axes.set_ylim(0, 1.7 * float(stats.norm.pdf(0, 0, noise)))
    legend = axes.legend(fontsize=9, labelcolor=INK, ncols=2, loc="upper center")
    legend.get_frame().set(edgecolor="none", alpha=0.85)


def _runs(runs: Sequence[CanaryRun]) -> str:
    return f"{len(runs)} runs" if len(runs) > 1 else "1 run"


def plot_roc(private: Attack, control: Attack, *, width: float = PAGE) -> Figure:
    """Draw the attack's ROC on log axes against what the claim allows."""
    figure = Figure(figsize=(min(width, 5.6), 4.6), layout="constrained")
    axes = figure.subplots()
    least = 0.5 / float((~private.member).sum())
    _draw_allowed(axes, private.epsilon, least)
    for attack, colour, name in (
        (control, PALETTE[1], "without noise (control)"),
        (private, PALETTE[0], f"audited, ε = {private.epsilon:g}"),
    ):
        false, true = (np.maximum(rate, least) for rate in attack.rates())
        axes.step(false, true, where="post", color=colour, linewidth=2.2, label=name)
    style(axes, title="membership inference (LiRA)")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(least, 1)
    axes.set_ylim(least, 1.15)
    axes.set_xlabel("false positives (FPR)")
    axes.set_ylabel("true positives (TPR)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="lower right")
    return figure


def _draw_allowed(axes: Axes, epsilon: float, least: float) -> None:
    fpr = np.geomspace(least, 1, 300)
    most = np.minimum(1.0, math.exp(epsilon) * fpr + DELTA)
    dashes, dots = (0, (5, 2)), (0, (1, 2))
    label = f"most that ε = {epsilon:g} allows: $e^ε$·FPR + δ"
    axes.plot(fpr, most, color=INK, linewidth=1.4, linestyle=dashes, label=label)
    axes.plot(fpr, fpr, color=MUTED, linewidth=0.9, linestyle=dots, label="guessing")


def write_png(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, whole or not at all."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150, facecolor="white")
    write_atomic(path, image.getvalue())
    return path
