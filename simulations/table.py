"""The table at the end of a run: what a researcher sees first, in at most 80 columns."""

import math
from collections.abc import Sequence
from typing import Final

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from simulations.results import (
    METHODS,
    SCOPE,
    RunResult,
    SiteResult,
    clean,
    gain,
    headlines,
    score,
)

WIDTH: Final = 80
SITES_SHOWN: Final = 16
EXTREMES: Final = 5
FIGURES: Final = 48
"""Columns that the numbers of a site's row take, gaps included; names get the rest."""
HEADINGS: Final = (
    "zero-\nshot",
    "popu-\nlarity",
    "site\nalone",
    "federated",
    "central",
    "central,\nno privacy",
    "SASRec,\nno privacy",
)


def print_results(result: RunResult, console: Console) -> None:
    """Print the run's tables and findings, never wider than 80 columns.

    Args:
        result: What the run found.
        console: Where to; a pipe or a file works as a terminal does.
    """
    width = min(console.width, WIDTH)
    for part in renderables(result):
        console.print(part, width=width, overflow="fold", crop=True, highlight=False)


def renderables(result: RunResult) -> tuple[RenderableType, ...]:
    """Return the parts of the table at the end, in order."""
    sentences = [Text(f"• {line}") for line in headlines(result)]
    claim = [Text(clean(result.claim, 400), style="bold")] if result.claim else []
    return (
        Text(f"\n{clean(result.title, 200)}", style="bold"),
        Text(),
        domain_table(result),
        Text(),
        site_table(result),
        Text(),
        *sentences,
        Text(),
        *claim,
        Text(SCOPE, style="dim"),
    )


def domain_table(result: RunResult) -> Table:
    """Return NDCG@10 by domain (rows) and method (columns)."""
    table = _table("NDCG@10, all test subjects of a domain")
    table.add_column("domain", no_wrap=True, overflow="ellipsis", max_width=14)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, domain in result.domains.items():
        values = [score(domain.metrics, method) for method in METHODS]
        cells = [Text(_three(v), style="bold" if i == 3 else "") for i, v in enumerate(values)]
        table.add_row(Text(clean(name, 40)), *cells)
    return table


def site_table(result: RunResult) -> Table:
    """Return a row a site; of more than 16 only the five largest and five smallest gains."""
    table = _table("NDCG@10 by site, alone and federated at the same ε")
    domain = min(max([len(site.domain) for site in result.sites], default=6), 11)
    room = WIDTH - FIGURES - domain
    table.add_column("site", no_wrap=True, overflow="ellipsis", max_width=room)
    table.add_column("domain", no_wrap=True, overflow="ellipsis", max_width=max(domain, 6))
    for heading in ("subjects", "ε", "alone", "federated", "gain"):
        table.add_column(heading, justify="right", no_wrap=True)
    best, left_out, worst = _chosen(result.sites)
    for site in best:
        table.add_row(*_site_cells(site))
    if left_out:
        table.add_row(Text(f"… {left_out} more", style="dim"))
    for site in worst:
        table.add_row(*_site_cells(site))
    return table


def _chosen(
    sites: Sequence[SiteResult],
) -> tuple[Sequence[SiteResult], int, Sequence[SiteResult]]:
    """Return the sites shown above and below the gap, and how many lie in it."""
    if len(sites) <= SITES_SHOWN:
        return sites, 0, ()
    ordered = sorted(sites, key=lambda site: -(gain(site) or 0.0))
    return ordered[:EXTREMES], len(ordered) - 2 * EXTREMES, ordered[-EXTREMES:]


def _site_cells(site: SiteResult) -> tuple[Text, ...]:
    change = gain(site)
    return (
        Text(clean(site.site)),
        Text(clean(site.domain)),
        Text(f"{site.subjects:,}"),
        Text(f"{site.epsilon:.2f}" if math.isfinite(site.epsilon) else "∞"),
        Text(_three(score(site.metrics, "local"))),
        Text(_three(score(site.metrics, "federated")), style="bold"),
        Text("—" if change is None else f"{change:+.1%}"),
    )


def _three(value: float | None) -> str:
    return "—" if value is None else f"{value:.3f}"


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="dim",
        box=None,
        pad_edge=False,
        padding=(0, 1),
    )
