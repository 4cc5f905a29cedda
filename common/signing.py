"""Ed25519 keys of sites and servers, and signatures that say what they are for.

Sensitive: private keys, files of mode 0600. Public: everything else. A signature covers
`confed/PURPOSE/v1`, a zero byte and the body, so that none can be passed off as another kind.
"""

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from common.errors import ConfigError, SecurityRefused

ENTRY: Final = "ledger-entry"
ROTATION: Final = "ledger-key-rotation"
RECEIPT: Final = "ledger-receipt"
KEY_FILE_BYTES: Final = 4096
"""Largest key file read."""


def _message(purpose: str, body: bytes) -> bytes:
    return f"confed/{purpose}/v1".encode() + b"\0" + body


@dataclass(frozen=True)
class PublicKey:
    """Verifies; equal when the 32 bytes are.

    Attributes:
        raw: 32 bytes of RFC 8032.
    """

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != 32:
            raise SecurityRefused(f"Expected a public key of 32 bytes, got {len(self.raw)}.")
        object.__setattr__(self, "_key", Ed25519PublicKey.from_public_bytes(self.raw))

    @classmethod
    def from_hex(cls, text: str) -> "PublicKey":
        """The key in 64 hexadecimal digits.

        Raises:
            SecurityRefused: other text.
        """
        try:
            return cls(bytes.fromhex(text))
        except ValueError:
            raise SecurityRefused("Expected a public key as 64 hexadecimal digits.") from None

    @property
    def hex(self) -> str:
        """64 hexadecimal digits."""
        return self.raw.hex()

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of SHA-256 in groups of four, to be read out on the phone."""
        digest = hashlib.sha256(self.raw).hexdigest()[:16]
        return ":".join(digest[i : i + 4] for i in range(0, 16, 4))

    def verifies(self, purpose: str, body: bytes, signature: bytes) -> bool:
        """Whether the key's owner signed this body for this purpose."""
        key: Ed25519PublicKey = self._key  # type: ignore[attr-defined]
        try:
            key.verify(signature, _message(purpose, body))
        except InvalidSignature:
            return False
        return True

    def pem(self) -> bytes:
        """SubjectPublicKeyInfo in PEM, as openssl reads it."""
        key: Ed25519PublicKey = self._key  # type: ignore[attr-defined]
        return key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )


class SigningKey:
    """A private key; neither printed nor copied by accident."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        raw = key.public_key().public_bytes(
            serialization.Encoding.Raw, serialization.PublicFormat.Raw
        )
        self.public = PublicKey(raw)

    @classmethod
    def generate(cls) -> "SigningKey":
        """A new key from the operating system's generator."""
        return cls(Ed25519PrivateKey.generate())

    def sign(self, purpose: str, body: bytes) -> bytes:
        """64 bytes over purpose and body."""
        return self._key.sign(_message(purpose, body))

    def __reduce__(self) -> NoReturn:
        raise TypeError("A private key is never copied; read it from its file.")

    def write(self, path: Path) -> None:
        """Write the key as PEM, mode 0600, never over another file.

        Raises:
            ConfigError: the file is there already, or its folder cannot be written to.
        """
        data = self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        try:
            number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise ConfigError(
                f"Expected to write a key to {path}, got '{error.strerror}'."
            ) from None
        with os.fdopen(number, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def read_signing_key(path: Path) -> SigningKey:
    """A private key from a file that only its owner may read.

    Raises:
        ConfigError: no such file, or not an Ed25519 key.
        SecurityRefused: others may read the file.
    """
    data = _read(path)
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise SecurityRefused(f"Expected {path} to be its owner's alone; run: chmod 600 {path}")
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"Expected an Ed25519 private key in {path}, got something else.")
    return SigningKey(key)


def read_public_key(path: Path) -> PublicKey:
    """A public key from a PEM file.

    Raises:
        ConfigError: no such file, or not an Ed25519 key.
    """
    data = _read(path)
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"Expected an Ed25519 public key in {path}, got something else.")
    return PublicKey(key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw))


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise ConfigError(f"Expected a key file at {path}, found none.")
        with path.open("rb") as file:
            return file.read(KEY_FILE_BYTES)
    except OSError as error:
        raise ConfigError(f"Expected to read {path}, got '{error.strerror}'.") from None
