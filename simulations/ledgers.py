"""Ledgers of simulated sites: real ones, as files of the run or in memory for baselines."""

import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from client.permits import Permits
from client.site import SiteRecords
from common.accounting import spent
from common.caps import SiteCaps
from common.ledger import create_ledger
from common.ledger_file import KEY_NAME
from common.plan import RunPlan
from common.signing import SigningKey
from common.site_ledger import has_ledger, open_ledger, start_ledger
from common.spending import cost_after, noise_of
from simulations.unprotected import NoLedger


class MemoryStore:
    """A ledger's storage in memory: the interface of `LedgerFile` without its disk."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._kept: dict[str, bytes] = {}
        self._lock = threading.Lock()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """As LedgerStore."""
        with self._lock:
            yield

    def read(self, offset: int) -> bytes:
        """As LedgerStore."""
        return bytes(self._data[offset:])

    def append(self, data: bytes) -> None:
        """As LedgerStore."""
        self._data += data

    def set_aside(self, offset: int) -> None:
        """As LedgerStore; what is torn is gone."""
        del self._data[offset:]

    def keep(self, name: str, payload: bytes) -> None:
        """As LedgerStore."""
        self._kept[name] = payload

    def kept(self, name: str) -> bytes | None:
        """As LedgerStore."""
        return self._kept.get(name)

    def drop(self, name: str) -> None:
        """As LedgerStore."""
        self._kept.pop(name, None)


def caps_for(plan: RunPlan) -> SiteCaps:
    """What a simulated site's owner allows: exactly what the plan costs."""
    privacy = plan.privacy
    noise = noise_of(plan)
    budget = privacy.epsilon if privacy.epsilon is not None else cost_of(plan)
    return SiteCaps(
        epsilon=budget,
        delta=privacy.delta,
        sample_rate=privacy.sample_rate,
        max_grad_norm=privacy.max_grad_norm,
        noise_multiplier=min(noise, plan.evaluation.noise_multiplier),
        rounds=plan.federation.rounds,
    )


def cost_of(plan: RunPlan) -> float:
    """Epsilon of a whole run at one site, rounded up in the fourth digit."""
    whole = cost_after(plan, noise_of(plan), plan.federation.rounds)
    return spent(whole, delta=plan.privacy.delta).epsilon * (1 + 1e-4)


@dataclass(frozen=True)
class MemoryLedgers:
    """A new ledger in memory for each site of each run; nothing is left of it."""

    def __call__(self, records: SiteRecords, plan: RunPlan, run: str = "") -> Permits:
        """As PermitSource."""
        if not plan.privacy.private:
            return NoLedger(plan)
        return create_ledger(
            MemoryStore(), site=records.name, caps=caps_for(plan), key=SigningKey.generate()
        )


@dataclass(frozen=True)
class FolderLedgers:
    """One folder a site below `root`; processes share it. Can be pickled.

    Attributes:
        root: folder of all ledgers of the run.
    """

    root: Path

    def __call__(self, records: SiteRecords, plan: RunPlan, run: str = "") -> Permits:
        """As PermitSource."""
        if not plan.privacy.private:
            return NoLedger(plan)
        folder = self.root / records.name
        if has_ledger(folder):
            return open_ledger(folder, site=records.name)
        return start_ledger(folder, site=records.name, caps=caps_for(plan))

    def forget_keys(self) -> None:
        """Delete private keys and stored payloads: what is left is an auditor's folder."""
        for folder in self.root.iterdir() if self.root.is_dir() else ():
            with contextlib.suppress(OSError):
                (folder / KEY_NAME).unlink()
            outbox = folder / "outbox"
            for path in outbox.iterdir() if outbox.is_dir() else ():
                path.unlink()
            with contextlib.suppress(OSError):
                outbox.rmdir()
