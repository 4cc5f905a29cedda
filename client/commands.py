"""`confed site`: a site's ledger and budget, from its own command line. No torch, no Flower."""

from pathlib import Path

import click

FOLDER = click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group()
def site() -> None:
    """Set up and watch over a site's privacy budget."""


@site.command()
@FOLDER
@click.option("--site", "name", required=True, help="Name of the site in the contract.")
@click.option("--max-epsilon", type=float, default=10.0, show_default=True, help="Budget.")
@click.option("--delta", type=float, default=1e-5, show_default=True, help="Of the budget.")
@click.option("--least-noise", type=float, default=0.3, show_default=True, help="Multiplier.")
@click.option("--max-clip", type=float, default=10.0, show_default=True, help="Gradient norm.")
@click.option("--max-rate", type=float, default=1.0, show_default=True, help="Sample rate.")
@click.option("--max-rounds", type=int, default=10_000, show_default=True, help="Of one run.")
def init(folder: Path, **options: float | int | str) -> None:
    """Make FOLDER with keys and an empty ledger; the limits are the owner's and stay."""
    from client.budget import start  # noqa: PLC0415

    start(folder, options)


@site.command()
@FOLDER
@JSON
def budget(folder: Path, *, as_json: bool) -> None:
    """Show what FOLDER's ledger spent, what is left, and how many more rounds fit."""
    from client.budget import show_budget  # noqa: PLC0415

    show_budget(folder, as_json=as_json)


@site.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path, file_okay=False))
@click.option("--rounds", type=int, required=True, help="Of the run.")
@click.option("--local-steps", type=int, default=1, show_default=True, help="DP steps a round.")
@click.option(
    "--sample-rate", type=float, default=0.25, show_default=True, help="Of subjects, a step."
)
@click.option("--epsilon", type=float, help="Of the whole run; finds the noise.")
@click.option("--noise-multiplier", type=float, help="Finds the epsilon.")
@click.option("--delta", type=float, default=1e-5, show_default=True, help="Of the run.")
@JSON
def plan(folder: Path | None, **options: float | int | bool | None) -> None:
    """Say before anything runs what a schedule would cost, and whether FOLDER's budget holds.

    Exit status: 0 it fits, 3 it does not.
    """
    from client.budget import show_plan  # noqa: PLC0415

    show_plan(folder, options)


@site.command("opt-out")
@FOLDER
@click.option(
    "--subject",
    prompt="Subject id",
    hide_input=True,
    help="Asked for when not given, so that no shell history keeps it.",
)
def opt_out(folder: Path, subject: str) -> None:
    """Leave a subject of FOLDER's site out of every batch from the next round on.

    What was spent stays spent.
    """
    from client.budget import leave_out  # noqa: PLC0415

    leave_out(folder, subject)


@site.command("rotate-key")
@FOLDER
def rotate_key(folder: Path) -> None:
    """Replace the signing key of FOLDER; the first public key stays the one to check with."""
    from client.budget import renew_key  # noqa: PLC0415

    renew_key(folder)


@site.command()
@FOLDER
@click.argument("name")
def cohort(folder: Path, name: str) -> None:
    """Open a block NAME of new subjects in FOLDER's ledger, none of whom was there before.

    Their spending starts at zero; every later reservation counts for all blocks.
    """
    from client.budget import add_cohort  # noqa: PLC0415

    add_cohort(folder, name)
