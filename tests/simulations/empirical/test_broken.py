import numpy as np
import pytest
import torch

from client.training import SiteTrainer
from common.errors import ConfigError
from common.randomness import SecureRandomness
from simulations.empirical.broken import BROKEN, broken
from simulations.empirical.product import Product, Step, released_sum
from tests.simulations.empirical.sites import tiny_site

QUIET = Step(noise_multiplier=0.0, max_grad_norm=0.01)
LOUD = Step(noise_multiplier=1.0, max_grad_norm=0.01)
ALL = {
    "no-noise",
    "less-noise",
    "one-tensor",
    "no-clip",
    "row-unit",
    "fixed-batches",
    "shuffled-batches",
    "same-seed",
}


def test_every_fault_that_is_promised_ships() -> None:
    assert set(BROKEN) == ALL
    assert all(entry.caught_by and entry.fault for entry in BROKEN.values())


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_broken_mechanism_differs_from_the_product_in_one_part(name: str) -> None:
    product = BROKEN[name].product()
    assert issubclass(product.trainer, SiteTrainer)
    swapped = (product.trainer is not SiteTrainer) + (product.randomness is not SecureRandomness)
    assert swapped == 1


@pytest.mark.parametrize("name", ["no-noise", "less-noise", "one-tensor"])
def test_faults_of_the_noise_leave_the_sum_alone(name: str) -> None:
    site = tiny_site()
    wanted = released_sum(Product(), site, QUIET)
    found = released_sum(BROKEN[name].product(), site, QUIET)
    assert all(np.allclose(found[t], wanted[t], atol=1e-10) for t in wanted)


def test_no_noise_releases_the_very_sum() -> None:
    site = tiny_site()
    wanted = released_sum(Product(), site, QUIET)
    found = released_sum(BROKEN["no-noise"].product(), site, LOUD)
    assert all(np.allclose(found[tensor], wanted[tensor], atol=1e-10) for tensor in wanted)


def test_fixed_batches_are_random_and_of_one_size() -> None:
    sampler = BROKEN["fixed-batches"].product().randomness()
    drawn = [tuple(sampler.poisson_sample(50, 0.2)) for _ in range(20)]
    assert {len(batch) for batch in drawn} == {10}
    assert len(set(drawn)) == 20


def test_shuffled_batches_take_everybody_once_an_epoch() -> None:
    sampler = BROKEN["shuffled-batches"].product().randomness()
    for _ in range(3):
        epoch = np.concatenate([sampler.poisson_sample(50, 0.2) for _ in range(5)])
        assert sorted(epoch) == list(range(50))


def test_the_same_seed_draws_the_same_after_every_start() -> None:
    start = BROKEN["same-seed"].product().randomness
    assert np.array_equal(start().normal(100), start().normal(100))
    assert not np.array_equal(*np.split(start().normal(100), 2))


def test_an_unknown_fault_is_refused_with_the_names_of_the_known() -> None:
    with pytest.raises(ConfigError, match=r"no-noise.*got 'nois'"):
        broken("nois")


def test_a_clip_for_each_row_changes_nothing_where_everybody_has_one_row() -> None:
    from simulations.empirical.sites import lone_targets

    site = lone_targets(6)
    one, other = (
        released_sum(product, site, QUIET) for product in (Product(), BROKEN["row-unit"].product())
    )
    assert all(torch.equal(torch.from_numpy(one[t]), torch.from_numpy(other[t])) for t in one)
