"""The command `confed audit empirical`; heavy imports wait inside."""

from pathlib import Path
from typing import Any

import click


# Named here too: click remembers the names of the first context that a command meets.
@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--tier",
    type=click.Choice(["a", "b", "c", "all"]),
    default="all",
    show_default=True,
    help="a: mechanism tests; b: one-run audit with canaries; c: membership inference.",
)
@click.option(
    "--epsilon-probe",
    "probes",
    type=float,
    multiple=True,
    help="Claim that is tested; may be given again.  [default: 1 and 2]",
)
@click.option(
    "--seeds",
    type=click.IntRange(1, 1000),
    default=20,
    show_default=True,
    help="Runs of tier b for each claim.",
)
@click.option(
    "--canaries",
    type=click.IntRange(100, 20_000),
    default=1000,
    show_default=True,
    help="Canary subjects of tier b.",
)
@click.option("--broken", metavar="NAME", help="Audit a broken mechanism instead; see above.")
@click.option(
    "--self-test", is_flag=True, help="Audit every broken mechanism; all have to be caught."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for empirical.json and the plots.",
)
@click.option("--json", "as_lines", is_flag=True, help="Print the JSON alone, one line.")
def empirical(**options: Any) -> None:
    """Attack the product's own training step.

    Three tiers see whether the privacy claim holds. Records are made up; nobody is in them.

    \b
    Broken mechanisms:
      no-noise, less-noise, one-tensor, no-clip,
      row-unit, fixed-batches, shuffled-batches, same-seed

    Exit status: 0 every check passes, 1 one fails, 2 wrong input.
    """  # noqa: D301  (\b is click's mark of a paragraph that is not wrapped)
    from simulations.empirical.run import run_command  # noqa: PLC0415

    if not run_command(**options):
        raise click.exceptions.Exit(1)
