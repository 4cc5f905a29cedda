"""Two engines behind one interface, both running the two apps that are deployed.

`in-process` calls the ClientApp in threads of this process; `flower` hands the apps to Flower's
simulation engine (Ray), which scales to a cluster. With seeded noise both give the same adapter.
"""

import itertools
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp

from client.app import build as build_client
from client.permits import PermitSource
from client.session import backbone_for, close_sessions
from client.site import SiteRecords
from common.backbone import Backbone
from common.errors import ConfigError, OrderError
from common.plan import RunPlan
from common.randomness import Randomness, SecureRandomness
from common.signing import SigningKey
from common.textpath import ActivationStore
from common.windows import history_texts, training_windows
from common.wire import Tensors
from server.app import build as build_server
from server.heads import HeadBook
from simulations.ledgers import FolderLedgers, MemoryLedgers
from simulations.seeded import SeededRandomness
from simulations.sites import FolderSites, MemorySites, write_site

OnRound = Callable[[int, Tensors], None]
Disturb = Callable[[ClientApp, "Job"], ClientApp]
"""From the app of honest sites to one in which some are hostile, or faulty."""
_RUN_IDS = itertools.count(1)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One federated run.

    Attributes:
        plan: of the run.
        sites: who takes part.
        noise_seed: None for secure noise; a number repeats the run and voids the privacy claim.
        store: of activations.
        on_round: told the released adapter after each round.
        ledgers: folder of the sites' ledgers, one a site; None keeps them in memory.
        disturb: makes some sites hostile or faulty; None for none.
    """

    plan: RunPlan
    sites: Sequence[SiteRecords]
    noise_seed: int | None
    store: ActivationStore
    on_round: OnRound | None = None
    ledgers: Path | None = None
    disturb: Disturb | None = None

    def permits(self) -> PermitSource:
        """Where the run's sites find their ledgers."""
        return MemoryLedgers() if self.ledgers is None else FolderLedgers(self.ledgers)

    def close(self, heads: HeadBook) -> None:
        """Leave an auditor's folder behind: ledgers, public keys and receipts."""
        if self.ledgers is not None and self.plan.privacy.private:
            heads.write_receipts(self.ledgers)
            FolderLedgers(self.ledgers).forget_keys()


class Engine(Protocol):
    """Runs a job and returns the released adapter."""

    name: str

    def run(self, job: Job) -> Tensors:
        """Run all rounds."""


@dataclass(frozen=True, kw_only=True)
class NoiseSource:
    """Randomness of a simulation: seeded by site and round, or secure. Can be pickled."""

    seed: int | None

    def __call__(self, site: str, number: int) -> Randomness:
        """The generator of one round at one site."""
        if self.seed is None:
            return SecureRandomness()
        return SeededRandomness(
            seed=self.seed, site=site, round_number=number, purpose="simulation"
        )


class _Watch:
    """Keeps the last released adapter and passes each on."""

    def __init__(self, on_round: OnRound | None) -> None:
        self._on_round = on_round
        self.released: Tensors | None = None
        self.rounds = 0

    def __call__(self, number: int, released: Tensors) -> None:
        self.released = {name: np.array(value) for name, value in released.items()}
        self.rounds = number
        if self._on_round is not None:
            self._on_round(number, self.released)

    def result(self, plan: RunPlan) -> Tensors:
        """The adapter after the last round.

        Raises:
            OrderError: the run ended early.
        """
        if self.released is None or self.rounds != plan.federation.rounds:
            raise OrderError(
                f"Expected {plan.federation.rounds} rounds, the engine ended after {self.rounds}; "
                "see the log above."
            )
        return self.released


def _backbone(plan: RunPlan) -> Backbone:
    return backbone_for(plan.recommender)


class InProcessEngine:
    """All sites in threads of this process.

    Args:
        workers: sites that train at the same time; None takes one a processor.
    """

    name = "in-process"

    def __init__(self, workers: int | None = None) -> None:
        self._workers = workers or os.cpu_count() or 1

    def run(self, job: Job) -> Tensors:
        """As Engine."""
        from simulations.grid import InProcessGrid  # noqa: PLC0415

        run_id = next(_RUN_IDS)
        watch = _Watch(job.on_round)
        client = build_client(
            MemorySites(tuple(job.sites)),
            NoiseSource(seed=job.noise_seed),
            job.store,
            job.permits(),
        )
        if job.disturb is not None:
            client = job.disturb(client, job)
        heads = HeadBook(SigningKey.generate())
        server = build_server(job.plan, watch, _backbone(job.plan), heads=heads)
        workers = min(self._workers, len(job.sites))
        grid = InProcessGrid(client, nodes=len(job.sites), run_id=run_id, workers=workers)
        try:
            server(grid, _server_context(run_id, len(job.sites)))
        finally:
            grid.close()
            close_sessions(run_id)
            job.close(heads)
        return watch.result(job.plan)


class FlowerEngine:
    """Flower's simulation engine on Ray; sites are read from folders that the actors can see."""

    name = "flower"

    def __init__(self, workers: int | None = None) -> None:
        self._workers = workers or os.cpu_count() or 1

    def run(self, job: Job) -> Tensors:
        """As Engine.

        Raises:
            ConfigError: Ray is not installed, or sites are to be hostile or faulty.
        """
        if job.disturb is not None:
            raise ConfigError(
                "Expected --engine in-process with --attack or --fault, got flower: hostile sites "
                "see each other's answers in one process only."
            )
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
        try:
            from flwr.simulation import run_simulation  # noqa: PLC0415
        except ImportError as error:
            raise ConfigError(
                "Expected Ray for --engine flower; install confed[simulation]."
            ) from error
        watch = _Watch(job.on_round)
        with tempfile.TemporaryDirectory(prefix="confed-sites-") as folder:
            for number, site in enumerate(job.sites):
                write_site(site, Path(folder), number)
                _share_activations(job, site)
            ledgers = job.ledgers if job.ledgers is not None else Path(folder) / "ledgers"
            client = build_client(
                FolderSites(Path(folder)),
                NoiseSource(seed=job.noise_seed),
                job.store,
                FolderLedgers(ledgers),
            )
            heads = HeadBook(SigningKey.generate())
            server = build_server(job.plan, watch, _backbone(job.plan), heads=heads)
            run_simulation(
                server_app=server,
                client_app=client,
                num_supernodes=len(job.sites),
                backend_config={
                    "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
                    "init_args": {"num_cpus": self._workers, "logging_level": logging.ERROR},
                },
            )
            job.close(heads)
        return watch.result(job.plan)


def _share_activations(job: Job, site: SiteRecords) -> None:
    """Put what this process encoded where the actors look, so that nothing is encoded twice."""
    plan, backbone = job.plan.recommender, _backbone(job.plan)
    windows = training_windows(
        site.interactions, windows=plan.windows, history_items=plan.history_items
    )
    texts = history_texts(windows.history, site.catalog, items=plan.text_items)
    made = job.store.texts(backbone, texts, tokens=plan.text_tokens, top_layers=plan.top_layers)
    job.store.keep(backbone, texts, made, tokens=plan.text_tokens, top_layers=plan.top_layers)


def _server_context(run_id: int, sites: int) -> Context:
    return Context(
        run_id=run_id,
        node_id=0,
        node_config={},
        state=RecordDict(),
        run_config={"sites": sites},
    )


ENGINES: dict[str, type[InProcessEngine] | type[FlowerEngine]] = {
    "in-process": InProcessEngine,
    "flower": FlowerEngine,
}


def make_engine(name: str) -> InProcessEngine | FlowerEngine:
    """The engine of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in ENGINES:
        raise ConfigError(f"Expected engine {' or '.join(ENGINES)}, got {name}.")
    return ENGINES[name]()
