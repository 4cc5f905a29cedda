import pytest

from client.third_opinion import AGREEMENT, opacus_epsilon, opacus_opinion, shuffled_epsilon
from common.accounting import schedule, spent
from common.errors import ConfigError
from common.mechanism import Composed, Gaussian, PoissonSampled, RepeatAndSelect, Repeated

GRID = [
    (1.0, 256 / 5000, 400),
    (2.33, 0.25, 60),
    (7.41, 0.25, 60),
    (1.42, 0.25, 60),
    (3.13, 0.25, 120),
    (60.0, 0.25, 60),
    (1.0, 0.01, 1000),
    (1.08, 1.0, 1),
    (20.0, 0.5, 300),
    (0.9, 0.002, 5000),
]


@pytest.mark.parametrize(("noise", "rate", "steps"), GRID)
def test_opacus_prv_agrees_with_the_published_figure(noise: float, rate: float, steps: int) -> None:
    event = schedule(noise_multiplier=noise, sample_rate=rate, steps=steps)
    ours = spent(event, delta=1e-5)
    theirs = opacus_epsilon(noise, rate, steps, 1e-5)
    assert abs(theirs["prv"] - ours.pld) < AGREEMENT
    assert theirs["rdp"] >= ours.epsilon - 1e-9


def test_opacus_rdp_is_the_same_formula_where_its_orders_reach() -> None:
    event = schedule(noise_multiplier=2.33, sample_rate=0.25, steps=60)
    assert opacus_epsilon(2.33, 0.25, 60, 1e-5)["rdp"] == pytest.approx(
        spent(event, delta=1e-5).rdp, rel=1e-3
    )


def test_the_opinion_notices_a_wrong_noise() -> None:
    event = schedule(noise_multiplier=2.33, sample_rate=0.25, steps=60)
    assert (
        abs(opacus_epsilon(2.2, 0.25, 60, 1e-5)["prv"] - spent(event, delta=1e-5).pld) > AGREEMENT
    )


def test_opacus_prv_agrees_on_rounds_that_differ() -> None:
    rounds = [
        PoissonSampled(sample_rate=0.05 + 0.02 * i, event=Gaussian(noise_multiplier=2 + i / 4))
        for i in range(6)
    ]
    event = Composed(events=(*rounds, Repeated(count=2, event=Gaussian(noise_multiplier=9.0))))
    ours = spent(event, delta=1e-5)
    assert abs(opacus_opinion(event, 1e-5) - ours.pld) < AGREEMENT
    assert opacus_opinion(event, 1e-5, by="rdp") == pytest.approx(ours.rdp, rel=1e-3)


def test_opacus_says_nothing_spent_of_nothing_done() -> None:
    assert opacus_opinion(Composed(events=()), 1e-5) == 0.0


def test_opacus_has_no_opinion_of_a_selected_best_run_nor_by_gdp() -> None:
    best = RepeatAndSelect(event=Gaussian(noise_multiplier=4.0), mean=3.0, shape=1.0)
    with pytest.raises(ConfigError, match="selected best run"):
        opacus_opinion(best, 1e-5)
    with pytest.raises(ConfigError, match="prv, rdp"):
        opacus_opinion(Gaussian(noise_multiplier=4.0), 1e-5, by="gdp")


@pytest.mark.parametrize(("noise", "rate", "steps"), [(0, 0.1, 1), (1, 1.5, 1), (1, 0.1, 0)])
def test_a_schedule_that_is_none_is_refused(noise: float, rate: float, steps: int) -> None:
    with pytest.raises(ConfigError):
        opacus_epsilon(noise, rate, steps, 1e-5)


def test_shuffled_batches_are_refused() -> None:
    with pytest.raises(ConfigError, match="shuffled"):
        shuffled_epsilon()
