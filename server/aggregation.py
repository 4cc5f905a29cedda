"""Aggregation: arrays in, arrays out. Updates are sums of float64 with public contract weights."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from common.errors import OrderError

Tensors = Mapping[str, NDArray[np.float32]]


def weighted_mean(
    updates: Sequence[Tensors], weights: Sequence[float]
) -> dict[str, NDArray[np.float64]]:
    """Mean of updates, tensor by tensor, over the sites that hold the tensor.

    A domain's bias comes from that domain's sites alone, and they share its whole weight.

    Args:
        updates: one mapping a site; sites of different domains hold different names.
        weights: contract weight of each site, positive.

    Raises:
        OrderError: no update, or weights of another number.
    """
    if not updates or len(updates) != len(weights):
        raise OrderError("Expected at least one update and one weight for each.")
    totals: dict[str, NDArray[np.float64]] = {}
    mass: dict[str, float] = {}
    for update, weight in zip(updates, weights, strict=True):
        for name, value in update.items():
            # Sums grow in place: a fresh float64 array for each site costs more than the sum.
            weighed = value if weight == 1 else np.multiply(value, weight, dtype=np.float64)
            if name in totals:
                np.add(totals[name], weighed, out=totals[name])
                mass[name] += weight
            else:
                totals[name] = weighed.astype(np.float64)
                mass[name] = weight
    return {name: total / mass[name] for name, total in totals.items()}
