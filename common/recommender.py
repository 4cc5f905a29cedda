"""The recommender: score(subject, item) = <u, e_i> + b_i, with u from text and from history.

u = text_scale * gate * text(history in words) + history_scale * (mixer + map + borrow)(views).
Everything trainable starts at zero, so training starts at the zero-shot ranking.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from common.backbone import Backbone
from common.errors import ConfigError, ModelError
from common.plan import RecommenderPlan
from common.windows import VIEWS

KINDS = ("text", "gate", "mixer", "map", "borrow", "bias")
"""Parts of the adapter; the first word of a tensor's name says which one it belongs to."""


class ItemBias(nn.Module):
    """One number an item, added to its score.

    Attributes:
        weight: float32 (n).
    """

    def __init__(self, items: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(items))

    def forward(self, scores: Tensor, candidates: Tensor) -> Tensor:
        """Add the bias of `candidates` (c) to scores (R, c)."""
        return scores + self.weight[candidates]


class TextGate(nn.Module):
    """How much a domain's subjects are told by their text: 1 + weight times the text vector.

    Attributes:
        weight: float32 (1).
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, text: Tensor) -> Tensor:
        """Scale text vectors (R, d)."""
        return text * (1 + self.weight)


class ViewMixer(nn.Module):
    """A diagonal map of the history's views: what "similar to what you had" is worth.

    It speaks of no item and of no catalog, so every domain can use what another one learnt.

    Attributes:
        weight: float32 (3, d).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(VIEWS, width))

    def forward(self, views: Tensor) -> Tensor:
        """Views (R, 3d) to (R, d)."""
        return (views.view(len(views), VIEWS, -1) * self.weight).sum(1)


class BorrowGates(nn.Module):
    """What other domains' history maps are worth here: one number a domain, zero at the start.

    A released map is public, so reading it costs no privacy; a domain that cannot use another's
    map keeps its gate near zero and loses nothing.

    Attributes:
        weight: float32 (k, 1).
        maps: float32 (k, d, 3d), the maps of the k other domains, in the order of their names.
    """

    maps: Tensor

    def __init__(self, others: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(others, 1))
        self.register_buffer("maps", torch.zeros(others, width, VIEWS * width), persistent=False)

    def told(self, views: Tensor) -> Tensor:
        """What each other domain's map makes of the views: (R, 3d) to (R, k, d)."""
        return torch.einsum("ri,koi->rko", views, self.maps)

    def forward(self, views: Tensor) -> Tensor:
        """Views (R, 3d) to (R, d)."""
        return (self.told(views) * self.weight).sum(1)


class TextTop(nn.Module):
    """The trainable top of the backbone: the last layers with LoRA, then the pooling.

    Args:
        backbone: the frozen model; its weights are shared, not copied.
        plan: rank, alpha, targets, number of layers, variant, public seed of A.
    """

    def __init__(self, backbone: Backbone, plan: RecommenderPlan) -> None:
        super().__init__()
        # PEFT stays unwrapped, so that parameter names are those of the backbone.
        self.layers = backbone.top(plan.top_layers, tokens=plan.text_tokens)
        self._pool = backbone.pool
        _inject_lora(self.layers, plan)

    @property
    def device(self) -> torch.device:
        """Where the layers lie."""
        return next(self.layers.parameters()).device

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """(R, T, d) input of the first trainable layer and (R, T) mask to unit vectors (R, d).

        Taken from and given back to the CPU, wherever the layers lie.
        """
        hidden, mask = hidden.to(self.device), mask.to(self.device)
        out = self.layers(inputs_embeds=hidden, attention_mask=mask)
        return self._pool(out.last_hidden_state.float(), mask).cpu()


class Recommender(nn.Module):
    """The adapter of one domain's site on the shared backbone.

    Args:
        plan: what is trained.
        backbone: the frozen model; None leaves the text path frozen (top_layers = 0).
        width: size d of an item vector.
        items: catalog size n.
        domain: names the bias, which sites of other domains do not see.
    """

    def __init__(
        self,
        plan: RecommenderPlan,
        *,
        backbone: Backbone | None,
        width: int,
        items: int,
        domain: str,
    ) -> None:
        super().__init__()
        self.plan = plan
        self.domain = domain
        lora = backbone is not None and trains_text(plan)
        self.text = TextTop(backbone, plan) if backbone is not None and lora else None
        self.gate = TextGate()
        self.mixer = ViewMixer(width)
        self.map = nn.Linear(VIEWS * width, width, bias=False)
        nn.init.zeros_(self.map.weight)
        self.others = other_domains(plan, domain)
        self.borrow = BorrowGates(len(self.others), width) if self.others else None
        self.bias = ItemBias(items)
        trained = trained_parts(plan)
        for name, module in self.named_children():
            if name != "text" and name not in trained:
                module.requires_grad_(False)

    def user(self, text: Tensor, views: Tensor) -> Tensor:
        """U (R, d) from text vectors (R, d) and views of the history (R, 3d)."""
        history: Tensor = self.mixer(views) + self.map(views)
        if self.borrow is not None:
            history = history + self.borrow(views)
        told: Tensor = self.gate(text)
        return self.plan.text_scale * told + self.plan.history_scale * history

    def forward(self, text: Tensor, views: Tensor, vectors: Tensor, candidates: Tensor) -> Tensor:
        """Scores (R, c) of `candidates` (c), whose item vectors are `vectors` (c, d)."""
        scores: Tensor = self.bias(self.user(text, views) @ vectors.T, candidates)
        return scores

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What the adapter holds, by the names that travel, in a fixed order."""
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                yield self.travel_name(name), parameter

    def travel_name(self, name: str) -> str:
        """Name of a parameter on the wire and in an adapter file."""
        kind = kind_of(name)
        if kind == "text":
            return name.replace("text.layers.", "text.").replace(".default.", ".")
        return kind if kind in shared_kinds(self.plan) else f"{kind}.{self.domain}"

    def read_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what `load` needs: what is trained here and the maps borrowed."""
        shapes = {name: tuple(p.shape) for name, p in self.trainable()}
        return shapes | {f"map.{o}": tuple(self.map.weight.shape) for o in self.others}

    def adapter(self) -> dict[str, Tensor]:
        """A detached copy of the trainable tensors, float32 on the CPU."""
        return {name: p.detach().float().cpu().clone() for name, p in self.trainable()}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Set every trainable tensor.

        Raises:
            ModelError: a name is missing or a shape differs; nothing is changed then.
        """
        mine = dict(self.trainable())
        for name, shape in self.read_shapes().items():
            if name not in tensors:
                raise ModelError(f"Expected tensor {name} in the adapter, it is missing.")
            if tuple(tensors[name].shape) != shape:
                raise ModelError(
                    f"Expected {name} of shape {shape}, got {tuple(tensors[name].shape)}."
                )
        for name, parameter in mine.items():
            parameter.copy_(tensors[name])
        if self.borrow is not None:
            for row, other in enumerate(self.others):
                self.borrow.maps[row].copy_(tensors[f"map.{other}"])


def kind_of(name: str) -> str:
    """Which part of the adapter a tensor of that name belongs to, one of KINDS.

    Raises:
        ModelError: to none.
    """
    kind = name.partition(".")[0]
    if kind not in KINDS:
        raise ModelError(f"Expected a tensor of {', '.join(KINDS)}, got {name}.")
    return kind


def is_text(name: str) -> bool:
    """Whether a tensor of that name belongs to LoRA."""
    return kind_of(name) == "text"


def trained_parts(plan: RecommenderPlan) -> frozenset[str]:
    """Parts of the adapter that the plan trains.

    Raises:
        ConfigError: a part that there is not, or none.
    """
    parts = frozenset(part.strip() for part in plan.parts.split(",") if part.strip())
    if not parts or not parts <= set(KINDS):
        raise ConfigError(f"Expected parts among {', '.join(KINDS)}, got {plan.parts!r}.")
    return parts


def domain_sizes(plan: RecommenderPlan) -> dict[str, int]:
    """Declared subjects by domain, as the plan says them.

    Raises:
        ConfigError: an entry that is not NAME:SUBJECTS.
    """
    sizes = {}
    for entry in filter(None, plan.domains.split(",")):
        name, _, size = entry.partition(":")
        if not name or not size.isdecimal():
            raise ConfigError(f"Expected domains as NAME:SUBJECTS, got {plan.domains!r}.")
        sizes[name] = int(size)
    return sizes


def other_domains(plan: RecommenderPlan, domain: str) -> list[str]:
    """Domains whose map a site of `domain` borrows, sorted; none where maps are shared anyway.

    Only from domains with at least as many declared subjects: a map learnt from fewer people is
    mostly noise to the larger domain, and the gate would cost more than it brings.
    """
    trained = trained_parts(plan)
    if plan.share_map or not {"map", "borrow"} <= trained:
        return []
    sizes = domain_sizes(plan)
    own = sizes.get(domain, 0)
    return sorted(name for name, size in sizes.items() if name != domain and size >= own)


def trains_text(plan: RecommenderPlan) -> bool:
    """Whether LoRA is part of the adapter."""
    return "text" in trained_parts(plan) and plan.top_layers > 0


def shared_kinds(plan: RecommenderPlan) -> frozenset[str]:
    """Parts that all domains train together; the others stay among the sites of one domain."""
    chosen = {"text", "mixer"}
    if plan.share_map:
        chosen.add("map")
    if plan.share_bias:
        chosen.add("bias")
    return frozenset(chosen)


def read_by(name: str, domain: str, plan: RecommenderPlan) -> bool:
    """Whether sites of a domain are sent the tensor of that name: what they train and borrow."""
    borrowed = [f"map.{other}" for other in other_domains(plan, domain)]
    return held_by(name, domain, plan) or name in borrowed


def held_by(name: str, domain: str, plan: RecommenderPlan) -> bool:
    """Whether sites of a domain hold the tensor of that name."""
    return kind_of(name) in shared_kinds(plan) or name == f"{kind_of(name)}.{domain}"


def _inject_lora(top: nn.Module, plan: RecommenderPlan) -> None:
    from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415

    targets = [name.strip() for name in plan.target_modules.split(",") if name.strip()]
    config = LoraConfig(
        r=plan.r,
        lora_alpha=plan.lora_alpha,
        target_modules=targets,
        lora_dropout=0.0,
        bias="none",
    )
    try:
        inject_adapter_in_model(config, top)
    except ValueError as error:
        raise ModelError(
            f"Expected linear layers named {plan.target_modules} in the backbone, got none; "
            "set target_modules."
        ) from error
    _seed_lora(top, plan)


def _seed_lora(top: nn.Module, plan: RecommenderPlan) -> None:
    """A from the public seed (the same at every site), B zero; FFA-LoRA freezes A (Sun 2024)."""
    generator = torch.Generator().manual_seed(plan.adapter_seed)
    for name, parameter in sorted(top.named_parameters()):
        if "lora_A" in name:
            bound = math.sqrt(3.0 / parameter.shape[1])
            values = torch.rand(parameter.shape, generator=generator) * 2 * bound - bound
            parameter.data = values.to(device=parameter.device, dtype=torch.float32)
            parameter.requires_grad_(plan.variant == "plain")
        elif "lora_B" in name:
            parameter.data = torch.zeros_like(parameter, dtype=torch.float32)
            parameter.requires_grad_(True)
        else:
            parameter.requires_grad_(False)
