"""Row: the in-process engine with 100 clients, beside pfl-research and Flower's Ray engine.

The strategy, the wire format, the dispatch of messages and the egress gate are those of a real
run; a client's step only adds a constant, as in pfl-research's figure.
"""

import hashlib
import itertools
import logging
import time
from collections.abc import Callable

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from client.egress import pass_out
from common.plan import FederationPlan, PrivacyPlan, RecommenderPlan, RunPlan
from common.signing import SigningKey
from common.wire import (
    Answer,
    Identity,
    Tensors,
    pack_answer,
    pack_identity,
    to_payload,
    unpack_order,
)
from server.heads import HeadBook
from server.membership import Membership, find_members
from server.rounds import RoundLoop
from server.strategy import make_strategy
from simulations.benchmark.clock import Timing
from simulations.benchmark.rows import Row

CLIENTS, FLOATS = 100, 300_000
LEAST, AIM = 0.29, 0.1
KNOWN = "known: pfl-research 0.6 0.29 s, Flower's Ray engine 4.5 s"
BIAS_ITEMS = 432
WIDTH = 316
"""3 x 316 x 316 + 432 = 300,000 floats in the map and the bias of one domain."""


def engine_row(*, rounds: int, ray_rounds: int) -> Row:
    """Seconds a round of 100 clients; `ray_rounds` of 0 leaves Flower's engine out."""
    found = in_process(rounds)
    detail = {"in_process": found.plain(), "clients": CLIENTS, "floats": FLOATS}
    comparison = KNOWN
    if ray_rounds:
        by_ray = on_ray(ray_rounds)
        detail["ray"] = by_ray.plain()
        comparison = f"Flower's Ray engine {by_ray.median:.2f} s; known: pfl-research 0.6 0.29 s"
    return Row(
        name=f"In-process engine, {CLIENTS} clients, {FLOATS:,} floats, trivial step, a round",
        measured=round(found.median, 4),
        unit="s",
        comparison=comparison,
        least=LEAST,
        aim=AIM,
        detail=detail,
    )


def in_process(rounds: int) -> Timing:
    """Seconds of each round in the in-process engine."""
    from simulations.grid import InProcessGrid  # noqa: PLC0415

    stamps: list[float] = []
    grid = InProcessGrid(client_app(), nodes=CLIENTS, run_id=1, workers=2)
    context = Context(
        run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={"sites": CLIENTS}
    )
    try:
        server_app(rounds + 1, lambda: stamps.append(time.perf_counter()))(grid, context)
    finally:
        grid.close()
    return _after_first(stamps)


def on_ray(rounds: int) -> Timing:
    """Seconds of each round in Flower's simulation engine, the same two apps."""
    from flwr.simulation import run_simulation  # noqa: PLC0415

    stamps: list[float] = []
    run_simulation(
        server_app=server_app(rounds + 1, lambda: stamps.append(time.perf_counter())),
        client_app=client_app(),
        num_supernodes=CLIENTS,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"logging_level": logging.ERROR},
        },
    )
    return _after_first(stamps)


def _after_first(stamps: list[float]) -> Timing:
    """The first round fills caches and is left out."""
    return Timing(seconds=tuple(b - a for a, b in itertools.pairwise(stamps))[1:])


def server_app(rounds: int, on_round: Callable[[], None]) -> ServerApp:
    """The server's own wiring without a model: members, strategy, rounds."""
    plan = RunPlan(
        recommender=RecommenderPlan(top_layers=0),
        # Without noise there is no ledger: its signatures have rows of their own.
        privacy=PrivacyPlan(private=False),
        federation=FederationPlan(rounds=rounds),
    )
    app = ServerApp()

    @app.main()
    def main(grid: Grid, _context: Context) -> None:
        initial = initial_tensors()
        members = find_members(grid, plan, {}, sites=CLIENTS)
        heads = HeadBook(SigningKey.generate())
        strategy = make_strategy(plan, members, initial, heads=heads, run="1")
        RoundLoop(
            grid=grid,
            plan=plan,
            strategy=strategy,
            membership=Membership(members=members, weights={}),
            current=initial,
            on_round=lambda _number, _released: on_round(),
        ).run()

    return app


def initial_tensors() -> Tensors:
    """300,000 zeros under the names that a run without a text path has."""
    return {
        "map.bench": np.zeros((WIDTH, 3 * WIDTH), np.float32),
        "bias.bench": np.zeros(BIAS_ITEMS, np.float32),
    }


def client_app() -> ClientApp:
    """A site whose training adds a constant; the messages and the gate are the real ones."""
    app = ClientApp()

    @app.query()
    def identify(message: Message, context: Context) -> Message:
        who = Identity(
            site=f"site-{context.node_id}",
            domain="bench",
            items=BIAS_ITEMS,
            catalog="0" * 64,
            declared_subjects=1000,
        )
        return Message(pack_identity(who), reply_to=message)

    @app.train()
    def train(message: Message, _context: Context) -> Message:
        order, adapter = unpack_order(message.content)
        update = {name: np.full_like(value, 1e-3) for name, value in adapter.items()}
        shapes = {name: value.shape for name, value in adapter.items()}
        payload = to_payload(update)
        released = hashlib.sha256(payload).hexdigest()
        gated = pass_out(payload, released=released, shapes=shapes, bound=1e6)
        return Message(pack_answer(Answer(round=order.round, update=gated)), reply_to=message)

    return app
