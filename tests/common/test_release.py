import json
from pathlib import Path
from typing import Any

import pytest

from common.adapter import Manifest
from common.errors import ConfedError, ModelError, SecurityRefused
from common.plan import RunPlan
from common.release import FORMAT, read_release, release_path, require_released, sign_release
from common.signing import SigningKey

KEY = SigningKey.generate()
SITE = {"site": "north", "domain": "care", "epsilon": 1.5, "delta": 1e-5, "head": "0" * 64}
MANIFEST = Manifest(
    backbone="minilm",
    backbone_sha256="b" * 64,
    catalogs={"care": "c" * 64},
    plan=RunPlan(),
    sha256="a" * 64,
)


def statement(**changed: Any) -> dict[str, Any]:
    plain = {
        "format": FORMAT,
        "adapter_sha256": "a" * 64,
        "backbone_sha256": "b" * 64,
        "catalogs": {"care": "c" * 64},
        "plan": RunPlan().to_json(),
        "run": "7",
        "rounds": 5,
        "released_round": 4,
        "ended": "after its last round",
        "aggregation": "mean",
        "sites": [SITE],
    }
    return {**plain, **changed}


def written(folder: Path, data: bytes) -> Path:
    path = folder / "adapter.safetensors.release.json"
    path.write_bytes(data)
    return path


def test_a_release_lies_beside_its_adapter() -> None:
    assert release_path(Path("out/a.safetensors")) == Path("out/a.safetensors.release.json")


def test_a_signed_statement_is_read_back_with_the_key_that_signed_it(tmp_path: Path) -> None:
    path = written(tmp_path, sign_release(statement(), KEY))
    for key in (None, KEY.public):
        assert read_release(path, key) == {**statement(), "server_key": KEY.public.fingerprint}


def test_another_servers_release_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, sign_release(statement(), SigningKey.generate()))
    with pytest.raises(SecurityRefused, match=KEY.public.fingerprint):
        read_release(path, KEY.public)


@pytest.mark.parametrize(
    "change",
    [
        {"sites": [{**SITE, "epsilon": 0.1}]},
        {"released_round": 5},
        {"sites": []},
        {"ended": "after its last round "},
    ],
)
def test_a_changed_statement_does_not_carry_the_signature(
    change: dict[str, Any], tmp_path: Path
) -> None:
    told = json.loads(sign_release(statement(), KEY))
    other = json.loads(sign_release(statement(**change), SigningKey.generate()))
    path = written(tmp_path, json.dumps({**told, "statement": other["statement"]}).encode())
    with pytest.raises(SecurityRefused, match="it does not fit"):
        read_release(path, KEY.public)


def test_a_signature_for_another_purpose_does_not_fit(tmp_path: Path) -> None:
    told = json.loads(sign_release(statement(), KEY))
    body = told["statement"].encode()
    path = written(tmp_path, json.dumps({**told, "signature": KEY.sign("x", body).hex()}).encode())
    with pytest.raises(SecurityRefused):
        read_release(path, KEY.public)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"statement": "{}", "server_key": "zz", "signature": "00"}',
        b'{"statement": 5, "server_key": 6, "signature": 7}',
    ],
)
def test_what_is_no_release_is_one_line(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(ConfedError) as error:
        read_release(written(tmp_path, data), None)
    assert "\n" not in str(error.value)


def test_no_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Expected a release at"):
        read_release(tmp_path / "none", None)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "confed-release-2"},
        {"rounds": "5"},
        {"rounds": True},
        {"sites": {}},
        {"sites": [5]},
        {"sites": [{**SITE, "epsilon": "low"}]},
        {"sites": [{"site": "north"}]},
        {"plan": None},
        {"catalogs": []},
    ],
)
def test_a_signed_statement_without_what_is_shown_is_one_line(
    change: dict[str, Any], tmp_path: Path
) -> None:
    """Anybody can sign anything with a key of their own."""
    path = written(tmp_path, sign_release(statement(**change), KEY))
    with pytest.raises(ModelError, match="release of format"):
        read_release(path, None)


def test_the_adapter_of_a_release_is_known_by_all_that_it_says() -> None:
    require_released(statement(), MANIFEST)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"adapter_sha256": "f" * 64}, "other tensors"),
        ({"backbone_sha256": "f" * 64}, "other backbone"),
        ({"catalogs": {"care": "f" * 64}}, "other catalogs"),
        ({"plan": RunPlan(seed=5).to_json()}, "other plan"),
    ],
)
def test_an_adapter_with_another_manifest_is_not_the_released_one(
    change: dict[str, Any], says: str
) -> None:
    with pytest.raises(SecurityRefused, match=says):
        require_released(statement(**change), MANIFEST)
