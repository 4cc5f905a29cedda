import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.interactions import Interactions
from common.ranking import exclude
from tests.models import records_of

ITEMS = 24


def excluded(records: Interactions, rows: list[int]) -> torch.Tensor:
    scores = torch.randn(len(rows), ITEMS, generator=torch.Generator().manual_seed(0))
    exclude(scores, records, np.array(rows, np.int64))
    return scores


@given(
    lengths=st.lists(st.integers(1, ITEMS), min_size=1, max_size=12),
    data=st.data(),
)
def test_exactly_a_subjects_own_items_are_left_out_in_any_order_of_rows(
    lengths: list[int], data: st.DataObject
) -> None:
    records = records_of(lengths)
    rows = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=8))
    scores = excluded(records, rows)
    for place, row in enumerate(rows):
        own = set(records.items[records.offsets[row] : records.offsets[row + 1]].tolist())
        assert set(torch.isneginf(scores[place]).nonzero().flatten().tolist()) == own


def test_the_other_scores_stay_as_they_were() -> None:
    records = records_of([3, 5])
    before = torch.randn(2, ITEMS, generator=torch.Generator().manual_seed(0))
    after = excluded(records, [0, 1])
    kept = ~torch.isneginf(after)
    assert torch.equal(after[kept], before[kept])
