"""The same run undisturbed and with hostile or faulty sites, side by side.

All runs draw the same noise, so a difference is the disturbance's. Figures are the researcher's
own view of data they hold, outside the privacy claim.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from flwr.clientapp import ClientApp

from client.session import backbone_for
from common.errors import ConfedError, ConfigError
from common.plan import RunPlan
from common.wire import Said, Tensors
from simulations import metrics
from simulations.attacks import Trap, appended, attack_named, trap_of
from simulations.engines import Job
from simulations.evaluation import Examiner, make_examiner
from simulations.faults import FAULTS, Misfortune, Unlucky
from simulations.hostile import Conspiracy
from simulations.results import HEADLINE, Damage, Outcome
from simulations.scenario import Consortium
from simulations.simulate import Simulation

LOG = logging.getLogger("confed.simulate")
TRAPPED_SUBJECTS: Final = 1000
"""Test subjects on whom a backdoor is tried."""
MEAN: Final = "mean"


@dataclass(kw_only=True)
class Attacked:
    """Some sites are hostile.

    Attributes:
        name: of the attack.
        sites: the hostile ones.
        seed: of the attackers' random numbers.
    """

    name: str
    sites: tuple[str, ...]
    seed: int = 0
    kind: str = "attack"
    rate: float = 0.0
    rules: tuple[str, ...] = ("", MEAN)
    _last: Conspiracy | None = field(default=None, init=False)

    @property
    def says(self) -> str:
        """What it does, in words."""
        return attack_named(self.name).says

    def app(self, honest: ClientApp, job: Job) -> ClientApp:
        """The app of a run's sites; counting begins anew."""
        self._last = Conspiracy(
            attack=attack_named(self.name),
            names=frozenset(self.sites),
            sites=tuple(job.sites),
            honest=honest,
            store=job.store,
            permits=job.permits(),
            seed=self.seed,
        )
        return self._last.app()

    def told(self) -> tuple[int, dict[str, int]]:
        """Answers of the last run, and what the server said of them."""
        if self._last is None:
            return 0, {}
        told = sorted(self._last.told.items())
        refused = {Said(code).name: n for code, n in told if code != Said.ADMITTED}
        return self._last.sent, refused


@dataclass(kw_only=True)
class Struck:
    """Some answers are missing.

    Attributes:
        name: of the fault.
        rate: share of a site's rounds that are lost.
        seed: of the draws.
    """

    name: str
    rate: float
    seed: int = 0
    kind: str = "fault"
    sites: tuple[str, ...] = ()
    rules: tuple[str, ...] = ("",)
    _last: Unlucky | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._misfortune = Misfortune(fault=self.name, rate=self.rate, seed=self.seed)

    @property
    def says(self) -> str:
        """What happens, in words."""
        return FAULTS[self.name].says

    def app(self, honest: ClientApp, job: Job) -> ClientApp:
        """The app of a run's sites; counting begins anew."""
        self._last = Unlucky(app=honest, misfortune=self._misfortune)
        return self._last.wrapped()

    def told(self) -> tuple[int, dict[str, int]]:
        """Rounds lost in the last run."""
        return (0 if self._last is None else sum(self._last.lost.values())), {}


Disturbance = Attacked | Struck
"""What is done to a run; one value serves one federation after the other."""


def hostile_sites(given: str, consortium: Consortium) -> tuple[str, ...]:
    """The hostile sites: so many from the end of the first domain, or those named.

    Args:
        given: a number, or names separated by commas.
        consortium: of the run.

    Raises:
        ConfigError: none, no such site, or no honest site left.
    """
    first = consortium.sites_of(next(iter(consortium.catalogs)))
    if given.strip().isdigit():
        count = int(given)
        if not 1 <= count < len(first):
            raise ConfigError(
                f"Expected --hostile of 1 to {len(first) - 1} of the {len(first)} sites of the "
                f"first domain, got {count}."
            )
        return tuple(first[-count:])
    named = tuple(name.strip() for name in given.split(",") if name.strip())
    unknown = [name for name in named if name not in consortium.names]
    if not named or unknown:
        raise ConfigError(
            f"Expected --hostile as a number or as sites ({', '.join(consortium.names)[:200]}), "
            f"got {unknown[0] if unknown else 'nothing'}."
        )
    if len(set(named)) >= len(consortium.names):
        raise ConfigError("Expected at least one honest site, got none; name fewer.")
    return tuple(dict.fromkeys(named))


def with_rule(plan: RunPlan, rule: str) -> RunPlan:
    """The plan with another aggregation rule; empty keeps its own."""
    if not rule:
        return plan
    federation = plan.federation.model_copy(update={"aggregation": rule})
    return plan.model_copy(update={"federation": federation})


def measure(simulation: Simulation, disturbance: Disturbance) -> Damage:
    """Run the federation of a finished simulation again, disturbed.

    Args:
        simulation: that has run undisturbed.
        disturbance: what is done to it.
    """
    traps = _traps(simulation, disturbance)
    undisturbed = Outcome(
        name="undisturbed",
        rule=simulation.plan.federation.aggregation,
        ndcg=ndcg_of(simulation.examiners, simulation.released),
        curve={point.round: point.ndcg for point in simulation.curve},
        backdoor=_success(traps, simulation.released),
    )
    made = [_disturbed(simulation, disturbance, rule, traps) for rule in disturbance.rules]
    return Damage(
        kind=disturbance.kind,
        name=disturbance.name,
        says=disturbance.says,
        sites=disturbance.sites,
        of=len(simulation.consortium.names),
        rate=disturbance.rate,
        outcomes=(undisturbed, *(_beside(undisturbed, outcome) for outcome in made)),
    )


def _disturbed(
    simulation: Simulation,
    disturbance: Disturbance,
    rule: str,
    traps: list[tuple[Examiner, Trap]],
) -> Outcome:
    plan = with_rule(simulation.plan, rule)
    curve: dict[int, dict[str, float]] = {}

    def mark(number: int, released: Tensors) -> None:
        curve[number] = {d: e.quick_ndcg(released) for d, e in simulation.examiners.items()}

    name = f"{disturbance.name}, {plan.federation.aggregation}"
    ended, released = "", None
    with _quiet():
        try:
            released = simulation.disturbed(name, plan, disturbance.app, mark)
        except ConfedError as error:
            ended = str(error)
    answers, refused = disturbance.told()
    return Outcome(
        name="plain mean" if rule == MEAN else disturbance.kind,
        rule=plan.federation.aggregation,
        ndcg={} if released is None else ndcg_of(simulation.examiners, released),
        curve=curve,
        backdoor=None if released is None else _success(traps, released),
        answers=answers,
        refused=refused,
        ended=ended,
    )


def _beside(undisturbed: Outcome, outcome: Outcome) -> Outcome:
    lost = {
        domain: 1 - outcome.ndcg[domain] / value
        for domain, value in undisturbed.ndcg.items()
        if domain in outcome.ndcg and value > 0
    }
    return replace(outcome, lost=lost)


def ndcg_of(examiners: dict[str, Examiner], adapter: Tensors) -> dict[str, float]:
    """NDCG@10 of each domain over all of its test subjects."""
    return {
        domain: metrics.means(
            metrics.ranking_metrics(examiner.top(adapter), examiner.asked.target)
        )[HEADLINE]
        for domain, examiner in examiners.items()
    }


# Backdoor


def _traps(simulation: Simulation, disturbance: Disturbance) -> list[tuple[Examiner, Trap]]:
    """For each domain with hostile sites, its test subjects with the trigger in their history."""
    if disturbance.name != "backdoor":
        return []
    found = []
    for domain, examiner in simulation.examiners.items():
        mine = [n for n in disturbance.sites if simulation.consortium.domain_of[n] == domain]
        if mine:
            parts = [simulation.consortium.records(name).interactions for name in mine]
            trap = trap_of(parts, len(examiner.catalog))
            found.append((triggered(examiner, trap, simulation), trap))
    return found


def triggered(examiner: Examiner, trap: Trap, simulation: Simulation) -> Examiner:
    """The same questions to subjects whose latest item is the trigger.

    Left out are those who had trigger or target before.
    """
    asked = examiner.asked
    owner = np.repeat(np.arange(len(asked.histories)), asked.histories.counts)
    had = np.isin(asked.histories.items, (trap.trigger, trap.target))
    clean = np.setdiff1d(np.arange(len(asked.histories)), owner[had])[:TRAPPED_SUBJECTS]
    questions = replace(
        asked,
        histories=appended(asked.histories.select(clean), (trap.trigger,)),
        target=np.full(len(clean), trap.target, dtype=np.int32),
        value=asked.value[clean],
        site=asked.site[clean],
        trained=asked.trained[clean],
    )
    plan = simulation.plan.recommender
    return make_examiner(
        questions,
        examiner.catalog,
        plan=plan,
        backbone=backbone_for(plan),
        store=simulation.store,
    )


def _success(traps: list[tuple[Examiner, Trap]], adapter: Tensors) -> float | None:
    """Share of subjects with the trigger for whom the target stands first; None without a trap."""
    if not traps:
        return None
    first = [examiner.top(adapter)[:, 0] == trap.target for examiner, trap in traps]
    return float(np.concatenate(first).mean())


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the server's line for each bad answer: the table counts them."""
    loggers = [logging.getLogger(name) for name in ("confed.server", "confed.site")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
