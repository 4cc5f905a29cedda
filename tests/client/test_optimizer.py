import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from client.optimizer import SubjectDPOptimizer
from client.per_subject import Columns, Dense, GradSample, Grouping, Outer
from common.bounds import largest_batch
from common.errors import OrderError
from common.randomness import Randomness, SecureRandomness
from simulations.seeded import SeededRandomness
from simulations.unprotected import FreeGrant

SHAPES = {"map": (4, 6), "bias": (5,), "text": (3, 2)}
WINDOWS = 3


class Silent:
    """No noise and nobody sampled."""

    def normal(self, n: int) -> NDArray[np.float64]:
        return np.zeros(n)

    def poisson_sample(self, population: int, rate: float) -> NDArray[np.int64]:
        return np.zeros(0, np.int64)


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(shape)) for shape in SHAPES.values()]


def optimizer_of(
    params: list[nn.Parameter],
    *,
    noise: float = 0.0,
    clip: float = 1.0,
    expected: float = 1.0,
    randomness: Randomness | None = None,
) -> SubjectDPOptimizer:
    return SubjectDPOptimizer(
        torch.optim.SGD(params, lr=1.0),
        grant=FreeGrant(randomness if randomness is not None else Silent(), noise_multiplier=noise),
        max_grad_norm=clip,
        expected_batch_size=expected,
    )


def samples_of(gradients: Tensor) -> list[GradSample]:
    """(U, 35) as the three compact forms: WINDOWS outer products, columns, dense."""
    subjects = len(gradients)
    owner = torch.arange(subjects).repeat_interleave(WINDOWS)
    out, bias, text = gradients.split([24, 5, 6], dim=1)
    # Rank-one rows that add up to the wanted matrix: its first WINDOWS columns, the rest zero.
    left = out.view(subjects, 6, 4)[:, :WINDOWS].reshape(-1, 4)
    right = torch.eye(6)[:WINDOWS].repeat(subjects, 1)
    return [
        Outer(out=left, into=right, grouping=Grouping(owner=owner, subjects=subjects)),
        Columns(values=bias, index=torch.randperm(5), size=5),
        Dense(values=text.view(subjects, 3, 2)),
    ]


def add(optimizer: SubjectDPOptimizer, gradients: Tensor) -> None:
    torch.manual_seed(0)
    for p, sample in zip(optimizer.params, samples_of(gradients), strict=True):
        p.grad_sample = sample
    optimizer.accumulate()


def released(
    gradients: Tensor,
    *,
    clip: float = 1.0,
    noise: float = 0.0,
    randomness: Randomness | None = None,
) -> Tensor:
    optimizer = optimizer_of(parameters(), clip=clip, noise=noise, randomness=randomness)
    optimizer.begin()
    add(optimizer, gradients)
    steps = torch.cat(
        [torch.round(p.summed_grad / optimizer.grid).flatten() for p in optimizer.params]
    )
    optimizer.finish()
    return steps * optimizer.grid


def gradients_of(subjects: int, *, seed: int = 0) -> Tensor:
    return torch.randn(subjects, 35, generator=torch.Generator().manual_seed(seed))


BAD = [float("nan"), float("inf"), -float("inf"), 1e30, 3e38, 1e-30]


@pytest.mark.parametrize("clip", [1.0, 0.37, 25.0])
@pytest.mark.parametrize("scale", [1e30, 1.0, 1e-3, 1e-30])
def test_a_further_subject_moves_the_sum_by_at_most_the_clip(clip: float, scale: float) -> None:
    base = gradients_of(12)
    more = torch.cat([base, scale * gradients_of(1, seed=9)])
    moved = (released(more, clip=clip) - released(base, clip=clip)).norm()
    assert moved <= clip * (1 + 1e-5)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("place", [0, 25, 34])
def test_one_bad_number_anywhere_moves_the_sum_by_at_most_the_clip(bad: float, place: int) -> None:
    base = gradients_of(12)
    broken = gradients_of(1, seed=9)
    broken[0, place] = bad
    moved = (released(torch.cat([base, broken])) - released(base)).norm()
    assert torch.isfinite(moved)
    assert moved <= 1 + 1e-5


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 25, 34])
def test_a_subject_that_is_not_finite_contributes_exactly_zero(bad: float, place: int) -> None:
    batch = gradients_of(6)
    batch[2] = 0.0
    without = released(batch)
    batch[2] = gradients_of(1, seed=9)
    batch[2, place] = bad
    assert torch.equal(released(batch), without)


@given(
    st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=35, max_size=35),
    st.floats(1e-6, 1e6),
)
@settings(max_examples=60, deadline=None)
def test_no_gradient_whatever_moves_the_sum_by_more_than_the_sensitivity(
    numbers: list[float], clip: float
) -> None:
    base = gradients_of(5)
    more = torch.cat([base, torch.tensor([numbers])])
    moved = (released(more, clip=clip) - released(base, clip=clip)).norm()
    assert moved <= optimizer_of(parameters(), clip=clip).sensitivity
    assert moved <= clip * (1 + 1e-5)


def test_a_short_gradient_is_not_stretched() -> None:
    gradients = 0.01 * gradients_of(1)
    gradients[:, 12:24] = 0  # the rows that `samples_of` writes as outer products
    wanted = torch.cat([gradients[0, :24].view(6, 4).T.flatten(), gradients[0, 29:]])
    found = released(gradients)
    torch.testing.assert_close(torch.cat([found[:24], found[29:]]), wanted.double())


def test_the_order_of_micro_batches_and_their_size_change_only_the_grids_last_digits() -> None:
    gradients = gradients_of(21)
    wanted = released(gradients)
    for size in (1, 7, 20):
        optimizer = optimizer_of(parameters())
        optimizer.begin()
        for part in gradients.split(size):
            add(optimizer, part)
        optimizer.finish()
        found = torch.cat([p.grad.flatten().double() for p in optimizer.params])
        assert (found - wanted).abs().max() <= 2 * optimizer.grid + 1e-6


def test_a_logical_batch_broken_off_early_leaves_nothing_behind() -> None:
    optimizer = optimizer_of(parameters())
    optimizer.begin()
    add(optimizer, gradients_of(8))
    for p, sample in zip(optimizer.params, samples_of(gradients_of(3)), strict=True):
        p.grad_sample = sample
        p.grad = torch.ones_like(p)
    optimizer.signal_skip_step(do_skip=True)
    optimizer.begin()
    add(optimizer, gradients_of(2, seed=5))
    optimizer.finish()
    found = torch.cat([p.grad.flatten().double() for p in optimizer.params])
    torch.testing.assert_close(found, released(gradients_of(2, seed=5)), rtol=1e-6, atol=1e-6)


def test_an_empty_batch_still_adds_noise_of_the_right_scale() -> None:
    optimizer = optimizer_of(
        [nn.Parameter(torch.zeros(40_000))], noise=2.0, clip=0.5, randomness=SecureRandomness()
    )
    optimizer.begin()
    optimizer.finish()
    noise = optimizer.params[0].grad
    assert noise.std().item() == pytest.approx(2.0 * optimizer.sensitivity, rel=0.02)


@pytest.mark.parametrize("subjects", [0, 1, 40])
def test_the_denominator_is_the_expected_batch_size_never_the_real_one(subjects: int) -> None:
    params = parameters()
    optimizer = optimizer_of(params, expected=16.0)
    optimizer.begin()
    gradients = gradients_of(max(subjects, 1))
    if subjects:
        add(optimizer, gradients)
    optimizer.finish()
    moved = -torch.cat([p.detach().flatten().double() for p in params])
    wanted = released(gradients) / 16 if subjects else torch.zeros(35)
    torch.testing.assert_close(moved, wanted.double(), rtol=1e-6, atol=1e-7)


def test_the_standard_deviation_of_the_noise_is_right_in_every_tensor() -> None:
    draws, scale = 200, None
    seen: dict[str, list[Tensor]] = {name: [] for name in SHAPES}
    for _ in range(draws):
        optimizer = optimizer_of(parameters(), noise=1.3, clip=0.8, randomness=SecureRandomness())
        optimizer.begin()
        optimizer.finish()
        scale = 1.3 * optimizer.sensitivity
        for name, p in zip(SHAPES, optimizer.params, strict=True):
            seen[name].append(p.grad.flatten().double())
    assert scale == pytest.approx(1.3 * 0.8, rel=1e-4)
    for name, values in seen.items():
        numbers = torch.cat(values)
        tolerance = max(0.01, 4.5 / math.sqrt(2 * len(numbers)))
        assert float(numbers.square().mean().sqrt()) == pytest.approx(scale, rel=tolerance), name
        assert abs(float(numbers.mean())) < 4.5 * scale / math.sqrt(len(numbers))


def test_sum_and_noise_lie_on_one_grid() -> None:
    class Double(SubjectDPOptimizer):
        """Keeps what is added to the sum before float32 rounds it."""

        def add_noise(self) -> None:
            for p in self.params:
                p.data = p.data.double()
            super().add_noise()

    optimizer = Double(
        torch.optim.SGD(parameters(), lr=1.0),
        grant=FreeGrant(SecureRandomness(), noise_multiplier=1.0),
        max_grad_norm=0.7,
        expected_batch_size=1.0,
    )
    optimizer.begin()
    add(optimizer, gradients_of(3))
    optimizer.finish()
    assert optimizer.grid == 2.0**-31
    for p in optimizer.params:
        steps = p.grad / optimizer.grid
        assert torch.equal(steps, steps.round())
        assert steps.abs().max() > 1e6


def test_noise_is_added_as_whole_grid_steps_to_a_rounded_sum() -> None:
    """The noise alone, taken out again, is the same whatever the data: no digit of them is left."""

    def drawn() -> Randomness:
        return SeededRandomness(seed=1, site="north", round_number=1, purpose="test")

    class Steps(SubjectDPOptimizer):
        def scale_grad(self) -> None:
            """Leaves the noisy sum as it is."""

    found = []
    for gradients in (gradients_of(4), gradients_of(9, seed=2)):
        params = [nn.Parameter(torch.zeros(s, dtype=torch.float64)) for s in SHAPES.values()]
        optimizer = Steps(
            torch.optim.SGD(params, lr=1.0),
            grant=FreeGrant(drawn(), noise_multiplier=1.0),
            max_grad_norm=1.0,
            expected_batch_size=1.0,
        )
        optimizer.begin()
        add(optimizer, gradients)
        optimizer.finish()
        noisy = torch.cat([p.grad.flatten() for p in params])
        found.append(noisy - released(gradients))
    assert torch.equal(*found)


def test_two_secure_draws_never_repeat_and_a_seeded_one_does() -> None:
    def drawn(randomness: Randomness) -> Tensor:
        optimizer = optimizer_of(parameters(), noise=1.0, randomness=randomness)
        optimizer.begin()
        optimizer.finish()
        return torch.cat([p.grad.flatten() for p in optimizer.params])

    def seeded(number: int) -> Tensor:
        return drawn(SeededRandomness(seed=1, site="a", round_number=number, purpose="test"))

    assert not torch.isin(drawn(SecureRandomness()), drawn(SecureRandomness())).any()
    assert torch.equal(seeded(1), seeded(1))
    assert not torch.isin(seeded(1), seeded(2)).any()


def test_no_two_tensors_share_noise() -> None:
    params = [nn.Parameter(torch.zeros(50)) for _ in range(2)]
    optimizer = optimizer_of(params, noise=1.0, randomness=SecureRandomness())
    for _ in range(2):
        optimizer.begin()
        optimizer.finish()
        assert not torch.isin(params[0].grad, params[1].grad).any()


def test_a_parameter_without_per_subject_gradients_is_refused() -> None:
    optimizer = optimizer_of(parameters())
    optimizer.begin()
    for p, sample in zip(optimizer.params[:2], samples_of(gradients_of(2))[:2], strict=True):
        p.grad_sample = sample
    with pytest.raises(OrderError, match="every trainable tensor"):
        optimizer.accumulate()


@pytest.mark.parametrize("first", ["finish", "accumulate"])
def test_calls_before_begin_are_refused(first: str) -> None:
    optimizer = optimizer_of(parameters())
    for p, sample in zip(optimizer.params, samples_of(gradients_of(2)), strict=True):
        p.grad_sample = sample
    with pytest.raises(OrderError, match="begin"):
        getattr(optimizer, first)()


def test_a_second_finish_is_refused_so_that_no_sum_is_released_twice() -> None:
    optimizer = optimizer_of(parameters(), noise=1.0, randomness=SecureRandomness())
    optimizer.begin()
    add(optimizer, gradients_of(2))
    optimizer.finish()
    with pytest.raises(OrderError, match="begin"):
        optimizer.finish()


@pytest.mark.parametrize("expected", [0.5, 5.0, 500.0, 50_000.0])
def test_the_charged_sensitivity_covers_clip_rounding_and_company(expected: float) -> None:
    optimizer = optimizer_of(parameters(), clip=0.9, expected=expected)
    most = largest_batch(expected)
    assert most >= expected + 6 * math.sqrt(expected)
    assert optimizer.grid == 2.0**-31
    assert optimizer.sensitivity >= 0.9 * (1 + 1e-6 * most) + optimizer.grid * math.sqrt(35)
    assert optimizer.sensitivity <= 0.9 * (1 + 2e-6 * most)
