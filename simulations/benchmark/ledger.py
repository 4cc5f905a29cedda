"""Rows: a ledger's append, check and verification, on a real file with fsync."""

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from common.caps import SiteCaps
from common.grant import ReservedGrant
from common.ledger import Ledger, PlanRequest, create_ledger
from common.ledger_file import LEDGER_NAME, LedgerFile
from common.mechanism import Gaussian, PoissonSampled
from common.randomness import SecureRandomness
from common.signing import SigningKey
from common.verification import Verdict, verify
from simulations.benchmark.rows import Row

SHORT: Final = 1_000
"""Reservations of the ledger that is appended to and checked."""
LONG: Final = 10_000
"""Entries of the ledger that is verified."""
_EVENT: Final = PoissonSampled(sample_rate=0.01, event=Gaussian(noise_multiplier=30.0))
_RUN, _SHA = "benchmark", "0" * 64


def ledger_rows(*, short: int = SHORT, long: int = LONG) -> list[Row]:
    """Seconds of a reservation, of opening, and of verification with nothing but the key.

    Args:
        short: reservations, without releases; row 15 asks for 1,000.
        long: entries of a second ledger, made of reservations and releases.
    """
    with tempfile.TemporaryDirectory(prefix="confed-benchmark-") as scratch:
        key = SigningKey.generate()
        folder = Path(scratch) / "short"
        ledger = _new(folder, key, rounds=short)
        appends = [_seconds(partial(_reserve, ledger, n)) for n in range(1, short + 1)]
        check = _seconds(lambda: Ledger(LedgerFile(folder), key).spent())
        data = (folder / LEDGER_NAME).read_bytes()
        one = _verified(data, key)
        many = _verified(_long(Path(scratch) / "long", key, long), key)
    return [
        _append_row(appends),
        Row(
            name=f"Ledger: opened, checked and epsilon of {short:,} reservations",
            measured=round(check, 3),
            unit="s",
            least=2.0,
        ),
        Row(
            name=f"Ledger: verified with the public key alone, {short:,} reservations",
            measured=round(one, 3),
            unit="s",
            least=5.0,
        ),
        Row(
            name=f"Ledger: the same, {long:,} entries",
            measured=round(many, 3),
            unit="s",
            least=20.0,
        ),
    ]


def _append_row(appends: list[float]) -> Row:
    last = statistics.median(appends[-max(len(appends) // 10, 1) :])
    return Row(
        name="Ledger: a reservation checked, signed, appended and fsynced",
        measured=round(1e3 * statistics.median(appends), 3),
        unit="ms",
        comparison=f"the last tenth of {len(appends):,}: {1e3 * last:.3g} ms",
        least=20.0,
        detail={
            "n": len(appends),
            "largest_ms": round(1e3 * max(appends), 3),
            "last_tenth_ms": round(1e3 * last, 3),
        },
    )


def _new(folder: Path, key: SigningKey, *, rounds: int) -> Ledger:
    caps = SiteCaps(epsilon=8.0, delta=1e-5, max_grad_norm=1.0, rounds=rounds)
    ledger = create_ledger(LedgerFile(folder), site="benchmark", caps=caps, key=key)
    events = {"train": (_EVENT, rounds)}
    ledger.plan(PlanRequest(run=_RUN, events=events, max_grad_norm=1.0, plan_sha256=_SHA))
    return ledger


def _reserve(ledger: Ledger, number: int) -> ReservedGrant:
    return ledger.reserve(run=_RUN, number=number, model_sha256=_SHA, randomness=SecureRandomness())


def _long(folder: Path, key: SigningKey, entries: int) -> bytes:
    """A ledger of so many entries: a genesis, a plan, then a reservation and its release."""
    rounds = max((entries - 2) // 2, 1)
    ledger = _new(folder, key, rounds=rounds)
    for number in range(1, rounds + 1):
        ledger.release(_reserve(ledger, number), b"update")
    return (folder / LEDGER_NAME).read_bytes()


def _verified(data: bytes, key: SigningKey) -> float:
    found: list[Verdict] = []
    seconds = _seconds(lambda: found.append(verify(data, key.public)))
    if not found[0].passed:
        raise RuntimeError(f"the benchmark's own ledger has a fault: {found[0].faults[0].text}")
    return seconds


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
