"""The packaged backbone, whole: the same promises as on the tiny ones, at real width."""

from functools import cache

import pytest
import torch
from torch import Tensor

from client.per_subject import Grouping
from client.training import Mechanism, SiteTrainer
from common.backbone import Backbone, load_backbone
from common.plan import RecommenderPlan
from common.randomness import SecureRandomness
from common.recommender import Recommender
from common.synthetic import make_site
from common.textpath import ActivationStore, TextVectors
from common.windows import Windows, history_texts, training_windows
from simulations.unprotected import FreeGrant
from tests.models import noisy, released_sum

PLAN = RecommenderPlan(dtype="float32", top_layers=2, r=4, text_tokens=24, item_tokens=32)
CATALOG, RECORDS = make_site("bank", site=0, subjects=30, seed=1)
STORE = ActivationStore()


@cache
def minilm() -> Backbone:
    return load_backbone(dtype="float32")


@cache
def space() -> tuple[Tensor, Tensor]:
    made = STORE.item_space(minilm(), CATALOG, tokens=PLAN.item_tokens)
    return made.vectors, made.centre


@cache
def everything() -> tuple[Windows, TextVectors]:
    windows = training_windows(RECORDS, windows=PLAN.windows, history_items=PLAN.history_items)
    texts = history_texts(windows.history, CATALOG, items=PLAN.text_items)
    made = STORE.texts(minilm(), texts, tokens=PLAN.text_tokens, top_layers=PLAN.top_layers)
    return windows, TextVectors(made, space()[1])


def trainer_of(**changed: float) -> SiteTrainer:
    windows, texts = everything()
    model = Recommender(PLAN, backbone=minilm(), width=384, items=len(CATALOG), domain="bank")
    model.load({k: 0.1 * v for k, v in noisy(model.adapter(), 0).items()})
    plain = {"max_grad_norm": 1.0}
    return SiteTrainer(
        model=model,
        windows=windows,
        texts=texts,
        vectors=space()[0],
        mechanism=Mechanism(
            **{**plain, "expected_batch_size": 1.0, **changed},  # type: ignore[arg-type]
            micro_batch=16,
        ),
        learning_rate=1.0,
    )


def gradients(trainer: SiteTrainer, subjects: list[int]) -> dict[str, Tensor]:
    rows, owner = trainer.windows.rows_of(torch.tensor(subjects))
    for _, p in trainer.model.trainable():
        p.grad_sample = None  # type: ignore[attr-defined]
    trainer._backward(rows, Grouping(owner=owner, subjects=len(subjects)), None, train_text=True)
    return {
        name: torch.stack(
            [p.grad_sample.weighted_sum(u) for u in torch.eye(len(subjects)).double()]  # type: ignore[attr-defined]
        )
        for name, p in trainer.model.trainable()
    }


def test_gradients_in_company_are_those_of_each_subject_alone() -> None:
    trainer, subjects = trainer_of(), [0, 3, 7, 11, 20]
    together = gradients(trainer, subjects)
    alone = [gradients(trainer, [subject]) for subject in subjects]
    for name, found in together.items():
        wanted = torch.cat([one[name] for one in alone])
        error = (found - wanted).flatten(1).norm(dim=1)
        size = wanted.flatten(1).norm(dim=1)
        assert (error <= 1e-5 * size.clamp(min=0.1 * float(size.max()))).all(), name


def test_leaving_a_subject_out_moves_the_sum_by_at_most_the_clip() -> None:
    whole = released_sum(trainer_of())
    for left_out in (0, 13, 29):
        trainer = trainer_of()
        w = trainer.windows
        keep = torch.ones(len(w), dtype=torch.bool)
        keep[w.offsets[left_out] : w.offsets[left_out + 1]] = False
        counts = w.offsets.diff()
        counts[left_out] = 0
        trainer.windows = Windows(
            offsets=torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]),
            target=w.target[keep],
            value=w.value[keep],
            history=w.history[keep],
        )
        texts = history_texts(trainer.windows.history, CATALOG, items=PLAN.text_items)
        trainer.texts = TextVectors(
            STORE.texts(minilm(), texts, tokens=PLAN.text_tokens, top_layers=PLAN.top_layers),
            space()[1],
        )
        moved = (whole - released_sum(trainer)).norm()
        assert 0.5 < moved <= 1 + 1e-5


def test_a_private_update_moves_every_tensor() -> None:
    trainer = trainer_of(expected_batch_size=15.0)
    update = trainer.update(
        trainer.model.adapter(),
        train_text=True,
        public_seed=1,
        grant=FreeGrant(SecureRandomness(), noise_multiplier=1.0, sample_rate=0.5),
    )
    assert all(value.any() and torch.isfinite(value).all() for value in update.values())
    numbers = torch.cat([v.flatten() for v in update.values()])
    assert float(numbers.std()) == pytest.approx(1.0 / 15, rel=0.02)
