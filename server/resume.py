"""What `confed server` and `confed adapter` do and print."""

import json
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from common.errors import ConfigError
from common.plan import plan_from_json
from server.checkpoint import Checkpoint, Checkpoints


def newest(state: Path) -> Checkpoint:
    """The last whole round in a server's folder.

    Raises:
        ConfigError: there is none.
        ModelError: all are damaged.
    """
    found = Checkpoints(state / "checkpoints").newest()
    if found is None:
        raise ConfigError(
            f"Expected a committed round in {state / 'checkpoints'}, found none; start the run "
            f"with --run-config 'state=\"{state}\"'."
        )
    return found


def resume_run(
    state: Path, superlink: str, *, app: Path, more: Sequence[str] = (), dry_run: bool = False
) -> int:
    """Start the run again through Flower; the answer is Flower's exit status.

    Args:
        state: of the server.
        superlink: name of a connection; empty for Flower's default.
        app: folder of the Flower app.
        more: words for `flwr run`; a run configuration among them overrides the run's.
        dry_run: only print the command.

    Raises:
        ConfigError: nothing to resume, it is finished, or Flower is not installed.
    """
    found = newest(state)
    rounds = plan_from_json(found.plan).federation.rounds
    # A server that died after its last round has its release still to write.
    if found.round >= rounds and not found.facts["options"]["out"]:
        raise ConfigError(f"Expected rounds to be left, round {found.round} was the last.")
    # Sites of the checkpoint are waited for: a round asked of fewer would be another round.
    config = {
        **found.facts["options"],
        "state": str(state.resolve()),
        "resume": True,
        "sites": len(found.facts["members"]),
    }
    named = ((key.replace("_", "-"), json.dumps(config[key])) for key in sorted(config))
    words = " ".join(f"{key}={value}" for key, value in named)
    command = ["flwr", "run", str(app), *([superlink] if superlink else []), "--stream"]
    # Each configuration is an option: in one, Flower refuses a key that comes twice.
    command += ["--run-config", words, *more]
    click.echo(f"resuming run {found.run} after round {found.round} of {rounds}")
    if dry_run:
        click.echo(shlex.join(command))
        return 0
    if shutil.which("flwr") is None:
        raise ConfigError("Expected Flower's command flwr on the path; install confed[server].")
    return subprocess.run(command, check=False).returncode


def show_status(state: Path, *, as_json: bool) -> None:
    """Print the last committed round.

    Raises:
        ConfigError: there is none.
    """
    found = newest(state)
    plan = plan_from_json(found.plan)
    facts = {
        "run": found.run,
        "round": found.round,
        "rounds": plan.federation.rounds,
        "members": found.facts["members"],
        "offences": found.facts["offences"],
    }
    if as_json:
        click.echo(json.dumps(facts))
        return
    console = _console()
    console.print(
        f"run {found.run}: round {found.round} of {plan.federation.rounds} committed",
        highlight=False,
    )
    table = Table(box=None, header_style="", pad_edge=False)
    for name in ("site", "domain", "weight", "offences"):
        table.add_column(name, justify="left" if name in {"site", "domain"} else "right")
    for member in facts["members"]:
        offences = facts["offences"].get(member["site"], 0)
        table.add_row(member["site"], member["domain"], f"{member['weight']:g}", str(offences))
    console.print(table)


def show_release(told: Mapping[str, Any], *, believed: bool) -> None:
    """Print a release that was checked."""
    console = _console()
    console.print(f"adapter   {told['adapter_sha256'][:16]}… as released", highlight=False)
    said = "believed, no --public-key given" if believed else "the given one"
    console.print(f"server    {told['server_key']} ({said})", highlight=False)
    console.print(
        f"rounds    {told['rounds']}, released after round {told['released_round']}, "
        f"{told['aggregation']}; {told['ended']}",
        highlight=False,
    )
    table = Table(box=None, header_style="", pad_edge=False)
    for name in ("site", "domain", "epsilon", "delta"):
        table.add_column(name, justify="left" if name in {"site", "domain"} else "right")
    for site in told["sites"]:
        spent = "no claim" if site["epsilon"] is None else f"{site['epsilon']:.4f}"
        delta = "" if site["delta"] is None else f"{site['delta']:g}"
        table.add_row(site["site"], site["domain"], spent, delta)
    console.print(table)


def _console() -> Console:
    # Names are the sites' own: nothing in them is markup.
    return Console(width=min(80, Console().width), markup=False, emoji=False)
