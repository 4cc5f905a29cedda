import json
import pickle
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from common.adapter import load_adapter, save_adapter, tensors_sha256
from common.errors import ConfedError, ModelError, SecurityRefused
from common.limits import LIMITS
from common.wire import Tensors
from tests.models import backbone_of, model_of, run_plan

PLAN = run_plan()
CATALOGS = {"care": "ab" * 32, "bank": "cd" * 32}


def tensors_of(seed: int = 0) -> Tensors:
    return {k: v.numpy() for k, v in model_of(PLAN.recommender, seed=seed).adapter().items()}


def saved(folder: Path, tensors: Tensors | None = None) -> Path:
    path = folder / "adapter.safetensors"
    save_adapter(
        path,
        tensors if tensors is not None else tensors_of(),
        plan=PLAN,
        backbone=backbone_of("bert"),
        catalogs=CATALOGS,
    )
    return path


def rewritten(path: Path, tensors: Any = None, **manifest: Any) -> Path:
    """The same file with other tensors or another manifest, well formed for everybody else."""
    with safe_open(path, framework="numpy") as file:
        plain = json.loads(file.metadata()["confed"])
    plain = {k: v for k, v in {**plain, **manifest}.items() if v is not ...}
    arrays = tensors if tensors is not None else load_file(path)
    save_file(arrays, path, metadata={"confed": json.dumps(plain)})
    return path


def test_an_adapter_goes_to_disk_and_back(tmp_path: Path) -> None:
    path = saved(tmp_path / "new" / "folder")
    tensors, manifest = load_adapter(path, backbone_sha256=backbone_of("bert").digest)
    wanted = tensors_of()
    assert set(tensors) == set(wanted)
    assert all(np.array_equal(tensors[k], wanted[k]) for k in wanted)
    assert manifest.plan == PLAN
    assert manifest.catalogs == CATALOGS
    assert manifest.backbone_sha256 == backbone_of("bert").digest
    assert manifest.sha256 == tensors_sha256(wanted)


def test_saving_again_replaces_the_file_and_leaves_no_other(tmp_path: Path) -> None:
    saved(tmp_path, tensors_of(1))
    path = saved(tmp_path, tensors_of(2))
    assert [f.name for f in tmp_path.iterdir()] == [path.name]
    assert np.array_equal(load_adapter(path)[0]["mixer"], tensors_of(2)["mixer"])


def test_any_tool_for_safetensors_reads_the_tensors(tmp_path: Path) -> None:
    found = load_file(saved(tmp_path))
    assert set(found) == set(tensors_of())


@pytest.mark.parametrize("content", [pickle.dumps({"a": 1}), b"PK\x03\x04" + bytes(100)])
def test_a_pickle_is_refused_by_its_first_bytes(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(content)
    with pytest.raises(SecurityRefused, match="pickle"):
        load_adapter(path)


@pytest.mark.parametrize("keep", [0, 1, 7, 100, 0.5, 0.99])
def test_a_truncated_file_is_refused(keep: float, tmp_path: Path) -> None:
    path = saved(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep < 1 else int(keep)])
    with pytest.raises(ModelError, match=r"truncated|manifest"):
        load_adapter(path)


def test_an_adapter_of_another_backbone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="backbone"):
        load_adapter(saved(tmp_path), backbone_sha256=backbone_of("llama").digest)


def test_a_changed_number_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    tensors = tensors_of()
    tensors["mixer"][1, 1] += 1e-6
    with pytest.raises(SecurityRefused, match="digest"):
        load_adapter(rewritten(path, tensors))


@pytest.mark.parametrize("change", ["extra", "missing", "renamed", "reshaped"])
def test_other_tensors_than_those_of_the_manifest_are_refused(change: str, tmp_path: Path) -> None:
    path = saved(tmp_path)
    tensors = tensors_of()
    if change == "extra":
        tensors["more"] = np.zeros(1, np.float32)
    elif change == "reshaped":
        tensors["mixer"] = np.ascontiguousarray(tensors["mixer"].reshape(-1))
    else:
        value = tensors.pop("mixer")
        if change == "renamed":
            tensors["map"] = value
    with pytest.raises(SecurityRefused, match="digest"):
        load_adapter(rewritten(path, tensors))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_refused_even_with_a_matching_digest(
    bad: float, tmp_path: Path
) -> None:
    tensors = tensors_of()
    tensors["mixer"][0, 0] = bad
    with pytest.raises(ModelError, match="finite"):
        load_adapter(saved(tmp_path, tensors))


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, np.bool_])
def test_another_number_format_is_refused(dtype: type, tmp_path: Path) -> None:
    tensors: dict[str, Any] = tensors_of()
    tensors["mixer"] = tensors["mixer"].astype(dtype)
    with pytest.raises(ModelError, match="float32"):
        load_adapter(rewritten(saved(tmp_path), tensors))


def test_bfloat16_is_refused_in_one_line(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    path = saved(tmp_path)
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    save_torch({"mixer": torch.zeros(2, dtype=torch.bfloat16)}, path, metadata=metadata)
    with pytest.raises(ModelError):
        load_adapter(path)


@pytest.mark.parametrize(
    "manifest",
    [
        {"format": "confed-adapter-2"},
        {"format": ...},
        {"sha256": ...},
        {"sha256": 5},
        {"backbone_sha256": None},
        {"backbone": ["x"]},
        {"catalogs": "care"},
        {"catalogs": {"care": 3}},
        {"plan": "{}x"},
        {"plan": 3},
        {"plan": '{"seed": "one"}'},
        {"plan": None},
        {"run": "something else"},
    ],
    ids=str,
)
def test_a_manifest_of_another_form_gets_one_line(manifest: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfedError) as error:
        load_adapter(rewritten(saved(tmp_path), None, **manifest), backbone_sha256="00")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "3", "null", "[" * 100_000, '{"format": NaN}'])
def test_a_manifest_that_is_no_object_gets_one_line(text: str, tmp_path: Path) -> None:
    path = saved(tmp_path)
    save_file(tensors_of(), path, metadata={"confed": text})
    with pytest.raises(ModelError, match="manifest"):
        load_adapter(path)


def test_safetensors_of_another_tool_get_one_line(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    save_file(tensors_of(), path)
    with pytest.raises(ModelError, match="manifest"):
        load_adapter(path)


def test_a_file_that_is_not_there_or_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="found none"):
        load_adapter(tmp_path / "none")
    with pytest.raises(ModelError, match="found none"):
        load_adapter(tmp_path)
    large = tmp_path / "large"
    with large.open("wb") as stream:
        stream.truncate(LIMITS.adapter_bytes + 1)
    with pytest.raises(SecurityRefused, match="at most"):
        load_adapter(large)


def test_an_adapter_file_is_written_whole_with_ordinary_rights(tmp_path: Path) -> None:
    assert stat.S_IMODE(saved(tmp_path).stat().st_mode) & 0o600 == 0o600


@given(
    st.dictionaries(st.text("abc.", min_size=1, max_size=6), st.integers(0, 5), min_size=1),
    st.randoms(),
)
@settings(max_examples=40)
def test_the_digest_knows_names_and_values_but_no_order(sizes: dict[str, int], random: Any) -> None:
    tensors = {k: np.full(n, i, np.float32) for i, (k, n) in enumerate(sizes.items())}
    names = list(tensors)
    random.shuffle(names)
    assert tensors_sha256({k: tensors[k] for k in names}) == tensors_sha256(tensors)
    assert tensors_sha256({f"{k}x": v for k, v in tensors.items()}) != tensors_sha256(tensors)
    assert tensors_sha256({k: np.append(v, 1) for k, v in tensors.items()}) != tensors_sha256(
        tensors
    )


def test_an_adapter_whose_header_length_begins_like_a_pickle_is_read(tmp_path: Path) -> None:
    """One length in 32 does: the header is padded to eight bytes, and 0x80 is one of them."""
    path, read = tmp_path / "adapter.safetensors", 0
    for length in range(1, 300, 8):
        catalogs = {"care": "a" * length}
        save_adapter(
            path,
            {"bias.care": np.zeros(3, np.float32)},
            plan=PLAN,
            backbone=backbone_of("bert"),
            catalogs=catalogs,
        )
        read += path.read_bytes()[:1] == b"\x80"
        assert load_adapter(path)[1].catalogs == catalogs
    assert read
