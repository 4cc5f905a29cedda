"""Adapter files: safetensors with a manifest that says what they belong to.

A pickle is never opened. An adapter is public once released: post-processing of noisy updates.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from common.backbone import Backbone
from common.durable import write_atomic
from common.errors import ModelError, SecurityRefused
from common.limits import LIMITS
from common.plan import Frozen, RunPlan, plan_from_json
from common.wire import Tensors

FORMAT = "confed-adapter-1"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an adapter belongs to.

    Attributes:
        backbone: name of the backbone.
        backbone_sha256: of its weights.
        catalogs: catalog digest by domain.
        plan: the run plan, which holds the LoRA configuration.
        sha256: of the tensors, names and values.
    """

    backbone: str
    backbone_sha256: str
    catalogs: dict[str, str]
    plan: RunPlan
    sha256: str


class _Stored(Frozen):
    """A manifest as it stands in the file, checked before anything in it is believed."""

    format: Literal["confed-adapter-1"]
    backbone: str
    backbone_sha256: str
    catalogs: dict[str, str]
    plan: str
    sha256: str


def tensors_sha256(tensors: Tensors) -> str:
    """Digest of named arrays, independent of their order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = np.ascontiguousarray(tensors[name], dtype=np.float32)
        digest.update(f"{name}|{value.shape}|".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def save_adapter(
    path: Path, tensors: Tensors, *, plan: RunPlan, backbone: Backbone, catalogs: dict[str, str]
) -> Manifest:
    """Write an adapter atomically: temporary file, fsync, replace, fsync of the folder."""
    manifest = Manifest(
        backbone=backbone.name,
        backbone_sha256=backbone.digest,
        catalogs=dict(catalogs),
        plan=plan,
        sha256=tensors_sha256(tensors),
    )
    plain = {**asdict(manifest), "plan": plan.to_json(), "format": FORMAT}
    metadata = {"confed": json.dumps(plain, sort_keys=True, separators=(",", ":"))}
    arrays = {k: np.ascontiguousarray(v, dtype=np.float32) for k, v in tensors.items()}
    write_atomic(path, to_bytes(arrays, metadata=metadata))
    return manifest


def load_adapter(path: Path, *, backbone_sha256: str | None = None) -> tuple[Tensors, Manifest]:
    """Read an adapter and check it against its manifest.

    Args:
        path: a safetensors file that `save_adapter` wrote.
        backbone_sha256: the backbone it must belong to, or None.

    Raises:
        ModelError: missing, truncated, no manifest, not float32, not finite, another backbone.
        SecurityRefused: a pickle, too large, or tensors that do not match their digest.
    """
    if not path.is_file():
        raise ModelError(f"Expected an adapter file at {path}, found none.")
    if path.stat().st_size > LIMITS.adapter_bytes:
        raise SecurityRefused(f"Expected an adapter of at most {LIMITS.adapter_bytes} bytes.")
    with path.open("rb") as stream:
        head = stream.read(9)
    # A header's length may begin with a pickle's first byte; its JSON begins with the ninth.
    if head[8:] != b"{" and (head[:1] == b"\x80" or head[:2] == b"PK"):
        raise SecurityRefused(
            f"Expected safetensors in {path.name}, got a pickle file, which can run code; "
            "only safetensors are read."
        )
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError) as error:  # NumPy has no bfloat16
        raise ModelError(
            f"Expected safetensors of float32 in {path.name}, got a truncated or other file; "
            "fetch it again."
        ) from error
    manifest = _manifest(path, metadata)
    _check(path, tensors, manifest, backbone_sha256)
    return tensors, manifest


def _manifest(path: Path, metadata: dict[str, str]) -> Manifest:
    try:
        stored = _Stored.model_validate_json(metadata["confed"])
    except (KeyError, ValidationError) as error:
        raise ModelError(
            f"Expected a Confed manifest in {path.name}, found none; "
            "save it with confed, not with another tool."
        ) from error
    return Manifest(
        backbone=stored.backbone,
        backbone_sha256=stored.backbone_sha256,
        catalogs=stored.catalogs,
        plan=plan_from_json(stored.plan),
        sha256=stored.sha256,
    )


def _check(path: Path, tensors: Tensors, manifest: Manifest, backbone_sha256: str | None) -> None:
    for name, value in tensors.items():
        if value.dtype != np.float32:
            raise ModelError(f"{path.name}: expected {name} as float32, got {value.dtype}.")
        if not np.isfinite(value).all():
            raise ModelError(f"{path.name}: expected finite numbers in {name}.")
    if tensors_sha256(tensors) != manifest.sha256:
        raise SecurityRefused(
            f"{path.name}: expected tensors with digest {manifest.sha256[:12]}…, got others; "
            "the file was changed after it was saved."
        )
    if backbone_sha256 is not None and backbone_sha256 != manifest.backbone_sha256:
        raise ModelError(
            f"{path.name}: expected backbone {backbone_sha256[:12]}…, "
            f"got an adapter of {manifest.backbone_sha256[:12]}… ({manifest.backbone})."
        )
