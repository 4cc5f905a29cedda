"""What an epsilon means for one person: upper bounds, true for the number, never soothing."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.figures import lower, small, upper
from common.report_words import chance, factor, meaning, percent, percent_down

EPSILONS = st.floats(0.001, 30)
DELTAS = st.floats(1e-9, 1e-3)


@given(EPSILONS, DELTAS, st.floats(0.001, 1))
def test_no_belief_moves_further_than_is_said(epsilon: float, delta: float, toss: float) -> None:
    for belief in meaning(epsilon, delta).beliefs:
        odds = belief.before / (1 - belief.before)
        moved = odds * math.exp(epsilon * (2 * toss - 1))
        assert belief.least <= moved / (1 + moved) * (1 + 1e-12) + 1e-15
        assert moved / (1 + moved) <= belief.most * (1 + 1e-12)


@given(st.floats(0, 1))
def test_shares_are_rounded_away_from_comfort(share: float) -> None:
    shown = percent(share)
    if shown != "practically 100%":
        assert float(shown.rstrip("%")) / 100 >= share - 1e-9
    shown = percent_down(share)
    if shown != "practically 0%":
        assert float(shown.rstrip("%")) / 100 <= share + 1e-9


@given(st.floats(0, 1e6))
def test_bounds_are_rounded_up_and_what_is_left_down(value: float) -> None:
    assert float(upper(value)) >= value - 1e-6
    assert float(lower(value)) <= value + 1e-6


def test_the_figures_of_epsilon_4_are_those_of_the_formula() -> None:
    found = meaning(4.0, 1e-5)
    grown = math.exp(4)
    assert found.beliefs[2].most == pytest.approx(grown / (1 + grown))
    assert found.beliefs[0].most == pytest.approx(0.01 * grown / (0.99 + 0.01 * grown))
    assert "at most 55 times" in found.sentence
    assert "1 in 100,000" in found.sentence
    assert "98.3% sure" in found.belief
    assert "35.6%" in found.belief
    assert "at most 54.6%" in found.caught


@pytest.mark.parametrize(
    ("epsilon", "words"),
    [
        (0.5, "narrow ceiling"),
        (2.0, "not a narrow one"),
        (4.0, "wide ceiling"),
        (8.0, "promises practically nothing"),
        (50.0, "promises practically nothing"),
        (math.inf, "promises practically nothing"),
    ],
)
def test_the_larger_the_epsilon_the_plainer_the_caution(epsilon: float, words: str) -> None:
    assert words in meaning(epsilon, 1e-5).caution


@pytest.mark.parametrize("epsilon", [3.0, 8.0, 20.0, math.inf])
def test_no_large_epsilon_sounds_safe(epsilon: float) -> None:
    found = meaning(epsilon, 1e-5)
    text = " ".join((found.sentence, found.belief, found.caution, found.caught)).lower()
    for word in ("safe", "strong", "anonymous", "cannot be identified", "protected"):
        assert word not in text
    assert found.beliefs[2].most > 0.95


def test_beyond_every_bound_nothing_is_promised() -> None:
    found = meaning(math.inf, 1e-5)
    assert "Nothing bounds" in found.sentence
    assert all((belief.least, belief.most) == (0, 1) for belief in found.beliefs)


def test_a_true_accusation_is_bounded_by_both_sides_of_the_error_region() -> None:
    # At epsilon 8 the first side alone would say more than everybody.
    assert "99.967%" in meaning(8.0, 1e-5).caught
    assert "at most 2.8%" in meaning(1.0, 1e-5).caught


def test_factors_and_chances_are_rounded_up() -> None:
    assert factor(0.0) == "1.00"
    assert factor(1.0) == "2.72"
    assert factor(4.0) == "55"
    assert factor(14.0) == "more than a million"
    assert chance(1e-5) == "a chance of 1 in 100,000"
    assert chance(3e-5) == "a chance of 1 in 33,333"


@pytest.mark.parametrize(
    ("value", "text"), [(1e-5, "1e-5"), (3.2e-10, "3.2e-10"), (0.021, "0.021"), (1e-12, "1e-12")]
)
def test_small_numbers_have_no_needless_zeros(value: float, text: str) -> None:
    assert small(value) == text
