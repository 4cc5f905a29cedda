import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from common.interactions import Interactions
from common.splits import leave_one_out
from common.textpath import ActivationStore
from simulations.evaluation import (
    DEPTH,
    Examiner,
    Questions,
    best,
    exclude,
    grade,
    make_examiner,
    popularity_top,
    questions,
)
from tests.models import (
    backbone_of,
    catalog_of,
    model_of,
    noisy,
    recommender_plan,
    records_of,
)


def histories(*rows: list[int]) -> Interactions:
    counts = [len(row) for row in rows]
    flat = [item for row in rows for item in row]
    return Interactions(
        subject_ids=tuple(f"s{i}" for i in range(len(rows))),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        items=np.array(flat, dtype=np.int32),
        values=np.ones(len(flat), dtype=np.float32),
        times=np.arange(len(flat), dtype=np.int64),
    )


def asked_of(
    rows: list[list[int]],
    target: list[int],
    *,
    value: list[float] | None = None,
    site: list[str] | None = None,
    popularity: list[int] | None = None,
) -> Questions:
    return Questions(
        histories=histories(*rows),
        target=np.array(target, dtype=np.int32),
        value=np.array(value or [1.0] * len(target), dtype=np.float32),
        site=np.array(site or ["a"] * len(target)),
        trained=np.array([len(row) for row in rows]),
        popularity=np.array(popularity or [1] * 24),
    )


@pytest.fixture(scope="module")
def examiner() -> Examiner:
    splits = {
        "north": leave_one_out(records_of([1 + i % 6 for i in range(30)], seed=1)),
        "south": leave_one_out(records_of([1 + i % 5 for i in range(25)], seed=2, first=100)),
    }
    return make_examiner(
        questions(splits, 24),
        catalog_of(24),
        plan=recommender_plan(objective="rating"),
        backbone=backbone_of("bert"),
        store=ActivationStore(),
    )


def arrays(seed: int) -> dict[str, NDArray[np.float32]]:
    start = model_of(recommender_plan(objective="rating"), seed=None)
    return {name: t.numpy() for name, t in noisy(start.adapter(), seed).items()}


def test_only_subjects_with_a_test_item_are_asked_and_keep_their_site(examiner: Examiner) -> None:
    asked = examiner.asked
    assert (asked.site == "north").sum() == 25
    assert (asked.site == "south").sum() == 20
    assert all(name in asked.histories.subject_ids for name in ("subject-1", "subject-101"))
    assert "subject-0" not in asked.histories.subject_ids
    history_of = [set(asked.histories.items_of(i)) for i in range(len(asked.target))]
    assert not any(t in h for t, h in zip(asked.target, history_of, strict=True))


def test_popularity_counts_training_interactions_alone() -> None:
    split = leave_one_out(histories([3, 4, 5], [3, 7, 8, 9], [6]))
    found = questions({"a": split}, 12)
    assert found.popularity.tolist() == [0, 0, 0, 2, 0, 0, 1, 1, 0, 0, 0, 0]
    assert found.target.tolist() == [5, 9]
    assert found.trained.tolist() == [1, 2]
    assert [found.histories.items_of(i).tolist() for i in (0, 1)] == [[3, 4], [3, 7, 8]]


def test_the_history_is_never_in_a_list(examiner: Examiner) -> None:
    top = examiner.top(arrays(1))
    assert top.shape == (45, DEPTH)
    for row, listed in enumerate(top):
        kept = listed[listed >= 0].tolist()
        history = set(examiner.asked.histories.items_of(row).tolist())
        assert not history & set(kept)
        assert len(kept) == len(set(kept)) == min(DEPTH, 24 - len(history))


def test_exclude_reaches_the_right_rows_of_a_batch() -> None:
    scores = torch.zeros(2, 6)
    exclude(scores, histories([0], [1, 2], [], [3, 4, 5]), np.array([3, 1]))
    hidden = torch.isinf(scores)
    assert hidden.tolist() == [
        [False, False, False, True, True, True],
        [False, True, True, False, False, False],
    ]


def test_a_list_is_ordered_by_score_and_padded_with_minus_one() -> None:
    scores = torch.tensor([[0.1, 0.9, float("-inf"), 0.5]])
    assert best(scores)[0, :5].tolist() == [1, 3, 0, -1, -1]


def test_some_rows_are_scored_as_all_are(examiner: Examiner) -> None:
    adapter, rows = arrays(1), torch.tensor([7, 3, 40])
    np.testing.assert_array_equal(examiner.top(adapter, rows), examiner.top(adapter)[rows])
    whole, part = examiner.target_scores(adapter), examiner.target_scores(adapter, rows)
    assert whole is not None and part is not None
    np.testing.assert_allclose(part, whole[rows], rtol=1e-5)


def test_another_adapter_is_not_answered_from_the_last_one_s_texts(examiner: Examiner) -> None:
    first, second = arrays(1), arrays(2)
    before = examiner.top(first)
    assert (examiner.top(second) != before).any()
    np.testing.assert_array_equal(examiner.top(first), before)


def test_the_ranking_objective_has_no_scores_to_show(examiner: Examiner) -> None:
    plan = recommender_plan()
    ranking = make_examiner(
        examiner.asked,
        examiner.catalog,
        plan=plan,
        backbone=examiner.backbone,
        store=ActivationStore(),
    )
    assert ranking.target_scores({}) is None


def test_ratings_stay_within_one_and_five(examiner: Examiner) -> None:
    scores = examiner.target_scores(arrays(1))
    assert scores is not None
    assert scores.min() >= 1 and scores.max() <= 5


def test_the_curve_s_sample_is_the_whole_when_the_domain_is_small(examiner: Examiner) -> None:
    adapter = arrays(1)
    whole = grade(examiner.top(adapter), examiner.asked, examiner.vectors).whole
    assert examiner.quick_ndcg(adapter) == pytest.approx(whole["ndcg@10"])


def test_popularity_is_one_list_without_each_subject_s_own_history() -> None:
    popularity = [5, 9, 1, 7, *[0] * 20]
    top = popularity_top(asked_of([[1], [0, 3]], [0, 1], popularity=popularity))
    assert top[:, :2].tolist() == [[3, 0], [1, 2]]


def test_a_hand_made_case_is_graded_whole_and_by_slice() -> None:
    asked = asked_of(
        [[0], [1], [2, 3, 4]],
        [5, 6, 7],
        value=[5.0, 1.0, 4.0],
        site=["a", "a", "b"],
        popularity=[0, 0, 0, 0, 0, 9, 8, 0, 0, 7, 6, *[0] * 13],
    )
    top = np.full((3, DEPTH), -1, dtype=np.int32)
    top[0, :2], top[1, :2], top[2, :3] = [5, 8], [9, 6], [8, 9, 10]
    vectors = torch.nn.functional.normalize(torch.randn(24, 4), dim=1)
    scored = np.array([4.0, 2.0, 3.0], dtype=np.float32)
    found = grade(top, asked, vectors, scored, "rating")
    second = 1 / np.log2(3)
    assert found.whole["ndcg@10"] == pytest.approx((1 + second + 0) / 3)
    assert found.whole["recall@1"] == pytest.approx(1 / 3)
    assert found.whole["coverage@10"] == pytest.approx(5 / 24)
    assert found.whole["rmse"] == pytest.approx(1.0)
    assert found.sliced["site:a"]["ndcg@10"] == pytest.approx((1 + second) / 2)
    assert found.sliced["site:a"]["coverage@10"] == pytest.approx(4 / 24)
    assert found.sliced["site:b"]["hit_rate@20"] == 0
    assert found.sliced["tail items"]["ndcg@10"] == 0
    assert found.sliced["head items"]["ndcg@10"] == pytest.approx((1 + second) / 2)
    assert found.sliced["cold subjects"]["ndcg@10"] == pytest.approx((1 + second) / 2)
    clicks = grade(top, asked, vectors, scored, "click")
    assert clicks.whole["auc"] == 1.0
    assert "rmse" not in clicks.whole
    assert "auc" not in grade(top, asked, vectors).whole


def test_a_slice_without_anybody_is_not_a_number_and_no_error() -> None:
    asked = asked_of([[0, 1, 2]], [5])
    top = np.full((1, DEPTH), -1, dtype=np.int32)
    top[0, 0] = 5
    found = grade(top, asked, torch.eye(24))
    assert np.isnan(found.sliced["cold subjects"]["ndcg@10"])
    assert "coverage@10" not in found.sliced["cold subjects"]
