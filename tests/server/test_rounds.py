"""The loop with sites that are slow, leave, come back and repeat themselves; resumed runs."""

import gc
import time
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Error, Message

from common.errors import ConfigError, SecurityRefused
from common.wire import Tensors, to_payload, unpack_order
from server.checkpoint import Checkpoints
from server.exchange import QuorumMissed
from server.membership import Membership
from server.options import ServerOptions
from server.rounds import RoundLoop
from server.strategy import LEARNING_RATES
from simulations.grid import FIRST_NODE, InProcessGrid
from tests.models import site_of
from tests.server.consortium import (
    RUN,
    SITES,
    Consortium,
    RoomyLedgers,
    Round,
    Stopped,
    full,
    plan_of,
    round_of,
    stops_at,
    zeros,
)

Value = Callable[[str, int], float]


class Network(InProcessGrid):
    """A grid on which replies take time, come twice, and nodes are away.

    Attributes:
        delay: seconds that a node's replies take.
        away: nodes that are not there.
        twice: whether each reply is delivered two times.
    """

    def __init__(self, app: Any, *, nodes: int) -> None:
        super().__init__(app, nodes=nodes, run_id=RUN, workers=2)
        self.delay: dict[int, float] = {}
        self.away: set[int] = set()
        self.twice = False
        self._travelling: list[tuple[float, Message]] = []

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in super().get_node_ids() if node not in self.away]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = set(message_ids)
        for reply in super().pull_messages(wanted):
            arrives = time.monotonic() + self.delay.get(reply.metadata.src_node_id, 0.0)
            self._travelling += [(arrives, reply)] * (2 if self.twice else 1)
        now = time.monotonic()
        here = [(at, r) for at, r in self._travelling if at <= now]
        self._travelling = [(at, r) for at, r in self._travelling if at > now]
        return [r for _, r in here if r.metadata.reply_to_message_id in wanted]


class Run:
    """A loop over signers: site `s1` moves every number by `value("s1", round)`."""

    def __init__(
        self, sites: int = 3, *, value: Value = lambda s, n: 0.1, folder: Path | None = None,
        **federation: Any,
    ) -> None:  # fmt: skip
        plain = {"aggregation": "mean", "round_timeout": 20.0, "rounds": 3}
        self.asked: Round = round_of(sites, **{**plain, **federation})
        self.value, self.messages = value, list[tuple[str, int]]()
        self.silent: set[str] = set()
        self.grid = Network(self._act, nodes=sites)
        members = dict(self.asked.strategy.members)
        self.released: dict[int, Tensors] = {}
        self.loop = RoundLoop(
            grid=self.grid,
            plan=self.asked.plan,
            strategy=self.asked.strategy,
            membership=Membership(members=members, weights={}),
            current=zeros(),
            checkpoints=None if folder is None else Checkpoints(folder),
            on_round=lambda n, t: self.released.__setitem__(n, {k: v.copy() for k, v in t.items()}),
            options={"out": ""},
        )

    def _act(self, message: Message, context: Context) -> Message:
        site = f"s{int(context.node_config['partition-id'])}"
        number = unpack_order(message.content)[0].round
        self.messages.append((site, number))
        if site in self.silent:
            return Message(Error(code=1004, reason="REFUSED"), reply_to=message)
        return self.asked.signer(site).answer(message, full(self.value(site, number)))

    def at(self, number: int) -> float:
        """The one value that every number of the adapter has after a round."""
        values = {float(v) for t in self.released[number].values() for v in t.ravel().round(5)}
        (only,) = values
        return only

    def reservations(self, site: str) -> int:
        return len(self.asked.signer(site).ledger.state().reserved)


def test_every_round_is_run_and_the_last_adapter_is_released() -> None:
    run = Run(value=lambda site, number: {"s0": 0.3, "s1": 0.0, "s2": 0.0}[site])
    released = run.loop.run()
    assert [run.at(n) for n in range(4)] == pytest.approx([0.0, 0.1, 0.2, 0.3], abs=1e-5)
    assert all(np.array_equal(released[k], v) for k, v in run.released[3].items())
    assert run.loop.done == 3


def test_a_round_closes_at_its_deadline_without_the_slow_and_what_comes_late_never_counts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = Run(value=lambda s, n: 0.3 if s == "s0" else 0.1, round_timeout=0.4, quorum=2)
    run.grid.delay[FIRST_NODE] = 0.6  # its answer to a round arrives in the next one
    start = time.monotonic()
    run.loop.run()
    assert [run.at(n) for n in (1, 2, 3)] == pytest.approx([0.1, 0.2, 0.3], abs=1e-5)
    assert time.monotonic() - start < 3 * 0.4 + 10
    assert caplog.text.count("closed at its deadline without 1 sites") == 3
    assert not run.asked.strategy.offences
    assert run.reservations("s0") == 3  # it did work for every round, and is charged for it


def test_a_site_that_is_slow_once_takes_part_again() -> None:
    run = Run(value=lambda s, n: 0.3 if s == "s0" else 0.0, round_timeout=0.4, quorum=2, rounds=2)
    run.grid.delay[FIRST_NODE] = 0.6
    run.loop.phase = lambda name, n: (
        run.grid.delay.clear() if (name, n) == ("configure", 2) else None
    )
    run.loop.run()
    assert [run.at(1), run.at(2)] == pytest.approx([0.0, 0.1], abs=1e-5)


def test_answers_that_are_delivered_twice_count_once() -> None:
    run = Run(value=lambda s, n: 0.3 if s == "s0" else 0.0)
    run.grid.twice = True
    run.loop.run()
    assert run.at(3) == pytest.approx(0.3, abs=1e-5)


def test_sites_that_leave_and_come_back_take_part_while_they_are_there() -> None:
    run = Run(value=lambda s, n: 0.3 if s == "s0" else 0.0, quorum=2)

    def phase(name: str, number: int) -> None:
        run.grid.away = {FIRST_NODE} if number == 2 else set()

    run.loop.phase = phase
    run.loop.run()
    assert [run.at(n) for n in (1, 2, 3)] == pytest.approx([0.1, 0.1, 0.2], abs=1e-5)
    assert ("s0", 2) not in run.messages


# Quorum


def test_a_missed_quorum_is_asked_again_and_answered_with_the_same_bytes_for_nothing() -> None:
    run = Run(quorum=3, attempts=3, rounds=1)
    run.silent = {"s2"}
    asked = 0

    def phase(name: str, number: int) -> None:
        nonlocal asked
        asked += name == "configure"
        run.silent = {"s2"} if asked < 3 else set()

    run.loop.phase = phase
    run.loop.run()
    assert asked == 3
    assert run.messages.count(("s0", 1)) == 3
    assert run.reservations("s0") == run.reservations("s2") == 1
    assert run.at(1) == pytest.approx(0.1)


def test_after_as_many_attempts_as_the_plan_says_one_line_and_a_checkpoint_that_resumes(
    tmp_path: Path,
) -> None:
    wanted = Run(value=lambda s, n: 0.01 * n)
    wanted.loop.run()
    run = Run(value=lambda s, n: 0.01 * n, quorum=3, attempts=2, folder=tmp_path)
    run.loop.phase = lambda name, n: run.silent.update({"s1"} if n == 2 else ())
    with pytest.raises(QuorumMissed, match="3 sites at least to round 2, got 2") as error:
        run.loop.run()
    assert "\n" not in str(error.value)
    assert run.messages.count(("s0", 2)) == 2
    found = Checkpoints(tmp_path).newest()
    assert found is not None
    assert found.round == 1
    run.silent.clear()
    run.loop.phase = lambda name, n: None
    run.loop.resume(found)
    run.loop.run()
    assert run.reservations("s0") == 3
    assert all(np.array_equal(run.released[3][k], v) for k, v in wanted.released[3].items())


def test_suspended_sites_stay_suspended_after_a_resume(tmp_path: Path) -> None:
    run = Run(value=lambda s, n: np.nan if s == "s0" else 0.1, quorum=2, suspend_after=1,
              folder=tmp_path, rounds=2)  # fmt: skip
    run.loop.run()
    again = Run(quorum=2, suspend_after=1, rounds=3)
    found = Checkpoints(tmp_path).newest()
    assert found is not None
    again.loop.resume(found)
    assert {m.identity.site for m in again.asked.strategy.asked().values()} == {"s1", "s2"}


def test_a_dead_node_that_is_still_listed_costs_no_more_than_the_deadline() -> None:
    run = Run(quorum=2, round_timeout=0.3, rounds=1)
    run.grid.delay[FIRST_NODE + 1] = 3600.0
    start = time.monotonic()
    run.loop.run()
    assert time.monotonic() - start < 10
    assert run.at(1) == pytest.approx(0.1)


# Resumed runs end as undisturbed ones


@pytest.mark.parametrize("strategy", LEARNING_RATES)
def test_a_resumed_run_ends_with_the_same_bits_under_every_optimiser(
    strategy: str, tmp_path: Path
) -> None:
    plan = plan_of(strategy=strategy, rounds=3, text_rounds=2)
    two: dict[str, Any] = {"plan": plan, "sites": SITES[:2]}
    wanted = Consortium(**two).run()
    state = ServerOptions(state=str(tmp_path / "state"))
    permits = RoomyLedgers(tmp_path / "ledgers")
    with pytest.raises(Stopped):
        Consortium(**two, options=state, permits=permits, phase=stops_at("collect", 3)).run()
    again = ServerOptions(state=str(tmp_path / "state"), resume=True)
    found = Consortium(**{**two, "plan": None}, options=again, permits=permits).run(RUN + 1)
    assert found == {3: wanted[3]}


def unlike(site: str, number: int) -> float:
    """Two of nine send what the others do not."""
    return -0.2 if site in {"s0", "s1"} else 0.01 * number + 0.001 * int(site[1:])


def of_nine(**more: Any) -> Run:
    return Run(9, value=unlike, aggregation="auto", tolerate=2, rounds=5, quorum=7, **more)


def test_what_a_rule_remembers_of_earlier_rounds_outlives_the_server(tmp_path: Path) -> None:
    wanted = of_nine()
    wanted.loop.run()
    stopped = of_nine(folder=tmp_path)
    stopped.loop.phase = stops_at("collect", 4)
    with pytest.raises(Stopped):
        stopped.loop.run()
    found, again = Checkpoints(tmp_path).newest(), of_nine()
    assert found is not None
    again.loop.resume(found)
    again.loop.run()
    for name, value in wanted.released[5].items():
        assert np.array_equal(again.released[5][name], value), name


def test_an_attempt_that_missed_its_quorum_leaves_nothing_behind() -> None:
    wanted, run = of_nine(), of_nine()
    wanted.loop.run()
    asked: list[int] = []

    def phase(name: str, number: int) -> None:
        asked.extend([number] * (name == "configure"))
        run.silent = {"s6", "s7", "s8"} if asked.count(3) == 1 and number == 3 else set()

    run.loop.phase = phase
    run.loop.run()
    assert asked.count(3) == 2
    for name, value in wanted.released[5].items():
        assert np.array_equal(run.released[5][name], value), name


def test_a_run_is_not_resumed_under_another_plan(tmp_path: Path) -> None:
    two: dict[str, Any] = {"sites": SITES[:2], "permits": RoomyLedgers(tmp_path / "ledgers")}
    state = str(tmp_path / "state")
    with pytest.raises(Stopped):
        Consortium(**two, options=ServerOptions(state=state), phase=stops_at("collect", 2)).run()
    again = ServerOptions(state=state, resume=True)
    with pytest.raises(ConfigError, match="plan of the checkpoint"):
        Consortium(**two, plan=plan_of(rounds=9), options=again).run(RUN + 1)


def test_an_empty_folder_is_not_resumed_from(tmp_path: Path) -> None:
    """A new run under that name would pay for every round again."""
    options = ServerOptions(state=str(tmp_path), resume=True)
    with pytest.raises(ConfigError, match="to resume after, found none"):
        Consortium(sites=SITES[:2], options=options).run()


def test_a_resumed_run_refuses_a_site_of_another_catalog(tmp_path: Path) -> None:
    two: dict[str, Any] = {"permits": RoomyLedgers(tmp_path / "ledgers")}
    state = str(tmp_path / "state")
    with pytest.raises(Stopped):
        Consortium(
            **two, sites=SITES[:2], options=ServerOptions(state=state), phase=stops_at("collect", 2)
        ).run()
    again = ServerOptions(state=state, resume=True)
    others = (site_of("north", items=20), site_of("south", items=20, seed=1))
    with pytest.raises(SecurityRefused, match="catalog of the checkpoint"):
        Consortium(**two, sites=others, plan=None, options=again).run(RUN + 1)


# Memory


class Counting(InProcessGrid):
    """Counts the replies that are alive."""

    alive: weakref.WeakSet[Message]
    most = 0

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = list(super().pull_messages(message_ids))
        for reply in found:
            self.alive.add(reply)
        self.most = max(self.most, len(self.alive))
        return found


def test_a_thousand_sites_are_never_in_memory_at_once() -> None:
    run = Run(1000, rounds=1)
    workers = 2
    grid = Counting(run._act, nodes=1000, run_id=RUN, workers=workers)  # type: ignore[arg-type]
    grid.alive = weakref.WeakSet()
    run.loop.grid = grid
    gc.disable()  # nothing may wait for the collector
    try:
        run.loop.run()
    finally:
        gc.enable()
        grid.close()
    assert len(run.messages) == 1000
    assert run.at(1) == pytest.approx(0.1)
    assert grid.most <= 2 * workers + 1  # the one that is being admitted
    assert len(to_payload(run.released[1])) > 0
