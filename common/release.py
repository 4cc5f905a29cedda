"""A signed statement beside an adapter: which rounds, sites, hashes and epsilon stand behind it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from common.entries import canonical
from common.errors import ModelError, SecurityRefused
from common.limits import LIMITS
from common.signing import PublicKey, SigningKey

if TYPE_CHECKING:
    from common.adapter import Manifest

FORMAT: Final = "confed-release-1"
PURPOSE: Final = "adapter-release"


def release_path(adapter: Path) -> Path:
    """Where the release of an adapter lies."""
    return adapter.with_name(f"{adapter.name}.release.json")


def sign_release(statement: Mapping[str, Any], key: SigningKey) -> bytes:
    """The statement with the server's signature, as a file."""
    body = canonical(dict(statement))
    told = {
        "statement": body.decode(),
        "server_key": key.public.hex,
        "signature": key.sign(PURPOSE, body).hex(),
    }
    return (json.dumps(told, indent=1) + "\n").encode()


def read_release(path: Path, key: PublicKey | None) -> dict[str, Any]:
    """Read a release and check its signature.

    Args:
        path: of the release.
        key: of the server, from another channel; None believes the key inside.

    Raises:
        ModelError: no release, or not one.
        SecurityRefused: another key, or a signature that does not fit.
    """
    if not path.is_file() or path.stat().st_size > LIMITS.adapter_bytes:
        raise ModelError(f"Expected a release at {path}, found none.")
    try:
        told = json.loads(path.read_bytes())
        body, named = str(told["statement"]).encode(), PublicKey.from_hex(str(told["server_key"]))
        signature = bytes.fromhex(str(told["signature"]))
        statement = json.loads(body)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ModelError(f"Expected a Confed release in {path.name}, got something else.") from None
    if key is not None and named != key:
        raise SecurityRefused(
            f"Expected a release signed by {key.fingerprint}, got one by {named.fingerprint}."
        )
    if not named.verifies(PURPOSE, body, signature):
        raise SecurityRefused(f"Expected the server's signature in {path.name}, it does not fit.")
    if not _is_statement(statement):
        raise ModelError(f"Expected a release of format {FORMAT} in {path.name}, got another.")
    return {**statement, "server_key": named.fingerprint}


def require_released(told: Mapping[str, Any], manifest: "Manifest") -> None:
    """Check that an adapter file is the one that a release is about, its manifest included.

    Args:
        told: a release that `read_release` gave.
        manifest: of the file, its tensors checked against it.

    Raises:
        SecurityRefused: other tensors, another plan, backbone or catalogs.
    """
    shown = {
        "adapter_sha256": manifest.sha256,
        "backbone_sha256": manifest.backbone_sha256,
        "catalogs": manifest.catalogs,
        "plan": manifest.plan.to_json(),
    }
    for name, value in shown.items():
        if told[name] != value:
            what = "tensors" if name == "adapter_sha256" else name.removesuffix("_sha256")
            raise SecurityRefused(f"Expected the adapter that was released, got other {what}.")


def _is_statement(statement: object) -> bool:
    """Whether everything that is shown of a release is there; anybody can sign anything."""
    if not isinstance(statement, dict) or statement.get("format") != FORMAT:
        return False
    sites = statement.get("sites")
    return _has(statement, _FIELDS) and all(_has(site, _SITE_FIELDS) for site in sites or ())


def _has(told: object, fields: Mapping[str, tuple[type, ...]]) -> bool:
    return isinstance(told, dict) and all(type(told.get(n)) in kinds for n, kinds in fields.items())


_FIELDS: Final[Mapping[str, tuple[type, ...]]] = {
    "adapter_sha256": (str,),
    "backbone_sha256": (str,),
    "catalogs": (dict,),
    "plan": (str,),
    "run": (str,),
    "rounds": (int,),
    "released_round": (int,),
    "ended": (str,),
    "aggregation": (str,),
    "sites": (list,),
}
_SITE_FIELDS: Final[Mapping[str, tuple[type, ...]]] = {
    "site": (str,),
    "domain": (str,),
    "epsilon": (int, float, type(None)),
    "delta": (int, float, type(None)),
}
