import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from client.training import SiteTrainer
from common.interactions import Interactions
from common.randomness import SecureRandomness
from tests.models import mechanism_of, recommender_plan, records_of, trainer_of, update_of

BASE = (3, 1, 5, 2, 6, 4, 1, 3)


def lone_targets(subjects: int) -> SiteTrainer:
    """Every subject has one item of its own, so the bias tells exactly who was in a batch."""
    records = Interactions(
        subject_ids=tuple(f"s{i}" for i in range(subjects)),
        offsets=np.arange(subjects + 1),
        items=np.arange(subjects, dtype=np.int32),
        values=np.full(subjects, 5, np.float32),
        times=np.arange(subjects),
    )
    plan = recommender_plan(objective="rating", top_layers=0)
    mechanism = mechanism_of(max_grad_norm=100.0, micro_batch=4)
    return trainer_of(records, plan, items=subjects, mechanism=mechanism)


def test_batch_sizes_through_the_trainer_have_the_variance_of_poisson_sampling() -> None:
    subjects, rate, batches = 100, 0.1, 300
    trainer = lone_targets(subjects)
    seen = torch.stack(
        [
            update_of(trainer, train_text=False, sample_rate=rate)["bias.care"] != 0
            for _ in range(batches)
        ]
    )
    sizes = seen.sum(1).double()
    mean, variance = subjects * rate, subjects * rate * (1 - rate)
    assert abs(sizes.mean() - mean) < 4.5 * math.sqrt(variance / batches)
    assert abs(sizes.var() - variance) < 4.5 * variance * math.sqrt(2 / (batches - 1)) * 1.1
    each = seen.double().mean(0)
    assert (each - rate).abs().max() < 6.5 * math.sqrt(rate * (1 - rate) / batches)
    assert sizes.max() > mean + 2 * math.sqrt(variance)  # no cap at the expected size


def test_batches_that_are_empty_are_not_skipped() -> None:
    trainer = lone_targets(30)
    drawn = [update_of(trainer, train_text=False, sample_rate=0.02) for _ in range(120)]
    sizes = [int((update["bias.care"] != 0).sum()) for update in drawn]
    expected = 120 * 0.98**30
    assert abs(sizes.count(0) - expected) < 4.5 * math.sqrt(120 * 0.98**30 * (1 - 0.98**30))


class Nobody:
    """Samples nobody; the noise is real."""

    def __init__(self) -> None:
        self.inner = SecureRandomness()

    def normal(self, n: int) -> NDArray[np.float64]:
        return self.inner.normal(n)

    def poisson_sample(self, population: int, rate: float) -> NDArray[np.int64]:
        return np.zeros(0, np.int64)


def test_an_empty_poisson_batch_releases_noise_of_the_right_scale() -> None:
    mechanism = mechanism_of(max_grad_norm=0.5, expected_batch_size=4.0)
    trainer = trainer_of(records_of(BASE), mechanism=mechanism)
    draws = [update_of(trainer, randomness=Nobody(), noise_multiplier=1.5) for _ in range(20)]
    for name in draws[0]:
        numbers = torch.cat([d[name].flatten().double() for d in draws])
        tolerance = max(0.01, 4.5 / math.sqrt(2 * len(numbers)))
        assert float(numbers.square().mean().sqrt()) == pytest.approx(
            1.5 * 0.5 / 4.0, rel=tolerance
        ), name
