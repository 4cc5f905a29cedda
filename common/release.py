"""A signed statement beside an adapter: which rounds, sites, hashes and epsilon stand behind it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from common.entries import canonical
from common.errors import ModelError, SecurityRefused
from common.limits import LIMITS
from common.signing import PublicKey, SigningKey

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
    if not isinstance(statement, dict) or statement.get("format") != FORMAT:
        raise ModelError(f"Expected a release of format {FORMAT} in {path.name}, got another.")
    return {**statement, "server_key": named.fingerprint}
