"""`confed data`: look at a data folder, and make a synthetic consortium.

What `check` prints are exact figures about private records, for whoever holds them; nothing of it
is sent anywhere.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from common.catalog import Catalog
    from common.interactions import Interactions, ReadReport

_UNIX_LEAST, _UNIX_MOST = -2e9, 4.2e9  # 1906 to 2103: outside, a time is an order, not a date
_HEAD_SHARE = 0.1


@click.group()
def data() -> None:
    """Check a data folder, or generate synthetic sites."""


@data.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(folder: Path, as_json: bool) -> None:
    """Say what is in DIR and whether a site can be trained on it.

    DIR holds items.csv (item_id, title, text, category), interactions.csv (user_id, item_id,
    rating, timestamp) and, if you like, kg.csv (head, relation, tail) and users.csv; each may be
    .csv, .csv.gz or .parquet.

    Exit status: 0 ready, 2 wrong input, 3 refused.
    """
    from common.catalog import read_catalog  # noqa: PLC0415
    from common.interactions import (  # noqa: PLC0415
        read_interactions,
        require_subjects,
        require_targets,
        subject_columns,
    )

    catalog = read_catalog(folder, domain=folder.resolve().name)
    interactions, report = read_interactions(folder, catalog)
    findings = describe(catalog, interactions, report)
    findings["subject_columns"] = list(subject_columns(folder))
    if as_json:
        click.echo(json.dumps(findings, indent=2))
    else:
        _print(findings)
    require_subjects(interactions)
    require_targets(interactions)


@data.command()
@click.argument("scenario", metavar="SCENARIO")
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--subjects", default=1000, show_default=True, help="Subjects a site.")
@click.option("--sites", default=8, show_default=True, help="Sites, dealt evenly to the domains.")
@click.option("--seed", default=0, show_default=True, help="Same seed, same files.")
def generate(scenario: str, out: Path, subjects: int, sites: int, seed: int) -> None:
    """Write a synthetic consortium to OUT/DOMAIN/site-N.

    SCENARIO is care-and-bank, care or bank. Nobody is in these data.
    """
    from common.synthetic import write_consortium  # noqa: PLC0415

    for folder in write_consortium(scenario, out, subjects=subjects, sites=sites, seed=seed):
        click.echo(folder)


def describe(
    catalog: "Catalog", interactions: "Interactions", report: "ReadReport"
) -> dict[str, Any]:
    """Figures about a data folder, ready for JSON.

    Args:
        catalog: Its catalog.
        interactions: Its interactions.
        report: What reading them dropped.
    """
    import numpy as np  # noqa: PLC0415

    from common.limits import LIMITS  # noqa: PLC0415

    counts = interactions.counts
    seen = np.bincount(interactions.items, minlength=len(catalog))
    head = max(1, round(len(catalog) * _HEAD_SHARE))
    ready = len(interactions) >= LIMITS.subjects_floor and bool((counts >= 2).any())
    return {
        "domain": catalog.domain,
        "items": len(catalog),
        "categories": len(set(catalog.categories) - {""}),
        "triples": len(catalog.triples),
        "relations": sorted({relation for _, relation, _ in catalog.triples}),
        "catalog_sha256": catalog.digest,
        "subjects": len(interactions),
        "interactions": int(interactions.items.size),
        "median_per_subject": float(np.median(counts)),
        "share_with_3_or_more": float((counts >= 3).mean()),
        "first_time": interactions.times.min().item(),
        "last_time": interactions.times.max().item(),
        "rows": report.rows,
        "dropped_unknown_items": report.dropped_unknown_items,
        "dropped_duplicates": report.dropped_duplicates,
        "dropped_subjects": report.dropped_subjects,
        "items_never_seen": int((seen == 0).sum()),
        "share_of_top_10_percent": float(np.sort(seen)[::-1][:head].sum() / seen.sum()),
        "trainable": ready,
    }


def _print(findings: dict[str, Any]) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    console = Console(highlight=False)
    table = Table(title=f"Data of {findings['domain']}", show_header=False)
    table.add_column("what")
    table.add_column("found", overflow="fold")
    for what, found in _lines(findings):
        table.add_row(what, found)
    console.print(table, width=min(80, console.width), markup=False)


def _lines(findings: dict[str, Any]) -> list[tuple[str, str]]:
    dropped = (
        f"{findings['dropped_unknown_items']:,} with an item not in the catalog, "
        f"{findings['dropped_duplicates']:,} repeats of an item, "
        f"{findings['dropped_subjects']:,} subjects left empty"
    )
    relations = findings["relations"]
    unseen = findings["items_never_seen"]
    return [
        ("items", f"{findings['items']:,} in {findings['categories']:,} categories"),
        ("items never seen", f"{unseen:,} ({unseen / findings['items']:.0%})"),
        ("knowledge graph", f"{findings['triples']:,} triples, {len(relations)} relations"),
        ("subjects", f"{findings['subjects']:,}"),
        ("interactions", f"{findings['interactions']:,} of {findings['rows']:,} rows"),
        ("dropped", dropped),
        ("median per subject", f"{findings['median_per_subject']:g}"),
        ("subjects with 3 or more", f"{findings['share_with_3_or_more']:.0%}"),
        ("times", _span(findings["first_time"], findings["last_time"])),
        ("top 10% of the items", f"{findings['share_of_top_10_percent']:.0%} of interactions"),
        ("columns to split sites by", ", ".join(findings["subject_columns"]) or "none"),
        ("can be trained on", "yes" if findings["trainable"] else "no"),
    ]


def _span(first: float, last: float) -> str:
    """Two dates where both numbers can be Unix seconds, else the numbers."""
    from datetime import UTC, datetime, timedelta  # noqa: PLC0415

    if not all(_UNIX_LEAST <= time <= _UNIX_MOST and abs(time) > 1e8 for time in (first, last)):
        return f"{first:,} to {last:,}"
    start = datetime(1970, 1, 1, tzinfo=UTC)
    days = [start + timedelta(seconds=time) for time in (first, last)]
    return f"{days[0]:%Y-%m-%d} to {days[1]:%Y-%m-%d}"
