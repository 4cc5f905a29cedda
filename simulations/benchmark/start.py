"""Rows: from the command line to the first round, and to the help page."""

import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from common.errors import OrderError
from simulations.benchmark.clock import alternate
from simulations.benchmark.rows import Row

LEAST, AIM = 8.0, 4.0
HELP_LEAST = 0.5
LONGEST = 300.0
"""Seconds after which a simulation that shows no first round is given up."""
SMALL = """
title = "Small"
[[domains]]
name = "care"
sites = 2
subjects = 100
[privacy]
epsilon = 8.0
[federation]
rounds = 60
text_rounds = 3
"""
_BAR = re.compile(r"federation, rounds[^/\n]*?(\d+)/\d+")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True, kw_only=True)
class Start:
    """Seconds since the process began.

    Attributes:
        federation: until the federation began: imports, records, noise, backbone, features.
        first_round: until the first round was done.
        processor: processor time until then, over all threads; other work does not stretch it.
    """

    federation: float
    first_round: float
    processor: float


def start_row(*, small: bool, turns: int) -> Row:
    """Run the command with an empty cache, then with the full one.

    Args:
        small: a small consortium instead of the default scenario.
        turns: runs with the full cache; the median counts.
    """
    with tempfile.TemporaryDirectory(prefix="confed-benchmark-") as name:
        folder = Path(name)
        scenario = []
        if small:
            (folder / "small.toml").write_text(SMALL)
            scenario = [str(folder / "small.toml")]
        cold = first_round(folder, scenario)
        warm = sorted((first_round(folder, scenario) for _ in range(turns)), key=_end)
    middle = warm[len(warm) // 2]
    return Row(
        name="Start of a simulation to its first round, features cached"
        + (", small consortium" if small else ""),
        measured=round(middle.federation, 2),
        unit="s",
        comparison=f"first round done after {middle.first_round:.1f} s, processor time "
        f"{middle.processor:.1f} s; with an empty cache {cold.federation:.1f} s; known: "
        "Flower's Ray engine starts in 15 s",
        least=LEAST,
        aim=AIM,
        detail={"cold": vars(cold), "warm": [vars(start) for start in warm]},
    )


def first_round(folder: Path, scenario: list[str]) -> Start:
    """Start `confed simulate` at a terminal of its own and watch its progress bars.

    Raises:
        OrderError: no first round was shown.
    """
    out = ["--out", str(folder / "out"), "--baselines", "none", "--seed", "1"]
    environment = {**os.environ, "CONFED_CACHE": str(folder / "cache"), "COLUMNS": "80"}
    environment |= {"TERM": "xterm", "NO_COLOR": "1"}
    own, theirs = pty.openpty()
    began = time.perf_counter()
    process = subprocess.Popen(
        [*command(), "simulate", *scenario, *out],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        stdin=subprocess.DEVNULL,
        env=environment,
    )
    os.close(theirs)
    try:
        federation, done = _watch(own, began)
    finally:
        process.kill()
        _, _, usage = os.wait4(process.pid, 0)
        os.close(own)
    return Start(federation=federation, first_round=done, processor=usage.ru_utime + usage.ru_stime)


def _watch(terminal: int, began: float) -> tuple[float, float]:
    shown, federation = "", None
    while time.perf_counter() - began < LONGEST:
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # the process ended and closed its side
            break
        if not chunk:
            break
        shown += _ESCAPES.sub("", chunk.decode(errors="replace"))
        rounds = [int(found) for found in _BAR.findall(shown)]
        now = time.perf_counter() - began
        if rounds and federation is None:
            federation = now
        if federation is not None and max(rounds) >= 1:
            return federation, now
    last = shown.strip().splitlines()[-1:] or ["nothing"]
    raise OrderError(f"Expected a first round of the simulation, got: {last[0][:200]}")


def help_row(*, turns: int) -> Row:
    """`confed --help` beside an interpreter that does nothing."""
    variants = {
        "help": lambda: _run([*command(), "--help"]),
        "python": lambda: _run([sys.executable, "-c", "pass"]),
    }
    timings = alternate(variants, turns=turns, warm=1)
    return Row(
        name="confed --help",
        measured=round(timings["help"].median, 3),
        unit="s",
        comparison=f"python -c pass: {timings['python'].median:.3f} s",
        least=HELP_LEAST,
        aim=HELP_LEAST / 2,
        detail={name: t.plain() for name, t in timings.items()},
    )


def command() -> list[str]:
    """The installed `confed`, or this interpreter on its module."""
    beside = Path(sys.executable).with_name("confed")
    found = str(beside) if beside.is_file() else shutil.which("confed")
    return [found] if found else [sys.executable, "-m", "common.cli"]


def _run(words: list[str]) -> None:
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def _end(start: Start) -> float:
    return start.federation
