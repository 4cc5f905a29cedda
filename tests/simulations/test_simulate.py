"""`confed simulate` from end to end on tiny inputs, as a researcher types it."""

import csv
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from common.cli import main
from simulations.results import METHODS
from tests.simulations.shop import TINY, write_shop

FILES = {
    "summary.json",
    "metrics.csv",
    "report.html",
    "gain_per_site.png",
    "methods.png",
    "ndcg_by_round.png",
    "transfer.png",
}
RANKING = {
    f"{name}@{k}"
    for name in ("recall", "precision", "f1", "hit_rate", "ndcg", "mrr", "map")
    for k in (1, 5, 10, 20)
}
LISTS = {"coverage@10", "diversity@10", "novelty@10"}


@dataclass(frozen=True, kw_only=True)
class Ran:
    out: Path
    summary: dict[str, Any]
    printed: str
    noted: str


Simulate = Callable[..., Ran]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("activations")


@pytest.fixture
def simulate(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Simulate:
    monkeypatch.setenv("CONFED_CACHE", str(cache))

    def run(*words: str | Path, out: str = "out") -> Ran:
        with pytest.raises(SystemExit) as stopped:
            main(["simulate", *map(str, words), "--out", str(tmp_path / out)])
        shown = capsys.readouterr()
        assert stopped.value.code == 0, shown.err
        summary = json.loads((tmp_path / out / "summary.json").read_text())
        return Ran(out=tmp_path / out, summary=summary, printed=shown.out, noted=shown.err)

    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Ran:
    """The one whole run: every baseline, seeded noise, a real process with its own terminal."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.toml").write_text(TINY)
    words = ["simulate", "tiny.toml", "--seed", "5", "--epsilon", "4", "--log", "tensorboard"]
    ended = subprocess.run(
        [sys.executable, "-m", "common.cli", *words],
        cwd=folder,
        env={**os.environ, "CONFED_CACHE": str(cache), "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    out = folder / "results" / "tiny"
    summary = json.loads((out / "summary.json").read_text())
    return Ran(out=out, summary=summary, printed=ended.stdout, noted=ended.stderr)


def quality(summary: dict[str, Any]) -> dict[str, Any]:
    """What must repeat for a seed: everything but time and memory."""
    kept = ("sites", "domains", "transfer", "slices", "curve", "intervals", "accounting", "claim")
    return {key: summary[key] for key in kept}


def finite(values: dict[str, float | None], names: set[str]) -> None:
    assert names <= set(values)
    for name in names:
        value = values[name]
        assert value is not None and math.isfinite(value), name
        assert value >= 0
        if name in RANKING or name.startswith("coverage"):
            assert value <= 1


def test_every_result_file_is_written(whole: Ran) -> None:
    assert {p.name for p in whole.out.iterdir() if p.is_file()} == FILES
    assert (whole.out / "report.html").read_text().startswith("<!doctype html>")
    assert all((whole.out / f).stat().st_size > 5_000 for f in FILES if f.endswith(".png"))


def test_the_summary_has_the_schema_that_was_promised(whole: Ran) -> None:
    found = whole.summary
    assert (found["scenario"], found["seed"], found["engine"]) == ("tiny", 5, "in-process")
    assert found["rounds"] == 2
    assert found["seconds"] > 0
    assert 100 < found["peak_rss_mb"] < 3_000
    assert [s["site"] for s in found["sites"]] == ["care-1", "care-2", "bank-1", "bank-2"]
    for site in found["sites"]:
        assert site["domain"] == site["site"].partition("-")[0]
        assert site["subjects"] == 60
        assert 3.9 < site["epsilon"] <= 4.0
        assert site["delta"] == 1e-5
        assert site["noise_multiplier"] > 0.3
        assert site["sample_rate"] == 0.25
        assert list(site["metrics"]) == list(METHODS)
        for method in METHODS:
            finite(site["metrics"][method], RANKING | LISTS)
    assert set(found["domains"]) == {"care", "bank"}
    for domain in found["domains"].values():
        assert list(domain["metrics"]) == list(METHODS)
        for method in METHODS:
            finite(domain["metrics"][method], RANKING | LISTS)
    assert {s: set(t) for s, t in found["transfer"].items()} == {
        "care": {"care", "bank"},
        "bank": {"care", "bank"},
    }


def test_a_domain_s_figure_is_the_mean_over_its_sites_subjects(whole: Ran) -> None:
    for name, domain in whole.summary["domains"].items():
        sites = [s["metrics"] for s in whole.summary["sites"] if s["domain"] == name]
        for method in METHODS:
            values = [s[method]["ndcg@10"] for s in sites]
            assert min(values) <= domain["metrics"][method]["ndcg@10"] <= max(values)


def test_slices_hold_head_and_tail_items_and_cold_subjects(whole: Ran) -> None:
    for slices in whole.summary["slices"].values():
        assert set(slices) == {"head items", "tail items", "cold subjects"}
        for by_method in slices.values():
            assert list(by_method) == list(METHODS)
            for metrics in by_method.values():
                nobody = metrics["ndcg@10"] is None
                assert set(metrics) == (RANKING if nobody else RANKING | LISTS)


def test_the_curve_starts_at_zero_spent_and_ends_at_the_reported_epsilon(whole: Ran) -> None:
    curve = whole.summary["curve"]
    assert [point["round"] for point in curve] == [0, 1, 2]
    assert curve[0]["epsilon"] == 0
    assert curve[0]["ndcg"] == {
        name: pytest.approx(d["metrics"]["zero_shot"]["ndcg@10"])
        for name, d in whole.summary["domains"].items()
    }
    assert curve[-1]["epsilon"] == pytest.approx(whole.summary["sites"][0]["epsilon"])
    assert curve[-1]["ndcg"] == {
        name: pytest.approx(d["metrics"]["federated"]["ndcg@10"])
        for name, d in whole.summary["domains"].items()
    }


def test_seeded_noise_says_that_it_makes_no_claim(whole: Ran) -> None:
    assert whole.summary["claim"] == "seeded noise: no privacy claim"
    assert "seeded noise: no privacy claim" in whole.printed
    assert "no privacy claim" in (whole.out / "report.html").read_text()


def test_three_accountants_agree(whole: Ran) -> None:
    found = whole.summary["accounting"]
    reported = whole.summary["sites"][0]["epsilon"]
    assert reported == pytest.approx(min(found["pld"], found["rdp"]))
    assert found["opacus"] == pytest.approx(reported, abs=0.05)
    assert found["consortium"] == pytest.approx(reported)


def test_the_table_fits_eighty_columns_and_names_every_site(whole: Ran) -> None:
    lines = whole.printed.splitlines()
    assert max(map(len, lines)) <= 80
    for site in ("care-1", "care-2", "bank-1", "bank-2"):
        assert any(line.startswith(site) for line in lines)
    assert "results/tiny/report.html" in whole.printed


def test_the_command_that_repeats_the_run_is_in_the_report(whole: Ran) -> None:
    command = whole.summary["settings"]["command"]
    assert command == "confed simulate tiny.toml --seed 5 --epsilon 4.0"
    assert command in (whole.out / "report.html").read_text()


def test_metrics_csv_holds_the_summary_s_figures(whole: Ran) -> None:
    with (whole.out / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = {(r["level"], r["site"], r["method"], r["metric"]): float(r["value"]) for r in rows}
    for site in whole.summary["sites"]:
        for method, metrics in site["metrics"].items():
            key = ("site", site["site"], method, "ndcg@10")
            assert found[key] == pytest.approx(metrics["ndcg@10"])


def test_tensorboard_holds_every_point_of_the_curve(whole: Ran) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole.out / "tensorboard"))
    events.Reload()
    points = events.Scalars("ndcg_at_10/care")
    assert [p.step for p in points] == [0, 1, 2]
    assert points[-1].value == pytest.approx(
        whole.summary["domains"]["care"]["metrics"]["federated"]["ndcg@10"], rel=1e-5
    )


def test_bars_stand_on_standard_error_and_the_table_on_standard_output(whole: Ran) -> None:
    for bar in ("texts of care", "texts of bank", "federation, rounds", "baselines"):
        assert bar in whole.noted
        assert bar not in whole.printed
    assert "Traceback" not in whole.noted
    assert "Warning" not in whole.noted


def test_the_same_seed_gives_the_same_figures_cached_or_not(
    whole: Ran, simulate: Simulate, tmp_path: Path, cache: Path
) -> None:
    kept = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert kept
    (tmp_path / "tiny.toml").write_text(TINY)
    again = simulate(tmp_path / "tiny.toml", "--seed", "5", "--epsilon", "4", "--no-cache")
    assert quality(again.summary) == quality(whole.summary)
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == kept


def test_another_seed_gives_other_figures_and_secure_noise_claims_its_epsilon(
    whole: Ran, simulate: Simulate, tmp_path: Path
) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    words = (tmp_path / "tiny.toml", "--baselines", "none")
    other = simulate(*words, "--seed", "6")
    assert other.summary["domains"] != whole.summary["domains"]
    assert set(other.summary["domains"]["care"]["metrics"]) == {"federated"}
    assert not (other.out / "gain_per_site.png").exists()
    secure = [simulate(*words).summary for _ in range(2)]
    assert {s["claim"] for s in secure} == {"secure noise: the epsilon shown is spent"}
    assert secure[0]["domains"] != secure[1]["domains"]
    assert secure[0]["accounting"] == secure[1]["accounting"]


def test_epsilon_on_the_command_line_replaces_the_noise_of_a_scenario(
    simulate: Simulate, tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").write_text(
        TINY + "[privacy]\nnoise_multiplier = 9.0\nmax_grad_norm = 0.5\n"
    )
    words = ("--baselines", "none", "--rounds", "3", "--sites", "1")
    found = simulate(tmp_path / "mine.toml", "--epsilon", "2", *words).summary
    assert [site["site"] for site in found["sites"]] == ["care-1", "bank-1"]
    assert all(1.95 < site["epsilon"] <= 2 for site in found["sites"])
    assert found["rounds"] == 3
    assert "1 rounds" in found["settings"]["text path"]
    assert found["settings"]["clip"] == "0.5"


def test_a_run_without_privacy_claims_nothing(simulate: Simulate, tmp_path: Path) -> None:
    (tmp_path / "open.toml").write_text(TINY + "[privacy]\nprivate = false\n")
    ran = simulate(tmp_path / "open.toml", "--baselines", "zero_shot")
    assert ran.summary["claim"] == "no noise: no privacy claim"
    assert [s["epsilon"] for s in ran.summary["sites"]] == [None] * 4
    assert [s["noise_multiplier"] for s in ran.summary["sites"]] == [0] * 4
    assert ran.summary["accounting"] == {}
    assert set(ran.summary["domains"]["bank"]["metrics"]) == {"zero_shot", "federated"}


def test_a_folder_alone_is_enough_as_csv_or_parquet(simulate: Simulate, tmp_path: Path) -> None:
    words = ("--sites", "2", "--rounds", "2", "--seed", "1")
    first = simulate("--data", write_shop(tmp_path / "a" / "shop"), *words)
    second = simulate("--data", write_shop(tmp_path / "b" / "shop", parquet=True), *words)
    assert quality(first.summary) == quality(second.summary)
    assert first.summary["scenario"] == "shop"
    assert [s["site"] for s in first.summary["sites"]] == ["records-1", "records-2"]
    assert sum(s["subjects"] for s in first.summary["sites"]) == 120
    metrics = first.summary["domains"]["records"]["metrics"]
    assert list(metrics) == list(METHODS)
    for values in metrics.values():
        finite(values, RANKING | LISTS)
    assert first.summary["transfer"].keys() == {"records"}


def test_without_a_site_number_there_are_eight_sites(simulate: Simulate, tmp_path: Path) -> None:
    folder = write_shop(tmp_path / "shop", subjects=320)
    found = simulate("--data", folder, "--rounds", "1", "--baselines", "none").summary
    assert [s["site"] for s in found["sites"]] == [f"records-{n}" for n in range(1, 9)]
    assert sum(s["subjects"] for s in found["sites"]) == 320


def test_a_column_of_the_users_splits_the_sites(simulate: Simulate, tmp_path: Path) -> None:
    folder = write_shop(tmp_path / "shop")
    words = ("--rounds", "1", "--baselines", "none", "--site-column", "ward")
    found = simulate("--data", folder, "--sites", "3", *words).summary
    assert [s["subjects"] for s in found["sites"]] == [40, 40, 40]
    found = simulate("--data", folder, "--sites", "2", *words).summary
    assert sorted(s["subjects"] for s in found["sites"]) == [40, 80]


def test_unseen_items_and_repeats_are_counted_and_said(simulate: Simulate, tmp_path: Path) -> None:
    folder = write_shop(tmp_path / "shop")
    rows = pl.read_csv(folder / "interactions.csv")
    stray = rows.head(7).with_columns(item_id=pl.lit("nowhere"))
    pl.concat([rows, stray, rows.head(4)]).write_csv(folder / "interactions.csv")
    ran = simulate("--data", folder, "--sites", "2", "--rounds", "1", "--baselines", "none")
    assert "records: 7 rows of unknown items, 4 repeated rows dropped." in ran.noted


@pytest.mark.parametrize(("objective", "metric"), [("click", "auc"), ("rating", "rmse")])
def test_click_and_rating_objectives_show_their_own_metric(
    simulate: Simulate, tmp_path: Path, objective: str, metric: str
) -> None:
    scenario = tmp_path / "mine.toml"
    scenario.write_text(
        f'[[domains]]\nname = "shop"\nsites = 2\n[recommender]\nobjective = "{objective}"\n'
        "[federation]\nrounds = 2\n"
    )
    folder = write_shop(tmp_path / "shop")
    methods = {"zero_shot", "local", "central", "central_non_private"}
    found = simulate(scenario, "--data", folder, "--baselines", ",".join(sorted(methods))).summary
    metrics = found["domains"]["shop"]["metrics"]
    for method in methods | {"federated"}:
        finite(metrics[method], {metric})
        assert metrics[method][metric] <= (1 if metric == "auc" else 4)
        for site in found["sites"]:
            finite(site["metrics"][method], {metric})
    assert metrics["central_non_private"] != metrics["zero_shot"]


def test_ratings_that_say_nothing_of_clicks_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_shop(tmp_path / "shop")
    rows = pl.read_csv(folder / "interactions.csv").drop("rating")
    rows.write_csv(folder / "interactions.csv")
    scenario = tmp_path / "mine.toml"
    scenario.write_text('[[domains]]\nname = "shop"\n[recommender]\nobjective = "click"\n')
    with pytest.raises(SystemExit) as stopped:
        main(["simulate", str(scenario), "--data", str(folder), "--sites", "2"])
    assert stopped.value.code == 2
    assert "ratings from 1 to 5 in domain shop" in capsys.readouterr().err


def test_a_catalog_shorter_than_the_lists_works(simulate: Simulate, tmp_path: Path) -> None:
    folder = write_shop(tmp_path / "shop", items=16)
    found = simulate("--data", folder, "--sites", "2", "--rounds", "2").summary
    metrics = found["domains"]["records"]["metrics"]
    for method in METHODS:
        finite(metrics[method], RANKING | LISTS)
        # Everybody's list holds the whole catalog but the history, so nobody's item is missed.
        assert metrics[method]["hit_rate@20"] == 1


def test_sites_where_nobody_has_a_test_item_are_shown_without_metrics(
    simulate: Simulate, tmp_path: Path
) -> None:
    folder = write_shop(tmp_path / "shop", least=2)
    rows = pl.read_csv(folder / "interactions.csv")
    ward = pl.col("user_id").str.slice(1).cast(pl.Int64) % 3
    rows = rows.filter((ward != 0) | (pl.col("timestamp") == 1000))
    rows.write_csv(folder / "interactions.csv")
    words = ("--sites", "3", "--site-column", "ward", "--rounds", "2")
    found = simulate("--data", folder, *words).summary
    assert sorted(len(site["metrics"]) for site in found["sites"]) == [0, 7, 7]
    assert found["domains"]["records"]["metrics"]["local"]["ndcg@10"] > 0


def test_sasrec_is_left_out_where_nobody_has_a_sequence(
    simulate: Simulate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_shop(tmp_path / "shop", least=2, most=2)
    found = simulate("--data", folder, "--sites", "2", "--rounds", "1").summary
    assert set(METHODS) - set(found["domains"]["records"]["metrics"]) == {"sasrec"}
    assert "no SASRec for records: nobody has two items to train on" in caplog.text


@pytest.mark.slow
def test_thirty_thousand_items_run_whole(simulate: Simulate, tmp_path: Path) -> None:
    folder = write_shop(tmp_path / "shop", subjects=2_000, items=30_000, least=3)
    found = simulate("--data", folder, "--sites", "4", "--rounds", "3").summary
    metrics = found["domains"]["records"]["metrics"]
    assert list(metrics) == list(METHODS)
    assert found["peak_rss_mb"] < 3_000
