"""A disturbed run beside the undisturbed one: the table, at most 80 columns, and the picture."""

import math
from collections.abc import Callable
from typing import Final

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from common.canvas import INK, PAGE, PALETTE, panels, style
from simulations.results import Damage, Outcome, RunResult, clean

COLOURS: Final = (INK, PALETTE[0], PALETTE[1])
DASHES: Final = ("solid", "solid", (0, (5, 2)))
SITES_NAMED: Final = 4


def damage_rows(damage: Damage) -> list[tuple[str, list[str]]]:
    """Heading and cells of each row; the first cell is the undisturbed run's.

    Every other run has two cells: a value, and how far NDCG@10 moved.
    """
    rows = [
        (
            f"NDCG@10, {clean(domain, 14)}",
            _cells(damage, lambda o, d=domain: _three(o.ndcg.get(d)), domain),  # type: ignore[misc]
        )
        for domain in damage.outcomes[0].ndcg
    ]
    if any(outcome.backdoor is not None for outcome in damage.outcomes):
        rows.append(("backdoor works for", _cells(damage, lambda o: _share(o.backdoor))))
    word = "hostile answers" if damage.kind == "attack" else "answers missed"
    rows.append((word, _cells(damage, lambda o: str(o.answers))))
    if any(outcome.refused for outcome in damage.outcomes):
        rows.append(("refused", _cells(damage, _refused)))
    return rows


def _cells(damage: Damage, show: Callable[[Outcome], str], domain: str = "") -> list[str]:
    first, *others = damage.outcomes
    cells = [show(first)]
    for outcome in others:
        lost = outcome.lost.get(domain)
        cells += [show(outcome), "" if lost is None else f"{-lost:+.1%}"]
    return cells


def headings(damage: Damage) -> list[str]:
    """Of the cells of `damage_rows`."""
    names = ["undisturbed"]
    for outcome in damage.outcomes[1:]:
        what = "attacked" if damage.kind == "attack" else damage.name
        names += [f"{what},\n{_rule(outcome.rule)}", ""]
    return names


def _rule(rule: str) -> str:
    return {"auto": "default rule", "mean": "plain mean"}.get(rule, rule)


def title(damage: Damage) -> str:
    """One line: what was done, by whom."""
    if damage.kind == "fault":
        return f"{damage.name}: {damage.says}; {damage.rate:.0%} of the rounds of {damage.of} sites"
    named = ", ".join(clean(site, 20) for site in damage.sites[:SITES_NAMED])
    more = len(damage.sites) - SITES_NAMED
    named += f" and {more} more" if more > 0 else ""
    return f"{damage.name}: {len(damage.sites)} of {damage.of} sites ({named}); each {damage.says}"


def renderables(damage: Damage) -> tuple[RenderableType, ...]:
    """The table and, where a run stopped early, why."""
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("", no_wrap=True, overflow="ellipsis", max_width=26)
    for heading in headings(damage):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, cells in damage_rows(damage):
        table.add_row(Text(name), *map(Text, cells))
    ended = [Text(f"• {o.name} stopped: {o.ended}") for o in damage.outcomes if o.ended]
    return (Text(), Text(title(damage), style="bold"), Text(), table, *ended)


def plot_damage(result: RunResult, *, width: float = PAGE) -> Figure:
    """Draw NDCG@10 by round of each run, a panel a domain."""
    damage = result.damage
    names = list(damage.outcomes[0].ndcg) if damage is not None else []
    figure, plots = panels(len(names), width=width, height=2.9)
    for axes, name in zip(plots, names, strict=True):
        highest = 0.0
        for place, outcome in enumerate(damage.outcomes if damage is not None else ()):
            points = [(r, v[name]) for r, v in sorted(outcome.curve.items()) if name in v]
            highest = max([highest, *(value for _, value in points)])
            axes.plot(
                [number for number, _ in points],
                [value for _, value in points],
                color=COLOURS[place % len(COLOURS)],
                linestyle=DASHES[place % len(DASHES)],
                linewidth=2.0,
                label=_legend(damage, place, outcome),
            )
        style(axes, title=clean(name, 24))
        axes.set_xlabel("round")
        axes.set_ylabel("NDCG@10")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_ylim(0, 1.08 * highest or 1.0)
    if plots:
        figure.legend(
            *plots[0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=1 if width < PAGE else 3,
            frameon=False,
            fontsize=10,
        )
    return figure


def _legend(damage: Damage | None, place: int, outcome: Outcome) -> str:
    if damage is None or place == 0:
        return "undisturbed"
    return f"{damage.name}, {_rule(outcome.rule)}"


def _three(value: float | None) -> str:
    return "—" if value is None or not math.isfinite(value) else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "—" if value is None else f"{value:.1%}"


def _refused(outcome: Outcome) -> str:
    names = [name.lower().replace("_", " ") for name in outcome.refused]
    return ", ".join(names)
