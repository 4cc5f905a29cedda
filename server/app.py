"""The ServerApp: wiring only. (1) plan, (2) who is there, (3) adapter, (4) rounds, (5) release."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.backbone import Backbone, load_backbone
from common.durable import write_atomic
from common.errors import ConfigError
from common.ledger_file import KEY_NAME, PUBLIC_NAME
from common.plan import RunPlan, plan_from_json
from common.recommender import Recommender
from common.signing import PublicKey, SigningKey, read_signing_key
from common.wire import Tensors
from server.admission import Member
from server.checkpoint import Checkpoint, Checkpoints
from server.contract import read_contract
from server.heads import HeadBook
from server.membership import Membership, find_members, require_began
from server.options import ServerOptions, options_from_run_config, plan_from_run_config
from server.public import PublicEvaluation, open_public
from server.release import write_release
from server.rounds import OnRound, Phase, RoundLoop, no_phase
from server.strategy import make_strategy

LOG = logging.getLogger("confed.server")


def build(
    plan: RunPlan | None = None,
    on_round: OnRound | None = None,
    backbone: Backbone | None = None,
    weights: Mapping[str, float] | None = None,
    *,
    heads: HeadBook | None = None,
    options: ServerOptions | None = None,
    phase: Phase = no_phase,
) -> ServerApp:
    """Assemble a ServerApp.

    Args:
        plan: of the run; None reads it from the run configuration.
        on_round: told the released adapter after round 0, 1, …; a simulation watches here.
        backbone: the frozen model, when the process holds it already.
        weights: contract weight by site, 1 where none is given.
        heads: memory of the sites' ledgers; None keeps it in the folder of the options' state.
        options: of the operator; None reads them from the run configuration.
        phase: told each phase of a round before it begins; faults are injected here.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        chosen = options if options is not None else options_from_run_config(context.run_config)
        resumed = _newest(chosen)
        agreed = _agreed(plan, context.run_config, resumed)  # (1)
        contract = read_contract(Path(chosen.contract)) if chosen.contract else None
        shares = contract.weights() if contract is not None else dict(weights or {})
        keys = contract.keys() if contract is not None else None
        book = heads if heads is not None else open_heads(chosen.folder, keys)
        members = find_members(  # (2)
            grid, agreed, shares, sites=chosen.sites, contract=contract
        )
        if resumed is None:
            agreed = agreed.with_domains(declared_subjects(members.values()))
        else:
            require_began(list(members.values()), resumed.facts["members"])
        frozen = backbone if backbone is not None else _backbone(agreed)
        initial = initial_adapter(agreed, members.values(), frozen)  # (3)
        run = str(context.run_id) if resumed is None else resumed.run
        strategy = make_strategy(agreed, members, initial, heads=book, run=run)
        loop = RoundLoop(
            grid=grid,
            plan=agreed,
            strategy=strategy,
            membership=Membership(members=members, weights=shares, contract=contract),
            current=initial,
            checkpoints=_checkpoints(chosen),
            public=_public(chosen, agreed, frozen, members.values()),
            on_round=on_round,
            phase=phase,
            options=vars(chosen),
        )
        if resumed is not None:
            loop.resume(resumed)
        released = loop.run()  # (4)
        if chosen.out:  # (5)
            write_release(Path(chosen.out), released, loop=loop, backbone=frozen, heads=book)
            LOG.info("adapter written to %s", chosen.out)

    return app


def open_heads(folder: Path | None, keys: Mapping[str, PublicKey] | None = None) -> HeadBook:
    """The server's memory of ledgers, in a folder with the server's key or for this run alone.

    Args:
        folder: of the server's state.
        keys: of the contract; a site that is not there is trusted at its first ledger.

    Raises:
        ConfigError: the folder cannot be written to.
        SecurityRefused: what is in it does not verify.
    """
    if folder is None:
        LOG.warning("no folder for the server's state: this run cannot be resumed")
        return HeadBook(SigningKey.generate(), keys=keys)
    path = folder / KEY_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            SigningKey.generate().write(path)
        key = read_signing_key(path)
        # Each time: a server may have been killed between the two files.
        write_atomic(folder / PUBLIC_NAME, key.public.pem())
    except OSError as error:
        raise ConfigError(f"Expected to write into {folder}, got '{error.strerror}'.") from None
    return HeadBook(key, folder / "heads", keys)


def _backbone(plan: RunPlan) -> Backbone:
    """The plan's backbone in the plan's numbers: a site's figures and the server's must agree."""
    return load_backbone(plan.recommender.backbone, dtype=plan.recommender.dtype)


def _checkpoints(options: ServerOptions) -> Checkpoints | None:
    return None if options.folder is None else Checkpoints(options.folder / "checkpoints")


def _newest(options: ServerOptions) -> Checkpoint | None:
    """The round to go on after; None for a new run.

    Raises:
        ConfigError: nothing to resume, or rounds lie in the folder and the run is a new one.
    """
    checkpoints = _checkpoints(options)
    found = None if checkpoints is None else checkpoints.newest()
    if found is None and options.resume:
        raise ConfigError(
            f"Expected a committed round in {options.state} to resume after, found none; "
            "start the run without resume."
        )
    if found is not None and not options.resume:
        raise ConfigError(
            f"Expected an empty folder of checkpoints in {options.state}, found round "
            f"{found.round}; run `confed server resume`, or name another folder."
        )
    return found


def _agreed(
    given: RunPlan | None, config: Mapping[str, Any], resumed: Checkpoint | None
) -> RunPlan:
    """The plan of the run: given, configured, or that of the checkpoint.

    Raises:
        ConfigError: a plan is given and the checkpoint was made under another.
    """
    if resumed is None:
        return given if given is not None else plan_from_run_config(config)
    before = plan_from_json(resumed.plan)
    sizes = {"domains": before.recommender.domains}
    if given is not None:
        asked = {"recommender": given.recommender.model_copy(update=sizes)}
        if given.model_copy(update=asked) != before:
            raise ConfigError("Expected the plan of the checkpoint to resume with, got another.")
    return before


def _public(
    options: ServerOptions, plan: RunPlan, backbone: Backbone, members: Iterable[Member]
) -> PublicEvaluation | None:
    if not options.public:
        return None
    return open_public(
        Path(options.public),
        options.public_domain,
        plan.recommender,
        backbone=backbone,
        patience=options.patience,
        catalogs={m.identity.domain: m.identity.catalog for m in members},
    )


def declared_subjects(members: Iterable[Member]) -> dict[str, int]:
    """Declared subjects of each domain over its sites."""
    sizes: dict[str, int] = {}
    for member in members:
        who = member.identity
        sizes[who.domain] = sizes.get(who.domain, 0) + who.declared_subjects
    return sizes


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
