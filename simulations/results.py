"""What one simulated run found, as frozen values, and the files a researcher reads.

Every figure in here is the researcher's own view of records that they hold. It lies outside
the privacy claim, and nothing in it is ever sent: a deployed site computes none of it.
"""

import csv
import io
import json
import math
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, Final

from common.durable import write_atomic

METHODS: Final = (
    "zero_shot",
    "popularity",
    "local",
    "federated",
    "central",
    "central_non_private",
    "sasrec",
)
"""Keys of a `metrics` value, in the order in which tables show them."""

LABELS: Final[Mapping[str, str]] = {
    "zero_shot": "zero-shot",
    "popularity": "popularity",
    "local": "site alone",
    "federated": "federated",
    "central": "central",
    "central_non_private": "central, not private",
    "sasrec": "SASRec, not private",
}
"""Method -> the words that stand for it in plots and in the report."""

HEADLINE: Final = "ndcg@10"
PAIRS_TOLD: Final = 6
SCOPE: Final = "Metrics are the researcher's own view of data they hold, outside the privacy claim."

Metrics = dict[str, float]
ByMethod = dict[str, Metrics]


@dataclass(frozen=True, kw_only=True)
class SiteResult:
    """One site's privacy spent and the quality of every method on its own subjects.

    Attributes:
        site: Name of the site, shown as it is (escaped), never trusted.
        domain: Domain that the site belongs to.
        subjects: Number of training subjects.
        epsilon: Privacy spent per subject by the end of the run; infinite without privacy.
        delta: Probability that the bound `epsilon` may fail.
        noise_multiplier: Noise standard deviation over the clipping norm.
        sample_rate: Probability that a subject is in a step.
        metrics: Method (of `METHODS`) -> metric name -> value in [0, 1].
    """

    site: str
    domain: str
    subjects: int
    epsilon: float
    delta: float
    noise_multiplier: float
    sample_rate: float
    metrics: ByMethod


@dataclass(frozen=True, kw_only=True)
class DomainResult:
    """Quality over all test subjects of a domain, whole and by slice.

    Attributes:
        metrics: Method -> metric name -> value.
        slices: Slice ("head items", "tail items", "cold subjects") -> method -> metrics.
    """

    metrics: ByMethod
    slices: dict[str, ByMethod] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Point:
    """The federated model after a round.

    Attributes:
        round: Round number, 0 before any training.
        epsilon: Largest privacy spent at any site so far.
        ndcg: Domain -> NDCG@10.
    """

    round: int
    epsilon: float
    ndcg: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One federation of a comparison: undisturbed, or with hostile or faulty sites.

    Attributes:
        name: What it is, as tables head it.
        rule: Aggregation rule of the plan.
        ndcg: Domain -> NDCG@10 over all of its test subjects.
        lost: Domain -> share of the undisturbed NDCG@10 that is gone; negative where it rose.
        curve: Round -> domain -> NDCG@10 on the curve's subjects.
        backdoor: Share of test subjects with the trigger for whom the target stands first.
        answers: Answers that the disturbed sites sent, or rounds that faulty sites lost.
        refused: What the server said of them, code name -> times, as far as it told.
        ended: Why the run stopped early; empty where it did not.
    """

    name: str
    rule: str
    ndcg: dict[str, float]
    lost: dict[str, float] = field(default_factory=dict)
    curve: dict[int, dict[str, float]] = field(default_factory=dict)
    backdoor: float | None = None
    answers: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    ended: str = ""


@dataclass(frozen=True, kw_only=True)
class Damage:
    """What a disturbance did, beside the undisturbed run with the same noise.

    Attributes:
        kind: "attack" or "fault".
        name: Of the attack or fault.
        says: What it does, in words.
        sites: Names of the disturbed sites; empty where any may be.
        of: Number of all sites.
        rate: Share of rounds that a fault takes; 0 for an attack.
        outcomes: The undisturbed run first.
    """

    kind: str
    name: str
    says: str
    sites: tuple[str, ...]
    of: int
    rate: float
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """Everything that one run found.

    Attributes:
        scenario: Name of the scenario; part of the command that repeats the run.
        title: One line for people.
        seed: Seed of splits, initial weights and (where the claim says so) noise.
        engine: "in-process" or "flower".
        rounds: Rounds run.
        seconds: Wall-clock time of the run.
        peak_rss_mb: Largest resident memory, MiB.
        sites: One entry a site.
        domains: Domain -> quality over all of its test subjects.
        transfer: Source -> target -> relative gain in NDCG@10 of the target's subjects when
            the source federates with it, over the target federated alone. On the diagonal:
            the domain's own federation over training alone at a site.
        curve: Federated quality by round.
        claim: What privacy the run may claim, in words.
        settings: Setting -> value, as shown; `command` repeats the run when it is there.
        accounting: `pld`, `rdp`, `opacus`: the same run's epsilon by three accountants;
            `consortium`: epsilon of a subject at one site; `consortium_overlap`: of a
            subject at `overlap_sites` sites. Any other key is shown as it is.
        intervals: Domain -> 95% interval of NDCG@10, federated minus site alone.
        damage: What hostile or faulty sites did to the same run, as `simulations.damage` measured
            it; None where nothing disturbed it.
    """

    scenario: str
    title: str
    seed: int
    engine: str
    rounds: int
    seconds: float
    peak_rss_mb: float
    sites: tuple[SiteResult, ...]
    domains: dict[str, DomainResult]
    transfer: dict[str, dict[str, float]] = field(default_factory=dict)
    curve: tuple[Point, ...] = ()
    claim: str = ""
    settings: dict[str, str] = field(default_factory=dict)
    accounting: dict[str, float | str] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    damage: Damage | None = None


def score(metrics: Mapping[str, Metrics], method: str, metric: str = HEADLINE) -> float | None:
    """Return one metric of one method, or None where it was not measured or is not finite."""
    value = metrics.get(method, {}).get(metric)
    return value if value is not None and math.isfinite(value) else None


def gain(site: SiteResult) -> float | None:
    """Return the site's relative gain in NDCG@10 of federating over training alone."""
    alone, together = score(site.metrics, "local"), score(site.metrics, "federated")
    return together / alone - 1 if alone and together is not None else None


def gains(result: RunResult) -> tuple[tuple[SiteResult, float], ...]:
    """Return the sites whose gain was measured, with it, the largest gain first."""
    measured = [(site, value) for site in result.sites if (value := gain(site)) is not None]
    return tuple(sorted(measured, key=lambda pair: -pair[1]))


def mean_gain(result: RunResult) -> float | None:
    """Return the mean relative gain over the sites where it was measured, or None."""
    values = [value for _, value in gains(result)]
    return sum(values) / len(values) if values else None


def pairs(result: RunResult) -> tuple[tuple[str, str, float], ...]:
    """Return (source, target, gain) of every measured transfer between two domains."""
    return tuple(
        (source, target, value)
        for source, row in result.transfer.items()
        for target, value in row.items()
        if source != target and math.isfinite(value)
    )


def measured_methods(result: RunResult) -> tuple[str, ...]:
    """Return the methods that some domain has a value for, in the order of `METHODS`."""
    found = {m for d in result.domains.values() for m in METHODS if score(d.metrics, m) is not None}
    return tuple(method for method in METHODS if method in found)


def largest_epsilon(result: RunResult) -> SiteResult | None:
    """Return the site that spent most, or None when there is no site."""
    return max(result.sites, key=lambda site: site.epsilon, default=None)


def upper(epsilon: float) -> str:
    """Return epsilon rounded up to two decimals, so that "at most" stays true."""
    return f"{math.ceil(epsilon * 100 - 1e-9) / 100:.2f}" if math.isfinite(epsilon) else "∞"


def clean(name: str, limit: int = 60) -> str:
    """Return a foreign name on one line, without control characters, at most `limit` long."""
    shown = "".join(" " if unicodedata.category(c).startswith(("C", "Z")) else c for c in name)
    shown = " ".join(shown.split())
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def headlines(result: RunResult) -> tuple[str, ...]:
    """Return the run's findings, one sentence each, in the order of importance."""
    return tuple(_gain_sentence(result)) + tuple(_transfer_sentences(result))


def _gain_sentence(result: RunResult) -> Iterator[str]:
    measured, top = gains(result), largest_epsilon(result)
    if top is None:
        return
    spent = f"ε ≤ {upper(top.epsilon)} (δ = {top.delta:.0e})"
    mean = mean_gain(result)
    if mean is None:
        yield f"Each site spends {spent}; training alone was not measured."
        return
    better = sum(value > 0 for _, value in measured)
    yield (
        f"Federating changes a site's NDCG@10 by {mean:+.1%} on average over training alone "
        f"at the same ε; {better} of {len(measured)} sites gain. Each site spends {spent}."
    )


def _transfer_sentences(result: RunResult) -> Iterator[str]:
    ordered = sorted(pairs(result), key=lambda pair: -pair[2])
    if len(ordered) > PAIRS_TOLD:
        mean = sum(value for _, _, value in ordered) / len(ordered)
        yield (
            f"Over {len(ordered)} pairs of domains, one gives another {mean:+.1%} NDCG@10 on "
            "average; the largest and the smallest:"
        )
        ordered = [ordered[0], ordered[-1]]
    for source, target, value in ordered:
        one, other = clean(source), clean(target)
        yield f"{one} gives {other} {value:+.1%} NDCG@10 over {other} federated alone."


def to_summary(result: RunResult) -> dict[str, Any]:
    """Return the run as JSON-ready values; what is not finite becomes None."""
    summary = {
        "scenario": result.scenario,
        "title": result.title,
        "seed": result.seed,
        "engine": result.engine,
        "rounds": result.rounds,
        "seconds": result.seconds,
        "peak_rss_mb": result.peak_rss_mb,
        "claim": result.claim,
        "scope": SCOPE,
        "sites": [vars(site) for site in result.sites],
        "domains": {name: {"metrics": d.metrics} for name, d in result.domains.items()},
        "transfer": result.transfer,
        "slices": {name: d.slices for name, d in result.domains.items()},
        "curve": [vars(point) for point in result.curve],
        "intervals": result.intervals,
        "accounting": result.accounting,
        "settings": result.settings,
    }
    if result.damage is not None:
        summary[result.damage.kind] = asdict(result.damage)
    plain: dict[str, Any] = _plain(summary)
    return plain


def _plain(value: Any) -> Any:
    """Return plain Python values (NumPy's become these), null for NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if math.isfinite(value) else None


CSV_HEADER: Final = ("level", "domain", "site", "slice", "method", "metric", "value")


def to_rows(result: RunResult) -> Iterator[tuple[str, str, str, str, str, str, float]]:
    """Yield every metric in long form: domains, then slices, then sites."""
    for name, domain in result.domains.items():
        yield from _rows(("domain", name, "", ""), domain.metrics)
        for part, metrics in domain.slices.items():
            yield from _rows(("slice", name, "", part), metrics)
    for site in result.sites:
        yield from _rows(("site", site.domain, site.site, ""), site.metrics)


def _rows(
    where: tuple[str, str, str, str], metrics: ByMethod
) -> Iterator[tuple[str, str, str, str, str, str, float]]:
    for method, values in metrics.items():
        for metric, value in values.items():
            yield (*where, method, metric, value)


def write_results(result: RunResult, folder: Path) -> tuple[Path, Path]:
    """Write `summary.json` and `metrics.csv` into the folder and return their paths.

    Raises:
        OSError: The folder cannot be written to.
    """
    summary, table = folder / "summary.json", folder / "metrics.csv"
    text = json.dumps(to_summary(result), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(summary, (text + "\n").encode())
    lines = io.StringIO(newline="")
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    writer.writerows(to_rows(result))
    write_atomic(table, lines.getvalue().encode())
    return summary, table
