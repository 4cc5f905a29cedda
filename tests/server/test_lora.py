import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigError, OrderError, SecurityRefused
from server.lora import (
    Factors,
    aggregate_plain_lora,
    decomposed,
    error_against_exact,
    errors_of_methods,
    length,
    mean_of_factors,
    reduced,
    residual,
    stacked,
    total,
)

A, B = "text.layer.query.lora_A.weight", "text.layer.query.lora_B.weight"
SIDES = [(24, 24), (96, 17), (17, 96), (3, 40), (40, 3)]
"""d_out, d_in: square, tall, wide, and smaller than the ranks."""


def dense(factors: Factors) -> np.ndarray:
    return factors.scale * factors.b @ factors.a


def dense_mean(sites: list[Factors], weights: list[float]) -> np.ndarray:
    return sum(w * dense(f) for f, w in zip(sites, weights, strict=True)) / sum(weights)


def error(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def drawn(
    seed: int, sides: tuple[int, int], ranks: list[int], *, common_a: bool = False
) -> tuple[list[Factors], list[float]]:
    rng = np.random.default_rng(seed)
    d_out, d_in = sides
    base = rng.standard_normal((max(ranks), d_in))
    sites = [
        Factors(
            a=base[:r] if common_a else base[:r] + 0.3 * rng.standard_normal((r, d_in)),
            b=0.1 * rng.standard_normal((d_out, r)),
        )
        for r in ranks
    ]
    return sites, [float(w) for w in rng.uniform(0.1, 5, size=len(ranks))]


LAYERS = pytest.mark.parametrize("sides", SIDES)
SEEDS = st.integers(0, 2**32)


# ---- each method against the dense mean of products, unequal weights, non-square layers


@LAYERS
@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_with_a_common_a_the_mean_of_b_is_exact(sides: tuple[int, int], seed: int) -> None:
    sites, weights = drawn(seed, sides, [4, 4, 4, 4], common_a=True)
    assert error(dense(mean_of_factors(sites, weights)), dense_mean(sites, weights)) < 1e-12


@LAYERS
@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_stacking_is_exact_for_different_ranks(sides: tuple[int, int], seed: int) -> None:
    sites, weights = drawn(seed, sides, [2, 4, 8, 1])
    found = stacked(sites, weights)
    assert found.rank == 15
    assert error(dense(found), dense_mean(sites, weights)) < 1e-12
    rounded = Factors(
        a=found.a.astype(np.float32).astype(np.float64),
        b=found.b.astype(np.float32).astype(np.float64),
    )
    assert error(dense(rounded), dense_mean(sites, weights)) < 1e-6


@LAYERS
@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_the_means_and_their_residual_are_exact_together(sides: tuple[int, int], seed: int) -> None:
    sites, weights = drawn(seed, sides, [2, 4, 8, 1])
    mean, missed = mean_of_factors(sites, weights), residual(sites, weights)
    exact = dense_mean(sites, weights)
    assert error(dense(total([mean, missed])), exact) < 1e-12
    np.testing.assert_allclose(dense(missed), exact - dense(mean), atol=1e-12)
    assert error(dense(mean), exact) > 1e-3


@LAYERS
@given(seed=SEEDS, rank=st.integers(1, 12))
@settings(max_examples=15, deadline=None)
def test_reduction_is_the_closest_matrix_of_that_rank(
    sides: tuple[int, int], seed: int, rank: int
) -> None:
    sites, weights = drawn(seed, sides, [4, 4, 4])
    exact = dense_mean(sites, weights)
    like = mean_of_factors(sites, weights).a
    u, s, v = np.linalg.svd(exact, full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ v[:rank]
    found = reduced(stacked(sites, weights), rank)
    assert found.a.shape == (rank, sides[1])
    assert found.b.shape == (sides[0], rank)
    np.testing.assert_allclose(dense(found), best, atol=1e-9)
    near = reduced(stacked(sites, weights), 4, like=like)
    np.testing.assert_allclose(dense(near), (u[:, :4] * s[:4]) @ v[:4], atol=1e-9)


@LAYERS
def test_the_reported_error_is_the_dense_one(sides: tuple[int, int]) -> None:
    sites, weights = drawn(5, sides, [4, 4, 4])
    exact = dense_mean(sites, weights)
    found = errors_of_methods(sites, weights, rank=2)
    mean = error(dense(mean_of_factors(sites, weights)), exact)
    best = error(dense(reduced(stacked(sites, weights), 2)), exact)
    assert found["mean"] == pytest.approx(mean, rel=1e-9)
    assert found["svd"] == pytest.approx(best, rel=1e-9)
    assert found["stacking"] < 1e-12
    assert found["fedex"] < 1e-12
    assert found["mean"] > 1e-3


def test_the_length_of_a_difference_is_not_lost_in_rounding() -> None:
    sites, _ = drawn(6, (40, 30), [4])
    (one,) = sites
    other = Factors(a=one.a, b=one.b * (1 + 1e-9))
    apart = total([one, Factors(a=other.a, b=other.b, scale=-1.0)])
    assert length(apart) == pytest.approx(1e-9 * length(one), rel=1e-4)
    assert length(one) == pytest.approx(np.linalg.norm(dense(one)))


def test_a_scale_of_a_site_is_part_of_its_product() -> None:
    sites, weights = drawn(7, (20, 30), [2, 4])
    scaled = [Factors(a=f.a, b=f.b, scale=8.0 / f.rank) for f in sites]
    exact = dense_mean(scaled, weights)
    assert error(dense(stacked(scaled, weights)), exact) < 1e-12
    both = total([mean_of_factors(scaled, weights), residual(scaled, weights)])
    assert error(dense(both), exact) < 1e-12


def test_a_product_of_zero_has_no_error_and_no_rank() -> None:
    zero = Factors(a=np.ones((2, 5)), b=np.zeros((4, 2)))
    assert decomposed(zero)[1].size == 0
    assert not dense(reduced(zero, 2)).any()
    assert error_against_exact(zero, [zero, zero], [1.0, 2.0]) == 0


def test_large_layers_are_never_formed() -> None:
    # The dense matrix would be over 600 GiB; the factors are 10 MB.
    side = 300_000
    rng = np.random.default_rng(0)
    sites = [
        Factors(a=rng.standard_normal((1, side)), b=rng.standard_normal((side, 1)))
        for _ in range(2)
    ]
    assert reduced(stacked(sites, [1.0, 1.0]), 2).rank == 2
    assert errors_of_methods(sites, [1.0, 3.0], rank=2)["svd"] < 1e-9


# ---- which pair of factors


def test_factors_stay_close_to_those_that_the_optimiser_remembers() -> None:
    rng = np.random.default_rng(1)
    like = rng.standard_normal((4, 30))
    sites = [
        Factors(a=like + 0.01 * rng.standard_normal((4, 30)), b=0.1 * rng.standard_normal((20, 4)))
        for _ in range(5)
    ]
    mean = mean_of_factors(sites, [1.0] * 5)
    near = reduced(stacked(sites, [1.0] * 5), 4, like=mean.a)
    assert error(near.a, mean.a) < 0.02
    assert error(near.b, mean.b) < 0.05
    balanced = reduced(stacked(sites, [1.0] * 5), 4)
    assert error(balanced.a, mean.a) > 0.5
    np.testing.assert_allclose(dense(near), dense(balanced), atol=1e-12)


def test_with_a_common_a_reduction_gives_the_mean_of_b_and_that_a() -> None:
    sites, weights = drawn(2, (20, 30), [4, 4, 4], common_a=True)
    found = reduced(stacked(sites, weights), 4, like=sites[0].a)
    np.testing.assert_allclose(found.a, sites[0].a, atol=1e-9)
    np.testing.assert_allclose(found.b, mean_of_factors(sites, weights).b, atol=1e-9)


def test_directions_of_a_that_no_site_used_are_kept_for_later_rounds() -> None:
    rng = np.random.default_rng(3)
    a = rng.standard_normal((4, 30))
    b = np.zeros((20, 4))
    b[:, 0] = rng.standard_normal(20)
    found = reduced(stacked([Factors(a=a, b=b)] * 2, [1.0, 2.0]), 4, like=a)
    np.testing.assert_allclose(found.b @ found.a, b @ a, atol=1e-12)
    np.testing.assert_allclose(found.a, a, atol=1e-9)


def test_an_a_across_the_new_row_space_is_given_up_and_the_product_is_not() -> None:
    rows = np.eye(8)
    site = Factors(a=rows[:2], b=np.arange(12.0).reshape(6, 2))
    found = reduced(stacked([site], [1.0]), 2, like=rows[4:6])
    np.testing.assert_allclose(dense(found), dense(site), atol=1e-12)


# ---- adapters


def adapters(seed: int, ranks: dict[str, int]) -> tuple[dict[str, dict[str, np.ndarray]], dict]:
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((4, 30)).astype(np.float32)
    current = {A: base, B: np.zeros((20, 4), np.float32), "map": np.ones(3, np.float32)}
    updates = {
        site: {
            A: (np.resize(base, (rank, 30)) + 0.1 * rng.standard_normal((rank, 30))).astype(
                np.float32
            ),
            B: (0.1 * rng.standard_normal((20, rank))).astype(np.float32),
            "map": np.zeros(3, np.float32),
        }
        for site, rank in ranks.items()
    }
    return updates, current


def products(updates: dict, weights: dict) -> np.ndarray:
    mass = sum(weights[site] for site in updates)
    return sum(
        weights[site] / mass * u[B].astype(np.float64) @ u[A].astype(np.float64)
        for site, u in updates.items()
    )


def test_an_adapters_pair_becomes_the_closest_one_of_its_rank() -> None:
    updates, current = adapters(1, {"a": 4, "b": 4, "c": 4})
    weights = {"a": 1.0, "b": 2.5, "c": 0.3}
    found = aggregate_plain_lora(updates, current, weights=weights)
    assert set(found) == {A, B}
    assert all(value.dtype == np.float64 for value in found.values())
    exact = products(updates, weights)
    tail = np.linalg.svd(exact)[1][4:]
    gap = np.linalg.norm(found[B] @ found[A] - exact)
    assert gap == pytest.approx(np.linalg.norm(tail), rel=1e-9)
    naive = sum(weights[s] * u[B] for s, u in updates.items()) @ sum(
        weights[s] * u[A] for s, u in updates.items()
    )
    assert gap < np.linalg.norm(naive / sum(weights.values()) ** 2 - exact)


def test_one_sites_pair_comes_back_as_its_product() -> None:
    updates, current = adapters(2, {"a": 4})
    found = aggregate_plain_lora(updates, current, weights={"a": 3.0})
    assert error(found[B] @ found[A], products(updates, {"a": 1.0})) < 1e-12
    np.testing.assert_allclose(found[A], updates["a"][A], atol=1e-9)


def test_sites_of_lower_ranks_take_part_with_their_own_scale() -> None:
    updates, current = adapters(3, {"a": 1, "b": 2})
    scales = {"a": 4.0, "b": 2.0}
    found = aggregate_plain_lora(updates, current, weights={"a": 1.0, "b": 2.0}, scales=scales)
    exact = (
        scales["a"] * updates["a"][B].astype(float) @ updates["a"][A]
        + 2 * scales["b"] * updates["b"][B].astype(float) @ updates["b"][A]
    ) / 3
    assert error(found[B] @ found[A], exact) < 1e-6  # rank 3 fits in 4
    assert found[A].shape == current[A].shape


def test_the_order_of_sites_changes_no_bit_of_an_adapter() -> None:
    updates, current = adapters(4, {"a": 4, "b": 4, "c": 4})
    weights = {"a": 1.0, "b": 2.5, "c": 0.3}
    one = aggregate_plain_lora(updates, current, weights=weights)
    two = aggregate_plain_lora(dict(reversed(updates.items())), current, weights=weights)
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)


def test_an_adapter_before_its_first_step_stays_as_it_is() -> None:
    _, current = adapters(5, {})
    found = aggregate_plain_lora(
        {"a": current, "b": current}, current, weights={"a": 1.0, "b": 1.0}
    )
    np.testing.assert_allclose(found[A], current[A], atol=1e-12)
    assert not found[B].any()


def test_pairs_that_nobody_sent_and_adapters_with_a_frozen_a_give_nothing() -> None:
    updates, current = adapters(6, {"a": 4})
    assert aggregate_plain_lora({"a": {"map": updates["a"]["map"]}}, current, weights={}) == {}
    frozen = {B: current[B]}
    assert aggregate_plain_lora({"a": frozen}, frozen, weights={"a": 1.0}) == {}


def test_half_a_pair_another_layer_and_nan_are_refused() -> None:
    updates, current = adapters(7, {"a": 4, "b": 4})
    weights = {"a": 1.0, "b": 1.0}
    half = {A: updates["b"][A]}
    with pytest.raises(SecurityRefused, match="one of them"):
        aggregate_plain_lora({**updates, "b": half}, current, weights=weights)
    other = {A: updates["b"][A][:, :7], B: updates["b"][B]}
    with pytest.raises(SecurityRefused, match="one layer"):
        aggregate_plain_lora({**updates, "b": other}, current, weights=weights)
    with pytest.raises(SecurityRefused, match="Expected factors of"):
        aggregate_plain_lora({"b": other}, current, weights=weights)
    apart = {A: updates["b"][A], B: updates["b"][B][:, :2]}
    with pytest.raises(SecurityRefused, match="B of"):
        aggregate_plain_lora({"b": apart}, current, weights=weights)
    spoilt = {A: updates["b"][A] * np.float32(np.nan), B: updates["b"][B]}
    with pytest.raises(SecurityRefused, match="finite"):
        aggregate_plain_lora({**updates, "b": spoilt}, current, weights=weights)


def test_weights_that_are_missing_or_no_positive_number_are_refused() -> None:
    updates, current = adapters(8, {"a": 4, "b": 4})
    with pytest.raises(OrderError, match="weight for each"):
        aggregate_plain_lora(updates, current, weights={"a": 1.0})
    with pytest.raises(ConfigError, match="weight above 0"):
        aggregate_plain_lora(updates, current, weights={"a": 1.0, "b": 0.0})
    with pytest.raises(OrderError, match="at least one"):
        stacked([], [])
