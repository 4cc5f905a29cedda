"""`confed server` and `confed adapter` by command line: exit status, one line, 80 columns."""

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from flwr.common.config import parse_config_args
from safetensors.numpy import load_file, save_file

from common.cli import main
from common.release import release_path
from common.signing import SigningKey
from server.checkpoint import Checkpoint, Checkpoints
from server.options import ServerOptions, options_from_run_config
from tests.server.consortium import SITES, Consortium, RoomyLedgers, Stopped, plan_of, stops_at
from tests.server.test_checkpoint import flip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two sites: `a.safetensors`, `state`."""
    root = tmp_path_factory.mktemp("run")
    options = ServerOptions(out=str(root / "a.safetensors"), state=str(root / "state"))
    ledgers = RoomyLedgers(root / "ledgers")
    Consortium(plan=plan_of(), sites=SITES[:2], options=options, permits=ledgers).run()
    return root


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state of a server that ended in round 3."""
    root = tmp_path_factory.mktemp("stopped with a space")
    options = ServerOptions(out="my adapter", state=str(root / "state"))
    with pytest.raises(Stopped):
        Consortium(
            plan=plan_of(), sites=SITES[:2], options=options,
            permits=RoomyLedgers(root / "ledgers"), phase=stops_at("collect", 3),
        ).run()  # fmt: skip
    return root / "state"


def said(
    capsys: pytest.CaptureFixture[str], *words: str | Path, status: int = 0
) -> tuple[str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    shown = capsys.readouterr()
    assert ended.value.code == status, shown
    assert all(len(line) <= 80 for line in shown.out.splitlines()) or "--json" in words
    if status:
        assert shown.err.count("\n") == 1, shown.err
        assert "Traceback" not in shown.err
    return shown.out, shown.err


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """The adapter and its release, to be changed."""
    for name in ("a.safetensors", "a.safetensors.release.json"):
        shutil.copy(run / name, tmp_path)
    shutil.copy(run / "state" / "public-key.pem", tmp_path)
    return tmp_path / "a.safetensors"


def verified(copy: Path, capsys: pytest.CaptureFixture[str], *more: str, status: int = 0) -> Any:
    key = ("--public-key", copy.parent / "public-key.pem")
    return said(capsys, "adapter", "verify", copy, *key, *more, status=status)


def test_a_released_adapter_verifies_and_says_what_stands_behind_it(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = verified(copy, capsys)
    assert err == ""
    assert "as released" in out
    assert "(the given one)" in out
    assert "rounds    4, released after round 4, mean; after its last round" in out
    assert "north" in out
    assert "no claim" in out  # its noise was seeded
    told = json.loads(verified(copy, capsys, "--json")[0])
    assert [site["site"] for site in told["sites"]] == ["north", "south"]


def test_without_a_key_the_release_is_believed_and_says_so(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "believed, no --public-key given" in said(capsys, "adapter", "verify", copy)[0]


def test_changed_tensors_are_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors import safe_open

    with safe_open(copy, framework="numpy") as file:
        metadata = file.metadata()
    tensors = load_file(copy)
    first = sorted(tensors)[0]
    tensors[first] = tensors[first] + 1
    save_file(tensors, copy, metadata=metadata)
    assert "changed after it was saved" in verified(copy, capsys, status=3)[1]


def resaved(copy: Path, **changed: Any) -> None:
    """The same tensors under another manifest, whose own digest fits."""
    from safetensors import safe_open

    with safe_open(copy, framework="numpy") as file:
        manifest = json.loads(file.metadata()["confed"])
    save_file(load_file(copy), copy, metadata={"confed": json.dumps({**manifest, **changed})})


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"backbone_sha256": "f" * 64}, "other backbone"),
        ({"catalogs": {"care": "f" * 64}}, "other catalogs"),
        ({"plan": plan_of(rounds=9).to_json()}, "other plan"),
    ],
)
def test_the_same_tensors_under_another_manifest_are_refused(
    changed: dict[str, Any], says: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resaved(copy, **changed)
    assert says in verified(copy, capsys, status=3)[1]


def test_a_changed_statement_is_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = release_path(copy)
    path.write_text(path.read_text().replace('\\"rounds\\":4', '\\"rounds\\":9'))
    assert "it does not fit" in verified(copy, capsys, status=3)[1]


def test_another_servers_key_is_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy.parent / "public-key.pem").write_bytes(SigningKey.generate().public.pem())
    assert "Expected a release signed by" in verified(copy, capsys, status=3)[1]


def test_no_release_and_no_adapter_are_bad_input(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release_path(copy).unlink()
    assert "Expected a release at" in verified(copy, capsys, status=2)[1]
    copy.unlink()
    assert "Expected an adapter file" in verified(copy, capsys, status=2)[1]


# confed server


def test_status_says_the_last_round_and_who_took_part(
    stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = said(capsys, "server", "status", stopped)
    assert "round 2 of 4 committed" in out
    assert [line.split() for line in out.splitlines() if "care" in line] == [
        ["north", "care", "1", "0"],
        ["south", "care", "1", "0"],
    ]
    told = json.loads(said(capsys, "server", "status", stopped, "--json")[0])
    assert (told["round"], told["rounds"], told["offences"]) == (2, 4, {})
    assert [m["site"] for m in told["members"]] == ["north", "south"]


@pytest.mark.parametrize("words", [("server", "status"), ("server", "resume")])
def test_a_folder_without_rounds_is_one_line(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        assert "Expected a committed round in" in said(capsys, *words, folder, status=2)[1]


def test_damaged_rounds_are_one_line(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = shutil.copytree(stopped, tmp_path / "state")
    for path in (state / "checkpoints").glob("*.safetensors"):
        flip(path)
    assert "all 2 are damaged" in said(capsys, "server", "status", state, status=2)[1]


def test_a_site_whose_name_looks_like_markup_is_shown_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    member = {"site": "[/red]:fire:", "domain": "[bold]care", "weight": 1.0}
    Checkpoints(tmp_path / "checkpoints").commit(
        Checkpoint(
            round=1, run="7", plan=plan_of().to_json(), arrays={},
            facts={"members": [member], "offences": {"[/red]:fire:": 2}, "options": {"out": ""}},
        )
    )  # fmt: skip
    out, _ = said(capsys, "server", "status", tmp_path)
    assert "[/red]:fire:" in out
    assert "[bold]care" in out


def options_asked(out: str) -> tuple[ServerOptions, list[str]]:
    """The options that Flower would read from the printed command, and its words."""
    import shlex

    words = shlex.split(out.splitlines()[1])
    given = [words[i + 1] for i, word in enumerate(words) if word == "--run-config"]
    return options_from_run_config(parse_config_args(given)), words


def test_resume_asks_flower_to_go_on_with_the_options_of_the_run(
    stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = said_long(capsys, "server", "resume", stopped, "local", "--app", "x", "--dry-run")
    options, words = options_asked(out)
    assert out.startswith("resuming run 9100001 after round 2 of 4")
    assert words[:5] == ["flwr", "run", "x", "local", "--stream"]
    assert options == ServerOptions(
        state=str(stopped.resolve()), resume=True, sites=2, out="my adapter"
    )


def said_long(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    shown = capsys.readouterr()
    assert ended.value.code == 0, shown
    return shown.out, shown.err


def test_what_the_operator_adds_overrides_what_the_run_had(
    stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--run-config", 'sites=1 out="b"', "--dry-run")
    options, _ = options_asked(said_long(capsys, "server", "resume", stopped, *more)[0])
    assert (options.sites, options.out, options.resume) == (1, "b", True)


def test_a_finished_run_is_resumed_for_its_release_alone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = said_long(capsys, "server", "resume", run / "state", "--dry-run")
    assert out.startswith("resuming run 9100001 after round 4 of 4")
    found = Checkpoints(run / "state" / "checkpoints").newest()
    assert found is not None
    found.facts["options"]["out"] = ""
    Checkpoints(tmp_path / "checkpoints").commit(found)
    error = said(capsys, "server", "resume", tmp_path, status=2)[1]
    assert "Expected rounds to be left, round 4 was the last" in error


def test_the_commands_are_entry_points_of_the_project() -> None:
    root = Path(__file__).resolve().parents[2]
    scripts = tomllib.loads((root / "pyproject.toml").read_text())["project"]["entry-points"]
    assert scripts["confed.commands"]["server"] == "server.commands:server"
    assert scripts["confed.commands"]["adapter"] == "server.commands:adapter"
