"""Rows: aggregation rules beside Flower's own, the server's memory, the error of LoRA means."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.fedtrimmedavg import trim_mean
from flwr.serverapp.strategy.multikrum import select_multikrum
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from common.wire import Tensors, to_record
from server.aggregation import make_aggregator
from server.lora import Factors, mean_of_factors, reduced, residual, stacked, total
from simulations.benchmark.clock import Timing, Work, alternate
from simulations.benchmark.rows import Row

WEIGHT = "num-examples"
BOUND = 10.0
TENSORS = 5
LEAST = {"mean": 0.3, "trimmed-mean": 2.0, "multi-krum": 3.0}
"""Seconds for 100 updates of a million numbers on one core."""
NAMES = {"mean": "FedAvg", "trimmed-mean": "FedTrimmedAvg", "multi-krum": "MultiKrum"}
OTHERS = ("median", "geometric-median", "norm-bounded", "inverse-variance")


@dataclass(frozen=True, kw_only=True)
class Size:
    """How many sites send how many numbers, and how many sites are taken for hostile."""

    sites: int
    numbers: int
    hostile: int

    @property
    def words(self) -> str:
        """For a row's name."""
        return f"{self.sites:,} updates of {self.numbers:,} numbers"


FULL, SMALL = (
    Size(sites=100, numbers=1_000_000, hostile=20),
    Size(sites=20, numbers=100_000, hostile=4),
)
CROWD, SMALL_CROWD = (
    Size(sites=1_000, numbers=300_000, hostile=0),
    Size(sites=50, numbers=100_000, hostile=0),
)


def aggregation_rows(*, turns: int, quick: bool = False) -> list[Row]:
    """Seconds of each rule beside Flower's, peak memory of the mean, error of each LoRA mean."""
    with threadpool_limits(1):
        timed = rule_rows(SMALL if quick else FULL, turns=turns, bounds=not quick)
        crowd = SMALL_CROWD if quick else CROWD
        return [*timed, lora_row(), memory_row(crowd, beside=not quick)]


def rule_rows(size: Size, *, turns: int, bounds: bool) -> list[Row]:
    """Mean, trimmed mean and multi-Krum on the arrays that Flower's functions get too."""
    rng = np.random.default_rng(0)
    updates = [_update(rng, size.numbers) for _ in range(size.sites)]
    replies = [
        RecordDict({"arrays": to_record(u), "metrics": MetricRecord({WEIGHT: 1.0})})
        for u in updates
    ]
    works: dict[str, Work] = {rule: _ours(rule, updates, size) for rule in LEAST}
    works |= {NAMES[rule]: work for rule, work in _flowers(replies, size).items()}
    works["decoding"] = lambda: [len(_decoded(reply)) for reply in replies]
    timings = alternate(works, turns=turns, warm=1)
    timings |= alternate({rule: _ours(rule, updates, size) for rule in OTHERS}, turns=1, warm=0)
    return [_rule_row(rule, timings, size, bounds=bounds) for rule in LEAST]


def _rule_row(rule: str, timings: dict[str, Timing], size: Size, *, bounds: bool) -> Row:
    mine, theirs, name = timings[rule], timings[NAMES[rule]], NAMES[rule]
    decoding = timings["decoding"].median
    beside = f"Flower {name} {theirs.median:.2f} s, of which decoding {decoding:.2f} s"
    if rule == "multi-krum":
        beside += "; " + ", ".join(f"{o} {timings[o].median:.2f} s" for o in OTHERS)
    return Row(
        name=f"Aggregation: {rule} of {size.words}, one core",
        measured=round(mine.median, 4),
        unit="s",
        comparison=beside,
        least=LEAST[rule] if bounds else None,
        aim=LEAST[rule] / 2 if bounds else None,
        detail={
            key: timings[key].plain()
            for key in (rule, name, "decoding", *(OTHERS if rule == "multi-krum" else ()))
        },
    )


def _ours(rule: str, updates: list[Tensors], size: Size) -> Work:
    def work() -> dict[str, NDArray[np.float64]]:
        aggregator = make_aggregator(rule, tolerate=size.hostile, bound=BOUND)
        for number, update in enumerate(updates):
            aggregator.add(f"site-{number:04d}", update, weight=1.0, variance=1.0)
        return aggregator.result()

    return work


def _flowers(replies: list[RecordDict], size: Size) -> dict[str, Work]:
    """What the strategies call to aggregate, without their messages and logs."""

    def trimmed() -> dict[str, NDArray[np.float64]]:
        records = [_decoded(reply) for reply in replies]
        share = size.hostile / size.sites
        return {name: trim_mean(np.stack([r[name] for r in records]), share) for name in records[0]}

    def krum() -> ArrayRecord:
        kept = size.sites - size.hostile
        return aggregate_arrayrecords(select_multikrum(replies, size.hostile, kept), WEIGHT)

    return {
        "mean": lambda: aggregate_arrayrecords(replies, WEIGHT),
        "trimmed-mean": trimmed,
        "multi-krum": krum,
    }


def _decoded(reply: RecordDict) -> dict[str, NDArray[np.float32]]:
    (record,) = reply.array_records.values()
    return {name: array.numpy() for name, array in record.items()}


def _update(rng: np.random.Generator, numbers: int) -> Tensors:
    each = numbers // TENSORS
    return {
        f"part-{i}": (1e-3 * rng.standard_normal(each, dtype=np.float32)).reshape(-1, 10)
        for i in range(TENSORS)
    }


def memory_row(size: Size, *, beside: bool) -> Row:
    """Peak memory of a process that imports the server and averages updates as they come.

    Args:
        size: of the consortium.
        beside: also start a process that only imports, and one that aggregates as Flower does.
    """
    others = {"imports": "nothing", "flower": "flower"} if beside else {}
    peaks = {"confed": _peak("confed", size)} | {n: _peak(w, size) for n, w in others.items()}
    return Row(
        name=f"Aggregation: peak memory of the server, mean of {size.words}",
        measured=round(peaks["confed"], 3),
        unit="GB",
        comparison=f"its imports alone {peaks['imports']:.2f} GB; Flower FedAvg, which holds "
        f"every reply, {peaks['flower']:.2f} GB"
        if beside
        else "",
        least=1.0,
        aim=0.6,
        detail={"peak_gb": peaks},
    )


def _peak(what: str, size: Size) -> float:
    """Largest resident memory of a fresh process, GB."""
    code = (
        "from simulations.benchmark.aggregation import peak_after; "
        f"print(peak_after({what!r}, {size.sites}, {size.numbers}))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def peak_after(what: str, sites: int, numbers: int) -> float:
    """Average updates of made-up sites in this process and give its largest memory, GB.

    Args:
        what: `confed` takes updates one at a time, `flower` all at once, `nothing` none.
        sites: how many.
        numbers: of each update.
    """
    import server.app  # noqa: F401, PLC0415  (what the server's process holds besides)

    rng = np.random.default_rng(0)
    updates = (_update(rng, numbers) for _ in range(sites))
    if what == "confed":
        aggregator = make_aggregator("mean", tolerate=0, bound=BOUND)
        for number, update in enumerate(updates):
            aggregator.add(f"site-{number:04d}", update, weight=1.0, variance=1.0)
        aggregator.result()
    elif what == "flower":
        metrics = MetricRecord({WEIGHT: 1.0})
        replies = [RecordDict({"arrays": to_record(u), "metrics": metrics}) for u in updates]
        aggregate_arrayrecords(replies, WEIGHT)
    # Not ru_maxrss: a child inherits its parent's.
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(peak) * 1024 / 1e9


def lora_row() -> Row:
    """Error of each way to average LoRA pairs, rounded to float32, against the dense mean."""
    rng = np.random.default_rng(0)
    plain, frozen = _lora_sites(rng, common_a=False), _lora_sites(rng, common_a=True)
    weights = [float(w) for w in rng.uniform(0.2, 5.0, size=len(plain))]
    means: dict[str, Callable[[], Factors]] = {
        "stacking": lambda: stacked(plain, weights),
        "FedEx": lambda: total([mean_of_factors(plain, weights), residual(plain, weights)]),
        "rank 8 again": lambda: reduced(stacked(plain, weights), 8),
        "mean of A and of B": lambda: mean_of_factors(plain, weights),
    }
    errors = {name: _dense_error(make(), plain, weights) for name, make in means.items()}
    errors["FFA"] = _dense_error(mean_of_factors(frozen, weights), frozen, weights)
    shown = ", ".join(f"{n} {e:.1e}" for n, e in errors.items() if n != "stacking")
    return Row(
        name="Aggregation: error of plain LoRA by stacking, 10 sites, unequal weights, 384 x 1536",
        measured=max(errors["stacking"], errors["FFA"]),
        unit="",
        comparison=f"over the length of the dense mean(B A): {shown}",
        least=1e-6,
        aim=1e-7,
        detail={"errors": errors},
    )


def _lora_sites(rng: np.random.Generator, *, common_a: bool) -> list[Factors]:
    start = rng.uniform(-1, 1, size=(8, 1536)) * (3 / 1536) ** 0.5
    learnt = 0.05 * rng.standard_normal((384, 8))
    return [
        Factors(
            a=start + (0 if common_a else 0.2) * rng.standard_normal(start.shape) / 1536**0.5,
            b=learnt + 0.05 * rng.standard_normal(learnt.shape),
        )
        for _ in range(10)
    ]


def _dense_error(found: Factors, sites: list[Factors], weights: list[float]) -> float:
    exact = np.einsum("s,sor,sri->oi", weights, [f.b for f in sites], [f.a for f in sites])
    exact /= sum(weights)
    sent = found.b.astype(np.float32).astype(np.float64) @ found.a.astype(np.float32)
    return float(np.linalg.norm(sent - exact) / np.linalg.norm(exact))
