"""A site's ledger in its folder: made once, opened by every process of the site.

Sensitive: `signing-key.pem`. Public: `ledger.jsonl` and `public-key.pem`.
"""

from pathlib import Path

from common.caps import SiteCaps
from common.entries import is_name
from common.errors import ConfigError
from common.ledger import Ledger, create_ledger
from common.ledger_file import KEY_NAME, LEDGER_NAME, PUBLIC_NAME, LedgerFile
from common.signing import SigningKey, read_signing_key


def has_ledger(folder: Path) -> bool:
    """Whether a ledger was begun in a folder."""
    path = folder / LEDGER_NAME
    return path.is_file() and path.stat().st_size > 0


def open_ledger(folder: Path, *, site: str) -> Ledger:
    """The ledger of a site that was set up before.

    Raises:
        ConfigError: there is none in the folder.
        SecurityRefused: it is damaged, or another site's.
    """
    if not has_ledger(folder):
        raise ConfigError(
            f"Expected a ledger in {folder}, found none; run: confed site init {folder} --site NAME"
        )
    ledger = Ledger(LedgerFile(folder), read_signing_key(folder / KEY_NAME))
    if ledger.state().site != site:
        raise ConfigError(f"Expected the ledger of {site} in {folder}, got another site's.")
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
