"""Tier B: many seeds of the one-run audit, the checks on them, and what they could have seen."""

import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final

import numpy as np

from simulations.empirical.canaries import DELTA, CanaryRun, canaries_of, guesses_of, one_run
from simulations.empirical.findings import NOT_A_PROOF, TOO_WEAK, Check, Tier
from simulations.empirical.one_run import BETA, StdTest, eps_lower, right_guesses, std_test
from simulations.empirical.product import Product, noise_for, noise_slack

FALSE_ALARMS: Final = 0.1
"""Share of runs whose bound may lie above the claim: 2 of 20; the theorem says BETA at most."""
SIGMAS: Final = 4.5
"""Standard errors within which a mean has to lie."""
_POWER_RUNS: Final = 8


def tier_b(
    product: Product,
    *,
    probes: Sequence[float] = (1.0, 2.0),
    seeds: int = 20,
    canaries: int = 1000,
    advance: Callable[[], None] = lambda: None,
) -> tuple[Tier, list[CanaryRun]]:
    """Audit every probe with every seed.

    Args:
        product: what is audited.
        probes: claims, epsilons.
        seeds: runs a claim.
        canaries: m.
        advance: told after every run.

    Returns:
        The tier, and the runs behind it.
    """
    began = time.perf_counter()
    grid = canaries_of(canaries)
    checks: list[Check] = []
    runs: list[CanaryRun] = []
    told: list[dict[str, Any]] = []
    for epsilon in probes:
        mine = []
        for seed in range(seeds):
            mine.append(one_run(product, grid, epsilon=epsilon, seed=seed))
            advance()
        checks += probe_checks(mine)
        told.append(_as_json(mine))
        runs += mine
    figures = {"probes": told, **_worst(runs)}
    tier = Tier(
        name="b", checks=tuple(checks), seconds=time.perf_counter() - began, figures=figures
    )
    return tier, runs


def probe_checks(runs: Sequence[CanaryRun]) -> tuple[Check, ...]:
    """The checks of one claim's runs."""
    return (_bound_check(runs), _held_out_check(runs), _pooled_check(runs), _strength_check(runs))


def _bound_check(runs: Sequence[CanaryRun]) -> Check:
    epsilon, most = runs[0].epsilon_probe, int(FALSE_ALARMS * len(runs))
    above = sum(run.epsilon_hat > epsilon for run in runs)
    largest = max(run.epsilon_hat for run in runs)
    return Check(
        name=f"ε = {epsilon:g}: ε̂ above ε",
        figure=f"{above} of {len(runs)}, largest {largest:.2f}",
        passes_at=f"≤ {most} of {len(runs)}",
        passed=above <= most,
    )


def _held_out_check(runs: Sequence[CanaryRun]) -> Check:
    worst = max((run.held_out for run in runs), key=lambda test: abs(test.ratio - 1))
    off = sum(not run.held_out.passed for run in runs)
    return Check(
        name=f"ε = {runs[0].epsilon_probe:g}: left-out noise off",
        figure=f"{off} of {len(runs)}, worst {worst.ratio:.3f}",
        passes_at=f"0 ({worst.low:.2f} to {worst.high:.2f})",
        passed=off == 0,
    )


def _pooled(runs: Sequence[CanaryRun]) -> StdTest:
    noise = noise_for(runs[0].epsilon_probe, delta=DELTA)
    scores = np.concatenate([run.scores[~run.included] for run in runs])
    return std_test(scores, claimed=noise, slack=noise_slack(runs[0].m / 2))


def _pooled_check(runs: Sequence[CanaryRun]) -> Check:
    pooled = _pooled(runs)
    return Check(
        name=f"ε = {runs[0].epsilon_probe:g}: left-out noise, pooled",
        figure=f"{pooled.ratio:.4f} of claimed",
        passes_at=f"{pooled.low:.3f} to {pooled.high:.3f}",
        passed=pooled.passed,
    )


def _strength_check(runs: Sequence[CanaryRun]) -> Check:
    """A canary that does not arrive would let every mechanism pass."""
    noise = noise_for(runs[0].epsilon_probe, delta=DELTA)
    scores = np.concatenate([run.scores[run.included] for run in runs])
    mean, margin = float(scores.mean()), SIGMAS * noise / np.sqrt(len(scores))
    low, high = 1 - margin - 0.01, 1 + margin + 0.01
    return Check(
        name=f"ε = {runs[0].epsilon_probe:g}: push of a canary",
        figure=f"{mean:.3f} clips",
        passes_at=f"{low:.2f} to {high:.2f}",
        passed=bool(low <= mean <= high),
        verdict=TOO_WEAK if mean < low else "",
    )


def _as_json(runs: Sequence[CanaryRun]) -> dict[str, Any]:
    pooled, first = _pooled(runs), runs[0]
    return {
        "epsilon_probe": first.epsilon_probe,
        "noise_multiplier": noise_for(first.epsilon_probe, delta=DELTA),
        "m": first.m,
        "r": first.r,
        "v": [run.v for run in runs],
        "epsilon_hat": [round(run.epsilon_hat, 4) for run in runs],
        "held_out_std": [round(run.held_out.ratio, 4) for run in runs],
        "held_out_std_pooled": round(pooled.ratio, 5),
        "power": power(first.m, epsilon=first.epsilon_probe),
        "note": NOT_A_PROOF,
    }


def _worst(runs: Sequence[CanaryRun]) -> dict[str, Any]:
    worst = max(runs, key=lambda run: (run.epsilon_hat, run.v))
    return {
        "m": worst.m,
        "r": worst.r,
        "v": worst.v,
        "epsilon_hat": round(worst.epsilon_hat, 4),
        "epsilon_probe": worst.epsilon_probe,
        "runs": len(runs),
        "power": power(worst.m, epsilon=worst.epsilon_probe),
        "delta": DELTA,
        "confidence": 1 - BETA,
        "sample_rate": 1.0,
        "note": NOT_A_PROOF,
    }


@cache
def power(m: int, *, epsilon: float) -> dict[str, float]:
    """What the bound of one run can reach, by public figures alone.

    Returns:
        no_noise: the bound if there were no noise; correct: its mean with the claimed noise;
        noise_share_caught: largest share of the claimed noise at which its mean is above the
        claim.
    """
    noise, r = noise_for(epsilon, delta=DELTA), guesses_of(m)
    low, high = 0.0, 1.0
    for _ in range(7):
        middle = (low + high) / 2
        caught = _mean_bound(m, noise * middle) > epsilon
        low, high = (middle, high) if caught else (low, middle)
    return {
        "no_noise": round(eps_lower(m, r, r, delta=DELTA), 4),
        "correct": round(_mean_bound(m, noise), 4),
        "noise_share_caught": round(low, 2),
    }


def _mean_bound(m: int, noise: float) -> float:
    """Mean bound if a canary pushed one clip under so much noise, by simulation."""
    draw = np.random.default_rng(0)
    found = []
    for _ in range(_POWER_RUNS):
        included = draw.integers(0, 2, m).astype(bool)
        scores = included + noise * draw.standard_normal(m)
        found.append(eps_lower(m, *right_guesses(scores, included, guesses_of(m)), delta=DELTA))
    return float(np.mean(found))
