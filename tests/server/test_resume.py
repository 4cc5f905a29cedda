"""`confed server resume` as Flower is called, without Flower: what is run and what it answers."""

import os
import stat
from pathlib import Path

import pytest

from common.errors import ConfigError
from server.checkpoint import Checkpoint, Checkpoints
from server.options import ServerOptions
from server.resume import newest, resume_run
from tests.server.consortium import identity_of, plan_of


def state_of(folder: Path, *, round_: int = 2) -> Path:
    members = [{**vars(identity_of(name)), "weight": 1.0} for name in ("a", "b", "c")]
    facts = {"members": members, "offences": {}, "options": vars(ServerOptions(patience=0))}
    Checkpoints(folder / "checkpoints").commit(
        Checkpoint(round=round_, run="77", plan=plan_of().to_json(), arrays={}, facts=facts)
    )
    return folder


def flower(folder: Path, status: int) -> Path:
    """A command `flwr` that writes down its words, one a line."""
    path = folder / "bin" / "flwr"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > "{folder}/words"\nexit {status}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path.parent


@pytest.mark.parametrize("status", [0, 7])
def test_flowers_exit_status_is_the_answer(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = state_of(tmp_path / "state")
    monkeypatch.setenv("PATH", f"{flower(tmp_path, status)}{os.pathsep}{os.environ['PATH']}")
    answer = resume_run(state, "local", app=Path("app"), more=["--run-config", "sites=2"])
    assert answer == status
    words = (tmp_path / "words").read_text().splitlines()
    assert words[:4] == ["run", "app", "local", "--stream"]
    assert words[4::2] == ["--run-config", "--run-config"]
    assert "resume=true" in words[5].split()
    assert "sites=3" in words[5].split()  # the round is asked of all that were there
    assert f'state="{state.resolve()}"' in words[5]
    assert words[7] == "sites=2"


def test_without_flower_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"confed\[server\]"):
        resume_run(state_of(tmp_path), "", app=Path())


def test_a_state_without_rounds_says_how_to_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="start the run with --run-config"):
        newest(tmp_path)


def test_a_relative_state_is_told_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server's process starts elsewhere."""
    state_of(tmp_path / "state")
    monkeypatch.chdir(tmp_path)
    resume_run(Path("state"), "", app=Path(), dry_run=True)
    assert str(tmp_path / "state") in capsys.readouterr().out
