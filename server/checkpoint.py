"""Committed rounds on disk: each one atomic and hashed, so that a run goes on where it was.

A round is committed when its manifest is there; the manifest names the hash of the tensors. Public:
all of it, released and unreleased adapters are functions of released updates.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from common.durable import write_atomic
from common.errors import ConfigError, ModelError

LOG = logging.getLogger("confed.server")
FORMAT: Final = "confed-checkpoint-1"
KEPT: Final = 2
"""Rounds kept: the last one, and the one to fall back on."""
_NAME: Final = re.compile(r"round-(\d{6})\.json")
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Everything that the next round depends on.

    Attributes:
        round: last one committed.
        run: name of the run.
        plan: of the run, as JSON.
        arrays: by part and name, `current/map.care` and so on.
        facts: small values: members, offences, the optimiser's step, the best round.
    """

    round: int
    run: str
    plan: str
    arrays: Arrays
    facts: dict[str, Any] = field(default_factory=dict)

    def part(self, name: str) -> Arrays:
        """The arrays of one part, without its prefix."""
        prefix = f"{name}/"
        return {k.removeprefix(prefix): v for k, v in self.arrays.items() if k.startswith(prefix)}


class Checkpoints:
    """A folder of committed rounds.

    Args:
        folder: made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def commit(self, checkpoint: Checkpoint) -> None:
        """Write one round; it is there whole or not at all.

        Raises:
            ConfigError: the folder cannot be written to.
        """
        data = bytes(save({k: np.asarray(v, order="C") for k, v in checkpoint.arrays.items()}))
        stem = f"round-{checkpoint.round:06d}"
        manifest = {
            "format": FORMAT,
            "round": checkpoint.round,
            "run": checkpoint.run,
            "plan": checkpoint.plan,
            "sha256": hashlib.sha256(data).hexdigest(),
            "facts": checkpoint.facts,
        }
        told = _with_digest(manifest)
        try:
            write_atomic(self.folder / f"{stem}.safetensors", data)
            write_atomic(self.folder / f"{stem}.json", told)
            self._drop_old(checkpoint.round)
        except OSError as error:
            raise ConfigError(
                f"Expected to write into {self.folder}, got '{error.strerror}'."
            ) from None

    def _drop_old(self, newest: int) -> None:
        for number in self.rounds():
            if number <= newest - KEPT:
                stem = self.folder / f"round-{number:06d}"
                stem.with_suffix(".json").unlink(missing_ok=True)
                stem.with_suffix(".safetensors").unlink(missing_ok=True)

    def rounds(self) -> list[int]:
        """Numbers of the committed rounds, oldest first."""
        if not self.folder.is_dir():
            return []
        found = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match.group(1)) for match in found if match)

    def newest(self) -> Checkpoint | None:
        """The last whole round; a damaged one is passed over, and the log says so.

        Raises:
            ModelError: there are rounds, and none of them is whole.
        """
        numbers = self.rounds()
        for number in reversed(numbers):
            try:
                return self._read(number)
            except ModelError as error:
                LOG.warning("%s; falling back one round", str(error).rstrip("."))
        if numbers:
            raise ModelError(
                f"Expected a whole checkpoint in {self.folder}, all {len(numbers)} are damaged; "
                "bring a copy back, or start a new run with another state folder."
            )
        return None

    def _read(self, number: int) -> Checkpoint:
        stem = self.folder / f"round-{number:06d}"
        damaged = ModelError(f"Expected {stem.name} whole, it is damaged.")
        try:
            manifest = _checked(stem.with_suffix(".json").read_bytes())
            data = stem.with_suffix(".safetensors").read_bytes()
            if hashlib.sha256(data).hexdigest() != manifest["sha256"]:
                raise damaged
            arrays = load(data)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError):
            raise damaged from None
        return Checkpoint(
            round=int(manifest["round"]),
            run=str(manifest["run"]),
            plan=str(manifest["plan"]),
            arrays=arrays,
            facts=dict(manifest["facts"]),
        )


def parts(**named: Mapping[str, NDArray[Any]]) -> Arrays:
    """Arrays of several parts under one another's prefix."""
    return {f"{part}/{name}": v for part, arrays in named.items() for name, v in arrays.items()}


def _with_digest(manifest: dict[str, Any]) -> bytes:
    body = json.dumps(manifest, sort_keys=True)
    return json.dumps({"manifest": body, "digest": _digest(body)}).encode()


def _checked(text: bytes) -> dict[str, Any]:
    told = json.loads(text)
    if _digest(str(told["manifest"])) != told["digest"]:
        raise ValueError
    manifest: dict[str, Any] = json.loads(told["manifest"])
    if manifest["format"] != FORMAT:
        raise ValueError
    return manifest


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()
