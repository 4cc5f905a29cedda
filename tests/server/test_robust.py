import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from server import robust

VALUES = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(-5, 5)
)
"""Whole numbers of a small range: ties are common."""


def weights_for(values: np.ndarray, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice([0.25, 1.0, 2.0, 5.0], size=len(values))


# ---- trimmed mean


@given(VALUES, st.integers(0, 6))
@settings(max_examples=100, deadline=None)
def test_equal_weights_trim_by_count(values: np.ndarray, tolerate: int) -> None:
    k = robust.trimmed(len(values), tolerate)
    found = robust.trimmed_mean(list(values), np.ones(len(values)), k)
    wanted = np.sort(values, axis=0)[k : len(values) - k].astype(np.float64).mean(0)
    np.testing.assert_allclose(found, wanted, atol=1e-12)


@given(VALUES, st.integers(0, 4), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_weights_average_what_the_count_has_left(
    values: np.ndarray, tolerate: int, seed: int
) -> None:
    weights, k = weights_for(values, seed), robust.trimmed(len(values), tolerate)
    distinct = values + np.random.default_rng(seed).permuted(
        np.linspace(0, 0.5, values.size, dtype=np.float32)
    ).reshape(values.shape)
    found = robust.trimmed_mean(list(distinct), weights, k)
    for column, value in zip(distinct.T, found, strict=True):
        kept = np.argsort(column)[k : len(column) - k]
        wanted = np.average(column[kept].astype(np.float64), weights=weights[kept])
        assert value == pytest.approx(wanted, abs=1e-9)


@given(VALUES, st.integers(0, 4), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_ties_at_the_cut_are_shared_whatever_the_order(
    values: np.ndarray, tolerate: int, seed: int
) -> None:
    weights, k = weights_for(values, seed), robust.trimmed(len(values), tolerate)
    order = np.random.default_rng(seed).permutation(len(values))
    one = robust.trimmed_mean(list(values), weights, k)
    two = robust.trimmed_mean(list(values[order]), weights[order], k)
    np.testing.assert_allclose(one, two, atol=1e-9)
    assert (one >= values.min(0).astype(np.float64) - 1e-9).all()
    assert (one <= values.max(0).astype(np.float64) + 1e-9).all()


def test_two_that_tie_at_the_cut_lose_half_of_their_weight_each() -> None:
    rows = list(np.array([[0], [0], [1], [2], [9]], np.float32))
    found = robust.trimmed_mean(rows, np.array([1.0, 3.0, 1.0, 1.0, 1.0]), 1)
    assert found[0] == pytest.approx((0 * 2.0 + 1 + 2) / (2.0 + 1 + 1))


@pytest.mark.parametrize(
    ("count", "tolerate", "cut"), [(9, 2, 2), (7, 2, 2), (5, 2, 2), (4, 2, 1), (2, 2, 0), (1, 2, 0)]
)
def test_the_cut_is_a_count_and_leaves_one(count: int, tolerate: int, cut: int) -> None:
    assert robust.trimmed(count, tolerate) == cut


# ---- medians


@given(VALUES)
@settings(max_examples=60, deadline=None)
def test_with_equal_weights_the_median_is_numpys(values: np.ndarray) -> None:
    found = robust.coordinate_median(list(values), np.full(len(values), 0.3))
    np.testing.assert_allclose(found, np.median(values.astype(np.float64), axis=0))


@given(VALUES, st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_a_weight_of_whole_numbers_is_that_many_rows(values: np.ndarray, seed: int) -> None:
    times = np.random.default_rng(seed).integers(1, 4, size=len(values))
    found = robust.coordinate_median(list(values), times.astype(np.float64))
    wanted = np.median(np.repeat(values.astype(np.float64), times, axis=0), axis=0)
    np.testing.assert_allclose(found, wanted)


@given(VALUES, st.integers(0, 2**32))
@settings(max_examples=80, deadline=None)
def test_no_small_step_brings_the_geometric_median_closer_to_all(
    values: np.ndarray, seed: int
) -> None:
    weights, rng = weights_for(values, seed), np.random.default_rng(seed)
    shares = robust.geometric_median(robust.gram(list(values)), weights)
    assert shares.sum() == pytest.approx(1)
    assert (shares >= -1e-9).all()
    found = robust.combine(list(values), shares)

    def cost(point: np.ndarray) -> float:
        return float(weights @ np.linalg.norm(values - point, axis=1))

    # Weiszfeld comes near slowly where the median is one of the rows: to a thousandth.
    reached = cost(found)
    for size in (1e-3, 1e-1, 1.0):
        for _ in range(5):
            assert (
                reached <= cost(found + size * rng.standard_normal(len(found))) * (1 + 1e-3) + 1e-4
            )
    assert reached <= min(cost(row) for row in values) * (1 + 1e-3) + 1e-4


def test_honest_rows_that_agree_are_the_geometric_median_beside_a_huge_one() -> None:
    rows = [np.ones(3, np.float32)] * 4 + [np.full(3, 2.0**98, np.float32)] * 3
    found = robust.combine(rows, robust.geometric_median(robust.gram(rows), np.ones(7)))
    np.testing.assert_allclose(found, 1)


def test_the_geometric_median_stands_where_all_unit_pulls_cancel() -> None:
    rng = np.random.default_rng(5)
    rows = [rng.standard_normal(300).astype(np.float32) for _ in range(12)]
    weights = rng.uniform(0.5, 2, size=12)
    found = robust.combine(rows, robust.geometric_median(robust.gram(rows), weights))
    apart = np.stack(rows) - found
    pull = weights @ (apart / np.linalg.norm(apart, axis=1)[:, None])
    assert np.linalg.norm(pull) < 1e-7 * weights.sum()


@pytest.mark.parametrize(
    ("weights", "k", "used"),
    [
        ([1, 1, 1, 1, 1], 2, [1, 1, 1, 1, 1]),
        ([2, 1, 1, 1, 1], 1, [2, 1, 1, 1, 1]),
        ([9, 1, 1, 1, 1], 1, [1, 1, 1, 1, 1]),
        ([4, 4, 3, 3, 2], 2, [1, 1, 1, 1, 1]),
        ([9, 1, 1, 1, 1], 0, [9, 1, 1, 1, 1]),
    ],
)
def test_weights_that_hand_k_sites_half_of_the_mass_are_put_aside(
    weights: list[float], k: int, used: list[float]
) -> None:
    assert robust.fair_weights(np.array(weights, float), k).tolist() == used


# ---- multi-Krum


def test_krum_in_float64_around_the_median_leaves_both_attackers_out_where_float32_kept_them() -> (
    None
):
    rng = np.random.default_rng(11)
    common = 3e3 * rng.standard_normal(400)
    honest = common + 1e-2 * rng.standard_normal((8, 400))
    hostile = common + 3e-2 * rng.standard_normal((2, 400))
    rows = np.concatenate([hostile, honest]).astype(np.float32)
    shares = robust.multi_krum(robust.gram(list(rows)), np.ones(10), 2)
    assert shares[:2].tolist() == [0, 0]
    assert shares[2:].tolist() == [0.125] * 8
    # The same distances in float32 around zero are rounding alone.
    squares = np.square(rows).sum(axis=1)
    apart = squares[:, None] + squares[None, :] - 2 * rows @ rows.T
    true = np.square(rows[:, None].astype(np.float64) - rows[None]).sum(axis=2)
    assert np.abs(apart - true).max() > 10 * true.max()


@given(hnp.arrays(np.float32, (6, 30), elements=st.floats(-4, 4, width=16)), st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_inner_products_give_the_distances_of_the_rows(values: np.ndarray, shift: int) -> None:
    inner = robust.gram(list(values + np.float32(shift)))
    squares = np.diag(inner)
    found = squares[:, None] + squares[None, :] - 2 * inner
    moved = (values + np.float32(shift)).astype(np.float64)
    wanted = np.square(moved[:, None] - moved[None]).sum(axis=2)
    np.testing.assert_allclose(found, wanted, atol=1e-9)


@pytest.mark.parametrize("n", [5, 6, 7, 9, 12])
def test_attackers_that_stand_in_one_point_are_no_ones_neighbours(n: int) -> None:
    k = (n - 1) // 2
    rng = np.random.default_rng(n)
    values = rng.standard_normal((n, 8)).astype(np.float32)
    values[:k] = 100.0
    shares = robust.multi_krum(robust.gram(list(values)), np.ones(n), k)
    assert shares[:k].sum() == 0
    assert np.count_nonzero(shares) == n - k


def test_a_heavy_site_is_selected_no_sooner_and_counts_more_once_selected() -> None:
    values = np.array([[50], [0], [0.1], [-0.1], [0.2]], np.float32)
    shares = robust.multi_krum(robust.gram(list(values)), np.array([100.0, 3.0, 1.0, 1.0, 1.0]), 1)
    np.testing.assert_allclose(shares, [0, 1 / 2, 1 / 6, 1 / 6, 1 / 6])


# ---- norm bounding


def test_long_rows_are_cut_to_the_median_length_and_short_ones_stay() -> None:
    values = np.array([[3, 4], [0, 1], [0, 0], [60, 80], [0, 5]], np.float32)
    factors = robust.norm_bounded(robust.lengths(list(values)), np.ones(5))
    np.testing.assert_allclose(factors * 5, [1, 1, 1, 0.05, 1])


# ---- pieces


@pytest.mark.parametrize("length", [1, 8191, 8192, 8193, 30_001])
def test_rows_longer_than_a_piece_are_handled_whole(length: int) -> None:
    rng = np.random.default_rng(length)
    rows = list(rng.standard_normal((32, length)).astype(np.float32))
    stacked, ones = np.stack(rows).astype(np.float64), np.ones(32)
    np.testing.assert_allclose(robust.coordinate_median(rows, ones), np.median(stacked, axis=0))
    np.testing.assert_allclose(
        robust.trimmed_mean(rows, ones, 3), np.sort(stacked, axis=0)[3:29].mean(0), atol=1e-12
    )
    np.testing.assert_allclose(robust.lengths(rows), np.square(stacked).sum(1))
    np.testing.assert_allclose(
        robust.combine(rows, np.arange(32.0)), np.arange(32.0) @ stacked, atol=1e-9
    )


# ---- beside Flower's own code, where both mean the same


def test_without_ties_the_trimmed_mean_is_flowers() -> None:
    from flwr.serverapp.strategy.fedtrimmedavg import trim_mean

    values = np.random.default_rng(1).standard_normal((10, 40)).astype(np.float32)
    found = robust.trimmed_mean(list(values), np.ones(10), 2)
    np.testing.assert_allclose(found, trim_mean(values.astype(np.float64), 0.2), atol=1e-12)


@pytest.mark.parametrize("k", [0, 1, 3])
def test_krum_selects_the_sites_that_flower_selects_where_float32_suffices(k: int) -> None:
    from flwr.app import ArrayRecord, RecordDict
    from flwr.serverapp.strategy.multikrum import select_multikrum

    values = np.random.default_rng(k).standard_normal((11, 40)).astype(np.float32)
    values[:k] *= 4
    replies = [RecordDict({"arrays": ArrayRecord([row])}) for row in values]
    selected = select_multikrum(replies, k, 11 - k)
    shares = robust.multi_krum(robust.gram(list(values)), np.ones(11), k)
    assert {i for i, share in enumerate(shares) if share} == {
        next(i for i, reply in enumerate(replies) if reply is one) for one in selected
    }
