"""Real ledgers for tests, signed and chained by the product's own code.

`make_ledger` goes through `Ledger` as a site does; `long_ledger` signs the same entries without
a disk, for the sizes that only an auditor meets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from common.caps import SiteCaps
from common.chain import State, advance
from common.entries import NO_HASH, Entry, Signed, signed
from common.ledger import COHORT, Ledger, PlanRequest, create_ledger
from common.ledger_file import LEDGER_NAME, PUBLIC_NAME, LedgerFile
from common.mechanism import Composed, Event, Gaussian, PoissonSampled, Repeated
from common.privacy_filter import order_for
from common.randomness import Randomness, SecureRandomness
from common.receipts import Head, Receipt, countersign
from common.signing import SigningKey
from simulations.seeded import SeededRandomness

PLAN, BACKBONE, CATALOG, MODEL = ("1" * 64, "2" * 64, "3" * 64, "4" * 64)
CAPS = SiteCaps(epsilon=8.0, delta=1e-5, noise_multiplier=0.5, max_grad_norm=1.0, rounds=20_000)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run to write into a ledger; evaluation once a round when `evaluate` is a noise."""

    name: str = "run-1"
    rounds: int = 6
    planned: int = 0
    noise: float = 1.2
    rate: float = 0.25
    steps: int = 1
    evaluate: float = 0.0
    unanswered: tuple[int, ...] = ()

    @property
    def event(self) -> Event:
        gaussian = Gaussian(noise_multiplier=self.noise)
        return Repeated(
            count=self.steps, event=PoissonSampled(sample_rate=self.rate, event=gaussian)
        )

    @property
    def events(self) -> Mapping[str, tuple[Event, int]]:
        planned = self.planned or self.rounds
        asked: dict[str, tuple[Event, int]] = {"train": (self.event, planned)}
        if self.evaluate:
            asked["evaluate"] = (Gaussian(noise_multiplier=self.evaluate), planned)
        return asked


@dataclass(kw_only=True)
class Clock:
    """Starts at a fixed time and goes on by a minute a question."""

    now: datetime = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(minutes=1)
        return self.now


@dataclass(frozen=True, kw_only=True)
class Made:
    """A site's folder with its ledger."""

    site: str
    folder: Path
    key: SigningKey
    ledger: Ledger

    @property
    def path(self) -> Path:
        return self.folder / LEDGER_NAME

    @property
    def data(self) -> bytes:
        return self.path.read_bytes()

    @property
    def head(self) -> Head:
        state = self.ledger.state()
        return Head(site=self.site, seq=state.seq, head=state.head)


def make_ledger(
    folder: Path,
    *,
    site: str = "clinic-1",
    runs: Sequence[Run] = (Run(),),
    caps: SiteCaps = CAPS,
    seeded: bool = False,
    key: SigningKey | None = None,
) -> Made:
    """Write `folder/ledger.jsonl` and `folder/public-key.pem` as a site would."""
    key = key or SigningKey.generate()
    ledger = create_ledger(LedgerFile(folder), site=site, caps=caps, key=key, clock=Clock())
    (folder / PUBLIC_NAME).write_bytes(key.public.pem())
    made = Made(site=site, folder=folder, key=key, ledger=ledger)
    for run in runs:
        extend(made, run, seeded=seeded)
    return made


def extend(made: Made, run: Run, *, seeded: bool = False) -> None:
    """Declare a run and go through all its rounds."""
    declare(made, run)
    for number in range(1, run.rounds + 1):
        one_round(made, run, number, seeded=seeded)


def declare(made: Made, run: Run) -> None:
    """Write the plan of a run."""
    made.ledger.plan(
        PlanRequest(
            run=run.name,
            events=run.events,
            max_grad_norm=1.0,
            plan_sha256=PLAN,
            backbone_sha256=BACKBONE,
            catalog_sha256=CATALOG,
        )
    )


def one_round(
    made: Made, run: Run, number: int, *, seeded: bool = False, receipt: Receipt | None = None
) -> None:
    """Reserve and release one round, for every purpose of the run."""
    randomness: Randomness = SecureRandomness()
    if seeded:
        told_apart = {"site": made.site, "round_number": number, "purpose": "noise"}
        randomness = SeededRandomness(seed=1, **told_apart)
    told = None if receipt is None else receipt.details()
    for purpose in sorted(run.events, reverse=True):
        grant = made.ledger.reserve(
            run=run.name,
            number=number,
            model_sha256=MODEL,
            randomness=randomness,
            purpose=purpose,
            receipt=told,
        )
        told = None
        if number not in run.unanswered:
            made.ledger.release(grant, f"{run.name} {number} {purpose}".encode())


def make_consortium(
    folder: Path,
    *,
    sites: Sequence[str] = ("clinic-1", "clinic-2", "bank-1"),
    run: Run | None = None,
    server: SigningKey | None = None,
    seeded: bool = False,
) -> tuple[list[Made], list[Receipt]]:
    """Write `folder/ledgers/SITE/` as a simulation does, and countersign every round."""
    run, server = run or Run(), server or SigningKey.generate()
    made = [make_ledger(folder / "ledgers" / site, site=site, runs=()) for site in sites]
    all_receipts: list[Receipt] = []
    last: dict[str, Receipt] = {}
    for one in made:
        declare(one, run)
    for number in range(1, run.rounds + 1):
        for one in made:
            one_round(one, run, number, seeded=seeded, receipt=last.get(one.site))
        receipts = countersign([o.head for o in made], run=run.name, number=number, key=server)
        last = {receipt.site: receipt for receipt in receipts}
        all_receipts += receipts
    write_receipts(folder / "ledgers" / "receipts.json", server, all_receipts)
    return made, all_receipts


def write_receipts(path: Path, server: SigningKey, receipts: Sequence[Receipt]) -> None:
    """Write what the server keeps of its countersignatures."""
    import json

    plain = {"server_key": server.public.hex, "receipts": [r.plain() for r in receipts]}
    path.write_text(json.dumps(plain))


def long_ledger(
    entries: int, *, site: str = "clinic-1", key: SigningKey | None = None, noise: float = 30.0
) -> tuple[bytes, SigningKey]:
    """A whole ledger of that many entries: a genesis, a plan, reservations and releases."""
    key = key or SigningKey.generate()
    caps = CAPS
    run = Run(rounds=max((entries - 1) // 2, 1), noise=noise, rate=0.01)
    schedule = Composed(events=(Repeated(count=run.rounds, event=run.event),))
    state, lines = State(), []

    def write(kind: str, **fields: Any) -> None:
        entry = Entry(
            site=site,
            seq=state.seq + 1,
            prev=state.head,
            ts="2026-03-02T08:00:00Z",
            kind=kind,
            **fields,
        )
        line: Signed = signed(entry, key)
        faults = advance(state, line)
        if faults:
            raise ValueError(faults[0].text)
        lines.append(line.line + b"\n")

    genesis = {
        "version": 1,
        "public_key": key.public.hex,
        "unit": "subject",
        "adjacency": "add-or-remove",
        "caps": caps.plain(),
        "order": order_for(caps.epsilon, caps.delta),
        "cohort": COHORT,
    }
    plan = {
        "purposes": ["train"],
        "max_grad_norm": 1.0,
        "plan_sha256": PLAN,
        "backbone_sha256": BACKBONE,
        "catalog_sha256": CATALOG,
    }
    reserve = {
        "plan": 1,
        "purpose": "train",
        "cohorts": [COHORT],
        "noise": "secure",
        "opt_outs": NO_HASH,
    }
    write("genesis", details=genesis)
    write("plan", run=run.name, event=schedule, details=plan)
    for index in range(entries - 2):
        number = index // 2 + 1
        about: dict[str, Any] = {"run": run.name, "round": number, "model_sha256": MODEL}
        if index % 2 == 0:
            write("reserve", event=run.event, details=reserve, **about)
        else:
            details = {"reserve": state.seq, "payload_sha256": "5" * 64, "bytes": 1000}
            write("release", details=details, **about)
    return b"".join(lines), key
