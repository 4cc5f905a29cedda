from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from common.errors import DataError
from simulations import sasrec
from simulations.metrics import means, ranking_metrics
from simulations.sasrec import Epoch, SasRec, train_sasrec

DATA = Path(__file__).parents[3] / "shared" / "data" / "hospital_diabetes130"
ITEMS = 40


@dataclass(frozen=True)
class Rows:
    offsets: NDArray[np.int64]
    items: NDArray[np.int32]


def rows(sequences: list[list[int]]) -> Rows:
    offsets = np.cumsum([0, *map(len, sequences)]).astype(np.int64)
    return Rows(offsets, np.array([i for s in sequences for i in s], np.int32))


def walks(count: int, seed: int) -> tuple[Rows, NDArray[np.int32]]:
    """Subjects who go through the catalog by one step, from a random start; and what comes next."""
    rng = np.random.default_rng(seed)
    starts, lengths = rng.integers(0, ITEMS, count), rng.integers(3, 12, count)
    sequences = [
        [(int(start) + i) % ITEMS for i in range(length)]
        for start, length in zip(starts, lengths, strict=True)
    ]
    return rows(sequences), ((starts + lengths) % ITEMS).astype(np.int32)


@pytest.fixture(scope="module")
def trained() -> SasRec:
    train, following = walks(400, 0)
    return train_sasrec(train, ITEMS, validation=following, epochs=12, seed=3)


def test_it_learns_an_order_that_popularity_cannot_know(trained: SasRec) -> None:
    unseen, following = walks(200, 1)
    found = means(ranking_metrics(trained.top(unseen.offsets, unseen.items), following))
    assert found["hit_rate@1"] > 0.9


def test_the_best_validated_epoch_is_kept(trained: SasRec) -> None:
    judged = [epoch.ndcg for epoch in trained.epochs]
    assert judged[trained.best - 1] == max(value for value in judged if value is not None)
    assert trained.epochs[-1].loss < trained.epochs[0].loss


def test_training_ends_soon_after_its_best_epoch() -> None:
    train, _ = walks(60, 0)
    # A target that is in the history is excluded from the ranking, so no epoch beats the first.
    blocked = train.items[train.offsets[:-1]].astype(np.int32)
    model = train_sasrec(train, ITEMS, validation=blocked, epochs=50)
    assert (model.best, len(model.epochs)) == (1, 1 + sasrec.PATIENCE)


def test_without_validation_the_last_epoch_is_kept() -> None:
    train, _ = walks(60, 0)
    told: list[Epoch] = []
    model = train_sasrec(train, ITEMS, epochs=3, progress=told.append)
    assert (model.best, told) == (3, list(model.epochs))
    assert [epoch.ndcg for epoch in told] == [None] * 3


def test_a_seed_repeats_and_leaves_the_callers_torch_alone() -> None:
    train, following = walks(60, 0)
    threads = torch.get_num_threads()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (
        train_sasrec(train, ITEMS, validation=following, epochs=2, seed=seed, threads=1).scores(
            train.offsets, train.items
        )
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_scores_cover_the_catalog_and_no_padding_changes_them(trained: SasRec) -> None:
    short, long = [1, 2, 3], list(range(30))
    both = rows([short, long, short])
    scores = trained.scores(both.offsets, both.items)
    assert scores.shape == (3, ITEMS)
    alone = rows([short])
    torch.testing.assert_close(scores[0], trained.scores(alone.offsets, alone.items)[0])
    torch.testing.assert_close(scores[0], scores[2])


def test_only_the_latest_items_of_a_long_history_count(trained: SasRec) -> None:
    tail = [i % ITEMS for i in range(sasrec.MAX_LENGTH)]
    both = rows([tail, [7, 9, *tail]])
    scores = trained.scores(both.offsets, both.items)
    torch.testing.assert_close(scores[0], scores[1])


def test_batches_score_as_one(trained: SasRec, monkeypatch: pytest.MonkeyPatch) -> None:
    some, _ = walks(50, 4)
    whole, ranked = trained.scores(some.offsets, some.items), trained.top(some.offsets, some.items)
    monkeypatch.setattr(sasrec, "SCORED", 7)
    torch.testing.assert_close(trained.scores(some.offsets, some.items), whole)
    np.testing.assert_array_equal(trained.top(some.offsets, some.items), ranked)


def test_a_ranking_leaves_the_history_out_and_fills_what_is_missing(trained: SasRec) -> None:
    history = list(range(ITEMS - 5))
    few = rows([history, []])
    top = trained.top(few.offsets, few.items)
    assert sorted(top[0, :5].tolist()) == list(range(ITEMS - 5, ITEMS))
    assert (top[0, 5:] == -1).all()
    assert len(set(top[1].tolist())) == 20


def test_nobody_to_score_is_an_empty_result(trained: SasRec) -> None:
    none = rows([])
    assert trained.scores(none.offsets, none.items).shape == (0, ITEMS)
    assert trained.top(none.offsets, none.items).shape == (0, 20)


def test_sampled_negatives_learn_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sasrec, "WHOLE_CATALOG", 10)
    monkeypatch.setattr(sasrec, "NEGATIVES", 20)
    train, following = walks(400, 0)
    model = train_sasrec(train, ITEMS, validation=following, epochs=12)
    unseen, wanted = walks(200, 1)
    found = means(ranking_metrics(model.top(unseen.offsets, unseen.items), wanted))
    assert found["hit_rate@1"] > 0.8


@pytest.mark.parametrize("train", [rows([[1], [2]]), rows([]), rows([[1, ITEMS]]), rows([[1, -1]])])
def test_sequences_that_cannot_be_trained_on_are_refused(train: Rows) -> None:
    with pytest.raises(DataError, match="two or more items"):
        train_sasrec(train, ITEMS)


@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data/hospital_diabetes130")
def test_on_real_records_it_beats_popularity_within_two_epochs() -> None:
    from common.catalog import read_catalog
    from common.interactions import read_interactions
    from common.splits import leave_one_out

    catalog = read_catalog(DATA, domain="care")
    items = len(catalog.item_ids)
    interactions, _ = read_interactions(DATA, catalog)
    split = leave_one_out(interactions.select(np.flatnonzero(interactions.counts >= 4)[:4000]))
    model = train_sasrec(split.train, items, epochs=2)
    history, wanted = split.test_history, split.test_target
    found = means(ranking_metrics(model.top(history.offsets, history.items), wanted))
    order = np.argsort(-np.bincount(split.train.items, minlength=items), kind="stable")
    popular = np.array(
        [[i for i in order if i not in set(history.items_of(s).tolist())][:20] for s in range(500)],
        np.int32,
    )
    assert found["ndcg@10"] > means(ranking_metrics(popular, wanted[:500]))["ndcg@10"]
