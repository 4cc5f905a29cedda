"""Leaving what a subject already has out of a ranking. Sensitive, like the histories."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.interactions import Interactions


def exclude(scores: Tensor, histories: Interactions, rows: NDArray[np.int64]) -> None:
    """Set the score of every item in a subject's own history to minus infinity, in place."""
    counts = histories.counts[rows]
    owner = np.repeat(np.arange(len(rows)), counts)
    start = np.cumsum(counts) - counts
    flat = np.arange(len(owner)) - start[owner] + histories.offsets[rows][owner]
    scores[torch.from_numpy(owner), torch.from_numpy(histories.items[flat].astype(np.int64))] = (
        float("-inf")
    )
