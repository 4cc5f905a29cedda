"""The consortium's strategy on top of Flower's server optimisers.

Flower's classes keep the optimiser; what is ours stands on both sides of them: below, messages and
the contract-weighted mean (`server.exchange`), above, learning rates by kind of tensor, frozen
tensors and the average of the iterates (`_Release`).
"""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedYogi

from common.errors import ConfigError
from common.plan import RunPlan
from common.recommender import held_by, is_text, kind_of
from common.spending import noise_of
from common.wire import Tensors, to_record
from server.admission import Gate, Member
from server.aggregation import STREAMING, require_rule
from server.agreement import Agreement, borne
from server.checkpoint import Arrays
from server.exchange import Exchange
from server.heads import HeadBook

LOG = logging.getLogger("confed.server")
LEARNING_RATES = {
    "fedadam-mini": 0.007,
    "fedadam": 0.003,
    "fedyogi": 0.003,
    "fedavgm": 0.5,
    "fedavg": 3.0,
}
"""Server learning rate of the history map where the plan names none."""


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
        if isinstance(self, FedAdam | FedYogi | FedAvgM):
            return 1.0
        return learning_rate(self.plan)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """What is evaluated is what is released."""
        return super().configure_evaluate(server_round, to_record(self.released), config, grid)

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


class ConsortiumFedAdamMini(_Release, FedAdamMini, Exchange):
    """One second moment a tensor."""


class ConsortiumFedAdam(_Release, FedAdam, Exchange):
    """Flower's FedAdam."""


class ConsortiumFedYogi(_Release, FedYogi, Exchange):
    """Flower's FedYogi."""


class ConsortiumFedAvgM(_Release, FedAvgM, Exchange):
    """Flower's FedAvgM."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """As FedAvgM, which remembers its own last adapter: tell it the one that was released."""
        record, metrics = super().aggregate_train(server_round, replies)
        if record is not None:
            self.current_arrays = record
        return record, metrics


class ConsortiumFedAvg(_Release, Exchange):
    """Flower's FedAvg with a server learning rate."""


ConsortiumStrategy = (
    ConsortiumFedAdamMini
    | ConsortiumFedAdam
    | ConsortiumFedYogi
    | ConsortiumFedAvgM
    | ConsortiumFedAvg
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
    # Flower's own counts; what is asked of whom is decided in `server.exchange`.
    common = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}
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
    elif federation.strategy == "fedyogi":
        strategy = ConsortiumFedYogi(**common, **adam)  # type: ignore[arg-type]
    elif federation.strategy == "fedavgm":
        strategy = ConsortiumFedAvgM(
            **common,  # type: ignore[arg-type]
            server_learning_rate=rate,
            server_momentum=federation.momentum,
        )
    else:
        strategy = ConsortiumFedAvg(**common)  # type: ignore[arg-type]
    noise = noise_of(plan)
    strategy.plan, strategy.members, strategy.run = plan, dict(members), run
    strategy.gate = Gate(plan=plan, run=run, heads=heads, noise_multiplier=noise)
    strategy.offences, strategy.said = Counter(), {}
    strategy.agreement = Agreement()
    strategy.shapes = {name: value.shape for name, value in initial.items()}
    strategy.released = {name: value.copy() for name, value in initial.items()}
    if isinstance(strategy, ConsortiumFedAdamMini):
        strategy.noise_power = noise_power(strategy)
    require_robustness(strategy)
    return strategy


def require_robustness(strategy: Exchange) -> None:
    """Refuse a rule that cannot hold what it promises in this run.

    Raises:
        ConfigError: too few sites or too small a quorum for f hostile ones, LoRA by products
            (a mean) under a robust rule, or weights by noise where there is none.
    """
    plan, rule, sites = strategy.plan.federation, strategy.rule(), len(strategy.members)
    require_rule(rule, sites=sites, tolerate=plan.tolerate)
    if rule == "inverse-variance" and not strategy.plan.privacy.private:
        raise ConfigError("Expected a private plan for inverse-variance, got no noise; take mean.")
    if rule in STREAMING:
        return
    if plan.lora_aggregation == "svd":
        raise ConfigError(
            f"Expected lora_aggregation = mean beside {rule}, got svd: it is a mean, which one "
            "hostile site moves; set aggregation = mean or lora_aggregation = mean."
        )
    least = 2 * plan.tolerate + 3
    if 0 < plan.quorum < least and plan.aggregation != "auto":
        raise ConfigError(
            f"Expected a quorum of {least} or more for {rule} against {plan.tolerate} hostile "
            f"sites, got {plan.quorum}; raise it, or leave it out."
        )
    _say_what_is_borne(strategy)


def _say_what_is_borne(strategy: Exchange) -> None:
    """A domain's own tensors come from its own sites: few of them bear fewer hostile ones."""
    tolerate = strategy.plan.federation.tolerate
    for domain, sites in sorted(
        Counter(m.identity.domain for m in strategy.members.values()).items()
    ):
        stood = borne(sites, tolerate)
        if stood < tolerate:
            LOG.warning(
                "domain %s has %d sites: its own tensors bear %d hostile ones, not %d",
                domain,
                sites,
                stood,
                tolerate,
            )


def noise_power(strategy: Exchange) -> dict[str, float]:
    """Variance of the noise in one number of each tensor's mean update; public."""
    plan = strategy.plan
    if not plan.privacy.private:
        return {}
    found = {}
    shrunk = {part.strip() for part in plan.federation.shrink.split(",")}
    for name in strategy.shapes:
        if kind_of(name) not in shrunk:
            continue
        holders = [
            m
            for m in strategy.members.values()
            if held_by(name, m.identity.domain, plan.recommender)
        ]
        mass = sum(m.weight for m in holders)
        spread = sum(m.weight**2 * strategy.gate.variance(m.identity) for m in holders)
        found[name] = spread / mass**2
    return found


def optimizer_state(strategy: ConsortiumStrategy) -> tuple[Arrays, dict[str, int]]:
    """What the server optimiser remembers between rounds, as named arrays and counts."""
    arrays: Arrays = {}
    for part in ("m_t", "v_t"):
        for name, value in (getattr(strategy, part, None) or {}).items():
            arrays[f"{part}/{name}"] = np.asarray(value)
    for place, value in enumerate(getattr(strategy, "momentum_vector", None) or ()):
        arrays[f"momentum/{place:06d}"] = np.asarray(value)
    return arrays, {"updates": getattr(strategy, "_updates", 0)}


def restore_optimizer(
    strategy: ConsortiumStrategy, arrays: Arrays, facts: Mapping[str, int]
) -> None:
    """Put back what `optimizer_state` gave."""
    for part in ("m_t", "v_t"):
        prefix = f"{part}/"
        found = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
        if found:
            setattr(strategy, part, found)
    momentum = [arrays[name] for name in sorted(arrays) if name.startswith("momentum/")]
    if momentum:
        strategy.momentum_vector = momentum  # type: ignore[union-attr]
    if facts["updates"]:
        strategy._updates = facts["updates"]  # type: ignore[union-attr]
