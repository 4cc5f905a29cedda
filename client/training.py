"""DP training at a site: from the adapter of a round to its clipped, noisy update.

The loop, numbered: (1) Poisson sample, (2) micro-batches, (3) per-subject gradients, (4) one clip a
subject, (5) noise once, (6) optimizer step. Sensitive: everything but the update.
"""

from dataclasses import dataclass

import torch
from opacus.grad_sample import prepare_module
from torch import Tensor

from client.optimizer import SubjectDPOptimizer
from client.per_subject import Dense, Grouping, convert, keep
from common.errors import OrderError
from common.grant import Grant
from common.objectives import candidates, draw_negatives, row_losses
from common.recommender import Recommender, is_text
from common.textpath import TextVectors
from common.windows import Windows, history_views


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """What one DP step at this site does, besides the noise and the rate that its grant pays for.

    Attributes:
        max_grad_norm: C.
        expected_batch_size: public denominator, q times the declared number of subjects.
        micro_batch: subjects in memory at once.
    """

    max_grad_norm: float
    expected_batch_size: float
    micro_batch: int


class SiteTrainer:
    """Trains one site's recommender.

    Args:
        model: the site's own twin of the recommender; its layers are converted in place.
        windows: the site's training windows.
        texts: text vectors and cached activations of the same windows.
        vectors: float32 (n, d), item vectors of the catalog.
        mechanism: clip, denominator, memory.
        learning_rate: of the plain SGD step that takes the noisy mean.
    """

    def __init__(
        self,
        *,
        model: Recommender,
        windows: Windows,
        texts: TextVectors,
        vectors: Tensor,
        mechanism: Mechanism,
        learning_rate: float,
    ) -> None:
        self.model = model.train()
        self.text_layers = convert(model.text) if model.text is not None else []
        parts = (model.gate, model.mixer, model.map, model.borrow, model.bias)
        head = [part for part in parts if part is not None]
        self.head_layers = [layer for part in head for layer in convert(part)]
        prepare_module(model, "no_op", wrap_model=False)
        self.windows, self.texts, self.vectors = windows, texts, vectors
        self.mechanism = mechanism
        self.learning_rate = learning_rate
        self._present = torch.ones(windows.subjects, dtype=torch.bool)

    def leave_out(self, subjects: Tensor) -> None:
        """Train without these subjects from the next step on; int64 positions, those opted out."""
        self._present = torch.ones(self.windows.subjects, dtype=torch.bool)
        self._present[subjects] = False

    def update(
        self,
        tensors: dict[str, Tensor],
        *,
        train_text: bool,
        public_seed: int,
        grant: Grant,
    ) -> dict[str, Tensor]:
        """Run every step of the grant from `tensors`; return new minus old, float32 on the CPU.

        Args:
            tensors: the adapter of the round.
            train_text: whether LoRA is trained in this round; else it is frozen and not sent.
            public_seed: draws the public candidate samples.
            grant: pays for the steps, and draws their samples and noise.
        """
        self.model.load(tensors)
        self.texts.adapter_changed(self.model.text)
        chosen = {name: p for name, p in self.model.trainable() if train_text or not is_text(name)}
        before = {name: p.detach().clone() for name, p in chosen.items()}
        optimizer = self._optimizer(list(chosen.values()), grant)
        generator = torch.Generator().manual_seed(public_seed)
        for _ in range(grant.steps):
            sample = torch.from_numpy(grant.sample(self.windows.subjects))  # (1)
            sample = sample[self._present[sample]]
            self._step(optimizer, sample, generator, train_text=train_text)
        return {name: (p.detach() - before[name]).cpu() for name, p in chosen.items()}

    def _optimizer(self, chosen: list[torch.nn.Parameter], grant: Grant) -> SubjectDPOptimizer:
        m = self.mechanism
        return SubjectDPOptimizer(
            torch.optim.SGD(chosen, lr=self.learning_rate),
            grant=grant,
            max_grad_norm=m.max_grad_norm,
            expected_batch_size=m.expected_batch_size,
        )

    def _step(
        self,
        optimizer: SubjectDPOptimizer,
        sample: Tensor,
        generator: torch.Generator,
        *,
        train_text: bool,
    ) -> None:
        negatives = draw_negatives(len(self.vectors), self.model.plan.candidates, generator)
        optimizer.begin()
        size = self.mechanism.micro_batch
        for start in range(0, len(sample), size):  # (2)
            subjects = sample[start : start + size]
            rows, owner = self.windows.rows_of(subjects)
            if len(rows):
                grouping = Grouping(owner=owner, subjects=len(subjects))
                self._backward(rows, grouping, negatives, train_text=train_text)  # (3)
                self._require_covered(optimizer)
                optimizer.accumulate()  # (4)
        optimizer.finish()  # (5) (6)

    def _require_covered(self, optimizer: SubjectDPOptimizer) -> None:
        covered = {id(p) for p in optimizer.params}
        for layer in (*self.text_layers, *self.head_layers):
            stored = getattr(layer.weight, "grad_sample", None) is not None
            if stored and id(layer.weight) not in covered:
                raise OrderError("Expected the optimizer to hold every tensor with a gradient.")

    def _backward(
        self, rows: Tensor, grouping: Grouping, negatives: Tensor | None, *, train_text: bool
    ) -> None:
        if not self.model.training:
            raise OrderError("Expected the model in train mode.")
        chosen = candidates(self.windows.target[rows], len(self.vectors), negatives)
        views = history_views(self.windows.history[rows], self.vectors)
        text = self._text(rows, grouping, train_text=train_text)
        for layer in self.head_layers:
            layer.grouping = grouping
        scores = self.model(text, views, self.vectors[chosen.items], chosen.items)
        losses = row_losses(scores, self.windows.value[rows], chosen, self.model.plan)
        # A subject's windows share one example: each weighs 1 / (number of its windows).
        share = 1.0 / torch.bincount(grouping.owner, minlength=grouping.subjects).clamp(min=1)
        (losses * share[grouping.owner]).sum().backward()

    def _text(self, rows: Tensor, grouping: Grouping, *, train_text: bool) -> Tensor:
        top = self.model.text
        if top is None or not train_text:
            return self.texts.frozen(rows, top)
        present = self.texts.present(rows)
        # LoRA may lie on a GPU; the history path is small and stays on the CPU.
        owner = grouping.owner[present].to(top.device)
        for layer in self.text_layers:
            layer.grouping = Grouping(owner=owner, subjects=grouping.subjects)
            if not len(present):  # nobody has a text: LoRA's gradients are zero, not missing
                keep(
                    layer.weight,
                    Dense(values=layer.weight.new_zeros(grouping.subjects, *layer.weight.shape)),
                )
        return self.texts.trained(rows, present, top)
