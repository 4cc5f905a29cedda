"""Who takes part: asked once at the start, and again whenever a new node is there."""

import logging
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from common.errors import ConfedError, ConfigError, SecurityRefused
from common.plan import RunPlan
from common.wire import Identity, unpack_identity
from server.admission import Member
from server.contract import Contract

if TYPE_CHECKING:
    from server.exchange import Exchange

LOG = logging.getLogger("confed.server")
NODES_WAIT = 0.5
"""Seconds between two looks for nodes."""
WAIT_SAID = 10.0
"""Seconds after which the log says that sites are missing."""
QUERY_TIMEOUT = 60.0
"""Seconds that a node has to say who it is in the middle of a run."""
QUERIES_MOST = 3
"""Rounds in which a node that does not answer is asked who it is."""


class NameTaken(SecurityRefused):
    """A node says a name under which another node is still there."""


@dataclass(kw_only=True)
class Membership:
    """The sites of a run, by node; a late site joins, a site that comes back takes its place.

    Attributes:
        members: at the start.
        weights: contract weight by site.
        contract: who may take part; None lets anybody.
    """

    members: dict[int, Member]
    weights: Mapping[str, float]
    contract: Contract | None = None
    _asked: Counter[int] = field(default_factory=Counter)

    def refresh(self, grid: Grid, strategy: "Exchange") -> None:
        """Ask the nodes that nobody knows yet, and let those join that fit the run."""
        present = set(grid.get_node_ids())
        unknown = present - set(self.members)
        new = sorted(node for node in unknown if self._asked[node] < QUERIES_MOST)
        if not new:
            return
        self._asked.update(new)
        for reply in ask(grid, new, QUERY_TIMEOUT):
            node = reply.metadata.src_node_id
            try:
                self._join(_member(reply, self.weights, self.contract), present)
            except ConfedError as error:
                # A site that was started anew waits until its old node is gone.
                self._asked[node] = 0 if isinstance(error, NameTaken) else QUERIES_MOST
                LOG.warning("node %d does not join: %s", node, error)
        strategy.members = self.members

    def _join(self, member: Member, present: Collection[int]) -> None:
        who = member.identity
        same = {n: m for n, m in self.members.items() if m.identity.site == who.site}
        domains = {m.identity.domain: m.identity for m in self.members.values()}
        if who.domain not in domains:
            raise SecurityRefused("Expected a domain that the run began with, got another.")
        if (who.catalog, who.items) != (domains[who.domain].catalog, domains[who.domain].items):
            raise SecurityRefused(f"Expected the catalog of domain {who.domain}, got another.")
        if any(m.identity != who for m in same.values()):
            raise SecurityRefused("Expected the public facts that the site joined with.")
        if any(node in present for node in same):
            # Else any node could push a site out by saying its name.
            raise NameTaken(f"Expected one node of site {who.site}, another one is still there.")
        for node in same:
            del self.members[node]
        self.members[member.node] = member
        LOG.info("site %s %s", who.site, "is back" if same else "joins")

    def facts(self) -> list[dict[str, Any]]:
        """Public facts of every site, for a checkpoint."""
        ordered = sorted(self.members.values(), key=lambda m: m.identity.site)
        return [_facts(member) for member in ordered]


def require_began(members: Collection[Member], began: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to go on with other domains, catalogs, facts or weights than a checkpoint's.

    Args:
        members: that are here now.
        began: what `Membership.facts` gave before.

    Raises:
        ConfigError: a domain has no site here.
        SecurityRefused: a site or a domain is not what it was.
    """
    catalogs = {facts["domain"]: (facts["catalog"], facts["items"]) for facts in began}
    known = {facts["site"]: dict(facts) for facts in began}
    for member in members:
        who = member.identity
        if catalogs.get(who.domain) != (who.catalog, who.items):
            raise SecurityRefused(
                f"Expected a domain and catalog of the checkpoint from site {who.site}, got others."
            )
        now = _facts(member)
        if known.get(who.site, now) != now:
            raise SecurityRefused(
                f"Expected the public facts and the weight of site {who.site} in the checkpoint, "
                "got others."
            )
    missing = sorted(set(catalogs) - {m.identity.domain for m in members})
    if missing:
        raise ConfigError(f"Expected a site of domain {missing[0]} to resume with, got none.")


def _facts(member: Member) -> dict[str, Any]:
    return {**vars(member.identity), "weight": member.weight}


def ask(grid: Grid, nodes: Sequence[int], timeout: float) -> list[Message]:
    """Answers of these nodes to the question who they are."""
    queries = [
        Message(RecordDict(), dst_node_id=node, message_type=MessageType.QUERY) for node in nodes
    ]
    return [r for r in grid.send_and_receive(queries, timeout=timeout) if not r.has_error()]


def _member(reply: Message, weights: Mapping[str, float], contract: Contract | None) -> Member:
    who = unpack_identity(reply.content)
    if contract is not None:
        contract.require(who)
    return Member(node=reply.metadata.src_node_id, identity=who, weight=weights.get(who.site, 1.0))


def find_members(
    grid: Grid,
    plan: RunPlan,
    weights: Mapping[str, float],
    *,
    sites: int,
    contract: Contract | None = None,
) -> dict[int, Member]:
    """Ask every node who it is; refuse a consortium whose sites do not fit together.

    Raises:
        ConfigError: fewer than `sites` within the round timeout.
        SecurityRefused: two sites of one name, or two catalogs in one domain.
    """
    wanted = sites
    nodes = _wait_for_nodes(grid, wanted, plan.federation.round_timeout)
    found = []
    for reply in ask(grid, sorted(nodes), plan.federation.round_timeout):
        try:
            found.append(_member(reply, weights, contract))
        except ConfedError as error:
            LOG.warning("node %d is left out: %s", reply.metadata.src_node_id, error)
    if len(found) < wanted:
        raise ConfigError(f"Expected at least {wanted} sites, got {len(found)} that answer.")
    _require_one_contract([m.identity for m in found])
    return {m.node: m for m in sorted(found, key=lambda m: m.identity.site)}


def _wait_for_nodes(grid: Grid, wanted: int, timeout: float) -> list[int]:
    start, said = time.monotonic(), False
    while True:
        nodes = list(grid.get_node_ids())
        waited = time.monotonic() - start
        if len(nodes) >= wanted or waited > timeout:
            return nodes
        if not said and waited > WAIT_SAID:
            LOG.warning("waiting for sites: %d of %d are here", len(nodes), wanted)
            said = True
        time.sleep(NODES_WAIT)


def _require_one_contract(identities: Sequence[Identity]) -> None:
    names = [who.site for who in identities]
    if len(set(names)) != len(names):
        raise SecurityRefused("Expected one node a site, got two with the same name.")
    for domain in {who.domain for who in identities}:
        catalogs = {(who.catalog, who.items) for who in identities if who.domain == domain}
        if len(catalogs) > 1:
            raise SecurityRefused(
                f"Expected one catalog in domain {domain}, got {len(catalogs)}; "
                "give its sites the same items and knowledge graph."
            )
