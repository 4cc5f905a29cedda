import copy
import stat
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import common.textpath
from common.backbone import Backbone
from common.errors import OrderError
from common.plan import RecommenderPlan
from common.recommender import Recommender, TextTop
from common.textpath import ActivationStore, TextVectors, default_cache
from tests.models import FAMILIES, WIDTH, backbone_of, catalog_of, model_of, noisy, recommender_plan

TEXTS = ["w1 w2; w3", "", "w4", "w1 w2; w3", "w5 w6 w7; w8 w9", "w10; w11 w12"]
ROWS = torch.arange(len(TEXTS))


def made_of(backbone: Backbone, plan: RecommenderPlan, texts: list[str] = TEXTS) -> TextVectors:
    store = ActivationStore()
    made = store.texts(backbone, texts, tokens=plan.text_tokens, top_layers=plan.top_layers)
    centre = store.item_space(backbone, catalog_of(), tokens=plan.item_tokens).centre
    return TextVectors(made, centre)


def merged(backbone: Backbone, model: Recommender, plan: RecommenderPlan) -> Backbone:
    """The whole backbone with W + alpha / r B A written into its last layers."""
    whole = copy.deepcopy(backbone)
    assert model.text is not None
    offset = backbone.layers - plan.top_layers
    for name, module in model.text.layers.named_modules():
        if not hasattr(module, "lora_B"):
            continue
        head, _, rest = name.removeprefix(backbone.path + ".").partition(".")
        target = whole.model.get_submodule(f"{backbone.path}.{int(head) + offset}.{rest}")
        delta = module.lora_B["default"].weight @ module.lora_A["default"].weight
        delta = delta.detach() * plan.lora_alpha / plan.r
        target.weight.data += delta if isinstance(target, nn.Linear) else delta.T
    return whole


def wanted_of(whole: Backbone, texts: TextVectors, plan: RecommenderPlan) -> Tensor:
    out = torch.zeros(len(TEXTS), WIDTH)
    for row, text in enumerate(TEXTS):
        if text:
            pooled = whole.activations([text], tokens=plan.text_tokens, top_layers=0).pooled
            out[row] = nn.functional.normalize(pooled - texts._centre, dim=-1)
    return out


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("variant", ["ffa", "plain"])
@pytest.mark.parametrize("layers", [1, 3])
def test_the_cached_prefix_through_the_top_is_the_full_backbone_with_lora_merged(
    family: str, variant: str, layers: int
) -> None:
    plan = recommender_plan(family, variant=variant, top_layers=layers)
    model, backbone = model_of(plan, family, seed=2), backbone_of(family)
    texts = made_of(backbone, plan)
    wanted = wanted_of(merged(backbone, model, plan), texts, plan)
    plain = wanted_of(backbone, texts, plan)
    assert (wanted - plain).abs().max() > 1e-3
    assert model.text is not None
    texts.adapter_changed(model.text)
    torch.testing.assert_close(texts.frozen(ROWS, model.text), wanted, rtol=0, atol=1e-5)
    trained = texts.trained(ROWS, texts.present(ROWS), model.text)
    torch.testing.assert_close(trained.detach(), wanted, rtol=0, atol=1e-5)
    assert trained.requires_grad


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_of_zero_is_the_frozen_backbone_itself(family: str) -> None:
    plan = recommender_plan(family)
    model, backbone = model_of(plan, family, seed=None), backbone_of(family)
    texts = made_of(backbone, plan)
    texts.adapter_changed(model.text)
    wanted = wanted_of(backbone, texts, plan)
    torch.testing.assert_close(texts.frozen(ROWS, model.text), wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(texts.frozen(ROWS, None), wanted, rtol=0, atol=1e-5)


def test_after_lora_changed_no_vector_is_stale() -> None:
    plan = recommender_plan()
    model = model_of(plan, seed=None)
    texts = made_of(backbone_of("bert"), plan)
    start = model.adapter()
    seen = []
    for adapter in (start, noisy(start, 1), noisy(start, 2), start, noisy(start, 1)):
        model.load(adapter)
        texts.adapter_changed(model.text)
        fresh = made_of(backbone_of("bert"), plan)
        fresh.adapter_changed(model.text)
        half = texts.frozen(ROWS[:3], model.text)
        whole = texts.frozen(ROWS, model.text)
        torch.testing.assert_close(whole, fresh.frozen(ROWS, model.text), rtol=0, atol=1e-6)
        torch.testing.assert_close(whole[:3], half, rtol=0, atol=0)
        seen.append(whole)
    assert not torch.allclose(seen[0], seen[1])
    assert not torch.allclose(seen[1], seen[2])
    torch.testing.assert_close(seen[3], seen[0])
    torch.testing.assert_close(seen[4], seen[1])


def test_a_change_of_a_alone_is_seen_where_both_sides_are_trained() -> None:
    plan = recommender_plan(variant="plain")
    model = model_of(plan, seed=3)
    texts = made_of(backbone_of("bert"), plan)
    texts.adapter_changed(model.text)
    before = texts.frozen(ROWS, model.text)
    model.load({k: v * (3 if "lora_A" in k else 1) for k, v in model.adapter().items()})
    texts.adapter_changed(model.text)
    assert not torch.allclose(texts.frozen(ROWS, model.text), before)


def test_vectors_have_unit_length_and_an_empty_text_says_nothing() -> None:
    plan = recommender_plan()
    texts = made_of(backbone_of("bert"), plan)
    vectors = texts.frozen(ROWS, None)
    assert vectors.norm(dim=1).tolist() == pytest.approx([1, 0, 1, 1, 1, 1])
    assert texts.present(ROWS).tolist() == [0, 2, 3, 4, 5]
    assert torch.equal(vectors[0], vectors[3])


def test_only_empty_texts_give_zeros_everywhere() -> None:
    plan = recommender_plan()
    model = model_of(plan, seed=1)
    texts = made_of(backbone_of("bert"), plan, ["", ""])
    texts.adapter_changed(model.text)
    rows = torch.arange(2)
    assert isinstance(model.text, TextTop)
    assert not texts.frozen(rows, model.text).any()
    assert not texts.trained(rows, texts.present(rows), model.text).any()


def test_equal_texts_are_held_once_and_texts_come_back_in_their_rows() -> None:
    made = ActivationStore().texts(backbone_of("bert"), TEXTS, tokens=16, top_layers=1)
    assert made.row[0] == made.row[3]
    assert made.row[1] == -1
    assert len(made.pooled) == 4
    assert made.hidden is not None
    assert len(made.hidden) == made.offsets[-1]
    for row in (0, 2, 4):
        alone = backbone_of("bert").activations([TEXTS[row]], tokens=16, top_layers=1)
        start, end = made.offsets[made.row[row] : made.row[row] + 2].tolist()
        torch.testing.assert_close(made.hidden[start:end], alone.hidden[0], rtol=1e-4, atol=1e-5)


def test_more_texts_than_a_batch_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"w{i} w{(3 * i) % 50}" for i in range(25)] + ["w1"] * 3
    whole = ActivationStore().texts(backbone_of("bert"), texts, tokens=16, top_layers=1)
    monkeypatch.setattr(common.textpath, "BATCH", 4)
    parts = ActivationStore().texts(backbone_of("bert"), texts, tokens=16, top_layers=1)
    assert torch.equal(parts.row, whole.row)
    assert torch.equal(parts.offsets, whole.offsets)
    torch.testing.assert_close(parts.pooled, whole.pooled, rtol=1e-4, atol=1e-5)


def test_training_without_cached_hidden_states_is_refused() -> None:
    plan = recommender_plan()
    model = model_of(plan)
    store = ActivationStore()
    made = store.texts(backbone_of("bert"), TEXTS, tokens=16, top_layers=0)
    texts = TextVectors(made, torch.zeros(WIDTH))
    assert model.text is not None
    with pytest.raises(OrderError, match="top_layers"):
        texts.trained(ROWS, texts.present(ROWS), model.text)


def test_items_stand_around_the_catalogs_mean_with_unit_length() -> None:
    catalog, backbone = catalog_of(), backbone_of("llama")
    space = ActivationStore().item_space(backbone, catalog, tokens=16)
    pooled = torch.cat(
        [backbone.activations([t], tokens=16, top_layers=0).pooled for t in catalog.texts]
    )
    torch.testing.assert_close(space.centre, pooled.mean(0), rtol=1e-4, atol=1e-5)
    wanted = nn.functional.normalize(pooled - pooled.mean(0), dim=-1)
    torch.testing.assert_close(space.vectors, wanted, rtol=1e-3, atol=1e-4)


def counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    done: list[int] = []
    real = Backbone.activations

    def counted(self: Backbone, texts: list[str], **kwargs: int) -> object:
        done.append(len(texts))
        return real(self, texts, **kwargs)

    monkeypatch.setattr(Backbone, "activations", counted)
    return done


def test_a_folder_saves_the_second_run_all_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = counting(monkeypatch)
    store, backbone = ActivationStore(folder=tmp_path / "cache"), backbone_of("bert")
    first = store.texts(backbone, TEXTS, tokens=16, top_layers=2)
    again = store.texts(backbone, TEXTS[::-1], tokens=16, top_layers=2)
    assert done == [4]
    assert torch.equal(again.pooled, first.pooled)
    assert torch.equal(again.row.flip(0), first.row)


@pytest.mark.parametrize("change", ["text", "tokens", "layers", "backbone"])
def test_anything_that_matters_makes_another_entry(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ActivationStore(folder=tmp_path)
    store.texts(backbone_of("bert"), TEXTS, tokens=16, top_layers=2)
    done = counting(monkeypatch)
    store.texts(
        backbone_of("llama" if change == "backbone" else "bert"),
        [*TEXTS[:-1], "w13"] if change == "text" else TEXTS,
        tokens=8 if change == "tokens" else 16,
        top_layers=1 if change == "layers" else 2,
    )
    assert done == [4]


def test_a_torn_file_of_the_cache_is_made_again(tmp_path: Path) -> None:
    store, backbone = ActivationStore(folder=tmp_path), backbone_of("bert")
    first = store.texts(backbone, TEXTS, tokens=16, top_layers=2)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:200])
    again = store.texts(backbone, TEXTS, tokens=16, top_layers=2)
    assert torch.equal(again.pooled, first.pooled)


def test_the_cache_is_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    ActivationStore(folder=folder).texts(backbone_of("bert"), TEXTS, tokens=16, top_layers=1)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [stat.S_IMODE(f.stat().st_mode) for f in folder.iterdir()] == [0o600]


def test_a_store_without_a_folder_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONFED_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    ActivationStore().texts(backbone_of("bert"), TEXTS, tokens=16, top_layers=1)
    assert list(tmp_path.iterdir()) == []
    assert default_cache() == tmp_path


def test_what_was_made_elsewhere_is_found_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = backbone_of("bert")
    everything = [*TEXTS, "w20 w21", "w22"]
    made = ActivationStore().texts(backbone, everything, tokens=16, top_layers=2)
    part = TEXTS[2:]
    view = common.textpath.TextActivations(
        row=made.row[2 : len(TEXTS)], offsets=made.offsets, hidden=made.hidden, pooled=made.pooled
    )
    store = ActivationStore(folder=tmp_path)
    store.keep(backbone, part, view, tokens=16, top_layers=2)
    done = counting(monkeypatch)
    found = store.texts(backbone, part, tokens=16, top_layers=2)
    assert done == []
    wanted = TextVectors(view, torch.zeros(WIDTH)).frozen(torch.arange(4), None)
    assert torch.equal(TextVectors(found, torch.zeros(WIDTH)).frozen(torch.arange(4), None), wanted)
    assert found.hidden is not None
    for row in range(4):
        start, end = found.offsets[found.row[row] : found.row[row] + 2].tolist()
        a, b = made.offsets[view.row[row] : view.row[row] + 2].tolist()
        assert made.hidden is not None
        assert torch.equal(found.hidden[start:end], made.hidden[a:b])
