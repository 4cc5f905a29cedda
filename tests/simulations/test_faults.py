"""Sites that stay away, come late or die: what the server sees and what it costs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import ConfigError, RefusedError
from simulations.commands import FAULT_NAMES
from simulations.engines import Job
from simulations.faults import DOWN_ROUNDS, FAULTS, Misfortune, Unlucky
from tests.simulations.hostility import SITES, Hostility, kinds, plan, run, same, towards

TWO_OF_NINE = frozenset({0, 1})


class Bad:
    """Strikes; `last` is the wrapper of the last run."""

    def __init__(self, misfortune: Misfortune, inner: Any = None) -> None:
        self.misfortune, self.inner = misfortune, inner
        self.last: Unlucky

    def __call__(self, honest: Any, job: Job) -> Any:
        app = honest if self.inner is None else self.inner(honest, job)
        self.last = Unlucky(app=app, misfortune=self.misfortune)
        return self.last.wrapped()


def two(fault: str, rate: float = 1.0) -> Misfortune:
    return Misfortune(fault=fault, rate=rate, partitions=TWO_OF_NINE)


def test_every_fault_is_on_the_command_line() -> None:
    assert tuple(FAULTS) == FAULT_NAMES
    assert all(fault.says for fault in FAULTS.values())


@pytest.mark.parametrize("fault", FAULT_NAMES)
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.2, 0.5, 1.0])
def test_the_rate_is_the_share_of_rounds_that_are_lost(fault: str, rate: float) -> None:
    misfortune = Misfortune(fault=fault, rate=rate, seed=3)
    lost = [misfortune.strikes(p, n) for p in range(20) for n in range(DOWN_ROUNDS, 200)]
    assert np.mean(lost) == pytest.approx(rate, abs=0.03)


@pytest.mark.parametrize("fault", FAULT_NAMES)
def test_draws_repeat_and_differ_by_seed_and_site(fault: str) -> None:
    def drawn(seed: int, partition: int) -> list[bool]:
        misfortune = Misfortune(fault=fault, rate=0.3, seed=seed)
        return [misfortune.strikes(partition, n) for n in range(1, 60)]

    assert drawn(1, 4) == drawn(1, 4)
    assert drawn(1, 4) != drawn(2, 4)
    assert drawn(1, 4) != drawn(1, 5)


def test_a_round_that_is_asked_again_may_find_the_site_back() -> None:
    misfortune = Misfortune(fault="drop-out", rate=0.5, seed=1)
    again = {misfortune.strikes(0, 1, asked) for asked in range(20)}
    assert again == {True, False}


def test_a_crash_keeps_a_site_away_for_whole_rounds() -> None:
    misfortune = Misfortune(fault="crash", rate=0.1, seed=5)
    ages = [misfortune.age(0, n) for n in range(1, 400)]
    begins = [n for n, age in enumerate(ages) if age == 0]
    assert begins
    for n in begins:
        assert None not in ages[n : n + DOWN_ROUNDS]
    assert None in ages


@pytest.mark.parametrize("fault", FAULT_NAMES)
def test_lost_answers_of_two_sites_leave_what_the_seven_others_learn(fault: str) -> None:
    bad = Bad(two(fault))
    assert same(run(plan(), disturb=bad), run(plan(), SITES[2:]))
    assert bad.last.lost == {0: 2, 1: 2}


@pytest.mark.parametrize(("fault", "paid"), [("drop-out", 0), ("straggler", 2), ("crash", 2)])
def test_who_trains_pays_whether_or_not_the_answer_arrives(
    tmp_path: Path, fault: str, paid: int
) -> None:
    run(plan(), disturb=Bad(two(fault)), ledgers=tmp_path)
    found = kinds(tmp_path, "s0") if paid else []
    assert found.count("reserve") == paid
    assert kinds(tmp_path, "s5").count("reserve") == 2


def test_with_nine_sites_and_two_drop_outs_two_hostile_ones_are_still_trimmed() -> None:
    """A count of two on each side, not a fraction of those who answer."""
    reached = {}
    for rule in ("auto", "mean"):
        quiet = plan(noise=0.005, rounds=1, aggregation=rule)
        bad = Bad(two("drop-out"), Hostility("sign-flip-x10"))
        reached[rule] = towards(run(quiet, disturb=bad), run(quiet, SITES[2:7]))
    assert reached["auto"] > reached["mean"] + 0.3


def test_a_round_below_its_quorum_is_asked_again_until_enough_are_there() -> None:
    bad = Bad(Misfortune(fault="drop-out", rate=0.3, seed=2))
    run(plan(rounds=3, quorum=7, attempts=50), disturb=bad)
    assert sum(bad.last.lost.values()) > 2 * 3


def test_a_round_that_never_finds_its_quorum_ends_the_run_with_one_line() -> None:
    bad = Bad(Misfortune(fault="drop-out", rate=1.0, partitions=frozenset({0, 1, 2})))
    with pytest.raises(RefusedError, match="Expected answers of 7 sites") as error:
        run(plan(quorum=7), disturb=bad)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
def test_a_rate_that_is_no_share_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="--fault-rate in"):
        Misfortune(fault="drop-out", rate=rate)


def test_an_unknown_fault_is_refused() -> None:
    with pytest.raises(ConfigError, match="Expected a fault"):
        Misfortune(fault="boredom", rate=0.1)
