"""The pictures of a run, each a function from a `RunResult` to a matplotlib `Figure`.

Names of sites and domains come from data: they are cleaned and never read as mathematical
markup.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from common.canvas import INK, MUTED, PAGE, PALETTE, RULE, panels, style, value_at
from common.durable import write_atomic
from simulations.damage_table import plot_damage
from simulations.results import (
    LABELS,
    RunResult,
    SiteResult,
    clean,
    gains,
    largest_epsilon,
    measured_methods,
    pairs,
    score,
    upper,
)

SITES_NAMED: Final = 40
GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    "reads no records": ("zero_shot",),
    "private": ("local", "federated", "central"),
    "without privacy": ("popularity", "central_non_private", "sasrec"),
}
REFERENCES: Final = ("zero_shot", "popularity", "local", "central_non_private")


def plot_rounds(result: RunResult, *, width: float = PAGE) -> Figure:
    """Draw NDCG@10 by round, a panel a domain, with epsilon spent along the top axis."""
    names = list(dict.fromkeys(n for point in result.curve for n in point.ndcg))
    figure, plots = panels(len(names), width=width, height=2.9)
    for axes, name in zip(plots, names, strict=True):
        points = [p for p in result.curve if math.isfinite(p.ndcg.get(name, math.nan))]
        rounds, values = [p.round for p in points], [p.ndcg[name] for p in points]
        colour = _colour(result, name)
        axes.plot(rounds, values, color=colour, linewidth=2.2, solid_capstyle="round")
        style(axes, title=clean(name, 24), colour=colour)
        axes.set_xlabel("round")
        axes.set_ylabel("NDCG@10")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        marks = [(values[-1], "federated", INK)] if values else []
        marks += _reference_lines(result, name, axes)
        axes.set_ylim(0, 1.08 * max([v for v, _, _ in marks] + values, default=1.0) or 1.0)
        _label_right(axes, marks)
        _epsilon_axis(result, axes)
    return figure


def _reference_lines(result: RunResult, name: str, axes: Axes) -> list[tuple[float, str, str]]:
    """Draw the methods that do not change by round, and return what to label."""
    marks: list[tuple[float, str, str]] = []
    domain = result.domains.get(name)
    for method in REFERENCES if domain else ():
        value = score(domain.metrics, method) if domain else None
        if value is not None:
            axes.axhline(value, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
            marks.append((value, LABELS[method].replace(", ", ",\n"), MUTED))
    return marks


def _label_right(axes: Axes, marks: Sequence[tuple[float, str, str]]) -> None:
    """Name each line at the right edge, moved apart where labels would touch."""
    ordered = sorted(marks)
    low, high = axes.get_ylim()
    heights = [0.085 + 0.075 * text.count("\n") for _, text, _ in ordered]
    spots = [(value - low) / (high - low) for value, _, _ in ordered]
    gaps = [(a + b) / 2 for a, b in pairwise(heights)]
    for (value, text, colour), spot in zip(ordered, _apart(spots, gaps), strict=True):
        axes.annotate(
            f"{text} {value:.3f}",
            xy=(1.0, value),
            xycoords=("axes fraction", "data"),
            xytext=(1.05, spot),
            textcoords="axes fraction",
            color=colour,
            fontsize=9,
            fontweight="bold" if text == "federated" else "normal",
            va="center",
            linespacing=0.95,
            arrowprops={"arrowstyle": "-", "color": RULE, "linewidth": 0.7, "shrinkA": 1},
            annotation_clip=False,
        )


def _apart(spots: Sequence[float], gaps: Sequence[float]) -> list[float]:
    """Return ascending positions with at least the given gaps, moved as little as a sweep can."""
    up = list(spots)
    for i, gap in enumerate(gaps):
        up[i + 1] = max(up[i + 1], up[i] + gap)
    down = list(spots)
    for i in range(len(gaps) - 1, -1, -1):
        down[i] = min(down[i], down[i + 1] - gaps[i])
    return [(a + b) / 2 for a, b in zip(up, down, strict=True)]


def _epsilon_axis(result: RunResult, axes: Axes) -> None:
    """Put the privacy spent by each labelled round along the top."""
    spent = {p.round: p.epsilon for p in result.curve if math.isfinite(p.epsilon)}
    if len(spent) < 2:
        return
    low, high = min(spent), max(spent)
    ticks = sorted(
        {min(spent, key=lambda r: abs(r - low - (high - low) * i / 4)) for i in range(5)}
    )
    top = axes.secondary_xaxis("top")
    top.set_xticks(
        ticks, [f"{spent[r]:.2g}" if spent[r] < 10 else f"{spent[r]:.0f}" for r in ticks]
    )
    top.set_xlabel("ε spent per subject", color=MUTED, fontsize=9)
    top.tick_params(labelsize=9, colors=MUTED, length=3)
    top.spines["top"].set_color(RULE)


def plot_gains(result: RunResult, *, width: float = PAGE) -> Figure:
    """Draw each site's relative gain of federating over training alone, sorted, with the mean."""
    measured = list(reversed(gains(result)))
    named = len(measured) <= SITES_NAMED
    figure, (axes,) = panels(1, width=width, height=1.6 + (0.29 * len(measured) if named else 5.0))
    style(axes, grid="x")
    axes.barh(
        range(len(measured)),
        [100 * value for _, value in measured],
        color=[_colour(result, site.domain) for site, _ in measured],
        height=0.7 if named else 1.0,
    )
    axes.axvline(0, color=INK, linewidth=1)
    _gain_labels(axes, measured, length=28 if width >= PAGE else 18, named=named)
    axes.margins(x=0.16, y=0.02)
    axes.set_xlabel("gain in NDCG@10 over training\nalone at the same ε, %")
    _domain_legend(result, {site.domain for site, _ in measured}, figure)
    return figure


def _gain_labels(
    axes: Axes, measured: Sequence[tuple[SiteResult, float]], *, length: int, named: bool
) -> None:
    """Name the sites while there is room, and show their mean as a last bar or as a line."""
    values = [100 * value for _, value in measured]
    mean = sum(values) / max(len(values), 1)
    axes.tick_params(axis="y", length=0)
    if not named:
        axes.set_yticks([])
        axes.set_ylabel(f"{len(values)} sites, sorted")
        axes.axvline(mean, color=MUTED, linewidth=1.4, linestyle=(0, (4, 3)), zorder=0)
        axes.set_title(f"mean {mean:+.1f} %", fontsize=10, color=MUTED)
        return
    axes.barh(-1.4, mean, color=MUTED, height=0.7)
    axes.set_ylabel("site")
    names = [f"mean of {len(values)}", *(clean(site.site, length) for site, _ in measured)]
    spots = [-1.4, *range(len(values))]
    axes.set_yticks(spots, names, parse_math=False)
    for spot, value in zip(spots, [mean, *values], strict=True):
        value_at(axes, value, spot, f"{value:+.1f}")


def _domain_legend(result: RunResult, present: set[str], figure: Figure) -> None:
    """Name the colours, when there is more than one."""
    names = [name for name in result.domains if name in present]
    if len(names) > 1:
        keys = [Rectangle((0, 0), 1, 1, color=_colour(result, name)) for name in names]
        figure.legend(
            keys,
            [clean(name, 20) for name in names],
            loc="outside upper right",
            ncols=min(len(names), 4),
            frameon=False,
            fontsize=10,
            labelcolor=INK,
            handlelength=1,
        )


def plot_transfer(result: RunResult, *, width: float = PAGE) -> Figure:
    """Draw what each domain (row) gives each other (column), in percent, centred on zero.

    The diagonal holds another quantity, a domain's own federation over training alone, and so
    stays outside the colour scale.
    """
    names = list(
        dict.fromkeys([*result.transfer, *(t for r in result.transfer.values() for t in r)])
    )
    side = min(max(len(names), 2) * 1.3 + 1.6, width)
    figure, (axes,) = panels(1, width=side, height=0.66 * side + 0.5)
    bound = max([abs(value) for _, _, value in pairs(result)], default=0.0) or 1.0
    for y, source in enumerate(names):
        for x, target in enumerate(names):
            value = result.transfer.get(source, {}).get(target, math.nan)
            _cell(axes, x, y, value, bound=bound)
    labels = [clean(name, 14) for name in names]
    edge = max(len(names), 1) - 0.5
    axes.set(xlim=(-0.5, edge), ylim=(edge, -0.5))
    axes.set_xticks(range(len(names)), labels, parse_math=False)
    axes.set_yticks(range(len(names)), labels, parse_math=False)
    style(axes, grid="")
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlabel("… to the NDCG@10 of")
    axes.set_ylabel("what is given by …")
    return figure


def _cell(axes: Axes, x: int, y: int, value: float, *, bound: float) -> None:
    """Draw one cell: shaded by value, or only outlined on the diagonal and where unknown."""
    own, known = x == y, math.isfinite(value)
    shaded = known and not own
    shade = mpl.colormaps["RdBu"](0.5 + 0.38 * value / bound) if shaded else (0.5, 0.5, 0.5, 0.1)
    edge = {"edgecolor": MUTED, "linestyle": (0, (3, 2))} if own else {"edgecolor": "none"}
    axes.add_patch(Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, facecolor=shade, **edge))
    luminance = 0.299 * shade[0] + 0.587 * shade[1] + 0.114 * shade[2]
    ink = "#ffffff" if luminance < 0.46 else "#111111"
    note = "\nover site alone" if own and known else ""
    axes.text(
        x,
        y,
        (f"{value:+.1%}" if known else "—") + note,
        ha="center",
        va="center",
        fontsize=9 if own else 12,
        color=ink if shaded else MUTED,
    )


def plot_methods(result: RunResult, *, width: float = PAGE) -> Figure:
    """Draw NDCG@10 by method and domain; hollow bars are methods without privacy."""
    shown = measured_methods(result)
    groups = {g: [m for m in methods if m in shown] for g, methods in GROUPS.items()}
    groups = {g: methods for g, methods in groups.items() if methods}
    names = list(result.domains)
    height = 1.0 + 0.29 * (len(shown) + 0.9 * len(groups))
    figure, plots = panels(len(names), width=width, height=height, share=True)
    for axes, name in zip(plots, names, strict=True):
        style(axes, title=clean(name, 24), colour=_colour(result, name), grid="x")
        _method_bars(result, name, axes, groups)
        axes.set_xlabel("NDCG@10")
        axes.set_ylabel("")
        axes.margins(x=0.2)
        axes.set_xlim(left=0)
    if plots:
        plots[0].set_ylabel("method")
    return figure


def _method_bars(
    result: RunResult, name: str, axes: Axes, groups: Mapping[str, Sequence[str]]
) -> None:
    """Draw one domain's bars under a heading for each group."""
    spot, spots, labels = 0.0, [], []
    top = largest_epsilon(result)
    for group, methods in groups.items():
        bound = f", ε ≤ {upper(top.epsilon)}" if group == "private" and top else ""
        axes.text(
            0.0, spot, f" {group}{bound}", fontsize=9, fontstyle="italic", color=MUTED, va="center"
        )
        spot += 0.9
        for method in methods:
            value = score(result.domains[name].metrics, method)
            _bar(axes, spot, value, method=method, colour=_colour(result, name))
            spots.append(spot)
            labels.append(LABELS[method].removesuffix(", not private"))
            spot += 1.0
    axes.set_yticks(spots, labels)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(max(spot - 0.4, 0.5), -0.6)


def _bar(axes: Axes, spot: float, value: float | None, *, method: str, colour: str) -> None:
    if value is None:
        value_at(axes, 0.0, spot, "—")
        return
    hollow = method in GROUPS["without privacy"]
    axes.barh(
        spot,
        value,
        height=0.72,
        facecolor="none" if hollow else colour,
        edgecolor=colour,
        linewidth=1.2,
        alpha=1.0 if hollow or method == "federated" else 0.5,
    )
    value_at(axes, value, spot, f"{value:.3f}")


def _colour(result: RunResult, domain: str) -> str:
    names = list(result.domains)
    return PALETTE[names.index(domain) % len(PALETTE)] if domain in names else MUTED


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One picture: its file name, what it shows, how to draw it and when there is data for it."""

    name: str
    title: str
    draw: Callable[..., Figure]
    has_data: Callable[[RunResult], bool]


PLOTS: Final = (
    Plot(
        name="methods",
        title="How well each method ranks",
        draw=plot_methods,
        has_data=lambda result: bool(measured_methods(result)),
    ),
    Plot(
        name="gain_per_site",
        title="What each site gains by federating",
        draw=plot_gains,
        has_data=lambda result: bool(gains(result)),
    ),
    Plot(
        name="transfer",
        title="What one domain gives another",
        draw=plot_transfer,
        has_data=lambda result: bool(pairs(result)),
    ),
    Plot(
        name="ndcg_by_round",
        title="Quality and privacy spent, round by round",
        draw=plot_rounds,
        has_data=lambda result: any(point.ndcg for point in result.curve),
    ),
    Plot(
        name="damage",
        title="What hostile or faulty sites did",
        draw=plot_damage,
        has_data=lambda result: result.damage is not None,
    ),
)


def save_plots(result: RunResult, folder: Path) -> tuple[Path, ...]:
    """Write each plot that has data as PNG, 150 dpi; remove an earlier run's that has none.

    Raises:
        OSError: The folder cannot be written to.
    """
    written = []
    for plot in PLOTS:
        path = folder / f"{plot.name}.png"
        if plot.has_data(result):
            image = io.BytesIO()
            plot.draw(result).savefig(image, format="png", dpi=150, facecolor="white")
            write_atomic(path, image.getvalue())
            written.append(path)
        else:
            path.unlink(missing_ok=True)
    return tuple(written)
