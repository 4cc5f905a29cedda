"""Rows: the default training step, and what the cached prefix is worth."""

import copy

import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from client.optimizer import SubjectDPOptimizer
from client.per_subject import convert
from client.training import SiteTrainer
from common.backbone import Backbone
from common.plan import RecommenderPlan
from common.randomness import SecureRandomness
from common.recommender import TextTop
from common.windows import history_views
from simulations.benchmark.clock import Timing, Work, alternate, ratio, threads
from simulations.benchmark.rows import Row
from simulations.benchmark.site import Ward, grouping_of, open_trainer, open_ward, ordinary
from simulations.benchmark.step import AIM, CLIP, LEAST, NOISE, RATE, quietly

BATCH = 64
SCENARIO_BATCH = 200
"""Subjects in a step of the default scenario: a quarter of 800."""
TIMES_LEAST, TIMES_AIM = 3.0, 6.0


def default_step_row(backbone: Backbone, *, turns: int, batch: int = SCENARIO_BATCH) -> Row:
    """A DP step of the default plan over the same step without clip and noise.

    History path, bias and the top layer on the cached prefix; one thread, as a simulation gives a
    site.
    """
    ward = open_ward(backbone, RecommenderPlan(), subjects=2 * batch)
    subjects = torch.arange(batch)
    variants = {
        "plain": _open_step(ordinary(open_trainer(ward, batch=batch)), ward, subjects),
        "confed": _private_step(open_trainer(ward, batch=batch), subjects),
    }
    with threads(1):
        timings = alternate(variants, turns=turns)
    return Row(
        name=f"DP step over the non-private step, default plan, {batch} subjects, 1 thread",
        measured=round(ratio(timings["confed"], timings["plain"]), 4),
        unit="x",
        comparison=f"{timings['plain'].median * 1e3:.0f} ms without clip and noise",
        least=LEAST,
        aim=AIM,
        detail={name: t.plain() for name, t in timings.items()},
    )


def _private_step(trainer: SiteTrainer, subjects: Tensor) -> Work:
    optimizer = trainer._optimizer([p for _, p in trainer.model.trainable()], SecureRandomness())
    generator = torch.Generator().manual_seed(1)
    return lambda: trainer._step(optimizer, subjects, generator, train_text=True)


def _open_step(trainer: SiteTrainer, ward: Ward, subjects: Tensor) -> Work:
    optimizer = torch.optim.SGD(
        [p for _, p in trainer.model.trainable()], lr=trainer.learning_rate / len(subjects)
    )

    def work() -> None:
        optimizer.zero_grad()
        rows, grouping = grouping_of(ward, subjects)
        trainer._backward(rows, grouping, None, train_text=True)
        optimizer.step()

    return work


def prefix_rows(backbone: Backbone, *, turns: int) -> list[Row]:
    """The top layer on the cached prefix over PEFT and Opacus hooks through all layers."""
    # One window a subject, because stock hooks take a row for a person.
    ward = open_ward(backbone, RecommenderPlan(windows=1), subjects=4 * BATCH)
    subjects = ward.told(BATCH)
    lora = {
        "confed": _cached_lora(ward, subjects),
        "opacus": _opacus(ward, subjects, head=False),
    }
    whole = {
        "confed": _private_step(open_trainer(ward, batch=len(subjects)), subjects),
        "opacus": _opacus(ward, subjects, head=True),
    }
    found = []
    for what, variants in (("LoRA alone", lora), ("LoRA and history path", whole)):
        timings = alternate(variants, turns=turns)
        found.append(_prefix_row(what, timings, len(subjects)))
    return found


def _prefix_row(what: str, timings: dict[str, Timing], subjects: int) -> Row:
    return Row(
        name=f"Site training, top layer on the cached prefix, {what}: times faster",
        measured=round(ratio(timings["opacus"], timings["confed"]), 2),
        unit="x",
        comparison=f"PEFT + Opacus hooks, all layers run: {timings['opacus'].median * 1e3:.0f} ms "
        f"against {timings['confed'].median * 1e3:.0f} ms",
        least=TIMES_LEAST,
        aim=TIMES_AIM,
        more_is_better=True,
        detail={name: t.plain() for name, t in timings.items()} | {"subjects": subjects},
    )


def _cached_lora(ward: Ward, subjects: Tensor) -> Work:
    top = TextTop(ward.backbone, ward.plan).train()
    rows, grouping = grouping_of(ward, subjects)
    for layer in convert(top):
        layer.grouping = grouping
    optimizer = SubjectDPOptimizer(
        torch.optim.SGD([p for p in top.parameters() if p.requires_grad], lr=RATE),
        noise_multiplier=NOISE,
        max_grad_norm=CLIP,
        expected_batch_size=len(subjects),
        randomness=SecureRandomness(),
    )
    target = ward.windows.target[rows]

    def work() -> None:
        optimizer.begin()
        text = ward.cached.trained(rows, ward.cached.present(rows), top)
        F.cross_entropy(text @ ward.vectors.T, target, reduction="sum").backward()
        optimizer.accumulate()
        optimizer.finish()

    return work


class _Whole(nn.Module):
    """Text path and, with `head`, history path as one call, which Opacus's hooks can wrap."""

    def __init__(self, ward: Ward, *, head: bool) -> None:
        super().__init__()
        self.backbone = _peft(ward)
        self.pool = ward.backbone.pool
        width = ward.backbone.width
        self.map = nn.Linear(3 * width, width, bias=False) if head else None

    def forward(self, ids: Tensor, mask: Tensor, views: Tensor, vectors: Tensor) -> Tensor:
        out = self.backbone(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        user = self.pool(out, mask)
        if self.map is not None:
            user = user + self.map(views)
        return user @ vectors.T


def _peft(ward: Ward) -> nn.Module:
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415

    plan, layers = ward.plan, ward.backbone.layers
    config = LoraConfig(
        r=plan.r,
        lora_alpha=plan.lora_alpha,
        target_modules=plan.target_modules.split(","),
        layers_to_transform=list(range(layers - plan.top_layers, layers)),
        lora_dropout=0.0,
    )
    model: nn.Module = get_peft_model(copy.deepcopy(ward.backbone.model), config)
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(plan.variant == "plain")
    return model


def _opacus(ward: Ward, subjects: Tensor, *, head: bool) -> Work:
    rows, _ = grouping_of(ward, subjects)
    texts = [ward.texts[i] for i in rows.tolist()]
    ids, mask = ward.backbone.tokenize(texts, tokens=ward.plan.text_tokens)
    target = ward.windows.target[rows]
    model = GradSampleModule(_Whole(ward, head=head).train(), loss_reduction="sum")
    optimizer = DPOptimizer(
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE),
        noise_multiplier=NOISE,
        max_grad_norm=CLIP,
        expected_batch_size=len(subjects),
        loss_reduction="sum",
    )

    def loss() -> Tensor:
        views = history_views(ward.windows.history[rows], ward.vectors)
        return F.cross_entropy(model(ids, mask, views, ward.vectors), target, reduction="sum")

    backward = quietly(lambda: loss().backward())

    def work() -> None:
        optimizer.zero_grad()
        backward()
        optimizer.step()

    return work
