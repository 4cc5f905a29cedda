"""`confed audit report` on disk: what goes with the ledgers is read, the page and PDF written."""

import io
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from common.audit import Audit
from common.audit_files import read_json
from common.durable import write_atomic
from common.errors import ConfigError, DataError
from common.report_facts import Facts, read_facts
from common.report_page import Sources, render

PDF_PACKAGES: Final = "apt-get install libpango-1.0-0 libpangoft2-1.0-0 libharfbuzz-subset0"


def write_report(
    audit: Audit, paths: Sequence[str], files: Mapping[str, Path | None]
) -> tuple[Path, ...]:
    """Write the page and, if asked for, the PDF; return what was written.

    Args:
        audit: what was found.
        paths: as the command line named them.
        files: `out`, and `pdf`, `empirical`, `summary`, `site_facts` or None.

    Raises:
        ConfigError: a file cannot be read or written, or the PDF's libraries are missing.
        DataError: a file of another layout.
    """
    out, pdf, facts = files["out"], files.get("pdf"), files.get("site_facts")
    if out is None:
        raise ConfigError("Expected --out FILE, got none.")
    sources = Sources(
        audit=audit,
        paths=paths,
        made=datetime.now(UTC),
        empirical=read_empirical(files.get("empirical")),
        summary=_read(files.get("summary"), "a simulation's summary"),
        facts=Facts() if facts is None else read_facts(facts),
    )
    contents = {out: render(sources).encode()}
    if pdf is not None:
        contents[pdf] = to_pdf(render(sources, paper=True))
    for path, content in contents.items():
        _write(path, content)
    return tuple(contents)


def read_empirical(path: Path | None) -> dict[str, Any] | None:
    """What `confed audit empirical` found; None when no file is named.

    Raises:
        DataError: another layout.
    """
    found = _read(path, "what `confed audit empirical` found")
    if found is None:
        return None
    try:
        whole = found["format"] == "confed-empirical-1" and all(
            map(_is_tier, found["tiers"].items())
        )
        whole = whole and isinstance(found["mechanism"], str) and isinstance(found["note"], str)
    except (KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise DataError(
            f"Expected the format confed-empirical-1 in {path}, got another; run "
            "`confed audit empirical --out DIR`."
        )
    return found


def _is_tier(named: tuple[str, Any]) -> bool:
    name, tier = named
    texts = ("name", "figure", "passes_at", "verdict")
    checks = all(
        isinstance(check["passed"], bool) and all(isinstance(check[key], str) for key in texts)
        for check in tier["checks"]
    )
    return (
        name in {"a", "b", "c"}
        and isinstance(tier["title"], str)
        and checks
        and all(map(_is_probe, tier.get("probes", [])))
    )


def _is_probe(probe: Mapping[str, Any]) -> bool:
    numbers = [probe[key] for key in ("epsilon_probe", "m", "r")]
    numbers += [*probe["v"], *probe["epsilon_hat"]]
    numbers += [probe["power"][key] for key in ("no_noise", "noise_share_caught")]
    return (
        bool(probe["v"])
        and bool(probe["epsilon_hat"])
        and all(isinstance(number, int | float) for number in numbers)
    )


def to_pdf(page: str) -> bytes:
    """Set the paper form of the report as PDF; nothing is fetched.

    Raises:
        ConfigError: the system lacks the libraries that WeasyPrint sets text with.
    """
    try:
        from weasyprint import HTML  # noqa: PLC0415
    except OSError:
        raise ConfigError(
            f"Expected the library pango for --pdf, found none; run: {PDF_PACKAGES}"
        ) from None
    except ModuleNotFoundError:
        raise ConfigError(
            "Expected the package weasyprint for --pdf, got none; run: pip install 'confed[report]'"
        ) from None
    target = io.BytesIO()
    HTML(string=page, url_fetcher=_fetch_nothing).write_pdf(target)
    return target.getvalue()


def _fetch_nothing(url: str, *_: object, **__: object) -> dict[str, Any]:
    raise ValueError(f"a report loads nothing, got {url[:40]}")


def _read(path: Path | None, what: str) -> dict[str, Any] | None:
    return None if path is None else read_json(path, what=what)


def _write(path: Path, content: bytes) -> None:
    try:
        write_atomic(path, content)
    except OSError as error:
        raise ConfigError(
            f"Expected to write {path}, got '{error.strerror}'; give another file."
        ) from None
