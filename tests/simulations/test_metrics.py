import math
from itertools import combinations

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import AP, P, R, Success, nDCG

from common.errors import DataError
from simulations.metrics import (
    CUTOFFS,
    NAMES,
    auc,
    coverage,
    diversity,
    head_items,
    means,
    novelty,
    paired_bootstrap,
    ranking_metrics,
    rmse,
    slices,
)

ROW = np.arange(100, 120, dtype=np.int32)[None, :]


def one(targets: object, row: np.ndarray = ROW) -> dict[str, float]:
    return means(ranking_metrics(row, targets))  # type: ignore[arg-type]


def test_every_metric_stands_at_every_cutoff() -> None:
    assert list(one(np.array([100]))) == [f"{name}@{k}" for name in NAMES for k in CUTOFFS]


def test_a_target_at_the_third_place_by_hand() -> None:
    found = one(np.array([102]))
    assert found["ndcg@10"] == pytest.approx(1 / math.log2(4))
    assert found["mrr@10"] == found["map@10"] == pytest.approx(1 / 3)
    assert (found["recall@10"], found["hit_rate@10"], found["precision@10"]) == (1, 1, 0.1)
    assert found["f1@10"] == pytest.approx(2 * 0.1 / 1.1)
    assert {found[f"{name}@1"] for name in NAMES} == {0.0}


def test_three_relevant_items_two_of_them_found_by_hand() -> None:
    # Places 1 and 4 of 20; the third relevant item is not in the ranking.
    found = one([{100, 103, 999}])
    assert found["precision@5"] == pytest.approx(2 / 5)
    assert found["recall@5"] == pytest.approx(2 / 3)
    assert found["f1@5"] == pytest.approx(2 * (2 / 5) * (2 / 3) / (2 / 5 + 2 / 3))
    assert found["map@5"] == pytest.approx((1 / 1 + 2 / 4) / 3)
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert found["ndcg@5"] == pytest.approx((1 + 1 / math.log2(5)) / ideal)
    assert found["mrr@5"] == found["hit_rate@5"] == 1.0


@pytest.mark.parametrize("k", CUTOFFS)
def test_the_cutoff_is_the_last_place_that_counts(k: int) -> None:
    inside, outside = one(np.array([100 + k - 1])), one(np.array([100 + k]))
    assert inside[f"mrr@{k}"] == pytest.approx(1 / k)
    assert inside[f"hit_rate@{k}"] == 1.0
    assert {outside[f"{name}@{k}"] for name in NAMES} == {0.0}


def test_places_that_a_small_catalog_leaves_empty_are_misses() -> None:
    short = np.full((1, 20), -1, np.int32)
    short[0, :3] = [5, 6, 7]
    assert one(np.array([7]), short)["mrr@10"] == pytest.approx(1 / 3)
    assert one(np.array([8]), short)["recall@20"] == 0.0


def test_one_target_and_a_set_of_one_agree_exactly() -> None:
    rng = np.random.default_rng(0)
    top = np.stack([rng.permutation(60)[:20] for _ in range(400)]).astype(np.int32)
    targets = rng.integers(0, 60, 400)
    by_rank = ranking_metrics(top, targets)
    by_set = ranking_metrics(top, [{int(t)} for t in targets])
    for name, values in by_rank.items():
        np.testing.assert_array_equal(values, by_set[name])


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_the_pattern_table_equals_the_library_on_real_items(seed: int) -> None:
    rng = np.random.default_rng(seed)
    top = np.stack([rng.permutation(40)[:20] for _ in range(30)]).astype(np.int32)
    wanted = [set(rng.choice(40, rng.integers(1, 6), replace=False).tolist()) for _ in top]
    qrels = {str(u): {str(i): 1 for i in items} for u, items in enumerate(wanted)}
    run = {str(u): {str(i): 20.0 - c for c, i in enumerate(row)} for u, row in enumerate(top)}
    ours = ranking_metrics(top, wanted)
    for name, measure in (
        ("recall", R), ("precision", P), ("hit_rate", Success), ("ndcg", nDCG), ("map", AP)
    ):  # fmt: skip
        for k in CUTOFFS:
            for value in ir_measures.iter_calc([measure @ k], qrels, run):
                assert ours[f"{name}@{k}"][int(value.query_id)] == value.value


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_metrics_lie_in_0_1_and_grow_with_the_cutoff(seed: int) -> None:
    rng = np.random.default_rng(seed)
    top = np.stack([rng.permutation(40)[:20] for _ in range(20)]).astype(np.int32)
    found = ranking_metrics(top, rng.integers(0, 40, 20))
    assert all(((v >= 0) & (v <= 1)).all() for v in found.values())
    for name in ("recall", "hit_rate", "ndcg", "mrr", "map"):
        assert (np.diff([found[f"{name}@{k}"] for k in CUTOFFS], axis=0) >= 0).all()


@pytest.mark.parametrize(
    ("top", "targets", "message"),
    [
        (ROW[:, :19], np.array([1]), "shape"),
        (ROW[0], np.array([1]), "shape"),
        (np.zeros((1, 20), np.int32), np.array([1]), "one twice"),
        (ROW, np.array([1, 2]), "Expected 1 targets"),
        (ROW, np.array([-1]), "0 or more"),
        (ROW, np.array([[1]]), "shape"),
        (ROW, [set()], "relevant"),
    ],
)
def test_bad_rankings_are_refused(top: np.ndarray, targets: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ranking_metrics(top, targets)  # type: ignore[arg-type]


def test_a_slice_is_the_mean_over_its_subjects_and_an_empty_one_is_nan() -> None:
    found = ranking_metrics(np.repeat(ROW, 3, axis=0), np.array([100, 101, 5]))
    assert means(found, np.array([True, False, True]))["hit_rate@1"] == 0.5
    assert math.isnan(means(found, np.zeros(3, np.bool_))["ndcg@10"])


def test_slices_follow_popularity_length_and_site() -> None:
    popularity = np.array([1, 50, 2, 3, 4, 5, 6, 7, 8, 40])
    masks = slices(np.array([1, 9, 0]), popularity, np.array([2, 3, 0]), ["b", "a", "b"])
    assert list(masks) == ["head items", "tail items", "cold subjects", "site:a", "site:b"]
    assert masks["head items"].tolist() == [True, True, False]
    assert masks["tail items"].tolist() == [False, False, True]
    assert masks["cold subjects"].tolist() == [True, False, True]
    assert masks["site:b"].tolist() == [True, False, True]


def test_the_head_is_a_fifth_of_the_catalog_and_never_empty() -> None:
    assert head_items(np.arange(100)).nonzero()[0].tolist() == list(range(80, 100))
    assert head_items(np.zeros(2, np.int64)).tolist() == [True, False]


def test_auc_is_the_share_of_pairs_in_the_right_order() -> None:
    scores, clicked = np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])
    assert auc(scores, clicked) == 0.75
    assert math.isnan(auc(scores, np.ones(4, np.int64)))


def test_rmse_by_hand() -> None:
    assert rmse(np.array([1.0, 5.0]), np.array([2.0, 2.0])) == pytest.approx(math.sqrt(5))


def test_coverage_counts_distinct_items_of_the_first_ten() -> None:
    top = np.stack([np.arange(20), np.arange(5, 25)]).astype(np.int32)
    assert coverage(top, 50) == 15 / 50
    top[1] = -1
    assert coverage(top, 50) == 10 / 50


def test_diversity_is_the_mean_cosine_distance_over_pairs() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(50, 8)).astype(np.float32)
    top = np.stack([rng.permutation(50)[:20] for _ in range(7)]).astype(np.int32)
    top[6, 4:] = -1

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    rows = [[i for i in row[:10] if i >= 0] for row in top]
    by_hand = [
        np.mean([distance(vectors[i], vectors[j]) for i, j in combinations(row, 2)]) for row in rows
    ]
    assert diversity(top, vectors) == pytest.approx(np.mean(by_hand), abs=1e-5)
    assert diversity(top, np.ones((50, 8), np.float32)) == pytest.approx(0, abs=1e-6)


def test_novelty_is_self_information_in_bits() -> None:
    # Smoothed shares: (7 + 1) / (8 + 8) = 1/2 and (0 + 1) / 16 for the unseen.
    popularity = np.array([7, 1, 0, 0, 0, 0, 0, 0])
    top = np.full((1, 20), -1, np.int32)
    top[0, :2] = [0, 2]
    assert novelty(top, popularity) == pytest.approx((1 + 4) / 2)


def test_the_bootstrap_interval_holds_the_difference_and_repeats() -> None:
    rng = np.random.default_rng(2)
    second = rng.random(5_000)
    first = second + 0.02 + 0.1 * rng.normal(size=5_000)
    low, high = paired_bootstrap(first, second, seed=0)
    assert low < (first - second).mean() < high
    assert high - low == pytest.approx(2 * 1.96 * 0.1 / math.sqrt(5_000), rel=0.1)
    assert (low, high) == paired_bootstrap(first, second, seed=0)
    assert (low, high) != paired_bootstrap(first, second, seed=1)


def test_the_bootstrap_refuses_what_is_not_paired() -> None:
    with pytest.raises(DataError, match="pairs"):
        paired_bootstrap(np.zeros(3), np.zeros(4), seed=0)
