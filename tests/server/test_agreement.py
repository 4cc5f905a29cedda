import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import OrderError, SecurityRefused
from server.agreement import AgreeingMean, Agreement, borne

SITES = [f"s{i}" for i in range(10)]
SIZE, SIGNAL, NOISE = 4000, 0.3, 5.0
"""Length of the common signal and of the noise of an honest update: nearly all of it is noise."""


def updates(number: int, hostile: dict[str, float]) -> dict[str, np.ndarray]:
    """One round; a hostile site sends so many times the signal and the same noise."""
    draw = np.random.default_rng(number)
    signal = np.zeros(SIZE)
    signal[:40] = SIGNAL / np.sqrt(40)
    return {
        site: (
            hostile.get(site, 1.0) * signal + NOISE / np.sqrt(SIZE) * draw.standard_normal(SIZE)
        ).astype(np.float32)
        for site in SITES
    }


def aggregated(
    memory: Agreement, made: dict[str, np.ndarray], *, tolerate: int = 2
) -> tuple[np.ndarray, list[str]]:
    domains = dict.fromkeys(SITES, "care")
    mean = AgreeingMean(memory, domains, tolerate=tolerate, bound=100.0)
    for site, value in made.items():
        mean.add(site, {"map": value}, weight=1.0, variance=1.0)
    return mean.result()["map"], mean.left_out


@pytest.mark.parametrize("factor", [-10.0, -30.0, 40.0])
def test_two_that_pull_elsewhere_are_left_out_within_some_rounds(factor: float) -> None:
    memory, hostile = Agreement(), {"s3": factor, "s8": factor}
    left = [aggregated(memory, updates(n, hostile))[1] for n in range(30)]
    assert all(set(out) == set(hostile) for out in left[5:])


def test_one_that_pulls_elsewhere_is_left_out_too() -> None:
    memory = Agreement()
    left = [aggregated(memory, updates(n, {"s3": -10.0}))[1] for n in range(60)]
    assert all("s3" in out for out in left[20:])


def test_honest_sites_are_seldom_left_out() -> None:
    memory = Agreement()
    left = [aggregated(memory, updates(n, {}))[1] for n in range(60)]
    assert sum(map(len, left)) < 0.2 * 10 * 60
    assert all(len(out) <= 2 for out in left)


def test_what_is_left_out_does_not_count_and_the_rest_is_their_mean() -> None:
    memory, hostile = Agreement(), {"s3": -30.0, "s8": -30.0}
    for number in range(10):
        made = updates(number, hostile)
        found, left = aggregated(memory, made)
    kept = np.mean([made[s] for s in SITES if s not in left], axis=0, dtype=np.float64)
    np.testing.assert_allclose(found, kept, atol=1e-6)


def test_without_anybody_to_tolerate_it_is_the_mean() -> None:
    made = updates(1, {"s3": -30.0})
    found, left = aggregated(Agreement(), made, tolerate=0)
    assert not left
    np.testing.assert_allclose(found, np.mean(list(made.values()), axis=0), atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.permutations(SITES))
def test_the_order_of_answers_changes_no_bit(order: list[str]) -> None:
    one, two = Agreement(), Agreement()
    for number in range(3):
        made = updates(number, {"s3": -30.0, "s8": -30.0})
        first, out = aggregated(one, made)
        second, other = aggregated(two, {site: made[site] for site in order})
        assert out == other
        assert np.array_equal(first, second)
    assert one.facts() == two.facts()


def test_memory_goes_on_from_a_checkpoint() -> None:
    memory = Agreement()
    for number in range(6):
        aggregated(memory, updates(number, {"s3": -30.0, "s8": -30.0}))
    back = Agreement()
    back.restore(memory.facts())
    made = updates(7, {})
    assert aggregated(memory, made)[1] == aggregated(back, made)[1] != []


def test_a_site_that_misses_rounds_is_compared_over_those_it_was_in() -> None:
    memory = Agreement()
    for number in range(30):
        made = updates(number, {"s3": -10.0, "s8": -10.0})
        present = {s: v for s, v in made.items() if s != f"s{number % 2}"}
        _, left = aggregated(memory, present)
    assert left == ["s3", "s8"]


def test_domains_are_compared_among_themselves() -> None:
    domains = {site: "care" if i < 7 else "bank" for i, site in enumerate(SITES)}
    memory = Agreement()
    for number in range(20):
        mean = AgreeingMean(memory, domains, tolerate=2, bound=100.0)
        for site, value in updates(number, {"s1": -30.0, "s2": -30.0, "s9": -30.0}).items():
            mean.add(site, {f"map.{domains[site]}": value}, weight=1.0, variance=1.0)
        mean.result()
    assert mean.left_out == ["s1", "s2"]  # three of a domain tell nobody apart


@pytest.mark.parametrize(
    ("sites", "tolerate", "left"), [(10, 2, 2), (7, 2, 2), (6, 2, 1), (4, 2, 0), (2, 5, 0)]
)
def test_how_many_a_domain_can_bear(sites: int, tolerate: int, left: int) -> None:
    assert borne(sites, tolerate) == left


def test_the_same_things_are_refused_as_by_every_rule() -> None:
    mean = AgreeingMean(Agreement(), {"a": "care"}, tolerate=2, bound=1.0)
    with pytest.raises(OrderError):
        mean.result()
    with pytest.raises(SecurityRefused):
        mean.add("a", {"map": np.full(3, np.nan, np.float32)}, weight=1.0, variance=1.0)
