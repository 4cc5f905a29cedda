"""The admission gate: the first code after the network at the server, as a site may be hostile.

The steps, numbered in `admit`: (1) form, (2) round, (3) the ledger shown, (4) a release of these
very bytes for this run and round, signed by the site, (5) tensors, (6) shapes, (7) finite numbers,
(8) length within the public bound, (9) not too short for the noise that is in it. The release is
the envelope over run, round, seq and the body.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from common.bounds import least_squared_length, noise_variance, update_bound
from common.errors import ConfedError, SecurityRefused
from common.plan import RunPlan
from common.wire import (
    Answer,
    Evaluation,
    Identity,
    Said,
    Tensors,
    figures_payload,
    to_payload,
    unpack_answer,
    unpack_evaluation,
)
from server.heads import HeadBook

LEAST_SIZE = 100
"""Numbers of a tensor whose noise is looked for; a few tell too little."""
_shortest = lru_cache(maxsize=256)(least_squared_length)


class Inadmissible(SecurityRefused):
    """An answer that must not count; the site is told the code and nothing else."""

    def __init__(self, code: Said, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, kw_only=True)
class Member:
    """A site of the contract: its node, its public facts and its weight."""

    node: int
    identity: Identity
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What is expected of every answer of a run.

    Attributes:
        plan: of the run.
        run: its name.
        heads: memory of the sites' ledgers.
        noise_multiplier: of the plan.
    """

    plan: RunPlan
    run: str
    heads: HeadBook
    noise_multiplier: float

    def admit(
        self,
        reply: Message,
        member: Member,
        *,
        number: int,
        shapes: Mapping[str, tuple[int, ...]],
    ) -> Tensors:
        """Check one answer to a round and return its update.

        Args:
            reply: of the site.
            member: the site.
            number: of the round.
            shapes: exactly the tensors that the site was to move.

        Raises:
            Inadmissible: names the first step that failed.
        """
        answer = _unpacked(reply)  # (1)
        if answer.round != number:  # (2)
            raise Inadmissible(Said.ROUND, f"answer to round {answer.round}, not {number}")
        if self.plan.privacy.private:
            self._show(member, answer.lines)  # (3)
            payload = to_payload(answer.update)
            self._released(member, payload, number=number, purpose="train")  # (4)
        return self._whole(answer.update, member, shapes)

    def admit_figures(self, reply: Message, member: Member, *, number: int) -> dict[str, float]:
        """Check one evaluation and return its noised sums.

        Raises:
            Inadmissible: as `admit`.
        """
        _require_answer(reply)
        try:
            evaluation: Evaluation = unpack_evaluation(reply.content)
        except ConfedError as error:
            raise Inadmissible(Said.FORM, str(error)) from None
        if evaluation.round != number:
            raise Inadmissible(Said.ROUND, f"answer to round {evaluation.round}, not {number}")
        if self.plan.privacy.private:
            nth = number // self.plan.evaluation.every
            payload = figures_payload(evaluation.figures)
            self._show(member, evaluation.lines)
            self._released(member, payload, number=nth, purpose="evaluate")
        return evaluation.figures

    def _show(self, member: Member, lines: bytes) -> None:
        try:
            self.heads.admit(member.identity.site, lines)
        except ConfedError as error:
            raise Inadmissible(Said.LEDGER, str(error)) from None

    def _released(self, member: Member, payload: bytes, *, number: int, purpose: str) -> None:
        try:
            self.heads.require_paid(
                member.identity.site,
                run=self.run,
                number=number,
                payload=payload,
                purpose=purpose,
            )
        except ConfedError as error:
            raise Inadmissible(Said.LEDGER, str(error)) from None

    def _whole(
        self, update: Tensors, member: Member, shapes: Mapping[str, tuple[int, ...]]
    ) -> Tensors:
        if set(update) != set(shapes):  # (5)
            raise Inadmissible(Said.TENSORS, "answer holds other tensors than asked for")
        for name, value in update.items():
            if value.shape != shapes[name] or value.dtype != np.float32:  # (6)
                raise Inadmissible(Said.SHAPE, f"tensor {name} has another shape or type")
            if not np.isfinite(value).all():  # (7)
                raise Inadmissible(Said.NOT_FINITE, f"tensor {name} is not finite")
        if length(update) > self.bound(member.identity, shapes):  # (8)
            raise Inadmissible(Said.TOO_LONG, "update is longer than any honest one can be")
        if self.plan.privacy.private:
            self._require_noise(update, member)  # (9)
        return update

    def _require_noise(self, update: Tensors, member: Member) -> None:
        """Refuse a tensor that is too short for the noise that the plan says is in it.

        It is no honest site's: either it protects nobody, or it was made to stand out.
        """
        variance = self.variance(member.identity)
        for name, value in update.items():
            squared = float(np.square(value, dtype=np.float64).sum())
            if value.size >= LEAST_SIZE and squared < _shortest(variance, value.size):
                raise Inadmissible(Said.TOO_SHORT, f"tensor {name} lacks the plan's noise")

    def variance(self, identity: Identity) -> float:
        """Variance of the noise in one number of a site's update; public."""
        return noise_variance(
            self.plan,
            noise_multiplier=self.noise_multiplier,
            expected=self.plan.privacy.sample_rate * identity.declared_subjects,
        )

    def bound(self, identity: Identity, shapes: Mapping[str, tuple[int, ...]]) -> float:
        """Public bound on the length of one site's update."""
        return update_bound(
            self.plan,
            noise_multiplier=self.noise_multiplier,
            size=sum(math.prod(shape) for shape in shapes.values()),
            expected=self.plan.privacy.sample_rate * identity.declared_subjects,
        )


def length(update: Mapping[str, NDArray[np.float32]]) -> float:
    """Euclidean length of all tensors together, in float64."""
    squares = (np.square(value, dtype=np.float64).sum() for value in update.values())
    return math.sqrt(float(sum(squares)))


def _unpacked(reply: Message) -> Answer:
    _require_answer(reply)
    try:
        return unpack_answer(reply.content)
    except ConfedError as error:
        raise Inadmissible(Said.FORM, str(error)) from None


def _require_answer(reply: Message) -> None:
    if reply.has_error():
        raise Inadmissible(Said.NONE, f"no answer, code {reply.error.code}")
