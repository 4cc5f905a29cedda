"""Orders down, answers up: what the strategy sends to each site and what it admits.

Admitted are answers in time, whole and finite, whose ledger shows that they were paid for.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from common.errors import ConfedError, RefusedError, SecurityRefused
from common.plan import RunPlan
from common.recommender import held_by, is_text, read_by
from common.wire import (
    FIGURES,
    Identity,
    Order,
    Tensors,
    figures_payload,
    pack_order,
    to_payload,
    to_record,
    to_tensors,
    unpack_answer,
    unpack_evaluation,
)
from server.aggregation import weighted_mean
from server.heads import HeadBook

LOG = logging.getLogger("confed.server")


@dataclass(frozen=True, kw_only=True)
class Member:
    """A site of the contract: its node, its public facts and its weight."""

    node: int
    identity: Identity
    weight: float = 1.0


class Exchange(FedAvg):
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

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The same orders as for training, in the rounds in which the plan evaluates."""
        every = self.plan.evaluation.every
        if not self.plan.evaluations or server_round % every:
            return []
        return [
            Message(
                content=message.content,
                message_type=MessageType.EVALUATE,
                dst_node_id=message.metadata.dst_node_id,
                ttl=self.plan.federation.round_timeout,
            )
            for message in self.configure_train(server_round, arrays, config, grid)
        ]

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
                figures = self._admit_figures(server_round, reply, member)
            except ConfedError as error:
                LOG.warning("round %d: site %s: %s", server_round, member.identity.site, error)
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

    def _admit_figures(self, server_round: int, reply: Message, member: Member) -> dict[str, float]:
        if reply.has_error():
            raise SecurityRefused(f"no answer, code {reply.error.code}")
        evaluation = unpack_evaluation(reply.content)
        if evaluation.round != server_round:
            raise SecurityRefused(f"answer to round {evaluation.round}")
        if self.plan.privacy.private:
            site = member.identity.site
            self.heads.admit(site, evaluation.lines)
            self.heads.require_paid(
                site,
                run=self.run,
                number=server_round // self.plan.evaluation.every,
                payload=figures_payload(evaluation.figures),
                purpose="evaluate",
            )
        return evaluation.figures


def _moved(sent: Tensors, mean: Mapping[str, NDArray[np.float64]]) -> Tensors:
    return {
        name: (value + mean[name]).astype(np.float32) if name in mean else value
        for name, value in sent.items()
    }
