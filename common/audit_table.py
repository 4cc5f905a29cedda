"""An audit as text of at most 80 columns: a block a site, then the consortium, then the verdict."""

from collections.abc import Iterator
from typing import Final

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from common.accounting import Spent
from common.audit import Audit, SiteAudit
from common.audit_json import claim_of
from common.chain import Fault
from common.event_words import event_words
from common.figures import lower, small, upper
from common.verification import RunFacts

WIDTH: Final = 80
FAULTS_SHOWN: Final = 12
"""Of one ledger; a fault early on is usually the cause of those after it."""


def print_audit(audit: Audit, console: Console) -> None:
    """Print everything, never wider than 80 columns."""
    width = min(console.width, WIDTH)
    for part in renderables(audit):
        console.print(part, width=width, overflow="fold", highlight=False)


def renderables(audit: Audit) -> Iterator[RenderableType]:
    """The parts, in order."""
    for site in audit.sites:
        yield _heading(site)
        yield Padding(_facts(site), (0, 0, 0, 2))
        if site.verdict.runs:
            yield Padding(_runs(site.verdict.runs), (1, 0, 0, 2))
        yield from (Padding(line, (0, 0, 0, 2)) for line in _faults(site))
        yield Text()
    if audit.together is not None:
        yield Text("Consortium", style="bold")
        yield Padding(_consortium(audit), (0, 0, 0, 2))
        yield Text()
    yield _verdict(audit)


def _heading(site: SiteAudit) -> Text:
    said, style = ("verifies", "bold green") if site.passed else ("DOES NOT VERIFY", "bold red")
    return Text.assemble((site.name, "bold"), "  ", (said, style))


def _facts(site: SiteAudit) -> Table:
    verdict, caps = site.verdict, site.state.caps
    spent = verdict.spent
    receipts = f"{verdict.receipts} in the ledger, {site.server_receipts} from the server"
    covered = "none" if site.newest_receipt < 0 else f"up to entry {site.newest_receipt}"
    return _pairs(
        ("ledger", site.where),
        ("entries", f"{verdict.entries:,}, the last of {site.state.time or 'no time'}"),
        ("key", site.key.fingerprint),
        ("head", verdict.head),
        (
            "epsilon",
            f"{upper(spent.epsilon)} at delta {small(spent.delta)}; delta·N is not known here",
        ),
        ("", _accountants(spent)),
        ("published", spent.accountant),
        ("budget", f"{caps.epsilon:g}, {lower(site.left)} left"),
        ("receipts", f"{receipts}, {covered}"),
        ("claim", site.claim),
    )


def _accountants(spent: Spent) -> str:
    return f"PLD {upper(spent.pld)}, RDP {upper(spent.rdp)}"


def _pairs(*rows: tuple[str, str]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="dim", width=10)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    return table


def _runs(runs: tuple[RunFacts, ...]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("run", overflow="fold")
    table.add_column("purpose", no_wrap=True)
    for heading in ("planned", "paid", "answered"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("one round", overflow="fold")
    for run in runs:
        counts = (Text(f"{n:,}") for n in (run.planned, run.reserved, run.released))
        table.add_row(Text(run.run), Text(run.purpose), *counts, Text(event_words(run.event)))
    return table


def _faults(site: SiteAudit) -> Iterator[Text]:
    if site.faults:
        yield Text()
    for fault in site.faults[:FAULTS_SHOWN]:
        yield _fault(fault)
    more = len(site.faults) - FAULTS_SHOWN
    if more > 0:
        yield Text(f"and {more:,} more, which may follow from the first; --json lists all")


def _fault(fault: Fault) -> Text:
    where = f"entry {fault.seq}, {fault.code}: "
    return Text.assemble((where, "bold red"), fault.text)


def _consortium(audit: Audit) -> Table:
    together = audit.together
    rows = []
    if together is not None:
        k = together.sites_per_subject
        shared = together.shared
        rows = [
            ("disjoint", f"epsilon {upper(together.disjoint.epsilon)}, a subject at one site"),
            (f"at {k} sites", f"epsilon {upper(shared.epsilon)} at delta {small(shared.delta)}"),
            ("", shared.accountant),
        ]
    rounds = f"{audit.rounds_compared} rounds compared, {audit.rounds_recomputed} computed again"
    rows.append(("receipts", f"{rounds}; server {', '.join(audit.servers) or 'unknown'}"))
    if audit.strangers:
        rows.append(("missing", f"no ledger here of {', '.join(audit.strangers)}"))
    return _pairs(*rows)


def _verdict(audit: Audit) -> Text:
    faults = sum(len(site.faults) for site in audit.sites)
    if faults:
        s = "" if faults == 1 else "s"
        return Text(f"FAILED: {faults:,} fault{s}; {claim_of(audit)}", style="bold red")
    ledgers = "1 ledger verifies" if len(audit.sites) == 1 else f"{len(audit.sites)} ledgers verify"
    style = "bold yellow" if audit.seeded else "bold green"
    return Text(f"{ledgers}; {claim_of(audit)}", style=style)
