"""Made-up sites for the mechanism tests.

One trains every kind of tensor, one has a loud subject, one tells who was in a batch.
"""

from dataclasses import replace
from typing import Final

import numpy as np
import torch

from common.interactions import Interactions
from common.plan import RecommenderPlan
from common.synthetic import make_site
from simulations.empirical.product import AuditSite, item_vectors

WIDTH: Final = 16
QUIET: Final = 30
"""Subjects beside a loud one."""
ITEMS: Final = 96
LOUD_ITEM: Final = ITEMS - 1
"""An item that only the loud subject has; its vector is as long as the test says."""
ROWS: Final = 50
"""Rows of a subject with very many."""


def full_site(plan: RecommenderPlan, *, subjects: int = 8) -> AuditSite:
    """A few subjects of the built-in generator: LoRA, gate, mixer, map and bias are all trained."""
    catalog, records = make_site("care", site=0, subjects=subjects, seed=1)
    vectors = item_vectors(catalog, plan.backbone, tokens=plan.item_tokens)
    return AuditSite(
        plan=plan, records=records, vectors=vectors, catalog=catalog, backbone=plan.backbone
    )


def lone_targets(subjects: int) -> AuditSite:
    """Subject i has item i alone: entry i of the bias moves exactly when it is in the batch."""
    return _site([[i] for i in range(subjects)], items=subjects)


def with_rows(rows: int) -> AuditSite:
    """The quiet ones and one subject of so many rows, every row a window."""
    return _site([*_quiet_rows(), list(range(rows))], items=ITEMS)


def with_loud(scale: float) -> AuditSite:
    """The quiet ones and one subject whose gradient is so much larger."""
    return _site([*_quiet_rows(), [3, LOUD_ITEM]], items=ITEMS, loud=scale)


def with_value(value: float) -> AuditSite:
    """The quiet ones and one subject with such a value in its record."""
    site = _site([*_quiet_rows(), [3, LOUD_ITEM]], items=ITEMS)
    site.records.values[-2:] = value
    return site


def without_last(site: AuditSite) -> AuditSite:
    """The same site without its last subject."""
    records = site.records
    end = int(records.offsets[-2])
    fewer = Interactions(
        subject_ids=records.subject_ids[:-1],
        offsets=records.offsets[:-1],
        items=records.items[:end],
        values=records.values[:end],
        times=records.times[:end],
    )
    return replace(site, records=fewer)


def _quiet_rows() -> list[list[int]]:
    draw = np.random.default_rng(7)
    return [draw.permutation(ITEMS - 1)[: 1 + i % 5].tolist() for i in range(QUIET)]


def _site(rows: list[list[int]], *, items: int, loud: float = 1.0) -> AuditSite:
    counts = [len(row) for row in rows]
    records = Interactions(
        subject_ids=tuple(f"made-up-{i}" for i in range(len(rows))),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        items=np.concatenate(rows).astype(np.int32),
        values=np.full(sum(counts), 5, np.float32),
        times=np.arange(sum(counts)),
    )
    vectors = torch.randn(items, WIDTH, generator=torch.Generator().manual_seed(3))
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    vectors[-1] *= loud
    return AuditSite(plan=_PLAN, records=records, vectors=vectors)


_PLAN: Final = RecommenderPlan(
    objective="rating",  # a row's score is its own item's alone, so the other subjects stay put
    parts="mixer,map,bias",
    top_layers=0,
    windows=ROWS,
    history_items=4,
    candidates=10**9,
)
