import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.bounds import largest_batch, update_bound
from common.plan import RunPlan
from common.recommender import is_text
from tests.models import mechanism_of, records_of, run_plan, trainer_of, update_of


def plan_of(**federation: float) -> RunPlan:
    return run_plan(privacy={"max_grad_norm": 0.5}, federation=dict(federation))


def bound(plan: RunPlan, *, noise: float = 2.0, size: int = 100, expected: float = 50.0) -> float:
    return update_bound(plan, noise_multiplier=noise, size=size, expected=expected)


@pytest.mark.parametrize("expected", [0.5, 5.0, 500.0, 50_000.0])
def test_ten_thousand_poisson_batches_stay_below_the_largest(expected: float) -> None:
    draw = np.random.default_rng(int(expected * 10))
    assert draw.poisson(expected, 10_000).max() <= largest_batch(expected)


@pytest.mark.parametrize("size", [1, 10, 1000])
def test_ten_thousand_draws_of_noise_stay_below_the_bound(size: int) -> None:
    draw = np.random.default_rng(size)
    most = largest_batch(50.0)
    longest = 0.0
    for _ in range(20):
        noise = draw.standard_normal((500, size)) * 2.0 * 0.5
        noise[:, 0] += 0.5 * most  # every clipped gradient points the same way
        longest = max(longest, float(np.linalg.norm(noise, axis=1).max()) / 50.0)
    assert longest < bound(plan_of(), size=size)


@pytest.mark.parametrize("size", [1, 10, 1000])
def test_the_bound_is_not_far_above_the_longest_honest_update(size: int) -> None:
    """Three times the longest honest one is beyond it."""
    most = largest_batch(50.0)
    typical = 0.5 * (most + 2.0 * np.sqrt(size)) / 50.0
    assert bound(plan_of(), size=size) < 3 * typical


@given(
    noise=st.floats(0, 100), size=st.integers(1, 10**7), expected=st.floats(1, 1e6),
    steps=st.integers(1, 50), rate=st.floats(1e-3, 10),
)  # fmt: skip
def test_the_bound_is_finite_above_zero_and_grows_with_steps_and_rate(
    noise: float, size: int, expected: float, steps: int, rate: float
) -> None:
    plain = {"noise": noise, "size": size, "expected": expected}
    one = bound(plan_of(), **plain)  # type: ignore[arg-type]
    more = bound(plan_of(local_steps=steps, client_learning_rate=rate), **plain)  # type: ignore[arg-type]
    assert 0 < one < np.inf
    assert more == pytest.approx(one * steps * rate)


def test_a_real_update_without_noise_of_the_whole_site_is_within_the_bound() -> None:
    plan = run_plan()
    records = records_of([4] * 40)
    trainer = trainer_of(records, mechanism=mechanism_of(expected_batch_size=40.0))
    update = update_of(trainer, noise_multiplier=0.0, sample_rate=1.0)
    length = np.sqrt(sum(float((v.double() ** 2).sum()) for v in update.values()))
    size = sum(v.numel() for v in update.values())
    assert any(is_text(name) for name in update)
    assert 0 < length < update_bound(plan, noise_multiplier=0.0, size=size, expected=40.0)
