import copy
import pickle
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError, SecurityRefused
from common.signing import (
    ENTRY,
    RECEIPT,
    ROTATION,
    PublicKey,
    SigningKey,
    read_public_key,
    read_signing_key,
)

KEY, OTHER = SigningKey.generate(), SigningKey.generate()


@given(body=st.binary(max_size=200))
def test_a_signature_holds_for_its_body_purpose_and_key_alone(body: bytes) -> None:
    signature = KEY.sign(ENTRY, body)
    assert KEY.public.verifies(ENTRY, body, signature)
    assert not KEY.public.verifies(RECEIPT, body, signature)
    assert not KEY.public.verifies(ROTATION, body, signature)
    assert not OTHER.public.verifies(ENTRY, body, signature)
    assert not KEY.public.verifies(ENTRY, body + b"\0", signature)


@given(at=st.integers(0, 63), bit=st.integers(0, 7))
def test_a_signature_with_a_flipped_bit_is_none(at: int, bit: int) -> None:
    signature = bytearray(KEY.sign(ENTRY, b"entry"))
    signature[at] ^= 1 << bit
    assert not KEY.public.verifies(ENTRY, b"entry", bytes(signature))


@pytest.mark.parametrize("signature", [b"", b"\0" * 64, b"short", b"\xff" * 64, b"\0" * 65])
def test_bytes_of_any_length_are_no_signature_and_raise_nothing(signature: bytes) -> None:
    assert not KEY.public.verifies(ENTRY, b"entry", signature)


def test_a_purpose_is_not_the_beginning_of_a_body() -> None:
    """The zero byte parts them: no body can continue a purpose."""
    signature = KEY.sign("a", b"b")
    assert not KEY.public.verifies("a/v1\0b", b"", signature)
    assert not KEY.public.verifies("", b"a/v1\0b", signature)


@pytest.mark.parametrize("text", ["", "00", "g" * 64, "0" * 63, "0" * 66, "é" * 32])
def test_other_text_is_no_public_key(text: str) -> None:
    with pytest.raises(SecurityRefused, match="public key"):
        PublicKey.from_hex(text)


def test_public_keys_are_equal_by_their_bytes_and_told_apart_by_fingerprint() -> None:
    again = PublicKey.from_hex(KEY.public.hex)
    assert again == KEY.public
    assert again.fingerprint == KEY.public.fingerprint != OTHER.public.fingerprint
    assert [len(part) for part in again.fingerprint.split(":")] == [4, 4, 4, 4]


def test_a_key_comes_back_from_its_file_which_is_the_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    KEY.write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_signing_key(path).public == KEY.public
    (tmp_path / "public.pem").write_bytes(KEY.public.pem())
    assert read_public_key(tmp_path / "public.pem") == KEY.public


def test_a_key_file_is_never_overwritten_nor_written_through_a_link(tmp_path: Path) -> None:
    path, link = tmp_path / "key.pem", tmp_path / "link.pem"
    KEY.write(path)
    link.symlink_to(tmp_path / "nowhere.pem")
    for taken in (path, link, tmp_path / "no-folder" / "key.pem"):
        with pytest.raises(ConfigError, match="write a key"):
            OTHER.write(taken)
    assert read_signing_key(path).public == KEY.public
    assert not (tmp_path / "nowhere.pem").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o620, 0o601])
def test_a_key_that_others_may_touch_is_refused_with_the_command_that_mends_it(
    tmp_path: Path, mode: int
) -> None:
    path = tmp_path / "key.pem"
    KEY.write(path)
    path.chmod(mode)
    with pytest.raises(SecurityRefused, match="chmod 600"):
        read_signing_key(path)


def _pem(kind: str) -> bytes:
    none = serialization.NoEncryption()
    pkcs8, pem = serialization.PrivateFormat.PKCS8, serialization.Encoding.PEM
    if kind == "rsa":
        return generate_private_key(65537, 2048).private_bytes(pem, pkcs8, none)
    if kind == "encrypted":
        locked = serialization.BestAvailableEncryption(b"secret")
        return Ed25519PrivateKey.generate().private_bytes(pem, pkcs8, locked)
    texts = {
        "empty": b"",
        "text": b"-----BEGIN PRIVATE KEY-----\nnot base64\n-----END PRIVATE KEY-----\n",
        "binary": bytes(range(256)),
        "public": KEY.public.pem(),
    }
    return texts[kind]


@pytest.mark.parametrize("kind", ["rsa", "encrypted", "empty", "text", "binary", "public"])
def test_a_file_without_an_ed25519_private_key_is_named_and_its_content_is_not(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(_pem(kind))
    path.chmod(0o600)
    with pytest.raises(ConfigError) as caught:
        read_signing_key(path)
    assert str(caught.value) == f"Expected an Ed25519 private key in {path}, got something else."


@pytest.mark.parametrize("kind", ["rsa", "empty", "text", "binary"])
def test_a_file_without_an_ed25519_public_key_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(_pem(kind))
    with pytest.raises(ConfigError, match="Ed25519 public key"):
        read_public_key(path)


def test_a_private_key_is_not_taken_for_a_public_one(tmp_path: Path) -> None:
    KEY.write(tmp_path / "key.pem")
    with pytest.raises(ConfigError, match="Ed25519 public key"):
        read_public_key(tmp_path / "key.pem")


@pytest.mark.parametrize("path", ["missing.pem", "."])
def test_a_key_that_is_not_there_is_a_line_about_its_path(tmp_path: Path, path: str) -> None:
    with pytest.raises(ConfigError, match="found none"):
        read_signing_key(tmp_path / path)


def test_a_private_key_shows_nothing_and_is_not_pickled() -> None:
    assert KEY._key.private_bytes_raw().hex() not in repr(KEY) + str(vars(KEY))
    for copied in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            copied(KEY)
