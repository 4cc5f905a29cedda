"""`confed site` by command line: exit status, one line on an error, 80 columns, JSON."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from common.accounting import schedule, spent
from common.cli import main
from common.signing import read_public_key
from common.site_ledger import open_ledger
from common.verification import verify
from tests.ledgers import Run, make_ledger


def said(
    capsys: pytest.CaptureFixture[str], *words: str | Path, status: int = 0
) -> tuple[str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["site", *(str(word) for word in words)])
    shown = capsys.readouterr()
    assert ended.value.code == status, shown
    if "--json" not in words:
        # A path may be longer than a line, and then stands alone on it.
        assert all(len(line) <= 80 or "/" in line for line in shown.out.splitlines()), shown.out
    assert shown.err.count("\n") == (status != 0), shown.err
    assert "Traceback" not in shown.err
    return shown.out, shown.err


def told(capsys: pytest.CaptureFixture[str], *words: str | Path, status: int = 0) -> Any:
    return json.loads(said(capsys, *words, "--json", status=status)[0])


@pytest.fixture
def made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    folder = tmp_path / "site"
    said(capsys, "init", folder, "--site", "clinic-1", "--max-epsilon", "3")
    return folder


def test_init_makes_a_ledger_and_says_what_to_hand_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "site"
    out, _ = said(
        capsys, "init", folder, "--site", "clinic-1", "--max-epsilon", "3", "--delta", "1e-6",
        "--least-noise", "0.7", "--max-clip", "2", "--max-rate", "0.5", "--max-rounds", "90",
    )  # fmt: skip
    key = read_public_key(folder / "public-key.pem")
    assert "Budget: epsilon 3 at delta 1e-06" in out
    assert key.fingerprint in out
    caps = open_ledger(folder, site="clinic-1").state().caps
    assert (caps.epsilon, caps.delta, caps.noise_multiplier) == (3.0, 1e-6, 0.7)
    assert (caps.max_grad_norm, caps.sample_rate, caps.rounds) == (2.0, 0.5, 90)
    assert stat.S_IMODE((folder / "signing-key.pem").stat().st_mode) == 0o600
    assert verify((folder / "ledger.jsonl").read_bytes(), key).passed


def test_a_ledger_is_not_made_twice_and_its_first_key_stays(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "rotate-key", made)
    before = {p.name: p.read_bytes() for p in made.iterdir() if p.is_file()}
    _, err = said(capsys, "init", made, "--site", "clinic-1", status=3)
    assert "Expected no ledger in" in err
    after = {p.name: p.read_bytes() for p in made.iterdir() if p.is_file()}
    assert after == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--max-epsilon", "0"), "epsilon"),
        (("--max-epsilon", "nan"), "epsilon"),
        (("--max-epsilon", "inf"), "epsilon"),
        (("--max-epsilon", "much"), "'much' is not a valid float"),
        (("--delta", "1"), "delta"),
        (("--max-clip", "-1"), "grad_norm"),
        (("--max-rate", "1.5"), "sample rate"),
        (("--max-rounds", "0"), "rounds"),
        (("--least-noise", "-1"), "noise"),
    ],
)
def test_a_limit_out_of_range_makes_nothing(
    words: tuple[str, ...], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, err = said(capsys, "init", tmp_path / "site", "--site", "clinic-1", *words, status=2)
    assert says in err
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize("name", ["St. Mary's", "", "../x", "a b"])
def test_a_name_that_cannot_stand_in_a_ledger_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "Expected a site name" in said(
        capsys, "init", tmp_path / "site", "--site", name, status=2
    )[1]  # fmt: skip


# budget


def test_the_budget_of_a_new_ledger_is_whole(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = said(capsys, "budget", made)
    assert "clinic-1: epsilon 0.0000 of 3 spent at delta 1e-05, 3.0000 left" in out
    facts = told(capsys, "budget", made)
    assert (facts["spent"], facts["left"], facts["runs"], facts["entries"]) == (0.0, 3.0, [], 1)


def test_the_budget_after_a_run_is_what_the_accountant_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(rounds=6, planned=9, noise=1.2, unanswered=(2,))
    made = make_ledger(tmp_path, runs=(run,))
    made.key.write(tmp_path / "signing-key.pem")
    facts = told(capsys, "budget", tmp_path)
    cost = schedule(noise_multiplier=1.2, sample_rate=0.25, steps=6)
    assert facts["spent"] == pytest.approx(spent(cost, delta=1e-5).epsilon, rel=1e-9)
    assert facts["spent"] + facts["left"] == pytest.approx(facts["budget"])
    (row,) = facts["runs"]
    assert (row["planned"], row["paid"], row["answered"]) == (9, 6, 5)
    assert row["fit"] > 3
    assert facts["head"] == made.head.head
    out, _ = said(capsys, "budget", tmp_path)
    assert out.splitlines()[-1].split()[:5] == ["run-1", "train", "9", "6", "5"]


def test_seeded_noise_is_said_and_not_hidden(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_ledger(tmp_path, seeded=True).key.write(tmp_path / "signing-key.pem")
    assert "seeded noise: no privacy claim" in said(capsys, "budget", tmp_path)[0]


def test_a_folder_without_a_ledger_says_how_to_make_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (
        ("budget", tmp_path),
        ("rotate-key", tmp_path),
        ("cohort", tmp_path, "new"),
        ("opt-out", tmp_path, "--subject", "x"),
        ("plan", tmp_path, "--rounds", "1", "--epsilon", "1"),
    ):
        assert "confed site init" in said(capsys, *words, status=2)[1]
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_ledger_is_refused_with_exit_3(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = made / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b"clinic-1", b"clinic-2"))
    before = path.read_bytes()
    said(capsys, "budget", made, status=3)
    assert path.read_bytes() == before


# plan


def test_a_plan_says_its_noise_and_its_cost_by_round(capsys: pytest.CaptureFixture[str]) -> None:
    facts = told(capsys, "plan", "--rounds", "60", "--epsilon", "4")
    cost = schedule(noise_multiplier=facts["noise_multiplier"], sample_rate=0.25, steps=60)
    assert facts["curve"][-1]["round"] == 60
    assert facts["curve"][-1]["epsilon"] == pytest.approx(spent(cost, delta=1e-5).epsilon)
    assert facts["curve"][-1]["epsilon"] == pytest.approx(4.0, rel=1e-3)
    assert [p["round"] for p in facts["curve"]] == [10, 20, 30, 40, 50, 60]
    assert facts["fit"] is None
    assert "noise multiplier" in said(capsys, "plan", "--rounds", "60", "--epsilon", "4")[0]


def test_a_plan_that_fits_is_exit_0_and_one_that_does_not_is_exit_3(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(capsys, "plan", made, "--rounds", "20", "--epsilon", "2.9")["fit"]["fits"]
    with pytest.raises(SystemExit) as ended:
        main(["site", "plan", str(made), "--rounds", "20", "--epsilon", "3.5", "--json"])
    shown = capsys.readouterr()
    assert ended.value.code == 3
    fit = json.loads(shown.out)["fit"]
    assert not fit["fits"]
    assert fit["needed"] > fit["left"] == 3.0
    assert 0 < fit["rounds"] < 20
    assert shown.err.count("\n") == 1
    assert f"{fit['rounds']} of its rounds would fit" in shown.err
    assert open_ledger(made).state().seq == 0  # asking costs nothing


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--noise-multiplier", "0.2", "--rounds", "1"), "noise multiplier of at least 0.3"),
        (("--epsilon", "1", "--rounds", "20000"), "rounds of at most 10000"),
        (("--epsilon", "1", "--rounds", "5", "--delta", "1e-4"), "delta of at most 1e-05"),
    ],
)
def test_a_plan_beyond_the_sites_limits_does_not_fit_whatever_it_costs(
    words: tuple[str, ...], says: str, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in said(capsys, "plan", made, *words, status=3)[1]


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (("--rounds", "0", "--epsilon", "1"), 2, "rounds"),
        (("--rounds", "5"), 2, "neither"),
        (("--rounds", "5", "--epsilon", "1", "--noise-multiplier", "1"), 2, "agree"),
        (("--rounds", "5", "--epsilon", "nan"), 2, "epsilon"),
        (("--rounds", "5", "--noise-multiplier", "0"), 3, "above 0"),
        (("--rounds", "5", "--epsilon", "1", "--sample-rate", "0"), 2, "rate"),
        (("--rounds", "5", "--epsilon", "1", "--delta", "2"), 2, "delta"),
        (("--rounds", "5", "--epsilon", "1", "--local-steps", "0"), 2, "local steps"),
        (("--epsilon", "1"), 2, "--rounds"),
    ],
)
def test_a_plan_out_of_range_is_one_line(
    words: tuple[str, ...], status: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in said(capsys, "plan", *words, status=status)[1]


# opt-out, rotate-key, cohort


def test_an_opt_out_is_in_the_ledger_without_the_subjects_id(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = said(capsys, "opt-out", made, "--subject", "patient-4711")
    assert "what was spent stays spent" in out
    assert b"4711" not in (made / "ledger.jsonl").read_bytes()
    assert told(capsys, "budget", made)["opt_outs"] == 1
    assert "opt-out list changed 1 times" in said(capsys, "budget", made)[0]
    assert "4711" not in said(capsys, "budget", made)[0]


def test_an_id_is_asked_for_without_being_shown(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("click.termui.hidden_prompt_func", lambda _text: "patient-4711")
    out, err = said(capsys, "opt-out", made)
    assert "4711" not in out + err
    assert told(capsys, "budget", made)["opt_outs"] == 1


def test_a_rotated_key_goes_on_with_the_ledger_and_the_first_key_still_verifies(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = (made / "public-key.pem").read_bytes()
    out, _ = said(capsys, "rotate-key", made)
    assert open_ledger(made).state().keys[-1].fingerprint in out
    assert (made / "public-key.pem").read_bytes() == first
    said(capsys, "cohort", made, "2027")
    found = verify((made / "ledger.jsonl").read_bytes(), read_public_key(made / "public-key.pem"))
    assert found.passed
    assert len(found.state.keys) == 2


def test_a_cohort_begins_at_zero_and_is_opened_once(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "Cohort 2027 begins at epsilon 0" in said(capsys, "cohort", made, "2027")[0]
    assert "2027" in told(capsys, "budget", made)["cohorts"]
    assert "is there already" in said(capsys, "cohort", made, "2027", status=2)[1]
    assert "cohort name" in said(capsys, "cohort", made, "a b", status=2)[1]
