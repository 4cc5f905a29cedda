"""Federated evaluation at a site: noised sums of three bounded figures a subject, nothing else.

Each subject gives (1, NDCG@10, hit at 10) of the last item held out, a vector of length sqrt(3) at
most; the sum gets Gaussian noise that the ledger paid for. Sensitive: everything but the sums.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from common.grant import Grant
from common.held_out import HeldOut
from common.wire import FIGURES

SENSITIVITY: Final = math.sqrt(len(FIGURES))
"""Longest vector that one subject adds."""
GRID: Final = 2.0**-20
"""Sums and noise are whole multiples, so that no digit of a float tells the data."""


def noised_figures(
    held_out: HeldOut, tensors: dict[str, Tensor], grant: Grant, left_out: NDArray[np.int64]
) -> dict[str, float]:
    """Sums over the subjects, with noise; by the names of FIGURES.

    Args:
        held_out: the site's subjects.
        tensors: the adapter.
        grant: pays for one release without sampling.
        left_out: positions of subjects who opted out.
    """
    grant.sample(len(held_out.subjects))  # rate 1: everybody counts
    each = held_out.figures(tensors)[~np.isin(held_out.subjects, left_out)]
    exact = np.round(each.sum(axis=0) / GRID)
    noise = np.round(grant.noise(len(FIGURES)) * (grant.noise_multiplier * SENSITIVITY / GRID))
    return dict(zip(FIGURES, ((exact + noise) * GRID).tolist(), strict=True))
