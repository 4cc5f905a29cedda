"""A small consortium for the server's tests: the real apps, real ledgers, a tiny backbone."""

import logging
import multiprocessing
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from client.app import build as build_client
from client.permits import PermitSource
from client.session import close_sessions
from client.site import SiteRecords
from common.adapter import tensors_sha256
from common.caps import SiteCaps
from common.ledger import Ledger, PlanRequest, create_ledger
from common.plan import EvaluationPlan, RunPlan, plan_from_json
from common.randomness import Randomness, SecureRandomness
from common.signing import PublicKey, SigningKey
from common.site_ledger import has_ledger, open_ledger, start_ledger
from common.spending import events_of, noise_of
from common.wire import (
    Answer,
    Identity,
    Order,
    Tensors,
    pack_answer,
    to_payload,
    to_record,
    to_tensors,
    unpack_order,
)
from server.admission import Member
from server.app import build
from server.heads import HeadBook
from server.options import ServerOptions
from server.rounds import Phase, no_phase
from server.strategy import ConsortiumStrategy, make_strategy
from simulations.grid import FIRST_NODE, InProcessGrid
from simulations.ledgers import MemoryLedgers, MemoryStore
from simulations.seeded import SeededRandomness
from simulations.sites import MemorySites
from tests.models import run_plan, site_of

RUN = 9_100_001
ROOM = SiteCaps(epsilon=900.0, delta=1e-5, noise_multiplier=0.5, max_grad_norm=1.0, rounds=100)
"""Room for rounds that are paid for again after a kill."""
SITES = (
    site_of("north"),
    site_of("south", seed=1),
    site_of("east", domain="bank", items=20),
    site_of("west", domain="bank", items=20, seed=2),
)


def plan_of(*, evaluate: int = 0, **federation: Any) -> RunPlan:
    """A private run of 4 rounds, LoRA trained in the first two."""
    plan = run_plan(
        privacy={"noise_multiplier": 2.0},
        federation={"rounds": 4, "text_rounds": 2, **federation},
    )
    evaluation = EvaluationPlan(every=evaluate, noise_multiplier=20.0)
    return plan.model_copy(update={"evaluation": evaluation})


def seeded(site: str, number: int) -> Randomness:
    """Noise that repeats, so that two runs can be compared bit by bit."""
    return SeededRandomness(seed=7, site=site, round_number=number, purpose="noise")


@dataclass(frozen=True)
class RoomyLedgers:
    """One folder a site below `root`, which outlives the process, with ROOM."""

    root: Path

    def __call__(self, records: SiteRecords, plan: RunPlan, run: str = "") -> Ledger:
        folder = self.root / records.name
        if has_ledger(folder):
            return open_ledger(folder, site=records.name)
        return start_ledger(folder, site=records.name, caps=ROOM)


def client_of(*sites: SiteRecords, permits: PermitSource | None = None) -> ClientApp:
    """The product's own ClientApp over sites in memory."""
    return build_client(MemorySites(sites), randomness=seeded, permits=permits or MemoryLedgers())


def context_of(run_id: int = RUN, **config: Any) -> Context:
    return Context(
        run_id=run_id, node_id=0, node_config={}, state=RecordDict(), run_config=dict(config)
    )


@dataclass(kw_only=True)
class Consortium:
    """Runs the product's server over its client, in this process.

    Attributes:
        plan: of the run; None takes that of the checkpoint or the default.
        sites: one a node.
        permits: ledgers.
        options: of the server; `sites` is filled in.
        phase: fault injection.
        weights: contract weights.
    """

    plan: RunPlan | None = field(default_factory=plan_of)
    sites: Sequence[SiteRecords] = SITES
    permits: PermitSource | None = None
    options: ServerOptions = field(default_factory=ServerOptions)
    phase: Phase = no_phase
    weights: Mapping[str, float] | None = None
    heads: HeadBook | None = None
    client: ClientApp | None = None
    grid: type[InProcessGrid] = InProcessGrid
    workers: int = 2

    def run(self, run_id: int = RUN) -> dict[int, str]:
        """Hash of the released adapter by round."""
        return {number: tensors_sha256(value) for number, value in self.adapters(run_id).items()}

    def adapters(self, run_id: int = RUN) -> dict[int, Tensors]:
        """The released adapter by round."""
        seen: dict[int, Tensors] = {}
        app = build(
            self.plan,
            lambda n, t: seen.__setitem__(n, {k: v.copy() for k, v in t.items()}),
            weights=self.weights,
            heads=self.heads,
            options=replace(self.options, sites=len(self.sites)),
            phase=self.phase,
            backbone=None,
        )
        client = self.client or client_of(*self.sites, permits=self.permits)
        grid = self.grid(client, nodes=len(self.sites), run_id=run_id, workers=self.workers)
        try:
            app(grid, context_of(run_id))
        finally:
            grid.close()
            close_sessions(run_id)
        return seen


class Stopped(Exception):
    """The server is gone, as far as a test without a second process can tell."""


def stops_at(name: str, number: int) -> Phase:
    """A server that ends where the phase `name` of round `number` begins."""

    def phase(found: str, at: int) -> None:
        if (found, at) == (name, number):
            raise Stopped

    return phase


# Servers in a process of their own, that `kill -9` ends


def serve(folder: str, plan: str, *, resume: bool, kill: tuple[str, int] | None) -> None:
    """Run the consortium below `folder`; the last line of `hashes` is the final adapter's."""
    root = Path(folder)
    logging.basicConfig(filename=root / "log", level=logging.INFO, force=True)

    def phase(name: str, number: int) -> None:
        if (name, number) == kill:
            os.kill(os.getpid(), signal.SIGKILL)

    options = ServerOptions(state=str(root / "state"), resume=resume)
    permits = RoomyLedgers(root / "ledgers")
    try:
        found = Consortium(
            plan=plan_from_json(plan), permits=permits, options=options, phase=phase
        ).run(RUN + resume)
    except Exception as error:
        (root / "error").write_text(f"{type(error).__name__}: {error}")
        raise SystemExit(3) from None
    (root / "hash").write_text(found[max(found)])


def start_server(
    root: Path, plan: RunPlan, *, resume: bool = False, kill: tuple[str, int] | None = None
) -> Any:
    """A server in a process that is forked from one that has imported everything and run nothing.

    A fork of the tests' own process would inherit torch's threads, and hang.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.server.consortium", "transformers", "peft"])
    process = context.Process(
        target=serve,
        args=(str(root), plan.to_json()),
        kwargs={"resume": resume, "kill": kill},
    )
    process.start()
    return process


# Sites that sign whatever a test makes them say, and the server's side of one round

SHAPES: dict[str, tuple[int, ...]] = {
    "text.layer.lora_B.weight": (3, 2),
    "mixer": (3, 4),
    "map.care": (4, 6),
    "gate.care": (1,),
    "bias.care": (5,),
}


class Signer:
    """A site with a real ledger that pays for and signs any update it is given."""

    def __init__(self, name: str, plan: RunPlan, *, run: str = "1") -> None:
        self.name, self.run = name, run
        self.key, self.sent = SigningKey.generate(), dict[int, dict[str, NDArray[Any]]]()
        self.ledger = create_ledger(MemoryStore(), site=name, caps=ROOM, key=self.key)
        request = PlanRequest(
            run=run,
            events=events_of(plan, noise_of(plan)),
            max_grad_norm=plan.privacy.max_grad_norm,
            plan_sha256="1" * 64,
        )
        self.ledger.plan(request)

    def pays(self, payload: bytes, number: int, *, purpose: str = "train") -> None:
        """Reserve and release one round with these bytes."""
        grant = self.ledger.reserve(
            run=self.run,
            number=number,
            model_sha256="2" * 64,
            randomness=SecureRandomness(),
            purpose=purpose,
        )
        self.ledger.release(grant, payload)

    def lines(self, order: Order) -> bytes:
        """What the server has not seen yet."""
        seen = next((r.seq for r in order.receipts if r.site == self.name), -1)
        return self.ledger.lines_after(seen)

    def answer(self, message: Message, update: Mapping[str, NDArray[Any]]) -> Message:
        """An answer as an honest site's gate packs it, whatever is in the update.

        A round that was answered before is answered with the same bytes.
        """
        order, _ = unpack_order(message.content)
        tensors = self.sent.setdefault(order.round, dict(update))
        if (self.run, order.round, "train") not in self.ledger.state().released:
            self.pays(to_payload(tensors), order.round)
        told = Answer(round=order.round, update=tensors, lines=self.lines(order))
        return Message(pack_answer(told), reply_to=message)


def identity_of(name: str, *, domain: str = "care", subjects: int = 100) -> Identity:
    return Identity(site=name, domain=domain, items=5, catalog="ab", declared_subjects=subjects)


def exchange_plan(**federation: Any) -> RunPlan:
    """A private plan whose server does nothing but add the aggregate."""
    gains = {f"{kind}_gain": 1.0 for kind in ("text", "gate", "mixer", "bias")}
    plain = {"rounds": 6, "text_rounds": 6, "strategy": "fedavg", "learning_rate": 1.0}
    return run_plan(
        privacy={"noise_multiplier": 2.0, "sample_rate": 0.5},
        federation={**plain, "averaging": 0.0, **gains, **federation},
    )


@dataclass(kw_only=True)
class Round:
    """The server's side of an exchange with signers, without their training."""

    plan: RunPlan
    signers: list[Signer]
    strategy: ConsortiumStrategy
    grid: InProcessGrid

    def orders(self, number: int = 1) -> dict[str, Message]:
        """Messages of a round, by site."""
        asked = self.strategy.configure_train(number, to_record(zeros()), ConfigRecord(), self.grid)
        names = {n: m.identity.site for n, m in self.strategy.members.items()}
        return {names[order.metadata.dst_node_id]: order for order in asked}

    def moved(self, replies: Sequence[Message], number: int = 1) -> Tensors:
        """How the adapter moved."""
        record, _ = self.strategy.aggregate_train(number, replies)
        assert record is not None
        return to_tensors(record)

    def signer(self, name: str) -> Signer:
        return next(signer for signer in self.signers if signer.name == name)


def zeros() -> Tensors:
    return {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}


def full(value: float) -> Tensors:
    return {name: np.full(shape, value, np.float32) for name, shape in SHAPES.items()}


def round_of(
    sites: int = 3, *, keys: Mapping[str, PublicKey] | None = None, **federation: Any
) -> Round:
    """A server and `sites` signers `s0`, `s1`, …"""
    plan = exchange_plan(**federation)
    signers = [Signer(f"s{i}", plan) for i in range(sites)]
    members = {
        FIRST_NODE + i: Member(node=FIRST_NODE + i, identity=identity_of(signer.name))
        for i, signer in enumerate(signers)
    }
    heads = HeadBook(SigningKey.generate(), keys=keys)
    strategy = make_strategy(plan, members, zeros(), heads=heads, run="1")
    grid = InProcessGrid(ClientApp(), nodes=sites, run_id=RUN, workers=1)
    return Round(plan=plan, signers=signers, strategy=strategy, grid=grid)
