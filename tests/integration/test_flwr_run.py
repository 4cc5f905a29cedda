"""`flwr run .` from the repository root, for real: SuperLink, Ray, bundle, two rounds."""

import os
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from common.adapter import load_adapter
from common.backbone import PACKAGED_SHA256
from common.plan import RunPlan
from common.signing import read_public_key
from common.synthetic import make_domain
from common.verification import verify
from server.options import plan_from_run_config

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Flower home of its own, ports of its own, and nothing left running."""
    home = tmp_path_factory.mktemp("flwr-home")
    yield {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(home),
        "XDG_STATE_HOME": str(home / "state"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
        "FLWR_LOCAL_CONTROL_API_PORT": str(free_port()),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    end_processes_of(home)


def end_processes_of(home: Path) -> None:
    """`flwr run` leaves its SuperLink running; end what was started with this Flower home."""
    mark = f"FLWR_HOME={home}".encode()
    deadline = time.monotonic() + 10
    number = signal.SIGTERM
    while found := [pid for pid in running() if mark in surroundings(pid)]:
        for pid in found:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        time.sleep(0.3)
        number = signal.SIGKILL if time.monotonic() > deadline else number


def running() -> list[int]:
    return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()]


def surroundings(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def test_flwr_run_trains_the_synthetic_consortium_and_writes_the_adapter(
    environment: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "adapter.safetensors"
    before = {path.name for path in ROOT.iterdir()}
    config = f'federation.rounds=2 sites=2 privacy.epsilon=6.0 out="{out}"'
    supernodes = "num-supernodes=2 client-resources-num-cpus=1"
    ended = subprocess.run(
        ["flwr", "run", ".", "--stream", "--federation-config", supernodes, "-c", config],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    log = ended.stdout + ended.stderr
    assert ended.returncode == 0, log[-3000:]
    assert "Traceback" not in log
    tensors, manifest = load_adapter(out, backbone_sha256=PACKAGED_SHA256)
    assert manifest.plan.federation.rounds == 2
    assert manifest.plan.privacy.epsilon == 6.0
    assert manifest.catalogs == {d: make_domain(d, seed=1).digest for d in ("care", "bank")}
    # Not the mixer: its step is shortened by the noise's share, which may be all of it in 2 rounds.
    for name in ("map.care", "map.bank", "bias.care", "bias.bank"):
        assert np.isfinite(tensors[name]).all()
        assert tensors[name].any(), f"{name} never moved"
    ledgers = list(Path(environment["XDG_STATE_HOME"]).glob("confed/simulated/*/*/ledger.jsonl"))
    assert {path.parent.name for path in ledgers} == {"care-1", "bank-1"}
    for path in ledgers:
        verdict = verify(path.read_bytes(), read_public_key(path.with_name("public-key.pem")))
        assert verdict.passed
        assert [(run.reserved, run.released) for run in verdict.runs] == [(2, 2)]
    new = {path.name for path in ROOT.iterdir()} - before
    assert all(name.startswith(".") or name == "__pycache__" for name in new), "files left behind"


def test_the_bundle_holds_what_a_site_needs_and_nothing_else(
    environment: dict[str, str], tmp_path: Path
) -> None:
    built = subprocess.run(
        ["flwr", "build", "--app", str(ROOT)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (bundle,) = tmp_path.glob("*.fab")
    assert bundle.stat().st_size < 1_000_000
    names = zipfile.ZipFile(bundle).namelist()
    folders = {name.partition("/")[0] for name in names if "/" in name}
    assert folders - {".info"} == {"common", "client", "server"}
    assert {"LICENSE", "pyproject.toml"} <= set(names)
    assert {"client/app.py", "server/app.py", "common/recommender.py"} <= set(names)


def test_the_run_configuration_of_the_project_is_a_plan(environment: dict[str, str]) -> None:
    import tomllib

    from flwr.common.config import flatten_dict

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    config = flatten_dict(project["tool"]["flwr"]["app"]["config"])
    plan = plan_from_run_config(config)
    assert plan.privacy.epsilon == config["privacy.epsilon"]
    assert plan.federation.rounds == config["federation.rounds"]
    named = {key for key in config if "." in key}
    known = {
        f"{section}.{key}"
        for section, values in RunPlan().model_dump().items()
        if isinstance(values, dict)
        for key in values
    }
    assert {key.replace("-", "_") for key in named} <= known
