"""A synthetic hospital for the rows that time a site's own training."""

from dataclasses import dataclass

import torch
from torch import Tensor

from client.per_subject import Grouping
from client.training import Mechanism, SiteTrainer
from common.backbone import Backbone
from common.plan import RecommenderPlan
from common.randomness import SecureRandomness
from common.recommender import Recommender
from common.synthetic import make_site
from common.textpath import ActivationStore, TextVectors
from common.windows import Windows, history_texts, training_windows
from simulations.unprotected import FreeGrant


@dataclass(frozen=True, kw_only=True)
class Ward:
    """One site's windows, texts and item vectors.

    Attributes:
        plan: what is trained.
        windows: training windows of every subject.
        texts: history text of every window, empty where there is none.
        cached: activations of the texts.
        vectors: float32 (n, d), item vectors.
    """

    plan: RecommenderPlan
    backbone: Backbone
    windows: Windows
    texts: list[str]
    cached: TextVectors
    vectors: Tensor

    def told(self, count: int) -> Tensor:
        """The first `count` subjects whose every window has a text, int64 (count)."""
        has = torch.tensor([bool(text) for text in self.texts])
        offsets = self.windows.offsets
        bounds = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
        whole = [i for i, (a, b) in enumerate(bounds) if b > a and bool(has[a:b].all())]
        return torch.tensor(whole[:count])


def open_ward(backbone: Backbone, plan: RecommenderPlan, *, subjects: int) -> Ward:
    """Make the records and encode their texts."""
    catalog, records = make_site("care", site=0, subjects=subjects, seed=1)
    windows = training_windows(records, windows=plan.windows, history_items=plan.history_items)
    texts = history_texts(windows.history, catalog, items=plan.text_items)
    store = ActivationStore()
    made = store.texts(backbone, texts, tokens=plan.text_tokens, top_layers=plan.top_layers)
    space = store.item_space(backbone, catalog, tokens=plan.item_tokens)
    return Ward(
        plan=plan,
        backbone=backbone,
        windows=windows,
        texts=texts,
        cached=TextVectors(made, space.centre),
        vectors=space.vectors,
    )


def granted(noise_multiplier: float = 1.0) -> FreeGrant:
    """Secure noise without a ledger: what is measured is the step."""
    return FreeGrant(SecureRandomness(), noise_multiplier=noise_multiplier, sample_rate=0.25)


def open_trainer(ward: Ward, *, batch: int) -> SiteTrainer:
    """The site's trainer, LoRA a little away from its start so that no gradient is zero."""
    model = Recommender(
        ward.plan,
        backbone=ward.backbone,
        width=ward.backbone.width,
        items=len(ward.vectors),
        domain="care",
    )
    draw = torch.Generator().manual_seed(2)
    start = {k: v + 0.01 * torch.randn(v.shape, generator=draw) for k, v in model.adapter().items()}
    model.load(start)
    return SiteTrainer(
        model=model,
        windows=ward.windows,
        texts=ward.cached,
        vectors=ward.vectors,
        mechanism=Mechanism(
            max_grad_norm=1.0,
            expected_batch_size=float(batch),
            micro_batch=256,
        ),
        learning_rate=0.01,
    )


def ordinary(trainer: SiteTrainer) -> SiteTrainer:
    """The same trainer with torch's own backward in every layer: nothing is told apart."""
    for layer in (*trainer.text_layers, *trainer.head_layers):
        layer.__class__ = type(layer).__mro__[1]
    return trainer


def grouping_of(ward: Ward, subjects: Tensor) -> tuple[Tensor, Grouping]:
    """Rows of these subjects, and whose they are."""
    rows, owner = ward.windows.rows_of(subjects)
    return rows, Grouping(owner=owner, subjects=len(subjects))
