import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from common.errors import ConfigError
from simulations.empirical.one_run import eps_lower, p_value, right_guesses, std_test


@pytest.mark.parametrize(
    ("m", "r", "v", "delta", "wanted"),
    [(1000, 100, 75, 1e-4, 0.673), (100_000, 1510, 1439, 1e-5, 2.675)],
)
def test_the_bound_is_the_published_one(
    m: int, r: int, v: int, delta: float, wanted: float
) -> None:
    assert eps_lower(m, r, v, delta=delta) == pytest.approx(wanted, abs=1e-3)


def test_without_delta_the_bound_is_that_of_a_binomial() -> None:
    """v of r right has probability beta at exactly the epsilon that is returned."""
    epsilon = eps_lower(1000, 100, 90, delta=0.0)
    q = math.exp(epsilon) / (1 + math.exp(epsilon))
    assert stats.binom.sf(89, 100, q) == pytest.approx(0.05, rel=1e-4)


def test_guesses_no_better_than_luck_refute_nothing() -> None:
    assert eps_lower(1000, 100, 50, delta=1e-5) == 0.0
    assert eps_lower(1000, 0, 0, delta=1e-5) == 0.0


def test_the_slack_of_delta_is_the_largest_mean_of_the_mass_below() -> None:
    m, r, v, epsilon, delta = 500, 40, 30, 0.7, 1e-3
    q = 1 / (1 + math.exp(-epsilon))
    mass = [stats.binom.pmf(v - i, r, q) for i in range(1, v + 1)]
    slack = max(sum(mass[:i]) / i for i in range(1, v + 1))
    wanted = stats.binom.sf(v - 1, r, q) + 2 * m * delta * slack
    assert p_value(m, r, v, epsilon=epsilon, delta=delta) == pytest.approx(wanted, rel=1e-9)


@given(st.integers(1, 200), st.data())
@settings(max_examples=60, deadline=None)
def test_one_more_right_guess_never_lowers_the_bound(r: int, data: st.DataObject) -> None:
    v = data.draw(st.integers(0, r - 1))
    low, high = (eps_lower(1000, r, right, delta=1e-5) for right in (v, v + 1))
    assert low <= high + 1e-6


def test_a_larger_delta_and_a_higher_confidence_lower_the_bound() -> None:
    plain = eps_lower(1000, 100, 90, delta=1e-5)
    assert eps_lower(1000, 100, 90, delta=1e-3) < plain
    assert eps_lower(1000, 100, 90, delta=1e-5, beta=0.01) < plain


def test_a_mechanism_that_is_exactly_private_is_accused_in_at_most_one_run_of_twenty() -> None:
    """Randomised response with epsilon 1 answers every canary; its guesses cannot be bettered."""
    draw, epsilon, runs = np.random.default_rng(0), 1.0, 2000
    q = math.e / (1 + math.e)
    right = draw.binomial(200, q, runs)
    bounds = {v: eps_lower(200, 200, int(v), delta=0.0) for v in np.unique(right)}
    share = np.mean([bounds[v] > epsilon for v in right])
    assert 0.02 < share < 0.05 + 4 * math.sqrt(0.05 / runs)


@pytest.mark.parametrize(
    ("m", "r", "v", "delta", "beta"),
    [
        (10, 20, 5, 0.0, 0.05),
        (100, 20, 21, 0.0, 0.05),
        (100, 20, -1, 0.0, 0.05),
        (100, 20, 5, 1.0, 0.05),
        (100, 20, 5, float("nan"), 0.05),
        (100, 20, 5, 0.0, 0.0),
        (100, 20, 5, 0.0, 1.0),
    ],
)
def test_numbers_that_no_audit_has_are_refused(
    m: int, r: int, v: int, delta: float, beta: float
) -> None:
    with pytest.raises(ConfigError, match="Expected"):
        eps_lower(m, r, v, delta=delta, beta=beta)


def test_the_highest_are_guessed_in_and_the_lowest_out() -> None:
    scores = np.array([5.0, 4.0, 3.0, 2.0, 1.0, 0.0])
    included = np.array([True, False, True, True, True, False])
    assert right_guesses(scores, included, 2) == (2, 2)
    assert right_guesses(scores, included, 4) == (4, 2)
    assert right_guesses(scores, included, 5) == (4, 2)


def test_noise_of_the_claimed_size_passes_and_seven_tenths_of_it_does_not() -> None:
    draw = np.random.default_rng(0)
    for _ in range(50):
        scores = 3.0 * draw.standard_normal(500)
        assert std_test(scores, claimed=3.0).passed
        assert not std_test(0.7 * scores, claimed=3.0).passed
        assert not std_test(1.4 * scores, claimed=3.0).passed


def test_the_limits_of_the_noise_accuse_as_often_as_they_say() -> None:
    draw, runs = np.random.default_rng(1), 4000
    failed = sum(
        not std_test(draw.standard_normal(20), claimed=1.0, false_alarm=0.05).passed
        for _ in range(runs)
    )
    assert failed / runs == pytest.approx(0.05, abs=4 * math.sqrt(0.05 / runs))


def test_scores_that_are_off_their_mean_are_found_too() -> None:
    scores = np.random.default_rng(2).standard_normal(500) + 1
    assert not std_test(scores, claimed=1.0).passed


def test_noise_that_is_added_on_top_is_allowed_for_and_none_that_is_taken_away() -> None:
    plain, loose = (std_test(np.ones(500), claimed=1.0, slack=s) for s in (0.0, 0.01))
    assert loose.high == pytest.approx(1.01 * plain.high)
    assert loose.low == plain.low
