"""The commands `confed simulate` and `confed benchmark`; heavy imports wait inside."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

ATTACK_NAMES = (
    "sign-flip",
    "sign-flip-x10",
    "gaussian",
    "alie",
    "alie-inverse",
    "ipm",
    "label-flip",
    "backdoor",
    "nan",
    "huge",
    "weight-lie",
    "wrong-shape",
    "extra-key",
    "replay",
)
FAULT_NAMES = ("drop-out", "straggler", "crash")


def _scenarios(_ctx: click.Context, _param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Packaged scenarios that begin so, or whatever files do."""
    packaged = (files("simulations") / "scenarios").iterdir()
    names = sorted(p.name.removesuffix(".toml") for p in packaged if p.name.endswith(".toml"))
    found = [CompletionItem(name) for name in names if name.startswith(begun)]
    return found or [CompletionItem(begun, type="file")]


@click.command()
@click.argument("scenario", required=False, shell_complete=_scenarios)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the records; without a scenario it is enough.",
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Results [results/SCENARIO]."
)
@click.option("--sites", type=int, help="Sites of each domain.")
@click.option("--site-column", help="Subject column that splits the sites.")
@click.option("--rounds", type=int, help="Rounds of the federation.")
@click.option("--epsilon", type=float, help="Budget of every site.")
@click.option(
    "--engine",
    type=click.Choice(["in-process", "flower"]),
    default="in-process",
    show_default=True,
    help="Threads of this process, or Flower's simulation engine on Ray.",
)
@click.option("--seed", type=int, help="Repeats a run, noise included: no privacy claim then.")
@click.option(
    "--baselines",
    metavar="all|none|LIST",
    help="All, but none with --attack or --fault; or "
    "some of: zero_shot, popularity, local, central, central_non_private, sasrec.",
)
@click.option(
    "--attack",
    type=click.Choice(ATTACK_NAMES),
    metavar="NAME",
    help=f"Also run with hostile sites: {', '.join(ATTACK_NAMES)}.",
)
@click.option(
    "--hostile", metavar="K|SITES", help="How many of the first domain, or which sites [2]."
)
@click.option(
    "--fault",
    type=click.Choice(FAULT_NAMES),
    metavar="NAME",
    help=f"Also run with faulty sites: {', '.join(FAULT_NAMES)}.",
)
@click.option("--fault-rate", type=float, help="Share of a site's rounds that are lost [0.2].")
@click.option(
    "--partition",
    type=click.Choice(["hash", "dirichlet", "size", "time"]),
    help="How subjects are split over the sites of a domain.",
)
@click.option("--alpha", type=float, help="Of dirichlet: smaller is more unlike [0.3].")
@click.option(
    "--log", type=click.Choice(["tensorboard", "mlflow"]), help="Also log through this library."
)
@click.option("--no-cache", is_flag=True, help="Keep no activations on disk between runs.")
def simulate(scenario: str | None, **options: Any) -> None:
    """Simulate a consortium on this machine.

    SCENARIO is the name of a packaged scenario (care-and-bank, diabetes130,
    care-and-bank-real, food-kitchen, ten-hospitals) or a TOML file. Writes
    summary.json, metrics.csv, ledgers, plots and report.html.
    """
    from simulations.run import run_command  # noqa: PLC0415

    run_command(scenario, **options)


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the JSON to this file.",
)
@click.option("--json", "as_lines", is_flag=True, help="Print the JSON alone, one line.")
@click.option("--quick", is_flag=True, help="Fewer repetitions, under a minute.")
@click.option("--ray", is_flag=True, help="Also time Flower's Ray engine.")
def benchmark(out: Path | None, **options: bool) -> None:
    """Time what Confed claims, each row beside its comparison, in one run.

    Prints a table and, to a pipe, the same as one line of JSON after it.
    """
    from simulations.benchmark.run import run_benchmark  # noqa: PLC0415

    run_benchmark(out=out, **options)
