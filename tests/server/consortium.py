"""A small consortium for the server's tests: the real apps, real ledgers, a tiny backbone."""

import logging
import multiprocessing
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp

from client.app import build as build_client
from client.permits import PermitSource
from client.session import close_sessions
from client.site import SiteRecords
from common.adapter import tensors_sha256
from common.caps import SiteCaps
from common.ledger import Ledger
from common.plan import EvaluationPlan, RunPlan, plan_from_json
from common.randomness import Randomness
from common.site_ledger import has_ledger, open_ledger, start_ledger
from common.wire import Tensors
from server.app import build
from server.heads import HeadBook
from server.options import ServerOptions
from server.rounds import Phase, no_phase
from simulations.grid import InProcessGrid
from simulations.ledgers import MemoryLedgers
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
