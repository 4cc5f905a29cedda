"""The server killed in each phase of a round: the same adapter, and no round is paid for twice."""

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from common.chain import Asked
from common.plan import RunPlan
from common.signing import read_public_key
from common.verification import verify
from server.checkpoint import Checkpoints
from tests.children import KILLED
from tests.integration.test_flwr_run import ROOT, environment, running, surroundings
from tests.server.consortium import SITES, plan_of, start_server

__all__ = ["environment"]
PHASES = ("configure", "collect", "aggregate", "checkpoint")
RESTART = 30
"""Seconds that a restart may take, start of the process included."""
PLAN = plan_of(evaluate=2)


def run(
    root: Path,
    *,
    resume: bool = False,
    kill: tuple[str, int] | None = None,
    plan: RunPlan = PLAN,
) -> int | None:
    """Exit status of a server in a process of its own."""
    root.mkdir(exist_ok=True)
    process = start_server(root, plan, resume=resume, kill=kill)
    process.join(RESTART)
    if process.is_alive():
        process.kill()
        process.join()
        pytest.fail(f"the server did not end within {RESTART} seconds")
    code: int | None = process.exitcode
    return code


def final(root: Path) -> str:
    return (root / "hash").read_text()


def said(root: Path) -> str:
    return (root / "log").read_text()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("undisturbed")
    start_server(root / "..", PLAN, kill=("configure", 1)).join()  # the first one imports torch
    assert run(root) == 0
    require_paid(root, kills=0)
    return final(root)


def reservations(root: Path, site: str) -> tuple[Counter[Asked], set[Asked]]:
    """How often each round was paid for, and which were answered, by the site's own ledger."""
    folder = root / "ledgers" / site
    found = verify(
        (folder / "ledger.jsonl").read_bytes(), read_public_key(folder / "public-key.pem")
    )
    assert found.passed
    state = found.state
    assert len({asked[0] for asked in state.released}) == 1, "a resumed run keeps its name"
    return Counter(r.asked for r in state.reserved.values()), set(state.released)


def require_paid(root: Path, *, kills: int) -> None:
    """Every round answered, and at most one reservation more a kill."""
    rounds = {("train", n) for n in (1, 2, 3, 4)} | {("evaluate", n) for n in (1, 2)}
    for site in SITES:
        paid, answered = reservations(root, site.name)
        assert {(purpose, n) for _, n, purpose in paid} == rounds
        assert {(purpose, n) for _, n, purpose in answered} == rounds
        assert paid.total() <= len(rounds) + kills


@pytest.mark.parametrize("phase", PHASES)
def test_killed_in_a_phase_the_final_adapter_is_the_same_and_no_answer_is_paid_twice(
    phase: str, undisturbed: str, tmp_path: Path
) -> None:
    assert run(tmp_path, kill=(phase, 3)) == KILLED
    answered = {site.name: reservations(tmp_path, site.name)[1] for site in SITES}
    assert Checkpoints(tmp_path / "state" / "checkpoints").rounds() == [1, 2]
    assert run(tmp_path, resume=True) == 0
    assert "resumed after round 2" in said(tmp_path)
    assert final(tmp_path) == undisturbed
    require_paid(tmp_path, kills=1)
    for site in SITES:
        paid, _ = reservations(tmp_path, site.name)
        assert all(paid[asked] == 1 for asked in answered[site.name])


def test_killed_in_the_first_round_the_run_keeps_its_name_and_its_answers(
    undisturbed: str, tmp_path: Path
) -> None:
    assert run(tmp_path, kill=("checkpoint", 1)) == KILLED
    assert run(tmp_path, resume=True) == 0
    assert final(tmp_path) == undisturbed
    require_paid(tmp_path, kills=0)  # every site had answered: nothing was paid for again


def test_killed_at_random_moments_again_and_again_it_still_ends_the_same(
    undisturbed: str, tmp_path: Path
) -> None:
    draw, kills, started = random.Random(17), 0, False
    while kills < 12 and not (tmp_path / "hash").exists():
        process = start_server(tmp_path, PLAN, resume=started)
        process.join(draw.uniform(0.05, 0.45))
        kills += process.is_alive()
        process.kill()
        process.join()
        started = bool(Checkpoints(tmp_path / "state" / "checkpoints").rounds())
    if not (tmp_path / "hash").exists():
        assert run(tmp_path, resume=started) == 0
    assert kills
    assert final(tmp_path) == undisturbed
    require_paid(tmp_path, kills=kills)


def cut(folder: Path, number: int) -> None:
    path = folder / f"round-{number:06d}.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def flip(folder: Path, number: int) -> None:
    path = folder / f"round-{number:06d}.safetensors"
    data = bytearray(path.read_bytes())
    data[-50] ^= 4
    path.write_bytes(bytes(data))


def lose_manifest(folder: Path, number: int) -> None:
    (folder / f"round-{number:06d}.json").unlink()


@pytest.mark.parametrize("damage", [cut, flip, lose_manifest])
def test_a_damaged_newest_round_is_made_again_from_the_one_before(
    damage: Callable[[Path, int], None], undisturbed: str, tmp_path: Path
) -> None:
    assert run(tmp_path, kill=("aggregate", 4)) == KILLED
    damage(tmp_path / "state" / "checkpoints", 3)
    assert run(tmp_path, resume=True) == 0
    assert "resumed after round 2" in said(tmp_path)
    named = "round-000003" in said(tmp_path) and "falling back one round" in said(tmp_path)
    assert named == (damage is not lose_manifest)
    assert final(tmp_path) == undisturbed
    require_paid(tmp_path, kills=0)  # rounds 3 and 4 were answered: the same bytes again


def test_without_a_whole_checkpoint_the_server_says_one_line_and_asks_nobody(
    undisturbed: str, tmp_path: Path
) -> None:
    assert run(tmp_path, kill=("configure", 4)) == KILLED
    for number in (2, 3):
        flip(tmp_path / "state" / "checkpoints", number)
    before = {site.name: reservations(tmp_path, site.name) for site in SITES}
    assert run(tmp_path, resume=True) == 3
    error = (tmp_path / "error").read_text()
    assert error.startswith("ModelError: Expected a whole checkpoint")
    assert error.count("\n") == 0
    assert {site.name: reservations(tmp_path, site.name) for site in SITES} == before


def test_a_folder_with_rounds_is_not_begun_anew(undisturbed: str, tmp_path: Path) -> None:
    assert run(tmp_path, kill=("configure", 3)) == KILLED
    assert run(tmp_path) == 3
    assert "run `confed server resume`" in (tmp_path / "error").read_text()


# The real thing: Flower's own processes, killed and resumed by the command


@pytest.mark.slow
def test_flwr_run_that_was_killed_is_resumed_by_the_command(
    environment: dict[str, str], tmp_path: Path
) -> None:
    state, out = tmp_path / "state", tmp_path / "adapter.safetensors"
    nodes = ("--federation-config", "num-supernodes=2 client-resources-num-cpus=1")
    config = f'federation.rounds=8 sites=2 privacy.epsilon=6.0 out="{out}" state="{state}"'
    around = {"cwd": ROOT, "env": environment, "text": True}
    with (tmp_path / "first.log").open("w") as log:
        first = subprocess.Popen(
            ["flwr", "run", ".", "--stream", *nodes, "-c", config],
            stdout=log, stderr=log, **around,  # type: ignore[call-overload]
        )  # fmt: skip
        wait_for(state / "checkpoints" / "round-000002.json", 180)
        first.kill()
        first.wait()
    kill_processes_of(Path(environment["FLWR_HOME"]))
    assert not out.exists()
    done = max(Checkpoints(state / "checkpoints").rounds())
    assert 2 <= done < 8
    again = subprocess.run(
        ["confed", "server", "resume", str(state), "--app", str(ROOT), *nodes],
        capture_output=True, check=False, timeout=300, **around,  # type: ignore[call-overload]
    )  # fmt: skip
    assert again.returncode == 0, (again.stdout + again.stderr)[-3000:]
    assert f"after round {done} of 8" in again.stdout
    checked = subprocess.run(
        ["confed", "adapter", "verify", str(out), "--public-key", str(state / "public-key.pem"),
         "--json"],
        capture_output=True, check=False, **around,  # type: ignore[call-overload]
    )  # fmt: skip
    assert checked.returncode == 0, checked.stderr
    told = json.loads(checked.stdout)
    assert (told["rounds"], told["ended"]) == (8, "after its last round")
    assert all(site["epsilon"] > 0 for site in told["sites"])
    ledgers = list(Path(environment["XDG_STATE_HOME"]).glob("confed/simulated/*/*/ledger.jsonl"))
    assert {path.parent.parent.name for path in ledgers} == {told["run"]}
    for path in ledgers:
        found = verify(path.read_bytes(), read_public_key(path.with_name("public-key.pem")))
        assert found.passed
        ((reserved, released),) = [(run.reserved, run.released) for run in found.runs]
        assert released == 8
        assert reserved <= 9


def wait_for(path: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path.name} after {seconds} seconds"
        time.sleep(0.05)


def kill_processes_of(home: Path) -> None:
    """As `kill -9` on every process that was started with this Flower home."""
    mark = f"FLWR_HOME={home}".encode()
    while found := [pid for pid in running() if mark in surroundings(pid)]:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
