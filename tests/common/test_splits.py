"""Leave-one-out against its definition, subject by subject."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from common.interactions import Interactions
from common.splits import NONE, leave_one_out


def make(counts: list[int]) -> Interactions:
    total = sum(counts)
    return Interactions(
        subject_ids=tuple(f"s{n}" for n in range(len(counts))),
        offsets=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        items=np.arange(total, dtype=np.int32),
        values=(np.arange(total) / 2).astype(np.float32),
        times=np.arange(total),
    )


@given(counts=st.lists(st.integers(0, 6), max_size=12))
def test_every_subject_is_cut_as_the_rule_says(counts: list[int]) -> None:
    whole = make(counts)
    split = leave_one_out(whole)
    for subject, count in enumerate(counts):
        items = whole.items_of(subject).tolist()
        if count >= 3:
            expected = (items[:-2], items[-2], items[:-1], items[-1])
        elif count == 2:
            expected = (items[:1], NONE, items[:1], items[1])
        else:
            expected = (items, NONE, items, NONE)
        found = (
            split.train.items_of(subject).tolist(),
            split.validation_target[subject],
            split.test_history.items_of(subject).tolist(),
            split.test_target[subject],
        )
        assert found == expected
        assert split.validation_history.items_of(subject).tolist() == expected[0]


@given(counts=st.lists(st.integers(0, 6), max_size=12))
def test_no_target_is_in_its_own_history_and_nothing_is_lost(counts: list[int]) -> None:
    split = leave_one_out(make(counts))
    for subject in range(len(counts)):
        assert split.test_target[subject] not in split.test_history.items_of(subject)
        assert split.validation_target[subject] not in split.validation_history.items_of(subject)
    targets = (split.validation_target >= 0).sum() + (split.test_target >= 0).sum()
    assert split.train.items.size + targets == sum(counts)


def test_targets_carry_their_ratings() -> None:
    split = leave_one_out(make([3, 2, 1]))
    assert split.test_value.tolist() == [1.0, 2.0, 0.0]
    assert split.validation_value.tolist() == [0.5, 0.0, 0.0]
    assert split.test_value.dtype == np.float32
    assert split.test_target.dtype == np.int32


def test_all_parts_list_the_same_subjects() -> None:
    whole = make([4, 0, 1])
    split = leave_one_out(whole)
    for part in (split.train, split.validation_history, split.test_history):
        assert part.subject_ids == whole.subject_ids
        assert part.offsets.size == 4
