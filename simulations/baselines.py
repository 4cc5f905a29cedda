"""The baselines: each site alone, everybody's records in one place, single domains, SASRec."""

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event

import numpy as np

from client.site import SiteRecords, declared
from common.errors import ConfigError
from common.interactions import concatenate
from common.plan import RunPlan
from common.textpath import ActivationStore, Progress
from common.wire import Tensors
from simulations.engines import InProcessEngine, Job
from simulations.evaluation import Graded, grade
from simulations.grades import Grades
from simulations.results import METHODS
from simulations.scenario import Consortium
from simulations.sites import SIMULATED

LOG = logging.getLogger("confed.simulation")
SASREC_EPOCHS = 25
"""Most epochs; validation ends it earlier."""
Work = Callable[[Progress], Tensors | Graded]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One baseline to run.

    Attributes:
        method: as in the results; `single` is one domain federated without the others.
        where: site or domain it is graded on; empty for all.
        steps: of its progress.
        work: does it.
    """

    method: str
    where: str
    steps: int
    work: Work


class _Stoppable:
    """A progress bar that ends the work that advances it, once it was told to stop.

    Args:
        advance: the bar.
    """

    def __init__(self, advance: Progress) -> None:
        self._advance = advance
        self._stopped = Event()

    def stop(self) -> None:
        """End every work at its next step."""
        self._stopped.set()

    def __call__(self, steps: int) -> None:
        if self._stopped.is_set():
            raise CancelledError
        self._advance(steps)


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """Everything besides the federation, on the same sites, splits and budget.

    Attributes:
        plan: of the federation.
        consortium: the sites.
        store: of activations.
        noise_seed: as the federation's.
    """

    plan: RunPlan
    consortium: Consortium
    store: ActivationStore
    noise_seed: int | None

    def run(self, wanted: frozenset[str], grades: Grades, start: Callable[[int], Progress]) -> None:
        """Run what is wanted, one task a processor, and put it into the grades.

        Args:
            wanted: methods.
            grades: taken from and put into.
            start: told the number of steps; its answer advances the bar.
        """
        if "zero_shot" in wanted:
            grades.adapter("zero_shot", {})
        if "popularity" in wanted:
            grades.popularity()
        tasks = self._tasks(wanted, grades)
        if not tasks:
            return
        advance = _Stoppable(start(sum(task.steps for task in tasks)))
        workers = os.cpu_count() or 1
        with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="baseline") as pool:
            futures = [(task, pool.submit(task.work, advance)) for task in tasks]
            try:
                for task, future in futures:
                    grades.put(task.method, task.where, future.result())
            except BaseException:
                # Ctrl-C reaches this thread alone: the others end at their next step.
                advance.stop()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _tasks(self, wanted: frozenset[str], grades: Grades) -> list[Task]:
        """The longest first, so that the processors end together."""
        rounds, domains = self.plan.federation.rounds, list(self.consortium.catalogs)
        records, sites_of = self.consortium.records, self.consortium.sites_of
        pooled = [self._pooled(domain) for domain in domains]
        tasks = []
        if "central_non_private" in wanted:
            privacy = self.plan.privacy.model_copy(update={"private": False})
            open_plan = self.plan.model_copy(update={"privacy": privacy})
            tasks.append(("central_non_private", "", rounds, self._trained(open_plan, pooled)))
        if "central" in wanted:
            tasks.append(("central", "", rounds, self._trained(self.plan, pooled)))
        if "sasrec" in wanted:
            long = [d for d in domains if self._has_sequences(d)]
            tasks += [("sasrec", d, SASREC_EPOCHS, self._sasrec(d, grades)) for d in long]
        if "local" in wanted and len(domains) > 1:
            for domain in domains:
                alone = [records(name) for name in sites_of(domain)]
                tasks.append(("single", domain, rounds, self._trained(self.plan, alone)))
        if "local" in wanted:
            for name in self.consortium.names:
                tasks.append(("local", name, rounds, self._trained(self.plan, [records(name)])))
        return [Task(method=m, where=w, steps=n, work=work) for m, w, n, work in tasks]

    def _trained(self, plan: RunPlan, sites: Sequence[SiteRecords]) -> Work:
        def work(advance: Progress) -> Tensors:
            def watch(number: int, _released: Tensors) -> None:
                if number:
                    advance(1)

            job = Job(
                plan=_of_few(plan),
                sites=sites,
                noise_seed=self.noise_seed,
                store=self.store,
                on_round=watch,
            )
            return InProcessEngine(workers=1).run(job)

        return work

    def _pooled(self, domain: str) -> SiteRecords:
        """Everybody's records of a domain in one place."""
        parts = [self.consortium.splits[n].train for n in self.consortium.sites_of(domain)]
        records = concatenate(parts)
        return SiteRecords(
            name=f"{domain}-all",
            domain=domain,
            catalog=self.consortium.catalogs[domain],
            interactions=records,
            declared_subjects=declared(len(records)),
            caps=SIMULATED,
        )

    def _has_sequences(self, domain: str) -> bool:
        """Whether anybody has two items to train on; SASRec learns from pairs that follow."""
        splits = [self.consortium.splits[n] for n in self.consortium.sites_of(domain)]
        found = any((split.train.counts >= 2).any() for split in splits)
        if not found:
            LOG.warning("no SASRec for %s: nobody has two items to train on", domain)
        return found

    def _sasrec(self, domain: str, grades: Grades) -> Work:
        def work(advance: Progress) -> Graded:
            from simulations.sasrec import train_sasrec  # noqa: PLC0415

            splits = [self.consortium.splits[n] for n in self.consortium.sites_of(domain)]
            asked = grades.asked(domain)
            model = train_sasrec(
                concatenate([s.train for s in splits]),
                len(self.consortium.catalogs[domain]),
                validation=np.concatenate([s.validation_target for s in splits]),
                epochs=SASREC_EPOCHS,
                seed=self.plan.seed,
                progress=lambda _epoch: advance(1),
            )
            top = model.top(asked.histories.offsets, asked.histories.items)
            return grade(top, asked, grades.vectors(domain))

        return work


def _of_few(plan: RunPlan) -> RunPlan:
    """The plan without a robust rule by name, which a site alone could not bear."""
    federation = plan.federation.model_copy(update={"aggregation": "auto", "quorum": 0})
    return plan.model_copy(update={"federation": federation})


def parse_baselines(given: str) -> frozenset[str]:
    """Methods named on the command line: all, none or a comma-separated list.

    Raises:
        ConfigError: an unknown name.
    """
    if given == "all":
        return frozenset(METHODS) - {"federated"}
    if given == "none":
        return frozenset()
    names = frozenset(name.strip() for name in given.split(","))
    unknown = sorted(names - set(METHODS))
    if unknown:
        raise ConfigError(
            f"Expected --baselines all, none or some of {', '.join(METHODS)}, got {unknown[0]!r}."
        )
    return names - {"federated"}
