"""What an audit prints, in at most 80 columns."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from simulations.empirical.findings import NOT_A_PROOF, TIERS, Tier

if TYPE_CHECKING:
    from simulations.empirical.self_test import SelfTest

WIDTH: Final = 80


def print_tiers(tiers: Iterable[Tier], console: Console) -> None:
    """Print a table a tier and, under tier b, what its bound could have seen."""
    for tier in tiers:
        console.print()
        console.print(_tier_table(tier), width=WIDTH)
        for line in _notes(tier):
            console.print(Text(line, style="dim"), width=WIDTH)


def print_self_test(tested: "SelfTest", console: Console) -> None:
    """Print which tier caught which broken mechanism."""
    table = _plain("what each tier caught")
    table.add_column("mechanism", no_wrap=True)
    table.add_column("fault", overflow="fold")
    for tier in TIERS:
        table.add_column(f"tier {tier}", justify="center", no_wrap=True)
    table.add_column("verdict", no_wrap=True, justify="right")
    for case in tested.cases:
        cells = [_mark(case.caught.get(tier), wanted=tier in case.wanted) for tier in TIERS]
        verdict = Text("passed") if case.passed else Text("FAILED", style="bold red")
        table.add_row(case.name, case.fault, *cells, verdict)
    console.print()
    console.print(table, width=WIDTH)
    console.print(Text("caught N: so many checks failed; blank: not run.", style="dim"))


def _mark(failed: Sequence[str] | None, *, wanted: bool) -> Text:
    if failed is None:
        return Text("")
    if failed:
        return Text(f"caught {len(failed)}", style="bold" if wanted else "")
    return Text("MISSED", style="bold red") if wanted else Text("none")


def _tier_table(tier: Tier) -> Table:
    table = _plain(f"tier {tier.name}: {TIERS[tier.name]}, {tier.seconds:.0f} s")
    table.add_column("check", overflow="fold")
    for heading in ("figure", "passes at"):
        table.add_column(heading, overflow="fold")
    table.add_column("verdict", no_wrap=True, justify="right")
    for check in tier.checks:
        style = "" if check.passed else "bold red"
        verdict = Text(check.said, style=style)
        table.add_row(Text(check.name), Text(check.figure), Text(check.passes_at), verdict)
    return table


def _notes(tier: Tier) -> list[str]:
    if tier.name != "b":
        return []
    return [_power(probe) for probe in tier.figures["probes"]] + [
        f"ε̂ at {tier.figures['confidence']:.0%} confidence a run; {NOT_A_PROOF}.",
        "One step with everybody in the batch (sample rate 1); tier a tests the sampler.",
    ]


def _power(probe: Mapping[str, Any]) -> str:
    power = probe["power"]
    return (
        f"Power at ε = {probe['epsilon_probe']:g}: no noise at all would give ε̂ = "
        f"{power['no_noise']:.2f}, the claimed noise {power['correct']:.2f}; noise under "
        f"{power['noise_share_caught']:.2f} of it is caught by ε̂ alone."
    )


def _plain(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 1),
        expand=True,
    )
