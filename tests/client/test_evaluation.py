import numpy as np
import pytest
import torch

from client.evaluation import SENSITIVITY, noised_figures
from client.session import Session
from common.accounting import spent
from common.errors import PrivacyRefused, SecurityRefused
from common.held_out import HeldOut
from common.ledger import Ledger
from common.plan import EvaluationPlan, RunPlan
from common.randomness import SecureRandomness
from common.spending import cost_after, noise_of
from common.splits import leave_one_out
from common.textpath import ActivationStore
from common.wire import FIGURES, Order, Tensors
from simulations.evaluation import make_examiner, questions
from simulations.ledgers import MemoryLedgers
from simulations.metrics import means, ranking_metrics
from simulations.unprotected import FreeGrant
from tests.models import backbone_of, model_of, noisy, run_plan, site_of

STORE = ActivationStore()
SITE = site_of(subjects=40)


def plan_of(**privacy: object) -> RunPlan:
    plan = run_plan(privacy=privacy, federation={"rounds": 4, "text_rounds": 1})
    return plan.model_copy(update={"evaluation": EvaluationPlan(every=2, noise_multiplier=8.0)})


def adapter_of(plan: RunPlan) -> dict[str, torch.Tensor]:
    return noisy(model_of(plan.recommender).adapter(), 3)


class Evaluator:
    def __init__(self, plan: RunPlan) -> None:
        split = leave_one_out(SITE.interactions)
        self.held_out = HeldOut(
            SITE.catalog, split, plan.recommender, backbone=backbone_of("bert"), store=STORE
        )

    def noised(
        self, adapter: dict[str, torch.Tensor], grant: FreeGrant, left_out: np.ndarray
    ) -> dict[str, float]:
        return noised_figures(self.held_out, adapter, grant, left_out)


def evaluator_of(plan: RunPlan) -> Evaluator:
    return Evaluator(plan)


def session_of(plan: RunPlan, permits: Ledger) -> Session:
    return Session("run", SITE, plan, backbone=backbone_of("bert"), store=STORE, permits=permits)


def ledger_of(plan: RunPlan) -> Ledger:
    permits = MemoryLedgers()(SITE, plan)
    assert isinstance(permits, Ledger)
    return permits


def test_without_noise_the_sums_are_those_of_a_metrics_library() -> None:
    plan = plan_of()
    adapter = adapter_of(plan)
    found = evaluator_of(plan).noised(adapter, FreeGrant(SecureRandomness()), np.zeros(0, np.int64))
    asked = questions({"north": leave_one_out(SITE.interactions)}, len(SITE.catalog))
    examiner = make_examiner(
        asked, SITE.catalog, plan=plan.recommender, backbone=backbone_of("bert"), store=STORE
    )
    top = examiner.top({name: value.numpy() for name, value in adapter.items()})
    wanted = means(ranking_metrics(top, asked.target))
    assert found["subjects"] == len(asked.target)
    assert found["ndcg@10"] / found["subjects"] == pytest.approx(wanted["ndcg@10"], abs=1e-5)
    assert found["hit@10"] / found["subjects"] == pytest.approx(wanted["hit_rate@10"], abs=1e-5)


def test_a_subject_moves_the_sums_by_at_most_the_charged_length() -> None:
    plan, grant = plan_of(), FreeGrant(SecureRandomness())
    evaluator, adapter = evaluator_of(plan), adapter_of(plan)
    whole = evaluator.noised(adapter, grant, np.zeros(0, np.int64))
    for subject in range(0, 40, 7):
        less = evaluator.noised(adapter, grant, np.array([subject]))
        moved = np.linalg.norm([whole[name] - less[name] for name in FIGURES])
        assert moved <= SENSITIVITY + 1e-9


def test_the_noise_has_the_announced_scale() -> None:
    plan = plan_of()
    evaluator, adapter = evaluator_of(plan), adapter_of(plan)
    grant = FreeGrant(SecureRandomness(), noise_multiplier=8.0)
    draws = [evaluator.noised(adapter, grant, np.zeros(0, np.int64)) for _ in range(300)]
    for name in FIGURES:
        spread = np.std([draw[name] for draw in draws])
        assert spread == pytest.approx(8.0 * SENSITIVITY, rel=4.5 / np.sqrt(600))


def test_scores_that_are_no_numbers_give_no_figures_and_raise_nothing() -> None:
    plan = plan_of()
    broken = {k: torch.full_like(v, 1e38) for k, v in adapter_of(plan).items()}
    found = evaluator_of(plan).noised(broken, FreeGrant(SecureRandomness()), np.zeros(0, np.int64))
    assert all(np.isfinite(value) for value in found.values())
    assert 0 <= found["ndcg@10"] <= found["subjects"]


def secure(_site: str, _round: int) -> SecureRandomness:
    return SecureRandomness()


def told(plan: RunPlan) -> Tensors:
    return {k: v.numpy() for k, v in adapter_of(plan).items()}


def test_an_evaluation_is_paid_for_and_asked_twice_gives_the_same_figures() -> None:
    plan = plan_of()
    ledger = ledger_of(plan)
    session = session_of(plan, ledger)
    order = Order(round=2, plan=plan)
    first, again = (session.evaluate(order, told(plan), secure) for _ in range(2))
    assert first.figures == again.figures
    assert set(first.figures) == set(FIGURES)
    assert [r.asked for r in ledger.state().reserved.values()] == [("run", 1, "evaluate")]
    with pytest.raises(PrivacyRefused):
        session.evaluate(order, {k: v + 1 for k, v in told(plan).items()}, secure)


@pytest.mark.parametrize("number", [1, 3, 0, 6])
def test_a_round_without_an_evaluation_in_the_plan_is_refused(number: int) -> None:
    plan = plan_of()
    with pytest.raises(PrivacyRefused):
        session_of(plan, ledger_of(plan)).evaluate(
            Order(round=number, plan=plan), told(plan), secure
        )


def test_a_plan_without_evaluation_answers_none() -> None:
    plan = run_plan()
    with pytest.raises(PrivacyRefused):
        session_of(plan, ledger_of(plan)).evaluate(Order(round=2, plan=plan), told(plan), secure)


def test_evaluating_another_adapter_than_the_plans_costs_nothing() -> None:
    plan = plan_of()
    ledger = ledger_of(plan)
    with pytest.raises(SecurityRefused):
        session_of(plan, ledger).evaluate(Order(round=2, plan=plan), {}, secure)
    assert not ledger.state().reserved


def test_what_is_held_out_is_not_trained_on() -> None:
    with_evaluation, without = (
        session_of(plan, ledger_of(plan))._trainer.windows for plan in (plan_of(), run_plan())
    )
    longest = SITE.interactions.counts.max()
    assert with_evaluation.subjects == without.subjects
    assert len(with_evaluation) < len(without)
    last = without.target[without.offsets[1:] - 1]
    for subject in np.flatnonzero(SITE.interactions.counts == longest):
        rows = slice(*with_evaluation.offsets[subject : subject + 2].tolist())
        assert int(last[subject]) not in with_evaluation.target[rows].tolist()


def test_the_cost_of_evaluations_is_part_of_epsilon() -> None:
    plan = plan_of(epsilon=3.0, noise_multiplier=None)
    alone = run_plan(
        privacy={"epsilon": 3.0, "noise_multiplier": None},
        federation={"rounds": 4, "text_rounds": 1},
    )
    noise = noise_of(plan)
    assert noise > noise_of(alone)
    assert spent(cost_after(plan, noise, 4), delta=1e-5).epsilon == pytest.approx(3.0, rel=2e-3)
