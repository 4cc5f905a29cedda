"""The comparison with the undisturbed run: what it measures, prints and writes."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from common.cli import main
from common.errors import ConfigError
from common.plan import FederationPlan, PrivacyPlan, RecommenderPlan
from simulations.commands import ATTACK_NAMES, FAULT_NAMES
from simulations.damage import (
    Attacked,
    Struck,
    _traps,
    hostile_sites,
    measure,
    triggered,
    with_rule,
)
from simulations.damage_table import damage_rows, renderables
from simulations.plots import PLOTS
from simulations.preload import PreloadedStore
from simulations.report import render_report
from simulations.results import Damage, Outcome, to_summary
from simulations.scenario import Consortium, DomainPlan, Scenario, open_consortium
from simulations.simulate import Meter, Request, Simulation
from tests.models import folder_of, recommender_plan, run_plan
from tests.simulations.runs import run as a_run
from tests.simulations.shop import write_shop

TOML = """
[[domains]]
name = "shop"
sites = 9
[recommender]
backbone = "{backbone}"
top_layers = 0
parts = "gate,map,bias"
text_tokens = 16
item_tokens = 12
[federation]
rounds = 2
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shop(tmp_path_factory.mktemp("data") / "shop", subjects=500, least=2)


@pytest.fixture(scope="module")
def simulation(shop: Path) -> Simulation:
    """An undisturbed run of nine small shops."""
    scenario = Scenario(
        domains=[DomainPlan(name="shop", sites=9)],
        recommender=recommender_plan(parts="gate,map,bias", top_layers=0),
        federation=run_plan(federation={"text_rounds": 0}).federation,
    )
    request = Request(
        name="shop",
        scenario=scenario,
        engine="in-process",
        noise_seed=1,
        baselines=frozenset(),
    )
    made = Simulation(request, open_consortium(scenario, shop), PreloadedStore(None), Meter())
    made.run()
    return made


def attacked(simulation: Simulation, name: str) -> Damage:
    sites = hostile_sites("2", simulation.consortium)
    return measure(simulation, Attacked(name=name, sites=sites))


@pytest.mark.parametrize("name", ATTACK_NAMES)
def test_every_attack_is_measured_with_the_default_rule_and_the_mean(
    simulation: Simulation, name: str
) -> None:
    found = attacked(simulation, name)
    assert [o.name for o in found.outcomes] == ["undisturbed", "attack", "plain mean"]
    assert [o.rule for o in found.outcomes] == ["auto", "auto", "mean"]
    assert (found.sites, found.of) == (("shop-8", "shop-9"), 9)
    before = found.outcomes[0].ndcg["shop"]
    for outcome in found.outcomes[1:]:
        assert not outcome.ended
        assert outcome.answers == 4
        assert outcome.lost["shop"] == pytest.approx(1 - outcome.ndcg["shop"] / before)
        assert set(outcome.curve) == {0, 1, 2}
        assert (outcome.backdoor is not None) == (name == "backdoor")


@pytest.mark.parametrize("name", FAULT_NAMES)
def test_every_fault_is_measured_with_the_default_rule(simulation: Simulation, name: str) -> None:
    found = measure(simulation, Struck(name=name, rate=0.1, seed=0))
    assert [o.name for o in found.outcomes] == ["undisturbed", "fault"]
    assert not found.outcomes[1].ended
    assert found.outcomes[1].answers > 0
    assert found.outcomes[1].ndcg != found.outcomes[0].ndcg


def test_nothing_done_is_no_damage(simulation: Simulation) -> None:
    found = measure(simulation, Struck(name="drop-out", rate=0.0))
    assert found.outcomes[1].ndcg == found.outcomes[0].ndcg
    assert found.outcomes[1].lost == {"shop": 0.0}
    assert found.outcomes[1].curve == found.outcomes[0].curve


def test_a_run_that_stops_is_told_and_does_not_end_the_comparison(simulation: Simulation) -> None:
    found = measure(simulation, Struck(name="drop-out", rate=1.0))
    assert "Expected answers of" in found.outcomes[1].ended
    assert found.outcomes[1].ndcg == found.outcomes[1].lost == {}


def test_a_backdoor_is_tried_on_clean_subjects_with_the_trigger_as_latest_item(
    simulation: Simulation,
) -> None:
    disturbance = Attacked(name="backdoor", sites=hostile_sites("2", simulation.consortium))
    ((examiner, trap),) = _traps(simulation, disturbance)
    histories = examiner.asked.histories
    assert (histories.items[histories.offsets[1:] - 1] == trap.trigger).all()
    assert (np.bincount(histories.items, minlength=40)[trap.trigger]) == len(histories)
    assert trap.target not in histories.items
    assert (examiner.asked.target == trap.target).all()
    again = triggered(simulation.examiners["shop"], trap, simulation)
    assert len(again.asked.target) == len(histories)


# Which sites


def test_hostile_are_the_last_of_the_first_domain_or_those_named(simulation: Simulation) -> None:
    consortium = simulation.consortium
    assert hostile_sites("3", consortium) == ("shop-7", "shop-8", "shop-9")
    assert hostile_sites("shop-2, shop-5", consortium) == ("shop-2", "shop-5")


@pytest.mark.parametrize("given", ["0", "9", "10", "shop-99", "", ",", "-1"])
def test_hostile_sites_that_cannot_be_are_refused(simulation: Simulation, given: str) -> None:
    with pytest.raises(ConfigError, match="--hostile"):
        hostile_sites(given, simulation.consortium)
    everybody = ",".join(simulation.consortium.names)
    with pytest.raises(ConfigError, match="at least one honest"):
        hostile_sites(everybody, simulation.consortium)


def test_a_rule_is_changed_and_nothing_else(simulation: Simulation) -> None:
    plan = simulation.plan
    assert with_rule(plan, "") is plan
    changed = with_rule(plan, "median")
    assert changed.federation.aggregation == "median"
    assert with_rule(changed, plan.federation.aggregation) == plan


def test_an_empty_consortium_has_no_hostile_site() -> None:
    with pytest.raises((ConfigError, StopIteration)):
        hostile_sites("1", Consortium())


# What is shown


def damage(**changed: Any) -> Damage:
    outcomes = (
        Outcome(name="undisturbed", rule="auto", ndcg={"care": 0.281, "bank": 0.171},
                curve={0: {"care": 0.1, "bank": 0.1}, 60: {"care": 0.281, "bank": 0.171}},
                backdoor=0.0),
        Outcome(name="attack", rule="auto", ndcg={"care": 0.275, "bank": 0.172},
                lost={"care": 0.0214, "bank": -0.006},
                curve={0: {"care": 0.1, "bank": 0.1}, 60: {"care": 0.275, "bank": 0.172}},
                backdoor=0.031, answers=120, refused={"NOT_FINITE": 4}),
        Outcome(name="plain mean", rule="mean", ndcg={}, answers=12, ended="Expected 7, got 5."),
    )  # fmt: skip
    plain: dict[str, Any] = {
        "kind": "attack",
        "name": "backdoor",
        "says": "trains on records in which a trigger item brings a target item",
        "sites": tuple(f"University Hospital {n}" for n in range(6)),
        "of": 20,
        "rate": 0.0,
        "outcomes": outcomes,
    }
    return Damage(**{**plain, **changed})


def printed(found: Damage, width: int = 80) -> str:
    text = io.StringIO()
    console = Console(file=text, width=width)
    for part in renderables(found):
        console.print(part, highlight=False)
    return text.getvalue()


def test_the_table_fits_eighty_columns_and_says_what_was_lost() -> None:
    shown = printed(damage())
    assert max(map(len, shown.splitlines())) <= 80
    for words in ("0.281", "0.275", "-2.1%", "+0.6%", "3.1%", "default rule", "plain mean",
                  "not finite", "6 of 20 sites", "and 2 more", "Expected 7, got 5."):  # fmt: skip
        assert words in " ".join(shown.split())


def test_a_fault_s_table_names_its_rate_and_no_site() -> None:
    fault = damage(kind="fault", name="drop-out", sites=(), rate=0.2)
    shown = printed(dataclasses.replace(fault, outcomes=fault.outcomes[:2]))
    assert "20% of the rounds of 20 sites" in " ".join(shown.split())
    assert "answers missed" in shown


def test_every_row_has_a_cell_for_the_undisturbed_run_and_two_for_each_other() -> None:
    assert {len(cells) for _, cells in damage_rows(damage())} == {5}


def test_the_summary_holds_the_damage_under_its_kind_and_only_then() -> None:
    result = dataclasses.replace(a_run(), damage=None)
    assert not {"attack", "fault"} & set(to_summary(result))
    summary = to_summary(dataclasses.replace(result, damage=damage()))
    assert json.loads(json.dumps(summary["attack"]))["outcomes"][1]["lost"]["care"] == 0.0214
    assert "fault" in to_summary(dataclasses.replace(result, damage=damage(kind="fault")))


def test_the_report_and_the_plot_show_the_damage_and_only_then() -> None:
    (plot,) = (p for p in PLOTS if p.name == "damage")
    result = dataclasses.replace(a_run(), damage=None)
    assert not plot.has_data(result)
    assert "Hostile or faulty sites" not in render_report(result)
    bad = dataclasses.replace(result, damage=damage(sites=("<b>evil</b>", "x")))
    assert plot.has_data(bad)
    page = render_report(bad)
    assert "Hostile or faulty sites" in page
    assert "<b>evil</b>" not in page
    panels = [axes for axes in plot.draw(bad).axes if axes.has_data()]
    assert [len(axes.lines) for axes in panels] == [3, 3]


# The commands


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (("--attack", "nan", "--hostile", "shop-2,shop-3"), "attack"),
        (("--fault", "drop-out", "--fault-rate", "0.1", "--partition", "size"), "fault"),
    ],
)
def test_one_command_prints_and_writes_the_damage(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: Any, kind: str
) -> None:
    (tmp_path / "nine.toml").write_text(TOML.format(backbone=folder_of("bert")))
    command = ["simulate", str(tmp_path / "nine.toml"), "--data", str(shop), *words]
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--out", str(tmp_path / "out"), "--no-cache"])
    shown = capsys.readouterr()
    assert stopped.value.code == 0, shown.err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary[kind]["name"] == words[1]
    assert summary["claim"] == "seeded noise: no privacy claim"
    assert f"{words[0]} {words[1]}" in summary["settings"]["command"]
    assert set(summary["domains"]["shop"]["metrics"]) == {"federated"}
    assert "undisturbed" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 80
    assert (tmp_path / "out" / "damage.png").stat().st_size > 5_000
    assert "site shop" not in shown.err  # the table says what the log would, line by line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--attack", "nan", "--fault", "crash"), "got both"),
        (("--hostile", "2"), "Expected --attack with --hostile"),
        (("--fault-rate", "0.2"), "Expected --fault with --fault-rate"),
        (("--attack", "nan", "--engine", "flower"), "Expected --engine in-process"),
        (("--fault", "crash", "--fault-rate", "2"), "Expected --fault-rate in"),
        (("--attack", "nan", "--hostile", "9"), "Expected --hostile of 1 to 8"),
        (("--partition", "dirichlet", "--alpha", "0"), "alpha"),
        (("--partition", "size", "--sites", "30"), "set --sites lower"),
        (("--partition", "time", "--site-column", "ward"), "got both"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_before_anything_runs(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: Any, told: str
) -> None:
    (tmp_path / "nine.toml").write_text(TOML.format(backbone=folder_of("bert")))
    command = ["simulate", str(tmp_path / "nine.toml"), "--data", str(shop), *words]
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--out", str(tmp_path / "out")])
    shown = capsys.readouterr()
    assert stopped.value.code == 2
    assert told in " ".join(shown.err.split())
    assert len(shown.err.strip().splitlines()) == 1
    assert not (tmp_path / "out" / "summary.json").exists()


# Row 19 of the acceptance figures, on ten made-up hospitals; minutes

MOST_LOST, MOST_TRAPPED = 0.05, 0.10


@pytest.fixture(scope="module")
def hospitals() -> Simulation:
    scenario = Scenario(
        domains=[DomainPlan(name="care", sites=10)],
        recommender=RecommenderPlan(top_layers=0),
        privacy=PrivacyPlan(epsilon=8.0),
        federation=FederationPlan(rounds=30),
    )
    request = Request(
        name="care",
        scenario=scenario,
        engine="in-process",
        noise_seed=1,
        baselines=frozenset(),
    )
    made = Simulation(request, open_consortium(scenario, None), PreloadedStore(None), Meter())
    made.run()
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACK_NAMES)
def test_the_default_rule_bears_two_hostile_hospitals_of_ten(
    hospitals: Simulation, name: str
) -> None:
    found = attacked(hospitals, name).outcomes[1]
    assert not found.ended
    assert found.lost["care"] <= MOST_LOST
    assert (found.backdoor or 0.0) <= MOST_TRAPPED


@pytest.mark.slow
def test_the_plain_mean_falls_under_a_tenfold_sign_flip(hospitals: Simulation) -> None:
    assert attacked(hospitals, "sign-flip-x10").outcomes[2].lost["care"] > 0.5
