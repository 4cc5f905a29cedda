"""The end of a run: the adapter and, beside it, a signed statement of how it came about."""

from pathlib import Path
from typing import Any

from common.adapter import save_adapter
from common.backbone import Backbone
from common.chain import event_of
from common.durable import write_atomic
from common.release import FORMAT, release_path, sign_release
from common.verification import spent_of
from common.wire import Tensors
from server.heads import HeadBook
from server.rounds import RoundLoop


def write_release(
    path: Path, released: Tensors, *, loop: RoundLoop, backbone: Backbone, heads: HeadBook
) -> None:
    """Write the adapter and its release.

    Args:
        path: of the adapter file.
        released: its tensors.
        loop: that ran.
        backbone: that it belongs to.
        heads: what the sites' ledgers show.
    """
    members = loop.membership.members.values()
    domains = {m.identity.domain: m.identity.catalog for m in members}
    manifest = save_adapter(path, released, plan=loop.plan, backbone=backbone, catalogs=domains)
    statement: dict[str, Any] = {
        "format": FORMAT,
        "adapter_sha256": manifest.sha256,
        "backbone_sha256": backbone.digest,
        "catalogs": domains,
        "plan": loop.plan.to_json(),
        "run": loop.strategy.run,
        "rounds": loop.done,
        "released_round": loop.public.best_round if loop.public is not None else loop.done,
        "ended": loop.ended or "after its last round",
        "aggregation": loop.strategy.rule(),
        "sites": [_site(m.identity.site, m.identity.domain, heads) for m in members],
    }
    write_atomic(release_path(path), sign_release(statement, heads.key))


def _site(site: str, domain: str, heads: HeadBook) -> dict[str, Any]:
    """A site's own statement of what it spent, as its ledger shows it."""
    state = heads.state_of(site)
    told: dict[str, Any] = {"site": site, "domain": domain}
    if state is None:
        return {**told, "epsilon": None, "delta": None, "head": None}
    found = [spent_of(state, event_of(spent)) for spent in state.spent.values()]
    most = max(found, key=lambda spent: spent.epsilon)
    return {
        **told,
        "epsilon": None if state.seeded else most.epsilon,
        "delta": most.delta,
        "head": state.head,
    }
