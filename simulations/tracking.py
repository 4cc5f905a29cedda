"""Send a run's curve and figures to TensorBoard or MLflow, for people who compare many runs.

Both are options: their packages come with `confed[tracking]` and are imported only when asked
for. What is logged is the researcher's own view, as in `results`; subjects never appear.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from common.errors import ConfigError
from simulations.results import Point, RunResult, mean_gain, pairs

KINDS: Final = ("tensorboard", "mlflow")
BATCH: Final = 1000
"""Most metrics that MLflow takes in one call."""


class Tracker(Protocol):
    """Where a run's figures go while it runs."""

    def settings(self, values: Mapping[str, str]) -> None:
        """Record the run's settings, once, before the first round."""

    def point(self, point: Point) -> None:
        """Record the federated model after a round."""

    def result(self, result: RunResult) -> None:
        """Record the final figures of every method, domain by domain."""

    def close(self, *, failed: bool = False) -> None:
        """Write out what is pending; call nothing afterwards."""


class NoTracker:
    """Tracks nothing, so that a loop needs no branch."""

    def settings(self, values: Mapping[str, str]) -> None:
        """Drop the settings."""

    def point(self, point: Point) -> None:
        """Drop the point."""

    def result(self, result: RunResult) -> None:
        """Drop the result."""

    def close(self, *, failed: bool = False) -> None:
        """Close nothing."""


@contextmanager
def tracking(kind: str | None, folder: Path, *, name: str) -> Iterator[Tracker]:
    """Open the tracker asked for, and close it whatever happens.

    Args:
        kind: One of `KINDS`, or None for no tracking.
        folder: The run's output folder; events go to `folder/tensorboard` or
            `folder/mlflow.db`, unless MLFLOW_TRACKING_URI names a server.
        name: Name of the run, its scenario.

    Raises:
        ConfigError: The kind is unknown, its package is missing or its store does not open.
    """
    tracker = open_tracker(kind, folder, name=name)
    try:
        yield tracker
    except BaseException:
        tracker.close(failed=True)
        raise
    tracker.close()


def open_tracker(kind: str | None, folder: Path, *, name: str) -> Tracker:
    """Return the tracker of that kind; see `tracking`.

    Raises:
        ConfigError: The kind is unknown, its package is missing or its store does not open.
    """
    if kind is None:
        return NoTracker()
    if kind not in KINDS:
        raise ConfigError(f"Expected --log to be one of {', '.join(KINDS)}, got {kind!r}.")
    try:
        return TensorBoard(folder) if kind == "tensorboard" else MLflow(folder, name=name)
    except ImportError as error:
        raise ConfigError(
            f"Expected the package {error.name or kind} for --log {kind}, found none: "
            "run `pip install 'confed[tracking]'`."
        ) from error


class TensorBoard:
    """Event files that `tensorboard --logdir OUT/tensorboard` shows."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  # optional, heavy

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def settings(self, values: Mapping[str, str]) -> None:
        """Record the settings as a text table."""
        rows = "\n".join(f"| {key} | {value} |" for key, value in values.items())
        text = f"| setting | value |\n|---|---|\n{rows}"
        self._writer.add_text("settings", text)

    def point(self, point: Point) -> None:
        """Record NDCG@10 of every domain and the privacy spent."""
        for key, value in point_figures(point).items():
            self._writer.add_scalar(key, value, point.round)

    def result(self, result: RunResult) -> None:
        """Record the final figures at the last round."""
        for key, value in final_figures(result).items():
            self._writer.add_scalar(key, value, result.rounds)

    def close(self, *, failed: bool = False) -> None:  # event files hold no status
        """Flush the event file."""
        self._writer.close()


class MLflow:
    """A run in an MLflow store: the server that MLFLOW_TRACKING_URI names, or a local file."""

    def __init__(self, folder: Path, *, name: str) -> None:
        for key in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
            os.environ[key] = "true"
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        from mlflow.exceptions import MlflowException  # noqa: PLC0415  # optional, heavy
        from mlflow.tracking import MlflowClient  # noqa: PLC0415

        folder.mkdir(parents=True, exist_ok=True)
        local = f"sqlite:///{folder.resolve() / 'mlflow.db'}"
        uri = os.environ.get("MLFLOW_TRACKING_URI") or local
        artifacts = (folder.resolve() / "mlflow").as_uri() if uri == local else None
        try:
            self._client: Any = MlflowClient(tracking_uri=uri)
            known = self._client.get_experiment_by_name("confed")
            experiment = (
                known.experiment_id
                if known
                else self._client.create_experiment("confed", artifact_location=artifacts)
            )
            self._run: str = self._client.create_run(experiment, run_name=name).info.run_id
        except MlflowException as error:
            reason = " ".join(str(error).split())[:160]
            raise ConfigError(
                f"Expected an MLflow store that opens, got: {reason} Check MLFLOW_TRACKING_URI."
            ) from error

    def settings(self, values: Mapping[str, str]) -> None:
        """Record the settings as parameters."""
        for key, value in values.items():
            self._client.log_param(self._run, _key(key), value)

    def point(self, point: Point) -> None:
        """Record NDCG@10 of every domain and the privacy spent."""
        self._log(point_figures(point), step=point.round)

    def result(self, result: RunResult) -> None:
        """Record the final figures at the last round, and the claim as a tag."""
        self._client.set_tag(self._run, "claim", result.claim)
        self._log(final_figures(result), step=result.rounds)

    def close(self, *, failed: bool = False) -> None:
        """Mark the run finished or failed."""
        self._client.set_terminated(self._run, status="FAILED" if failed else "FINISHED")

    def _log(self, figures: Mapping[str, float], *, step: int) -> None:
        from mlflow.entities import Metric  # noqa: PLC0415  # optional, heavy
        from mlflow.utils.time import get_current_time_millis  # noqa: PLC0415

        now = get_current_time_millis()
        metrics = [Metric(key, value, now, step) for key, value in figures.items()]
        for start in range(0, len(metrics), BATCH):
            self._client.log_batch(self._run, metrics=metrics[start : start + BATCH])


def point_figures(point: Point) -> dict[str, float]:
    """Return the figures of one round, without those that are not finite."""
    figures = {f"ndcg_at_10/{name}": value for name, value in point.ndcg.items()}
    return _finite({**figures, "epsilon": point.epsilon})


def final_figures(result: RunResult) -> dict[str, float]:
    """Return the figures of the whole run, without those that are not finite."""
    figures = {
        f"final/{name}/{method}/{metric}": value
        for name, domain in result.domains.items()
        for method, metrics in domain.metrics.items()
        for metric, value in metrics.items()
    }
    figures |= {f"transfer/{one}/{other}": value for one, other, value in pairs(result)}
    mean = mean_gain(result)
    if mean is not None:
        figures["gain/mean"] = mean
    return _finite({**figures, "seconds": result.seconds, "peak_rss_mb": result.peak_rss_mb})


def _finite(figures: Mapping[str, float]) -> dict[str, float]:
    return {_key(key): float(value) for key, value in figures.items() if math.isfinite(value)}


def _key(name: str) -> str:
    """Return a key that both trackers take: MLflow knows no @ and few other signs."""
    return re.sub(r"[^\w\-./ ]", "_", name.replace("@", "_at_"))
