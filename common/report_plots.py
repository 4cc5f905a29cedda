"""The pictures of an audit report, each a function from curves to a matplotlib `Figure`.

Every epsilon drawn is an upper bound that an accountant computed; lines between points are steps
upwards, so that none lies below the bound at its round.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common.audit import Audit, SiteAudit
from common.canvas import INK, LIMIT, MUTED, PAGE, PALETTE, RULE, panels, style, value_at
from common.figures import upper
from common.report_curves import Curve

NAMED: Final = 5
"""Sites whose lines have a colour and a name of their own."""
BARS: Final = 24


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A plot that a report may hold.

    Attributes:
        title: heading.
        caption: what to see, in words.
        draw: (curves, audit, width in inches) to a figure.
        needs: whether there is something to draw.
    """

    title: str
    caption: str
    draw: Callable[[Sequence[Curve], Audit, float], Figure]
    needs: Callable[[Sequence[Curve], Audit], bool]


def plot_rounds(curves: Sequence[Curve], audit: Audit, width: float = PAGE) -> Figure:
    """Epsilon by paid round against the budget, with what comes next dashed."""
    figure, (axes,) = panels(1, width=width, height=3.4)
    style(axes)
    worst = _worst(audit)
    distinct = _distinct(curves)
    for rank, (curve, names) in enumerate(distinct):
        bold = worst.name in names
        colour = PALETTE[rank % len(PALETTE)] if len(distinct) <= NAMED else (INK if bold else RULE)
        xs, ys = [0], [0.0]
        for point in curve.points:
            xs.append(point.count)
            ys.append(_shown(point.spent.epsilon))
        axes.step(xs, ys, where="pre", color=colour, linewidth=2.2 if bold else 1.3)
        if len(distinct) <= NAMED or bold:
            _end_label(axes, xs[-1], ys[-1], _names(names), colour)
    _run_lines(axes, next(curve for curve in curves if curve.site == worst.name), width)
    _budget_line(axes, audit.sites)
    axes.set_xlabel("reservations: rounds paid for")
    axes.set_ylabel("ε spent per person")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.margins(x=0.02)
    axes.set_xlim(left=0)
    return figure


def plot_accountants(curves: Sequence[Curve], audit: Audit, width: float = PAGE) -> Figure:
    """Both accountants' bounds of the site that spent most, and the one that is published."""
    figure, (axes,) = panels(1, width=width, height=3.1)
    style(axes)
    curve = _curve_of(curves, _worst(audit))
    counts = [point.count for point in curve.points]
    adaptive = _worst(audit).verdict.adaptive
    lines = [
        ("RDP", [p.spent.rdp for p in curve.points], PALETTE[1]),
        ("PLD", [p.spent.pld for p in curve.points], PALETTE[0]),
    ]
    if adaptive:
        lines.append(("Rényi filter", [p.spent.epsilon for p in curve.points], INK))
    ends = []
    for name, values, colour in lines:
        shown = [(c, v) for c, v in zip(counts, values, strict=True) if math.isfinite(v)]
        if shown:
            xs, ys = zip(*shown, strict=True)
            axes.plot(xs, ys, color=colour, linewidth=1.8, marker="o", markersize=2.6)
            ends.append((ys[-1], f"{name} {upper(ys[-1], 3)}", colour))
    _labels_right(axes, ends)
    axes.set_xlabel("reservations: rounds paid for")
    axes.set_ylabel("ε, upper bounds")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlim(left=0)
    return figure


def plot_runs(curves: Sequence[Curve], audit: Audit, width: float = PAGE) -> Figure:
    """Epsilon after each run of each site against its budget, as bars."""
    bars = _bars(curves, audit)
    figure, (axes,) = panels(1, width=width, height=1.0 + 0.34 * len(bars))
    style(axes, grid="x")
    for spot, (_, value, budget) in enumerate(reversed(bars)):
        axes.barh(spot, _shown(value), color=PALETTE[0], height=0.62)
        axes.plot([budget, budget], [spot - 0.4, spot + 0.4], color=LIMIT, linewidth=2)
        value_at(axes, _shown(value), spot, upper(value, 2))
    axes.set_yticks(range(len(bars)), [name for name, _, _ in reversed(bars)])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.set_xlabel("ε spent per person; red: budget")
    axes.set_xlim(0, 1.12 * max([b for _, _, b in bars] + [_shown(v) for _, v, _ in bars]))
    return figure


def _mark_last(axes: Axes, left: int) -> None:
    """A line at the last round that fits, named on the side that has room."""
    if left:
        axes.axvline(left, color=MUTED, linewidth=1)
    axes.annotate(
        f"{left:,} more fit" if left else "no further round fits",
        xy=(left, 0.0),
        xycoords=("data", "axes fraction"),
        xytext=(-5 if left else 8, 6),
        textcoords="offset points",
        ha="right" if left else "left",
        fontsize=9,
        color=INK,
    )


def plot_ahead(curves: Sequence[Curve], audit: Audit, width: float = PAGE) -> Figure:
    """What more rounds like the last run's would cost, and how many fit."""
    figure, (axes,) = panels(1, width=width, height=3.1)
    style(axes)
    site = _worst(audit)
    ahead = _curve_of(curves, site).ahead
    if ahead is not None:
        xs, ys = zip(*ahead.points, strict=True)
        axes.plot(xs, ys, color=PALETTE[0], linewidth=2, linestyle=(0, (5, 2)))
        axes.plot([0], [ys[0]], marker="o", color=PALETTE[0], clip_on=False)
        if ahead.left <= xs[-1]:
            _mark_last(axes, ahead.left)
    _budget_line(axes, (site,), below=True)
    axes.set_xlabel("further rounds like the last run's")
    axes.set_ylabel("ε spent per person")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlim(left=0)
    return figure


def _finite(curves: Sequence[Curve], audit: Audit) -> bool:
    curve = _curve_of(curves, _worst(audit))
    return any(math.isfinite(point.spent.epsilon) for point in curve.points)


def _bounded(curves: Sequence[Curve], audit: Audit) -> bool:
    curve = _curve_of(curves, _worst(audit))
    return any(math.isfinite(point.spent.rdp) for point in curve.points)


def _has_ahead(curves: Sequence[Curve], audit: Audit) -> bool:
    return _curve_of(curves, _worst(audit)).ahead is not None


DRAWINGS: Final = (
    Drawing(
        title="Privacy spent by round",
        caption=(
            "Every round is paid for before it runs, whether or not it was answered, and nothing "
            "is ever given back. The red line is the budget, at which a site refuses."
        ),
        draw=plot_rounds,
        needs=_finite,
    ),
    Drawing(
        title="Privacy spent by run",
        caption="What had been spent in all by the end of each run, beside the budget.",
        draw=plot_runs,
        needs=_finite,
    ),
    Drawing(
        title="Two accountants",
        caption=(
            "Two methods each give an upper bound for the same rounds, so the smaller is true as "
            "well. Where a plan may depend on earlier results, neither is enough and the bound of "
            "a filter is published instead. Shown for the site that spent most."
        ),
        draw=plot_accountants,
        needs=_bounded,
    ),
    Drawing(
        title="What further rounds would cost",
        caption=(
            "If rounds like the last run's went on with the same people, at the site that spent "
            "most."
        ),
        draw=plot_ahead,
        needs=_has_ahead,
    ),
)


def _worst(audit: Audit) -> SiteAudit:
    return max(audit.sites, key=lambda site: site.verdict.spent.epsilon)


def _curve_of(curves: Sequence[Curve], site: SiteAudit) -> Curve:
    return next(curve for curve in curves if curve.site == site.name)


def _shown(epsilon: float) -> float:
    return epsilon if math.isfinite(epsilon) else math.nan


def _distinct(curves: Sequence[Curve]) -> list[tuple[Curve, list[str]]]:
    """Curves that differ, each with the sites that share it."""
    found: dict[tuple[tuple[int, float], ...], tuple[Curve, list[str]]] = {}
    for curve in curves:
        points = tuple((point.count, point.spent.epsilon) for point in curve.points)
        found.setdefault(points, (curve, []))[1].append(curve.site)
    return list(found.values())


def _names(names: Sequence[str]) -> str:
    shown = names[0] if len(names[0]) <= 18 else f"{names[0][:17]}…"
    return shown if len(names) == 1 else f"{shown} and {len(names) - 1} more"


def _end_label(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    if math.isfinite(y):
        label = axes.annotate(
            text,
            xy=(x, y),
            xytext=(-4, 5),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=9,
            color=colour,
        )
        label.set_parse_math(False)


def _labels_right(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Name each line at the right edge, moved apart where labels would touch."""
    axes.set_ylim(0, 1.08 * max((value for value, _, _ in ends), default=1.0))
    high, spot = axes.get_ylim()[1], -1.0
    for value, text, colour in sorted(ends):
        spot = max(value / high, spot + 0.085)
        axes.annotate(
            text,
            xy=(1.0, spot),
            xycoords="axes fraction",
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=colour,
            annotation_clip=False,
        )


def _run_lines(axes: Axes, curve: Curve, width: float) -> None:
    """Name where each run begins, as long as there is room."""
    if not 1 < len(curve.runs) <= (8 if width >= PAGE else 4):
        return
    for end in curve.runs:
        axes.axvline(end.first - 0.5, color=RULE, linewidth=0.9, linestyle=(0, (2, 2)), zorder=0)
        shown = end.run if len(end.run) <= 14 else f"{end.run[:13]}…"
        label = axes.annotate(
            shown,
            xy=(end.first - 0.5, 0.0),
            xycoords=("data", "axes fraction"),
            xytext=(3, 3),
            textcoords="offset points",
            fontsize=8,
            color=MUTED,
            rotation=90,
        )
        label.set_parse_math(False)


def _budget_line(axes: Axes, sites: Sequence[SiteAudit], *, below: bool = False) -> None:
    """Draw the budget, named above its left end, or below its right end."""
    budgets = sorted({site.state.caps.epsilon for site in sites})
    for budget in budgets if len(budgets) <= NAMED else budgets[-1:]:
        axes.axhline(budget, color=LIMIT, linewidth=1.4)
        axes.annotate(
            f"budget {budget:g}",
            xy=(1.0 if below else 0.0, budget),
            xycoords=("axes fraction", "data"),
            xytext=(-4, -4) if below else (4, 3),
            textcoords="offset points",
            ha="right" if below else "left",
            va="top" if below else "bottom",
            fontsize=9,
            color=LIMIT,
        )
    axes.set_ylim(0, 1.12 * max(axes.get_ylim()[1], budgets[-1] if budgets else 0.0))


def _bars(curves: Sequence[Curve], audit: Audit) -> list[tuple[str, float, float]]:
    """(label, epsilon, budget): runs of one site, or the end of each site."""
    budgets = {site.name: site.state.caps.epsilon for site in audit.sites}
    single, one_run = len(curves) == 1, all(len(curve.runs) == 1 for curve in curves)

    def label(site: str, run: str) -> str:
        return run if single else site if one_run else f"{site} · {run}"

    bars = [
        (label(curve.site, end.run), end.spent.epsilon, budgets[curve.site])
        for curve in curves
        for end in curve.runs
    ]
    if len(bars) > BARS:
        ends = [(c.site, c.points[-1].spent.epsilon, budgets[c.site]) for c in curves if c.points]
        bars = sorted(ends, key=lambda bar: -bar[1])[:BARS]
    return [(name if len(name) <= 30 else f"{name[:29]}…", e, b) for name, e, b in bars]
