import itertools

import pytest
import torch
from torch import Tensor, nn

from common.errors import ConfigError, ModelError
from common.recommender import (
    KINDS,
    ItemBias,
    Recommender,
    held_by,
    is_text,
    kind_of,
    other_domains,
    read_by,
    trained_parts,
)
from common.windows import VIEWS
from tests.models import FAMILIES, WIDTH, backbone_of, model_of, noisy, recommender_plan

ITEMS = 24


def inputs(rows: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    text = nn.functional.normalize(torch.randn(rows, WIDTH, generator=draw), dim=1)
    views = torch.randn(rows, VIEWS * WIDTH, generator=draw)
    vectors = nn.functional.normalize(torch.randn(ITEMS, WIDTH, generator=draw), dim=1)
    return text, views, vectors, torch.arange(ITEMS)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_starts_at_the_zero_shot_ranking(family: str) -> None:
    plan = recommender_plan(family)
    text, views, vectors, all_items = inputs()
    scores = model_of(plan, family, seed=None)(text, views, vectors, all_items)
    torch.testing.assert_close(scores, plan.text_scale * text @ vectors.T)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("variant", ["ffa", "plain"])
def test_the_adapter_holds_every_trainable_tensor_and_no_frozen_one(
    family: str, variant: str
) -> None:
    plan = recommender_plan(family, variant=variant, domains="bank:9,care:9")
    model = model_of(plan, family)
    adapter = model.adapter()
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(v.numel() for v in adapter.values()) == count
    assert {kind_of(name) for name in adapter} == set(KINDS)
    assert any("lora_A" in name for name in adapter) == (variant == "plain")
    assert not any("base_layer" in name or "default" in name for name in adapter)
    assert all(v.dtype is torch.float32 for v in adapter.values())


def test_a_is_drawn_from_the_public_seed_alike_at_every_site_and_b_is_zero() -> None:
    def lora(seed: int, side: str) -> list[Tensor]:
        torch.manual_seed(torch.seed() % 1000)
        model = model_of(recommender_plan(adapter_seed=seed), seed=None)
        return [p.detach() for n, p in model.named_parameters() if f"lora_{side}" in n]

    one, two, other = lora(1, "A"), lora(1, "A"), lora(2, "A")
    assert len(one) == 4  # two layers, query and value
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(one))
    assert not any(b.any() for b in lora(1, "B"))


def test_an_adapter_goes_back_in_as_it_came_out() -> None:
    model, other = model_of(recommender_plan(), seed=4), model_of(recommender_plan(), seed=None)
    other.load(model.adapter())
    for name, value in model.adapter().items():
        assert torch.equal(other.adapter()[name], value)
    text, views, vectors, all_items = inputs()
    assert torch.equal(
        other(text, views, vectors, all_items), model(text, views, vectors, all_items)
    )


@pytest.mark.parametrize("change", ["missing", "shape", "broadcast"])
def test_an_adapter_that_does_not_fit_changes_nothing(change: str) -> None:
    model = model_of(recommender_plan(), seed=1)
    before = model.adapter()
    tensors = noisy(model.adapter(), 2)
    last = list(tensors)[-1]
    if change == "missing":
        del tensors[last]
    else:
        tensors[last] = tensors[last][:-1] if change == "shape" else torch.zeros(1)
    with pytest.raises(ModelError, match=last):
        model.load(tensors)
    assert all(torch.equal(v, before[k]) for k, v in model.adapter().items())


def test_a_copy_of_the_adapter_does_not_follow_the_model() -> None:
    model = model_of(recommender_plan(), seed=1)
    kept = model.adapter()
    copies = {k: v.clone() for k, v in kept.items()}
    model.load(noisy(kept, 3))
    assert all(torch.equal(v, copies[k]) for k, v in kept.items())


def test_the_bias_is_added_to_the_columns_asked_for() -> None:
    bias = ItemBias(4)
    bias.weight.data = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert bias(torch.zeros(1, 2), torch.tensor([3, 0])).tolist() == [[4.0, 1.0]]


def test_scores_of_some_columns_are_those_of_the_whole_catalog() -> None:
    model = model_of(recommender_plan(), seed=5)
    text, views, vectors, all_items = inputs()
    columns = torch.tensor([7, 0, 20])
    torch.testing.assert_close(
        model(text, views, vectors[columns], columns),
        model(text, views, vectors, all_items)[:, columns],
    )


@pytest.mark.parametrize(
    ("shared", "travels"),
    [
        ({}, {"gate.care", "mixer", "map.care", "bias.care"}),
        ({"share_map": True}, {"gate.care", "mixer", "map", "bias.care"}),
        ({"share_map": True, "share_bias": True}, {"gate.care", "mixer", "map", "bias"}),
    ],
)
def test_what_a_domain_keeps_to_itself_carries_its_name(
    shared: dict[str, bool], travels: set[str]
) -> None:
    plan = recommender_plan(**shared)
    names = set(model_of(plan).adapter())
    assert {name for name in names if not is_text(name)} == travels
    for name in names:
        assert held_by(name, "care", plan)
        assert held_by(name, "bank", plan) == (".care" not in name)


def test_a_domain_reads_the_maps_of_the_others_and_trains_its_own() -> None:
    plan = recommender_plan(domains="bank:9,care:9,shop:9")
    assert other_domains(plan, "care") == ["bank", "shop"]
    model = model_of(plan)
    shapes = model.read_shapes()
    assert set(shapes) - set(model.adapter()) == {"map.bank", "map.shop"}
    assert {n for n in ("map.bank", "bias.bank", "gate.bank") if read_by(n, "care", plan)} == {
        "map.bank"
    }
    for alone in ({"domains": "care:9"}, {"share_map": True}, {"parts": "map,bias"}):
        assert not other_domains(plan.model_copy(update=alone), "care")


def test_a_domain_borrows_from_those_with_as_many_declared_subjects_only() -> None:
    plan = recommender_plan(domains="bank:40,care:90,shop:90")
    assert other_domains(plan, "bank") == ["care", "shop"]
    assert other_domains(plan, "care") == ["shop"]
    with pytest.raises(ConfigError, match="NAME:SUBJECTS"):
        other_domains(recommender_plan(domains="bank,care"), "bank")


def test_a_borrowed_map_speaks_as_loudly_as_its_gate() -> None:
    plan = recommender_plan(domains="bank:9,care:9", parts="map,borrow")
    model = model_of(plan, seed=None)
    text, views, vectors, all_items = inputs()
    silent = model(text, views, vectors, all_items)
    there = torch.randn(WIDTH, VIEWS * WIDTH, generator=torch.Generator().manual_seed(1))
    model.load({**model.adapter(), "map.bank": there})
    assert torch.equal(model(text, views, vectors, all_items), silent)
    model.load({**model.adapter(), "map.bank": there, "borrow.care": torch.full((1, 1), 0.5)})
    wanted = silent + plan.history_scale * 0.5 * views @ there.T @ vectors.T
    torch.testing.assert_close(model(text, views, vectors, all_items), wanted, rtol=1e-4, atol=1e-4)
    assert "map.bank" not in model.adapter()


def test_a_domain_whose_name_begins_like_another_holds_only_its_own() -> None:
    plan = recommender_plan()
    assert not held_by("bias.care", "car", plan)
    assert not held_by("bias.care.two", "care", plan)
    assert held_by("bias.care.two", "care.two", plan)


@pytest.mark.parametrize("name", ["loss", "", ".bias", "textual.x", "Text.x"])
def test_a_tensor_of_no_part_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="Expected a tensor of"):
        kind_of(name)


@pytest.mark.parametrize("parts", ["text", "map,bias", " gate , mixer "])
def test_only_the_parts_of_the_plan_are_trained(parts: str) -> None:
    plan = recommender_plan(parts=parts)
    assert {kind_of(n) for n in model_of(plan).adapter()} == trained_parts(plan)


@pytest.mark.parametrize("parts", ["", " , ", "map,maps", "lora"])
def test_parts_that_there_are_not_are_refused(parts: str) -> None:
    with pytest.raises(ConfigError, match="parts"):
        trained_parts(recommender_plan(parts=parts))


def test_targets_that_the_backbone_does_not_have_are_named() -> None:
    with pytest.raises(ModelError, match="no_such_layer"):
        model_of(recommender_plan(target_modules="no_such_layer"))


def test_a_model_without_text_layers_is_the_same_without_a_backbone() -> None:
    plan = recommender_plan(top_layers=0)
    backbone = backbone_of("bert")
    for given in (backbone, None):
        model = Recommender(plan, backbone=given, width=WIDTH, items=ITEMS, domain="care")
        assert model.text is None
        assert not any(is_text(name) for name in model.adapter())


@pytest.mark.parametrize("layers", [1, 3])
def test_lora_sits_in_the_top_layers_alone(layers: int) -> None:
    model = model_of(recommender_plan(top_layers=layers))
    assert sum(is_text(name) for name in model.adapter()) == 2 * layers
    assert model.text is not None
    assert len(model.text.layers.encoder.layer) == layers
