"""What `confed site` computes, apart from what it prints."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.budget import add_cohort, budget_facts, start
from common.accounting import spent
from common.errors import ConfigError
from common.mechanism import Gaussian, PoissonSampled, Repeated
from common.site_ledger import open_ledger
from tests.ledgers import CAPS, Run, declare, make_ledger, one_round

LIMITS = {
    "name": "clinic-1", "max_epsilon": 2.0, "delta": 1e-5, "max_rate": 0.5, "max_clip": 1.0,
    "least_noise": 1.0, "max_rounds": 50,
}  # fmt: skip


def test_start_keeps_every_limit_of_the_owner(tmp_path: Path) -> None:
    start(tmp_path / "site", LIMITS)
    caps = open_ledger(tmp_path / "site").state().caps
    assert (caps.epsilon, caps.delta, caps.sample_rate) == (2.0, 1e-5, 0.5)
    assert (caps.max_grad_norm, caps.noise_multiplier, caps.rounds) == (1.0, 1.0, 50)


def test_as_many_rounds_fit_as_the_facts_say_and_not_one_more(tmp_path: Path) -> None:
    run = Run(rounds=2, planned=100, noise=0.8)
    made = make_ledger(tmp_path, runs=())
    declare(made, Run(rounds=2, planned=5, noise=0.8))
    for number in (1, 2):
        one_round(made, run, number)
    (row,) = budget_facts(made.ledger)["runs"]
    fit = row["fit"]
    assert fit > 0
    event = PoissonSampled(sample_rate=run.rate, event=Gaussian(noise_multiplier=run.noise))
    assert spent(Repeated(count=2 + fit, event=event), delta=CAPS.delta).epsilon <= CAPS.epsilon
    assert spent(Repeated(count=3 + fit, event=event), delta=CAPS.delta).epsilon > CAPS.epsilon


def test_a_round_that_was_paid_and_not_answered_is_spent_all_the_same(tmp_path: Path) -> None:
    made = make_ledger(tmp_path, runs=(Run(rounds=3, unanswered=(3,)),))
    whole = make_ledger(tmp_path / "b", runs=(Run(rounds=3),))
    facts, other = budget_facts(made.ledger), budget_facts(whole.ledger)
    assert facts["spent"] == other["spent"]
    assert (facts["runs"][0]["paid"], facts["runs"][0]["answered"]) == (3, 2)


def test_evaluations_stand_in_a_row_of_their_own(tmp_path: Path) -> None:
    made = make_ledger(tmp_path, runs=(Run(rounds=2, evaluate=30.0),))
    assert [(r["purpose"], r["paid"]) for r in budget_facts(made.ledger)["runs"]] == [
        ("train", 2),
        ("evaluate", 2),
    ]


def test_spent_and_published_bounds_agree(tmp_path: Path) -> None:
    facts = budget_facts(make_ledger(tmp_path, runs=(Run(rounds=4),)).ledger)
    assert facts["spent"] == min(facts["pld"], facts["rdp"])
    assert 0 < facts["left"] < facts["budget"]


def test_left_is_never_below_zero(tmp_path: Path) -> None:
    facts = budget_facts(make_ledger(tmp_path).ledger)
    assert facts["left"] >= 0


@settings(max_examples=40, deadline=None)
@given(name=st.text(max_size=12).filter(lambda t: not t.isascii() or " " in t or not t))
def test_a_cohort_of_a_name_that_cannot_stand_in_a_ledger_is_one_line(name: str) -> None:
    with pytest.raises(ConfigError) as error:
        add_cohort(Path("/nowhere"), name)
    assert "\n" not in str(error.value)


def test_asking_costs_nothing(tmp_path: Path) -> None:
    made = make_ledger(tmp_path)
    before = made.data
    budget_facts(made.ledger)
    assert made.data == before
