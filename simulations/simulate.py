"""The main job: a consortium on one machine, its baselines, and what federating was worth.

(1) sites, (2) frozen features, (3) the federation, (4) baselines, (5) grades, (6) the result.
"""

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from client.session import backbone_for
from client.third_opinion import opacus_opinion
from common.accounting import compose_sites, spent
from common.mechanism import Event
from common.plan import RunPlan
from common.spending import cost_after, noise_of
from common.textpath import Progress
from common.windows import history_texts, query_windows, training_windows
from common.wire import Tensors
from simulations.baselines import Baselines
from simulations.engines import Disturb, Job, OnRound, make_engine
from simulations.evaluation import Examiner, make_examiner, questions
from simulations.grades import Grades
from simulations.preload import PreloadedStore
from simulations.results import Point, RunResult, SiteResult
from simulations.scenario import Consortium, Scenario
from simulations.seeded import CLAIM

SECURE_CLAIM = "secure noise: the epsilon shown is spent"
CURVE_POINTS = 12
"""Rounds at which the curve is measured."""


class Meter:
    """Told how the work goes on; the command draws bars from it."""

    def start(self, name: str, total: int) -> Progress:
        """A new piece of work of `total` steps; the answer advances it."""
        return lambda _steps: None


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for on the command line.

    Attributes:
        name: of the scenario.
        scenario: with the command line's changes.
        engine: of the federation.
        noise_seed: None for secure noise.
        baselines: methods besides the federation.
        command: repeats the run.
        ledgers: folder for the sites' ledgers; None keeps them in memory.
    """

    name: str
    scenario: Scenario
    engine: str
    noise_seed: int | None
    baselines: frozenset[str]
    command: str = ""
    ledgers: Path | None = None


@dataclass
class Simulation:
    """One run from sites to result."""

    request: Request
    consortium: Consortium
    store: PreloadedStore
    meter: Meter
    on_point: Callable[[Point], None] = lambda _point: None
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        sizes: dict[str, int] = {}
        for name in self.consortium.names:
            record = self.consortium.records(name)
            sizes[record.domain] = sizes.get(record.domain, 0) + record.declared_subjects
        self.plan: RunPlan = self.request.scenario.run_plan().with_domains(sizes)
        self.domains = list(self.consortium.catalogs)
        self.examiners: dict[str, Examiner] = {}
        self.curve: list[Point] = []
        self.released: Tensors = {}

    def run(self) -> RunResult:
        """Do everything.

        Raises:
            ConfedError: the plan, the data or the model is refused.
        """
        torch.set_num_threads(1)  # one thread a site, sites side by side: the same on any engine
        noise = {name: self._noise(name) for name in self.consortium.names}
        self.prepare()
        self.released = self._federate()
        grades = Grades(self.examiners)
        grades.adapter("federated", self.released)
        Baselines(
            plan=self.plan,
            consortium=self.consortium,
            store=self.store,
            noise_seed=self.request.noise_seed,
        ).run(self.request.baselines, grades, lambda total: self.meter.start("baselines", total))
        return self._result(noise, grades)

    def _noise(self, name: str) -> float:
        return noise_of(self.plan, subjects=len(self.consortium.splits[name].train))

    # (2) frozen features

    def prepare(self) -> None:
        """Encode every text of every site once, and open the examiners."""
        plan, backbone = self.plan.recommender, backbone_for(self.plan.recommender)
        for domain, catalog in self.consortium.catalogs.items():
            splits = {n: self.consortium.splits[n] for n in self.consortium.sites_of(domain)}
            asked = questions(splits, len(catalog))
            windows = [
                training_windows(s.train, windows=plan.windows, history_items=plan.history_items)
                for s in splits.values()
            ]
            windows.append(query_windows(asked.histories, history_items=plan.history_items))
            texts = [
                t for w in windows for t in history_texts(w.history, catalog, items=plan.text_items)
            ]
            progress = self.meter.start(f"texts of {domain}", len(set(texts) - {""}))
            self.store.preload(
                backbone,
                texts,
                tokens=plan.text_tokens,
                top_layers=plan.top_layers,
                progress=progress,
            )
            self.examiners[domain] = make_examiner(
                asked, catalog, plan=plan, backbone=backbone, store=self.store
            )

    # (3) the federation

    def _federate(self) -> Tensors:
        watch = self._watched("federation, rounds", self._mark)
        return make_engine(self.request.engine).run(
            replace(self._job(watch), ledgers=self.request.ledgers)
        )

    def disturbed(self, name: str, plan: RunPlan, disturb: Disturb, on_mark: OnRound) -> Tensors:
        """The same federation once more, with hostile or faulty sites; its ledgers are not kept.

        Args:
            name: of the progress bar.
            plan: of the run.
            disturb: makes sites hostile or faulty.
            on_mark: told the adapter at the rounds of the curve.
        """
        job = self._job(self._watched(name, on_mark))
        return make_engine(self.request.engine).run(replace(job, plan=plan, disturb=disturb))

    def _job(self, watch: OnRound) -> Job:
        return Job(
            plan=self.plan,
            sites=[self.consortium.records(name) for name in self.consortium.names],
            noise_seed=self.request.noise_seed,
            store=self.store,
            on_round=watch,
        )

    def _watched(self, name: str, on_mark: OnRound) -> OnRound:
        """Moves a bar by round and passes on the rounds of the curve."""
        rounds = self.plan.federation.rounds
        advance = self.meter.start(name, rounds)
        marks = set(np.linspace(0, rounds, min(CURVE_POINTS, rounds) + 1).astype(int).tolist())

        def watch(number: int, released: Tensors) -> None:
            if number in marks:
                on_mark(number, released)
            if number:
                advance(1)

        return watch

    def _mark(self, number: int, released: Tensors) -> None:
        ndcg = {d: e.quick_ndcg(released) for d, e in self.examiners.items()}
        point = Point(round=number, epsilon=self._epsilon_after(number), ndcg=ndcg)
        self.curve.append(point)
        self.on_point(point)

    def _epsilon_after(self, number: int) -> float:
        if not self.plan.privacy.private:
            return float("inf")
        if number == 0:
            return 0.0
        worst = min(self._noise(name) for name in self.consortium.names)
        return spent(cost_after(self.plan, worst, number), delta=self.plan.privacy.delta).epsilon

    # (6) the result

    def _result(self, noise: dict[str, float], grades: Grades) -> RunResult:
        private = self.plan.privacy.private
        claim = CLAIM if self.request.noise_seed is not None else SECURE_CLAIM
        return RunResult(
            scenario=self.request.name,
            title=self.request.scenario.title,
            seed=self.plan.seed,
            engine=self.request.engine,
            rounds=self.plan.federation.rounds,
            seconds=round(time.monotonic() - self.started, 1),
            peak_rss_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            sites=tuple(self._site(name, noise[name], grades) for name in self.consortium.names),
            domains={d: grades.domain(d) for d in self.domains},
            transfer=grades.transfer(),
            curve=tuple(self.curve),
            claim=claim if private else "no noise: no privacy claim",
            settings=self._settings(),
            accounting=self._accounting(noise) if private else {},
            intervals=grades.intervals(self.plan.seed),
        )

    def _site(self, name: str, noise: float, grades: Grades) -> SiteResult:
        privacy = self.plan.privacy
        return SiteResult(
            site=name,
            domain=self.consortium.domain_of[name],
            subjects=len(self.consortium.splits[name].train),
            epsilon=self._epsilon_of(noise),
            delta=privacy.delta,
            noise_multiplier=noise,
            sample_rate=privacy.sample_rate,
            metrics=grades.site(name, self.consortium.domain_of[name]),
        )

    def _epsilon_of(self, noise: float) -> float:
        if not self.plan.privacy.private:
            return float("inf")
        return spent(self._event(noise), delta=self.plan.privacy.delta).epsilon

    def _event(self, noise: float) -> Event:
        return cost_after(self.plan, noise, self.plan.federation.rounds)

    def _accounting(self, noise: dict[str, float]) -> dict[str, float | str]:
        """The same run by three accountants, and for a subject at several sites."""
        privacy = self.plan.privacy
        worst = min(noise.values())
        one = spent(self._event(worst), delta=privacy.delta)
        third = opacus_opinion(self._event(worst), privacy.delta, by="prv")
        overlap = self.consortium.overlap()
        events = [self._event(value) for value in noise.values()]
        together = compose_sites(events, delta=privacy.delta, sites_per_subject=overlap)
        return {
            "pld": one.pld,
            "rdp": one.rdp,
            "opacus": third,
            "consortium": together.disjoint.epsilon,
            "consortium_overlap": together.shared.epsilon,
            "overlap_sites": overlap,
        }

    def _settings(self) -> dict[str, str]:
        r, p, f = self.plan.recommender, self.plan.privacy, self.plan.federation
        text = f"LoRA r={r.r} ({r.variant}) in {r.top_layers} top layers, {f.text_rounds} rounds"
        return {
            "command": self.request.command,
            "backbone": r.backbone,
            "text path": text if f.text_rounds and r.top_layers else "frozen",
            "objective": r.objective,
            "windows a subject": str(r.windows),
            "unit of privacy": "subject, add or remove",
            "delta": f"{p.delta:g}",
            "clip": f"{p.max_grad_norm:g}",
            "sample rate": f"{p.sample_rate:g}",
            "steps a round": str(f.local_steps),
            "server optimiser": f.strategy,
        }
