import io

from rich.cells import cell_len
from rich.console import Console

from simulations.empirical.canary_audit import tier_b
from simulations.empirical.findings import NOT_A_PROOF, Check, Tier
from simulations.empirical.product import Product
from simulations.empirical.self_test import Case, SelfTest
from simulations.empirical.table import print_self_test, print_tiers


def shown(width: int = 120) -> Console:
    return Console(width=width, record=True, file=io.StringIO(), highlight=False)


def case(name: str, *failed: str) -> Case:
    return Case(name=name, fault="no noise", caught={"a": failed}, wanted=("a",))


def test_the_table_says_what_was_missed_in_eighty_columns() -> None:
    tested = SelfTest(cases=(case("no-noise", "x"), case("no-clip")))
    console = shown()
    print_self_test(tested, console)
    text = console.export_text()
    assert "caught 1" in text
    assert "MISSED" in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_every_measured_epsilon_stands_beside_what_it_is_not() -> None:
    tier, _ = tier_b(Product(), probes=(1.0,), seeds=1, canaries=200)
    console = shown()
    print_tiers([tier], console)
    text = console.export_text()
    assert NOT_A_PROOF in text
    assert "no noise at all would give" in text
    assert max(cell_len(line) for line in text.splitlines()) <= 80


def test_a_long_figure_takes_more_lines_and_no_more_columns() -> None:
    long = Check(name="n" * 60, figure="f" * 60, passes_at="p" * 60, passed=False)
    console = shown()
    print_tiers([Tier(name="a", checks=(long,), seconds=1.0)], console)
    text = console.export_text()
    assert text.count("f") >= 60
    assert "FAILED" in text
    assert max(cell_len(line) for line in text.splitlines()) <= 80
