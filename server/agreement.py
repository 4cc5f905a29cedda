"""Who pulls against the others, told over all rounds: the rule that stands under local noise.

With differential privacy an honest update is nearly all noise, so in one round a hostile one of the
same length is an outlier to no coordinate and no distance, and trimmed means, medians and Krum let
it through. Over rounds it is not: inner products of two honest updates add up to their common
signal, noise cancels, and a site that pushes elsewhere agrees with nobody, or only with an
accomplice. The server keeps one number a pair of sites; the f that agree least are left out.
Public: all of it, a function of released updates.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from server import robust
from server.aggregation import KeptUpdates, Means
from server.streaming import RunningMean, Tensors, require_some

PAIR: Final = 2.5
"""Standard deviations that the strongest of some fifty honest pairs reaches by chance."""
LEAST: Final = 1.0
"""Score under which nobody is left out: among honest sites it is nearly standard normal."""


class Agreement:
    """Inner products of the sites' updates, added up over the rounds of a run, by pair."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], float] = {}
        self._rounds: dict[tuple[str, str], int] = {}

    def observe(self, sites: Sequence[str], inner: NDArray[np.float64]) -> None:
        """Add one round's inner products, shape (n, n), of these sites."""
        for i, one in enumerate(sites):
            for j in range(i):
                pair = _pair(one, sites[j])
                self._sums[pair] = self._sums.get(pair, 0.0) + float(inner[i, j])
                self._rounds[pair] = self._rounds.get(pair, 0) + 1

    def outliers(self, sites: Sequence[str], k: int) -> list[str]:
        """At most `k` of these sites, those that agree least, if they stand out at all.

        A pair's sum over the square root of its rounds has the same noise for every pair. Two
        signs: against everybody, and far too much with somebody.
        """
        n = len(sites)
        if k < 1 or n < 2 * k + 1:
            return []
        told = np.zeros((n, n))
        for i, one in enumerate(sites):
            for j in range(i):
                pair = _pair(one, sites[j])
                told[i, j] = told[j, i] = self._sums[pair] / np.sqrt(self._rounds[pair])
        among = told[np.triu_indices(n, 1)]
        middle = np.median(among)
        spread = 1.4826 * np.median(np.abs(among - middle)) + np.finfo(np.float64).tiny
        z = (told - middle) / spread
        np.fill_diagonal(z, 0.0)
        score = np.maximum(-z.sum(1) / np.sqrt(n - 1), np.abs(z).max(1) - PAIR)
        worst = np.argsort(-score, kind="stable")[:k]
        return [sites[i] for i in sorted(worst) if score[i] > LEAST]

    def facts(self) -> list[list[Any]]:
        """What a checkpoint keeps."""
        return [[*pair, value, self._rounds[pair]] for pair, value in sorted(self._sums.items())]

    def restore(self, facts: Sequence[Sequence[Any]]) -> None:
        """Go on from a checkpoint."""
        self._sums = {(str(a), str(b)): float(value) for a, b, value, _ in facts}
        self._rounds = {(str(a), str(b)): int(rounds) for a, b, _, rounds in facts}


class AgreeingMean(KeptUpdates):
    """Mean of the updates without those of the sites that agree least, domain by domain.

    Args:
        agreement: of the run; this round is added when the result is asked for.
        domains: of each site; sites are compared with those of their own domain.
        tolerate: hostile sites f; a domain of n sites leaves out (n - 3) / 2 of them at most.
        bound: as `make_aggregator`.
    """

    def __init__(
        self, agreement: Agreement, domains: Mapping[str, str], *, tolerate: int, bound: float
    ) -> None:
        super().__init__("agreement", tolerate=tolerate, bound=bound)
        self._agreement, self._domains = agreement, domains
        self.left_out: list[str] = []

    def result(self) -> Means:
        """As Aggregator."""
        require_some(self._updates)
        for domain in sorted({self._domains[site] for site in self._updates}):
            sites = sorted(s for s in self._updates if self._domains[s] == domain)
            self._agreement.observe(sites, self._inner(sites))
            self.left_out += self._agreement.outliers(sites, borne(len(sites), self._tolerate))
        mean = RunningMean(bound=self._bound)
        for site, update in self._updates.items():
            if site not in self.left_out:
                shaped: Tensors = {n: v.reshape(self._shapes[n]) for n, v in update.items()}
                mean.add(site, shaped, weight=self._weights[site], variance=0.0)
        return mean.result()

    def _inner(self, sites: Sequence[str]) -> NDArray[np.float64]:
        """Inner products around zero of all tensors together, float64."""
        names = sorted(set.intersection(*(set(self._updates[site]) for site in sites)))
        found = np.zeros((len(sites), len(sites)))
        for name in names:
            found += robust.inner_products([self._updates[site][name] for site in sites])
        return found


def borne(sites: int, tolerate: int) -> int:
    """How many hostile sites of a domain can be told apart: f with 2f + 3 sites, else fewer."""
    return min(tolerate, max(0, (sites - 3) // 2))


def _pair(one: str, other: str) -> tuple[str, str]:
    return (one, other) if one < other else (other, one)
