"""Row: a DP step over the non-private step of the same model and batch, beside Opacus.

No prefix cache: every layer of MiniLM runs and carries LoRA on query and value, in float32.
"""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from client.optimizer import SubjectDPOptimizer
from client.per_subject import Grouping, convert
from common.backbone import Backbone
from common.plan import RecommenderPlan
from common.randomness import SecureRandomness
from common.recommender import TextTop
from simulations.benchmark.clock import Timing, Work, alternate, ratio, threads
from simulations.benchmark.rows import Row
from simulations.unprotected import FreeGrant

SUBJECTS, TOKENS, ITEMS = 64, 64, 800
RATE, CLIP, NOISE = 0.01, 1.0, 1.0
LEAST, AIM = 1.10, 1.02
VARIANT_NAMES = {"ffa": "FFA", "plain": "plain LoRA"}


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch of texts, one a subject.

    Attributes:
        ids: int64 (B, T), no padding.
        mask: int64 (B, T), ones.
        target: int64 (B).
        vectors: float32 (n, d), what the pooled text is scored against.
    """

    ids: Tensor
    mask: Tensor
    target: Tensor
    vectors: Tensor


def random_batch(backbone: Backbone, *, subjects: int = SUBJECTS, tokens: int = TOKENS) -> Batch:
    """Random tokens and targets; their values change no timing."""
    draw = torch.Generator().manual_seed(1)
    words = int(backbone.model.config.vocab_size)  # type: ignore[union-attr, arg-type]
    vectors = torch.randn(ITEMS, backbone.width, generator=draw)
    return Batch(
        ids=torch.randint(words // 30, words, (subjects, tokens), generator=draw),
        mask=torch.ones(subjects, tokens, dtype=torch.long),
        target=torch.randint(0, ITEMS, (subjects,), generator=draw),
        vectors=F.normalize(vectors, dim=-1),
    )


def step_rows(backbone: Backbone, *, turns: int, quick: bool = False) -> list[Row]:
    """One row a LoRA variant and number of threads; `quick`: the first one, on a small batch."""
    rows = []
    subjects = SUBJECTS // 4 if quick else SUBJECTS
    cases = [(1, "ffa"), (1, "plain"), (os.cpu_count() or 1, "ffa"), (os.cpu_count() or 1, "plain")]
    for count, variant in cases[:1] if quick else dict.fromkeys(cases):
        with threads(count):
            steps = variants(backbone, variant, random_batch(backbone, subjects=subjects))
            timings = alternate(steps, turns=turns, warm=1)
        what = f"{subjects} x {TOKENS} tokens, {VARIANT_NAMES[variant]}, {_threads(count)}"
        rows.append(_row(what, timings))
    return rows


def variants(backbone: Backbone, variant: str, batch: Batch) -> dict[str, Work]:
    """The same step four times: not private, ours, Opacus hooks, Opacus functorch."""
    plan = RecommenderPlan(
        variant=variant,  # type: ignore[arg-type]
        r=8,
        target_modules="query,value",
        top_layers=backbone.layers,
    )
    return {
        "plain": plain_step(_top(backbone, plan), backbone, batch),
        "confed": confed_step(_top(backbone, plan), backbone, batch),
        "hooks": opacus_step(_top(backbone, plan), backbone, batch, functorch=False),
        "functorch": opacus_step(_top(backbone, plan), backbone, batch, functorch=True),
    }


def plain_step(top: nn.Module, backbone: Backbone, batch: Batch) -> Work:
    """Ordinary training: mean loss, SGD."""
    optimizer = torch.optim.SGD(_trainable(top), lr=RATE)

    def work() -> None:
        optimizer.zero_grad()
        (_loss_sum(top, backbone, batch) / len(batch.ids)).backward()
        optimizer.step()

    return work


def confed_step(top: nn.Module, backbone: Backbone, batch: Batch) -> Work:
    """Confed's: per-subject gradients, clip, secure noise."""
    subjects = len(batch.ids)
    for layer in convert(top):
        layer.grouping = Grouping(owner=torch.arange(subjects), subjects=subjects)
    optimizer = SubjectDPOptimizer(
        torch.optim.SGD(_trainable(top), lr=RATE),
        grant=FreeGrant(SecureRandomness(), noise_multiplier=NOISE),
        max_grad_norm=CLIP,
        expected_batch_size=subjects,
    )

    def work() -> None:
        optimizer.begin()
        _loss_sum(top, backbone, batch).backward()
        optimizer.accumulate()
        optimizer.finish()

    return work


def opacus_step(top: nn.Module, backbone: Backbone, batch: Batch, *, functorch: bool) -> Work:
    """Opacus as it comes, with torch's noise (its secure mode cannot be installed)."""
    wrapped = GradSampleModule(top, loss_reduction="sum", force_functorch=functorch)
    optimizer = DPOptimizer(
        torch.optim.SGD(_trainable(top), lr=RATE),
        noise_multiplier=NOISE,
        max_grad_norm=CLIP,
        expected_batch_size=len(batch.ids),
        loss_reduction="sum",
    )
    backward = quietly(lambda: _loss_sum(wrapped, backbone, batch).backward())

    def work() -> None:
        optimizer.zero_grad()
        backward()
        optimizer.step()

    return work


def quietly(work: Callable[[], object]) -> Work:
    """Without torch's remark that the input of a full backward hook needs no gradient."""

    def silent() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            work()

    return silent


def _loss_sum(top: nn.Module, backbone: Backbone, batch: Batch) -> Tensor:
    embeddings = backbone.model.embeddings
    hidden = embeddings(input_ids=batch.ids)  # type: ignore[operator]
    scores = top(hidden, batch.mask) @ batch.vectors.T
    return F.cross_entropy(scores, batch.target, reduction="sum")


def _top(backbone: Backbone, plan: RecommenderPlan) -> TextTop:
    return TextTop(backbone, plan).train()


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _row(what: str, timings: dict[str, Timing]) -> Row:
    base = timings["plain"]
    over = {name: round(ratio(t, base), 4) for name, t in timings.items() if name != "plain"}
    return Row(
        name=f"DP step over the non-private step, MiniLM, {what}",
        measured=over["confed"],
        unit="x",
        comparison=f"Opacus hooks {over['hooks']:.2f} x, functorch {over['functorch']:.2f} x",
        least=LEAST,
        aim=AIM,
        detail={name: t.plain() for name, t in timings.items()} | {"ratios": over},
    )
