"""The audit's contact with the product's training: trainer, reservations, randomness.

An audit drives what a site runs, not a copy of it: every update here comes out of
`client.training.SiteTrainer.update`. The egress gate, which changes no number, is left out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.training import Mechanism, SiteTrainer
from common.accounting import calibrate
from common.backbone import Backbone, load_backbone
from common.bounds import NORM_SLACK, largest_batch
from common.catalog import Catalog
from common.grant import Grant
from common.interactions import Interactions
from common.objectives import candidates, row_losses
from common.plan import RecommenderPlan
from common.randomness import Randomness, SecureRandomness
from common.recommender import Recommender
from common.textpath import ActivationStore, ItemSpace, TextActivations, TextVectors
from common.windows import history_texts, history_views, training_windows
from simulations.empirical.grants import reserved
from simulations.unprotected import FreeGrant

DOMAIN = "audit"


@dataclass(frozen=True, kw_only=True)
class Product:
    """The parts under audit; a deliberately broken mechanism swaps one of them.

    Attributes:
        trainer: makes updates.
        randomness: what a site draws from after a restart.
    """

    trainer: type[SiteTrainer] = SiteTrainer
    randomness: Callable[[], Randomness] = SecureRandomness


@dataclass(frozen=True, kw_only=True)
class AuditSite:
    """A made-up site.

    Attributes:
        plan: what is trained.
        records: nobody is in them.
        vectors: float32 (n, d), where the items stand.
        catalog: gives the histories their words; None leaves the text path silent.
        backbone: folder or name of the frozen model that reads them.
    """

    plan: RecommenderPlan
    records: Interactions
    vectors: Tensor
    catalog: Catalog | None = None
    backbone: str = "minilm"


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one update does.

    Attributes:
        noise_multiplier: 0 releases the clipped sum itself, for a comparison.
        max_grad_norm: C.
        sample_rate: Poisson rate.
        steps: DP steps in the update.
        learning_rate: of each step.
        expected_batch_size: public denominator.
        train_text: whether LoRA is trained.
    """

    noise_multiplier: float
    max_grad_norm: float = 1.0
    sample_rate: float = 1.0
    steps: int = 1
    learning_rate: float = 1.0
    expected_batch_size: float = 1.0
    train_text: bool = False


def noise_for(epsilon: float, *, delta: float, steps: int = 1) -> float:
    """The noise multiplier that the product's own accountant gives for an epsilon, rate 1."""
    return calibrate(epsilon=epsilon, delta=delta, sample_rate=1.0, steps=steps)


def noise_slack(expected_batch_size: float) -> float:
    """Share of noise that the optimizer adds for rounding in so large a batch."""
    return NORM_SLACK * largest_batch(expected_batch_size)


def trainer_of(product: Product, site: AuditSite, step: Step) -> SiteTrainer:
    """The product's trainer on a made-up site."""
    windows = training_windows(
        site.records, windows=site.plan.windows, history_items=site.plan.history_items
    )
    backbone = backbone_of(site.backbone) if site.catalog is not None else None
    return product.trainer(
        model=_model(site, backbone),
        windows=windows,
        texts=_texts(site, windows.history, backbone),
        vectors=site.vectors,
        mechanism=_mechanism(step),
        learning_rate=step.learning_rate,
    )


def released_update(product: Product, trainer: SiteTrainer, step: Step) -> dict[str, Tensor]:
    """What leaves training that starts at zero: new minus old of every trained tensor.

    Args:
        product: whose randomness is drawn from, freshly started.
        trainer: of `trainer_of`.
        step: what to do; replaces the one that the trainer was made with.
    """
    trainer.mechanism = _mechanism(step)
    zero = {name: torch.zeros(shape) for name, shape in trainer.model.read_shapes().items()}
    return trainer.update(
        zero, train_text=step.train_text, public_seed=1, grant=_grant(step, product.randomness())
    )


def released_sum(product: Product, site: AuditSite, step: Step) -> dict[str, NDArray[np.float64]]:
    """The sum over subjects that one step releases, by tensor: minus the step, undivided."""
    update = released_update(product, trainer_of(product, site, step), step)
    scale = -step.expected_batch_size / step.learning_rate
    return {name: value.double().numpy() * scale for name, value in update.items()}


@torch.no_grad()
def subject_losses(site: AuditSite, adapter: dict[str, Tensor]) -> NDArray[np.float64]:
    """What an attacker reads off a released adapter: the mean loss of each subject's rows (N)."""
    windows = training_windows(
        site.records, windows=site.plan.windows, history_items=site.plan.history_items
    )
    model = _model(site, None)
    model.load(adapter)
    views = history_views(windows.history, site.vectors)
    chosen = candidates(windows.target, len(site.vectors), None)
    scores = model(
        torch.zeros_like(views[:, : site.vectors.shape[1]]), views, site.vectors, chosen.items
    )
    losses = row_losses(scores, windows.value, chosen, site.plan).double().numpy()
    sums = np.add.reduceat(losses, windows.offsets[:-1].numpy())
    means: NDArray[np.float64] = sums / windows.offsets.diff().numpy()
    return means


def item_vectors(catalog: Catalog, backbone: str, *, tokens: int) -> Tensor:
    """Where the frozen backbone puts a catalog's items, float32 (n, d)."""
    return _item_space(catalog, backbone, tokens).vectors


@cache
def _item_space(catalog: Catalog, backbone: str, tokens: int) -> ItemSpace:
    return ActivationStore().item_space(backbone_of(backbone), catalog, tokens=tokens)


@cache
def backbone_of(name: str) -> Backbone:
    """The frozen model, on the CPU in float32, loaded once a process."""
    return load_backbone(name, dtype="float32")


def _model(site: AuditSite, backbone: Backbone | None) -> Recommender:
    return Recommender(
        site.plan,
        backbone=backbone,
        width=site.vectors.shape[1],
        items=len(site.vectors),
        domain=DOMAIN,
    )


def _grant(step: Step, randomness: Randomness) -> Grant:
    if step.noise_multiplier == 0:
        return FreeGrant(randomness, sample_rate=step.sample_rate, steps=step.steps)
    return reserved(
        noise_multiplier=step.noise_multiplier,
        sample_rate=step.sample_rate,
        steps=step.steps,
        clip=step.max_grad_norm,
        randomness=randomness,
    )


def _mechanism(step: Step) -> Mechanism:
    return Mechanism(
        max_grad_norm=step.max_grad_norm,
        expected_batch_size=step.expected_batch_size,
        micro_batch=256,
    )


def _texts(site: AuditSite, history: Tensor, backbone: Backbone | None) -> TextVectors:
    width = site.vectors.shape[1]
    if site.catalog is None or backbone is None:
        silent = TextActivations(
            row=torch.full((len(history),), -1),
            offsets=torch.zeros(1, dtype=torch.long),
            hidden=None,
            pooled=torch.zeros(0, width),
        )
        return TextVectors(silent, torch.zeros(width))
    plan = site.plan
    texts = history_texts(history, site.catalog, items=plan.text_items)
    made = ActivationStore().texts(
        backbone, texts, tokens=plan.text_tokens, top_layers=plan.top_layers
    )
    return TextVectors(made, _item_space(site.catalog, site.backbone, plan.item_tokens).centre)
