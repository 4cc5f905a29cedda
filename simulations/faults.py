"""Sites that do not answer, answer too late, or die, as wrappers around the ClientApp.

Every draw is of a seed, the site, the round and how often it was asked, so a run repeats.
"""

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

import numpy as np
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from common.errors import ConfigError
from common.wire import unpack_order

DOWN_ROUNDS: Final = 3
"""Rounds for which a site that crashed stays away."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A kind of fault.

    Attributes:
        name: on the command line.
        says: what happens, in words.
    """

    name: str
    says: str


_ALL: Final = (
    Fault(name="drop-out", says="a site that does not answer a round"),
    Fault(name="straggler", says="a site that trains, and whose answer comes too late"),
    Fault(
        name="crash", says=f"a site that dies while training and stays away {DOWN_ROUNDS} rounds"
    ),
)
FAULTS: Final[Mapping[str, Fault]] = MappingProxyType({f.name: f for f in _ALL})


@dataclass(frozen=True, kw_only=True)
class Misfortune:
    """Which fault strikes whom, how often.

    Attributes:
        fault: a name of FAULTS.
        rate: share of a site's rounds that are lost, in [0, 1].
        seed: of the draws.
        partitions: sites that it may strike; None for all.

    Raises:
        ConfigError: no such fault, or a rate out of range.
    """

    fault: str
    rate: float
    seed: int = 0
    partitions: frozenset[int] | None = None

    def __post_init__(self) -> None:
        if self.fault not in FAULTS:
            raise ConfigError(f"Expected a fault ({', '.join(FAULTS)}), got {self.fault}.")
        if not 0 <= self.rate <= 1:
            raise ConfigError(f"Expected --fault-rate in [0, 1], got {self.rate:g}.")

    def strikes(self, partition: int, number: int, asked: int = 0) -> bool:
        """Whether the site is lost to this round.

        Args:
            partition: of the site.
            number: of the round.
            asked: how often the round was put to the site before.
        """
        if self.fault == "crash":
            return self.age(partition, number) is not None
        return self._hit(self.rate, partition, number, asked)

    def age(self, partition: int, number: int) -> int | None:
        """Rounds since the site's last crash, None when it is up."""
        # A crash costs DOWN_ROUNDS rounds: as many fewer begin, so that `rate` is what is lost.
        begin = 1 - (1 - self.rate) ** (1 / DOWN_ROUNDS)
        for back in range(min(DOWN_ROUNDS, number)):
            if self._hit(begin, partition, number - back, 0):
                return back
        return None

    def _hit(self, rate: float, partition: int, number: int, asked: int) -> bool:
        if self.partitions is not None and partition not in self.partitions:
            return False
        return bool(np.random.default_rng([self.seed, partition, number, asked]).random() < rate)


@dataclass(kw_only=True)
class Unlucky:
    """A ClientApp around another one, struck by a misfortune in training rounds.

    Attributes:
        app: of the sites.
        misfortune: what strikes.
        lost: rounds lost by partition, as they come.
    """

    app: ClientApp
    misfortune: Misfortune
    lost: Counter[int] = field(default_factory=Counter)
    _asked: Counter[tuple[int, int]] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def wrapped(self) -> ClientApp:
        """The app that the sites answer with."""
        outer = ClientApp()

        @outer.query()
        def identify(message: Message, context: Context) -> Message:
            return self.app(message, context)

        @outer.train()
        def train(message: Message, context: Context) -> Message:
            return self._train(message, context)

        @outer.evaluate()
        def evaluate(message: Message, context: Context) -> Message:
            return self.app(message, context)

        return outer

    def _train(self, message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        number = unpack_order(message.content)[0].round
        with self._lock:
            asked = self._asked[partition, number]
            self._asked[partition, number] += 1
            struck = self.misfortune.strikes(partition, number, asked)
            if struck:
                self.lost[partition] += 1
        if not struck:
            return self.app(message, context)
        if self.misfortune.fault == "straggler":
            self.app(message, context)  # paid for, and after the deadline nobody looks at it
        if self.misfortune.fault == "crash" and self.misfortune.age(partition, number) == 0:
            self.app(message, context)
            raise RuntimeError("the site died")
        return _silence(message)


def _silence(message: Message) -> Message:
    """What Flower hands the server when a node's reply is missing."""
    code = ErrorCode.REPLY_MESSAGE_UNAVAILABLE
    return Message(Error(code, "no reply"), reply_to=message)
