import numpy as np
import pytest

from simulations.empirical.broken import BROKEN
from simulations.empirical.findings import Check
from simulations.empirical.mechanism_tests import (
    BATCHES,
    DRAWS,
    batches,
    noise_checks,
    noise_ratios,
    sampler_checks,
    sensitivity_checks,
    tier_a,
)
from simulations.empirical.product import Product
from tests.simulations.empirical.sites import tiny_plan, tiny_site


def verdicts(checks: tuple[Check, ...]) -> dict[str, bool]:
    return {check.name: check.passed for check in checks}


def failing(checks: tuple[Check, ...]) -> set[str]:
    return {check.name for check in checks if not check.passed}


def test_the_product_passes_every_mechanism_test() -> None:
    told = []
    tier = tier_a(Product(), plan=tiny_plan(), advance=lambda: told.append(1))
    assert tier.failures == ()
    assert len(tier.checks) == 13
    assert len(told) == 4
    kinds = {name.partition(".")[0] for name in tier.figures["noise_ratio"]}
    assert kinds == {"text", "gate", "mixer", "map", "bias"}


@pytest.mark.parametrize("name", ["no-noise", "less-noise", "one-tensor"])
def test_too_little_noise_anywhere_is_caught(name: str) -> None:
    ratios = noise_ratios(BROKEN[name].product(), tiny_site())
    found = verdicts(noise_checks(ratios))
    assert not found["noise std, worst tensor"]
    assert not found["noise on every tensor"]
    bad = {tensor for tensor, r in ratios.items() if abs(r["ratio"] - 1) > r["allowed"]}
    assert bad == ({"bias.audit"} if name == "one-tensor" else set(ratios))


def test_a_seed_that_repeats_is_caught_by_its_noise() -> None:
    ratios = noise_ratios(BROKEN["same-seed"].product(), tiny_site())
    assert "noise never repeats" in failing(noise_checks(ratios))
    assert all(r["repeats"] == DRAWS - 1 for r in ratios.values())


def test_one_subject_moves_the_sum_by_the_clip_and_no_more() -> None:
    checks = sensitivity_checks(Product())
    assert failing(checks) == set()
    assert [check.figure for check in checks] == ["1.00000 clips", "1.00000 clips", "0.00000 clips"]


def test_no_clip_is_caught_by_every_kind_of_subject() -> None:
    assert len(failing(sensitivity_checks(BROKEN["no-clip"].product()))) == 3


def test_a_clip_for_each_row_is_caught_by_the_subject_of_fifty() -> None:
    checks = sensitivity_checks(BROKEN["row-unit"].product())
    assert "subject of 50 rows" in failing(checks)
    fifty = next(c for c in checks if c.name == "subject of 50 rows")
    assert float(fifty.figure.split()[0]) > 5


def test_an_exception_is_itself_a_failure() -> None:
    class Raising(Product().trainer):  # type: ignore[misc]
        def _require_covered(self, optimizer: object) -> None:
            raise ValueError("a signal about one person")

    checks = sensitivity_checks(Product(trainer=Raising))
    assert {check.figure for check in checks} == {"raised ValueError"}
    assert len(failing(checks)) == 3


def test_a_poisson_sampler_passes() -> None:
    assert failing(sampler_checks(Product())) == set()


def test_every_batch_is_seen_through_the_update() -> None:
    seen = batches(Product())
    assert seen.shape[0] == BATCHES
    assert 0 < seen.sum(1).min() < seen.sum(1).max()
    assert seen.any(0).all()


def test_batches_of_one_size_are_caught_by_their_variance() -> None:
    assert "batch size, variance" in failing(sampler_checks(BROKEN["fixed-batches"].product()))


def test_shuffled_batches_are_caught_because_they_depend_on_each_other() -> None:
    assert {"batch size, variance", "batches independent"} <= failing(
        sampler_checks(BROKEN["shuffled-batches"].product())
    )


def test_shuffled_batches_of_random_sizes_are_caught_by_the_dependence_alone() -> None:
    """Each subject goes to one of ten batches of an epoch: sizes vary as in Poisson sampling."""

    class Dealt:
        def __init__(self) -> None:
            self.draw, self.turn = np.random.default_rng(0), 0

        def normal(self, n: int) -> np.ndarray:
            return self.draw.standard_normal(n)

        def poisson_sample(self, population: int, rate: float) -> np.ndarray:
            if self.turn == 0:
                self.place = self.draw.integers(0, 10, population)
            self.turn = (self.turn + 1) % 10
            return np.flatnonzero(self.place == self.turn)

    dealt = Dealt()
    assert failing(sampler_checks(Product(randomness=lambda: dealt))) == {"batches independent"}


def test_a_rate_above_the_claimed_one_is_caught() -> None:
    class Eager:
        def __init__(self) -> None:
            self.inner = Product().randomness()

        def normal(self, n: int) -> np.ndarray:
            return self.inner.normal(n)

        def poisson_sample(self, population: int, rate: float) -> np.ndarray:
            return self.inner.poisson_sample(population, 1.2 * rate)

    assert "batch size, mean" in failing(sampler_checks(Product(randomness=Eager)))
