"""TensorBoard and MLflow get the figures, and their absence is said plainly."""

import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError
from simulations.results import Point
from simulations.tracking import KINDS, final_figures, point_figures, tracking
from tests.simulations.runs import run


def track(kind: str | None, folder: Path) -> None:
    result = run("care")
    with tracking(kind, folder, name="care") as tracker:
        tracker.settings(result.settings)
        for point in result.curve[:5]:
            tracker.point(point)
        tracker.result(result)


def test_tensorboard_files_hold_curve_and_final_figures(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    track("tensorboard", tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    curve = [(e.step, e.value) for e in events.Scalars("ndcg_at_10/care")]
    assert curve == [(p.round, pytest.approx(p.ndcg["care"])) for p in run("care").curve[:5]]
    (final,) = events.Scalars("final/care/federated/ndcg_at_10")
    assert (final.step, final.value) == (60, pytest.approx(0.281))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a client of a store with one failed and one finished run."""
    mlflow = pytest.importorskip("mlflow.tracking")
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with pytest.raises(KeyboardInterrupt), tracking("mlflow", folder, name="stopped"):
            raise KeyboardInterrupt
        track("mlflow", folder)
    return mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")


def stored(store: Any, name: str) -> Any:
    (experiment,) = [e for e in store.search_experiments() if e.name == "confed"]
    (found,) = [r for r in store.search_runs([experiment.experiment_id]) if r.info.run_name == name]
    return found


def test_mlflow_store_holds_parameters_curve_and_final_figures(store: Any) -> None:
    kept = stored(store, "care")
    assert kept.info.status == "FINISHED"
    assert kept.data.params["max_grad_norm"] == "1.0"
    assert kept.data.metrics["final/care/federated/ndcg_at_10"] == pytest.approx(0.281)
    assert kept.data.tags["claim"] == "seeded noise: no privacy claim"
    history = store.get_metric_history(kept.info.run_id, "ndcg_at_10/care")
    assert [m.step for m in history] == [0, 1, 2, 3, 4]
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_a_run_that_fails_is_marked_as_failed(store: Any) -> None:
    assert stored(store, "stopped").info.status == "FAILED"


def test_a_store_that_does_not_open_is_a_configuration_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "gopher://nowhere")
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI") as caught:
        track("mlflow", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "package"), [("tensorboard", "tensorboard"), ("mlflow", "mlflow")]
)
def test_a_missing_package_names_the_extra(kind: str, package: str, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from pathlib import Path\n"
        "from common.errors import ConfigError\n"
        "from simulations.tracking import open_tracker\n"
        "try:\n"
        f"    open_tracker({kind!r}, Path({str(tmp_path)!r}), name='x')\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "confed[tracking]" in done.stdout
    assert f"--log {kind}" in done.stdout
    assert done.stdout.count("\n") == 1


def test_an_unknown_tracker_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tensorboard, mlflow"):
        track("wandb", tmp_path)
    assert KINDS == ("tensorboard", "mlflow")


def test_no_tracker_writes_nothing(tmp_path: Path) -> None:
    track(None, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_importing_the_trackers_imports_neither_package() -> None:
    heavy = "{'torch', 'mlflow', 'tensorboard'}"
    code = f"import simulations.tracking, sys; print({heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_figures_that_are_not_finite_are_left_out() -> None:
    point = Point(round=1, epsilon=math.inf, ndcg={"care": math.nan, "bank": 0.1})
    assert point_figures(point) == {"ndcg_at_10/bank": 0.1}


def test_a_domain_name_of_foreign_signs_becomes_a_key_that_both_take() -> None:
    result = run("care")
    odd = dataclasses.replace(result, domains={"soins: santé@1?": result.domains["care"]})
    (key,) = [k for k in final_figures(odd) if k.endswith("/sasrec/mrr_at_10")]
    assert key == "final/soins_ santé_at_1_/sasrec/mrr_at_10"
