import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from torch import nn

import common.backbone
from common.backbone import (
    PACKAGED_SHA256,
    Backbone,
    file_sha256,
    load_backbone,
    packaged_folder,
    pick_dtype,
)
from common.errors import ModelError, SecurityRefused
from tests.models import FAMILIES, LAYERS, WIDTH, backbone_of, folder_of, write_backbone

TEXTS = ["w1 w2 w3; w4", "w5", "w6 w7; w8 w9 w10; w11", "w12 w13"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", range(1, LAYERS + 1))
def test_the_top_on_the_cached_prefix_is_the_full_model(family: str, layers: int) -> None:
    backbone = backbone_of(family)
    made = backbone.activations(TEXTS, tokens=16, top_layers=layers)
    assert made.hidden is not None
    assert made.hidden.shape == (len(TEXTS), made.mask.shape[1], WIDTH)
    top = backbone.top(layers)
    with torch.no_grad():
        out = top(inputs_embeds=made.hidden, attention_mask=made.mask).last_hidden_state
    pooled = backbone.pool(out.float(), made.mask)
    torch.testing.assert_close(pooled, made.pooled, rtol=1e-5, atol=1e-6)
    ids, mask = backbone.tokenize(TEXTS, tokens=16)
    with torch.no_grad():
        whole = backbone.model(input_ids=ids, attention_mask=mask).last_hidden_state
    real = mask.bool()
    torch.testing.assert_close(out[real], whole[real], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "changed"),
    [
        ("qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("llama", {"num_key_value_heads": 1, "hidden_act": "gelu"}),
    ],
)
@pytest.mark.parametrize("layers", [1, 2])
def test_layers_that_differ_by_their_number_stay_themselves_in_the_top(
    family: str, changed: dict[str, Any], layers: int, tmp_path: Path
) -> None:
    backbone = load_backbone(str(write_backbone(family, tmp_path, **changed)), dtype="float32")
    made = backbone.activations(TEXTS, tokens=16, top_layers=layers)
    with torch.no_grad():
        out = backbone.top(layers)(inputs_embeds=made.hidden, attention_mask=made.mask)
    pooled = backbone.pool(out.last_hidden_state.float(), made.mask)
    torch.testing.assert_close(pooled, made.pooled, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_alone_and_in_company_says_the_same(family: str) -> None:
    backbone = backbone_of(family)
    together = backbone.activations(TEXTS, tokens=16, top_layers=1)
    for i, text in enumerate(TEXTS):
        alone = backbone.activations([text], tokens=16, top_layers=1)
        torch.testing.assert_close(alone.pooled[0], together.pooled[i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", [0, -1, LAYERS + 1])
def test_a_top_of_no_or_too_many_layers_is_refused(layers: int) -> None:
    with pytest.raises(ModelError, match=f"between 1 and {LAYERS}"):
        backbone_of("bert").top(layers)


def test_the_top_shares_the_frozen_weights_and_leaves_the_whole_model_as_it_was() -> None:
    backbone = backbone_of("llama")
    whole = {id(p) for p in backbone.model.parameters()}
    top = backbone.top(2)
    assert all(id(p) in whole for p in top.parameters())
    assert backbone.layers == LAYERS
    assert backbone.model.embed_tokens is not top.embed_tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_of_a_loaded_backbone_is_trainable_or_random(family: str) -> None:
    backbone = backbone_of(family)
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert not backbone.model.training
    assert all(m.p == 0 for m in backbone.model.modules() if isinstance(m, nn.Dropout))


@pytest.mark.parametrize("family", FAMILIES)
def test_pooled_vectors_have_unit_length_and_ignore_padding(family: str) -> None:
    backbone = backbone_of(family)
    hidden = torch.randn(2, 5, WIDTH)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    pooled = backbone.pool(hidden, mask)
    torch.testing.assert_close(pooled.norm(dim=1), torch.ones(2))
    changed = hidden.clone()
    changed[0, 3:] = 100.0
    torch.testing.assert_close(backbone.pool(changed, mask), pooled)
    wanted = hidden[0, 2] if backbone.pooling == "last" else hidden[0, :3].mean(0)
    torch.testing.assert_close(pooled[0], nn.functional.normalize(wanted, dim=0))


def test_encoders_pool_by_mean_and_decoders_by_the_last_token() -> None:
    assert {f: backbone_of(f).pooling for f in FAMILIES} == {
        "bert": "mean",
        "gpt2": "last",
        "llama": "last",
        "qwen2": "last",
    }


def test_activations_without_trainable_layers_keep_no_hidden_states() -> None:
    assert backbone_of("bert").activations(TEXTS, tokens=16, top_layers=0).hidden is None


def test_long_texts_are_cut_to_the_asked_number_of_tokens() -> None:
    made = backbone_of("gpt2").activations(["w1 " * 50], tokens=9, top_layers=1)
    assert made.mask.shape == (1, 9)


def test_a_folder_is_known_by_the_hash_of_its_weights(tmp_path: Path) -> None:
    folder = folder_of("bert")
    assert backbone_of("bert").digest == file_sha256(folder / "model.safetensors")
    other = load_backbone(str(write_backbone("bert", tmp_path, seed=1)))
    assert other.digest != backbone_of("bert").digest


def test_the_packaged_backbone_has_the_pinned_hash() -> None:
    assert file_sha256(packaged_folder() / "model.safetensors") == PACKAGED_SHA256


@pytest.fixture
def _flipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    copy = tmp_path / "model"
    shutil.copytree(packaged_folder(), copy)
    with (copy / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, 2)
        last = stream.read(1)
        stream.seek(-1, 2)
        stream.write(bytes([last[0] ^ 1]))
    monkeypatch.setattr(common.backbone, "packaged_folder", lambda: copy)
    yield
    shutil.rmtree(copy)


@pytest.mark.usefixtures("_flipped")
def test_packaged_weights_with_one_flipped_bit_are_refused() -> None:
    with pytest.raises(SecurityRefused, match="sha256") as refusal:
        load_backbone()
    assert "\n" not in str(refusal.value)


def test_a_packaged_folder_without_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never fetched from the hub instead: what comes from there has no pinned hash."""
    monkeypatch.setattr(common.backbone, "packaged_folder", lambda: tmp_path / "gone")
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        load_backbone()


def hub_cache(root: Path, name: str) -> None:
    """A model in the hub's cache layout, as an earlier download leaves it."""
    repository = root / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder_of("bert"), repository / "snapshots" / "0123abcd")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")


def test_a_hub_id_is_read_from_the_cache_and_known_by_the_same_hash_as_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub_cache(tmp_path, "tiny/bert")
    for dtype in ("float32", "bfloat16"):
        assert load_backbone("tiny/bert", dtype=dtype).digest == backbone_of("bert").digest
    with pytest.raises(ModelError, match="hub id") as error:
        load_backbone("tiny/none")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["/no/such/folder", "../up", "a b", "", "x/y/z"])
def test_a_name_that_is_neither_folder_nor_hub_id_gets_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError) as error:
        load_backbone(name)
    assert "\n" not in str(error.value)


class _Runs:
    """Touches a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.file,))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_a_folder_with_only_a_pickle_is_refused_unread(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folder_of("bert"), folder)
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(_Runs(tmp_path / "ran")))
    with pytest.raises(SecurityRefused, match="pickle"):
        load_backbone(str(folder))
    assert not (tmp_path / "ran").exists()


def test_code_that_a_model_folder_ships_is_not_run(tmp_path: Path) -> None:
    import json

    folder = tmp_path / "model"
    shutil.copytree(folder_of("bert"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "mine"
    config["auto_map"] = {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ModelError):
        load_backbone(str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("spoil", ["empty", "truncated", "no-config", "config", "no-tokenizer"])
def test_a_folder_that_is_no_model_gets_one_line(spoil: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folder_of("bert"), folder)
    if spoil == "empty":
        shutil.rmtree(folder)
        folder.mkdir()
    elif spoil == "truncated":
        weights = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    elif spoil == "no-config":
        (folder / "config.json").unlink()
    elif spoil == "config":
        (folder / "config.json").write_text('{"model_type": "bert", "hidden_size": "wide"}')
    else:
        for file in folder.glob("tokenizer*"):
            file.unlink()
    with pytest.raises(ModelError) as error:
        load_backbone(str(folder))
    assert "\n" not in str(error.value)
    assert "Expected" in str(error.value)


def test_a_model_without_a_stack_of_layers_is_named(tmp_path: Path) -> None:
    from transformers import T5Config, T5Model

    config = T5Config(vocab_size=40, d_model=16, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(ModelError, match="model type t5"):
        Backbone(T5Model(config), backbone_of("bert").tokenizer, digest="", name="t5")


def test_dtype_is_named_or_refused() -> None:
    assert pick_dtype("float32", "cpu") is torch.float32
    assert pick_dtype("bfloat16", "cpu") is torch.bfloat16
    assert pick_dtype("auto", "cpu") in {torch.float32, torch.bfloat16}
    with pytest.raises(ModelError, match="float16"):
        pick_dtype("float16", "cpu")


def test_a_bfloat16_backbone_gives_float32_vectors_near_the_exact_ones() -> None:
    rough = load_backbone(str(folder_of("llama")), dtype="bfloat16")
    assert next(rough.model.parameters()).dtype is torch.bfloat16
    made = rough.activations(TEXTS, tokens=16, top_layers=1)
    exact = backbone_of("llama").activations(TEXTS, tokens=16, top_layers=1)
    assert made.pooled.dtype is torch.float32
    assert ((made.pooled * exact.pooled).sum(1) > 0.99).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_written_out_attention_of_short_texts_says_the_same(family: str) -> None:
    """The kernel that a bfloat16 top takes on a CPU, and the one that every other takes."""
    backbone = backbone_of(family, "bfloat16")
    made = backbone.activations(TEXTS, tokens=16, top_layers=2)
    kind = backbone.model.config._attn_implementation
    with torch.no_grad():
        outs = [
            backbone.top(2, tokens=tokens)(
                inputs_embeds=made.hidden, attention_mask=made.mask
            ).last_hidden_state.float()
            for tokens in (16, None)
        ]
    short, plain = (backbone.pool(out, made.mask) for out in outs)
    assert (short * plain).sum(1).min() > 0.999
    assert backbone.model.config._attn_implementation == kind
