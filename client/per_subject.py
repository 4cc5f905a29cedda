"""Per-subject gradients at the price of ordinary ones.

Every trainable layer's backward stores what each subject contributed instead of adding it up. A
subject's rows (its windows, and the tokens in them) become one gradient before any clip.
Sensitive: everything here.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from common.errors import ModelError, OrderError
from common.recommender import BorrowGates, ItemBias, TextGate, ViewMixer


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """Which subject owns which row of the micro-batch.

    Attributes:
        owner: int64 (R), rising subject numbers 0 .. subjects-1.
        subjects: U, subjects in the micro-batch; one may own no row.
    """

    owner: Tensor
    subjects: int

    def __post_init__(self) -> None:
        owner = self.owner
        inside = not len(owner) or (int(owner[0]) >= 0 and int(owner[-1]) < self.subjects)
        if not inside or bool((owner.diff() < 0).any()):
            raise OrderError("Expected the rows of a subject side by side, subjects rising.")


class GradSample(Protocol):
    """The gradients of one parameter, one a subject, in some compact form."""

    def squared_norms(self) -> Tensor:
        """float64 (U), squared length of each subject's gradient, never below the true one."""

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """float64, shape of the parameter: sum of the gradients times weights (U).

        A subject of weight zero contributes exactly zero, whatever its gradient holds.
        """


@dataclass(frozen=True, kw_only=True)
class Dense:
    """One gradient tensor a subject.

    Attributes:
        values: (U, *shape).
        turned: whether values are (U, i, o), the transpose of each gradient.
    """

    values: Tensor
    turned: bool = False

    def squared_norms(self) -> Tensor:
        """As GradSample."""
        return _squared_norms(self.values.flatten(1))

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """As GradSample."""
        kept = _without(self.values.flatten(1).double(), weights)
        total = (weights @ kept).view(self.values.shape[1:])
        return total.T if self.turned else total


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Gradients of a vector of length `size` that are zero outside `index` (c distinct places).

    Attributes:
        values: (U, c).
    """

    values: Tensor
    index: Tensor
    size: int

    def squared_norms(self) -> Tensor:
        """As GradSample."""
        return _squared_norms(self.values)

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """As GradSample."""
        total = torch.zeros(self.size, dtype=torch.float64, device=self.values.device)
        total[self.index] = weights @ _without(self.values.double(), weights)
        return total


ROUNDING = 1e-12
"""Relative error of a ghost norm's float64 terms, n 2**-53 for n up to some 9,000 additions."""


@dataclass(frozen=True, kw_only=True)
class Outer:
    """Gradients that are sums of a few outer products, never written out.

    Subject u's gradient is sum over its rows r of g_r x_r^T, and its squared length is
    sum_{r,s} (g_r . g_s)(x_r . x_s): the ghost norm (Goodfellow 2015; Li et al. 2022), exact up to
    rounding. Rows that cancel would let rounding hide a long gradient behind a short norm, so the
    rounding error's own bound, ROUNDING (sum_r |g_r||x_r|)^2, is added.

    Attributes:
        out: (R, o), gradient at the layer's output.
        into: (R, i), the layer's input.
        grouping: owners of the rows.
    """

    out: Tensor
    into: Tensor
    grouping: Grouping

    def squared_norms(self) -> Tensor:
        """As GradSample."""
        owner = self.grouping.owner
        out, into = self.out.double(), self.into.double()
        length = torch.linalg.vector_norm(out, dim=1) * torch.linalg.vector_norm(into, dim=1)
        none = torch.zeros(self.grouping.subjects, dtype=torch.float64, device=owner.device)
        norms = none.index_add(0, owner, length.square())
        for lag in range(1, int(torch.bincount(owner).max()) if len(owner) else 0):
            # Pairs (r, r + lag) of one subject, whose rows stand together; each counts twice.
            pair = (out[lag:] * out[:-lag]).sum(1) * (into[lag:] * into[:-lag]).sum(1)
            same = owner[lag:] == owner[:-lag]
            norms.index_add_(0, owner[lag:], torch.where(same, 2 * pair, 0.0))
        norms += none.index_add(0, owner, length).square() * ROUNDING
        return norms

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """As GradSample."""
        row_weight = weights[self.grouping.owner]
        left = _without(self.out.double(), row_weight) * row_weight.unsqueeze(1)
        return left.T @ _without(self.into.double(), row_weight)


def _squared_norms(values: Tensor) -> Tensor:
    # Three times faster than the sum of squares, which writes the squares out.
    norms: Tensor = torch.linalg.vector_norm(values.double(), dim=1)
    return norms.square()


def _without(values: Tensor, weights: Tensor) -> Tensor:
    """Rows of weight zero set to zero: 0 * NaN would be NaN."""
    if bool((weights != 0).all()):
        return values
    return torch.where((weights != 0).unsqueeze(1), values, 0.0)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, layer: nn.Module) -> Tensor:
        ctx.save_for_backward(x)
        ctx.layer = layer
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        (grad,) = grads
        (x,) = ctx.saved_tensors
        layer = ctx.layer
        # The layer's own parameter: under checkpointing a saved tensor is another object.
        weight = layer.weight
        keep(weight, _linear_sample(layer.grouping, grad, x))
        return (grad @ weight if ctx.needs_input_grad[0] else None), None, None


def _linear_sample(grouping: Grouping, grad: Tensor, x: Tensor) -> GradSample:
    if len(x) != len(grouping.owner):
        raise ModelError(
            f"Expected a layer's input with one row a window, {len(grouping.owner)}, got {len(x)}; "
            "what mixes rows cannot be told apart by subject."
        )
    if x.dim() == 2:
        # As float64 from here on: norm and sum would each convert them.
        return Outer(out=grad.detach().double(), into=x.detach().double(), grouping=grouping)
    rows, subjects = len(x), grouping.subjects
    left = grad.reshape(rows, -1, grad.shape[-1]).float()
    right = x.reshape(rows, -1, x.shape[-1]).float()
    # The long side last: a product of twice the speed where LoRA's rank is the short side.
    turned = left.shape[-1] > right.shape[-1]
    of_rows = (right.transpose(1, 2) @ left) if turned else (left.transpose(1, 2) @ right)
    if rows == subjects and bool((grouping.owner == torch.arange(rows, device=x.device)).all()):
        return Dense(values=of_rows, turned=turned)
    values = torch.zeros(subjects, *of_rows.shape[1:], device=x.device)
    values.index_add_(0, grouping.owner, of_rows)
    return Dense(values=values, turned=turned)


class PerSubjectLinear(nn.Linear):
    """nn.Linear without bias whose backward stores per-subject gradients."""

    grouping: Grouping

    def forward(self, x: Tensor) -> Tensor:
        """The same values as nn.Linear."""
        if torch.is_grad_enabled() and self.weight.requires_grad:
            out: Tensor = _Linear.apply(x, self.weight, self)
            return out
        return nn.functional.linear(x, self.weight)


class _Bias(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, weight: Tensor, index: Tensor, layer: nn.Module
    ) -> Tensor:
        ctx.layer, ctx.index = layer, index
        return scores + weight[index]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = grads
        grouping: Grouping = ctx.layer.grouping
        values = torch.zeros(grouping.subjects, grad.shape[1], device=grad.device)
        values.index_add_(0, grouping.owner, grad.float())
        weight = ctx.layer.weight
        keep(weight, Columns(values=values, index=ctx.index, size=weight.numel()))
        return grad, None, None, None


class PerSubjectBias(ItemBias):
    """ItemBias whose backward stores per-subject gradients."""

    grouping: Grouping

    def forward(self, scores: Tensor, candidates: Tensor) -> Tensor:
        """The same values as ItemBias."""
        if torch.is_grad_enabled() and self.weight.requires_grad:
            out: Tensor = _Bias.apply(scores, self.weight, candidates, self)
            return out
        return super().forward(scores, candidates)


class _Scale(torch.autograd.Function):
    """x times a weight that broadcasts over it: each weight's gradient is a sum over its share."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, layer: nn.Module) -> Tensor:
        ctx.save_for_backward(x)
        ctx.layer = layer
        return x * weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        (grad,) = grads
        (x,) = ctx.saved_tensors
        grouping: Grouping = ctx.layer.grouping
        weight = ctx.layer.weight
        rows = (grad * x).float()
        wide = [1 + i for i, size in enumerate(weight.shape) if size == 1 and rows.shape[1 + i] > 1]
        rows = rows.sum(wide, keepdim=True) if wide else rows
        values = torch.zeros(grouping.subjects, *weight.shape, device=grad.device)
        values.index_add_(0, grouping.owner, rows)
        keep(weight, Dense(values=values))
        return (grad * weight if ctx.needs_input_grad[0] else None), None, None


class PerSubjectGate(TextGate):
    """TextGate whose backward stores per-subject gradients."""

    grouping: Grouping

    def forward(self, text: Tensor) -> Tensor:
        """The same values as TextGate."""
        if torch.is_grad_enabled() and self.weight.requires_grad:
            scaled: Tensor = _Scale.apply(text, self.weight, self)
            return text + scaled
        return super().forward(text)


class PerSubjectMixer(ViewMixer):
    """ViewMixer whose backward stores per-subject gradients."""

    grouping: Grouping

    def forward(self, views: Tensor) -> Tensor:
        """The same values as ViewMixer."""
        if torch.is_grad_enabled() and self.weight.requires_grad:
            split = views.view(len(views), *self.weight.shape)
            scaled: Tensor = _Scale.apply(split, self.weight, self)
            return scaled.sum(1)
        return super().forward(views)


def keep(parameter: Tensor, sample: GradSample) -> None:
    """Store one backward's gradients at the parameter.

    Raises:
        OrderError: the parameter was used twice in one backward pass, which the norm cannot see.
    """
    if getattr(parameter, "grad_sample", None) is not None:
        raise OrderError("Expected one use of a trainable layer in a backward pass, got two.")
    parameter.grad_sample = sample  # type: ignore[attr-defined]


class PerSubjectBorrow(BorrowGates):
    """BorrowGates whose backward stores per-subject gradients."""

    grouping: Grouping

    def forward(self, views: Tensor) -> Tensor:
        """The same values as BorrowGates."""
        if torch.is_grad_enabled() and self.weight.requires_grad:
            scaled: Tensor = _Scale.apply(self.told(views), self.weight, self)
            return scaled.sum(1)
        return super().forward(views)


PerSubjectLayer = (
    PerSubjectLinear | PerSubjectBias | PerSubjectGate | PerSubjectMixer | PerSubjectBorrow
)
_PER_SUBJECT: dict[type, type[PerSubjectLayer]] = {
    ItemBias: PerSubjectBias,
    TextGate: PerSubjectGate,
    ViewMixer: PerSubjectMixer,
    BorrowGates: PerSubjectBorrow,
}


def convert(model: nn.Module) -> list[PerSubjectLayer]:
    """Make every trainable layer of `model` store per-subject gradients, in place.

    Raises:
        ModelError: a trainable layer is of a kind whose per-subject gradient is not known here, or
            any layer, trainable or not, couples subjects (batch norm) or draws dropout.
    """
    layers: list[PerSubjectLayer] = []
    for name, module in model.named_modules():
        _require_apart(name, module)
        if not any(p.requires_grad for p in module.parameters(recurse=False)):
            continue
        if isinstance(module, nn.Linear) and module.bias is None:
            module.__class__ = PerSubjectLinear
        elif type(module) in _PER_SUBJECT:
            module.__class__ = _PER_SUBJECT[type(module)]
        else:
            kind = type(module).__name__
            raise ModelError(
                f"Expected trainable layers to be linear without bias, got {kind} at {name}; "
                "its gradient cannot be told apart by subject."
            )
        layers.append(module)
    return layers


def _require_apart(name: str, module: nn.Module) -> None:
    if isinstance(module, _BatchNorm):
        raise ModelError(
            f"Expected layers that treat each subject alone, got {type(module).__name__} at {name}."
        )
    rates = {"p": getattr(module, "p", 0.0)} if isinstance(module, _DropoutNd) else vars(module)
    for key, rate in rates.items():
        named = key == "p" or "dropout" in key
        if named and isinstance(rate, float) and rate > 0:
            kind = type(module).__name__
            raise ModelError(f"Expected dropout of 0, got {rate:g} in {kind} at {name}.")
