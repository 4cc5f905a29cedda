"""What one subject can have spent at several sites: disjoint, and at k sites at once.

Public: all of it. Where every plan was fixed beforehand, the sites' releases compose by PLD and
RDP. Where plans may depend on earlier results, Renyi divergences add up at the order that the
ledgers fixed; where they fixed different ones, epsilons and deltas add up.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from common.accounting import Spent, compose_sites
from common.chain import event_of
from common.errors import ConfigError
from common.mechanism import Composed, Event
from common.privacy_filter import adaptive_epsilon
from common.verification import Verdict


@dataclass(frozen=True, kw_only=True)
class Together:
    """Privacy spent by several sites on one subject.

    Attributes:
        disjoint: if no subject is at two sites: the largest of the sites'.
        shared: if a subject may be at `sites_per_subject` of them: their composition.
        sites_per_subject: the most sites that one subject is assumed at.
        sites: how many there are.
    """

    disjoint: Spent
    shared: Spent
    sites_per_subject: int
    sites: int


def compose(verdicts: Sequence[Verdict], sites_per_subject: int | None) -> Together | None:
    """Compose what ledgers spent, at the largest of their deltas; None for a single ledger.

    Raises:
        ConfigError: `sites_per_subject` outside of 1 to the number of ledgers.
    """
    k = len(verdicts) if sites_per_subject is None else sites_per_subject
    if not 1 <= k <= len(verdicts):
        raise ConfigError(f"Expected --sites-per-subject from 1 to {len(verdicts)}, got {k}.")
    if len(verdicts) < 2:
        return None
    delta = max(verdict.spent.delta for verdict in verdicts)
    if not all(math.isfinite(verdict.spent.epsilon) for verdict in verdicts):
        none = replace(max((v.spent for v in verdicts), key=_epsilon), delta=delta)
        return Together(disjoint=none, shared=none, sites_per_subject=k, sites=len(verdicts))
    if any(verdict.adaptive for verdict in verdicts):
        return _adaptive(verdicts, k, delta)
    found = compose_sites([event_spent(v) for v in verdicts], delta=delta, sites_per_subject=k)
    return Together(
        disjoint=found.disjoint, shared=found.shared, sites_per_subject=k, sites=len(verdicts)
    )


def event_spent(verdict: Verdict) -> Event:
    """The event of the cohort that spent most."""
    cohorts = verdict.by_cohort
    most = max(cohorts, key=lambda name: cohorts[name].epsilon, default=None)
    return event_of({} if most is None else verdict.state.spent[most])


def _adaptive(verdicts: Sequence[Verdict], k: int, delta: float) -> Together:
    disjoint = max((verdict.spent for verdict in verdicts), key=_epsilon)
    shared = _by_one_order(verdicts, k, delta) or _by_sum(verdicts, k)
    return Together(disjoint=disjoint, shared=shared, sites_per_subject=k, sites=len(verdicts))


def _by_one_order(verdicts: Sequence[Verdict], k: int, delta: float) -> Spent | None:
    """Divergences added up at the ledgers' common order; None where there is no such order."""
    order, *others = {verdict.state.order for verdict in verdicts}
    if others:
        return None

    def bound(event: Event) -> float:
        return adaptive_epsilon(event, delta=delta, order=order)

    try:
        # At one order divergences add up, so the k sites that spent most are the worst choice.
        worst = sorted(map(event_spent, verdicts), key=bound)[-k:]
        epsilon = bound(Composed(events=tuple(worst)))
    except ConfigError:
        return None
    name = f"Renyi filter at order {order:.4g} (adaptive plans)"
    return _bound(epsilon, delta=delta, accountant=name)


def _by_sum(verdicts: Sequence[Verdict], k: int) -> Spent:
    chosen = sorted((verdict.spent for verdict in verdicts), key=_epsilon)[-k:]
    return _bound(
        sum(spent.epsilon for spent in chosen),
        delta=sum(spent.delta for spent in chosen),
        accountant="sum of the sites' epsilons and deltas",
    )


def _bound(epsilon: float, *, delta: float, accountant: str) -> Spent:
    return Spent(
        epsilon=epsilon,
        pld=math.inf,
        rdp=math.inf,
        delta=delta,
        accountant=accountant,
        discretisation=0.0,
        error=math.inf,
    )


def _epsilon(spent: Spent) -> float:
    return spent.epsilon
