"""Orders down, answers up: what each site is sent, what is admitted, and what becomes of it."""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from common.errors import RefusedError
from common.plan import RunPlan
from common.recommender import held_by, is_text, read_by
from common.wire import (
    FIGURES,
    Order,
    Said,
    Tensors,
    pack_heads,
    pack_order,
    to_record,
    to_tensors,
)
from server.admission import Gate, Inadmissible, Member
from server.aggregation import AGREEMENT, STREAMING, Aggregator, default_rule, make_aggregator
from server.agreement import AgreeingMean, Agreement
from server.lora import aggregate_plain_lora

LOG = logging.getLogger("confed.server")


class QuorumMissed(RefusedError):
    """Too few admissible answers; nothing was moved."""


class Exchange(FedAvg):
    """Messages and the aggregate of what was admitted, below Flower's server optimisers."""

    plan: RunPlan
    members: dict[int, Member]
    shapes: Mapping[str, tuple[int, ...]]
    gate: Gate
    run: str
    agreement: Agreement
    offences: Counter[str]
    said: dict[str, Said]
    _sent: Tensors

    # Orders

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message a site: what its domain reads of the adapter."""
        self._sent = to_tensors(arrays)
        return self._orders(MessageType.TRAIN, server_round, self._sent, grid)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The same for the rounds in which the plan evaluates."""
        if not self.plan.evaluations or server_round % self.plan.evaluation.every:
            return []
        return self._orders(MessageType.EVALUATE, server_round, to_tensors(arrays), grid)

    def _orders(self, kind: str, number: int, tensors: Tensors, grid: Grid) -> list[Message]:
        present, asked = set(grid.get_node_ids()), self.asked()
        # Arrays are shared by all messages of a domain: one copy in memory, whatever the sites.
        read = {
            domain: to_record({name: tensors[name] for name in self.read_by(domain)})
            for domain in {m.identity.domain for m in asked.values()}
        }
        orders, heads = [], pack_heads(self.gate.heads.receipts)
        for node, member in asked.items():
            if node not in present:
                continue
            who = member.identity
            order = Order(
                round=number,
                plan=self.plan,
                receipts=self.gate.heads.receipts,
                run=self.run,
                last=self.said.get(who.site, Said.ADMITTED),
            )
            orders.append(
                Message(
                    content=pack_order(order, read[who.domain], heads),
                    message_type=kind,
                    dst_node_id=node,
                    ttl=self.plan.federation.round_timeout,
                )
            )
        return orders

    def asked(self) -> dict[int, Member]:
        """Members that are not suspended."""
        most = self.plan.federation.suspend_after
        return {n: m for n, m in self.members.items() if self.offences[m.identity.site] < most}

    def held_by(self, domain: str) -> list[str]:
        """Names of the tensors that sites of a domain train."""
        return [n for n in self.shapes if held_by(n, domain, self.plan.recommender)]

    def read_by(self, domain: str) -> list[str]:
        """Names of the tensors that sites of a domain are sent."""
        return [n for n in self.shapes if read_by(n, domain, self.plan.recommender)]

    def moved_in(self, server_round: int, domain: str) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors that an answer of this round holds."""
        text = server_round <= self.plan.federation.text_rounds
        return {n: self.shapes[n] for n in self.held_by(domain) if text or not is_text(n)}

    # Answers

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Current adapter plus the aggregate of the admitted updates, taken as they come.

        Raises:
            QuorumMissed: too few were admitted.
        """
        aggregator, admitted = self._aggregator(server_round), set[str]()
        factors: dict[str, Tensors] = {}
        for reply in replies:
            member = self.members.get(reply.metadata.src_node_id)
            if member is None or member.identity.site in admitted:
                continue  # a stranger, or a second answer: the first one counts
            site, domain = member.identity.site, member.identity.domain
            try:
                update = self.gate.admit(
                    reply,
                    member,
                    number=server_round,
                    shapes=self.moved_in(server_round, domain),
                )
            except Inadmissible as error:
                self._refuse(server_round, site, error)
                continue
            admitted.add(site)
            self.said[site] = Said.ADMITTED
            aggregator.add(
                site, update, weight=member.weight, variance=self.gate.variance(member.identity)
            )
            if self._by_products():
                factors[site] = {n: self._sent[n] + v for n, v in update.items() if is_text(n)}
        self._require_quorum(server_round, admitted)
        self.gate.heads.countersign(run=self.run, number=server_round)
        moved = self._moved({**aggregator.result(), **self._products(factors)})
        if isinstance(aggregator, AgreeingMean) and aggregator.left_out:
            LOG.info("round %d: left out %s", server_round, ", ".join(aggregator.left_out))
        return to_record(moved), None

    def _by_products(self) -> bool:
        """Whether plain LoRA is aggregated by the products of its factors."""
        plain = self.plan.recommender.variant == "plain"
        return plain and self.plan.federation.lora_aggregation == "svd"

    def _products(self, factors: Mapping[str, Tensors]) -> dict[str, NDArray[np.float64]]:
        """Delta of LoRA's factors to the best ones of rank r for the exact mean of products."""
        sent = {name: self._sent[name] for name in self._sent if is_text(name)}
        if not any(factors.values()):
            return {}
        weights = {m.identity.site: m.weight for m in self.members.values()}
        new = aggregate_plain_lora(factors, sent, weights=weights)
        return {name: value - sent[name] for name, value in new.items()}

    def _refuse(self, number: int, site: str, error: Inadmissible) -> None:
        self.said[site] = error.code
        LOG.warning("round %d: site %s: %s: %s", number, site, error.code.name, error)
        if error.code is Said.NONE:
            return  # a site that could not answer is no offender
        self.offences[site] += 1
        if self.offences[site] == self.plan.federation.suspend_after:
            LOG.warning("site %s is suspended after %d offences", site, self.offences[site])

    def quorum(self) -> int:
        """Fewest admitted answers of a round."""
        given, sites = self.plan.federation.quorum, len(self.members)
        if given:
            return min(given, sites)
        # With 2f + 1 answers, f of them hostile, a robust rule is still between honest ones. More
        # would let f sites end a run by sending nothing.
        robust = 1 if self.rule() in STREAMING else 2 * self.plan.federation.tolerate + 1
        return min(max(math.ceil(sites / 2), robust), sites)

    def _require_quorum(self, number: int, admitted: set[str]) -> None:
        if len(admitted) < self.quorum():
            raise QuorumMissed(
                f"Expected answers of {self.quorum()} sites at least to round {number}, got "
                f"{len(admitted)}; see each site's own log for the reason."
            )

    def rule(self) -> str:
        """The aggregation rule in force."""
        federation = self.plan.federation
        if federation.aggregation != "auto":
            return federation.aggregation
        return default_rule(len(self.members), federation.tolerate)

    def _aggregator(self, number: int) -> Aggregator:
        bounds = (
            self.gate.bound(m.identity, self.moved_in(number, m.identity.domain))
            for m in self.members.values()
        )
        tolerate, bound = self.plan.federation.tolerate, max(bounds)
        if self.rule() == AGREEMENT:
            domains = {m.identity.site: m.identity.domain for m in self.members.values()}
            return AgreeingMean(self.agreement, domains, tolerate=tolerate, bound=bound)
        return make_aggregator(self.rule(), tolerate=tolerate, bound=bound)

    def _moved(self, delta: Mapping[str, NDArray[np.float64]]) -> Tensors:
        return {
            name: (value + delta[name]).astype(np.float32) if name in delta else value
            for name, value in self._sent.items()
        }

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Ratios of noised sums over each domain's sites; None when nobody answered."""
        sums: dict[str, dict[str, float]] = {}
        for reply in replies:
            member = self.members.get(reply.metadata.src_node_id)
            if member is None:
                continue
            try:
                figures = self.gate.admit_figures(reply, member, number=server_round)
            except Inadmissible as error:
                self._refuse(server_round, member.identity.site, error)
                continue
            own = sums.setdefault(member.identity.domain, dict.fromkeys(FIGURES, 0.0))
            for name, value in figures.items():
                own[name] += value
        found = {
            f"{domain}/{name}": min(max(own[name] / max(own["subjects"], 1.0), 0.0), 1.0)
            for domain, own in sums.items()
            for name in FIGURES[1:]
        } | {f"{domain}/subjects": max(own["subjects"], 0.0) for domain, own in sums.items()}
        for name, value in sorted(found.items()):
            LOG.info("round %d: %s about %.4g (noised)", server_round, name, value)
        return MetricRecord(dict(found)) if found else None
