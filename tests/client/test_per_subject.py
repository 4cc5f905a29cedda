import warnings
from itertools import product

import pytest
import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from client.per_subject import (
    Columns,
    Dense,
    Grouping,
    Outer,
    PerSubjectBias,
    PerSubjectLinear,
    convert,
)
from client.training import SiteTrainer
from common.errors import ModelError, OrderError
from common.objectives import draw_negatives
from common.plan import RecommenderPlan
from common.recommender import ItemBias, Recommender
from common.textpath import TextVectors
from common.windows import Windows, history_views
from tests.models import (
    FAMILIES,
    model_of,
    recommender_plan,
    records_of,
    texts_of,
    trainer_of,
)

RAGGED = [3, 1, 2, 5, 1, 4]
"""Records a subject: some have one window, some three; one has no text in any window."""


def stored(trainer: SiteTrainer, subjects: Tensor, negatives: Tensor | None) -> dict[str, Tensor]:
    """Per-subject gradients (U, *shape) that one backward of the trainer leaves behind."""
    rows, owner = trainer.windows.rows_of(subjects)
    for _, p in trainer.model.trainable():
        p.grad_sample = None  # type: ignore[attr-defined]
    trainer.texts.adapter_changed(trainer.model.text)
    grouping = Grouping(owner=owner, subjects=len(subjects))
    trainer._backward(rows, grouping, negatives, train_text=True)
    one = torch.eye(len(subjects), dtype=torch.float64)
    return {
        name: torch.stack([p.grad_sample.weighted_sum(u) for u in one])  # type: ignore[attr-defined]
        for name, p in trainer.model.trainable()
    }


def reference_loss(scores: Tensor, target: int, value: float, plan: RecommenderPlan) -> Tensor:
    """The three losses again, from their definitions; `scores` over the whole catalog."""
    if plan.objective == "click":
        label = torch.tensor(1.0 if value >= 4 else 0.0)
        return F.binary_cross_entropy(torch.sigmoid(scores[target]), label)
    if plan.objective == "rating":
        return (0.1 * scores[target] - (value - 3) / 2) ** 2
    return F.cross_entropy(scores, torch.tensor(target))


def reference(
    model: Recommender, windows: Windows, texts: TextVectors, vectors: Tensor, subjects: Tensor
) -> dict[str, Tensor]:
    """A loop of single-subject, single-window backward passes through ordinary autograd."""
    out = {name: torch.zeros(len(subjects), *p.shape) for name, p in model.trainable()}
    for place, subject in enumerate(subjects.tolist()):
        start, end = windows.offsets[subject : subject + 2].tolist()
        for row in range(start, end):
            model.zero_grad()
            one = torch.tensor([row])
            text = texts.trained(one, texts.present(one), model.text)
            user = model.user(text, history_views(windows.history[one], vectors))
            scores = (user @ vectors.T).squeeze(0) + model.bias.weight
            target, value = int(windows.target[row]), float(windows.value[row])
            loss = reference_loss(scores, target, value, model.plan) / (end - start)
            loss.backward()
            for name, p in model.trainable():
                if p.grad is not None:
                    out[name][place] += p.grad
    return out


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor], relative: float) -> None:
    assert set(found) == set(wanted)
    for name, expected in wanted.items():
        error = (found[name] - expected.double()).flatten(1).norm(dim=1)
        size = expected.double().flatten(1).norm(dim=1)
        # A gate is one number, the sum of terms that may cancel: a tenth of the largest counts too.
        assert (error <= relative * size.clamp(min=0.1 * float(size.max()))).all(), name


@pytest.mark.parametrize(
    ("family", "variant", "objective"),
    [*product(FAMILIES, ["ffa", "plain"], ["ranking", "click", "rating"])],
)
def test_gradients_are_those_of_a_loop_of_single_subject_backward_passes(
    family: str, variant: str, objective: str
) -> None:
    plan = recommender_plan(family, variant=variant, objective=objective)
    trainer = trainer_of(records_of(RAGGED), plan, family)
    subjects = torch.tensor([0, 1, 3, 4, 5])
    found = stored(trainer, subjects, None)
    wanted = reference(
        model_of(plan, family), trainer.windows, trainer.texts, trainer.vectors, subjects
    )
    assert_close(found, wanted, 1e-5)
    assert all(v.abs().sum() > 0 for v in wanted.values())


def test_gates_of_borrowed_maps_have_gradients_of_each_subject_too() -> None:
    plan = recommender_plan(domains="bank:9,care:9,shop:9")
    trainer = trainer_of(records_of(RAGGED), plan)
    subjects = torch.arange(len(RAGGED))
    found = stored(trainer, subjects, None)
    wanted = reference(model_of(plan), trainer.windows, trainer.texts, trainer.vectors, subjects)
    assert found["borrow.care"].shape == (len(RAGGED), 2, 1)
    assert_close(found, wanted, 1e-5)


def test_a_subject_without_rows_has_a_gradient_of_zero_and_shifts_nobody() -> None:
    trainer = trainer_of(records_of(RAGGED))
    rows, owner = trainer.windows.rows_of(torch.tensor([0, 3]))
    trainer._backward(rows, Grouping(owner=owner * 2, subjects=4), None, train_text=True)
    with_gap = {n: p.grad_sample for n, p in trainer.model.trainable()}
    alone = stored(trainer, torch.tensor([0, 3]), None)
    for name, sample in with_gap.items():
        squared = sample.squared_norms()
        assert squared[1] == squared[3] == 0
        for place, wanted in ((0, alone[name][0]), (2, alone[name][1])):
            found = sample.weighted_sum(torch.eye(4, dtype=torch.float64)[place])
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)


def test_nobody_with_a_text_gives_lora_a_zero_gradient_not_a_missing_one() -> None:
    trainer = trainer_of(records_of([1, 1, 1]))
    found = stored(trainer, torch.tensor([0, 1, 2]), None)
    assert all((v == 0).all() for n, v in found.items() if n.startswith("text."))
    assert found["bias.care"].abs().sum() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_are_the_lengths_of_the_written_out_gradients(family: str) -> None:
    plan = recommender_plan(family, variant="plain")
    trainer = trainer_of(records_of(RAGGED), plan, family)
    dense = stored(trainer, torch.arange(len(RAGGED)), None)
    for name, p in trainer.model.trainable():
        wanted = dense[name].flatten(1).square().sum(1)
        torch.testing.assert_close(p.grad_sample.squared_norms(), wanted, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(("family", "variant"), [*product(FAMILIES, ["ffa", "plain"])])
def test_gradients_are_those_of_stock_opacus_hooks_where_a_subject_has_one_window(
    family: str, variant: str
) -> None:
    plan = recommender_plan(family, variant=variant, windows=1)
    trainer = trainer_of(records_of(RAGGED), plan, family)
    subjects = torch.arange(len(RAGGED))
    rows = trainer.texts.present(subjects)
    found = stored(trainer, rows, None)
    oracle = hooked(model_of(plan, family), trainer, rows)
    for name, wanted in oracle.items():
        # Both run in float32 and round anew in every layer below: lower layers differ by more.
        assert (found[name] - wanted).norm() <= 1e-6 * wanted.norm(), name
    ours, theirs = (torch.cat([g[n].flatten() for n in oracle]) for g in (found, oracle))
    assert (ours - theirs).norm() <= 4e-7 * theirs.norm()


def hooked(model: Recommender, trainer: SiteTrainer, rows: Tensor) -> dict[str, Tensor]:
    for part in (model.bias, model.gate, model.mixer):
        part.requires_grad_(False)  # Opacus knows no grad sampler for it
    whole = _Whole(model, trainer.texts).train()
    wrapped = GradSampleModule(whole, loss_reduction="sum")
    hidden, mask = trainer.texts._padded(trainer.texts._activations.row[rows])
    views = history_views(trainer.windows.history[rows], trainer.vectors)
    scores = wrapped(hidden, mask, views, trainer.vectors)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the input of a full backward hook needs no gradient
        F.cross_entropy(scores, trainer.windows.target[rows], reduction="sum").backward()
    return {name: p.grad_sample.double() for name, p in model.trainable()}


class _Whole(nn.Module):
    """The recommender as one call, which Opacus's hooks can wrap."""

    def __init__(self, model: Recommender, texts: TextVectors) -> None:
        super().__init__()
        self.inner, self.texts = model, texts

    def forward(self, hidden: Tensor, mask: Tensor, views: Tensor, vectors: Tensor) -> Tensor:
        text = self.texts._centred(self.inner.text(hidden, mask))
        return self.inner(text, views, vectors, torch.arange(len(vectors)))


def test_a_sampled_catalog_hides_every_other_subjects_target() -> None:
    plan = recommender_plan(candidates=16, objective="ranking")
    negatives = draw_negatives(60, 16, torch.Generator().manual_seed(1))
    assert negatives is not None
    trainer = trainer_of(records_of([4, 3, 5, 2], items=60), plan, items=60)
    targets = trainer.windows.target
    assert not torch.isin(targets, negatives).all()
    alone = stored(trainer, torch.tensor([2]), negatives)
    for company in ([2], [0, 2], [0, 1, 2, 3], [2, 3]):
        together = stored(trainer, torch.tensor(company), negatives)
        place = company.index(2)
        for name, wanted in alone.items():
            torch.testing.assert_close(together[name][place], wanted[0], rtol=1e-5, atol=1e-6)


def test_a_sampled_catalog_gives_a_row_exactly_zero_outside_its_own_columns() -> None:
    plan = recommender_plan(candidates=16)
    negatives = draw_negatives(60, 16, torch.Generator().manual_seed(1))
    trainer = trainer_of(records_of([4, 3, 5, 2], items=60), plan, items=60)
    bias = stored(trainer, torch.arange(4), negatives)["bias.care"]
    for subject in range(4):
        rows, _ = trainer.windows.rows_of(torch.tensor([subject]))
        own = set(trainer.windows.target[rows].tolist()) | set(negatives.tolist())
        assert {int(i) for i in torch.nonzero(bias[subject])} <= own


def test_two_uses_of_a_layer_in_one_backward_are_refused() -> None:
    layer = nn.Sequential(nn.Linear(4, 4, bias=False))
    (linear,) = convert(layer)
    linear.grouping = Grouping(owner=torch.arange(2), subjects=2)
    once = layer(torch.randn(2, 4))
    with pytest.raises(OrderError, match="one use"):
        layer(once).sum().backward()


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (nn.Sequential(nn.BatchNorm1d(4)), "BatchNorm1d"),
        (nn.Sequential(nn.BatchNorm1d(4).requires_grad_(False)), "BatchNorm1d"),
        (nn.Sequential(nn.BatchNorm2d(4, affine=False)), "BatchNorm2d"),
        (nn.Sequential(nn.LayerNorm(4)), "LayerNorm"),
        (nn.Sequential(nn.Linear(4, 4)), "Linear"),
        (nn.Sequential(nn.Embedding(4, 4)), "Embedding"),
        (nn.Sequential(nn.Linear(4, 4, bias=False), nn.Dropout(0.1)), "[Dd]ropout"),
        (nn.Sequential(nn.Dropout1d(0.5)), "[Dd]ropout"),
    ],
)
def test_what_has_no_gradient_of_a_subject_is_refused(module: nn.Module, names: str) -> None:
    with pytest.raises(ModelError, match=names):
        convert(module)


def test_attention_dropout_kept_as_a_number_is_refused() -> None:
    model = model_of(recommender_plan("llama"), "llama")
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.1
    with pytest.raises(ModelError, match="dropout"):
        convert(model)


def test_a_frozen_layer_norm_and_a_dropout_of_zero_pass() -> None:
    frozen = nn.LayerNorm(4).requires_grad_(False)
    assert len(convert(nn.Sequential(frozen, nn.Dropout(0.0), nn.Linear(4, 4, bias=False)))) == 1


def test_conversion_changes_no_value() -> None:
    linear, bias = nn.Linear(5, 3, bias=False), ItemBias(3)
    x, scores, index = torch.randn(4, 5), torch.randn(4, 2), torch.tensor([2, 0])
    nn.init.normal_(bias.weight)
    wanted = linear(x), bias(scores, index)
    convert(nn.ModuleList([linear, bias]))
    assert isinstance(linear, PerSubjectLinear)
    assert isinstance(bias, PerSubjectBias)
    for layer in (linear, bias):
        layer.grouping = Grouping(owner=torch.arange(4), subjects=4)
    torch.testing.assert_close(linear(x), wanted[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(bias(scores, index), wanted[1], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("owner", "subjects"), [([0, 1, 0], 2), ([1, 0], 2), ([0, 2], 2), ([-1, 0], 2)]
)
def test_rows_of_a_subject_that_do_not_stand_together_are_refused(
    owner: list[int], subjects: int
) -> None:
    with pytest.raises(OrderError):
        Grouping(owner=torch.tensor(owner), subjects=subjects)


@pytest.mark.parametrize("shape", [(6, 4), (1, 4), (1, 3, 4), (6, 1, 4)])
def test_a_layer_whose_first_axis_is_not_the_rows_is_refused(shape: tuple[int, ...]) -> None:
    layer = nn.Sequential(nn.Linear(4, 4, bias=False))
    (linear,) = convert(layer)
    linear.grouping = Grouping(owner=torch.tensor([0, 0, 1]), subjects=2)
    with pytest.raises(ModelError, match="row"):
        layer(torch.randn(shape)).sum().backward()


def test_windows_that_cancel_do_not_hide_behind_rounding() -> None:
    """Two huge windows whose sum is small: the norm may err upwards only."""
    draw = torch.Generator().manual_seed(0)
    for size in (1e2, 1e6, 1e10):
        out, into = torch.randn(1, 64, generator=draw), torch.randn(1, 96, generator=draw)
        rest = torch.randn(1, 96, generator=draw)
        sample = Outer(
            out=torch.cat([size * out, -size * out, out]),
            into=torch.cat([into, into * (1 + 1e-6), rest]),
            grouping=Grouping(owner=torch.zeros(3, dtype=torch.long), subjects=1),
        )
        true = sample.weighted_sum(torch.ones(1, dtype=torch.float64)).norm()
        assert sample.squared_norms().sqrt() >= true * (1 - 1e-6), size


def test_the_three_compact_forms_agree_on_one_gradient() -> None:
    draw = torch.Generator().manual_seed(4)
    out, into = torch.randn(5, 3, generator=draw), torch.randn(5, 4, generator=draw)
    grouping = Grouping(owner=torch.tensor([0, 0, 1, 3, 3]), subjects=4)
    written = torch.zeros(4, 3, 4)
    written.index_add_(0, grouping.owner, out.unsqueeze(2) * into.unsqueeze(1))
    weights = torch.tensor([0.5, 0.0, 1.0, 0.25], dtype=torch.float64)
    dense, outer = Dense(values=written), Outer(out=out, into=into, grouping=grouping)
    columns = Columns(values=written.flatten(1), index=torch.arange(12), size=12)
    for form in (outer, columns):
        torch.testing.assert_close(
            form.weighted_sum(weights).view(3, 4), dense.weighted_sum(weights), rtol=1e-6, atol=1e-7
        )
        torch.testing.assert_close(
            form.squared_norms(), dense.squared_norms(), rtol=1e-6, atol=1e-12
        )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_of_zero_removes_a_gradient_that_is_not_finite(bad: float) -> None:
    values = torch.ones(2, 3)
    values[0, 1] = bad
    weights = torch.tensor([0.0, 1.0], dtype=torch.float64)
    grouping = Grouping(owner=torch.arange(2), subjects=2)
    for sample in (
        Dense(values=values),
        Columns(values=values, index=torch.arange(3), size=3),
        Outer(out=torch.ones(2, 1), into=values, grouping=grouping),
        Outer(out=values, into=torch.ones(2, 1), grouping=grouping),
    ):
        assert (sample.weighted_sum(weights) == 1).all()
        assert sample.squared_norms()[1] == pytest.approx(3)
        assert not torch.isfinite(sample.squared_norms()[0])


def test_texts_of_a_subject_are_told_apart_by_row() -> None:
    plan = recommender_plan()
    trainer = trainer_of(records_of(RAGGED), plan)
    texts = texts_of(trainer.windows, plan)
    rows = torch.arange(len(trainer.windows))
    assert set(texts.present(rows).tolist()) == {
        r for r in rows.tolist() if (trainer.windows.history[r] >= 0).any()
    }
