"""Rows: the default training step, and what the cached prefix is worth."""

import copy
import time

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
from common.recommender import TextTop, is_text
from common.windows import VIEWS, history_views
from simulations.benchmark.clock import Timing, Work, alternate, ratio, threads
from simulations.benchmark.rows import Row
from simulations.benchmark.site import (
    Ward,
    granted,
    grouping_of,
    open_trainer,
    open_ward,
    ordinary,
)
from simulations.benchmark.step import AIM, CLIP, LEAST, NOISE, RATE, quietly

BATCH = 64
TIMES_LEAST, TIMES_AIM = 3.0, 6.0
ROUNDS, TEXT_ROUNDS = 60, 3
"""Of the default scenario."""


def default_step_row(backbone: Backbone, *, turns: int, batch: int) -> Row:
    """A DP step of the default plan over the same step without clip and noise.

    History path, bias and the top layer on the cached prefix; one thread, as a simulation gives a
    site.

    Args:
        backbone: in the number format of a simulation.
        turns: of each side.
        batch: subjects in the step; 200, a quarter of 800, in the default scenario.
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
    optimizer = trainer._optimizer([p for _, p in trainer.model.trainable()], granted())
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
    began = time.perf_counter()
    ward = open_ward(backbone, RecommenderPlan(windows=1), subjects=4 * BATCH)
    encoding = time.perf_counter() - began
    subjects = ward.told(BATCH)
    variants = {
        "lora": _cached_lora(ward, subjects),
        "lora opacus": _opacus(ward, subjects, head=False),
        "whole": _private_step(open_trainer(ward, batch=len(subjects)), subjects),
        "whole opacus": _opacus(ward, subjects, head=True),
        "frozen": _frozen_step(open_trainer(ward, batch=len(subjects)), subjects),
        "frozen opacus": _opacus(ward, subjects, head=True, train_text=False),
    }
    with threads(1):
        timings = alternate(variants, turns=turns)
    return [
        _prefix_row("a step of LoRA alone", timings, "lora"),
        _prefix_row("a step of LoRA and history path", timings, "whole"),
        _run_row(timings, encoding),
    ]


def _run_row(timings: dict[str, Timing], encoding: float) -> Row:
    """A whole run of the default scenario: LoRA in the first rounds, then frozen."""
    rest = ROUNDS - TEXT_ROUNDS
    ours = TEXT_ROUNDS * timings["whole"].median + rest * timings["frozen"].median + encoding
    theirs = TEXT_ROUNDS * timings["whole opacus"].median + rest * timings["frozen opacus"].median
    return Row(
        name=f"Cached prefix, {ROUNDS} steps as by default (LoRA in {TEXT_ROUNDS}, then frozen), "
        "encoding included: times faster",
        measured=round(theirs / ours, 2),
        unit="x",
        comparison=f"PEFT + Opacus hooks, all layers run: {theirs:.1f} s against {ours:.1f} s",
        least=TIMES_LEAST,
        aim=TIMES_AIM,
        more_is_better=True,
        detail={name: timings[name].plain() for name in ("frozen", "frozen opacus")}
        | {"encoding_s": encoding},
    )


def _frozen_step(trainer: SiteTrainer, subjects: Tensor) -> Work:
    trainer.texts.adapter_changed(trainer.model.text)
    chosen = [p for name, p in trainer.model.trainable() if not is_text(name)]
    optimizer = trainer._optimizer(chosen, granted())
    generator = torch.Generator().manual_seed(1)
    return lambda: trainer._step(optimizer, subjects, generator, train_text=False)


def _prefix_row(what: str, timings: dict[str, Timing], name: str) -> Row:
    ours, theirs = timings[name], timings[f"{name} opacus"]
    return Row(
        name=f"Cached prefix, {what}, {BATCH} subjects: times faster",
        measured=round(ratio(theirs, ours), 2),
        unit="x",
        comparison=f"PEFT + Opacus hooks, all layers run, same LoRA in the top layer: "
        f"{theirs.median * 1e3:.0f} ms against {ours.median * 1e3:.0f} ms",
        least=TIMES_LEAST,
        aim=TIMES_AIM,
        more_is_better=True,
        detail={"confed": ours.plain(), "opacus": theirs.plain()},
    )


def _cached_lora(ward: Ward, subjects: Tensor) -> Work:
    top = TextTop(ward.backbone, ward.plan).train()
    rows, grouping = grouping_of(ward, subjects)
    for layer in convert(top):
        layer.grouping = grouping
    optimizer = SubjectDPOptimizer(
        torch.optim.SGD([p for p in top.parameters() if p.requires_grad], lr=RATE),
        grant=granted(),
        max_grad_norm=CLIP,
        expected_batch_size=len(subjects),
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

    def __init__(self, ward: Ward, *, head: bool, train_text: bool) -> None:
        super().__init__()
        self.backbone = _peft(ward).requires_grad_(train_text)
        if train_text:
            _train_lora(self.backbone, ward.plan)
        self.pool = ward.backbone.pool
        width = ward.backbone.width
        self.map = nn.Linear(VIEWS * width, width, bias=False) if head else None

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
    return model


def _train_lora(model: nn.Module, plan: RecommenderPlan) -> None:
    for name, parameter in model.named_parameters():
        trained = "lora_B" in name or ("lora_A" in name and plan.variant == "plain")
        parameter.requires_grad_(trained)


def _opacus(ward: Ward, subjects: Tensor, *, head: bool, train_text: bool = True) -> Work:
    rows, _ = grouping_of(ward, subjects)
    texts = [ward.texts[i] for i in rows.tolist()]
    ids, mask = ward.backbone.tokenize(texts, tokens=ward.plan.text_tokens)
    target = ward.windows.target[rows]
    whole = _Whole(ward, head=head, train_text=train_text).train()
    model = GradSampleModule(whole, loss_reduction="sum")
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
