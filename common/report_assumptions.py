"""Which assumption the epsilon rests on, and what it becomes where one fails.

Public: all of it. The figures are those of the site that spent most.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from common.accounting import Spent, spent
from common.audit import Audit, SiteAudit
from common.audit_consortium import event_spent
from common.errors import ConfigError
from common.figures import small, upper
from common.mechanism import Composed, Event, Gaussian, Leaf, PoissonSampled, Repeated, leaves
from common.privacy_filter import adaptive_epsilon

Change = Callable[[Leaf], Event]
TRUST: Final = (
    "A person's site is trusted with that person's records, and to run this software unchanged; "
    "the server, the other sites and the network are not trusted with anything: each site's own "
    "noise is added before anything leaves it."
)


@dataclass(frozen=True, kw_only=True)
class Assumption:
    """One assumption.

    Attributes:
        holds: what is assumed.
        fails: what it is like when it fails.
        epsilon: what epsilon is then, in words.
    """

    holds: str
    fails: str
    epsilon: str


def assumptions(audit: Audit) -> tuple[Assumption, ...]:
    """Every assumption with the epsilon of its failure."""
    site = max(audit.sites, key=lambda one: one.verdict.spent.epsilon)
    now = site.verdict.spent
    told = f"{upper(now.epsilon, 2)}, unchanged"
    return (
        _trusted("The server keeps to the protocol", "it is malicious, or broken into", told),
        _trusted("Other sites keep to the protocol", "all of them collude with the server", told),
        *_at_several_sites(audit),
        *_computed(site),
        Assumption(
            holds="The noise is secret and fresh",
            fails="the generator's key or seed is known to an attacker",
            epsilon="∞: no protection is left",
        ),
        Assumption(
            holds="Everything that leaves the site is in the ledger",
            fails="something was released past it",
            epsilon="not covered by any figure here",
        ),
        _trusted(
            "The signing key is secret",
            "it is stolen: later entries may be forged, earlier ones contradict the receipts",
            f"{upper(now.epsilon, 2)} up to the newest receipt",
        ),
    )


def _trusted(holds: str, fails: str, epsilon: str) -> Assumption:
    return Assumption(holds=holds, fails=fails, epsilon=epsilon)


def _at_several_sites(audit: Audit) -> tuple[Assumption, ...]:
    if audit.together is None:
        return (
            Assumption(
                holds="No person is at another site as well",
                fails="the person is in several ledgers",
                epsilon="composition: audit those ledgers together with this one",
            ),
        )
    k, shared = audit.together.sites_per_subject, audit.together.shared
    return (
        Assumption(
            holds="No person is at two sites",
            fails=f"a person is at {k} sites",
            epsilon=_told(shared),
        ),
    )


def _computed(site: SiteAudit) -> tuple[Assumption, ...]:
    event, now = event_spent(site.verdict), site.verdict.spent
    group = _group_of_two(now)
    return (
        Assumption(
            holds="A person stands in the records under one id",
            fails="under two ids, or two people's records are counted as belonging together",
            epsilon=_told(group),
        ),
        Assumption(
            holds="What is compared is a person's being in the records or not",
            fails="one person's records are compared with another's in their place",
            epsilon=_told(_replaced(site, event, group)),
        ),
        Assumption(
            holds="Nobody learns who was drawn into which batch",
            fails="batches are known, or not drawn at random (everybody in every step)",
            epsilon=_told(_changed(site, event, _unsampled)),
        ),
        Assumption(
            holds="The noise is as large as declared",
            fails="a fault halves it",
            epsilon=_told(_changed(site, event, _halved)),
        ),
    )


def _told(found: Spent | None) -> str:
    if found is None or not math.isfinite(found.epsilon):
        return "too large to bound"
    return f"{upper(found.epsilon, 2)} at δ = {small(found.delta)}"


def _group_of_two(one: Spent) -> Spent | None:
    """Two people together: the definition used twice gives (2 epsilon, (1 + e^epsilon) delta)."""
    delta = (1 + math.exp(min(one.epsilon, 50.0))) * one.delta
    if not math.isfinite(one.epsilon) or delta >= 1:
        return None
    return Spent(
        epsilon=2 * one.epsilon,
        pld=math.inf,
        rdp=math.inf,
        delta=delta,
        accountant="group privacy",
        discretisation=0.0,
        error=math.inf,
    )


def _replaced(site: SiteAudit, event: Event, group: Spent | None) -> Spent | None:
    """Replacing is removing and adding; the filter knows no better bound than that."""
    if site.verdict.adaptive or not leaves(event):
        return group
    try:
        return spent(event, delta=site.state.caps.delta, adjacency="replace-one")
    except ConfigError:
        return None


def _unsampled(leaf: Leaf) -> Event:
    return leaf.event if isinstance(leaf, PoissonSampled) else leaf


def _halved(leaf: Leaf) -> Event:
    if isinstance(leaf, PoissonSampled):
        inner = Gaussian(noise_multiplier=leaf.event.noise_multiplier / 2)
        return PoissonSampled(sample_rate=leaf.sample_rate, event=inner)
    if isinstance(leaf, Gaussian):
        return Gaussian(noise_multiplier=leaf.noise_multiplier / 2)
    inside = leaves(leaf.event).items()
    halved = tuple(Repeated(count=n, event=_halved(inner)) for inner, n in inside)
    return replace(leaf, event=Composed(events=halved))


def _changed(site: SiteAudit, event: Event, change: Change) -> Spent | None:
    """Epsilon of the same releases with every single one changed."""
    parts = tuple(Repeated(count=n, event=change(leaf)) for leaf, n in leaves(event).items())
    caps = site.state.caps
    try:
        found = spent(Composed(events=parts), delta=caps.delta)
        if not site.verdict.adaptive:
            return found
        bound = adaptive_epsilon(Composed(events=parts), delta=caps.delta, order=site.state.order)
    except ConfigError:
        return None
    return replace(found, epsilon=bound, accountant="Renyi filter")
