"""The bytes of releases: kept before they are sent, so that a crash costs no second noise."""

import hashlib

from common.chain import Asked, Released
from common.errors import PrivacyRefused


def kept_name(asked: Asked) -> str:
    """Under which name the bytes of a release lie."""
    run, number, purpose = asked
    return f"{run}-{number:06d}-{purpose}"


def sent_again(released: Released, payload: bytes | None, model_sha256: str) -> bytes:
    """The bytes of a release, if they answer the same order and are the ones that were released.

    Raises:
        PrivacyRefused: another model, or the bytes are gone.
    """
    if released.model_sha256 != model_sha256:
        raise PrivacyRefused(
            "Expected the model that this round was answered for, got another: its noise would "
            "not be in the plan."
        )
    if payload is None or hashlib.sha256(payload).hexdigest() != released.payload_sha256:
        raise PrivacyRefused("Expected the stored bytes of a released round, they are gone.")
    return payload
