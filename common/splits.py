"""Leave-one-out by time: the last item of a subject tests, the last but one validates.

Sensitive, like the interactions it is cut from.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.interactions import Interactions

NONE = -1
"""Target of a subject that has none."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LeaveOneOut:
    """A split of n subjects; every part lists the same subjects in the same order.

    Attributes:
        train: Training part of each subject.
        validation_history: What comes before the validation item (the training part).
        validation_target: int32[n], position of the validation item, -1 where there is none.
        validation_value: float32[n], its rating, 0 where there is none.
        test_history: What comes before the test item, the validation item included; the whole
            record of a subject without a test item.
        test_target: int32[n], position of the test item, -1 where there is none.
        test_value: float32[n], its rating, 0 where there is none.
    """

    train: Interactions
    validation_history: Interactions
    validation_target: NDArray[np.int32]
    validation_value: NDArray[np.float32]
    test_history: Interactions
    test_target: NDArray[np.int32]
    test_value: NDArray[np.float32]


def leave_one_out(interactions: Interactions) -> LeaveOneOut:
    """Split each subject by its number of interactions.

    Three or more: last = test, last but one = validation, the rest trains. Two: last = test, the
    first trains. One: it trains.
    """
    counts = interactions.counts
    train = interactions.trimmed(counts - np.select([counts >= 3, counts == 2], [2, 1], 0))
    validation, validation_value = _from_end(interactions, 2, counts >= 3)
    test, test_value = _from_end(interactions, 1, counts >= 2)
    return LeaveOneOut(
        train=train,
        validation_history=train,
        validation_target=validation,
        validation_value=validation_value,
        test_history=interactions.trimmed(counts - (counts >= 2)),
        test_target=test,
        test_value=test_value,
    )


def _from_end(
    interactions: Interactions, back: int, present: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Item and value `back` places from the end of each subject's row, where `present`."""
    rows = interactions.offsets[1:][present] - back
    targets = np.full(len(interactions), NONE, dtype=np.int32)
    values = np.zeros(len(interactions), dtype=np.float32)
    targets[present] = interactions.items[rows]
    values[present] = interactions.values[rows]
    return targets, values
