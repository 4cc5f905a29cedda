"""`confed audit`: check what was spent, with nothing but ledgers and public keys."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from common.cli import EntryPointGroup

if TYPE_CHECKING:
    from common.audit import Audit

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
