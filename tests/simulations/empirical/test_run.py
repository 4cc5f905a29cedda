import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.cells import cell_len

from common.errors import ConfigError
from simulations.empirical.commands import empirical
from simulations.empirical.findings import NOT_A_PROOF
from simulations.empirical.run import Request, audit, request_of

FEW = ("--tier", "b", "--seeds", "2")


def run(*words: str) -> Result:
    return CliRunner().invoke(empirical, words)


def options(**changed: object) -> dict[str, object]:
    plain = {
        "tier": "all",
        "probes": (),
        "seeds": 20,
        "canaries": 1000,
        "broken": None,
        "self_test": False,
    }
    return {**plain, **changed}


def test_the_product_passes_with_a_table_of_eighty_columns() -> None:
    result = run(*FEW)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(cell_len(line) for line in lines) <= 80
    for heading in ("check", "figure", "passes at", "verdict"):
        assert heading in result.stdout
    assert NOT_A_PROOF in result.stdout
    assert "Power at ε = 1" in result.stdout
    assert "All 8 checks passed" in result.stdout


def test_no_row_of_the_table_needs_a_second_line() -> None:
    result = run(*FEW)
    rows = [line for line in result.stdout.splitlines() if line.startswith("ε = ")]
    assert len(rows) == 8
    assert all(row.rstrip().endswith("passed") for row in rows)


def test_a_broken_mechanism_ends_with_one() -> None:
    result = run(*FEW, "--broken", "no-noise")
    assert result.exit_code == 1
    assert "FAILED" in result.stdout
    assert "6 of 8 checks failed (no-noise)" in result.stdout


def test_json_is_one_line_and_nothing_else() -> None:
    result = run(*FEW, "--json", "--epsilon-probe", "1.5")
    told = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1
    assert told["format"] == "confed-empirical-1"
    assert told["passed"] is True
    assert told["mechanism"] == "product"
    assert told["tiers"]["b"]["probes"][0]["epsilon_probe"] == 1.5
    assert list(told["tiers"]) == ["b"]
    assert told["note"] == NOT_A_PROOF


def test_the_file_holds_what_the_report_reads(tmp_path: Path) -> None:
    out = tmp_path / "audit"
    assert run(*FEW, "--out", str(out)).exit_code == 0
    told = json.loads((out / "empirical.json").read_text())
    assert {"tiers", "m", "r", "v", "epsilon_hat", "confidence", "power", "passed"} <= set(told)
    assert (told["m"], told["r"]) == (1000, 100)
    assert 0 <= told["v"] <= 100
    assert set(told["power"]) == {"no_noise", "correct", "noise_share_caught"}
    assert sorted(p.name for p in out.iterdir()) == ["canaries.png", "empirical.json"]


def test_without_tier_b_there_is_no_bound(tmp_path: Path) -> None:
    found = audit(None, Request(tiers=()), progress=lambda _name, _total: lambda: None)
    told = found.as_json()
    assert told["epsilon_hat"] is None
    assert told["tiers"] == {}


@pytest.mark.parametrize("probe", [0.0, -1.0, 8.0, float("nan"), float("inf")])
def test_a_claim_that_nothing_could_refute_is_not_tested(probe: float) -> None:
    with pytest.raises(ConfigError, match=r"no noise at all would look like 3\.47"):
        request_of(**options(probes=(probe,)))


def test_options_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="leave one out"):
        request_of(**options(broken="no-noise", self_test=True))
    with pytest.raises(ConfigError, match="--broken"):
        request_of(**options(broken="nothing"))


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    taken = tmp_path / "file"
    taken.write_text("mine")
    result = run(*FEW, "--out", str(taken / "below"))
    assert isinstance(result.exception, ConfigError)
    assert taken.read_text() == "mine"


def test_probes_are_one_and_two_unless_given_and_never_twice() -> None:
    assert request_of(**options())[0].probes == (1.0, 2.0)
    assert request_of(**options(probes=(1.5, 1.5)))[0].probes == (1.5,)
    assert request_of(**options(tier="a"))[0].tiers == ("a",)
