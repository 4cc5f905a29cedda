"""The consortium's strategy on top of Flower's server optimisers.

Flower's classes keep the optimiser; what is ours stands on both sides of them: below, messages and
the contract-weighted mean (`_Collect`), above, learning rates by kind of tensor, frozen tensors
and the average of the iterates (`_Release`).
"""

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM
from numpy.typing import NDArray

from common.errors import ConfedError, RefusedError, SecurityRefused
from common.plan import RunPlan
from common.recommender import held_by, is_text, kind_of, read_by
from common.spending import noise_of
from common.wire import (
    Identity,
    Order,
    Tensors,
    pack_order,
    to_payload,
    to_record,
    to_tensors,
    unpack_answer,
)
from server.aggregation import weighted_mean
from server.heads import HeadBook

LOG = logging.getLogger("confed.server")
LEARNING_RATES = {"fedadam-mini": 0.007, "fedadam": 0.003, "fedavgm": 0.5, "fedavg": 3.0}
"""Server learning rate of the history map where the plan names none."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """A site of the contract: its node, its public facts and its weight."""

    node: int
    identity: Identity
    weight: float = 1.0


class _Collect(FedAvg):
    """Orders down, updates up, contract-weighted mean; knows which tensors a site holds."""

    plan: RunPlan
    members: Mapping[int, Member]
    shapes: Mapping[str, tuple[int, ...]]
    heads: HeadBook
    run: str
    _sent: Tensors

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message a site: the shared tensors and the bias of its own domain."""
        self._sent = to_tensors(arrays)
        order = Order(round=server_round, plan=self.plan, receipts=self.heads.receipts)
        present = set(grid.get_node_ids())
        bodies = {
            domain: pack_order(
                order, to_record({name: self._sent[name] for name in self.read_by(domain)})
            )
            for domain in {m.identity.domain for m in self.members.values()}
        }
        return [
            Message(
                content=bodies[member.identity.domain],
                message_type=MessageType.TRAIN,
                dst_node_id=node,
                ttl=self.plan.federation.round_timeout,
            )
            for node, member in self.members.items()
            if node in present
        ]

    def held_by(self, domain: str) -> list[str]:
        """Names of the tensors that sites of a domain train."""
        return [n for n in self.shapes if held_by(n, domain, self.plan.recommender)]

    def read_by(self, domain: str) -> list[str]:
        """Names of the tensors that sites of a domain are sent."""
        return [n for n in self.shapes if read_by(n, domain, self.plan.recommender)]

    def moved_in(self, server_round: int, domain: str) -> set[str]:
        """Names of the tensors that an answer of this round holds."""
        text = server_round <= self.plan.federation.text_rounds
        return {name for name in self.held_by(domain) if text or not is_text(name)}

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Current adapter plus the weighted mean of the updates; None when nobody answered."""
        admitted: dict[str, tuple[Tensors, float]] = {}
        for reply in replies:
            member = self.members.get(reply.metadata.src_node_id)
            if member is None or member.identity.site in admitted:
                continue  # a stranger, or a second answer: the first one counts
            try:
                admitted[member.identity.site] = self._admit(server_round, reply, member)
            except ConfedError as error:
                LOG.warning("round %d: site %s: %s", server_round, member.identity.site, error)
        if not admitted:
            raise RefusedError(
                f"Expected an answer to round {server_round} from one site at least, got none; "
                "see each site's own log for the reason."
            )
        self.heads.countersign(run=self.run, number=server_round)
        # In the order of the sites' names: float addition is not associative.
        ordered = [admitted[site] for site in sorted(admitted)]
        mean = weighted_mean([u for u, _ in ordered], [w for _, w in ordered])
        return to_record(_moved(self._sent, mean)), None

    def _admit(self, server_round: int, reply: Message, member: Member) -> tuple[Tensors, float]:
        if reply.has_error():
            raise SecurityRefused(f"no answer, code {reply.error.code}")
        answer = unpack_answer(reply.content)
        update = answer.update
        if answer.round != server_round:
            raise SecurityRefused(f"answer to round {answer.round}")
        if self.plan.privacy.private:
            site = member.identity.site
            self.heads.admit(site, answer.lines)
            payload = to_payload(update)
            self.heads.require_paid(site, run=self.run, number=server_round, payload=payload)
        if set(update) != self.moved_in(server_round, member.identity.domain):
            raise SecurityRefused("answer holds other tensors than asked for")
        for name, value in update.items():
            if value.shape != self.shapes[name] or not np.isfinite(value).all():
                raise SecurityRefused(f"tensor {name} has another shape or is not finite")
        return update, member.weight


def _moved(sent: Tensors, mean: Mapping[str, NDArray[np.float64]]) -> Tensors:
    return {
        name: (value + mean[name]).astype(np.float32) if name in mean else value
        for name, value in sent.items()
    }


class FedAdamMini(FedAdam):
    """FedAdam with one second moment a tensor (as Adam-mini, Zhang et al. 2024, one a block).

    Under DP most coordinates hold more noise than signal, and a second moment of each coordinate
    follows the noise; one for a tensor only sets the step's length.
    """

    noise_power: Mapping[str, float]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """As FedAdam, step eta * m / (sqrt(mean v) + tau), both moments unbiased."""
        record, metrics = super(FedAdam, self).aggregate_train(server_round, replies)
        if record is None or self.current_arrays is None:
            return None, metrics
        delta, first, _ = self._compute_deltat_and_mt(record)
        before = self.v_t or {}
        self.v_t = {
            name: self.beta_2 * before.get(name, np.zeros(()))
            + (1 - self.beta_2) * np.mean(np.square(value, dtype=np.float64))
            for name, value in delta.items()
        }
        self._updates = getattr(self, "_updates", 0) + 1
        unbias_1 = 1 - self.beta_1**self._updates
        unbias_2 = 1 - self.beta_2**self._updates
        stepped = {}
        for name, value in self.current_arrays.items():
            power = float(self.v_t[name] / unbias_2)
            rate = self.eta / (math.sqrt(power) + self.tau) * self._signal(name, power)
            stepped[name] = value + rate * (first[name] / unbias_1)
        return to_record({k: np.asarray(v, dtype=np.float32) for k, v in stepped.items()}), metrics

    def _signal(self, name: str, power: float) -> float:
        """Wiener gain of the momentum: the share of its power that noise does not explain.

        The noise's variance is public. Momentum beta averages it down by (1-beta)/(1+beta).
        """
        noise = self.noise_power.get(name, 0.0)
        if noise <= 0 or power <= 0:
            return 1.0
        signal = max(power - noise, 0.0)
        left = noise * (1 - self.beta_1) / (1 + self.beta_1)
        return signal / (signal + left)


class _Release(FedAvg):
    """Scales the optimiser's step by kind of tensor, freezes, and averages what is released."""

    plan: RunPlan
    released: Tensors
    _sent: Tensors

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The optimiser's proposal, each kind of tensor with its own learning rate."""
        proposed, metrics = super().aggregate_train(server_round, replies)
        if proposed is None:
            return None, metrics
        federation = self.plan.federation
        gains = {
            "text": federation.text_gain,
            "gate": federation.gate_gain,
            "mixer": federation.mixer_gain,
            "borrow": federation.borrow_gain,
            "map": 1.0,
            "bias": federation.bias_gain,
        }
        new: Tensors = {}
        for name, value in _single(proposed).items():
            frozen = is_text(name) and server_round > federation.text_rounds
            gain = 0.0 if frozen else gains[kind_of(name)] * self.step_scale
            new[name] = self._sent[name] + np.float32(gain) * (value - self._sent[name])
        self._average(server_round, new)
        return to_record(new), metrics

    @property
    def step_scale(self) -> float:
        """Learning rate that the optimiser itself has not applied (FedAvg has none)."""
        if isinstance(self, FedAdam | FedAvgM):
            return 1.0
        return learning_rate(self.plan)

    def _average(self, server_round: int, new: Tensors) -> None:
        # A short memory at the start, so that the zero adapter is soon forgotten.
        keep = min(self.plan.federation.averaging, server_round / (server_round + 9))
        for name, value in new.items():
            old = self.released[name]
            if is_text(name):
                # The text path is frozen early: its average must not trail behind it.
                self.released[name] = value
            else:
                self.released[name] = np.float32(keep) * old + np.float32(1 - keep) * value


def _single(record: ArrayRecord) -> Tensors:
    """A proposal in float32; Flower's FedAdam makes float64."""
    return {name: array.numpy().astype(np.float32) for name, array in record.items()}


class ConsortiumFedAdamMini(_Release, FedAdamMini, _Collect):
    """One second moment a tensor."""


class ConsortiumFedAdam(_Release, FedAdam, _Collect):
    """Flower's FedAdam."""


class ConsortiumFedAvgM(_Release, FedAvgM, _Collect):
    """Flower's FedAvgM."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """As FedAvgM, which remembers its own last adapter: tell it the one that was released."""
        record, metrics = super().aggregate_train(server_round, replies)
        if record is not None:
            self.current_arrays = record
        return record, metrics


class ConsortiumFedAvg(_Release, _Collect):
    """Flower's FedAvg with a server learning rate."""


ConsortiumStrategy = (
    ConsortiumFedAdamMini | ConsortiumFedAdam | ConsortiumFedAvgM | ConsortiumFedAvg
)


def learning_rate(plan: RunPlan) -> float:
    """The plan's server learning rate, or the strategy's own."""
    given = plan.federation.learning_rate
    return LEARNING_RATES[plan.federation.strategy] if given is None else given


def make_strategy(
    plan: RunPlan,
    members: Mapping[int, Member],
    initial: Tensors,
    *,
    heads: HeadBook,
    run: str,
) -> ConsortiumStrategy:
    """The strategy that a plan names, for these sites and this initial adapter.

    Args:
        plan: of the run.
        members: by node.
        initial: adapter before round 1.
        heads: memory of the sites' ledgers.
        run: name under which sites reserve.
    """
    federation, rate = plan.federation, learning_rate(plan)
    common = {"fraction_evaluate": 0.0, "min_train_nodes": 1, "min_available_nodes": 1}
    adam = {
        "eta": rate,
        "beta_1": federation.momentum,
        "beta_2": federation.second_momentum,
        "tau": 1e-9,
    }
    strategy: ConsortiumStrategy
    if federation.strategy == "fedadam-mini":
        strategy = ConsortiumFedAdamMini(**common, **adam)  # type: ignore[arg-type]
    elif federation.strategy == "fedadam":
        strategy = ConsortiumFedAdam(**common, **adam)  # type: ignore[arg-type]
    elif federation.strategy == "fedavgm":
        strategy = ConsortiumFedAvgM(
            **common,  # type: ignore[arg-type]
            server_learning_rate=rate,
            server_momentum=federation.momentum,
        )
    else:
        strategy = ConsortiumFedAvg(**common)  # type: ignore[arg-type]
    strategy.plan, strategy.members = plan, members
    strategy.heads, strategy.run = heads, run
    if isinstance(strategy, ConsortiumFedAdamMini):
        strategy.noise_power = noise_power(plan, members.values(), initial)
    strategy.shapes = {name: value.shape for name, value in initial.items()}
    strategy.released = {name: value.copy() for name, value in initial.items()}
    return strategy


def noise_power(plan: RunPlan, members: Iterable[Member], initial: Tensors) -> dict[str, float]:
    """Variance of the noise in one number of each tensor's mean update; public."""
    privacy, federation = plan.privacy, plan.federation
    if not privacy.private:
        return {}
    step = noise_of(plan) * privacy.max_grad_norm * federation.client_learning_rate
    found = {}
    shrunk = {part.strip() for part in federation.shrink.split(",")}
    for name in initial:
        if kind_of(name) not in shrunk:
            continue
        holders = [m for m in members if held_by(name, m.identity.domain, plan.recommender)]
        mass = sum(m.weight for m in holders)
        spread = sum(
            (m.weight * step / (privacy.sample_rate * m.identity.declared_subjects)) ** 2
            for m in holders
        )
        found[name] = federation.local_steps * spread / mass**2
    return found
