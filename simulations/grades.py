"""Grades of every method, by domain and by site, and what federating was worth.

The researcher's own view of data they hold, outside the privacy claim.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.wire import Tensors
from simulations import metrics
from simulations.evaluation import DEPTH, Examiner, Graded, Questions, grade, popularity_top
from simulations.results import METHODS, DomainResult


class Grades:
    """Every method's grades, by domain and by site.

    Args:
        examiners: by domain.
    """

    def __init__(self, examiners: dict[str, Examiner]) -> None:
        self._examiners = examiners
        self._whole: dict[str, dict[str, Graded]] = {d: {} for d in examiners}
        self._local: dict[str, dict[str, Graded]] = {d: {} for d in examiners}

    def asked(self, domain: str) -> Questions:
        """The questions of a domain."""
        return self._examiners[domain].asked

    def vectors(self, domain: str) -> Tensor:
        """Item vectors of a domain."""
        return self._examiners[domain].vectors

    def adapter(self, method: str, tensors: Tensors, only: str | None = None) -> None:
        """Grade an adapter on every domain, or on one."""
        for domain, examiner in self._examiners.items():
            if only is None or domain == only:
                self._whole[domain][method] = self._grade(examiner, tensors)

    def _grade(self, examiner: Examiner, tensors: Tensors) -> Graded:
        scored = examiner.target_scores(tensors)
        objective = examiner.plan.objective
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
                self._local[domain][site] = grade(
                    examiner.top(tensors, rows),
                    _at(examiner.asked, mine),
                    examiner.vectors,
                    examiner.target_scores(tensors, rows),
                    examiner.plan.objective,
                )

    def domain(self, domain: str) -> DomainResult:
        """A domain's metrics by method; `local` is over all sites, each subject by its own."""
        found = dict(self._whole[domain])
        found.pop("single", None)
        alone = self._alone(domain)
        if alone is not None:
            found["local"] = alone
        ordered = {m: found[m] for m in METHODS if m in found}
        slices: dict[str, dict[str, dict[str, float]]] = {}
        for method, graded in ordered.items():
            for name, values in graded.sliced.items():
                if not name.startswith("site:"):
                    slices.setdefault(name, {})[method] = values
        return DomainResult(metrics={m: g.whole for m, g in ordered.items()}, slices=slices)

    def _alone(self, domain: str) -> Graded | None:
        """All sites' own models together: each subject is answered by its own site's."""
        if not self._local[domain]:
            return None
        examiner, sites = self._examiners[domain], self._local[domain]
        top = np.full((len(examiner.asked.target), DEPTH), -1, dtype=np.int32)
        scored = None
        for site, graded in sites.items():
            mine = examiner.asked.site == site
            top[mine] = graded.top
            if graded.scored is not None:
                scored = np.zeros(len(top), dtype=np.float32) if scored is None else scored
                scored[mine] = graded.scored
        return grade(top, examiner.asked, examiner.vectors, scored, examiner.plan.objective)

    def _ndcg_alone(self, domain: str) -> NDArray[np.float64]:
        """NDCG@10 of every subject under its own site's model."""
        asked = self._examiners[domain].asked
        out = np.zeros(len(asked.target))
        for site, graded in self._local[domain].items():
            out[asked.site == site] = graded.per_subject["ndcg@10"]
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

    def transfer(self) -> dict[str, dict[str, float]]:
        """Relative gain in NDCG@10 of each target from each source."""
        gains: dict[str, dict[str, float]] = {}
        for target in self._examiners:
            if not self._local[target]:
                continue
            joint = self._whole[target]["federated"].whole["ndcg@10"]
            single = self._whole[target].get("single")
            own = joint if single is None else single.whole["ndcg@10"]
            alone = float(self._ndcg_alone(target).mean())
            gains.setdefault(target, {})[target] = own / alone - 1 if alone else float("nan")
            others = [d for d in self._examiners if d != target]
            if len(others) == 1 and own:
                gains.setdefault(others[0], {})[target] = joint / own - 1
        return gains

    def intervals(self, seed: int) -> dict[str, tuple[float, float]]:
        """95% interval of NDCG@10, federated minus site alone, by domain."""
        found = {}
        for domain in self._examiners:
            if self._local[domain] and len(self.asked(domain).target) > 1:
                federated = self._whole[domain]["federated"].per_subject["ndcg@10"]
                alone = self._ndcg_alone(domain)
                found[domain] = metrics.paired_bootstrap(federated, alone, seed=seed)
        return found


def _at(asked: Questions, rows: NDArray[np.int64]) -> Questions:
    return Questions(
        histories=asked.histories.select(rows),
        target=asked.target[rows],
        value=asked.value[rows],
        site=asked.site[rows],
        trained=asked.trained[rows],
        popularity=asked.popularity,
    )
