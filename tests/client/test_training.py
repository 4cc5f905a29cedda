import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.optimizer import SubjectDPOptimizer
from client.training import Mechanism, SiteTrainer
from common.errors import ModelError, OrderError
from common.interactions import Interactions, concatenate
from common.plan import RecommenderPlan
from common.randomness import Randomness, SecureRandomness
from common.textpath import TextVectors
from simulations.seeded import SeededRandomness
from simulations.unprotected import FreeGrant
from tests.models import (
    FAMILIES,
    mechanism_of,
    model_of,
    recommender_plan,
    records_of,
    released_sum,
    trainer_of,
    update_of,
)

BASE = (3, 1, 5, 2, 6, 4, 1, 3)


def seeded(number: int = 1) -> Randomness:
    return SeededRandomness(seed=5, site="north", round_number=number, purpose="test")


def one_more(length: int, *, items: int = 60) -> tuple[Interactions, Interactions]:
    base = records_of(BASE, items=items)
    return base, concatenate([base, records_of([length], items=items, first=len(BASE))])


def summed(records: Interactions, plan: RecommenderPlan, family: str = "bert") -> Tensor:
    return released_sum(trainer_of(records, plan, family, items=60))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("objective", ["ranking", "click", "rating"])
@pytest.mark.parametrize("candidates", [16, 2000])
def test_adding_a_subject_moves_the_sum_by_at_most_the_clip(
    family: str, objective: str, candidates: int
) -> None:
    plan = recommender_plan(family, objective=objective, candidates=candidates, variant="plain")
    without, together = one_more(4)
    moved = (summed(together, plan, family) - summed(without, plan, family)).norm()
    assert 0 < moved <= 1 + 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("candidates", [16, 2000])
def test_a_bfloat16_backbone_moves_the_sum_by_no_more(family: str, candidates: int) -> None:
    plan = recommender_plan(family, dtype="bfloat16", candidates=candidates)
    without, together = one_more(4)
    moved = (summed(together, plan, family) - summed(without, plan, family)).norm()
    assert 0 < moved <= 1 + 1e-5


@pytest.mark.parametrize("length", [1, 4, 50])
def test_all_windows_of_a_subject_are_one_clip(length: int) -> None:
    plan = recommender_plan(windows=64, history_items=50)
    without, together = one_more(length)
    moved = (summed(together, plan) - summed(without, plan)).norm()
    assert moved == pytest.approx(1.0, abs=0.02)
    assert moved <= 1 + 1e-5


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30, 3e38])
@pytest.mark.parametrize("where", ["rating", "text"])
@pytest.mark.parametrize("train_text", [True, False])
def test_a_subject_of_bad_numbers_moves_the_sum_by_at_most_the_clip_and_raises_nothing(
    bad: float, where: str, train_text: bool
) -> None:
    plan = recommender_plan(objective="rating")
    base, together = one_more(5)
    trainer = trainer_of(together, plan, items=60)
    last = trainer.windows.offsets[-2:].tolist()
    if where == "rating":
        trainer.windows.value[slice(*last)] = bad
    else:
        spoil_texts(trainer, torch.arange(*last), bad)
    moved = released_sum(trainer, train_text=train_text) - released_sum(
        trainer_of(base, plan, items=60), train_text=train_text
    )
    assert torch.isfinite(moved).all()
    assert moved.norm() <= 1 + 1e-5


def spoil_texts(trainer: SiteTrainer, rows: Tensor, bad: float) -> None:
    """The activations of these rows' texts, which nobody else has, become `bad`."""
    made = trainer.texts._activations
    places = made.row[rows]
    places = places[places >= 0]
    others = torch.ones(len(made.row), dtype=torch.bool)
    others[rows] = False
    assert not torch.isin(made.row[others], places).any()
    for place in places.tolist():
        made.hidden[made.offsets[place] : made.offsets[place + 1]] = bad
        made.pooled[place] = bad
    trainer.texts = TextVectors(made, trainer.texts._centre)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("train_text", [True, False])
@pytest.mark.parametrize("place", [2, 3, 4, 5])
def test_a_subject_that_is_not_finite_contributes_zero_and_touches_nobody(
    bad: float, family: str, train_text: bool, place: int
) -> None:
    plan = recommender_plan(family, objective="ranking")
    together = records_of(BASE, items=60)  # spoilt texts stand first, last and in between
    others = [i for i in range(len(together)) if i != place]
    trainer = trainer_of(together, plan, family, items=60)
    rows, _ = trainer.windows.rows_of(torch.tensor([place]))
    spoil_texts(trainer, rows, bad)
    found = released_sum(trainer, train_text=train_text)
    wanted = released_sum(
        trainer_of(together.select(others), plan, family, items=60), train_text=train_text
    )
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_subject_with_a_rating_that_is_no_number_contributes_zero_and_touches_nobody() -> None:
    plan = recommender_plan(objective="rating")
    base, together = one_more(5)
    trainer = trainer_of(together, plan, items=60)
    trainer.windows.value[trainer.windows.offsets[-2] :] = float("nan")
    found, wanted = released_sum(trainer), summed(base, plan)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    trainer.windows.value[:] = float("nan")
    assert (released_sum(trainer) == 0).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("candidates", [16, 2000])
def test_micro_batches_change_no_result_beyond_rounding(family: str, candidates: int) -> None:
    plan = recommender_plan(family, candidates=candidates, variant="plain")
    records = records_of([1 + i % 7 for i in range(15)], items=60)
    sums = [
        released_sum(
            trainer_of(records, plan, family, items=60, mechanism=mechanism_of(micro_batch=size))
        )
        for size in (1, 7, 15)
    ]
    for other in sums[1:]:
        torch.testing.assert_close(other, sums[0], rtol=1e-5, atol=1e-5)


def test_a_batch_that_breaks_in_the_middle_leaves_nothing_for_the_next() -> None:
    plan = recommender_plan()
    trainer = trainer_of(records_of(BASE), plan, mechanism=mechanism_of(micro_batch=3))
    wanted = released_sum(trainer)
    targets = trainer.windows.target.clone()
    trainer.windows.target[-1] = 10_000  # no such item: the last micro-batch raises
    with pytest.raises((IndexError, RuntimeError)):
        released_sum(trainer)
    trainer.windows.target[:] = targets
    trainer.model.load(model_of(plan).adapter())
    torch.testing.assert_close(released_sum(trainer), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("variant", ["ffa", "plain"])
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_every_tensor_that_should_move_does(variant: str, noise: float) -> None:
    plan = recommender_plan(variant=variant)
    trainer = trainer_of(records_of(BASE), plan)
    update = update_of(trainer, noise_multiplier=noise)
    assert set(update) == {name for name, _ in trainer.model.trainable()}
    assert any(".lora_B." in name for name in update)
    assert any(".lora_A." in name for name in update) == (variant == "plain")
    assert all(value.any() for value in update.values())


def test_frozen_weights_never_move() -> None:
    trainer = trainer_of(records_of(BASE))
    before = {n: p.clone() for n, p in trainer.model.named_parameters() if not p.requires_grad}
    buffers = {n: b.clone() for n, b in trainer.model.named_buffers()}
    update_of(trainer, steps=3)
    assert len(before) > 20
    for name, p in trainer.model.named_parameters():
        assert name not in before or torch.equal(p, before[name])
    assert all(torch.equal(b, buffers[n]) for n, b in trainer.model.named_buffers())


def test_lora_is_neither_trained_nor_sent_once_the_text_rounds_are_over() -> None:
    trainer = trainer_of(records_of(BASE))
    before = {n: p.clone() for n, p in trainer.model.named_parameters() if "lora_" in n}
    update = update_of(trainer, train_text=False)
    assert update
    assert not any(name.startswith("text.") for name in update)
    for name, p in trainer.model.named_parameters():
        assert name not in before or torch.equal(p, before[name])


def test_an_update_of_several_steps_draws_a_sample_and_noise_for_each() -> None:
    class Counting:
        def __init__(self) -> None:
            self.inner, self.samples, self.normals = SecureRandomness(), 0, 0

        def normal(self, n: int) -> NDArray[np.float64]:
            self.normals += n
            return self.inner.normal(n)

        def poisson_sample(self, population: int, rate: float) -> NDArray[np.int64]:
            self.samples += 1
            assert (population, rate) == (len(BASE), 0.4)
            return self.inner.poisson_sample(population, rate)

    mechanism = mechanism_of(micro_batch=2)
    trainer, randomness = trainer_of(records_of(BASE), mechanism=mechanism), Counting()
    granted = {"noise_multiplier": 1.0, "sample_rate": 0.4, "steps": 4}
    update = update_of(trainer, randomness=randomness, **granted)
    assert randomness.samples == 4
    assert randomness.normals == 4 * sum(v.numel() for v in update.values())


def test_a_sample_of_subjects_without_any_row_releases_noise() -> None:
    records = Interactions(
        subject_ids=("a", "b"),
        offsets=np.array([0, 0, 0]),
        items=np.zeros(0, np.int32),
        values=np.zeros(0, np.float32),
        times=np.zeros(0, np.int64),
    )
    trainer = trainer_of(records)
    assert all(value.any() for value in update_of(trainer, noise_multiplier=1.0).values())


def test_seeded_randomness_repeats_an_update_and_secure_randomness_does_not() -> None:
    trainer = trainer_of(records_of(BASE))

    def flat(randomness: Randomness) -> Tensor:
        made = update_of(trainer, randomness=randomness, noise_multiplier=1.0, sample_rate=0.5)
        return torch.cat([value.flatten() for value in made.values()])

    assert torch.equal(flat(seeded()), flat(seeded()))
    assert not torch.equal(flat(seeded(1)), flat(seeded(2)))
    assert not torch.equal(flat(SecureRandomness()), flat(SecureRandomness()))


def test_the_step_is_divided_by_the_expected_batch_size_alone() -> None:
    few = trainer_of(records_of(BASE), mechanism=mechanism_of(expected_batch_size=7.0))
    one = trainer_of(records_of(BASE), mechanism=mechanism_of(expected_batch_size=1.0))
    found, wanted = update_of(few), update_of(one)
    for name, value in wanted.items():
        torch.testing.assert_close(7 * found[name], value, rtol=1e-5, atol=1e-5)


def test_an_optimizer_that_covers_only_some_tensors_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = trainer_of(records_of(BASE))
    whole = trainer._optimizer
    monkeypatch.setattr(trainer, "_optimizer", lambda chosen, r: whole(chosen[1:], r))
    with pytest.raises(OrderError, match="every tensor"):
        update_of(trainer)


def test_a_tensor_unfrozen_behind_the_trainers_back_is_refused() -> None:
    trainer = trainer_of(records_of(BASE))
    norm = next(m for m in trainer.model.modules() if isinstance(m, torch.nn.LayerNorm))
    adapter = trainer.model.adapter()
    norm.weight.requires_grad_(True)
    with pytest.raises((OrderError, ModelError)):
        trainer.update(
            {
                **adapter,
                **{n: p.detach() for n, p in trainer.model.trainable() if n not in adapter},
            },
            train_text=True,
            public_seed=3,
            grant=FreeGrant(SecureRandomness()),
        )
    norm.weight.requires_grad_(False)


def test_eval_mode_while_training_is_refused() -> None:
    trainer = trainer_of(records_of(BASE))
    trainer.model.eval()
    with pytest.raises(OrderError, match="train mode"):
        update_of(trainer)


def test_dropout_in_the_backbone_is_refused() -> None:
    model = model_of(recommender_plan())
    dropout = next(m for m in model.modules() if isinstance(m, torch.nn.Dropout))
    dropout.p = 0.1
    plain = trainer_of(records_of(BASE))
    with pytest.raises(ModelError, match="dropout"):
        SiteTrainer(
            model=model,
            windows=plain.windows,
            texts=plain.texts,
            vectors=plain.vectors,
            mechanism=plain.mechanism,
            learning_rate=1.0,
        )


def test_noise_that_was_announced_is_the_noise_that_is_drawn() -> None:
    """Data and noise, together: the update minus the sum is normal with the announced scale."""
    mechanism = Mechanism(
        max_grad_norm=1.0,
        expected_batch_size=8.0,
        micro_batch=3,
    )
    trainer = trainer_of(records_of(BASE), mechanism=mechanism)
    clean = update_of(trainer)
    for name, value in update_of(trainer, noise_multiplier=2.0).items():
        noise = (value - clean[name]).double()
        if noise.numel() > 1000:
            tolerance = max(0.01, 4.5 / math.sqrt(2 * noise.numel()))
            assert float(noise.square().mean().sqrt()) == pytest.approx(2 / 8, rel=tolerance)


def test_the_optimizer_is_opacus_own_with_the_site_s_mechanism() -> None:
    trainer = trainer_of(records_of(BASE), mechanism=mechanism_of(max_grad_norm=0.25))
    optimizer = trainer._optimizer(
        [p for _, p in trainer.model.trainable()], FreeGrant(SecureRandomness())
    )
    assert isinstance(optimizer, SubjectDPOptimizer)
    assert optimizer.max_grad_norm == 0.25
