"""One entry of a ledger: its fields, its one and only spelling, its hash and its signature.

Public: an entry holds public parameters of a mechanism, never a record, a count or an id of a
subject. A line is the canonical JSON (RFC 8785) of the entry with its signature; any other
spelling of the same values is refused, so that the hash of a line stands for its meaning.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final

import rfc8785

from common.errors import ConfigError, SecurityRefused
from common.limits import LIMITS
from common.mechanism import Event, from_plain, to_plain
from common.signing import ENTRY, PublicKey, SigningKey

VERSION: Final = 1
NO_HASH: Final = "0" * 64
"""`prev` of the first entry, and `model_sha256` of an entry that concerns no model."""
LARGEST_NUMBER: Final = 2**53
"""Numbers stay below: a whole float from here on is spelled as an integer that JSON forbids."""
LINE_BYTES: Final = 64 * 1024
"""Longest line read."""
MAX_SEQ: Final = 10_000_000
MOST_COHORTS: Final = 64
"""Most that one ledger holds: a reservation names them all."""
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Names of sites, runs and cohorts: nothing that could hold a sentence about somebody."""
PURPOSES: Final = ("train", "evaluate")
NOISE: Final = ("secure", "seeded")

_PURPOSES: Final = frozenset(PURPOSES)
_SHA: Final = re.compile(r"[0-9a-f]{64}")
_SIGNATURE: Final = re.compile(r"[0-9a-f]{128}")
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
Check = Callable[[Any], bool]


def is_name(value: object) -> bool:
    """Whether text may name a site, a run or a cohort."""
    return isinstance(value, str) and NAME.fullmatch(value) is not None


def is_sha(value: object) -> bool:
    """Whether text is a SHA-256 in lower-case hexadecimal digits."""
    return isinstance(value, str) and _SHA.fullmatch(value) is not None


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_SEQ


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value <= LIMITS.adapter_bytes


def _is_time(value: object) -> bool:
    if not isinstance(value, str) or _TIME.fullmatch(value) is None:
        return False
    try:
        datetime.strptime(value, "%Y-%m-%dT%H:%M:%S%z")
    except ValueError:
        return False
    return True


def _are_purposes(value: object) -> bool:
    return isinstance(value, list) and 0 < len(value) == len(set(value)) and set(value) <= _PURPOSES


def _is_number(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 <= value < LARGEST_NUMBER  # type: ignore[operator]


def is_signature(value: object) -> bool:
    """Whether text is a signature in lower-case hexadecimal digits."""
    return isinstance(value, str) and _SIGNATURE.fullmatch(value) is not None


def _names(value: object) -> bool:
    return (
        isinstance(value, list)
        and 0 < len(value) <= MOST_COHORTS
        and all(is_name(v) for v in value)
    )


def _is_caps(value: object) -> bool:
    keys = {"epsilon", "delta", "sample_rate", "max_grad_norm", "noise_multiplier", "rounds"}
    return isinstance(value, dict) and set(value) == keys and all(map(_is_number, value.values()))


_DETAILS: Final[Mapping[str, Mapping[str, Check]]] = {
    "genesis": {
        "version": lambda v: type(v) is int and v == VERSION,
        "public_key": is_sha,
        "unit": lambda v: v == "subject",
        "adjacency": lambda v: v == "add-or-remove",
        "caps": _is_caps,
        "order": lambda v: _is_number(v) and v > 1,
        "cohort": is_name,
    },
    "plan": {
        "purposes": _are_purposes,
        "max_grad_norm": _is_number,
        "plan_sha256": is_sha,
        "backbone_sha256": is_sha,
        "catalog_sha256": is_sha,
    },
    "reserve": {
        "plan": _is_count,
        "purpose": lambda v: v in PURPOSES,
        "cohorts": _names,
        "noise": lambda v: v in NOISE,
        "opt_outs": is_sha,
    },
    "release": {"reserve": _is_count, "payload_sha256": is_sha, "bytes": _is_size},
    "cohort": {"name": is_name},
    "opt-out": {"commitment": is_sha},
    "key-rotate": {"public_key": is_sha, "proof": is_signature},
    "receipt": {
        "server_key": is_sha,
        "seq": _is_count,
        "head": is_sha,
        "heads_sha256": is_sha,
        "signature": is_signature,
    },
}
KINDS: Final = tuple(_DETAILS)
_FIELDS: Final = frozenset(
    {"site", "seq", "prev", "ts", "kind", "run", "round", "event", "model_sha256", "details"}
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry, without its signature.

    Attributes:
        site: whose ledger.
        seq: 0, 1, …
        prev: SHA-256 of the line before.
        ts: UTC, to the second; never before the entry before.
        kind: one of KINDS.
        run: of a plan, reserve, release or receipt; empty otherwise.
        round: likewise; 0 otherwise.
        event: what a plan or a reserve costs.
        model_sha256: the order that a reserve answers: plan and adapter.
        details: what the kind asks for, nothing else.
    """

    site: str
    seq: int
    prev: str
    ts: str
    kind: str
    run: str = ""
    round: int = 0
    event: Event | None = None
    model_sha256: str = NO_HASH
    details: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def plain(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "site": self.site,
            "seq": self.seq,
            "prev": self.prev,
            "ts": self.ts,
            "kind": self.kind,
            "run": self.run,
            "round": self.round,
            "event": None if self.event is None else to_plain(self.event),
            "model_sha256": self.model_sha256,
            "details": dict(self.details),
        }


@dataclass(frozen=True, kw_only=True)
class Signed:
    """An entry as it stands in a ledger.

    Attributes:
        entry: what is said.
        signature: 64 bytes over the canonical entry.
        line: the whole line without its end, bytes.
    """

    entry: Entry
    signature: bytes
    line: bytes

    @property
    def sha256(self) -> str:
        """Hash of the line: `prev` of the next one."""
        return hashlib.sha256(self.line).hexdigest()

    def verifies(self, key: PublicKey) -> bool:
        """Whether the key's owner signed this entry."""
        return key.verifies(ENTRY, canonical(self.entry.plain()), self.signature)


def canonical(value: Any) -> bytes:
    """Canonical JSON (RFC 8785).

    Raises:
        SecurityRefused: a value that JSON has no one spelling for.
    """
    try:
        return bytes(rfc8785.dumps(value))
    except (rfc8785.CanonicalizationError, RecursionError):
        raise SecurityRefused("Expected values with a canonical spelling, got others.") from None


def signed(entry: Entry, key: SigningKey) -> Signed:
    """Check an entry's fields and sign it.

    Raises:
        ConfigError: a field that no reader would accept.
    """
    plain = entry.plain()
    fault = _fault(plain)
    if fault:
        raise ConfigError(f"Expected {fault} in a ledger entry.")
    signature = key.sign(ENTRY, canonical(plain))
    line = canonical({**plain, "signature": signature.hex()})
    try:
        parse_line(line)  # a line that cannot be read would end the ledger for good
    except SecurityRefused as error:
        raise ConfigError(f"Expected an entry that can be read again: {error}") from None
    return Signed(entry=entry, signature=signature, line=line)


def parse_line(line: bytes) -> Signed:
    """Read one line, without its end.

    Raises:
        SecurityRefused: not the canonical spelling of an entry with exactly its fields.
    """
    plain = _loads(line)
    signature = plain.pop("signature", None)
    if not is_signature(signature) or not isinstance(signature, str):
        raise SecurityRefused("Expected a signature of 128 hexadecimal digits.")
    fault = _fault(plain)
    if fault:
        raise SecurityRefused(f"Expected {fault}.")
    try:
        event = None if plain["event"] is None else from_plain(plain["event"])
    except ConfigError as error:
        raise SecurityRefused(str(error)) from None
    entry = Entry(**{**plain, "event": event, "details": MappingProxyType(plain["details"])})
    return Signed(entry=entry, signature=bytes.fromhex(signature), line=line)


def _loads(line: bytes) -> dict[str, Any]:
    if len(line) > LINE_BYTES:
        raise SecurityRefused(f"Expected a line of at most {LINE_BYTES} bytes, got more.")
    try:
        plain = json.loads(line)
        same = isinstance(plain, dict) and canonical(plain) == line
    except (ValueError, RecursionError):
        raise SecurityRefused("Expected a line of JSON, got other bytes.") from None
    if not same:
        raise SecurityRefused("Expected the canonical spelling of an entry, got another.")
    return dict(plain)


def _fault(plain: Mapping[str, Any]) -> str:
    """What is wrong with an entry's plain values, as what was expected; empty when nothing is."""
    if set(plain) != _FIELDS:
        return "exactly the ten fields of an entry"
    checks = _DETAILS.get(plain["kind"]) if isinstance(plain["kind"], str) else None
    if checks is None:
        return f"kind to be one of {', '.join(KINDS)}"
    fields: dict[str, bool] = {
        "site to be a name": is_name(plain["site"]),
        "seq to be a count": _is_count(plain["seq"]),
        "prev to be a SHA-256": is_sha(plain["prev"]),
        "ts as YYYY-MM-DDThh:mm:ssZ": _is_time(plain["ts"]),
        "run to be a name": plain["run"] == "" or is_name(plain["run"]),
        "round to be a count": _is_count(plain["round"]),
        "model_sha256 to be a SHA-256": is_sha(plain["model_sha256"]),
    }
    for expected, holds in fields.items():
        if not holds:
            return expected
    return _fault_of_details(plain["kind"], plain["details"], checks)


def _fault_of_details(kind: str, details: object, checks: Mapping[str, Check]) -> str:
    if not isinstance(details, Mapping) or set(details) != set(checks):
        return f"exactly the details {', '.join(sorted(checks))} of a {kind}"
    for name, check in checks.items():
        try:
            holds = bool(check(details[name]))
        except TypeError:
            holds = False
        if not holds:
            return f"details.{name} of a {kind} to be as documented"
    return ""
