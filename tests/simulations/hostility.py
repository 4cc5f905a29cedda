"""Nine tiny sites, some of them hostile or faulty, for the tests of attacks and faults."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from client.site import SiteRecords
from common.plan import RunPlan
from common.textpath import ActivationStore
from common.wire import Tensors
from simulations.attacks import attack_named
from simulations.engines import Disturb, InProcessEngine, Job
from simulations.hostile import Conspiracy
from tests.models import run_plan, site_of

STORE = ActivationStore()
SITES = tuple(site_of(f"s{n}", seed=n) for n in range(9))
HOSTILE = frozenset({"s7", "s8"})
QUIET = {"noise_multiplier": 0.02}
"""So little noise that what hostile sites do is seen in numbers."""


def plan(*, rounds: int = 2, noise: float = 1.0, **federation: Any) -> RunPlan:
    return run_plan(
        privacy={"noise_multiplier": noise},
        federation={"rounds": rounds, "text_rounds": 0, "strategy": "fedavg", **federation},
        recommender={"parts": "gate,map,bias", "top_layers": 0},
    )


def run(
    run_plan: RunPlan,
    sites: Sequence[SiteRecords] = SITES,
    *,
    disturb: Disturb | None = None,
    ledgers: Path | None = None,
) -> Tensors:
    job = Job(
        plan=run_plan, sites=sites, noise_seed=1, store=STORE, disturb=disturb, ledgers=ledgers
    )
    return InProcessEngine(workers=1).run(job)


class Hostility:
    """Makes some sites hostile; `last` is the conspiracy of the last run."""

    def __init__(self, name: str, names: frozenset[str] = HOSTILE) -> None:
        self.name, self.names = name, names
        self.last: Conspiracy

    def __call__(self, honest: Any, job: Job) -> Any:
        self.last = Conspiracy(
            attack=attack_named(self.name),
            names=self.names,
            sites=tuple(job.sites),
            honest=honest,
            store=job.store,
            permits=job.permits(),
        )
        return self.last.app()


def same(one: Tensors, two: Tensors) -> bool:
    return set(one) == set(two) and all(np.array_equal(one[k], two[k]) for k in one)


def towards(one: Tensors, two: Tensors) -> float:
    """Cosine of two adapters as one long vector each."""
    left, right = (np.concatenate([t[k].ravel() for k in sorted(t)]) for t in (one, two))
    return float(left @ right / (np.linalg.norm(left) * np.linalg.norm(right)))


def kinds(ledgers: Path, site: str) -> list[str]:
    """Kinds of a ledger's entries, in order."""
    (path,) = (ledgers / site).glob("*.jsonl")
    return [_kind(line) for line in path.read_text().splitlines()]


def _kind(line: str) -> str:
    entry = json.loads(line)
    return str(entry.get("kind") or entry["entry"]["kind"])
