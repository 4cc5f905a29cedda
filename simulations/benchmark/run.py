"""`confed benchmark` itself: every row in one process, the table, the JSON."""

import json
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from simulations.benchmark.rows import WIDTH, Row, as_json, as_table

Section = tuple[str, Callable[[], list[Row]]]


def run_benchmark(
    *, out: Path | None = None, quick: bool = False, ray: bool = False, as_lines: bool = False
) -> None:
    """Measure every row and print it.

    Args:
        out: file for the JSON.
        quick: fewer repetitions and a smaller simulation.
        ray: also time Flower's Ray engine, half a minute more.
        as_lines: print the JSON alone, without the table.
    """
    began = time.perf_counter()
    rows: list[Row] = []
    console = Console(stderr=True, width=WIDTH)
    with _quiet():
        for what, measure in sections(quick=quick, ray=ray):
            console.print(f"measuring {what}", style="dim", highlight=False)
            rows += measure()
    settings = {**_settings(), "quick": quick, "seconds": round(time.perf_counter() - began, 1)}
    text = as_json(rows, settings)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(json.loads(text), indent=1) + "\n")
    shown = Console(width=WIDTH)
    if not as_lines:
        shown.print(as_table(rows))
        shown.print(_footnote(settings), style="dim", highlight=False)
    if as_lines or not sys.stdout.isatty():
        shown.out(text, highlight=False)


def sections(*, quick: bool, ray: bool) -> Iterator[Section]:
    """What is measured, in order; the imports wait until they are needed."""
    from client.session import backbone_for  # noqa: PLC0415
    from common.plan import RecommenderPlan  # noqa: PLC0415
    from simulations.benchmark.accounting import accounting_rows  # noqa: PLC0415
    from simulations.benchmark.aggregation import aggregation_rows  # noqa: PLC0415
    from simulations.benchmark.clock import threads  # noqa: PLC0415
    from simulations.benchmark.engine import engine_row  # noqa: PLC0415
    from simulations.benchmark.gradients import gradient_row  # noqa: PLC0415
    from simulations.benchmark.ledger import ledger_rows  # noqa: PLC0415
    from simulations.benchmark.privacy import noise_row  # noqa: PLC0415
    from simulations.benchmark.start import help_row, start_row  # noqa: PLC0415
    from simulations.benchmark.step import step_rows  # noqa: PLC0415
    from simulations.benchmark.training import (  # noqa: PLC0415
        default_step_row,
        prefix_rows,
    )

    exact = backbone_for(RecommenderPlan(dtype="float32"))
    usual = backbone_for(RecommenderPlan())
    n = _turns(quick)
    yield "the help page", lambda: [help_row(turns=n["help"])]
    yield "the start of a simulation", lambda: [start_row(small=quick, turns=n["start"])]
    yield "rounds of 100 clients", lambda: [engine_row(rounds=n["engine"], ray_rounds=3 * ray)]
    yield (
        "DP steps through all layers",
        lambda: step_rows(exact, turns=n["step"], quick=quick),
    )
    yield (
        "default DP steps",
        lambda: [default_step_row(usual, turns=n["default"], batch=n["batch"])],
    )
    yield "the cached prefix", lambda: prefix_rows(exact, turns=n["prefix"])
    with threads(1):
        yield "per-subject gradients", lambda: [gradient_row(exact, subjects=n["subjects"])]
    yield "noise", lambda: [noise_row(turns=n["noise"])]
    yield "accounting", lambda: accounting_rows(turns=n["accounting"], quick=quick)
    yield "aggregation", lambda: aggregation_rows(turns=n["aggregation"], quick=quick)
    yield "ledgers", lambda: ledger_rows(short=n["short_ledger"], long=n["long_ledger"])


def _turns(quick: bool) -> dict[str, int]:
    if quick:
        return {
            "help": 3,
            "start": 1,
            "engine": 5,
            "step": 3,
            "default": 3,
            "batch": 64,
            "prefix": 4,
            "subjects": 8,
            "noise": 3,
            "accounting": 1,
            "aggregation": 3,
            "short_ledger": 50,
            "long_ledger": 100,
        }
    return {
        "help": 7,
        "start": 3,
        "engine": 20,
        "step": 5,
        "default": 7,
        "batch": 200,
        "prefix": 11,
        "subjects": 24,
        "noise": 9,
        "accounting": 5,
        "aggregation": 3,
        "short_ledger": 1_000,
        "long_ledger": 10_000,
    }


def _settings() -> dict[str, Any]:
    libraries = ("torch", "opacus", "peft", "transformers", "flwr", "dp-accounting", "numpy")
    return {
        "benchmark": "confed-benchmark-1",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in libraries},
        "load_before": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _footnote(settings: dict[str, Any]) -> str:
    return (
        "Times are medians of turns taken alternately in one process; ratios are medians of "
        f"ratios turn by turn. {settings['cores']} cores ({settings['processor']}), "
        f"{settings['seconds']:.0f} s."
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Flower logs every round; the benchmark shows its own table."""
    for key in ("FLWR_TELEMETRY_ENABLED", "RAY_USAGE_STATS_ENABLED"):
        os.environ.setdefault(key, "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    import flwr.app  # noqa: F401, PLC0415  (its import sets its log's level)

    log = logging.getLogger("flwr")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
