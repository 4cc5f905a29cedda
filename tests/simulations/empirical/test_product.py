import math

import numpy as np
import pytest
import torch

from simulations.empirical.product import (
    AuditSite,
    Product,
    Step,
    noise_for,
    released_sum,
    released_update,
    subject_losses,
    trainer_of,
)
from simulations.empirical.sites import lone_targets, with_rows
from tests.simulations.empirical.sites import tiny_site


def test_every_kind_of_tensor_is_released() -> None:
    site = tiny_site()
    step = Step(noise_multiplier=1.0, train_text=True)
    update = released_update(Product(), trainer_of(Product(), site, step), step)
    assert {name.partition(".")[0] for name in update} == {"text", "gate", "mixer", "map", "bias"}
    assert all(torch.isfinite(value).all() for value in update.values())


def test_a_site_without_a_catalog_has_no_text_path() -> None:
    step = Step(noise_multiplier=1.0)
    trainer = trainer_of(Product(), lone_targets(5), step)
    assert trainer.model.text is None
    assert not released_update(Product(), trainer, step)["map.audit"].isnan().any()


def test_the_sum_does_not_depend_on_rate_or_denominator() -> None:
    site = with_rows(4)
    one = released_sum(Product(), site, Step(noise_multiplier=0.0))
    other = released_sum(
        Product(), site, Step(noise_multiplier=0.0, learning_rate=3.0, expected_batch_size=8.0)
    )
    for name in one:
        assert np.allclose(one[name], other[name], rtol=1e-5, atol=1e-6)


def test_an_update_starts_at_zero_whatever_was_trained_before() -> None:
    step = Step(noise_multiplier=0.0)
    trainer = trainer_of(Product(), with_rows(4), step)
    first, second = (released_update(Product(), trainer, step) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_noise_of_a_claim_is_that_of_the_analytic_gaussian() -> None:
    """Balle and Wang 2018 give 3.7304 for epsilon 1 and delta 1e-5."""
    assert noise_for(1.0, delta=1e-5) == pytest.approx(3.7304, rel=2e-3)
    assert noise_for(1.0, delta=1e-5, steps=4) == pytest.approx(2 * 3.7304, rel=4e-3)


def zero_adapter(site: AuditSite) -> dict[str, torch.Tensor]:
    trainer = trainer_of(Product(), site, Step(noise_multiplier=0.0))
    return trainer.model.adapter()


def test_losses_are_one_a_subject_and_those_of_the_objective() -> None:
    site = lone_targets(5)
    losses = subject_losses(site, zero_adapter(site))
    assert losses == pytest.approx(np.ones(5))  # rating 5 against a score of zero
    adapter = zero_adapter(site)
    adapter["bias.audit"][2] = 5.0
    assert subject_losses(site, adapter)[2] == pytest.approx((5.0 * 0.1 - 1) ** 2)


def test_a_subjects_loss_is_the_mean_of_its_rows() -> None:
    site = with_rows(6)
    adapter = zero_adapter(site)
    adapter["bias.audit"][:6] = torch.arange(6.0)
    wanted = np.mean([(0.1 * k - 1) ** 2 for k in range(6)])
    assert subject_losses(site, adapter)[-1] == pytest.approx(wanted, rel=1e-5)
    assert math.isfinite(subject_losses(site, adapter).sum())
