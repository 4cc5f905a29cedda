"""The table at the end of a run, measured at 80 columns."""

import dataclasses
import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from simulations.results import SCOPE, RunResult
from simulations.table import print_results
from tests.simulations.runs import run, with_site_name


def printed(result: RunResult, *, width: int = 80, terminal: bool = False) -> str:
    file = io.StringIO()
    colours = "truecolor" if terminal else None
    console = Console(file=file, width=width, force_terminal=terminal, color_system=colours)
    print_results(result, console)
    return file.getvalue()


LONG = (
    "Krankenhaus der Barmherzigen Schwestern vom heiligen Vinzenz, 日本語病院 [bold]x[/bold] " * 2
)


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize(
    "result",
    [
        run(),
        run("care"),
        run("care", "bank", "retail"),
        run(methods=("federated",)),
        run("care", sites=100),
        with_site_name(run(), LONG),
    ],
    ids=["two", "one", "three", "none", "hundred", "long name"],
)
def test_no_line_is_wider_than_80_columns(result: RunResult, width: int) -> None:
    assert max(cell_len(line) for line in printed(result, width=width).splitlines()) <= 80


def test_no_number_is_cut_even_at_its_widest() -> None:
    result = with_site_name(run(), LONG)
    site = dataclasses.replace(
        result.sites[0], domain="outpatient care", subjects=1_000_000, epsilon=12.345
    )
    site.metrics["local"]["ndcg@10"], site.metrics["federated"]["ndcg@10"] = 0.0251, 0.2874
    text = printed(dataclasses.replace(result, sites=(site, *result.sites[1:])))
    (line,) = [line for line in text.splitlines() if line.startswith("Krankenhaus")]
    assert re.search(r"1,000,000 +12\.35 +0\.025 +0\.287 +\+1045\.0%$", line.rstrip())
    assert "…" in line


def test_markup_in_a_site_name_is_shown_as_it_is() -> None:
    assert "[red]St. Mary[/red]" in printed(with_site_name(run(), "[red]St. Mary[/red]"))


def test_a_domain_row_has_the_seven_methods_to_three_decimals() -> None:
    (line,) = [row for row in printed(run()).splitlines() if re.match(r"care +0\.031", row)]
    assert line.split()[1:] == ["0.031", "0.217", "0.245", "0.281", "0.284", "0.319", "0.322"]


def test_a_missing_method_is_a_dash() -> None:
    text = printed(run(methods=("federated",)))
    (line,) = [row for row in text.splitlines() if row.startswith("care") and "0.281" in row]
    assert line.split()[1:] == ["—", "—", "—", "0.281", "—", "—", "—"]


def test_of_many_sites_the_best_and_worst_five_are_shown() -> None:
    text = printed(run("care", sites=100))
    rows = [line for line in text.splitlines() if re.search(r"[+-]\d+\.\d%$", line.rstrip())]
    values = [float(row.split()[-1].rstrip("%")) for row in rows]
    assert len(rows) == 10
    assert values == sorted(values, reverse=True)
    assert "… 90 more" in text


def test_sixteen_sites_are_all_shown() -> None:
    text = printed(run("care", sites=16))
    assert "more" not in text
    assert text.count("care site") == 12


def test_the_claim_and_the_scope_stand_at_the_end() -> None:
    lines = printed(run()).strip().splitlines()
    assert "seeded noise: no privacy claim" in lines
    assert " ".join(" ".join(lines).split()).endswith(SCOPE)


def test_a_pipe_gets_no_colour_codes_and_a_terminal_does() -> None:
    assert "\x1b" not in printed(run())
    assert "\x1b[1m" in printed(run(), terminal=True)
