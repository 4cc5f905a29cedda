import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from simulations.benchmark.clock import Timing, alternate, ratio
from simulations.benchmark.rows import WIDTH, Row, as_json, as_table, number
from simulations.benchmark.start import command

KEYS = {
    "name",
    "measured",
    "unit",
    "comparison",
    "least",
    "aim",
    "more_is_better",
    "detail",
    "verdict",
}


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """Standard output and JSON of one quick run through the command line."""
    out = tmp_path_factory.mktemp("benchmark") / "rows.json"
    run = subprocess.run(
        [*command(), "benchmark", "--quick", "--out", str(out)],
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout, json.loads(out.read_text())


def test_every_row_names_its_figure_its_comparison_and_its_bounds(
    quick: tuple[str, dict[str, Any]],
) -> None:
    _, found = quick
    assert found["quick"] is True
    assert len(found["rows"]) >= 10
    for row in found["rows"]:
        assert set(row) == KEYS
        assert math.isfinite(row["measured"])
        assert row["measured"] > 0
        assert row["verdict"] in {"aim", "least", "missed", "shown"}
        assert (row["verdict"] == "shown") == (row["least"] is None)
    words = " ".join(row["name"] for row in found["rows"])
    for what in (
        "DP step over",
        "Cached prefix",
        "100 clients",
        "first round",
        "Per-subject gradients",
        "Secure noise",
        "Accounting",
        "Aggregation",
        "Ledger: a reservation",
        "Ledger: verified",
        "confed --help",
    ):
        assert what in words


def test_the_last_line_to_a_pipe_is_the_json_of_the_file(
    quick: tuple[str, dict[str, Any]],
) -> None:
    shown, found = quick
    assert json.loads(shown.splitlines()[-1]) == found


def test_the_table_fits_eighty_columns(quick: tuple[str, dict[str, Any]]) -> None:
    shown, found = quick
    table = shown.splitlines()[:-1]
    assert len(table) > len(found["rows"])
    assert max(len(line) for line in table) <= WIDTH


def test_per_subject_gradients_are_those_of_a_loop(quick: tuple[str, dict[str, Any]]) -> None:
    _, found = quick
    (row,) = (r for r in found["rows"] if r["name"].startswith("Per-subject gradients"))
    assert row["measured"] <= 1e-5
    assert len(row["detail"]["by_tensor"]) >= 8


def row_of(measured: float, **changed: Any) -> Row:
    plain = {"name": "n", "unit": "s", "least": 2.0, "aim": 1.0}
    return Row(measured=measured, **{**plain, **changed})


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (row_of(1.0), "aim"),
        (row_of(2.0), "least"),
        (row_of(2.1), "missed"),
        (row_of(math.nan), "missed"),
        (row_of(2.0, least=1.0, aim=2.0, more_is_better=True), "aim"),
        (row_of(1.5, least=1.0, aim=2.0, more_is_better=True), "least"),
        (row_of(0.5, least=1.0, aim=2.0, more_is_better=True), "missed"),
        (row_of(9.0, least=None, aim=None), "shown"),
    ],
)
def test_a_verdict_says_which_bound_was_reached(row: Row, verdict: str) -> None:
    assert row.verdict == verdict


def test_a_long_row_folds_and_loses_no_word() -> None:
    words = [f"word{i}" for i in range(40)]
    row = row_of(123456.0, name=" ".join(words[:20]), comparison=" ".join(words[20:]))
    console = Console(width=WIDTH, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    console.print(as_table([row]))
    text = console.export_text()
    assert max(len(line) for line in text.splitlines()) <= WIDTH
    assert all(word in text for word in words)


def test_a_row_without_a_finite_figure_is_no_json() -> None:
    with pytest.raises(ValueError, match="JSON"):
        as_json([row_of(math.inf)], {})


def test_variants_take_turns_and_warm_turns_are_not_counted() -> None:
    calls: list[str] = []
    variants = {name: (lambda n=name: calls.append(n)) for name in "abc"}
    found = alternate(variants, turns=2, warm=1)
    assert "".join(calls) == "abc" * 3
    assert {name: len(t.seconds) for name, t in found.items()} == {"a": 2, "b": 2, "c": 2}


def test_a_ratio_is_the_median_of_the_turns_own_ratios() -> None:
    # One turn on a machine ten times as busy changes nothing.
    over = Timing(seconds=(2.0, 2.2, 20.0))
    under = Timing(seconds=(1.0, 1.0, 10.0))
    assert ratio(over, under) == 2.0


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.02, "0.02"), (1e-5, "1e-5"), (2.5e-6, "2.5e-6"), (7.5e7, "75.0 M"), (1234.0, "1,234")],
)
def test_numbers_show_the_digits_that_count(value: float, text: str) -> None:
    assert number(value) == text


def test_help_names_every_option() -> None:
    run = subprocess.run(
        [*command(), "benchmark", "--help"], capture_output=True, text=True, check=True
    )
    for option in ("--out", "--json", "--quick", "--ray"):
        assert option in run.stdout


def test_the_command_is_found_beside_the_interpreter() -> None:
    assert Path(command()[0]).parent == Path(sys.executable).parent
