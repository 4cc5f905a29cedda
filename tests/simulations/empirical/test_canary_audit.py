from functools import cache

import numpy as np
import pytest

from simulations.empirical.broken import BROKEN
from simulations.empirical.canaries import CanaryRun, canaries_of, guesses_of, one_run
from simulations.empirical.canary_audit import power, probe_checks, tier_b
from simulations.empirical.findings import NOT_A_PROOF, TOO_WEAK
from simulations.empirical.one_run import eps_lower, std_test
from simulations.empirical.product import Product, noise_for

SEEDS = 20


@cache
def runs_of(name: str, epsilon: float) -> tuple[CanaryRun, ...]:
    product = BROKEN[name].product() if name else Product()
    grid = canaries_of(1000)
    return tuple(one_run(product, grid, epsilon=epsilon, seed=seed) for seed in range(SEEDS))


@pytest.mark.parametrize("epsilon", [1.0, 2.0])
def test_the_product_is_accused_in_at_most_two_of_twenty_runs(epsilon: float) -> None:
    runs = runs_of("", epsilon)
    assert sum(run.epsilon_hat > epsilon for run in runs) <= 2
    assert all(run.held_out.passed for run in runs)
    assert all(check.passed for check in probe_checks(runs))


@pytest.mark.parametrize("epsilon", [1.0, 2.0])
@pytest.mark.parametrize("name", ["no-noise", "no-clip"])
def test_no_noise_and_no_clip_are_caught_by_the_bound_in_every_run(
    name: str, epsilon: float
) -> None:
    runs = runs_of(name, epsilon)
    assert all(run.epsilon_hat > epsilon for run in runs)
    assert not probe_checks(runs)[0].passed


@pytest.mark.parametrize("epsilon", [1.0, 2.0])
@pytest.mark.parametrize("name", ["less-noise", "one-tensor", "no-noise"])
def test_too_little_noise_is_caught_by_the_left_out_canaries_in_every_run(
    name: str, epsilon: float
) -> None:
    runs = runs_of(name, epsilon)
    assert all(not run.held_out.passed for run in runs)
    assert not probe_checks(runs)[1].passed


def test_a_little_less_noise_is_caught_by_all_seeds_together() -> None:
    noise = noise_for(1.0, delta=1e-5)
    draw = np.random.default_rng(0)
    runs = [made_up(0.92 * noise * draw.standard_normal(1000), draw) for _ in range(SEEDS)]
    checks = probe_checks(runs)
    assert checks[1].passed
    assert not checks[2].passed


def made_up(scores: np.ndarray, draw: np.random.Generator, *, push: float = 1.0) -> CanaryRun:
    included = draw.integers(0, 2, len(scores)).astype(bool)
    return CanaryRun(
        epsilon_probe=1.0,
        m=len(scores),
        r=100,
        v=50,
        epsilon_hat=0.0,
        held_out=std_test(scores[~included], claimed=noise_for(1.0, delta=1e-5)),
        scores=scores + push * included,
        included=included,
    )


@pytest.mark.parametrize(("push", "verdict"), [(0.0, TOO_WEAK), (1.0, "passed"), (1.5, "FAILED")])
def test_canaries_that_do_not_arrive_show_nothing_and_say_so(push: float, verdict: str) -> None:
    noise, draw = noise_for(1.0, delta=1e-5), np.random.default_rng(0)
    runs = [made_up(noise * draw.standard_normal(1000), draw, push=push) for _ in range(SEEDS)]
    strength = probe_checks(runs)[3]
    assert strength.said == verdict
    assert strength.passed == (verdict == "passed")


def test_a_tier_tells_each_seed_and_the_worst_run() -> None:
    told = []
    tier, runs = tier_b(
        Product(), probes=(1.0,), seeds=3, canaries=200, advance=lambda: told.append(1)
    )
    (probe,) = tier.figures["probes"]
    assert len(told) == len(runs) == len(probe["v"]) == len(probe["epsilon_hat"]) == 3
    assert tier.figures["epsilon_hat"] == max(probe["epsilon_hat"])
    assert (tier.figures["m"], tier.figures["r"], tier.figures["runs"]) == (200, 20, 3)
    assert tier.figures["note"] == NOT_A_PROOF
    assert tier.figures["confidence"] == pytest.approx(0.95)
    assert tier.figures["power"] == probe["power"]


def test_power_says_what_no_noise_would_reach_and_which_share_is_caught() -> None:
    found = power(1000, epsilon=1.0)
    r = guesses_of(1000)
    assert found["no_noise"] == pytest.approx(eps_lower(1000, r, r, delta=1e-5), abs=1e-3)
    assert found["no_noise"] > 2
    assert 0 <= found["correct"] < 1
    assert 0.2 < found["noise_share_caught"] < 0.6


def test_at_a_claim_of_eight_no_noise_at_all_would_pass() -> None:
    """Why the claims are small."""
    assert power(1000, epsilon=8.0)["no_noise"] < 8
    assert power(1000, epsilon=8.0)["noise_share_caught"] == 0
