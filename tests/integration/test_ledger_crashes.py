"""Killed at every step, full disks, many processes: what was sent is never more than was paid."""

import hashlib
import json
import os
import random
import signal
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from common.caps import SiteCaps
from common.chain import State
from common.errors import OrderError, PrivacyRefused
from common.ledger import Ledger, PlanRequest, create_ledger
from common.ledger_file import LEDGER_NAME, LedgerFile
from common.mechanism import Composed, Gaussian, PoissonSampled
from common.privacy_filter import Budget, fits
from common.randomness import SecureRandomness
from common.signing import SigningKey
from common.verification import Verdict, verify
from tests.children import KILLED, ended, fork, kill_me

MODEL, PLAN = "b" * 64, "a" * 64
EVENT = PoissonSampled(sample_rate=0.25, event=Gaussian(noise_multiplier=20.0))
ROUNDS = 4000
CAPS = SiteCaps(epsilon=8.0, delta=1e-5, rounds=ROUNDS)
POINTS = (
    "before the reservation",
    "half of the reservation is written",
    "reservation written and not synced",
    "after the reservation",
    "while training",
    "payload kept and release not written",
    "half of the release is written",
    "release written and not synced",
    "after the release and before sending",
    "after sending",
)


@dataclass(frozen=True)
class Site:
    """A site's folder, its key, and what a server has received from it."""

    folder: Path
    key: SigningKey

    @property
    def received(self) -> Path:
        return self.folder / "received.jsonl"

    @property
    def lines(self) -> bytes:
        return (self.folder / LEDGER_NAME).read_bytes()

    def messages(self) -> list[dict[str, str | int]]:
        text = self.received.read_text() if self.received.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def verdict(self) -> Verdict:
        return verify(self.lines, self.key.public)


class StopsAt(LedgerFile):
    """The product's file, that ends the process at a named point of a round."""

    def __init__(self, folder: Path, point: str) -> None:
        super().__init__(folder)
        self.point = point

    def here(self, *points: str) -> None:
        if self.point in points:
            kill_me()

    def append(self, data: bytes) -> None:
        kind = json.loads(data.splitlines()[-1])["kind"]
        name = {"reserve": "reservation", "release": "release"}.get(kind, "")
        if name == "release":
            self.here("payload kept and release not written")
        if self.point == f"half of the {name} is written":
            os.pwrite(self._file(), data[: len(data) // 2], os.fstat(self._file()).st_size)
            kill_me()
        if self.point == f"{name} written and not synced":
            os.pwrite(self._file(), data, os.fstat(self._file()).st_size)
            kill_me()
        super().append(data)


@pytest.fixture()
def site(tmp_path: Path) -> Site:
    key = SigningKey.generate()
    ledger = create_ledger(LedgerFile(tmp_path), site="clinic", caps=CAPS, key=key)
    ledger.plan(
        PlanRequest(
            run="run", events={"train": (EVENT, ROUNDS)}, max_grad_norm=1.0, plan_sha256=PLAN
        ),
        whole=False,
    )
    return Site(tmp_path, key)


def run_rounds(site: Site, first: int, last: int, *, point: str = "", at: int = 0) -> None:
    """A site's loop: what was released goes out again, all else is paid for first."""
    store = StopsAt(site.folder, "")
    ledger = Ledger(store, site.key)
    for number in range(first, last + 1):
        store.point = point if number == at else ""
        asked = {"run": "run", "number": number, "model_sha256": MODEL}
        payload = ledger.stored(**asked)  # type: ignore[arg-type]
        if payload is None:
            store.here("before the reservation")
            grant = ledger.reserve(**asked, randomness=SecureRandomness())  # type: ignore[arg-type]
            store.here("after the reservation")
            chosen = grant.sample(100)
            store.here("while training")
            payload = chosen.tobytes() + grant.noise(64).tobytes()
            ledger.release(grant, payload)
        store.here("after the release and before sending")
        send(site, number, payload)
        store.here("after sending")


def send(site: Site, number: int, payload: bytes) -> None:
    told = {"round": number, "sha256": hashlib.sha256(payload).hexdigest()}
    with site.received.open("ab") as file:
        file.write(json.dumps(told).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def require_paid(site: Site, *, kills: int) -> None:
    """Each message has an earlier reservation; at most one reservation more a kill."""
    found, messages = site.verdict(), site.messages()
    assert {fault.text for fault in found.faults} <= {"expected a whole last line, got a torn one"}
    state = found.state
    for message in messages:
        assert_paid(state, int(message["round"]), str(message["sha256"]))
    rounds = {message["round"] for message in messages}
    assert len(state.reserved) <= len(rounds) + kills


def assert_paid(state: State, number: int, sha256: str) -> None:
    released = state.released["run", number, "train"]
    assert released.payload_sha256 == sha256
    assert released.reserve < released.seq
    assert state.reserved[released.reserve].asked == ("run", number, "train")


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_step_nothing_was_sent_unpaid_and_the_next_process_goes_on(
    site: Site, point: str
) -> None:
    child = fork(lambda: run_rounds(site, 1, 4, point=point, at=2))
    assert ended(child) == KILLED
    require_paid(site, kills=1)
    before, sent = site.verdict().state, site.messages()
    sent_rounds = [message["round"] for message in sent]
    assert sent_rounds == ([1, 2] if point == "after sending" else [1])

    again = fork(lambda: run_rounds(site, 2, 4))  # the server asks for round 2 once more
    assert ended(again) == 0
    require_paid(site, kills=1)
    after = site.verdict()
    assert after.passed  # what was torn is set aside
    assert [message["round"] for message in site.messages()] == [*sent_rounds, 2, 3, 4]
    paid_before = ("run", 2, "train") in before.released
    assert paid_before == (point in POINTS[-3:])
    if paid_before:
        message = site.messages()[len(sent)]
        assert message["sha256"] == before.released["run", 2, "train"].payload_sha256
        assert len(after.state.reserved) == 4
    twice = 1 if point in POINTS[2:7] else 0
    assert len(after.state.reserved) == 4 + twice
    torn = [path.read_bytes() for path in site.folder.glob("torn-*")]
    assert len(torn) == point.startswith("half")


def test_killed_at_twenty_random_moments_never_under_counts(site: Site) -> None:
    draw, kills = random.Random(20), 0
    while kills < 20:
        first = max([int(message["round"]) for message in site.messages()], default=1)
        child = fork(partial(run_rounds, site, first, ROUNDS))
        time.sleep(draw.uniform(0.0, 0.12))
        os.kill(child, signal.SIGKILL)
        assert ended(child) == KILLED
        kills += 1
        require_paid(site, kills=kills)
    first = max(int(message["round"]) for message in site.messages())
    assert ended(fork(lambda: run_rounds(site, first, first + 2))) == 0
    assert site.verdict().passed
    require_paid(site, kills=kills)
    by_round: dict[object, set[object]] = {}
    for message in site.messages():
        by_round.setdefault(message["round"], set()).add(message["sha256"])
    assert all(len(hashes) == 1 for hashes in by_round.values())  # the same bytes every time
    assert len(by_round) > 20


def test_ten_processes_on_one_ledger_spend_no_more_than_the_budget(tmp_path: Path) -> None:
    key, event = SigningKey.generate(), Gaussian(noise_multiplier=8.0)
    caps = SiteCaps(epsilon=3.0, delta=1e-5, rounds=ROUNDS)
    create_ledger(LedgerFile(tmp_path), site="clinic", caps=caps, key=key)

    def spend(process: int) -> None:
        ledger = Ledger(LedgerFile(tmp_path), key)
        events = {"train": (event, ROUNDS)}
        ledger.plan(
            PlanRequest(run="run", events=events, max_grad_norm=1.0, plan_sha256=PLAN), whole=False
        )
        granted = 0
        for number in range(1 + process % 2, ROUNDS):  # two processes ask for the same rounds
            time.sleep(0.02)  # a lock is free to whoever asks first: let the others ask too
            try:
                grant = ledger.reserve(
                    run="run", number=number, model_sha256=MODEL, randomness=SecureRandomness()
                )
                granted += 1
                ledger.release(grant, b"noise")
            except OrderError:
                continue  # another one was quicker with the release
            except PrivacyRefused as refusal:
                if "needed" in str(refusal):
                    break
        (tmp_path / f"granted-{process}").write_text(str(granted))

    children = [fork(partial(spend, process)) for process in range(10)]
    assert [ended(child) for child in children] == [0] * 10
    granted = [int(path.read_text()) for path in tmp_path.glob("granted-*")]
    found = verify((tmp_path / LEDGER_NAME).read_bytes(), key.public)
    assert found.passed
    assert len(granted) == 10
    assert sum(granted) == len(found.state.reserved) > 20
    assert sum(count > 0 for count in granted) > 1
    assert found.spent.epsilon <= caps.epsilon
    budget = Budget(epsilon=caps.epsilon, delta=caps.delta)
    reserved = Composed(events=tuple(r.event for r in found.state.reserved.values()))
    assert not fits(budget, reserved, event, adaptive=False)
