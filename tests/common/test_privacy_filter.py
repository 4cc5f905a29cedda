import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.accounting import schedule, spent
from common.errors import ConfigError
from common.mechanism import Composed, Event, Gaussian, PoissonSampled, RepeatAndSelect, Repeated
from common.privacy_filter import (
    Budget,
    adaptive_epsilon,
    cohort_epsilon,
    fits,
    order_for,
    rounds_left,
)
from common.renyi import ORDERS

DELTA = 1e-5
NOTHING = Composed(events=())

gaussians = st.builds(Gaussian, noise_multiplier=st.floats(1.0, 30.0))
sampled = st.builds(PoissonSampled, sample_rate=st.floats(0.01, 1.0), event=gaussians)
singles = gaussians | sampled
budgets = st.builds(Budget, epsilon=st.floats(0.05, 10.0), delta=st.just(DELTA))


def step(noise: float, rate: float = 0.25) -> PoissonSampled:
    return PoissonSampled(sample_rate=rate, event=Gaussian(noise_multiplier=noise))


def times(count: int, event: Event) -> Event:
    return Repeated(count=count, event=event) if count else NOTHING


@given(epsilon=st.floats(1e-6, 200.0), delta=st.floats(1e-12, 0.1))
def test_the_order_follows_from_the_budget_alone(epsilon: float, delta: float) -> None:
    order = order_for(epsilon, delta)
    assert order == order_for(epsilon, delta)
    assert order in ORDERS


@pytest.mark.parametrize("delta", [1e-9, 1e-5])
@pytest.mark.parametrize("epsilon", [0.5, 1.0, 4.0, 8.0])
def test_the_order_is_near_that_of_zero_concentrated_privacy(epsilon: float, delta: float) -> None:
    tail = math.log(1 / delta)
    rho = (math.sqrt(tail + epsilon) - math.sqrt(tail)) ** 2
    assert rho + 2 * math.sqrt(rho * tail) == pytest.approx(epsilon)
    expected = 1 + math.sqrt(tail / rho)
    assert 0.6 * expected < order_for(epsilon, delta) <= 1.05 * expected


def test_the_order_is_the_best_one_for_gaussian_releases() -> None:
    for epsilon in (0.5, 2.0, 8.0):
        counts = {
            order: rounds_left(
                Budget(epsilon=epsilon, delta=DELTA, order=order),
                NOTHING,
                Gaussian(noise_multiplier=100.0),
                adaptive=True,
            )
            for order in (order_for(epsilon, DELTA), *ORDERS[::3])
        }
        assert counts[order_for(epsilon, DELTA)] >= max(counts.values())


def test_an_order_for_what_is_planned_admits_more_of_it() -> None:
    # Above some order, sampled releases of little noise suddenly cost far more.
    plan = step(0.5, 0.01)
    plain = Budget(epsilon=8.0, delta=DELTA)
    chosen = Budget(epsilon=8.0, delta=DELTA, order=order_for(8.0, DELTA, planned=plan))
    few = rounds_left(plain, NOTHING, plan, adaptive=True)
    many = rounds_left(chosen, NOTHING, plan, adaptive=True)
    assert few < 10 * few < many <= rounds_left(plain, NOTHING, plan, adaptive=False)


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize(
    ("budget", "before", "one"),
    [
        (8.0, NOTHING, step(2.3)),
        (1.0, Repeated(count=7, event=step(9.0, 0.1)), step(5.0, 0.05)),
        (4.0, Gaussian(noise_multiplier=3.0), Gaussian(noise_multiplier=5.0)),
        (3.0, NOTHING, Composed(events=(step(4.0), step(6.0, 0.1), Gaussian(noise_multiplier=9)))),
        (9.0, NOTHING, RepeatAndSelect(event=step(8.0, 0.1), mean=3.0, shape=1.0)),
    ],
)
def test_so_many_rounds_fit_and_one_more_does_not(
    budget: float, before: Event, one: Event, adaptive: bool
) -> None:
    limit = Budget(epsilon=budget, delta=DELTA)
    rounds = rounds_left(limit, before, one, adaptive=adaptive)
    assert rounds > 0
    almost = Composed(events=(before, times(rounds - 1, one)))
    full = Composed(events=(before, times(rounds, one)))
    assert fits(limit, almost, one, adaptive=adaptive)
    assert not fits(limit, full, one, adaptive=adaptive)


def test_no_round_is_left_of_a_budget_that_is_spent() -> None:
    limit = Budget(epsilon=1.0, delta=DELTA)
    over = times(50, step(1.0))
    for adaptive in (True, False):
        assert rounds_left(limit, over, step(20.0), adaptive=adaptive) == 0
        assert not fits(limit, over, NOTHING, adaptive=adaptive)
        assert fits(limit, NOTHING, NOTHING, adaptive=adaptive)


def test_more_rounds_than_anybody_runs_are_counted_as_so_many() -> None:
    limit = Budget(epsilon=8.0, delta=DELTA)
    for adaptive in (True, False):
        assert rounds_left(limit, NOTHING, step(50.0, 0.001), adaptive=adaptive, most=5000) == 5000
        assert rounds_left(limit, NOTHING, step(5.0), adaptive=adaptive, most=0) == 0


def test_thousands_of_rounds_are_counted_exactly() -> None:
    limit = Budget(epsilon=8.0, delta=DELTA)
    rounds = rounds_left(limit, NOTHING, step(5.0, 0.05), adaptive=False)
    assert 25_000 < rounds < 29_000
    assert fits(limit, times(rounds - 1, step(5.0, 0.05)), step(5.0, 0.05), adaptive=False)
    assert not fits(limit, times(rounds, step(5.0, 0.05)), step(5.0, 0.05), adaptive=False)


@given(events=st.lists(singles, min_size=1, max_size=12), budget=budgets)
@settings(max_examples=20, deadline=None)
def test_accepted_events_never_pass_the_budget_when_each_depends_on_the_last(
    events: list[Event], budget: Budget
) -> None:
    accepted: tuple[Event, ...] = ()
    for event in events:
        if fits(budget, Composed(events=accepted), event, adaptive=True):
            accepted += (event,)
    total = Composed(events=accepted)
    order = order_for(budget.epsilon, DELTA)
    assert adaptive_epsilon(total, delta=DELTA, order=order) <= budget.epsilon
    # What the filter admits, plain composition admits: it is the looser bound of the two.
    assert spent(total, delta=DELTA).epsilon <= budget.epsilon


@given(events=st.lists(singles, min_size=1, max_size=6), budget=budgets)
@settings(max_examples=10, deadline=None)
def test_accepted_events_never_pass_the_budget_when_all_was_planned(
    events: list[Event], budget: Budget
) -> None:
    accepted: tuple[Event, ...] = ()
    for event in events:
        if fits(budget, Composed(events=accepted), event, adaptive=False):
            accepted += (event,)
    assert spent(Composed(events=accepted), delta=DELTA).epsilon <= budget.epsilon


@given(events=st.lists(singles, min_size=1, max_size=6), more=singles, budget=budgets)
@settings(max_examples=25, deadline=None)
def test_the_filter_grows_with_every_event_and_is_above_the_best_order(
    events: list[Event], more: Event, budget: Budget
) -> None:
    order = order_for(budget.epsilon, DELTA)
    before = Composed(events=tuple(events))
    after = Composed(events=(*events, more))
    first, second = (adaptive_epsilon(e, delta=DELTA, order=order) for e in (before, after))
    assert first <= second
    assert second >= spent(after, delta=DELTA).rdp * (1 - 3e-3)


def test_a_round_that_would_not_fit_alone_is_refused_and_a_smaller_one_taken() -> None:
    budget = Budget(epsilon=2.0, delta=DELTA)
    for adaptive in (True, False):
        assert not fits(budget, NOTHING, step(0.6), adaptive=adaptive)
        assert fits(budget, NOTHING, step(6.0), adaptive=adaptive)


def test_what_rdp_alone_would_refuse_may_still_fit() -> None:
    event = schedule(noise_multiplier=2.0, sample_rate=0.25, steps=60)
    both = spent(event, delta=DELTA)
    for epsilon in (both.pld * 0.999, both.pld, (both.pld + both.rdp) / 2, both.rdp * 1.001):
        budget = Budget(epsilon=epsilon, delta=DELTA)
        assert fits(budget, NOTHING, event, adaptive=False) == (both.epsilon <= epsilon)


def test_cohorts_that_share_no_subject_cost_the_largest() -> None:
    cohorts: dict[str, Event] = {
        "first": schedule(noise_multiplier=3.0, sample_rate=0.25, steps=60),
        "second": schedule(noise_multiplier=2.0, sample_rate=0.25, steps=60),
        "third": NOTHING,
    }
    assert cohort_epsilon(cohorts, DELTA) == spent(cohorts["second"], delta=DELTA).epsilon
    assert cohort_epsilon({}, DELTA) == 0.0


BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: Budget(epsilon=0.0, delta=DELTA), "epsilon"),
    (lambda: Budget(epsilon=math.nan, delta=DELTA), "epsilon"),
    (lambda: Budget(epsilon=1.0, delta=1.0), "delta"),
    (lambda: Budget(epsilon=1.0, delta=DELTA, order=1.0), "order above 1.01"),
    (lambda: Budget(epsilon=1.0, delta=DELTA, order=math.nan), "order above 1.01"),
    (lambda: order_for(-1.0, DELTA), "epsilon"),
    (lambda: order_for(1.0, 0.0), "delta"),
    (lambda: adaptive_epsilon(NOTHING, delta=0.0, order=8.0), "delta"),
    (lambda: adaptive_epsilon(NOTHING, delta=DELTA, order=1.0), "order"),
    (lambda: adaptive_epsilon(step(1e7), delta=DELTA, order=8.0), "noise_multiplier"),
    (lambda: order_for(1.0, DELTA, planned=step(1e-9)), "noise_multiplier"),
    (lambda: cohort_epsilon({}, 2.0), "delta"),
    (
        lambda: fits(Budget(epsilon=1.0, delta=DELTA), NOTHING, step(1e-9), adaptive=False),
        "noise_multiplier",
    ),
    (
        lambda: rounds_left(Budget(epsilon=1.0, delta=DELTA), NOTHING, NOTHING, adaptive=True),
        "releases something",
    ),
    (
        lambda: rounds_left(
            Budget(epsilon=1.0, delta=DELTA), NOTHING, step(1.0), adaptive=True, most=-1
        ),
        "most of 0 or more",
    ),
]


@pytest.mark.parametrize(
    ("call", "says"), BAD, ids=[f"{i} {says}" for i, (_, says) in enumerate(BAD)]
)
def test_what_is_out_of_range_is_refused_in_one_line(call: Callable[[], Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)
