"""Row: per-subject gradients against a loop of single-subject backward passes."""

import time

import torch
from torch import Tensor

from client.per_subject import GradSample, Grouping
from client.training import SiteTrainer
from common.backbone import Backbone
from common.plan import RecommenderPlan
from simulations.benchmark.rows import Row
from simulations.benchmark.site import Ward, grouping_of, open_trainer, open_ward, ordinary

LEAST = 1e-5
FLOAT32 = 1e-6
"""Exact to float32: sums of some thousand terms, each rounded at 6e-8, in another order."""
Gradients = dict[str, Tensor]


def gradient_row(backbone: Backbone, *, subjects: int) -> Row:
    """Largest relative difference over variants, subjects and tensors."""
    worst: dict[str, float] = {}
    seconds = {"together": 0.0, "loop": 0.0}
    for variant in ("ffa", "plain"):
        plan = RecommenderPlan(variant=variant)
        ward = open_ward(backbone, plan, subjects=2 * subjects)
        chosen = torch.arange(subjects)
        together, seconds["together"] = _timed_together(open_trainer(ward, batch=1), ward, chosen)
        loop, seconds["loop"] = _timed_loop(ordinary(open_trainer(ward, batch=1)), ward, chosen)
        whole = torch.cat([grad.flatten(1) for grad in loop.values()], dim=1).norm(dim=1)
        worst |= {f"{variant} {n}": _worst(together[n], loop[n], whole) for n in loop}
    return Row(
        name=f"Per-subject gradients, {subjects} subjects, largest relative difference",
        measured=max(worst.values()),
        unit="",
        comparison=f"a loop of single-subject backward passes: {seconds['loop'] * 1e3:.0f} ms "
        f"against {seconds['together'] * 1e3:.0f} ms",
        least=LEAST,
        aim=FLOAT32,
        detail={"by_tensor": worst, "seconds": seconds},
    )


def _worst(found: Tensor, wanted: Tensor, whole: Tensor) -> float:
    """Largest |found - wanted| / |wanted| over subjects.

    A tensor of one number is taken relative to the subject's `whole` gradient: its terms may
    cancel, and no two orders of a float32 sum agree on what is left.
    """
    off = (found - wanted).flatten(1).norm(dim=1)
    size = wanted.flatten(1).norm(dim=1) if wanted[0].numel() > 1 else whole
    return float(torch.where(off > 0, off / size, 0.0).max())


def _timed_together(trainer: SiteTrainer, ward: Ward, subjects: Tensor) -> tuple[Gradients, float]:
    rows, grouping = grouping_of(ward, subjects)
    start = time.perf_counter()
    trainer._backward(rows, grouping, None, train_text=True)
    taken = time.perf_counter() - start
    one = torch.eye(len(subjects), dtype=torch.float64)
    found = {}
    for name, parameter in trainer.model.trainable():
        sample: GradSample = parameter.grad_sample  # type: ignore[attr-defined]
        found[name] = torch.stack([sample.weighted_sum(unit) for unit in one])
    return found, taken


def _timed_loop(trainer: SiteTrainer, ward: Ward, subjects: Tensor) -> tuple[Gradients, float]:
    found: dict[str, list[Tensor]] = {name: [] for name, _ in trainer.model.trainable()}
    taken = 0.0
    for subject in subjects:
        rows, _ = ward.windows.rows_of(subject.reshape(1))
        alone = Grouping(owner=torch.zeros(len(rows), dtype=torch.long), subjects=1)
        trainer.model.zero_grad()
        start = time.perf_counter()
        trainer._backward(rows, alone, None, train_text=True)
        taken += time.perf_counter() - start
        for name, parameter in trainer.model.trainable():
            grad = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            found[name].append(grad.detach().double().clone())
    return {name: torch.stack(grads) for name, grads in found.items()}, taken
