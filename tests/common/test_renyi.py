import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting import rdp
from hypothesis import given, settings
from hypothesis import strategies as st

from common.mechanism import Composed, Event, Gaussian, Leaf, PoissonSampled, RepeatAndSelect
from common.renyi import (
    COARSE,
    ORDERS,
    Adjacency,
    epsilon_of,
    foreign,
    of_leaf,
    quiet,
    renyi,
    renyi_epsilon,
)

DELTA = 1e-5
SAMPLED = PoissonSampled(sample_rate=0.25, event=Gaussian(noise_multiplier=2.0))
RELATIONS: list[Adjacency] = ["add-or-remove", "replace-one"]


def theirs(event: Event, orders: tuple[float, ...]) -> np.ndarray:
    with quiet():
        return np.asarray(rdp.RdpAccountant(orders).compose(foreign(event)).rdp)


@pytest.mark.parametrize(
    ("noise", "rate"),
    [(1.0, 0.05), (0.3, 0.1), (60.0, 0.25), (0.9, 0.002), (5.0, 1.0), (0.05, 0.5)],
)
def test_every_order_is_what_dp_accounting_computes(noise: float, rate: float) -> None:
    leaf = PoissonSampled(sample_rate=rate, event=Gaussian(noise_multiplier=noise))
    ours, other = of_leaf(leaf, ORDERS, "add-or-remove"), theirs(leaf, ORDERS)
    known = np.isfinite(other)
    assert known.sum() > 100
    np.testing.assert_allclose(ours[known], other[known], rtol=1e-9, atol=1e-13)
    assert np.all(ours[known] >= other[known] * (1 - 1e-10))


def test_an_order_whose_series_does_not_converge_lies_between_its_neighbours() -> None:
    leaf = PoissonSampled(sample_rate=0.5, event=Gaussian(noise_multiplier=1000.0))
    assert theirs(leaf, (2.5,)) == math.inf
    low, middle, high = of_leaf(leaf, (2.0, 2.5, 3.0), "add-or-remove")
    assert low <= middle <= high


def test_divergence_grows_with_the_order() -> None:
    assert np.all(np.diff(of_leaf(SAMPLED, COARSE, "add-or-remove")) > 0)


def test_the_best_order_costs_no_more_than_all_of_dp_accountings() -> None:
    for noise, rate, steps in [(1.0, 0.05, 400), (0.3, 0.1, 50), (2.0, 0.25, 60), (1.0, 0.001, 9)]:
        leaf = PoissonSampled(sample_rate=rate, event=Gaussian(noise_multiplier=noise))
        with quiet():
            accountant = rdp.RdpAccountant().compose(foreign(leaf), steps)
        expected = float(accountant.get_epsilon(DELTA))
        assert renyi_epsilon({leaf: steps}, DELTA, "add-or-remove") <= expected * (1 + 1e-9)


def test_replacing_a_subject_doubles_the_sensitivity_of_a_gaussian() -> None:
    once = of_leaf(Gaussian(noise_multiplier=3.0), ORDERS, "replace-one")
    np.testing.assert_array_equal(
        once, of_leaf(Gaussian(noise_multiplier=1.5), ORDERS, "add-or-remove")
    )


def test_the_triangle_inequality_is_nearly_tight_for_a_rate_of_one() -> None:
    # At rate 1 both are the same mechanism, and the exact value is known.
    exact = of_leaf(Gaussian(noise_multiplier=3.0), COARSE, "replace-one")
    whole = PoissonSampled(sample_rate=1.0, event=Gaussian(noise_multiplier=3.0))
    bound = of_leaf(whole, COARSE, "replace-one")
    assert np.all(bound >= exact)
    assert bound[20] < 1.05 * exact[20]


def test_the_replacement_bound_holds_against_the_integral() -> None:
    # D_a between (1 - q) N(0) + q N(-1) and (1 - q) N(0) + q N(1), by the trapezoid rule.
    rate, noise = 0.3, 1.5
    x = np.linspace(-40, 40, 400_001)

    def log_mixture(mean: float) -> np.ndarray:
        centre, moved = -(x**2) / (2 * noise**2), -((x - mean) ** 2) / (2 * noise**2)
        mixed = np.logaddexp(math.log(1 - rate) + centre, math.log(rate) + moved)
        return np.asarray(mixed - math.log(noise * math.sqrt(2 * math.pi)))

    p, q = log_mixture(-1.0), log_mixture(1.0)
    leaf = PoissonSampled(sample_rate=rate, event=Gaussian(noise_multiplier=noise))
    for order in (1.5, 2.0, 4.0, 8.0):
        exact = math.log(np.trapezoid(np.exp(order * p + (1 - order) * q), x)) / (order - 1)
        assert exact <= of_leaf(leaf, (order,), "replace-one")[0]


@pytest.mark.parametrize("shape", [0.0, 0.5, 1.0, math.inf])
@pytest.mark.parametrize("mean", [1.0, 10.0, 1000.0])
def test_the_best_of_many_runs_is_what_dp_accounting_computes(mean: float, shape: float) -> None:
    one = PoissonSampled(sample_rate=0.05, event=Gaussian(noise_multiplier=1.0))
    event = RepeatAndSelect(event=Composed(events=(one,) * 3), mean=mean, shape=shape)
    with quiet():
        other = rdp.RdpAccountant(ORDERS).compose(foreign(event), 2).get_epsilon(DELTA)
    ours = epsilon_of(renyi({event: 2}, ORDERS, "add-or-remove"), ORDERS, DELTA)
    assert ours == pytest.approx(other, rel=1e-6)
    assert isinstance(foreign(event), dp_accounting.dp_event.RepeatAndSelectDpEvent)


@given(
    noise=st.floats(0.3, 100),
    rate=st.floats(1e-4, 1.0),
    mean=st.floats(1, 1e4),
    shape=st.sampled_from([0.0, 0.3, 1.0, 7.0, math.inf]),
)
@settings(max_examples=15, deadline=None)
def test_selecting_costs_more_than_one_run_and_replacing_more_than_removing(
    noise: float, rate: float, mean: float, shape: float
) -> None:
    one: Leaf = PoissonSampled(sample_rate=rate, event=Gaussian(noise_multiplier=noise))
    best = RepeatAndSelect(event=one, mean=mean, shape=shape)
    for relation in RELATIONS:
        cheap, dear = of_leaf(one, COARSE, relation), of_leaf(best, COARSE, relation)
        assert np.all(dear >= cheap)
    for leaf in (one, best):
        removed, replaced = (of_leaf(leaf, COARSE, relation) for relation in RELATIONS)
        assert np.all(replaced >= removed)


def test_a_kept_divergence_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        of_leaf(SAMPLED, COARSE, "add-or-remove")[0] = 0.0
