"""`confed simulate` itself: options to request, progress bars, files, the table at the end."""

import ctypes
import logging
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from common.errors import ConfigError
from common.textpath import Progress as Advance
from common.textpath import default_cache
from simulations.baselines import parse_baselines
from simulations.checks import check_model, check_out, check_plan, check_ratings, check_sites
from simulations.damage import Attacked, Disturbance, Struck, hostile_sites, measure
from simulations.damage_table import renderables
from simulations.preload import PreloadedStore
from simulations.results import RunResult
from simulations.scenario import (
    Consortium,
    DomainPlan,
    Scenario,
    changed,
    load_scenario,
    open_consortium,
    with_fitting_delta,
)
from simulations.simulate import Meter, Request, Simulation
from simulations.table import print_results
from simulations.tracking import tracking

LOG = logging.getLogger("confed.simulate")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Options of glibc's mallopt, from malloc.h."""


class _Bars(Meter):
    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def start(self, name: str, total: int) -> Advance:
        task = self._progress.add_task(name, total=total)
        return lambda steps: self._progress.advance(task, steps)


def run_command(scenario: str | None, **options: Any) -> None:
    """Run `confed simulate` with the options of the command line.

    Raises:
        ConfedError: bad input; nothing was written.
    """
    _quiet_flower()
    _few_arenas()
    data: Path | None = options["data"]
    if data is not None and not data.is_dir():
        raise ConfigError(f"Expected a folder at --data, found none at {data}.")
    name, loaded = load_scenario(scenario, data)
    changed_scenario = _with_options(loaded, options)
    disturbed = _is_disturbed(options)
    seed = options["seed"]
    request = Request(
        name=name,
        scenario=changed_scenario,
        engine=options["engine"],
        # Runs that are compared draw the same noise: a difference is then the disturbance's.
        noise_seed=changed_scenario.seed if disturbed and seed is None else seed,
        baselines=parse_baselines(_baselines(options["baselines"], disturbed=disturbed)),
        command=_command(scenario, options),
    )
    out = options["out"] or Path("results") / name
    request, consortium = _checked(request, data, out, chosen=scenario is not None)
    with _ledgers(out) as ledgers:
        result = _run(replace(request, ledgers=ledgers), consortium, out, options)
    from simulations.report import write_run  # noqa: PLC0415  (the plotting library waits)

    try:
        write_run(result, out)
    except OSError as error:
        raise ConfigError(
            f"Expected to write into {out}, got '{error.strerror}'; give another --out."
        ) from error
    print_results(result, Console(width=_width()))
    if result.damage is not None:
        for part in renderables(result.damage):
            Console(width=_width()).print(part, highlight=False)
    Console(width=_width()).print(f"Report: {out / 'report.html'}", highlight=False)


def _checked(
    request: Request, data: Path | None, out: Path, *, chosen: bool
) -> tuple[Request, Consortium]:
    """Everything that can be refused is refused here, before anything is encoded or written."""
    check_plan(request.scenario.run_plan())
    check_out(out)
    consortium = open_consortium(request.scenario, data)
    if not chosen:
        request = replace(request, scenario=with_fitting_delta(request.scenario, consortium))
    plan = request.scenario.run_plan()
    check_sites(plan, consortium, central="central" in request.baselines)
    check_ratings(plan.recommender, consortium)
    check_model(plan.recommender)
    return request, consortium


def _run(request: Request, consortium: Consortium, out: Path, options: dict[str, Any]) -> RunResult:
    disturbance = _disturbance(options, request.scenario.seed, consortium)
    console = Console(stderr=True, width=_width())
    with (
        _store(options["no_cache"]) as store,
        tracking(options["log"], out, name=request.name) as tracker,
    ):
        with _bars(console) as progress:
            simulation = Simulation(
                request, consortium, store, _Bars(progress), on_point=tracker.point
            )
            result = simulation.run()
            if disturbance is not None:
                result = replace(result, damage=measure(simulation, disturbance))
        tracker.settings(result.settings)
        tracker.result(result)
    for domain, words in consortium.dropped.items():
        console.print(f"{domain}: {words}.", style="dim", highlight=False)
    return result


def _is_disturbed(options: dict[str, Any]) -> bool:
    """Whether a disturbance is asked for.

    Raises:
        ConfigError: two of them, an option of one that is not asked for, or on another engine.
    """
    attack, fault = options["attack"], options["fault"]
    if attack and fault:
        raise ConfigError("Expected --attack or --fault, got both; run them one after the other.")
    for option, of, chosen in (("hostile", "attack", attack), ("fault_rate", "fault", fault)):
        if options[option] is not None and not chosen:
            raise ConfigError(f"Expected --{of} with --{option.replace('_', '-')}, got none.")
    if (attack or fault) and options["engine"] != "in-process":
        raise ConfigError(
            f"Expected --engine in-process with --attack or --fault, got {options['engine']}."
        )
    return bool(attack or fault)


def _disturbance(options: dict[str, Any], seed: int, consortium: Consortium) -> Disturbance | None:
    if options["attack"]:
        sites = hostile_sites(options["hostile"] or "2", consortium)
        return Attacked(name=options["attack"], sites=sites, seed=seed)
    if options["fault"]:
        rate = 0.2 if options["fault_rate"] is None else options["fault_rate"]
        return Struck(name=options["fault"], rate=rate, seed=seed)
    return None


def _baselines(given: str | None, *, disturbed: bool) -> str:
    if given is not None:
        return given
    return "none" if disturbed else "all"


@contextmanager
def _ledgers(out: Path) -> Iterator[Path]:
    """A new folder of ledgers, put into `out` when the run has ended well.

    The one of an earlier run into the same folder makes room: its records are the same people's,
    but a researcher's run releases nothing.
    """
    # Not in `out`: a run that is stopped hard leaves nothing there.
    with tempfile.TemporaryDirectory(prefix="confed-ledgers-") as folder:
        fresh = Path(folder) / "ledgers"
        fresh.mkdir()
        yield fresh
        try:
            out.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(out / "ledgers", ignore_errors=True)
            if any(fresh.iterdir()):
                shutil.move(fresh, out / "ledgers")
        except OSError as error:
            raise ConfigError(
                f"Expected to write into {out}, got '{error.strerror}'; give another --out."
            ) from error


def _with_options(scenario: Scenario, options: dict[str, Any]) -> Scenario:
    """Put the command line's values over the scenario's."""
    changes: dict[str, Any] = {}
    if options["seed"] is not None:
        changes["seed"] = options["seed"]
    if options["rounds"] is not None:
        changes["federation"] = {"rounds": options["rounds"]}
    if options["epsilon"] is not None:
        changes["privacy"] = {"epsilon": options["epsilon"], "noise_multiplier": None}
    per_domain = ("sites", "site_column", "partition", "alpha")
    if any(options[name] is not None for name in per_domain):
        changes["domains"] = [_domain(d, options).model_dump() for d in scenario.domains]
    return changed(scenario, changes) if changes else scenario


def _domain(domain: DomainPlan, options: dict[str, Any]) -> DomainPlan:
    update: dict[str, Any] = {}
    if options["sites"] is not None:
        update |= {"sites": options["sites"], "at_most": False}
    if options["site_column"] is not None:
        update["column"] = options["site_column"]
    update |= {k: options[k] for k in ("partition", "alpha") if options[k] is not None}
    return domain.model_copy(update=update)


def _command(scenario: str | None, options: dict[str, Any]) -> str:
    """The command line that repeats this run."""
    words = ["confed", "simulate", *([scenario] if scenario else [])]
    for key, value in options.items():
        default = {"engine": "in-process", "baselines": None}.get(key)
        if value is None or value is False or value == default or key in {"out", "log"}:
            continue
        words += [f"--{key.replace('_', '-')}", *([] if value is True else [str(value)])]
    return shlex.join(words)


@contextmanager
def _store(no_cache: bool) -> Iterator[PreloadedStore]:
    if no_cache:
        with tempfile.TemporaryDirectory(prefix="confed-cache-") as folder:
            yield PreloadedStore(Path(folder))
    else:
        yield PreloadedStore(default_cache())


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<24}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=False,
    )


def _width() -> int:
    return min(80, Console().width)


def _few_arenas() -> None:
    """Let threads share two pools of glibc's allocator, and give large blocks back when freed.

    By itself glibc keeps a pool a thread and learns to hold on to blocks of up to 32 MiB, which
    took several times the memory in use.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(M_ARENA_MAX, 2)
        libc.mallopt(M_MMAP_THRESHOLD, 4 * 1024 * 1024)
        libc.mallopt(M_TRIM_THRESHOLD, 128 * 1024 * 1024)
    except (OSError, AttributeError):
        LOG.debug("no glibc here; the allocator stays as it is")


def _quiet_flower() -> None:
    for key in ("FLWR_TELEMETRY_ENABLED", "RAY_USAGE_STATS_ENABLED"):
        os.environ.setdefault(key, "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    logging.getLogger("flwr").setLevel(logging.ERROR)
