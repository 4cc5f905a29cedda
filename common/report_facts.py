"""What only an organisation can say: the fields of GDPR articles 30 and 35, from a TOML file.

Public: what the file holds goes into the report as it stands. What is missing is shown as missing.
"""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from common.audit_files import read_plain
from common.entries import is_name
from common.errors import ConfigError

FACTS_BYTES: Final = 256 * 1024
FACT_CHARACTERS: Final = 4_000
TO_FILL: Final = "to be filled in by the controller"

FIELDS: Final[Mapping[str, Mapping[str, tuple[str, str]]]] = {
    "controller": {
        "name": ("Controller", "30(1)(a)"),
        "joint_controllers": ("Joint controllers", "30(1)(a)"),
        "representative": ("Representative", "30(1)(a)"),
        "contact": ("Contact", "30(1)(a)"),
        "data_protection_officer": ("Data protection officer", "30(1)(a)"),
    },
    "processing": {
        "purpose": ("Purpose of processing", "30(1)(b)"),
        "legal_basis": ("Legal basis", "6(1)"),
        "special_categories_basis": ("Basis for special categories", "9(2)"),
        "data_subjects": ("Categories of data subjects", "30(1)(c)"),
        "data_categories": ("Categories of personal data", "30(1)(c)"),
        "recipients": ("Recipients", "30(1)(d)"),
        "transfers": ("Transfers to third countries", "30(1)(e)"),
        "retention": ("Time limits for erasure", "30(1)(f)"),
        "security": ("Technical and organisational measures", "30(1)(g)"),
    },
    "assessment": {
        "necessity": ("Necessity and proportionality", "35(7)(b)"),
        "risks": ("Risks to rights and freedoms", "35(7)(c)"),
        "measures": ("Measures that address the risks", "35(7)(d)"),
        "advice": ("Advice of the data protection officer", "35(2)"),
        "views": ("Views of data subjects", "35(9)"),
    },
}
"""By table and key: label, and article of the GDPR."""
_SITE_KEYS: Final = ("controller", "subjects", "opt_outs")
_TEXTS: Final = ("title", "bundle_sha256")


@dataclass(frozen=True, kw_only=True)
class SiteFacts:
    """What a site says of itself.

    Attributes:
        controller: who answers for this site's records.
        subjects: a public upper figure, for delta times N; None when it is not said.
        opt_outs: people who opted out, a figure that is the site's own to publish.
    """

    controller: str = ""
    subjects: int | None = None
    opt_outs: int | None = None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the file says.

    Attributes:
        title: of the report; empty for the usual one.
        bundle_sha256: of the software bundle that the sites allow; empty when not said.
        fields: by (table, key).
        sites: by name.
    """

    title: str = ""
    bundle_sha256: str = ""
    fields: Mapping[tuple[str, str], str] = field(default_factory=dict)
    sites: Mapping[str, SiteFacts] = field(default_factory=dict)


def read_facts(path: Path) -> Facts:
    """Read a TOML file of facts.

    Raises:
        ConfigError: no such file, no TOML, an unknown key or a value of another kind.
        DataError: a file that is too long.
    """
    try:
        values = tomllib.loads(read_plain(path, FACTS_BYTES).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError):
        raise ConfigError(f"Expected TOML in {path}, got other text.") from None
    _known(values, (*_TEXTS, *FIELDS, "sites"), path)
    said: dict[tuple[str, str], str] = {}
    for table, keys in FIELDS.items():
        given = _table(values, table, path)
        _known(given, tuple(keys), path)
        said |= {(table, key): _text(given, key, path) for key in given}
    sites = _table(values, "sites", path)
    return Facts(
        title=_text(values, "title", path),
        bundle_sha256=_text(values, "bundle_sha256", path),
        fields=said,
        sites={name: _site(name, _table(sites, name, path), path) for name in sites},
    )


def _site(name: str, given: Mapping[str, Any], path: Path) -> SiteFacts:
    if not is_name(name):
        raise ConfigError(f"Expected a site's name after `sites.` in {path}, got other text.")
    _known(given, _SITE_KEYS, path)
    return SiteFacts(
        controller=_text(given, "controller", path),
        subjects=_count(given, "subjects", path),
        opt_outs=_count(given, "opt_outs", path),
    )


def _known(values: Mapping[str, Any], keys: Sequence[str], path: Path) -> None:
    for key in values:
        if key not in keys:
            close = difflib.get_close_matches(key, keys, n=1)
            hint = f"; did you mean {close[0]}?" if close else f": {', '.join(keys)}."
            raise ConfigError(f"Expected a known key in {path}, got {key[:60]!r}{hint}")


def _table(values: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    found = values.get(key, {})
    if not isinstance(found, dict):
        raise ConfigError(f"Expected [{key}] to be a table in {path}, got another value.")
    return found


def _text(values: Mapping[str, Any], key: str, path: Path) -> str:
    found = values.get(key, "")
    if not isinstance(found, str) or len(found) > FACT_CHARACTERS:
        raise ConfigError(f"Expected {key} as text of at most {FACT_CHARACTERS} in {path}.")
    return found.strip()


def _count(values: Mapping[str, Any], key: str, path: Path) -> int | None:
    found = values.get(key)
    if found is not None and (type(found) is not int or not 0 <= found <= 10**10):
        raise ConfigError(f"Expected {key} as a whole number of 0 or more in {path}.")
    return found
