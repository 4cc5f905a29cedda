"""Epsilon by round, by run and for rounds to come, from a ledger's reservations.

Each point is a call of the accountants, so a site gets a few dozen points; sites that did the same
share them, because accountants remember equal questions.
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Final

from common.accounting import Spent
from common.audit import SiteAudit
from common.chain import Reserved, event_of
from common.errors import ConfigError
from common.mechanism import Event, Leaf, leaves
from common.privacy_filter import Budget, rounds_left
from common.verification import spent_of

POINTS: Final = 40
"""Most points of one site's curve."""
ALL_POINTS: Final = 240
"""Most points of all sites that differ."""
AHEAD: Final = 10
"""Points of the rounds to come."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """Epsilon after so many reservations."""

    count: int
    spent: Spent


@dataclass(frozen=True, kw_only=True)
class RunEnd:
    """Where a run stands after its last reservation."""

    run: str
    first: int
    last: int
    spent: Spent


@dataclass(frozen=True, kw_only=True)
class Ahead:
    """What further rounds like the last run's would cost.

    Attributes:
        run: whose round it is.
        event: of one round.
        left: rounds that still fit into the budget.
        points: (further rounds, epsilon), from 0 on.
    """

    run: str
    event: Event
    left: int
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One site's spending over time, of the cohort that spent most."""

    site: str
    points: tuple[Point, ...]
    runs: tuple[RunEnd, ...]
    ahead: Ahead | None


def curves(sites: tuple[SiteAudit, ...]) -> tuple[Curve, ...]:
    """A curve a site; what further rounds would cost is asked of the one that spent most."""
    kinds = {tuple((r.asked[0], r.event) for r in _taken(site)) for site in sites}
    points = max(min(POINTS, ALL_POINTS // max(len(kinds), 1)), 4)
    worst = max(sites, key=lambda site: site.verdict.spent.epsilon)
    return tuple(curve_of(site, points, ahead=site is worst) for site in sites)


def curve_of(site: SiteAudit, points: int = POINTS, *, ahead: bool = True) -> Curve:
    """Epsilon after some of a site's reservations, the last of each run among them."""
    taken = _taken(site)
    ends = _ends(taken)
    wanted = sorted({*_spread(len(taken), points), *(last for _, last in ends.values())})
    known: dict[int, Spent] = {}
    total: Counter[Leaf] = Counter()
    for count, reserved in enumerate(taken, start=1):
        total.update(leaves(reserved.event))
        if count in wanted:
            known[count] = _spent(site, total)
    return Curve(
        site=site.name,
        points=tuple(Point(count=count, spent=spent) for count, spent in known.items()),
        runs=tuple(
            RunEnd(run=run, first=first, last=last, spent=known[last])
            for run, (first, last) in ends.items()
        ),
        ahead=_ahead(site, total) if ahead else None,
    )


def worst_cohort(site: SiteAudit) -> str:
    """The cohort that spent most."""
    cohorts = site.verdict.by_cohort
    return max(cohorts, key=lambda name: cohorts[name].epsilon, default="")


def _taken(site: SiteAudit) -> tuple[Reserved, ...]:
    cohort = worst_cohort(site)
    return tuple(r for r in site.reservations if cohort in r.cohorts)


def _ends(taken: tuple[Reserved, ...]) -> dict[str, tuple[int, int]]:
    """By run, the counts of its first and last reservation."""
    ends: dict[str, tuple[int, int]] = {}
    for count, reserved in enumerate(taken, start=1):
        run = reserved.asked[0]
        ends[run] = (ends.get(run, (count, count))[0], count)
    return ends


def _spread(count: int, points: int) -> set[int]:
    """At most so many numbers from 1 to count, both ends included."""
    if count <= points:
        return set(range(1, count + 1))
    return {1 + round(i * (count - 1) / (points - 1)) for i in range(points)}


def _spent(site: SiteAudit, counted: Counter[Leaf]) -> Spent:
    try:
        return spent_of(site.state, event_of(counted))
    except ConfigError:
        return site.verdict.spent


def _ahead(site: SiteAudit, total: Counter[Leaf]) -> Ahead | None:
    if not site.state.plans or not math.isfinite(site.verdict.spent.epsilon):
        return None
    run, plan = list(site.state.plans.items())[-1]
    event, planned = plan.events.get("train", next(iter(plan.events.values())))
    caps = site.state.caps
    budget = Budget(epsilon=caps.epsilon, delta=caps.delta)
    left = rounds_left(budget, event_of(total), event, adaptive=site.state.adaptive)
    # A little beyond what fits, so that the picture shows where it ends.
    most = min(math.ceil(1.25 * left), 20 * planned) or planned
    further = sorted({round(i * most / AHEAD) for i in range(AHEAD + 1)} | {min(left, most)})
    points = []
    for rounds in further:
        more = Counter({leaf: n * rounds for leaf, n in leaves(event).items() if rounds})
        points.append((rounds, _spent(site, total + more).epsilon))
    return Ahead(run=run, event=event, left=left, points=tuple(points))
