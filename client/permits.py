"""What a session asks of a site's ledger, and where a deployed site's ledger lies.

A simulation gives sessions other ledgers (`simulations.ledgers`); a deployed site has this one.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from client.site import SiteRecords
from common.errors import ConfigError
from common.grant import Grant
from common.ledger import Ledger, PlanRequest
from common.plan import RunPlan
from common.randomness import Randomness
from common.site_ledger import has_ledger, open_ledger, start_ledger


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


PermitSource = Callable[[SiteRecords, RunPlan, str], Permits]
"""From a site and the plan and the name of a run to the ledger that pays for it."""


def deployed_permits(records: SiteRecords, _plan: RunPlan, run: str) -> Ledger:
    """The ledger that the node's configuration names; there is no training without one.

    Raises:
        ConfigError: none is named.
    """
    if records.ledger is None:
        raise ConfigError("Expected ledger in node_config, the folder of the site's ledger.")
    if records.made_up:
        # Made-up people have no budget to keep from run to run.
        folder = records.ledger / run / records.name
        if not has_ledger(folder):
            return start_ledger(folder, site=records.name, caps=records.caps)
        return open_ledger(folder, site=records.name)
    return open_ledger(records.ledger, site=records.name)
