import numpy as np
import pytest
import torch

from common import randomness
from common.errors import OrderError
from common.randomness import SecureRandomness
from simulations.empirical.broken import BROKEN
from simulations.empirical.generator import generator_checks, in_child


def failing(start: object) -> set[str]:
    return {check.name for check in generator_checks(start) if not check.passed}


class Torch32:
    """Float32 normals, as torch draws them."""

    def __init__(self) -> None:
        self.draw = torch.Generator().manual_seed(int.from_bytes(randomness.os.urandom(7)))

    def normal(self, n: int) -> np.ndarray:
        return torch.randn(n, generator=self.draw).double().numpy()

    def poisson_sample(self, population: int, rate: float) -> np.ndarray:
        raise NotImplementedError


class Secure:
    def __init__(self) -> None:
        self.inner = SecureRandomness()

    def poisson_sample(self, population: int, rate: float) -> np.ndarray:
        raise NotImplementedError


class Heavy(Secure):
    def normal(self, n: int) -> np.ndarray:
        return 1.03 * self.inner.normal(n)


class Cut(Secure):
    """Nothing beyond four standard deviations."""

    def normal(self, n: int) -> np.ndarray:
        return np.clip(self.inner.normal(n), -3.99, 3.99)


class Forked(Secure):
    """Takes no new key in a child."""

    def __init__(self) -> None:
        self.stream = randomness.Keystream(randomness.os.urandom(32))

    def normal(self, n: int) -> np.ndarray:
        return randomness.normals(self.stream, n)


def test_the_products_generator_passes() -> None:
    assert failing(SecureRandomness) == set()


def test_float32_normals_are_caught_by_their_resolution() -> None:
    assert "equal numbers in a million" in failing(Torch32)


@pytest.mark.parametrize("kind", [Heavy, Cut])
def test_normals_of_another_shape_are_caught(kind: type) -> None:
    assert "normals: KS, cells, tails" in failing(kind)


def test_a_generator_that_goes_on_in_a_fork_is_caught() -> None:
    assert failing(Forked) == {"repeats in restarts, forks"}


def test_a_seed_that_repeats_is_caught() -> None:
    assert failing(BROKEN["same-seed"].product().randomness) == {"repeats in restarts, forks"}


def test_a_child_that_draws_nothing_is_an_error() -> None:
    def nothing() -> np.ndarray:
        return np.zeros(0)

    with pytest.raises(OrderError, match="forked process"):
        in_child(nothing)
