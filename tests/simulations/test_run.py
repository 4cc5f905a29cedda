"""What the command does around a run: options, the command that repeats it, Ctrl-C."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from simulations.run import _command, _with_options
from simulations.scenario import load_scenario

NONE: dict[str, Any] = {
    "data": None,
    "out": None,
    "sites": None,
    "site_column": None,
    "rounds": None,
    "epsilon": None,
    "engine": "in-process",
    "seed": None,
    "baselines": None,
    "partition": None,
    "alpha": None,
    "attack": None,
    "hostile": None,
    "fault": None,
    "fault_rate": None,
    "log": None,
    "no_cache": False,
}
LONG = """
[[domains]]
name = "care"
sites = 2
subjects = 60
[federation]
rounds = {rounds}
local_steps = {steps}
"""


def test_options_stand_over_every_domain_of_the_scenario() -> None:
    _, scenario = load_scenario("care-and-bank", None)
    options = {**NONE, "sites": 5, "rounds": 3, "epsilon": 2.0, "seed": 4}
    new = _with_options(scenario, options)
    assert [d.sites for d in new.domains] == [5, 5]
    assert (new.federation.rounds, new.privacy.epsilon, new.seed) == (3, 2.0, 4)
    assert new.privacy.noise_multiplier is None
    assert new.federation.text_rounds == scenario.federation.text_rounds


def test_no_option_changes_nothing() -> None:
    _, scenario = load_scenario("care-and-bank", None)
    assert _with_options(scenario, NONE) == scenario


def test_the_command_says_again_what_was_asked_for_and_no_more() -> None:
    assert _command(None, NONE) == "confed simulate"
    options = {**NONE, "data": Path("my data"), "epsilon": 2.0, "no_cache": True, "sites": 3}
    words = shlex.split(_command("mine.toml", {**options, "out": Path("x"), "log": "mlflow"}))
    assert words[:3] == ["confed", "simulate", "mine.toml"]
    asked = {"--data", "my data", "--epsilon", "2.0", "--no-cache", "--sites", "3"}
    assert set(words[3:]) == asked


def test_a_split_from_the_command_line_holds_in_every_domain() -> None:
    _, scenario = load_scenario("care-and-bank", None)
    new = _with_options(scenario, {**NONE, "partition": "dirichlet", "alpha": 0.1})
    assert [(d.partition, d.alpha) for d in new.domains] == [("dirichlet", 0.1)] * 2


@pytest.mark.parametrize(
    ("rounds", "steps"), [(9_000, 1), (9, 1_000)], ids=["between rounds", "inside a long round"]
)
def test_an_interrupt_ends_in_one_line_within_ten_seconds_and_leaves_no_file(
    tmp_path: Path, rounds: int, steps: int
) -> None:
    (tmp_path / "long.toml").write_text(LONG.format(rounds=rounds, steps=steps))
    cache = tmp_path / "cache"
    running = subprocess.Popen(
        [sys.executable, "-m", "common.cli", "simulate", "long.toml", "--baselines", "none"],
        cwd=tmp_path,
        env={**os.environ, "CONFED_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # Texts and items are in the cache: what follows is the federation.
    while running.poll() is None and len(list(cache.glob("*.safetensors"))) < 2:
        time.sleep(0.05)
    time.sleep(1)
    sent = time.monotonic()
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert time.monotonic() - sent < 10
    assert running.returncode == 130
    assert out == ""
    said = [line for line in err.splitlines() if line.startswith("confed: ")]
    assert said == ["confed: interrupted; nothing half-written was kept."]
    assert "Traceback" not in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "long.toml"]
    assert not list(cache.glob("*.part"))


def test_an_interrupt_while_modules_load_is_one_line_too(tmp_path: Path) -> None:
    running = subprocess.Popen(
        [sys.executable, "-m", "common.cli", "simulate", "nowhere.toml"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # Torch's libraries are mapped while its module loads.
    maps = Path(f"/proc/{running.pid}/maps")
    while running.poll() is None and "libtorch" not in maps.read_text():
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=30)
    assert (running.returncode, out) == (130, "")
    assert err == "confed: interrupted; nothing half-written was kept.\n"
