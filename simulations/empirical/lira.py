"""Tier C: can an attacker tell from the released adapter who was trained on?

Offline likelihood-ratio attack of Carlini et al., "Membership Inference Attacks From First
Principles", 2022 (section VI): 16 shadow models, each trained by the product on a random half of
the targets, say how well a model does on a target that it never saw; the audited model's doing
better than that is the score. A model without noise, attacked alike, shows that the attack can
find what there is to find.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from common.interactions import Interactions
from common.plan import RecommenderPlan
from simulations.empirical.findings import TOO_WEAK, Check, Tier
from simulations.empirical.product import (
    AuditSite,
    Product,
    Step,
    noise_for,
    released_update,
    subject_losses,
    trainer_of,
)

DELTA: Final = 1e-5
SHADOWS: Final = 16
TARGETS: Final = 1000
AT_FPR: Final = 0.01
CONTROL_TPR: Final = 0.05
"""What the attack must reach at AT_FPR on the model without noise."""
BETA: Final = 0.05
"""Chance, over all thresholds together, that binomial luck refutes a claim that holds."""
STEPS: Final = 30
_ITEMS, _WIDTH, _ROWS = 200, 64, 4
_SEED: Final = 11


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One audited model under attack.

    Attributes:
        epsilon: the claim; infinite for the control.
        scores: (n) how much likelier each target's loss is under membership.
        member: bool (n), who was trained on.
    """

    epsilon: float
    scores: NDArray[np.float64]
    member: NDArray[np.bool_]

    def roc(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """False and true positives at every threshold, rising."""
        order = np.argsort(-self.scores, kind="stable")
        hit = self.member[order]
        # A threshold cannot part equal scores.
        last = np.append(np.diff(self.scores[order]) != 0, True)
        return np.cumsum(~hit)[last], np.cumsum(hit)[last]

    def rates(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """FPR and TPR at every threshold."""
        false, true = self.roc()
        return false / (~self.member).sum(), true / self.member.sum()

    def tpr_at(self, fpr: float) -> float:
        """Largest TPR at no more than so many false positives."""
        false, true = self.rates()
        return float(true[false <= fpr].max(initial=0.0))

    def excess(self) -> tuple[float, float]:
        """Largest excess of TPR over e^epsilon FPR + delta that luck does not explain.

        Both rates are taken at their Clopper-Pearson limits, at BETA over all thresholds.

        Returns:
            The excess, above 0 if the claim is refuted, and the FPR where it is.
        """
        false, true = self.roc()
        over = self._over(false, true, level=BETA / (2 * len(false)))
        worst = int(np.argmax(over))
        return float(over[worst]), float(false[worst] / (~self.member).sum())

    def most_at(self, fpr: float) -> float:
        """Largest TPR at so many false positives that the claim survives, luck allowed for."""
        members, others = int(self.member.sum()), int((~self.member).sum())
        true = np.arange(members + 1)
        false = np.full_like(true, int(fpr * others))
        survives = self._over(false, true, level=BETA / 2) <= 0
        return float(true[survives].max()) / members

    def _over(
        self, false: NDArray[np.int64], true: NDArray[np.int64], *, level: float
    ) -> NDArray[np.float64]:
        members, others = int(self.member.sum()), int((~self.member).sum())
        low = np.nan_to_num(stats.beta.ppf(level, true, members - true + 1))
        high = np.nan_to_num(stats.beta.ppf(1 - level, false + 1, others - false), nan=1.0)
        over: NDArray[np.float64] = low - (np.exp(min(self.epsilon, 700.0)) * high + DELTA)
        return over


def tier_c(
    product: Product,
    *,
    epsilon: float = 2.0,
    shadows: int = SHADOWS,
    targets: int = TARGETS,
    steps: int = STEPS,
    advance: Callable[[], None] = lambda: None,
) -> tuple[Tier, tuple[Attack, Attack]]:
    """Attack the private model and the control.

    Args:
        product: what is audited.
        epsilon: the claim for all steps together.
        shadows: models beside each audited one.
        targets: subjects whose membership is guessed; half of them are trained on.
        steps: DP steps of each model, rate 1.
        advance: told after each model, 2 (shadows + 1) times.

    Returns:
        The tier, and the attacks on the private model and on the control.
    """
    began = time.perf_counter()
    noise = noise_for(epsilon, delta=DELTA, steps=steps)
    world = _World(targets=targets, shadows=shadows, steps=steps)
    private = attack(product, world, noise=noise, epsilon=epsilon, advance=advance)
    control = attack(product, world, noise=0.0, epsilon=math.inf, advance=advance)
    tier = Tier(
        name="c",
        checks=attack_checks(private, control),
        seconds=time.perf_counter() - began,
        figures=_figures(private, control, shadows=shadows, steps=steps, noise=noise),
    )
    return tier, (private, control)


def attack_checks(private: Attack, control: Attack) -> tuple[Check, ...]:
    """The claim at 1% and at every threshold, and whether the attack is worth anything."""
    strength, found = control.tpr_at(AT_FPR), private.tpr_at(AT_FPR)
    most, (excess, fpr) = private.most_at(AT_FPR), private.excess()
    strong = strength >= CONTROL_TPR
    weak = "" if strong else TOO_WEAK
    return (
        Check(
            name="control, no noise: TPR at 1% FPR",
            figure=f"{strength:.1%}",
            passes_at=f"≥ {CONTROL_TPR:.0%}",
            passed=strong,
            verdict=weak,
        ),
        Check(
            name=f"ε = {private.epsilon:g}: TPR at 1% FPR",
            figure=f"{found:.1%}",
            passes_at=f"≤ {most:.1%}",
            passed=found <= most,
            verdict=weak if found <= most else "",
        ),
        Check(
            name=f"ε = {private.epsilon:g}: TPR over e^ε FPR + δ",
            figure=f"{excess:+.3f} at FPR {fpr:.1%}",
            passes_at="≤ 0 at any FPR",
            passed=excess <= 0,
            verdict=weak if excess <= 0 else "",
        ),
    )


@dataclass(frozen=True, kw_only=True)
class _World:
    """Targets with records drawn at random: the people whom a model can only learn by heart."""

    targets: int
    shadows: int
    steps: int

    def site(self, member: NDArray[np.bool_]) -> AuditSite:
        draw = np.random.default_rng(_SEED)
        rows = np.stack([draw.permutation(_ITEMS)[:_ROWS] for _ in range(self.targets)])[member]
        records = Interactions(
            subject_ids=tuple(f"target-{i}" for i in np.flatnonzero(member)),
            offsets=np.arange(0, rows.size + 1, _ROWS),
            items=rows.astype(np.int32).ravel(),
            values=np.ones(rows.size, np.float32),
            times=np.tile(np.arange(_ROWS), len(rows)),
        )
        vectors = torch.randn(_ITEMS, _WIDTH, generator=torch.Generator().manual_seed(_SEED))
        unit = torch.nn.functional.normalize(vectors, dim=1)
        return AuditSite(plan=_PLAN, records=records, vectors=unit)

    def members(self) -> NDArray[np.bool_]:
        """Who is in the audited model (row 0) and in each shadow, bool (shadows + 1, targets)."""
        draw = np.random.default_rng([_SEED, 1])
        return draw.integers(0, 2, (self.shadows + 1, self.targets)).astype(bool)


_PLAN: Final = RecommenderPlan(
    parts="map,bias", top_layers=0, windows=_ROWS - 1, history_items=8, candidates=10**9
)


def attack(
    product: Product,
    world: _World,
    *,
    noise: float,
    epsilon: float,
    advance: Callable[[], None] = lambda: None,
) -> Attack:
    """Train the audited model and its shadows with the product, and score every target."""
    step = Step(
        noise_multiplier=noise,
        steps=world.steps,
        learning_rate=5.0,
        expected_batch_size=world.targets / 2,
    )
    everybody = world.site(np.ones(world.targets, bool))
    members, confidence = world.members(), []
    for member in members:
        trainer = trainer_of(product, world.site(member), step)
        adapter = released_update(product, trainer, step)
        confidence.append(logit_confidence(subject_losses(everybody, adapter)))
        advance()
    scores = offline_scores(np.stack(confidence), members)
    return Attack(epsilon=epsilon, scores=scores, member=members[0])


def logit_confidence(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """log(p / (1 - p)) with p = exp(-loss), which is close to normal over models."""
    bounded = np.clip(losses, 1e-12, None)
    told: NDArray[np.float64] = -bounded - np.log(-np.expm1(-bounded))
    return told


def offline_scores(
    confidence: NDArray[np.float64], members: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """How far the audited model's confidence lies above that of models that never saw the target.

    With so few shadows the spread is estimated over all targets together (Carlini et al. 2022,
    section VI-C).

    Args:
        confidence: (shadows + 1, n), the audited model first.
        members: bool of the same shape.

    Returns:
        (n), in standard deviations.
    """
    out = ~members[1:]
    count = np.maximum(out.sum(0), 1)
    mean = (confidence[1:] * out).sum(0) / count
    spread = np.square(confidence[1:] - mean) * out
    sd = math.sqrt(float(spread.sum()) / max(int(out.sum()) - len(mean), 1))
    scores: NDArray[np.float64] = (confidence[0] - mean) / max(sd, 1e-12)
    return scores


def _figures(
    private: Attack, control: Attack, *, shadows: int, steps: int, noise: float
) -> dict[str, Any]:
    return {
        "epsilon": private.epsilon,
        "delta": DELTA,
        "noise_multiplier": noise,
        "sample_rate": 1.0,
        "steps": steps,
        "shadow_models": shadows,
        "members": int(private.member.sum()),
        "non_members": int((~private.member).sum()),
        "tpr_at_1_percent_fpr": round(private.tpr_at(AT_FPR), 4),
        "excess": round(private.excess()[0], 4),
        "control_tpr_at_1_percent_fpr": round(control.tpr_at(AT_FPR), 4),
        "confidence": 1 - BETA,
    }
