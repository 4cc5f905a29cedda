import os
import subprocess
import sys
from importlib.metadata import entry_points

from click.testing import CliRunner

from simulations.empirical.broken import BROKEN
from simulations.empirical.commands import empirical


def test_the_command_is_found_below_confed_audit() -> None:
    (point,) = entry_points(group="confed.audit", name="empirical")
    assert point.load() is empirical


def test_the_help_names_every_broken_mechanism_and_every_option() -> None:
    text = " ".join(CliRunner().invoke(empirical, ["--help"]).stdout.split())
    assert all(name in text for name in BROKEN)
    for option in empirical.params:
        assert getattr(option, "help", None), option.name


def test_the_help_does_not_wait_for_torch() -> None:
    code = "import sys, simulations.empirical.commands; print('torch' in sys.modules)"
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert told.stdout.strip() == "False"
