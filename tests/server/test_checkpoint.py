import json
import logging
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from common.errors import ConfigError, ModelError
from server.checkpoint import KEPT, Checkpoint, Checkpoints, parts
from tests.children import ended, fork, largest_file


def checkpoint(number: int, *, value: float = 1.0) -> Checkpoint:
    current = {"map.care": np.full((3, 4), value + number, np.float32)}
    return Checkpoint(
        round=number,
        run="run-1",
        plan="{}",
        arrays=parts(current=current, released={"bias": np.arange(5, dtype=np.float32)}),
        facts={"offences": {"north": number}},
    )


def committed(folder: Path, last: int) -> Checkpoints:
    made = Checkpoints(folder)
    for number in range(last + 1):
        made.commit(checkpoint(number))
    return made


def test_what_is_committed_comes_back_bit_by_bit(tmp_path: Path) -> None:
    arrays = {
        "a/float32": np.array([[1.5, np.pi], [-0.0, 1e-45]], np.float32),
        "a/float64": np.array([1 / 3, np.inf]),
        "a/number": np.array(0.1),
        "a/none": np.zeros((0, 3), np.float32),
        "b/turned": np.arange(6.0).reshape(2, 3).T,
    }
    facts = {"public": {"round": 3, "scores": {"1": 0.25}}, "offences": {}}
    Checkpoints(tmp_path).commit(
        Checkpoint(round=7, run="run-1", plan='{"seed":1}', arrays=arrays, facts=facts)
    )
    found = Checkpoints(tmp_path).newest()
    assert found is not None
    assert (found.round, found.run, found.plan, found.facts) == (7, "run-1", '{"seed":1}', facts)
    assert set(found.arrays) == set(arrays)
    for name, value in arrays.items():
        back = found.arrays[name]
        assert (back.shape, back.dtype) == (value.shape, value.dtype), name
        assert back.tobytes() == value.tobytes(), name


def test_parts_are_told_apart_by_their_prefix() -> None:
    arrays = parts(current={"x": np.ones(1)}, currently={"x": np.zeros(1)}, best={})
    found = Checkpoint(round=1, run="r", plan="", arrays=arrays)
    assert found.part("current") == {"x": np.ones(1)}
    assert found.part("best") == {}


def test_an_empty_or_missing_folder_has_no_round(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path).newest() is None
    assert Checkpoints(tmp_path / "none").rounds() == []


def test_the_last_rounds_are_kept_and_older_ones_go(tmp_path: Path) -> None:
    made = committed(tmp_path, 5)
    assert made.rounds() == [4, 5]
    assert len(list(tmp_path.iterdir())) == 2 * KEPT


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other(path: Path) -> None:
    path.write_text("[]")


def other_fields(path: Path) -> None:
    path.write_text('{"manifest": 5, "digest": 6}')


def gone(path: Path) -> None:
    path.unlink()


DAMAGES = [cut, flip, empty, other, other_fields, gone]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("ending", ["safetensors", "json"])
def test_a_damaged_round_falls_back_to_the_one_before(
    damage: object, ending: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = committed(tmp_path, 3)
    damage(tmp_path / f"round-000003.{ending}")  # type: ignore[operator]
    with caplog.at_level(logging.WARNING, logger="confed.server"):
        found = made.newest()
    assert found is not None
    assert found.round == 2
    missing = (damage, ending) == (gone, "json")  # then the round was never committed
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (0 if missing else 1)
    assert missing or ("round-000003" in said[0] and "falling back one round" in said[0])


def test_every_round_damaged_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    made = committed(tmp_path, 3)
    for path in tmp_path.glob("*.safetensors"):
        flip(path)
    with pytest.raises(ModelError, match="all 2 are damaged; bring a copy back") as error:
        made.newest()
    assert "\n" not in str(error.value)


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), which=st.booleans())
def test_no_flipped_bit_goes_unseen(
    tmp_path_factory: pytest.TempPathFactory, place: float, bit: int, which: bool
) -> None:
    folder = tmp_path_factory.mktemp("bits")
    made = committed(folder, 1)
    path = folder / ("round-000001.json" if which else "round-000001.safetensors")
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    path.write_bytes(bytes(data))
    found = made.newest()
    assert found is not None
    assert found.round == 0


def test_a_manifest_that_names_other_bytes_is_damage(tmp_path: Path) -> None:
    made = committed(tmp_path, 2)
    (tmp_path / "round-000002.safetensors").write_bytes(
        (tmp_path / "round-000001.safetensors").read_bytes()
    )
    found = made.newest()
    assert found is not None
    assert found.round == 1


def test_another_format_is_not_read(tmp_path: Path) -> None:
    made = committed(tmp_path, 1)
    path = tmp_path / "round-000001.json"
    path.write_text(path.read_text().replace("confed-checkpoint-1", "confed-checkpoint-2"))
    found = made.newest()
    assert found is not None
    assert found.round == 0


def test_foreign_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("of the operator")
    (tmp_path / "round-12.json").write_text("{}")
    made = committed(tmp_path, 4)
    assert made.rounds() == [3, 4]
    assert (tmp_path / "notes.txt").read_text() == "of the operator"


def test_a_full_disk_loses_no_round_that_was_committed(tmp_path: Path) -> None:
    committed(tmp_path, 2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full() -> None:
        largest_file(64)
        with pytest.raises(ConfigError, match="Expected to write into"):
            Checkpoints(tmp_path).commit(checkpoint(3))

    assert ended(fork(full)) == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(ConfigError, match="Permission denied"):
        Checkpoints(tmp_path).commit(checkpoint(1))


def test_no_array_is_ever_unpickled(tmp_path: Path) -> None:
    made = committed(tmp_path, 1)
    manifest = json.loads((tmp_path / "round-000001.json").read_text())
    assert set(manifest) == {"manifest", "digest"}
    with pytest.raises((KeyError, TypeError, ValueError, SafetensorError)):
        made.commit(Checkpoint(round=2, run="r", plan="", arrays={"a/x": np.array([object()])}))
    assert made.rounds() == [0, 1]
