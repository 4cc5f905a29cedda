"""What a session asks of a site's ledger, and where a deployed site's ledger lies.

A simulation gives sessions other ledgers (`simulations.ledgers`); a deployed site has this one.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from client.site import SiteRecords
from common.caps import SiteCaps
from common.entries import is_name
from common.errors import ConfigError
from common.grant import Grant
from common.ledger import Ledger, PlanRequest, create_ledger
from common.ledger_file import KEY_NAME, LEDGER_NAME, PUBLIC_NAME, LedgerFile
from common.plan import RunPlan
from common.randomness import Randomness
from common.signing import SigningKey, read_signing_key


class Permits(Protocol):
    """Reservations and releases, as `common.ledger.Ledger` makes them."""

    def plan(self, request: PlanRequest) -> object:
        """Declare a run."""

    def reserve(
        self,
        *,
        run: str,
        number: int,
        model_sha256: str,
        randomness: Randomness,
        purpose: str = "train",
        receipt: Mapping[str, Any] | None = None,
    ) -> Grant:
        """Pay for one round."""

    def release(self, grant: Grant, payload: bytes) -> str:
        """Record what is about to be sent; the answer is its SHA-256."""

    def stored(
        self, *, run: str, number: int, model_sha256: str, purpose: str = "train"
    ) -> bytes | None:
        """What was released for a round before."""

    def opt_out(self, commitment: str) -> None:
        """Record that the list of opted-out subjects changed."""

    def knows(self, seq: int, head: str) -> bool:
        """Whether the line of that number has that hash."""

    def lines_after(self, seq: int) -> bytes:
        """The lines from `seq` + 1 on."""


PermitSource = Callable[[SiteRecords, RunPlan], Permits]
"""From a site and the plan of a run to the ledger that pays for it."""


def has_ledger(folder: Path) -> bool:
    """Whether a ledger was begun in a folder."""
    path = folder / LEDGER_NAME
    return path.is_file() and path.stat().st_size > 0


def open_ledger(folder: Path, *, site: str) -> Ledger:
    """The ledger of a site that was set up before.

    Raises:
        ConfigError: there is none in the folder.
        SecurityRefused: it is damaged, or another site's.
    """
    if not has_ledger(folder):
        raise ConfigError(
            f"Expected a ledger in {folder}, found none; run: confed site init {folder} --site NAME"
        )
    ledger = Ledger(LedgerFile(folder), read_signing_key(folder / KEY_NAME))
    if ledger.state().site != site:
        raise ConfigError(f"Expected the ledger of {site} in {folder}, got another site's.")
    return ledger


def start_ledger(folder: Path, *, site: str, caps: SiteCaps) -> Ledger:
    """Make a site's keys and an empty ledger.

    Raises:
        ConfigError: the name cannot stand in a ledger, or a file is there already.
    """
    if not is_name(site):
        raise ConfigError(
            f"Expected a site name of letters, digits, '.', '_' and '-', got {site!r}."
        )
    store, path = LedgerFile(folder), folder / KEY_NAME
    if not path.exists():  # it is there when an earlier attempt was cut short
        SigningKey.generate().write(path)
    key = read_signing_key(path)
    (folder / PUBLIC_NAME).write_bytes(key.public.pem())
    return create_ledger(store, site=site, caps=caps, key=key)


def deployed_permits(records: SiteRecords, _plan: RunPlan) -> Ledger:
    """The ledger that the node's configuration names; there is no training without one.

    Raises:
        ConfigError: none is named.
    """
    if records.ledger is None:
        raise ConfigError("Expected ledger in node_config, the folder of the site's ledger.")
    return open_ledger(records.ledger, site=records.name)
