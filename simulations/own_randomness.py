"""SASRec's random numbers from a generator of its own, so that a seed repeats among threads.

Torch has one default generator in a process. Baselines train side by side, and whichever thread
draws next would change what the others get. The network stays Cornac's; only where its initial
weights and its dropout come from is replaced.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

INITIAL_SPREAD = 0.02
"""Standard deviation of Cornac's initial weights."""


class OwnDropout(nn.Module):
    """Dropout that draws from a given generator.

    Args:
        rate: share of the values that are set to 0 while training.
        generator: on the CPU.
    """

    def __init__(self, rate: float, generator: torch.Generator) -> None:
        super().__init__()
        self.rate = rate
        self._generator = generator

    def forward(self, values: Tensor) -> Tensor:
        """Set some values to 0 and scale the others up; the identity when not training."""
        if not self.training or self.rate == 0:
            return values
        kept = torch.empty_like(values).bernoulli_(1 - self.rate, generator=self._generator)
        return values * kept.div_(1 - self.rate)


class OwnAttention(nn.Module):
    """Torch's attention of one head with its own weights and this dropout.

    Args:
        attention: the layer whose weights are used; (T, B, d) in and out.
        dropout: of the attention weights.
    """

    def __init__(self, attention: nn.MultiheadAttention, dropout: OwnDropout) -> None:
        super().__init__()
        self.attention = attention
        self.num_heads = attention.num_heads
        self.dropout = dropout

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, attn_mask: Tensor
    ) -> tuple[Tensor, None]:
        """Attend; `attn_mask` (B, T, T) is added to the logits."""
        weight, bias = self.attention.in_proj_weight, self.attention.in_proj_bias
        parts = zip((query, key, value), weight.chunk(3), bias.chunk(3), strict=True)
        q, k, v = (functional.linear(x, w, b).transpose(0, 1) for x, w, b in parts)
        logits = torch.baddbmm(attn_mask, q / math.sqrt(q.shape[-1]), k.transpose(1, 2))
        told = self.dropout(logits.softmax(-1)) @ v
        return self.attention.out_proj(told.transpose(0, 1)), None


@torch.no_grad()
def own_randomness(network: Any, seed: int) -> None:
    """Draw initial weights anew from `seed`, and let every dropout draw from the same generator.

    The distributions are those that the network came with.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.MultiheadAttention):
            nn.init.xavier_uniform_(module.in_proj_weight, generator=generator)
        elif isinstance(module, nn.Linear | nn.Conv1d | nn.Embedding):
            module.weight.normal_(0, INITIAL_SPREAD, generator=generator)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx] = 0
    _replace(network, generator)


def _replace(parent: nn.Module, generator: torch.Generator) -> None:
    for name, child in parent.named_children():
        if isinstance(child, nn.Dropout):
            setattr(parent, name, OwnDropout(child.p, generator))
        elif isinstance(child, nn.MultiheadAttention):
            setattr(parent, name, OwnAttention(child, OwnDropout(child.dropout, generator)))
        else:
            _replace(child, generator)
