import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.windows import (
    DECAY,
    history_texts,
    history_views,
    query_windows,
    training_windows,
)
from tests.models import catalog_of, records_of

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=12)


@given(LENGTHS, st.integers(1, 5), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_windows_are_the_latest_targets_with_what_came_before_each(
    lengths: list[int], most: int, items: int
) -> None:
    records = records_of(lengths)
    found = training_windows(records, windows=most, history_items=items)
    assert found.subjects == len(lengths)
    for subject, length in enumerate(lengths):
        start, end = found.offsets[subject : subject + 2].tolist()
        assert end - start == min(length, most)
        had = records.items_of(subject).tolist()
        for row, place in zip(
            range(start, end), range(length - min(length, most), length), strict=True
        ):
            assert found.target[row] == had[place]
            wanted = had[max(place - items, 0) : place][::-1]
            assert [i for i in found.history[row].tolist() if i >= 0] == wanted
            assert found.history[row, len(wanted) :].eq(-1).all()
            assert found.value[row] == records.values[records.offsets[subject] + place]


@given(LENGTHS)
@settings(max_examples=30, deadline=None)
def test_no_target_stands_in_its_own_history(lengths: list[int]) -> None:
    found = training_windows(records_of(lengths), windows=64, history_items=50)
    assert not (found.history == found.target.unsqueeze(1)).any()


@given(LENGTHS, st.data())
@settings(max_examples=40, deadline=None)
def test_rows_of_a_sample_belong_to_its_subjects_side_by_side(
    lengths: list[int], data: st.DataObject
) -> None:
    found = training_windows(records_of(lengths), windows=3, history_items=4)
    sample = torch.tensor(
        data.draw(st.lists(st.integers(0, len(lengths) - 1), unique=True)), dtype=torch.long
    )
    rows, owner = found.rows_of(sample)
    wanted = [
        (row, place)
        for place, subject in enumerate(sample.tolist())
        for row in range(*found.offsets[subject : subject + 2].tolist())
    ]
    assert list(zip(rows.tolist(), owner.tolist(), strict=True)) == wanted


def test_query_windows_hold_the_latest_history_and_no_target() -> None:
    records = records_of([1, 4, 9])
    found = query_windows(records, history_items=5)
    assert found.offsets.tolist() == [0, 1, 2, 3]
    assert (found.target == -1).all()
    for subject in range(3):
        had = records.items_of(subject).tolist()[::-1][:5]
        assert [i for i in found.history[subject].tolist() if i >= 0] == had


def test_views_are_mean_last_and_recency_weighted_vectors_of_unit_length() -> None:
    vectors = torch.randn(6, 4)
    views = history_views(torch.tensor([[3, 1, 5]]), vectors).view(3, 4)
    recent = vectors[3] + DECAY * vectors[1] + DECAY**2 * vectors[5]
    wanted = [(vectors[3] + vectors[1] + vectors[5]), vectors[3], recent]
    for view, raw in zip(views, wanted, strict=True):
        torch.testing.assert_close(view, raw / raw.norm() / 3**0.5)
    assert float(views.norm()) == pytest.approx(1.0)


def test_padding_and_empty_histories_say_nothing() -> None:
    vectors = torch.randn(6, 4)
    padded = history_views(torch.tensor([[2, -1, -1], [-1, -1, -1]]), vectors)
    torch.testing.assert_close(padded[:1], history_views(torch.tensor([[2]]), vectors))
    assert (padded[1] == 0).all()


def test_a_history_in_words_tells_the_latest_items_first() -> None:
    catalog = catalog_of(6)
    history = torch.tensor([[4, 2, 0], [-1, -1, -1], [1, -1, -1]])
    titles = catalog.titles
    assert history_texts(history, catalog, items=2) == [f"{titles[4]}; {titles[2]}", "", titles[1]]


def test_a_subject_s_windows_do_not_depend_on_anybody_else() -> None:
    whole = records_of([3, 5, 2, 7])
    together = training_windows(whole, windows=3, history_items=4)
    for subject in range(4):
        alone = training_windows(whole.select([subject]), windows=3, history_items=4)
        rows = slice(*together.offsets[subject : subject + 2].tolist())
        width = alone.history.shape[1]
        assert torch.equal(together.target[rows], alone.target)
        assert torch.equal(together.history[rows, :width], alone.history)
        assert together.history[rows, width:].eq(-1).all()
