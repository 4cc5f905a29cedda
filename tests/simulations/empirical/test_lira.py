import math
from functools import cache

import numpy as np
import pytest

from simulations.empirical.broken import BROKEN
from simulations.empirical.findings import TOO_WEAK, Tier
from simulations.empirical.lira import (
    DELTA,
    Attack,
    attack_checks,
    logit_confidence,
    offline_scores,
    tier_c,
)
from simulations.empirical.product import Product


@cache
def small_tier(name: str = "") -> tuple[Tier, tuple[Attack, Attack]]:
    """Fewer targets and shadows than the command takes."""
    product = BROKEN[name].product() if name else Product()
    return tier_c(product, epsilon=1.0, shadows=6, targets=400, steps=15)


def test_the_product_passes_and_the_control_shows_that_the_attack_is_strong() -> None:
    tier, (private, control) = small_tier()
    assert tier.failures == ()
    assert control.tpr_at(0.01) > 0.3
    assert private.tpr_at(0.01) < 0.15
    assert tier.figures["shadow_models"] == 6
    assert tier.figures["members"] + tier.figures["non_members"] == 400


def test_no_noise_is_caught_at_one_percent_and_over_all_thresholds() -> None:
    tier, (private, _) = small_tier("no-noise")
    assert len(tier.failures) == 2
    assert private.excess()[0] > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [1.0, 2.0])
def test_sixteen_shadow_models(epsilon: float) -> None:
    tier, (private, control) = tier_c(Product(), epsilon=epsilon)
    assert tier.failures == ()
    assert control.tpr_at(0.01) >= 0.05
    assert private.excess()[0] <= 0
    caught, _ = tier_c(BROKEN["no-noise"].product(), epsilon=epsilon)
    assert len(caught.failures) == 2


def gaussian_attack(shift: float, *, epsilon: float, n: int = 2000) -> Attack:
    draw = np.random.default_rng(0)
    member = draw.integers(0, 2, n).astype(bool)
    return Attack(epsilon=epsilon, scores=draw.standard_normal(n) + shift * member, member=member)


def test_guessing_refutes_no_claim() -> None:
    found = gaussian_attack(0.0, epsilon=0.01)
    assert found.excess()[0] <= 0
    assert found.tpr_at(0.01) == pytest.approx(0.01, abs=0.015)


def test_perfect_scores_refute_every_claim_that_says_something() -> None:
    found = gaussian_attack(100.0, epsilon=2.0)
    assert found.tpr_at(0.0) == 1.0
    assert found.excess()[0] > 0.8
    assert found.tpr_at(0.01) > found.most_at(0.01)


def test_a_claim_that_holds_is_refuted_in_fewer_than_one_of_twenty_attacks() -> None:
    """Randomised response is the mechanism whose ROC touches the bound."""
    epsilon, draw, refuted = 1.0, np.random.default_rng(3), 0
    for _ in range(200):
        member = draw.integers(0, 2, 400).astype(bool)
        truth = draw.random(400) < math.exp(epsilon) / (1 + math.exp(epsilon))
        answers = np.where(truth, member, ~member)
        refuted += Attack(epsilon=epsilon, scores=answers * 1.0, member=member).excess()[0] > 0
    assert refuted <= 10


def test_the_roc_parts_no_equal_scores_and_ends_at_everybody() -> None:
    member = np.array([True, False, True, False, False])
    found = Attack(epsilon=1.0, scores=np.array([3.0, 3.0, 2.0, 1.0, 1.0]), member=member)
    false, true = found.roc()
    assert false.tolist() == [1, 1, 3]
    assert true.tolist() == [1, 2, 2]
    assert found.tpr_at(0.0) == 0.0


def test_luck_is_allowed_for_at_one_percent() -> None:
    found = gaussian_attack(0.0, epsilon=1.0)
    allowed = math.e * 0.01 + DELTA
    assert allowed < found.most_at(0.01) < 4 * allowed


def test_an_attack_that_fails_on_the_control_is_too_weak_and_not_a_pass() -> None:
    weak = gaussian_attack(0.0, epsilon=math.inf)
    checks = attack_checks(gaussian_attack(0.0, epsilon=1.0), weak)
    assert [check.said for check in checks] == [TOO_WEAK] * 3
    assert not checks[0].passed


def test_a_strong_control_lets_the_verdict_stand() -> None:
    strong = gaussian_attack(5.0, epsilon=math.inf)
    checks = attack_checks(gaussian_attack(0.0, epsilon=1.0), strong)
    assert [check.said for check in checks] == ["passed"] * 3
    caught = attack_checks(gaussian_attack(5.0, epsilon=1.0), strong)
    assert [check.said for check in caught] == ["passed", "FAILED", "FAILED"]


def test_a_weak_attack_that_still_finds_something_is_a_failure() -> None:
    weak = gaussian_attack(0.0, epsilon=math.inf)
    checks = attack_checks(gaussian_attack(5.0, epsilon=1.0), weak)
    assert [check.said for check in checks] == [TOO_WEAK, "FAILED", "FAILED"]


def test_confidence_is_the_logit_of_the_probability() -> None:
    p = np.array([0.1, 0.5, 0.9])
    assert logit_confidence(-np.log(p)) == pytest.approx(np.log(p / (1 - p)))
    assert np.isfinite(logit_confidence(np.array([0.0, 1e-300, 700.0]))).all()


def test_scores_compare_with_the_models_that_never_saw_the_target() -> None:
    members = np.array([[True, False], [True, False], [False, True], [False, False]])
    confidence = np.array([[5.0, 1.0], [99.0, 0.0], [1.0, 99.0], [3.0, 2.0]])
    # Target 0 was left out by models 2 and 3 (mean 2), target 1 by models 1 and 3 (mean 1).
    spread = math.sqrt((1 + 1 + 1 + 1) / (4 - 2))
    assert offline_scores(confidence, members) == pytest.approx([3 / spread, 0.0])


def test_a_target_that_every_shadow_saw_has_a_finite_score() -> None:
    members = np.ones((3, 2), bool)
    assert np.isfinite(offline_scores(np.ones((3, 2)), members)).all()
