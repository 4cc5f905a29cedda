"""What an audit report says, gathered: rows for its tables, from an audit and what goes with it."""

import math
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from common.audit import Audit, SiteAudit
from common.caps import SiteCaps
from common.event_words import event_words
from common.figures import small
from common.report_facts import FIELDS, Facts

SOFTWARE: Final = (
    "confed",
    "dp-accounting",
    "opacus",
    "torch",
    "flwr",
    "transformers",
    "peft",
    "safetensors",
    "polars",
    "numpy",
    "scipy",
    "cryptography",
    "rfc8785",
    "pydantic",
    "click",
    "rich",
    "jinja2",
    "matplotlib",
    "weasyprint",
)
ROUNDS_NAMED: Final = 6
NOT_SHOWN: Final = (
    "Any record, count of records, loss, gradient or name of a person: a ledger holds none.",
    "How many people a site has. δ should be far below 1 over that number; the product stands in "
    "this report only where the site has stated a public figure.",
    "What can be learnt about people in general, or about a person from other sources: that is not "
    "what differential privacy limits.",
    "Whether the records were collected lawfully, and who can reach them at the site.",
    "Refused requests: a refusal writes nothing and costs nothing, so a ledger does not hold it.",
    "Releases that went past the ledger. The software has no way to make one; this report cannot "
    "show that other software did not.",
    "That the training code did what the ledger says: that is what confed audit empirical tests, "
    "and a test that finds nothing is not a proof of privacy.",
)


@dataclass(frozen=True, kw_only=True)
class EventRow:
    """All reservations of one purpose of one run at one site.

    Attributes:
        site, run, purpose: whose.
        event: one round, in words.
        planned, paid, answered: rounds declared, reserved and released.
        entries: numbers of the first and the last reservation.
        remark: rounds that were paid for twice or never answered.
    """

    site: str
    run: str
    purpose: str
    event: str
    planned: int
    paid: int
    answered: int
    entries: str
    remark: str


@dataclass(frozen=True, kw_only=True)
class HashRow:
    """What a run was bound to, by hash."""

    run: str
    sites: str
    plan: str
    backbone: str
    catalog: str


def event_rows(audit: Audit) -> tuple[EventRow, ...]:
    """Every event, plan against actual."""
    return tuple(row for site in audit.sites for row in _events_of(site))


def _events_of(site: SiteAudit) -> Iterator[EventRow]:
    for facts in site.verdict.runs:
        mine = [
            r for r in site.reservations if (r.asked[0], r.asked[2]) == (facts.run, facts.purpose)
        ]
        paid = Counter(r.asked[1] for r in mine)
        answered = {
            asked[1] for asked in site.state.released if asked[::2] == (facts.run, facts.purpose)
        }
        remarks = []
        if twice := sorted(number for number, n in paid.items() if n > 1):
            remarks.append(f"paid again: {_listed(twice)}")
        if silent := sorted(set(paid) - answered):
            remarks.append(f"paid, not answered: {_listed(silent)}")
        yield EventRow(
            site=site.name,
            run=facts.run,
            purpose=facts.purpose,
            event=event_words(facts.event),
            planned=facts.planned,
            paid=facts.reserved,
            answered=facts.released,
            entries=f"{mine[0].seq} to {mine[-1].seq}" if mine else "none",
            remark="; ".join(remarks),
        )


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(f"{n:,}" for n in numbers[:ROUNDS_NAMED])
    more = len(numbers) - ROUNDS_NAMED
    return f"rounds {shown}" + (f" and {more:,} more" if more > 0 else "")


def caps_rows(audit: Audit) -> tuple[tuple[str, SiteCaps], ...]:
    """(sites, what they allow), sites that allow the same in one row."""
    found: dict[SiteCaps, list[str]] = {}
    for site in audit.sites:
        found.setdefault(site.state.caps, []).append(site.name)
    return tuple((_together(names, audit), caps) for caps, names in found.items())


def _together(names: Sequence[str], audit: Audit) -> str:
    """Names of sites, or that it is every one."""
    return "every site" if len(names) == len(audit.sites) > 1 else ", ".join(names)


def hash_rows(audit: Audit) -> tuple[HashRow, ...]:
    """Plans, models and catalogs, each with the sites that declared them."""
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for site in audit.sites:
        for run, plan in site.state.plans.items():
            names = ("plan_sha256", "backbone_sha256", "catalog_sha256")
            key = (run, *(str(plan.details[name]) for name in names))
            found.setdefault((key[0], key[1], key[2], key[3]), []).append(site.name)
    return tuple(
        HashRow(
            run=run, sites=_together(sites, audit), plan=plan, backbone=backbone, catalog=catalog
        )
        for (run, plan, backbone, catalog), sites in found.items()
    )


def software() -> tuple[tuple[str, str], ...]:
    """Name and version of what this machine runs; the auditor's part is enough."""
    found = []
    for name in SOFTWARE:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return tuple(found)


def verify_command(paths: Sequence[str], audit: Audit) -> str:
    """What to type to check the ledgers of this report again."""
    together = audit.together
    fewer = together is not None and together.sites_per_subject < together.sites
    options = ["--sites-per-subject", str(together.sites_per_subject)] if together and fewer else []
    return shlex.join(["confed", "audit", "verify", *paths, *options])


def fact_rows(facts: Facts, article: str) -> tuple[tuple[str, str, str], ...]:
    """(label, article, what was said) of the fields of one part: "30" with 6 and 9, or "35"."""
    return tuple(
        (label, where, facts.fields.get((table, key), ""))
        for table, keys in FIELDS.items()
        for key, (label, where) in keys.items()
        if (where.startswith("35")) == (article == "35")
    )


def delta_times_subjects(site: SiteAudit, facts: Facts) -> str:
    """delta·N where the site stated a public figure of subjects; empty otherwise."""
    said = facts.sites.get(site.name)
    if said is None or said.subjects is None:
        return ""
    return small(site.state.caps.delta * said.subjects)


def opt_out_rows(audit: Audit, facts: Facts) -> tuple[tuple[str, int, str], ...]:
    """(site, changes of its list, people who opted out where the site says)."""
    rows = []
    for site in audit.sites:
        said = facts.sites.get(site.name)
        count = None if said is None else said.opt_outs
        told = "" if count is None else f"{count:,}"
        rows.append((site.name, site.state.opt_out_entries, told))
    return tuple(rows)


def utility_rows(summary: Mapping[str, Any] | None) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(domain, NDCG@10 of popularity, site alone, federated, without privacy) of a simulation."""
    domains = {} if summary is None else summary.get("domains", {})
    rows = []
    for name, domain in domains.items() if isinstance(domains, dict) else ():
        metrics = domain.get("metrics", {}) if isinstance(domain, dict) else {}
        values = (_score(metrics.get(m)) for m in UTILITY)
        rows.append((str(name), tuple(values)))
    return tuple(rows)


UTILITY: Final = ("popularity", "local", "federated", "central_non_private")


def _score(values: object) -> str:
    score = values.get("ndcg@10") if isinstance(values, dict) else None
    shown = isinstance(score, int | float) and math.isfinite(score)
    return f"{score:.3f}" if shown else "—"
