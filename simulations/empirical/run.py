"""`confed audit empirical` itself: options to tiers, progress bars, table, files.

`OUT/empirical.json` is what the audit report reads:

    format      "confed-empirical-1"
    passed      whether every check of every tier that was run passed
    mechanism   "product", or the name of the broken mechanism that was audited
    note        "a lower bound is not a proof of privacy", to stand beside every epsilon_hat
    tiers       by name (a, b, c), only those that were run:
                  title, passed, seconds, checks: a list of {name, figure, passes_at, passed,
                  verdict}; and the figures behind them
                  a: noise_ratio, by tensor
                  b: probes: a list of {epsilon_probe, noise_multiplier, m, r, v: [...],
                     epsilon_hat: [...], held_out_std: [...], held_out_std_pooled, power}, a
                     value a seed; power: {no_noise, correct, noise_share_caught}
                  c: epsilon, delta, steps, shadow_models, members, non_members,
                     tpr_at_1_percent_fpr, excess, control_tpr_at_1_percent_fpr, confidence
    m, r, v, epsilon_hat, epsilon_probe, runs, confidence, power
                of tier b's run with the largest epsilon_hat; null if tier b was not run. The
                confidence is that of one run: the largest of many is above the truth more often.
    software    versions of what was audited
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from common.durable import write_atomic
from common.errors import ConfigError
from simulations.checks import check_out
from simulations.empirical import plots
from simulations.empirical.broken import broken as broken_of
from simulations.empirical.canaries import DELTA, CanaryRun, guesses_of
from simulations.empirical.canary_audit import tier_b
from simulations.empirical.findings import NOT_A_PROOF, TIERS, Tier, TierName
from simulations.empirical.lira import SHADOWS, Attack, tier_c
from simulations.empirical.mechanism_tests import GROUPS, tier_a
from simulations.empirical.one_run import eps_lower
from simulations.empirical.product import Product
from simulations.empirical.table import WIDTH, print_self_test, print_tiers

Advance: TypeAlias = Callable[[], None]
FORMAT: Final = "confed-empirical-1"
PROBES: Final = (1.0, 2.0)
_FROM_B: Final = ("m", "r", "v", "epsilon_hat", "epsilon_probe", "runs", "confidence", "power")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to audit.

    Attributes:
        tiers: which.
        probes: claims of tier b; tier c takes the largest.
        seeds: runs of tier b a claim.
        canaries: of tier b.
    """

    tiers: tuple[TierName, ...] = ("a", "b", "c")
    probes: tuple[float, ...] = PROBES
    seeds: int = 20
    canaries: int = 1000


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What was found.

    Attributes:
        mechanism: "product" or a broken one's name.
        tiers: in order.
        runs: of tier b.
        attacks: of tier c, on the private model and on the control.
    """

    mechanism: str
    tiers: tuple[Tier, ...]
    runs: tuple[CanaryRun, ...] = ()
    attacks: tuple[Attack, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(tier.passed for tier in self.tiers)

    def as_json(self) -> dict[str, Any]:
        """The audit as this module's docstring lays it out."""
        of_b = next((tier.figures for tier in self.tiers if tier.name == "b"), {})
        return {
            "format": FORMAT,
            "passed": self.passed,
            "mechanism": self.mechanism,
            "note": NOT_A_PROOF,
            **{key: of_b.get(key) for key in _FROM_B},
            "tiers": {tier.name: tier.as_json() for tier in self.tiers},
            "software": {name: version(name) for name in ("confed", "opacus", "torch")},
        }


def run_command(*, out: Path | None, as_lines: bool, **options: Any) -> bool:
    """Run `confed audit empirical` with the options of the command line.

    Returns:
        Whether everything passed; with --self-test, whether everything broken was caught.

    Raises:
        ConfigError: options that do not go together, or a folder that cannot be written.
    """
    request, name = request_of(**options)
    if out is not None:
        check_out(out)
    shown = Console(width=WIDTH, highlight=False, stderr=as_lines)
    if options["self_test"]:
        from simulations.empirical.self_test import self_test  # noqa: PLC0415

        tested = self_test(request)
        print_self_test(tested, shown)
        passed, told = tested.passed, tested.as_json()
    else:
        found = audit(name, request)
        print_tiers(found.tiers, shown)
        _print_end(found, out, shown)
        passed, told = found.passed, found.as_json()
        write_plots(found, out)
    if out is not None:
        _write_json(told, out / "empirical.json")
    if as_lines:
        sys.stdout.write(json.dumps(told) + "\n")
    return passed


def request_of(
    *,
    tier: str,
    probes: Sequence[float],
    seeds: int,
    canaries: int,
    broken: str | None,
    self_test: bool,
) -> tuple[Request, str | None]:
    """Options of the command line as a request and the name of a broken mechanism.

    Raises:
        ConfigError: a claim that the bound could not refute even without any noise, an unknown
            mechanism, or options that exclude each other.
    """
    if self_test and broken is not None:
        raise ConfigError("Expected --broken or --self-test, got both; leave one out.")
    if broken is not None:
        broken_of(broken)
    chosen = tuple(dict.fromkeys(probes)) or PROBES
    guesses = guesses_of(canaries)
    most = eps_lower(canaries, guesses, guesses, delta=DELTA)
    if not all(0 < probe < most for probe in chosen):
        raise ConfigError(
            f"Expected every --epsilon-probe above 0 and below {most:.2f}, got another: with "
            f"{canaries} canaries no noise at all would look like {most:.2f}."
        )
    tiers: tuple[TierName, ...] = tuple(TIERS) if tier == "all" else (cast(TierName, tier),)
    request = Request(tiers=tiers, probes=chosen, seeds=seeds, canaries=canaries)
    return request, broken


def audit(
    name: str | None, request: Request, *, progress: Callable[[str, int], Advance] | None = None
) -> Audit:
    """Run the tiers asked for on the product, or on the broken mechanism of that name.

    Args:
        name: of the broken mechanism; None audits the product.
        request: what to run.
        progress: told the name and length of each tier, and gives what to call after each part;
            bars on standard error when None.
    """
    product = Product() if name is None else broken_of(name).product()
    label = name if name is not None else "product"
    if progress is not None:
        return _tiers(product, label, request, progress)
    with _bars() as bars:
        return _tiers(product, label, request, _tasks(bars))


def _tiers(
    product: Product, label: str, request: Request, start: Callable[[str, int], Advance]
) -> Audit:
    tiers: list[Tier] = []
    runs: list[CanaryRun] = []
    attacks: tuple[Attack, ...] = ()
    for name in request.tiers:
        if name == "a":
            tiers.append(tier_a(product, advance=start(TIERS[name], GROUPS)))
        elif name == "b":
            advance = start(TIERS[name], len(request.probes) * request.seeds)
            tier, runs = tier_b(
                product,
                probes=request.probes,
                seeds=request.seeds,
                canaries=request.canaries,
                advance=advance,
            )
            tiers.append(tier)
        else:
            advance = start(TIERS[name], 2 * (SHADOWS + 1))
            tier, attacks = tier_c(product, epsilon=max(request.probes), advance=advance)
            tiers.append(tier)
    return Audit(mechanism=label, tiers=tuple(tiers), runs=tuple(runs), attacks=attacks)


def write_plots(found: Audit, out: Path | None) -> tuple[Path, ...]:
    """Write canaries.png and roc.png for the tiers that were run, and return the paths."""
    written = []
    if out is not None and found.runs:
        written.append(plots.write_png(plots.plot_canaries(found.runs), out / "canaries.png"))
    if out is not None and found.attacks:
        written.append(plots.write_png(plots.plot_roc(*found.attacks), out / "roc.png"))
    return tuple(written)


def _write_json(told: dict[str, Any], path: Path) -> None:
    try:
        write_atomic(path, (json.dumps(told, indent=1) + "\n").encode())
    except OSError as error:
        raise ConfigError(
            f"Expected to write {path}, got '{error.strerror}'; give another --out."
        ) from error


def _print_end(found: Audit, out: Path | None, shown: Console) -> None:
    failed = [check for tier in found.tiers for check in tier.checks if not check.passed]
    total = sum(len(tier.checks) for tier in found.tiers)
    shown.print()
    if failed:
        shown.print(
            f"{len(failed)} of {total} checks failed ({found.mechanism}).", style="bold red"
        )
    else:
        shown.print(f"All {total} checks passed: no fault was found ({found.mechanism}).")
    if out is not None:
        shown.print(f"Written to {out}", soft_wrap=True)


def _bars() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True, width=WIDTH),
        transient=True,
    )


def _tasks(bars: Progress) -> Callable[[str, int], Advance]:
    def start(name: str, total: int) -> Advance:
        task = bars.add_task(name, total=total)
        return lambda: bars.advance(task)

    return start
