import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.errors import OrderError
from server.aggregation import weighted_mean

NUMBERS = st.floats(-1e6, 1e6, width=32)
UPDATE = st.fixed_dictionaries(
    {"map": hnp.arrays(np.float32, (2, 3), elements=NUMBERS)},
    optional={
        "bias.care": hnp.arrays(np.float32, 4, elements=NUMBERS),
        "bias.bank": hnp.arrays(np.float32, 2, elements=NUMBERS),
    },
)
WEIGHTED = st.lists(st.tuples(UPDATE, st.floats(0.01, 100)), min_size=1, max_size=6)


def mean_of(pairs: list) -> dict[str, np.ndarray]:
    return weighted_mean([u for u, _ in pairs], [w for _, w in pairs])


@given(WEIGHTED)
@settings(max_examples=80, deadline=None)
def test_each_tensor_is_the_weighted_mean_over_the_sites_that_hold_it(pairs: list) -> None:
    found = mean_of(pairs)
    assert set(found) == {name for update, _ in pairs for name in update}
    for name, value in found.items():
        held = [(u[name].astype(np.float64), w) for u, w in pairs if name in u]
        wanted = sum(u * w for u, w in held) / sum(w for _, w in held)
        np.testing.assert_allclose(value, wanted, rtol=1e-12, atol=1e-6)
        assert value.dtype == np.float64


@given(WEIGHTED, st.randoms())
@settings(max_examples=50, deadline=None)
def test_the_order_of_sites_changes_nothing_but_rounding(pairs: list, random: object) -> None:
    shuffled = list(pairs)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, two = mean_of(pairs), mean_of(shuffled)
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-12, atol=1e-6)


@given(WEIGHTED, st.floats(0.01, 100))
@settings(max_examples=50, deadline=None)
def test_only_the_ratio_of_weights_matters(pairs: list, factor: float) -> None:
    one, two = mean_of(pairs), mean_of([(u, w * factor) for u, w in pairs])
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-12, atol=1e-6)


@given(UPDATE, st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_the_mean_of_equal_updates_is_the_update(update: dict, times: int) -> None:
    for name, value in mean_of([(update, 0.7)] * times).items():
        np.testing.assert_allclose(value, update[name].astype(np.float64), rtol=1e-12)


@given(WEIGHTED)
@settings(max_examples=30, deadline=None)
def test_a_mean_stays_between_the_smallest_and_the_largest(pairs: list) -> None:
    for name, value in mean_of(pairs).items():
        held = np.stack([u[name].astype(np.float64) for u, _ in pairs if name in u])
        slack = 1e-9 * (1 + np.abs(held).max(0))
        assert (value >= held.min(0) - slack).all()
        assert (value <= held.max(0) + slack).all()


def test_a_site_of_twice_the_weight_counts_twice() -> None:
    one, two = {"map": np.zeros(2, np.float32)}, {"map": np.full(2, 3, np.float32)}
    assert mean_of([(one, 1.0), (two, 2.0)])["map"].tolist() == [2.0, 2.0]


def test_no_update_of_a_site_is_changed() -> None:
    updates = [{"map": np.full(3, i, np.float32)} for i in range(3)]
    weighted_mean(updates, [1.0, 1.0, 2.0])
    weighted_mean(updates, [1.0, 1.0, 1.0])
    assert [u["map"].tolist() for u in updates] == [[0] * 3, [1] * 3, [2] * 3]


def test_sums_are_made_in_float64() -> None:
    large, small = {"map": np.array([1e8], np.float32)}, {"map": np.array([1.0], np.float32)}
    back = {"map": np.array([-1e8], np.float32)}
    assert mean_of([(large, 1.0), (small, 1.0), (back, 1.0)])["map"][0] == pytest.approx(1 / 3)


@pytest.mark.parametrize(("updates", "weights"), [(0, 0), (2, 1), (1, 2)])
def test_no_update_or_another_number_of_weights_is_refused(updates: int, weights: int) -> None:
    with pytest.raises(OrderError):
        weighted_mean([{"map": np.zeros(1, np.float32)}] * updates, [1.0] * weights)
