"""What `confed site` does and prints."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from client.opt_out import add_opt_out
from common.accounting import PrivacyChoice, Spent, check_privacy, schedule, spent
from common.caps import SiteCaps, caps_from_plain
from common.entries import is_name
from common.errors import ConfigError, PrivacyRefused, SecurityRefused
from common.ledger import Ledger
from common.mechanism import Composed, Event, Repeated
from common.privacy_filter import fits
from common.site_ledger import has_ledger, open_ledger, rotate_key, start_ledger
from common.verification import spent_of

STEPS_SHOWN = 6
"""Rows of a plan's cost by round."""


def start(folder: Path, options: Mapping[str, Any]) -> None:
    """Make a ledger and say what to hand to the consortium.

    Raises:
        ConfedError: a limit out of range, or a ledger that is there already.
    """
    asked = {
        "epsilon": options["max_epsilon"],
        "delta": options["delta"],
        "sample_rate": options["max_rate"],
        "max_grad_norm": options["max_clip"],
        "noise_multiplier": options["least_noise"],
        "rounds": options["max_rounds"],
    }
    caps = caps_from_plain(asked)
    if has_ledger(folder):  # nothing beside it is touched either, the first public key least of all
        raise SecurityRefused(
            f"Expected no ledger in {folder}, found one; it is never overwritten."
        )
    ledger = start_ledger(folder, site=str(options["name"]), caps=caps)
    key = ledger.state().keys[0]
    console = _console()
    console.print(f"Ledger of {options['name']} in {folder}", highlight=False)
    console.print(f"Budget: epsilon {caps.epsilon:g} at delta {caps.delta:g}", highlight=False)
    console.print(f"Give public-key.pem to auditors; fingerprint {key.fingerprint}")
    console.print("Keep signing-key.pem here; it is never sent.")


def show_budget(folder: Path, *, as_json: bool) -> None:
    """Print a ledger's budget.

    Raises:
        ConfedError: no ledger, or a damaged one.
    """
    ledger = open_ledger(folder)
    facts = budget_facts(ledger)
    if as_json:
        click.echo(json.dumps(facts))
        return
    console = _console()
    console.print(
        f"{facts['site']}: epsilon {facts['spent']:.4f} of {facts['budget']:g} spent at delta "
        f"{facts['delta']:g}, {facts['left']:.4f} left",
        highlight=False,
    )
    console.print(f"  {facts['accountant']}", highlight=False, style="dim")
    if facts["seeded"]:
        console.print("seeded noise: no privacy claim", style="red")
    if facts["opt_outs"]:
        console.print(f"opt-out list changed {facts['opt_outs']} times")
    table = Table(box=None, header_style="", pad_edge=False)
    for name in ("run", "purpose", "planned", "paid", "answered", "more rounds that fit"):
        table.add_column(name, justify="left" if name in {"run", "purpose"} else "right")
    for run in facts["runs"]:
        shown = (run["planned"], run["paid"], run["answered"], run["fit"])
        table.add_row(run["run"], run["purpose"], *(f"{value:,}" for value in shown))
    if facts["runs"]:
        console.print(table)


def budget_facts(ledger: Ledger) -> dict[str, Any]:
    """What a ledger's owner asks: spent, left, and how many more rounds of each plan fit."""
    state, now = ledger.state(), ledger.spent()
    runs = [
        {
            "run": run,
            "purpose": purpose,
            "planned": planned,
            "paid": state.rounds_reserved(run, purpose),
            "answered": sum(a[0] == run and a[2] == purpose for a in state.released),
            "fit": ledger.rounds_left(event),
        }
        for run, plan in state.plans.items()
        for purpose, (event, planned) in plan.events.items()
    ]
    return {
        "site": state.site,
        "budget": state.caps.epsilon,
        "delta": state.caps.delta,
        "spent": now.epsilon,
        "left": max(state.caps.epsilon - now.epsilon, 0.0),
        "pld": now.pld,
        "rdp": now.rdp,
        "accountant": now.accountant,
        "cohorts": sorted(state.spent),
        "opt_outs": state.opt_out_entries,
        "seeded": state.seeded,
        "entries": state.seq + 1,
        "head": state.head,
        "runs": runs,
    }


def show_plan(folder: Path | None, options: Mapping[str, Any]) -> None:
    """Print what a schedule would cost.

    Raises:
        ConfigError: a value out of range.
        PrivacyRefused: it does not fit the limits or the budget of the ledger in `folder`.
    """
    rounds, steps = int(options["rounds"]), int(options["local_steps"])
    if rounds < 1 or steps < 1:
        raise ConfigError(f"Expected rounds and local steps of 1 or more, got {rounds}, {steps}.")
    noise = check_privacy(
        PrivacyChoice(
            epsilon=options["epsilon"],
            noise_multiplier=options["noise_multiplier"],
            delta=options["delta"],
            max_grad_norm=1.0,
            sample_rate=options["sample_rate"],
            steps=rounds * steps,
        ),
        subjects=1,
    )
    if folder is not None:
        _require_caps(open_ledger(folder).state().caps, options, noise)
    one = schedule(noise_multiplier=noise, sample_rate=options["sample_rate"], steps=steps)
    marks = sorted({max(1, rounds * k // STEPS_SHOWN) for k in range(1, STEPS_SHOWN + 1)})
    costs = {n: spent(Repeated(count=n, event=one), delta=options["delta"]) for n in marks}
    fit = _fit(folder, one, rounds) if folder is not None else None
    if options["as_json"]:
        curve = [{"round": n, **vars(cost)} for n, cost in costs.items()]
        click.echo(json.dumps({"noise_multiplier": noise, "curve": curve, "fit": fit}))
    else:
        _print_plan(noise, costs, fit)
    if fit is not None and not fit["fits"]:
        raise PrivacyRefused(
            f"Expected a run within the budget, needed {fit['needed']:.4g} more, left "
            f"{fit['left']:.4g}; {fit['rounds']} of its rounds would fit."
        )


def _require_caps(caps: SiteCaps, options: Mapping[str, Any], noise: float) -> None:
    """Refuse what the ledger would refuse, budget or not."""
    most = {
        "rounds": (options["rounds"], caps.rounds),
        "sample rate": (options["sample_rate"], caps.sample_rate),
        "delta": (options["delta"], caps.delta),
    }
    for name, (asked, cap) in most.items():
        if asked > cap:
            raise PrivacyRefused(f"Expected {name} of at most {cap:g} at this site, got {asked:g}.")
    if noise < caps.noise_multiplier:
        raise PrivacyRefused(
            f"Expected noise multiplier of at least {caps.noise_multiplier:g} at this site, got "
            f"{noise:.4g}."
        )


def _fit(folder: Path, one: Event, rounds: int) -> dict[str, Any]:
    """How a run would fit into a ledger; a plan after a release is counted by the filter."""
    ledger = open_ledger(folder)
    facts, state = budget_facts(ledger), ledger.state()
    state.adaptive = state.adaptive or bool(state.released)
    more = min(ledger.rounds_left(one), rounds)
    whole = Repeated(count=rounds, event=one)
    parts = ledger.spent_events()
    return {
        "fits": all(fits(ledger.budget, e, whole, adaptive=state.adaptive) for e in parts),
        "needed": max(spent_of(state, Composed(events=(e, whole))).epsilon for e in parts)
        - facts["spent"],
        "left": facts["left"],
        "rounds": more,
    }


def _print_plan(noise: float, costs: Mapping[int, Spent], fit: Mapping[str, Any] | None) -> None:
    console = _console()
    console.print(f"noise multiplier {noise:.4f}", highlight=False)
    table = Table(box=None, header_style="", pad_edge=False)
    for name in ("round", "epsilon", "PLD", "RDP"):
        table.add_column(name, justify="right")
    for number, cost in costs.items():
        shown = (cost.epsilon, cost.pld, cost.rdp)
        table.add_row(f"{number:,}", *(f"{value:.4f}" for value in shown))
    console.print(table)
    console.print(f"delta {next(iter(costs.values())).delta:g}", highlight=False, style="dim")
    if fit is not None and fit["fits"]:
        console.print(f"fits: {fit['left']:.4f} is left before it", highlight=False)


def leave_out(folder: Path, subject: str) -> None:
    """Put a subject on the list and the change into the ledger.

    Raises:
        ConfedError: no ledger, or no id.
    """
    ledger = open_ledger(folder)
    ledger.opt_out(add_opt_out(folder, subject).commitment)
    _console().print("Left out from the next round on; what was spent stays spent.")


def renew_key(folder: Path) -> None:
    """Rotate the key and say the new fingerprint.

    Raises:
        ConfedError: no ledger, or a damaged one.
    """
    ledger = rotate_key(folder)
    key = ledger.state().keys[-1]
    _console().print(f"New signing key {key.fingerprint}; public-key.pem stays as it is.")


def add_cohort(folder: Path, name: str) -> None:
    """Open a cohort.

    Raises:
        ConfigError: a name that cannot stand in a ledger, or one that is there.
    """
    if not is_name(name):
        raise ConfigError(
            f"Expected a cohort name of letters, digits, '.', '_', '-', got {name!r}."
        )
    ledger = open_ledger(folder)
    if name in ledger.state().spent:
        raise ConfigError(f"Expected a new cohort, {name} is there already.")
    ledger.add_cohort(name)
    _console().print(f"Cohort {name} begins at epsilon 0.", highlight=False)


def _console() -> Console:
    return Console(width=min(80, Console().width))
