"""What the summary and the metrics table hold."""

import csv
import dataclasses
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.durable import write_atomic
from simulations.results import (
    CSV_HEADER,
    METHODS,
    clean,
    gain,
    gains,
    headlines,
    mean_gain,
    pairs,
    score,
    to_summary,
    upper,
    write_results,
)
from tests.simulations.runs import metrics, run

TOP = {"scenario", "seed", "engine", "rounds", "seconds", "peak_rss_mb", "sites", "domains"}
SITE = {
    "site": str,
    "domain": str,
    "subjects": int,
    "epsilon": float,
    "delta": float,
    "noise_multiplier": float,
    "sample_rate": float,
    "metrics": dict,
}


def test_summary_has_the_documented_keys_and_types(tmp_path: Path) -> None:
    write_results(run(), tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert TOP | {"transfer"} <= set(summary)
    assert [set(site) for site in summary["sites"]] == [set(SITE)] * 8
    for site in summary["sites"]:
        assert {key: type(value) for key, value in site.items()} == SITE
        assert set(site["metrics"]) == set(METHODS)
    assert set(summary["domains"]) == {"care", "bank"}
    for domain in summary["domains"].values():
        assert set(domain["metrics"]) == set(METHODS)
        for values in domain["metrics"].values():
            assert {"ndcg@10", "recall@10"} <= set(values)
    assert {s: set(row) for s, row in summary["transfer"].items()} == {
        "care": {"care", "bank"},
        "bank": {"care", "bank"},
    }


def test_summary_says_the_claim_and_what_is_outside_of_it() -> None:
    summary = to_summary(run())
    assert summary["claim"] == "seeded noise: no privacy claim"
    assert "outside the privacy claim" in summary["scope"]


def test_summary_keeps_only_the_methods_that_ran() -> None:
    summary = to_summary(run(methods=("federated",)))
    assert set(summary["domains"]["care"]["metrics"]) == {"federated"}
    assert summary["transfer"] == {}


def test_what_is_not_finite_becomes_null_and_the_file_stays_valid_json(tmp_path: Path) -> None:
    result = run("care")
    site = dataclasses.replace(result.sites[0], epsilon=math.inf)
    site.metrics["local"]["ndcg@10"] = math.nan
    write_results(dataclasses.replace(result, sites=(site,)), tmp_path)

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=refuse)
    assert summary["sites"][0]["epsilon"] is None
    assert summary["sites"][0]["metrics"]["local"]["ndcg@10"] is None


def test_numbers_of_numpy_are_written_as_numbers() -> None:
    result = dataclasses.replace(run("care"), seed=np.int64(3), seconds=np.float32(1.5))
    summary = json.loads(json.dumps(to_summary(result)))
    assert (summary["seed"], summary["seconds"]) == (3, 1.5)


def test_metrics_csv_holds_every_metric_once(tmp_path: Path) -> None:
    result = run("care")
    write_results(result, tmp_path)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == CSV_HEADER
    per_method = len(metrics("care")["local"])
    assert len(rows) == (1 + 3 + 4) * len(METHODS) * per_method
    assert len({tuple(row.values())[:-1] for row in rows}) == len(rows)
    kept = [r for r in rows if r["level"] == "domain" and r["method"] == "federated"]
    assert {r["metric"]: float(r["value"]) for r in kept} == metrics("care")["federated"]


@given(st.text(max_size=80))
def test_a_site_name_with_any_characters_survives_the_files(name: str) -> None:
    result = run("care", sites=1)
    site = dataclasses.replace(result.sites[0], site=name)
    assert json.loads(json.dumps(to_summary(dataclasses.replace(result, sites=(site,)))))["sites"][
        0
    ]["site"] == (name)


@given(st.text(max_size=200), st.integers(2, 60))
def test_a_cleaned_name_is_one_printable_line_within_its_limit(name: str, limit: int) -> None:
    shown = clean(name, limit)
    assert len(shown) <= limit
    assert shown.isprintable()
    assert shown == " ".join(shown.split())


def test_gain_is_relative_to_training_alone() -> None:
    site = run("care").sites[0]
    site.metrics["local"]["ndcg@10"], site.metrics["federated"]["ndcg@10"] = 0.20, 0.25
    assert gain(site) == pytest.approx(0.25)


@pytest.mark.parametrize("alone", [0.0, math.nan])
def test_no_gain_over_nothing(alone: float) -> None:
    site = run("care").sites[0]
    site.metrics["local"]["ndcg@10"] = alone
    assert gain(site) is None


def test_gains_are_sorted_and_their_mean_counts_each_site_once() -> None:
    measured = gains(run())
    values = [value for _, value in measured]
    assert values == sorted(values, reverse=True)
    assert mean_gain(run()) == pytest.approx(sum(values) / 8)
    assert mean_gain(run(methods=("federated",))) is None


def test_a_missing_method_scores_nothing() -> None:
    assert score(metrics("care", methods=("local",)), "federated") is None


def test_pairs_leave_the_diagonal_out() -> None:
    assert {(one, other) for one, other, _ in pairs(run())} == {("care", "bank"), ("bank", "care")}


@given(st.floats(0.0, 100.0))
def test_an_upper_bound_is_never_rounded_down(epsilon: float) -> None:
    assert float(upper(epsilon)) >= epsilon - 1e-9
    assert float(upper(epsilon)) <= epsilon + 0.0100001


def test_headlines_say_gain_count_epsilon_and_transfer() -> None:
    result = run()
    text = " ".join(headlines(result))
    assert f"{mean_gain(result):+.1%}" in text
    assert "8 of 8 sites gain" in text
    assert f"ε ≤ {upper(max(site.epsilon for site in result.sites))}" in text
    assert f"care gives bank {result.transfer['care']['bank']:+.1%}" in text


def test_headlines_without_baselines_say_that_none_was_measured() -> None:
    assert "not measured" in " ".join(headlines(run(methods=("federated",))))


def test_a_failed_write_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_atomic(path, b"old")
    with pytest.raises(TypeError):
        write_atomic(path, "text is not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["summary.json"]  # noqa: PTH208
