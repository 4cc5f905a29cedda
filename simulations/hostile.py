"""A ClientApp whose hostile sites answer what an attack makes up; all others answer as deployed.

A hostile site is a full member: its own ledger and key, real reservations, a release of the very
bytes that it sends. So the server finds every signature in order.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
from flwr.app import Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray
from safetensors.numpy import load

from client.permits import Permits, PermitSource
from client.session import Session, backbone_for
from client.site import SiteRecords
from common.bounds import noise_variance, update_bound
from common.errors import ConfigError
from common.grant import Grant
from common.plan import RunPlan
from common.randomness import Randomness
from common.textpath import ActivationStore
from common.wire import Order, Tensors, pack_answer, pack_evaluation, to_tensors, unpack_order
from simulations.attacks import Attack, Replay, Trap, View, trap_of
from simulations.unprotected import FreeGrant

Overhear = Callable[[], tuple[Tensors, ...]]


class HostileSession(Session):
    """A site's part in a run without its egress gate, its noise or its good will.

    Args:
        attack: what it does.
        draw: its random numbers.
        given: of `Session`.
    """

    def __init__(self, *args: Any, attack: Attack, draw: np.random.Generator, **given: Any) -> None:
        super().__init__(*args, **given)
        self._attack, self._draw = attack, draw
        self.overhear: Overhear = tuple

    def _update(self, order: Order, adapter: Tensors, grant: Grant) -> Tensors:
        """What the attack makes of an update without noise; the grant's own draws stay unused."""
        privacy, federation = self.plan.privacy, self.plan.federation
        free = FreeGrant(
            _Draws(self._draw), sample_rate=privacy.sample_rate, steps=federation.local_steps
        )
        mine = super()._update(order, adapter, free)
        bound = update_bound(
            self.plan,
            noise_multiplier=self.noise_multiplier,
            size=sum(value.size for value in mine.values()),
            expected=privacy.sample_rate * self.records.declared_subjects,
        )
        known = View(own=mine, honest=self.overhear(), draw=self._draw, bound=bound)
        return self._padded(self._attack.poison(known))

    def _padded(self, made: Tensors) -> Tensors:
        """Just enough noise for the server's gate, which refuses what lacks the plan's."""
        if not self.plan.privacy.private:
            return made
        variance = noise_variance(
            self.plan,
            noise_multiplier=self.noise_multiplier,
            expected=self.plan.privacy.sample_rate * self.records.declared_subjects,
        )
        return {name: _long_enough(value, variance, self._draw) for name, value in made.items()}

    def _out(self, order: Order, payload: bytes, released: str) -> Tensors:
        """No gate: whatever was released is sent."""
        made: Tensors = load(payload)
        return made


def _long_enough(
    value: NDArray[np.float32], variance: float, draw: np.random.Generator
) -> NDArray[np.float32]:
    squared = float(np.square(value, dtype=np.float64).sum())
    lacking = variance * value.size - squared
    if not np.isfinite(squared) or lacking <= 0:
        return value
    noise = np.sqrt(lacking / value.size) * draw.standard_normal(value.shape)
    padded: NDArray[np.float32] = (value + noise).astype(np.float32)
    return padded


class _Draws(Randomness):
    """The attacker's own random numbers as a source of samples."""

    def __init__(self, draw: np.random.Generator) -> None:
        self._draw = draw

    def normal(self, n: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        """As Randomness."""
        return self._draw.standard_normal(n)

    def poisson_sample(self, population: int, rate: float) -> np.ndarray[Any, np.dtype[np.int64]]:
        """As Randomness."""
        return np.flatnonzero(self._draw.random(population) < rate).astype(np.int64)


@dataclass(kw_only=True)
class Conspiracy:
    """All hostile sites of a run behind one ClientApp.

    Attributes:
        attack: what they do.
        names: of the hostile sites.
        sites: all sites of the run, by partition.
        honest: the app of everybody else.
        store: of activations.
        permits: where ledgers come from.
        seed: of the attackers' random numbers.
        sent: answers of the hostile sites.
        told: what the server said of them, by code, as far as it told.
    """

    attack: Attack
    names: frozenset[str]
    sites: tuple[SiteRecords, ...]
    honest: ClientApp
    store: ActivationStore
    permits: PermitSource
    seed: int = 0
    sent: int = 0
    told: Counter[int] = field(default_factory=Counter)
    _sessions: dict[str, HostileSession] = field(default_factory=dict)
    _tampers: dict[str, Callable[[RecordDict], RecordDict]] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        missing = sorted(self.names - {site.name for site in self.sites})
        if missing:
            raise ConfigError(
                f"Expected hostile sites among {', '.join(s.name for s in self.sites)[:200]}, "
                f"got {missing[0]}."
            )
        if len(self.names) >= len(self.sites):
            raise ConfigError("Expected at least one honest site, got none; set --hostile lower.")

    def app(self) -> ClientApp:
        """The app that all sites of the run answer with."""
        app = ClientApp()

        @app.query()
        def identify(message: Message, context: Context) -> Message:
            return self.honest(message, context)

        @app.train()
        def train(message: Message, context: Context) -> Message:
            site = self._site(context)
            if site.name not in self.names:
                return self.honest(message, context)
            return Message(self._train(site, message, context), reply_to=message)

        @app.evaluate()
        def evaluate(message: Message, context: Context) -> Message:
            site = self._site(context)
            if site.name not in self.names:
                return self.honest(message, context)
            order, adapter = unpack_order(message.content)
            found = self._session(site, order).evaluate(order, adapter, self._randomness)
            return Message(pack_evaluation(found), reply_to=message)

        return app

    def trap(self, domain: str) -> Trap:
        """The items of a backdoor in that domain, chosen from what the hostile sites hold."""
        mine = [s for s in self.sites if s.domain == domain and s.name in self.names]
        return trap_of([s.interactions for s in mine], len(mine[0].catalog))

    def _site(self, context: Context) -> SiteRecords:
        return self.sites[int(context.node_config["partition-id"])]

    def _train(self, site: SiteRecords, message: Message, context: Context) -> RecordDict:
        order, adapter = unpack_order(message.content)
        session = self._session(site, order)
        if self.attack.overhears:
            session.overhear = lambda: self._overheard(site, message, context)
        content = pack_answer(session.train(order, adapter, self._randomness))
        with self._lock:
            default = Replay() if self.attack.replays else self.attack.tamper
            tamper = self._tampers.setdefault(site.name, default)
            self.sent += 1
            self.told[order.last] += 1
        return tamper(content)

    def _session(self, site: SiteRecords, order: Order) -> HostileSession:
        with self._lock:
            if site.name not in self._sessions:
                self._sessions[site.name] = self._opened(site, order.run, order.plan)
            return self._sessions[site.name]

    def _opened(self, site: SiteRecords, run: str, plan: RunPlan) -> HostileSession:
        number = [s.name for s in self.sites].index(site.name)
        permits: Permits = self.permits(site, plan, run)
        return HostileSession(
            run,
            self.attack.records(site, self.trap(site.domain)),
            plan,
            backbone=backbone_for(plan.recommender),
            store=self.store,
            permits=permits,
            attack=self.attack,
            draw=np.random.default_rng([self.seed, number]),
        )

    def _randomness(self, site: str, number: int) -> Randomness:
        return _Draws(np.random.default_rng([self.seed, number]))

    def _overheard(
        self, mine: SiteRecords, message: Message, context: Context
    ) -> tuple[Tensors, ...]:
        """What the honest sites of the same domain answer to the same order.

        Asked twice, a session gives the bytes that it released, so nobody pays or draws twice.
        """
        found = []
        for number, site in enumerate(self.sites):
            if site.domain != mine.domain or site.name in self.names:
                continue
            shift = number - int(context.node_config["partition-id"])
            peer = Context(
                run_id=context.run_id,
                node_id=context.node_id + shift,
                node_config={**context.node_config, "partition-id": number},
                state=RecordDict(),
                run_config=context.run_config,
            )
            order = Message(
                content=message.content,
                dst_node_id=peer.node_id,
                message_type=MessageType.TRAIN,
                ttl=message.metadata.ttl,
            )
            reply = self.honest(order, peer)
            if not reply.has_error():
                found.append(to_tensors(reply.content["update"]))  # type: ignore[arg-type]
        return tuple(found)
