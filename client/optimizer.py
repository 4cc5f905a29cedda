"""Opacus's DPOptimizer with the subject as the unit and noise from a cryptographic stream.

Clipped sum and noise are both rounded to one power-of-two grid and added as integers, so the
support of what leaves does not depend on the data (Mironov 2012; floating-point attack).
"""

import math

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor
from torch.optim import Optimizer

from client.per_subject import GradSample
from common.bounds import NORM_SLACK, largest_batch
from common.errors import OrderError
from common.grant import Grant

GRID_BITS = 30
"""The grid's step is 2**(floor(log2 C) - 30)."""


class SubjectDPOptimizer(DPOptimizer):  # type: ignore[misc]
    """Clips per subject, sums in float64, adds noise once a logical batch.

    Args:
        optimizer: the ordinary optimizer that takes the noisy mean.
        grant: the reserved event's noise, and how much of it.
        max_grad_norm: C, largest length of one subject's gradient over all parameters.
        expected_batch_size: public denominator.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        grant: Grant,
        max_grad_norm: float,
        expected_batch_size: float,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=grant.noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=expected_batch_size,
        )
        self._grant = grant
        self.grid = 2.0 ** (math.floor(math.log2(max_grad_norm)) - GRID_BITS)

    @property
    def sensitivity(self) -> float:
        """Most that one subject moves the rounded sum, in length.

        A newcomer changes the shapes of the float32 products, and so the last digits of everybody.
        """
        size = sum(p.numel() for p in self.params)
        slack = NORM_SLACK * largest_batch(self.expected_batch_size)
        return float(self.max_grad_norm) * (1 + slack) + self.grid * math.sqrt(size)

    def begin(self) -> None:
        """Start a logical batch: forget whatever a batch broken off early left behind."""
        self._step_skip_queue.clear()
        self._is_last_step_skipped = False
        self.zero_grad(set_to_none=True)
        for p in self.params:
            p.grad_sample = None
            p.summed_grad = torch.zeros(p.shape, dtype=torch.float64, device=p.device)

    def accumulate(self) -> None:
        """Clip the subjects of one micro-batch and add them to the logical batch."""
        self._require_begun()
        self.clip_and_accumulate()
        for p in self.params:
            p.grad_sample = None
            p.grad = None

    def finish(self) -> None:
        """Add noise once, divide by the expected batch size and step, subjects or none."""
        self._require_begun()
        self.add_noise()
        self.scale_grad()
        self.original_optimizer.step()
        for p in self.params:
            p.summed_grad = None

    def _require_begun(self) -> None:
        if any(p.summed_grad is None for p in self.params):
            raise OrderError("Expected begin() before a logical batch's other calls.")

    def clip_and_accumulate(self) -> None:
        """Add min(1, C / norm) times each subject's gradient; a non-finite subject adds zero."""
        samples = self.subject_samples()
        squared: Tensor = torch.stack([s.squared_norms().cpu() for s in samples]).sum(0)
        norms = squared.sqrt()
        weights = (self.max_grad_norm / norms.clamp(min=1e-12)).clamp(max=1.0)
        weights = torch.where(torch.isfinite(norms), weights, 0.0)
        for p, sample in zip(self.params, samples, strict=True):
            p.summed_grad += sample.weighted_sum(weights.to(p.device))

    def subject_samples(self) -> list[GradSample]:
        """The stored gradients, one entry a parameter.

        Raises:
            OrderError: a trainable parameter has none; its noise would cover nothing.
        """
        samples = [getattr(p, "grad_sample", None) for p in self.params]
        present: list[GradSample] = [s for s in samples if s is not None]
        if len(present) != len(samples):
            raise OrderError("Expected per-subject gradients of every trainable tensor.")
        return present

    def add_noise(self) -> None:
        """Put (round(sum / grid) + round(noise / grid)) * grid into `p.grad`."""
        scale = self.noise_multiplier * self.sensitivity / self.grid
        for p in self.params:
            # In place: a fresh array of a large adapter costs more than the arithmetic.
            steps = p.summed_grad.div_(self.grid).round_()
            if scale > 0:
                noise = torch.from_numpy(self._grant.noise(p.numel())).mul_(scale).round_()
                steps += noise.view(p.shape).to(p.device)
            p.grad = steps.mul_(self.grid).to(p.dtype)

    def scale_grad(self) -> None:
        """Divide by the public expected batch size, never by the real one."""
        for p in self.params:
            p.grad /= self.expected_batch_size
