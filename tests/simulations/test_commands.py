"""What the command line offers is what there is."""

import click
import pytest

from simulations.baselines import parse_baselines
from simulations.commands import benchmark, simulate
from simulations.engines import ENGINES
from simulations.scenario import names
from simulations.tracking import KINDS


def option(command: click.Command, name: str) -> click.Option:
    (found,) = (p for p in command.params if isinstance(p, click.Option) and name in p.opts)
    return found


def test_every_option_of_the_interface_is_there() -> None:
    assert {o for p in simulate.params for o in p.opts} == {
        "scenario",
        "--data",
        "--out",
        "--sites",
        "--site-column",
        "--rounds",
        "--epsilon",
        "--engine",
        "--seed",
        "--baselines",
        "--attack",
        "--hostile",
        "--fault",
        "--fault-rate",
        "--partition",
        "--alpha",
        "--log",
        "--no-cache",
    }
    assert {o for p in benchmark.params for o in p.opts} >= {"--out"}


@pytest.mark.parametrize("name", names())
def test_every_packaged_scenario_stands_in_the_help(name: str) -> None:
    assert simulate.help is not None
    assert name in simulate.help


def test_the_choices_are_the_engines_and_trackers_that_exist() -> None:
    engines, trackers = option(simulate, "--engine").type, option(simulate, "--log").type
    assert isinstance(engines, click.Choice) and isinstance(trackers, click.Choice)
    assert set(engines.choices) == set(ENGINES)
    assert set(trackers.choices) == set(KINDS)


def test_the_baselines_in_the_help_are_all_that_there_are() -> None:
    text = option(simulate, "--baselines").help or ""
    named = text.partition(":")[2].strip(" .").replace(" ", "")
    assert parse_baselines(named) == parse_baselines("all")
