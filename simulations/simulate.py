"""The main job: a consortium on one machine, its baselines, and what federating was worth.

(1) sites, (2) frozen features, (3) the federation, (4) baselines, (5) grades, (6) the result.
"""

import os
import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from client.session import backbone_for
from client.site import SiteRecords, declared
from client.third_opinion import opacus_epsilon
from common.accounting import compose_sites, schedule, spent
from common.errors import ConfigError
from common.interactions import concatenate
from common.plan import RunPlan
from common.spending import noise_of
from common.textpath import Progress
from common.windows import history_texts, query_windows, training_windows
from common.wire import Tensors
from simulations import metrics
from simulations.engines import InProcessEngine, Job, make_engine
from simulations.evaluation import (
    Examiner,
    Graded,
    Questions,
    grade,
    make_examiner,
    popularity_top,
    questions,
)
from simulations.preload import PreloadedStore
from simulations.results import METHODS, DomainResult, Point, RunResult, SiteResult
from simulations.scenario import Consortium, Scenario
from simulations.seeded import CLAIM
from simulations.sites import SIMULATED

SECURE_CLAIM = "secure noise: the epsilon shown is spent"
CURVE_POINTS = 20
"""Rounds at which the curve is measured."""
SASREC_EPOCHS = 25


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
    """

    name: str
    scenario: Scenario
    engine: str
    noise_seed: int | None
    baselines: frozenset[str]
    command: str = ""


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
        self.plan: RunPlan = self.request.scenario.run_plan()
        self.domains = list(self.consortium.catalogs)
        self.examiners: dict[str, Examiner] = {}
        self.curve: list[Point] = []
        self.workers = os.cpu_count() or 1

    def run(self) -> RunResult:
        """Do everything.

        Raises:
            ConfedError: the plan, the data or the model is refused.
        """
        torch.set_num_threads(1)  # one thread a site, sites side by side: the same on any engine
        noise = {name: self._noise(name) for name in self.consortium.names}
        self.prepare()
        adapters = {"federated": self._federate()}
        graded = self._baselines(adapters)
        return self._result(noise, graded)

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
        rounds = self.plan.federation.rounds
        advance = self.meter.start("federation, rounds", rounds)
        marks = set(np.linspace(0, rounds, min(CURVE_POINTS, rounds) + 1).astype(int).tolist())

        def watch(number: int, released: Tensors) -> None:
            if number in marks:
                self._mark(number, released)
            if number:
                advance(1)

        return make_engine(self.request.engine).run(
            self._job(self.plan, self._all_records(), on_round=watch)
        )

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
        steps = number * self.plan.federation.local_steps
        worst = min(self._noise(name) for name in self.consortium.names)
        event = schedule(
            noise_multiplier=worst, sample_rate=self.plan.privacy.sample_rate, steps=steps
        )
        return spent(event, delta=self.plan.privacy.delta).epsilon

    def _all_records(self) -> list[SiteRecords]:
        return [self.consortium.records(name) for name in self.consortium.names]

    def _job(
        self,
        plan: RunPlan,
        sites: Sequence[SiteRecords],
        on_round: Callable[[int, Tensors], None] | None = None,
    ) -> Job:
        return Job(
            plan=plan,
            sites=sites,
            noise_seed=self.request.noise_seed,
            store=self.store,
            on_round=on_round,
        )

    # (4) baselines

    def _baselines(self, adapters: dict[str, Tensors]) -> "Grades":
        """Run what was asked for, `workers` at a time, and grade it."""
        grades = Grades(self.examiners)
        grades.adapter("federated", adapters["federated"])
        wanted = self.request.baselines
        if "zero_shot" in wanted:
            grades.adapter("zero_shot", {})
        if "popularity" in wanted:
            grades.popularity()
        jobs = self._jobs(wanted)
        total = sum(count for _, _, count, _ in jobs)
        advance = self.meter.start("baselines, rounds", total)
        with ThreadPoolExecutor(max_workers=self.workers, thread_name_prefix="baseline") as pool:
            done = [(method, where, pool.submit(work, advance)) for method, where, _, work in jobs]
            for method, where, future in done:
                grades.put(method, where, future.result())
        return grades

    def _jobs(
        self, wanted: frozenset[str]
    ) -> list[tuple[str, str, int, Callable[[Progress], "Tensors | Graded"]]]:
        """Method, domain or site, steps and work of every baseline, the longest first."""
        rounds = self.plan.federation.rounds
        found: list[tuple[str, str, int, Callable[[Progress], Tensors | Graded]]] = []
        pooled = [self._pooled(domain) for domain in self.domains]
        if "central_non_private" in wanted:
            open_plan = self.plan.model_copy(
                update={"privacy": self.plan.privacy.model_copy(update={"private": False})}
            )
            found.append(("central_non_private", "", rounds, self._trained(open_plan, pooled)))
        if "central" in wanted:
            found.append(("central", "", rounds, self._trained(self.plan, pooled)))
        if "local" in wanted and len(self.domains) > 1:
            for domain in self.domains:
                alone = [self.consortium.records(n) for n in self.consortium.sites_of(domain)]
                found.append(("single", domain, rounds, self._trained(self.plan, alone)))
        if "sasrec" in wanted:
            found += [("sasrec", d, SASREC_EPOCHS, self._sasrec(d)) for d in self.domains]
        if "local" in wanted:
            for name in self.consortium.names:
                own = [self.consortium.records(name)]
                found.append(("local", name, rounds, self._trained(self.plan, own)))
        return found

    def _trained(
        self, plan: RunPlan, sites: Sequence[SiteRecords]
    ) -> Callable[[Progress], Tensors]:
        def work(advance: Progress) -> Tensors:
            def watch(number: int, _released: Tensors) -> None:
                if number:
                    advance(1)

            return InProcessEngine(workers=1).run(self._job(plan, sites, on_round=watch))

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

    def _sasrec(self, domain: str) -> Callable[[Progress], Graded]:
        def work(advance: Progress) -> Graded:
            from simulations.sasrec import train_sasrec  # noqa: PLC0415

            names = self.consortium.sites_of(domain)
            splits = [self.consortium.splits[n] for n in names]
            asked = self.examiners[domain].asked
            model = train_sasrec(
                concatenate([s.train for s in splits]),
                len(self.consortium.catalogs[domain]),
                validation=np.concatenate([s.validation_target for s in splits]),
                epochs=SASREC_EPOCHS,
                seed=self.plan.seed,
                progress=lambda _epoch: advance(1),
            )
            top = model.top(asked.histories.offsets, asked.histories.items)
            return grade(top, asked, self.examiners[domain].vectors)

        return work

    # (6) the result

    def _result(self, noise: dict[str, float], grades: "Grades") -> RunResult:
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
            transfer=grades.transfer(self.consortium),
            curve=tuple(self.curve),
            claim=claim if private else "no noise: no privacy claim",
            settings=self._settings(),
            accounting=self._accounting(noise) if private else {},
            intervals=grades.intervals(self.plan.seed),
        )

    def _site(self, name: str, noise: float, grades: "Grades") -> SiteResult:
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

    def _event(self, noise: float):  # type: ignore[no-untyped-def]
        return schedule(
            noise_multiplier=noise,
            sample_rate=self.plan.privacy.sample_rate,
            steps=self.plan.steps,
        )

    def _accounting(self, noise: dict[str, float]) -> dict[str, float | str]:
        """The same run by three accountants, and for a subject at several sites."""
        privacy = self.plan.privacy
        worst = min(noise.values())
        one = spent(self._event(worst), delta=privacy.delta)
        third = opacus_epsilon(worst, privacy.sample_rate, self.plan.steps, privacy.delta)
        overlap = self.consortium.overlap()
        events = [self._event(value) for value in noise.values()]
        together = compose_sites(events, delta=privacy.delta, sites_per_subject=overlap)
        return {
            "pld": one.pld,
            "rdp": one.rdp,
            "opacus": third["prv"],
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


class Grades:
    """Every method's grades, by domain and by site.

    Args:
        examiners: by domain.
    """

    def __init__(self, examiners: dict[str, Examiner]) -> None:
        self._examiners = examiners
        self._whole: dict[str, dict[str, Graded]] = {d: {} for d in examiners}
        self._local: dict[str, dict[str, Graded]] = {d: {} for d in examiners}

    def adapter(self, method: str, tensors: Tensors, only: str | None = None) -> None:
        """Grade an adapter on every domain, or on one."""
        for domain, examiner in self._examiners.items():
            if only is None or domain == only:
                self._whole[domain][method] = self._grade(examiner, tensors)

    def _grade(self, examiner: Examiner, tensors: Tensors) -> Graded:
        objective = examiner.plan.objective
        scored = None if objective == "ranking" else examiner.target_scores(tensors)
        return grade(examiner.top(tensors), examiner.asked, examiner.vectors, scored, objective)

    def popularity(self) -> None:
        """Grade the popularity list."""
        for domain, examiner in self._examiners.items():
            top = popularity_top(examiner.asked)
            self._whole[domain]["popularity"] = grade(top, examiner.asked, examiner.vectors)

    def put(self, method: str, where: str, made: Tensors | Graded) -> None:
        """Take a finished baseline in."""
        if isinstance(made, Graded):
            self._whole[where][method] = made
        elif method == "local":
            self._put_local(where, made)
        else:
            self.adapter(method, made, only=where or None)

    def _put_local(self, site: str, tensors: Tensors) -> None:
        """A site's own model is graded on its own subjects."""
        for domain, examiner in self._examiners.items():
            mine = np.flatnonzero(examiner.asked.site == site)
            if mine.size:
                rows = torch.from_numpy(mine)
                top = examiner.top(tensors, rows)
                asked = _at(examiner.asked, mine)
                self._local[domain][site] = grade(top, asked, examiner.vectors)

    def domain(self, domain: str) -> DomainResult:
        """A domain's metrics by method; `local` is over all sites, each subject by its own."""
        found = dict(self._whole[domain])
        found.pop("single", None)
        metrics_of = {method: g.whole for method, g in found.items()}
        slices: dict[str, dict[str, dict[str, float]]] = {}
        for method, g in found.items():
            for name, values in g.sliced.items():
                if not name.startswith("site:"):
                    slices.setdefault(name, {})[method] = values
        if self._local[domain]:
            per_subject = self._per_subject_local(domain)
            metrics_of["local"] = metrics.means(per_subject)
            for name, mask in self._examiners[domain].asked.masks().items():
                if not name.startswith("site:"):
                    slices.setdefault(name, {})["local"] = metrics.means(per_subject, mask)
        ordered = {m: metrics_of[m] for m in METHODS if m in metrics_of}
        return DomainResult(metrics=ordered, slices=slices)

    def _per_subject_local(self, domain: str) -> metrics.PerSubject:
        asked = self._examiners[domain].asked
        out: metrics.PerSubject = {}
        for site, g in self._local[domain].items():
            mine = asked.site == site
            for name, values in g.per_subject.items():
                out.setdefault(name, np.zeros(len(asked.target)))[mine] = values
        return out

    def site(self, name: str, domain: str) -> dict[str, dict[str, float]]:
        """A site's metrics by method, on its own subjects."""
        found = {
            method: g.sliced[f"site:{name}"]
            for method, g in self._whole[domain].items()
            if f"site:{name}" in g.sliced and method != "single"
        }
        if name in self._local[domain]:
            found["local"] = self._local[domain][name].whole
        return {m: found[m] for m in METHODS if m in found}

    def transfer(self, consortium: Consortium) -> dict[str, dict[str, float]]:
        """Relative gain in NDCG@10 of each target from each source."""
        gains: dict[str, dict[str, float]] = {}
        for target in self._examiners:
            local = self._local[target]
            if not local:
                continue
            joint = self._whole[target]["federated"].whole["ndcg@10"]
            single = self._whole[target].get("single")
            own = joint if single is None else single.whole["ndcg@10"]
            alone = float(self._per_subject_local(target)["ndcg@10"].mean())
            gains.setdefault(target, {})[target] = own / alone - 1 if alone else float("nan")
            others = [d for d in self._examiners if d != target]
            if len(others) == 1 and own:
                gains.setdefault(others[0], {})[target] = joint / own - 1
        return gains

    def intervals(self, seed: int) -> dict[str, tuple[float, float]]:
        """95% interval of NDCG@10, federated minus site alone, by domain."""
        found = {}
        for domain in self._examiners:
            if self._local[domain]:
                federated = self._whole[domain]["federated"].per_subject["ndcg@10"]
                local = self._per_subject_local(domain)["ndcg@10"]
                found[domain] = metrics.paired_bootstrap(federated, local, seed=seed)
        return found


def _at(asked: Questions, rows: np.ndarray) -> Questions:
    return Questions(
        histories=asked.histories.select(rows),
        target=asked.target[rows],
        value=asked.value[rows],
        site=asked.site[rows],
        trained=asked.trained[rows],
        popularity=asked.popularity,
    )


def parse_baselines(given: str) -> frozenset[str]:
    """Methods named on the command line: all, none or a comma-separated list.

    Raises:
        ConfigError: an unknown name.
    """
    if given == "all":
        return frozenset(METHODS) - {"federated"}
    if given == "none":
        return frozenset()
    names = frozenset(name.strip() for name in given.split(",") if name.strip())
    unknown = sorted(names - set(METHODS))
    if unknown:
        raise ConfigError(
            f"Expected baselines all, none or some of {', '.join(METHODS)}, got {unknown[0]}."
        )
    return names - {"federated"}
