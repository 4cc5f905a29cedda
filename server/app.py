"""The ServerApp: wiring only. (1) plan, (2) who is there, (3) adapter, (4) rounds, (5) release."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp

from common.adapter import save_adapter
from common.backbone import Backbone, load_backbone
from common.errors import ConfigError, SecurityRefused
from common.ledger_file import KEY_NAME
from common.plan import RunPlan, parse
from common.recommender import Recommender
from common.signing import SigningKey, read_signing_key
from common.wire import Identity, Tensors, to_record, unpack_identity
from server.exchange import Member
from server.heads import HeadBook
from server.strategy import make_strategy

LOG = logging.getLogger("confed.server")
OnRound = Callable[[int, Tensors], None]
NODES_WAIT = 0.5
"""Seconds between two looks for nodes."""
WAIT_SAID = 10.0
"""Seconds after which the log says that sites are missing."""


def build(
    plan: RunPlan | None = None,
    on_round: OnRound | None = None,
    backbone: Backbone | None = None,
    weights: Mapping[str, float] | None = None,
    heads: HeadBook | None = None,
) -> ServerApp:
    """Assemble a ServerApp.

    Args:
        plan: of the run; None reads it from the run configuration.
        on_round: told the released adapter after round 0, 1, …; a simulation watches here.
        backbone: the frozen model, when the process holds it already.
        weights: contract weight by site, 1 where none is given.
        heads: memory of the sites' ledgers; None takes the run configuration's folder `heads`, or
            this run's memory alone.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        agreed = plan if plan is not None else plan_from_run_config(context.run_config)  # (1)
        members = find_members(grid, agreed, weights or {}, context)  # (2)
        agreed = agreed.with_domains(declared_subjects(members.values()))
        frozen = backbone if backbone is not None else load_backbone(agreed.recommender.backbone)
        initial = initial_adapter(agreed, members.values(), frozen)  # (3)
        book = heads if heads is not None else configured_heads(context.run_config)
        strategy = make_strategy(agreed, members, initial, heads=book, run=str(context.run_id))

        def watch(number: int, _arrays: ArrayRecord) -> MetricRecord | None:
            if on_round is not None:
                on_round(number, strategy.released)
            return None

        strategy.start(  # (4)
            grid=grid,
            initial_arrays=to_record(initial),
            num_rounds=agreed.federation.rounds,
            timeout=agreed.federation.round_timeout,
            evaluate_fn=watch,
        )
        out = context.run_config.get("out")
        if isinstance(out, str) and out:  # (5)
            domains = {m.identity.domain: m.identity.catalog for m in members.values()}
            save_adapter(
                Path(out), strategy.released, plan=agreed, backbone=frozen, catalogs=domains
            )
            LOG.info("adapter written to %s", out)

    return app


def configured_heads(config: Mapping[str, Any]) -> HeadBook:
    """The server's memory of ledgers in the folder that the run configuration names.

    Raises:
        ConfigError: the folder cannot be written to.
        SecurityRefused: what is in it does not verify.
    """
    named = str(config.get("heads", ""))
    if not named:
        LOG.warning("no folder for heads: an old ledger is noticed within this run alone")
        return HeadBook(SigningKey.generate())
    folder = Path(named)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / KEY_NAME
    if not path.exists():
        SigningKey.generate().write(path)
    return HeadBook(read_signing_key(path), folder)


def declared_subjects(members: Iterable[Member]) -> dict[str, int]:
    """Declared subjects of each domain over its sites."""
    sizes: dict[str, int] = {}
    for member in members:
        who = member.identity
        sizes[who.domain] = sizes.get(who.domain, 0) + who.declared_subjects
    return sizes


def plan_from_run_config(config: Mapping[str, Any]) -> RunPlan:
    """The plan in a flat run configuration, `privacy.epsilon = 4.0` and so on.

    Raises:
        ConfigError: a key that no plan has, or a value out of range.
    """
    nested: dict[str, Any] = {}
    for key, value in config.items():
        if key in {"out", "sites", "heads"}:
            continue
        *path, leaf = key.replace("-", "_").split(".")
        target = nested
        for part in path:
            target = target.setdefault(part, {})
        target[leaf] = value
    plan = parse(RunPlan, nested, where="run configuration")
    if not isinstance(plan, RunPlan):
        raise ConfigError("Expected a run plan in the run configuration.")
    return plan


def find_members(
    grid: Grid, plan: RunPlan, weights: Mapping[str, float], context: Context
) -> dict[int, Member]:
    """Ask every node who it is; refuse a consortium whose sites do not fit together.

    Raises:
        ConfigError: fewer sites than the run configuration's `sites` within the round timeout.
        SecurityRefused: two sites of one name, or two catalogs in one domain.
    """
    wanted = int(context.run_config.get("sites", 1))
    nodes = _wait_for_nodes(grid, wanted, plan.federation.round_timeout)
    queries = [
        Message(RecordDict(), dst_node_id=node, message_type=MessageType.QUERY)
        for node in sorted(nodes)
    ]
    replies = grid.send_and_receive(queries, timeout=plan.federation.round_timeout)
    found = [
        Member(
            node=reply.metadata.src_node_id,
            identity=(who := unpack_identity(reply.content)),
            weight=weights.get(who.site, 1.0),
        )
        for reply in replies
        if not reply.has_error()
    ]
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


def initial_adapter(plan: RunPlan, members: Any, backbone: Backbone) -> Tensors:
    """The adapter before round 1: zeros, and A from the public seed where A travels."""
    tensors: Tensors = {}
    sizes = {m.identity.domain: m.identity.items for m in members}
    for domain, items in sorted(sizes.items()):
        model = Recommender(
            plan.recommender,
            backbone=backbone,
            width=backbone.width,
            items=items,
            domain=domain,
        )
        for name, value in model.adapter().items():
            tensors[name] = np.ascontiguousarray(value.numpy())
    return tensors


app = build()
