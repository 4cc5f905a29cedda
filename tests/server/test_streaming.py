import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.errors import ConfigError, OrderError
from common.limits import LIMITS
from server.aggregation import make_aggregator
from server.streaming import RunningMean


def one(value: float) -> dict[str, np.ndarray]:
    return {"map": np.full(1, value, np.float32)}


WEIGHTED = st.lists(
    st.tuples(st.floats(-8, 8, width=32), st.floats(1e-6, 1e6)), min_size=1, max_size=12
)


@given(WEIGHTED)
@settings(max_examples=150, deadline=None)
def test_the_mean_is_the_rational_one_within_the_stated_rounding(pairs: list) -> None:
    mean = RunningMean(bound=8.0)
    for i, (value, weight) in enumerate(pairs):
        mean.add(str(i), one(value), weight=weight, variance=1.0)
    mass = sum(Fraction(weight) for _, weight in pairs)
    exact = sum(Fraction(float(np.float32(v))) * Fraction(w) for v, w in pairs) / mass
    found = mean.result()["map"][0]
    assert (
        abs(Fraction(float(found)) - exact) <= Fraction(8) * Fraction(2) ** -44 + abs(exact) / 2**50
    )


@given(WEIGHTED)
@settings(max_examples=60, deadline=None)
def test_inverse_variance_weighs_by_the_noise_alone(pairs: list) -> None:
    by_noise, by_weight = RunningMean(bound=8.0, by_variance=True), RunningMean(bound=8.0)
    for i, (value, variance) in enumerate(pairs):
        by_noise.add(str(i), one(value), weight=1.0 + i, variance=variance)
        by_weight.add(str(i), one(value), weight=1 / variance, variance=1.0)
    assert by_noise.result()["map"] == by_weight.result()["map"]


def test_inverse_variance_halves_the_noise_that_one_loud_site_brings_in() -> None:
    rng = np.random.default_rng(0)
    spread = {"quiet-1": 0.1, "quiet-2": 0.1, "loud": 3.0}
    errors = {}
    for rule in ("mean", "inverse-variance"):
        aggregator = make_aggregator(rule, tolerate=0, bound=100.0)
        for site, sd in spread.items():
            noise = {"map": (1 + sd * rng.standard_normal(5000)).astype(np.float32)}
            aggregator.add(site, noise, weight=1.0, variance=sd**2)
        errors[rule] = float(np.std(aggregator.result()["map"] - 1))
    wanted = sum(1 / sd**2 for sd in spread.values()) ** -0.5
    assert errors["inverse-variance"] == pytest.approx(wanted, rel=0.05)
    assert errors["inverse-variance"] < errors["mean"] / 2


def test_inverse_variance_without_noise_is_refused() -> None:
    mean = RunningMean(bound=1.0, by_variance=True)
    with pytest.raises(ConfigError, match="noise variance above 0"):
        mean.add("a", one(1.0), weight=1.0, variance=0.0)


def test_numbers_that_float_addition_would_lose_are_kept() -> None:
    mean = RunningMean(bound=2.0**20)
    for site, value in enumerate((2.0**20, 2.0**-20, -(2.0**20))):
        mean.add(str(site), one(value), weight=1.0, variance=1.0)
    assert mean.result()["map"][0] == pytest.approx(2.0**-20 / 3, rel=1e-3)
    assert np.float32(2.0**20) + np.float32(2.0**-20) - np.float32(2.0**20) == 0


@pytest.mark.parametrize("bound", [1.0, 1.5e20])
def test_the_most_sites_of_the_largest_numbers_do_not_overflow(bound: float) -> None:
    mean = RunningMean(bound=bound)
    largest = {"map": np.nextafter(np.array([bound, -bound], np.float32), np.float32(0))}
    for site in range(LIMITS.sites):
        # The largest mantissa of a weight: the worst that one sum can meet.
        mean.add(str(site), largest, weight=2 - 2**-52, variance=1.0)
    np.testing.assert_allclose(mean.result()["map"], largest["map"], rtol=1e-12)
    with pytest.raises(OrderError, match="at most"):
        mean.add("one more", largest, weight=1.0, variance=1.0)


def test_memory_does_not_grow_with_the_sites() -> None:
    assert peak_of(200) < 1.05 * peak_of(20)
    assert peak_of(200) < 6 * 8 * SIZE


SIZE = 200_000


def peak_of(sites: int) -> int:
    update = {"map": np.ones(SIZE, np.float32)}
    tracemalloc.start()
    mean = RunningMean(bound=10.0)
    for site in range(sites):
        mean.add(str(site), update, weight=1.0 + site / sites, variance=1.0)
    mean.result()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@given(hnp.arrays(np.float32, (40_000,), elements=st.floats(-1, 1, width=32)))
@settings(max_examples=5, deadline=None)
def test_an_update_longer_than_a_chunk_is_whole(values: np.ndarray) -> None:
    mean = RunningMean(bound=1.0)
    mean.add("a", {"map": values.reshape(200, 200)}, weight=1.0, variance=1.0)
    np.testing.assert_allclose(mean.result()["map"], values.reshape(200, 200), atol=2.0**-44)


def test_scalars_empty_tensors_and_slices_are_tensors_too() -> None:
    mean = RunningMean(bound=10.0)
    grid = np.arange(9, dtype=np.float32).reshape(3, 3)
    update = {"gate": np.float32(2).reshape(()), "none": np.zeros(0, np.float32), "t": grid.T[::2]}
    mean.add("a", update, weight=3.0, variance=1.0)
    found = mean.result()
    assert found["gate"].shape == ()
    assert found["gate"] == pytest.approx(2)
    assert found["none"].shape == (0,)
    np.testing.assert_allclose(found["t"], grid.T[::2])
