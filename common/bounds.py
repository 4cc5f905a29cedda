"""How long an update may be, from public figures alone: the same bound at site and server."""

import math
from typing import Final

from scipy.stats import chi2

from common.plan import RunPlan

NORM_SLACK: Final = 1e-6
"""Most that rounding moves a clipped gradient, over C, when the company in its batch changes."""
BATCH_SLACK: Final = 6.0
"""Standard deviations of a Poisson batch's size over its mean."""
TAIL: Final = 8.0
"""Standard deviations over the expected noise norm at which the bound lies: P below 1e-15."""


CHANCE: Final = 1e-12
"""Probability that an honest tensor is shorter than its own noise should be."""


def largest_batch(expected: float) -> float:
    """Size that a Poisson batch of this expected size practically never exceeds."""
    return expected + BATCH_SLACK * math.sqrt(expected) + 10


def noise_variance(plan: RunPlan, *, noise_multiplier: float, expected: float) -> float:
    """Variance of the noise in one number of one site's update; public.

    Args:
        plan: clip, steps, learning rate.
        noise_multiplier: of the plan.
        expected: expected batch size.
    """
    step = noise_multiplier * plan.privacy.max_grad_norm * plan.federation.client_learning_rate
    return float(plan.federation.local_steps * (step / expected) ** 2)


def least_squared_length(variance: float, size: int) -> float:
    """Squared length that `size` numbers with this noise practically always exceed.

    Whatever the signal under it: adding a constant to a normal only lengthens it. The quantile of
    the chi-squared distribution at CHANCE.
    """
    return float(variance * chi2.ppf(CHANCE, size))


def update_bound(plan: RunPlan, *, noise_multiplier: float, size: int, expected: float) -> float:
    """Public bound on the length of an update of `size` floats.

    Each step moves by at most learning rate times (clipped sum + noise) / expected batch size.

    Args:
        plan: clip, steps, learning rate.
        noise_multiplier: of the site.
        size: floats in the update.
        expected: expected batch size.
    """
    most = largest_batch(expected)
    noise = noise_multiplier * (1 + NORM_SLACK * most) * (math.sqrt(size) + TAIL)
    step = plan.privacy.max_grad_norm * (most + noise) / expected
    return 1.01 * plan.federation.local_steps * plan.federation.client_learning_rate * step
