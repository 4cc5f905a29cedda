"""One self-contained audit report: an HTML page, and the same on paper.

The page loads nothing from anywhere. Every word that comes from a file goes through jinja2's
autoescape; only this package's own SVG is marked as safe.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from common.audit import Audit, SiteAudit
from common.audit_json import claim_of
from common.canvas import PAGE, PHONE, to_svg
from common.figures import lower, small, upper
from common.report_assumptions import TRUST, assumptions
from common.report_content import (
    NOT_SHOWN,
    caps_rows,
    delta_times_subjects,
    event_rows,
    fact_rows,
    hash_rows,
    opt_out_rows,
    software,
    utility_rows,
    verify_command,
)
from common.report_curves import Curve, curves
from common.report_facts import TO_FILL, Facts
from common.report_hazards import hazards
from common.report_plots import DRAWINGS
from common.report_words import meaning, percent, percent_down

FAULTS_SHOWN: Final = 20


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What a report is made from.

    Attributes:
        audit: of the ledgers.
        paths: as the command line named them.
        made: when the report is made, UTC.
        empirical: what `confed audit empirical` found, or None.
        summary: of a simulation, or None.
        facts: what only an organisation can say.
    """

    audit: Audit
    paths: Sequence[str]
    made: datetime
    empirical: Mapping[str, Any] | None = None
    summary: Mapping[str, Any] | None = None
    facts: Facts = field(default_factory=Facts)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A plot as the page shows it, once for a wide and once for a narrow screen."""

    title: str
    caption: str
    wide: Markup
    narrow: Markup


def render(sources: Sources, *, paper: bool = False) -> str:
    """Return the report as one HTML page.

    Args:
        sources: what it is made from.
        paper: for a PDF: fixed colours, no second set of plots for a phone.
    """
    pages = Environment(
        loader=PackageLoader("common", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters.update(
        bound=upper,
        rest=lower,
        small=small,
        percent=percent,
        percent_down=percent_down,
    )
    return pages.get_template("report.html.j2").render(**context(sources, paper=paper))


def context(sources: Sources, *, paper: bool) -> dict[str, Any]:
    """Everything that the template shows."""
    audit = sources.audit
    worst = max(audit.sites, key=lambda site: site.verdict.spent.epsilon)
    drawn = curves(audit.sites)
    spent = worst.verdict.spent
    return {
        "paper": paper,
        "title": sources.facts.title or _title(audit),
        "made": f"{sources.made:%Y-%m-%d %H:%M} UTC",
        "period": _period(audit),
        "accounting": f"dp-accounting {version('dp-accounting')}",
        "audit": audit,
        "worst": worst,
        "spent": spent,
        "used": _share(worst),
        "meaning": meaning(spent.epsilon, spent.delta),
        "shared": _shared_meaning(audit),
        "claim": claim_of(audit),
        "faults_shown": FAULTS_SHOWN,
        "ahead": next(curve.ahead for curve in drawn if curve.site == worst.name),
        "pictures": pictures(drawn, audit, paper=paper),
        "events": event_rows(audit),
        "caps": caps_rows(audit),
        "trust": TRUST,
        "assumptions": assumptions(audit),
        "hazards": hazards(audit, sources.empirical),
        "empirical": sources.empirical,
        "hashes": hash_rows(audit),
        "software": software(),
        "command": verify_command(sources.paths, audit),
        "facts": sources.facts,
        "to_fill": TO_FILL,
        "article_30": fact_rows(sources.facts, "30"),
        "article_35": fact_rows(sources.facts, "35"),
        "delta_n": {site.name: delta_times_subjects(site, sources.facts) for site in audit.sites},
        "opt_outs": opt_out_rows(audit, sources.facts),
        "utility": utility_rows(sources.summary),
        "not_shown": NOT_SHOWN,
    }


def _title(audit: Audit) -> str:
    if len(audit.sites) == 1:
        return f"Privacy audit of {audit.sites[0].name}"
    return f"Privacy audit of a consortium of {len(audit.sites)} sites"


def _period(audit: Audit) -> str:
    times = [t for site in audit.sites for t in (site.first_time, site.state.time) if t]
    if not times:
        return "no readable entry"
    first, last = min(times)[:10], max(times)[:10]
    return first if first == last else f"{first} to {last}"


def _share(site: SiteAudit) -> float:
    """Share of the budget that is spent, percent, at most 100."""
    spent = site.verdict.spent.epsilon
    return min(100.0, 100 * spent / site.state.caps.epsilon) if math.isfinite(spent) else 100.0


def _shared_meaning(audit: Audit) -> str:
    if audit.together is None or audit.together.sites_per_subject < 2:
        return ""
    shared = audit.together.shared
    return meaning(shared.epsilon, shared.delta).belief


def pictures(drawn: Sequence[Curve], audit: Audit, *, paper: bool) -> tuple[Picture, ...]:
    """The plots that the ledgers have data for."""
    if not any(curve.points for curve in drawn):
        return ()
    shown = [curve for curve in drawn if curve.points]
    made = []
    for drawing in DRAWINGS:
        if drawing.needs(shown, audit):
            wide = to_svg(drawing.draw(shown, audit, PAGE), themed=not paper)
            narrow = "" if paper else to_svg(drawing.draw(shown, audit, PHONE))
            made.append(
                Picture(
                    title=drawing.title,
                    caption=drawing.caption,
                    wide=Markup(wide),  # noqa: S704  # our own SVG
                    narrow=Markup(narrow),  # noqa: S704
                )
            )
    return tuple(made)
