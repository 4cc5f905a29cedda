"""`confed audit`: check what was spent, with nothing but ledgers and public keys."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from common.cli import EntryPointGroup, missing_package

if TYPE_CHECKING:
    from common.audit import Audit

FILE = click.Path(path_type=Path, dir_okay=False)
LEDGERS = click.argument(
    "paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
KEYS = click.option(
    "--public-key",
    "keys",
    multiple=True,
    metavar="FILE",
    help="The site's public key, or SITE=FILE for one of several; else the one beside the ledger.",
)
RECEIPTS = click.option(
    "--receipts",
    multiple=True,
    type=click.Path(path_type=Path),
    help="The server's receipts; else receipts.json beside the ledgers or a folder above.",
)
SITES = click.option(
    "--sites-per-subject",
    type=int,
    metavar="K",
    help="The most sites that one person may be at; all of them if not given.",
)


@click.group(cls=EntryPointGroup, points="confed.audit", prefix="confed audit")
def audit() -> None:
    """Check ledgers of privacy spent, and report on them."""


@audit.command()
@LEDGERS
@KEYS
@RECEIPTS
@SITES
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(
    paths: tuple[Path, ...],
    keys: tuple[str, ...],
    receipts: tuple[Path, ...],
    sites_per_subject: int | None,
    as_json: bool,
) -> int:
    """Check ledgers with nothing but the public keys, and compute epsilon again.

    PATH... are ledgers, folders of sites, or what `confed simulate` wrote.

    Exit status: 0 all verify, 1 a fault was found, 2 wrong input, 3 refused.
    """
    found = audited(paths, keys, receipts, sites_per_subject)
    if as_json:
        from common.audit_json import to_json  # noqa: PLC0415

        click.echo(json.dumps(to_json(found), indent=1, allow_nan=False))
    else:
        from rich.console import Console  # noqa: PLC0415

        from common.audit_table import print_audit  # noqa: PLC0415

        print_audit(found, Console())
    return 0 if found.passed else 1


@audit.command()
@LEDGERS
@KEYS
@RECEIPTS
@SITES
@click.option("--out", required=True, type=FILE, help="HTML file to write.")
@click.option("--pdf", type=FILE, help="PDF to write as well.")
@click.option("--empirical", type=FILE, help="empirical.json of `confed audit empirical`.")
@click.option("--summary", type=FILE, help="summary.json of a simulation.")
@click.option("--site-facts", type=FILE, help="TOML with what only the controller can say.")
def report(
    paths: tuple[Path, ...],
    keys: tuple[str, ...],
    receipts: tuple[Path, ...],
    sites_per_subject: int | None,
    **files: Path | None,
) -> int:
    """Write one self-contained page about what was spent, for a regulator.

    PATH... are ledgers, folders of sites, or what `confed simulate` wrote.

    Exit status: 0 all verify, 1 a fault was found and is in the report, 2 wrong input, 3 refused.
    """
    try:
        from common.report_files import write_report  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise _extra(error) from None
    found = audited(paths, keys, receipts, sites_per_subject)
    for written in write_report(found, [str(path) for path in paths], files):
        click.echo(written)
    return 0 if found.passed else 1


def _extra(error: ModuleNotFoundError) -> Exception:
    """What to say of a package of the extra `report`; any other missing module is a bug."""
    package = (error.name or "").partition(".")[0]
    if package not in {"jinja2", "markupsafe", "matplotlib", "weasyprint"}:
        return error
    return missing_package(package, "confed audit report", "confed[report]")


def audited(
    paths: tuple[Path, ...],
    keys: tuple[str, ...],
    receipts: tuple[Path, ...],
    sites_per_subject: int | None,
) -> "Audit":
    """Find, read and check the ledgers that a command line names."""
    from common.audit import audit as check  # noqa: PLC0415
    from common.audit_files import (  # noqa: PLC0415
        find_ledgers,
        find_receipts,
        read_ledgers,
        read_receipts,
    )

    ledgers = find_ledgers(paths)
    files = read_receipts(receipts or find_receipts(ledgers, paths))
    return check(
        read_ledgers(ledgers, keys),
        receipts=[receipt for file in files for receipt in file.receipts],
        server_keys=[file.server_key for file in files],
        sites_per_subject=sites_per_subject,
    )
