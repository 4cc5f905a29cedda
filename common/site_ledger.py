"""A site's ledger in its folder: made once, opened by every process of the site.

Sensitive: `signing-key.pem`. Public: `ledger.jsonl` and `public-key.pem`.
"""

from pathlib import Path
from typing import Final

from common.caps import SiteCaps
from common.durable import sync_folder
from common.entries import is_name
from common.errors import ConfigError
from common.ledger import Ledger, create_ledger
from common.ledger_file import KEY_NAME, LEDGER_NAME, PUBLIC_NAME, LedgerFile
from common.signing import SigningKey, read_signing_key

NEXT_KEY_NAME: Final = "signing-key-next.pem"


def has_ledger(folder: Path) -> bool:
    """Whether a ledger was begun in a folder."""
    path = folder / LEDGER_NAME
    return path.is_file() and path.stat().st_size > 0


def open_ledger(folder: Path, *, site: str | None = None) -> Ledger:
    """The ledger of a site that was set up before.

    Args:
        folder: of ledger and keys.
        site: whose it must be; None takes any.

    Raises:
        ConfigError: there is none in the folder.
        SecurityRefused: it is damaged, or another site's.
    """
    if not has_ledger(folder):
        raise ConfigError(
            f"Expected a ledger in {folder}, found none; run: confed site init {folder} --site NAME"
        )
    ledger = Ledger(LedgerFile(folder), _key_in_force(folder))
    if site is not None and ledger.state().site != site:
        raise ConfigError(f"Expected the ledger of {site} in {folder}, got another site's.")
    return ledger


def _key_in_force(folder: Path) -> SigningKey:
    """The signing key; the next one where a rotation was cut short after it was recorded."""
    path, waiting = folder / KEY_NAME, folder / NEXT_KEY_NAME
    if waiting.exists():
        key = read_signing_key(waiting)
        lines = (folder / LEDGER_NAME).read_bytes().splitlines()
        if any(b'"kind":"key-rotate"' in x and key.public.hex.encode() in x for x in lines):
            waiting.replace(path)
            sync_folder(folder)
    return read_signing_key(path)


def rotate_key(folder: Path) -> Ledger:
    """Replace the site's signing key; the ledger records that both keys agree.

    Raises:
        ConfedError: as `open_ledger`.
    """
    ledger = open_ledger(folder)
    waiting = folder / NEXT_KEY_NAME
    waiting.unlink(missing_ok=True)  # left by a rotation that was never recorded
    key = SigningKey.generate()
    key.write(waiting)
    ledger.rotate(key)
    waiting.replace(folder / KEY_NAME)
    sync_folder(folder)
    return ledger


def start_ledger(folder: Path, *, site: str, caps: SiteCaps) -> Ledger:
    """Make a site's keys and an empty ledger.

    Raises:
        ConfigError: the name cannot stand in a ledger, or a file is there already.
    """
    if not is_name(site):
        raise ConfigError(
            f"Expected a site name of letters, digits, '.', '_' and '-', got {site!r}."
        )
    store, path = LedgerFile(folder), folder / KEY_NAME
    if not path.exists():  # it is there when an earlier attempt was cut short
        SigningKey.generate().write(path)
    key = read_signing_key(path)
    (folder / PUBLIC_NAME).write_bytes(key.public.pem())
    return create_ledger(store, site=site, caps=caps, key=key)
