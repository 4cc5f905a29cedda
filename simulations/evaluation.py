"""Full-catalog ranking of every test subject: the researcher's own view of data they hold.

Outside the privacy claim: nothing here would leave a deployed site.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.backbone import Backbone
from common.catalog import Catalog
from common.interactions import Interactions, concatenate
from common.objectives import CLICK_THRESHOLD, as_rating
from common.plan import RecommenderPlan
from common.ranking import exclude
from common.recommender import Recommender
from common.splits import LeaveOneOut
from common.textpath import ActivationStore, Progress, TextVectors
from common.windows import Windows, history_texts, history_views, query_windows
from common.wire import Tensors
from simulations import metrics

DEPTH = 20
BATCH = 1024
"""Subjects scored at a time."""
CURVE_SUBJECTS = 20_000
"""Subjects of a domain that the curve by round is measured on."""


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What is asked of a model about one domain.

    Attributes:
        histories: of the subjects who have a test item.
        target: int32 (n), the item each of them took next.
        value: float32 (n), its rating.
        site: name of each subject's site.
        trained: int (n), how many training interactions each subject has.
        popularity: int (items), training interactions of each item over all sites.
    """

    histories: Interactions
    target: NDArray[np.int32]
    value: NDArray[np.float32]
    site: NDArray[np.str_]
    trained: NDArray[np.int64]
    popularity: NDArray[np.int64]

    def masks(self) -> dict[str, NDArray[np.bool_]]:
        """Slices by head and tail items, cold subjects and site."""
        return metrics.slices(self.target, self.popularity, self.trained, self.site.tolist())


def questions(splits: dict[str, LeaveOneOut], items: int) -> Questions:
    """The test subjects of a domain's sites, in the order of the sites."""
    chosen = {name: np.flatnonzero(s.test_target >= 0) for name, s in splits.items()}
    popularity = np.zeros(items, dtype=np.int64)
    for split in splits.values():
        popularity += np.bincount(split.train.items, minlength=items)
    return Questions(
        histories=concatenate([splits[n].test_history.select(c) for n, c in chosen.items()]),
        target=np.concatenate([splits[n].test_target[c] for n, c in chosen.items()]),
        value=np.concatenate([splits[n].test_value[c] for n, c in chosen.items()]),
        site=np.concatenate([np.full(len(c), n) for n, c in chosen.items()]),
        trained=np.concatenate([splits[n].train.counts[c] for n, c in chosen.items()]),
        popularity=popularity,
    )


@dataclass
class Examiner:
    """Scores one domain's questions under any adapter; the frozen work is done once.

    Attributes:
        asked: the questions.
        catalog: of the domain.
        vectors: float32 (n, d), item vectors.
        windows: histories of the questions.
        texts: text vectors of the same histories.
    """

    asked: Questions
    catalog: Catalog
    plan: RecommenderPlan
    backbone: Backbone
    vectors: Tensor
    windows: Windows
    texts: TextVectors
    curve_rows: Tensor = field(init=False)

    def __post_init__(self) -> None:
        generator = np.random.default_rng(0)
        count = min(CURVE_SUBJECTS, len(self.asked.target))
        rows = generator.permutation(len(self.asked.target))[:count]
        self.curve_rows = torch.from_numpy(np.sort(rows))

    def model(self, adapter: Tensors) -> Recommender:
        """The recommender of this domain under an adapter; empty tensors are the zero-shot one."""
        # An adapter says by its maps which domains trained it together.
        together = [
            entry
            for entry in self.plan.domains.split(",")
            if f"map.{entry.partition(':')[0]}" in adapter
        ]
        model = Recommender(
            self.plan.model_copy(update={"domains": ",".join(together)}),
            backbone=self.backbone,
            width=self.backbone.width,
            items=len(self.catalog),
            domain=self.catalog.domain,
        ).eval()
        if adapter:
            model.load({name: torch.from_numpy(np.array(v)) for name, v in adapter.items()})
        return model

    @torch.inference_mode()
    def top(self, adapter: Tensors, rows: Tensor | None = None) -> NDArray[np.int32]:
        """Best items for the questions at `rows` (all by default), history left out, (n, 20)."""
        model = self.model(adapter)
        self.texts.adapter_changed(model.text)
        rows = torch.arange(len(self.windows)) if rows is None else rows
        parts = [self._top(model, part) for part in rows.split(BATCH)]
        return np.concatenate(parts)

    def _top(self, model: Recommender, rows: Tensor) -> NDArray[np.int32]:
        scores = self._scores(model, rows)
        exclude(scores, self.asked.histories, rows.numpy())
        return best(scores)

    def _scores(self, model: Recommender, rows: Tensor) -> Tensor:
        text = self.texts.frozen(rows, model.text)
        views = history_views(self.windows.history[rows], self.vectors)
        scores: Tensor = model(text, views, self.vectors, torch.arange(len(self.catalog)))
        return scores

    @torch.inference_mode()
    def target_scores(
        self, adapter: Tensors, rows: Tensor | None = None
    ) -> NDArray[np.float32] | None:
        """Score of each question's own item, (n); None for the ranking objective."""
        if self.plan.objective == "ranking":
            return None
        model = self.model(adapter)
        self.texts.adapter_changed(model.text)
        target = torch.from_numpy(self.asked.target.astype(np.int64))
        rows = torch.arange(len(self.windows)) if rows is None else rows
        parts = [
            self._scores(model, part).gather(1, target[part].unsqueeze(1)).squeeze(1)
            for part in rows.split(BATCH)
        ]
        scores = torch.cat(parts)
        if self.plan.objective == "rating":
            scores = as_rating(scores)
        return scores.numpy()

    def quick_ndcg(self, adapter: Tensors) -> float:
        """NDCG@10 on the curve's fixed sample of subjects."""
        top = self.top(adapter, self.curve_rows)
        target = self.asked.target[self.curve_rows.numpy()]
        return metrics.means(metrics.ranking_metrics(top, target))["ndcg@10"]


def make_examiner(
    asked: Questions,
    catalog: Catalog,
    *,
    plan: RecommenderPlan,
    backbone: Backbone,
    store: ActivationStore,
    progress: Progress | None = None,
) -> Examiner:
    """Do the frozen work of a domain's questions."""
    windows = query_windows(asked.histories, history_items=plan.history_items)
    texts = store.texts(
        backbone,
        history_texts(windows.history, catalog, items=plan.text_items),
        tokens=plan.text_tokens,
        top_layers=plan.top_layers,
        progress=progress,
    )
    space = store.item_space(backbone, catalog, tokens=plan.item_tokens)
    return Examiner(
        asked=asked,
        catalog=catalog,
        plan=plan,
        backbone=backbone,
        vectors=space.vectors,
        windows=windows,
        texts=TextVectors(texts, space.centre),
    )


def best(scores: Tensor) -> NDArray[np.int32]:
    """The first 20 of each row, -1 where fewer are left, int32 (n, 20)."""
    depth = min(DEPTH, scores.shape[1])
    found = scores.topk(depth, dim=1)
    ranked = torch.where(found.values > float("-inf"), found.indices, -1)
    out = np.full((len(scores), DEPTH), -1, dtype=np.int32)
    out[:, :depth] = ranked.numpy()
    return out


def popularity_top(asked: Questions) -> NDArray[np.int32]:
    """The same list for everybody, by training interactions, history left out."""
    row = torch.from_numpy(asked.popularity.astype(np.float32))
    parts = []
    for rows in np.array_split(np.arange(len(asked.target)), max(len(asked.target) // BATCH, 1)):
        scores = row.repeat(len(rows), 1)
        exclude(scores, asked.histories, rows)
        parts.append(best(scores))
    return np.concatenate(parts)


@dataclass(frozen=True, kw_only=True)
class Graded:
    """A method's metrics on one domain.

    Attributes:
        whole: over all questions.
        sliced: by slice.
        per_subject: ranking metrics of each question, for intervals.
        top: int32 (n, 20), its lists.
        scored: float32 (n), score of each question's own item, where it was asked for.
    """

    whole: dict[str, float]
    sliced: dict[str, dict[str, float]]
    per_subject: dict[str, NDArray[np.float64]]
    top: NDArray[np.int32]
    scored: NDArray[np.float32] | None = None


def grade(
    top: NDArray[np.int32],
    asked: Questions,
    vectors: Tensor,
    scored: NDArray[np.float32] | None = None,
    objective: str = "ranking",
) -> Graded:
    """Every metric of one method.

    Args:
        top: its lists (n, 20).
        asked: the questions.
        vectors: item vectors, for diversity.
        scored: score of each question's own item, for AUC or RMSE.
        objective: of the plan.
    """
    per_subject = metrics.ranking_metrics(top, asked.target)

    def over(mask: NDArray[np.bool_]) -> dict[str, float]:
        found = metrics.means(per_subject, mask)
        if mask.any():
            found |= _of_lists(top[mask], asked, vectors)
            if scored is not None:
                found |= _of_scores(scored[mask], asked.value[mask], objective)
        return found

    return Graded(
        whole=over(np.ones(len(asked.target), dtype=bool)),
        sliced={name: over(mask) for name, mask in asked.masks().items()},
        per_subject=per_subject,
        top=top,
        scored=scored,
    )


def _of_lists(top: NDArray[np.int32], asked: Questions, vectors: Tensor) -> dict[str, float]:
    return {
        "coverage@10": metrics.coverage(top, len(asked.popularity)),
        "diversity@10": metrics.diversity(top, vectors.numpy()),
        "novelty@10": metrics.novelty(top, asked.popularity),
    }


def _of_scores(
    scored: NDArray[np.float32], value: NDArray[np.float32], objective: str
) -> dict[str, float]:
    if objective == "click":
        return {"auc": metrics.auc(scored, (value >= CLICK_THRESHOLD).astype(int))}
    if objective == "rating":
        return {"rmse": metrics.rmse(scored, value)}
    return {}
