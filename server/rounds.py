"""The round loop: what Flower's own lacks is here, deadline, quorum, asking again, resuming.

The steps, numbered: (1) configure, (2) collect, (3) admit, (4) aggregate, (5) evaluate, (6) commit.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from common.errors import RefusedError
from common.plan import RunPlan
from common.wire import Tensors, to_record, to_tensors
from server.checkpoint import Checkpoint, Checkpoints, parts
from server.exchange import QuorumMissed
from server.membership import Membership
from server.public import PublicEvaluation
from server.strategy import ConsortiumStrategy, optimizer_state, restore_optimizer

LOG = logging.getLogger("confed.server")
POLL_FIRST: Final = 0.02
POLL_MOST: Final = 1.0
"""Seconds between two looks for answers; they grow while nothing comes."""
OnRound = Callable[[int, Tensors], None]
Phase = Callable[[str, int], None]


def no_phase(_name: str, _number: int) -> None:
    """Nobody watches the phases."""


@dataclass(kw_only=True)
class RoundLoop:
    """Runs the rounds of one run, from the first or from a checkpoint.

    Attributes:
        grid: to the sites.
        plan: of the run.
        strategy: orders, admission, aggregate, optimiser.
        membership: who takes part; sites may join late and leave.
        current: adapter that the next round starts from.
        checkpoints: where rounds are committed; None commits nothing.
        public: evaluation on records that the consortium owns; None for none.
        on_round: told the released adapter after round 0, 1, …
        options: the operator's, kept in checkpoints for whoever resumes.
        phase: told the name of each phase before it begins; faults are injected here.
    """

    grid: Grid
    plan: RunPlan
    strategy: ConsortiumStrategy
    membership: Membership
    current: Tensors
    checkpoints: Checkpoints | None = None
    public: PublicEvaluation | None = None
    on_round: OnRound | None = None
    phase: Phase = no_phase
    options: Mapping[str, Any] = field(default_factory=dict)
    done: int = 0
    ended: str = field(default="", init=False)

    def run(self) -> Tensors:
        """All rounds that are left; the answer is the adapter to release.

        Raises:
            RefusedError: a round missed its quorum as often as the plan asks again.
        """
        if self.done == 0:
            self._watch()
            # The run's name outlives a server that dies in round 1: its answers are paid for.
            self._commit(0)
        # A run that stopped early and is resumed for its release has stopped already.
        while self.done < self.plan.federation.rounds and not self._stops():
            self._round(self.done + 1)
        best = self.public.best() if self.public is not None else None
        return self.strategy.released if best is None else best

    def _stops(self) -> bool:
        if self.public is None or not self.public.stops(self.done):
            return False
        self.ended = f"stopped early after round {self.done}: {self.public.reason()}"
        LOG.info("%s", self.ended)
        return True

    def _round(self, number: int) -> None:
        for attempt in range(1, self.plan.federation.attempts + 1):
            self.phase("configure", number)
            self.membership.refresh(self.grid, self.strategy)
            orders = self.strategy.configure_train(  # (1)
                number, to_record(self.current), ConfigRecord(), self.grid
            )
            self.phase("collect", number)
            try:
                moved, _ = self.strategy.aggregate_train(  # (2) (3) (4)
                    number, self._answers(orders, number)
                )
                break
            except QuorumMissed as error:
                LOG.warning("round %d, attempt %d: %s", number, attempt, error)
                if attempt == self.plan.federation.attempts:
                    raise
        if moved is None:
            raise RefusedError(f"Expected an aggregate of round {number}, got none.")
        self.current = to_tensors(moved)
        self.done = number
        self._evaluate(number)  # (5)
        self.phase("checkpoint", number)
        self._commit(number)  # (6)
        self._watch()

    def _answers(self, orders: Iterable[Message], number: int) -> Iterator[Message]:
        """Answers as they come, until the deadline; what comes later is never looked at."""
        pending = set(self.grid.push_messages(orders))
        deadline = time.monotonic() + self.plan.federation.round_timeout
        wait = POLL_FIRST
        while pending:
            came = deque(self.grid.pull_messages(pending))
            wait = POLL_FIRST if came else min(wait * 1.5, POLL_MOST)
            idle = not came
            while came:
                pending.discard(came[0].metadata.reply_to_message_id)
                yield came.popleft()  # and no name for it here: what is admitted is let go
            left = deadline - time.monotonic()
            if left <= 0:
                break
            if pending and idle:
                time.sleep(min(wait, left))
        if pending:
            LOG.warning("round %d closed at its deadline without %d sites", number, len(pending))
        self.phase("aggregate", number)

    def _evaluate(self, number: int) -> None:
        orders = list(
            self.strategy.configure_evaluate(number, ArrayRecord(), ConfigRecord(), self.grid)
        )
        if orders:
            self.strategy.aggregate_evaluate(number, self._answers(orders, number))
        if self.public is not None:
            self.public.look(number, self.strategy.released)

    def _commit(self, number: int) -> None:
        if self.checkpoints is None:
            return
        arrays, facts = optimizer_state(self.strategy)
        best: dict[str, Any] = {} if self.public is None else self.public.arrays()
        self.checkpoints.commit(
            Checkpoint(
                round=number,
                run=self.strategy.run,
                plan=self.plan.to_json(),
                arrays=parts(
                    current=self.current,
                    released=self.strategy.released,
                    optimizer=arrays,
                    best=best,
                ),
                facts={
                    "optimizer": facts,
                    "offences": dict(self.strategy.offences),
                    "agreement": self.strategy.agreement.facts(),
                    "members": self.membership.facts(),
                    "public": {} if self.public is None else self.public.facts(),
                    "options": dict(self.options),
                },
            )
        )

    def _watch(self) -> None:
        if self.on_round is not None:
            self.on_round(self.done, self.strategy.released)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on after a committed round."""
        self.done = checkpoint.round
        self.current = {k: np.asarray(v) for k, v in checkpoint.part("current").items()}
        self.strategy.released = checkpoint.part("released")
        self.strategy.offences.update(checkpoint.facts["offences"])
        self.strategy.agreement.restore(checkpoint.facts["agreement"])
        restore_optimizer(
            self.strategy, checkpoint.part("optimizer"), checkpoint.facts["optimizer"]
        )
        if self.public is not None:
            self.public.restore(checkpoint.part("best"), checkpoint.facts["public"])
        LOG.info("resumed after round %d of run %s", self.done, self.strategy.run)
