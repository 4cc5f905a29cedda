"""Tiny random backbones and small made-up records, the same for every test that trains."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor

from client.site import SiteRecords
from client.training import Mechanism, SiteTrainer
from common.backbone import Backbone, load_backbone
from common.catalog import Catalog
from common.interactions import Interactions, from_rows
from common.plan import FederationPlan, PrivacyPlan, RecommenderPlan, RunPlan
from common.randomness import Randomness, SecureRandomness
from common.recommender import Recommender
from common.textpath import ActivationStore, TextVectors
from common.windows import Windows, history_texts, training_windows
from simulations.sites import SIMULATED
from simulations.unprotected import FreeGrant

FAMILIES = ("bert", "gpt2", "llama", "qwen2")
TARGETS = {
    "bert": "query,value",
    "gpt2": "c_attn",
    "llama": "q_proj,v_proj",
    "qwen2": "q_proj,down_proj",
}
LAYERS, WIDTH, WORDS, VOCABULARY = 3, 32, 60, 330


def write_backbone(family: str, folder: Path, *, seed: int = 0, **changed: Any) -> Path:
    """A random model of `family` with its tokenizer, in the layout that the hub uses."""
    from transformers import AutoModel, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    model = AutoModel.from_config(_config(family, **changed))
    model.save_pretrained(folder, safe_serialization=True)
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[UNK]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=_tokenizer(), **special)
    fast.save_pretrained(folder)
    return folder


def _tokenizer() -> Tokenizer:
    """Byte-level pairs, because that is what every decoder's own loader understands."""
    tokenizer = Tokenizer(BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["[PAD]", "[UNK]"],
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(f"w{i};" for i in range(WORDS))], trainer)
    return tokenizer


def _config(family: str, **changed: Any) -> Any:
    from transformers import BertConfig, GPT2Config, LlamaConfig, Qwen2Config

    size = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    if family == "gpt2":
        wide = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "n_positions": 64}
        return GPT2Config(**{**size, **wide, "initializer_range": 0.2, **changed})
    wide = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
    }
    if family == "bert":
        return BertConfig(**{**size, **wide, **changed})
    kind = {"llama": LlamaConfig, "qwen2": Qwen2Config}[family]
    return kind(**{**size, **wide, "num_key_value_heads": 2, **changed})


@cache
def folder_of(family: str) -> Path:
    """The one tiny backbone of a family in this process."""
    root = Path(tempfile.mkdtemp(prefix="confed-test-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return write_backbone(family, root / family)


@cache
def backbone_of(family: str, dtype: str = "float32") -> Backbone:
    return load_backbone(str(folder_of(family)), dtype=dtype)


def recommender_plan(family: str = "bert", **changed: Any) -> RecommenderPlan:
    plain: dict[str, Any] = {
        "backbone": str(folder_of(family)),
        "dtype": "float32",
        "r": 2,
        "lora_alpha": 4.0,
        "target_modules": TARGETS[family],
        "top_layers": 2,
        "windows": 3,
        "text_items": 3,
        "text_tokens": 16,
        "item_tokens": 12,
        "history_items": 4,
    }
    return RecommenderPlan(**{**plain, **changed})


def run_plan(
    *,
    recommender: dict[str, Any] | None = None,
    privacy: dict[str, Any] | None = None,
    federation: dict[str, Any] | None = None,
) -> RunPlan:
    """A private run of two rounds on the tiny BERT, LoRA trained in both."""
    return RunPlan(
        recommender=recommender_plan(**(recommender or {})),
        privacy=PrivacyPlan(**{"noise_multiplier": 1.0, "sample_rate": 0.5, **(privacy or {})}),
        federation=FederationPlan(
            **{"rounds": 2, "text_rounds": 2, "micro_batch": 16, "shrink": "", **(federation or {})}
        ),
    )


def catalog_of(items: int = 24, *, domain: str = "care") -> Catalog:
    """Items with different texts of different lengths."""
    draw = np.random.default_rng(len(domain) + 7 * items)
    titles = [
        " ".join(f"w{w}" for w in draw.integers(0, WORDS, 1 + i % 4)) + f" w{i % WORDS}"
        for i in range(items)
    ]
    return Catalog(
        domain=domain,
        item_ids=tuple(f"i{i}" for i in range(items)),
        titles=tuple(titles),
        texts=tuple(f"{title} w{(7 * i) % WORDS}" for i, title in enumerate(titles)),
        categories=("",) * items,
    )


def records_of(
    lengths: list[int] | tuple[int, ...],
    *,
    items: int = 24,
    seed: int = 0,
    first: int = 0,
) -> Interactions:
    """One subject a length, each with that many distinct items and ratings from 1 to 5."""
    columns: list[tuple[int, int, float, int]] = []
    for subject, length in enumerate(lengths):
        draw = np.random.default_rng([seed, first + subject])
        chosen = draw.permutation(items)[:length]
        columns += [(subject, int(i), float(draw.integers(1, 6)), t) for t, i in enumerate(chosen)]
    subjects, chosen_items, values, times = (np.array(c) for c in zip(*columns, strict=True))
    return from_rows(
        tuple(f"subject-{first + i}" for i in range(len(lengths))),
        subjects=subjects.astype(np.int64),
        items=chosen_items.astype(np.int64),
        values=values.astype(np.float64),
        times=times.astype(np.int64),
    )


def site_of(
    name: str = "north", *, domain: str = "care", subjects: int = 30, items: int = 24, seed: int = 0
) -> SiteRecords:
    lengths = [1 + (i + seed) % 6 for i in range(subjects)]
    return SiteRecords(
        name=name,
        domain=domain,
        catalog=catalog_of(items, domain=domain),
        interactions=records_of(lengths, items=items, seed=seed),
        declared_subjects=subjects,
        caps=SIMULATED,
    )


def mechanism_of(**changed: Any) -> Mechanism:
    """No division: without noise, the released step is the clipped sum itself."""
    plain: dict[str, Any] = {
        "max_grad_norm": 1.0,
        "expected_batch_size": 1.0,
        "micro_batch": 1000,
    }
    return Mechanism(**{**plain, **changed})


def model_of(
    plan: RecommenderPlan, family: str = "bert", *, items: int = 24, seed: int | None = 0
) -> Recommender:
    """A recommender whose every trainable tensor is off zero; `seed` None leaves the start."""
    backbone = backbone_of(family, plan.dtype)
    model = Recommender(plan, backbone=backbone, width=backbone.width, items=items, domain="care")
    if seed is not None:
        model.load(filled(model, seed))
    return model


def filled(model: Recommender, seed: int) -> dict[str, Tensor]:
    """What the model reads, off zero: its own tensors and the maps that it borrows."""
    borrowed = {n: torch.zeros(s) for n, s in model.read_shapes().items()}
    return noisy({**borrowed, **model.adapter()}, seed)


def noisy(adapter: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {k: v + 0.1 * torch.randn(v.shape, generator=draw) for k, v in adapter.items()}


def trainer_of(
    records: Interactions,
    plan: RecommenderPlan | None = None,
    family: str = "bert",
    *,
    items: int = 24,
    mechanism: Mechanism | None = None,
    learning_rate: float = 1.0,
) -> SiteTrainer:
    plan = plan if plan is not None else recommender_plan(family)
    backbone, catalog = backbone_of(family, plan.dtype), catalog_of(items)
    windows = training_windows(records, windows=plan.windows, history_items=plan.history_items)
    return SiteTrainer(
        model=model_of(plan, family, items=items),
        windows=windows,
        texts=texts_of(windows, plan, family, items=items),
        vectors=ActivationStore().item_space(backbone, catalog, tokens=plan.item_tokens).vectors,
        mechanism=mechanism if mechanism is not None else mechanism_of(),
        learning_rate=learning_rate,
    )


def texts_of(
    windows: Windows, plan: RecommenderPlan, family: str = "bert", *, items: int = 24
) -> TextVectors:
    store, catalog = ActivationStore(), catalog_of(items)
    backbone = backbone_of(family, plan.dtype)
    texts = history_texts(windows.history, catalog, items=plan.text_items)
    made = store.texts(backbone, texts, tokens=plan.text_tokens, top_layers=plan.top_layers)
    return TextVectors(made, store.item_space(backbone, catalog, tokens=plan.item_tokens).centre)


def released_sum(trainer: SiteTrainer, *, train_text: bool = True, seed: int = 3) -> Tensor:
    """The clipped sum of one step over all subjects, flat: minus the step of rate 1."""
    adapter = trainer.model.adapter()
    trainer.update(
        adapter, train_text=train_text, public_seed=seed, grant=FreeGrant(SecureRandomness())
    )
    trainer.model.load(adapter)
    names = sorted(n for n, p in trainer.model.trainable() if p.grad is not None)
    grads = dict(trainer.model.trainable())
    return torch.cat([grads[n].grad.flatten().double() for n in names])


def update_of(
    trainer: SiteTrainer,
    *,
    train_text: bool = True,
    randomness: Randomness | None = None,
    **granted: Any,
) -> dict[str, Tensor]:
    """One round from the same start; `granted` is noise_multiplier, sample_rate and steps."""
    source = SecureRandomness() if randomness is None else randomness
    start = model_of(trainer.model.plan, items=len(trainer.vectors)).adapter()
    return trainer.update(
        start, train_text=train_text, public_seed=3, grant=FreeGrant(source, **granted)
    )
