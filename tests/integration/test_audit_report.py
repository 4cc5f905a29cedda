"""`confed audit report` by command line, shown by a real browser and set as a real PDF."""

import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ledgers import Run, make_consortium, make_ledger

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PDFTOTEXT = shutil.which("pdftotext")
BROWSER = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
)
LACKING = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise {error}

sys.meta_path.insert(0, Absent())
from common.cli import main
main(sys.argv[1:])
"""
MISSING = 'ModuleNotFoundError(f"No module named {name!r}", name=name)'


def report(*words: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(
        [sys.executable, "-m", "common.cli", "audit", "report", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ended.returncode == status, ended.stderr
    return ended


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A consortium's page and PDF."""
    folder = tmp_path_factory.mktemp("report")
    make_consortium(folder, run=Run(rounds=6, evaluate=40.0), seeded=True)
    facts = folder / "facts.toml"
    facts.write_text('title = "Follow-up care"\n[processing]\nretention = "five years"\n')
    summary = folder / "summary.json"
    metrics = {"federated": {"ndcg@10": 0.29}, "local": {"ndcg@10": 0.26}}
    summary.write_text(json.dumps({"domains": {"care": {"metrics": metrics}}}))
    options = ["--site-facts", facts, "--summary", summary, "--sites-per-subject", "2"]
    out = ["--out", folder / "page.html", "--pdf", folder / "page.pdf"]
    assert report(folder, *options, *out).stdout.split() == [str(out[1]), str(out[3])]
    return folder


def browse(page: Path, profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(CHROMIUM), *BROWSER, f"--user-data-dir={profile}", *options, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_shows_the_page_without_a_complaint(written: Path, tmp_path: Path) -> None:
    done = browse(written / "page.html", tmp_path, "--dump-dom")
    assert "CONSOLE" not in done.stderr
    shown = html.unescape(re.sub(r"<[^>]+>", " ", done.stdout))
    for words in ("No privacy claim.", "Follow-up care", "five years", "0.290", "ε ≤"):
        assert words in shown
    assert done.stdout.count("<svg") == 8


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize(("width", "plots"), [(1100, "wide"), (500, "narrow")])
def test_no_page_is_wider_than_its_window(
    written: Path, tmp_path: Path, width: int, plots: str
) -> None:
    # Measured in the page by a copy that may run scripts: the report itself allows none.
    text = (written / "page.html").read_text()
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    probe = (
        "<script>const shown = n => document.querySelectorAll(n)[0].getClientRects().length;"
        "document.body.setAttribute('data-seen', JSON.stringify([document.documentElement"
        ".scrollWidth, window.innerWidth, shown('.wide'), shown('.narrow')]))</script></body>"
    )
    copy = tmp_path / "copy.html"
    copy.write_text(text.replace("</body>", probe))
    done = browse(copy, tmp_path / "p", f"--window-size={width},900", "--dump-dom")
    seen = re.search(r'data-seen="([^"]+)"', done.stdout)
    assert seen is not None
    across, window, wide, narrow = json.loads(html.unescape(seen[1]))
    assert across <= window <= width
    assert (wide, narrow) == ((1, 0) if plots == "wide" else (0, 1))


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_picture_of_the_page_is_neither_blank_nor_without_its_red(
    written: Path, tmp_path: Path
) -> None:
    image = pytest.importorskip("PIL.Image")
    shot = tmp_path / "shot.png"
    browse(written / "page.html", tmp_path / "p", "--window-size=1100,900", f"--screenshot={shot}")
    with image.open(shot) as picture:
        colours = dict((c, n) for n, c in picture.convert("RGB").getcolors(1 << 24))
    assert len(colours) > 50
    red = sum(n for (r, g, b), n in colours.items() if r > 150 and g < 60 and b < 60)
    assert red > 500


@pytest.mark.skipif(PDFTOTEXT is None, reason="pdftotext is not installed")
def test_the_pdf_says_the_same_and_numbers_its_pages(written: Path) -> None:
    done = subprocess.run(
        [str(PDFTOTEXT), "-layout", str(written / "page.pdf"), "-"],
        capture_output=True,
        text=True,
        check=True,
    )
    for words in ("No privacy claim.", "Follow-up care", "five years", "What this report does not"):
        assert words in done.stdout
    pages = done.stdout.count("\f")
    assert pages >= 4
    assert re.search(rf"\b{pages} ?/ ?{pages}\b", done.stdout)


def test_a_fault_is_in_the_report_and_in_the_exit_status(tmp_path: Path) -> None:
    made = make_ledger(tmp_path / "site", runs=(Run(rounds=2),))
    made.path.write_bytes(made.data[:-1])
    report(tmp_path / "site", "--out", tmp_path / "page.html", status=1)
    assert "does not verify" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    "words",
    [
        ["{site}"],
        ["nowhere", "--out", "{out}"],
        ["{site}", "--out", "{site}/ledger.jsonl/page.html"],
        ["{site}", "--out", "{out}", "--empirical", "{site}/ledger.jsonl"],
        ["{site}", "--out", "{out}", "--empirical", "nowhere.json"],
        ["{site}", "--out", "{out}", "--summary", "{site}/public-key.pem"],
        ["{site}", "--out", "{out}", "--site-facts", "{site}/ledger.jsonl"],
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path: Path, words: list[str]) -> None:
    make_ledger(tmp_path / "site", runs=(Run(rounds=1),))
    out = tmp_path / "page.html"
    told = [word.format(site=tmp_path / "site", out=out) for word in words]
    ended = report(*told, status=2)
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    assert "Traceback" not in ended.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("absent", "error", "says"),
    [
        ({"jinja2"}, MISSING, "jinja2 for `confed audit report`"),
        ({"matplotlib"}, MISSING, "pip install 'confed[report]'"),
        ({"weasyprint"}, MISSING, "weasyprint"),
        ({"weasyprint"}, "OSError('cannot load library libpango-1.0-0')", "apt-get install"),
    ],
    ids=["jinja2", "matplotlib", "weasyprint", "pango"],
)
def test_what_is_not_installed_is_named_in_one_line(
    tmp_path: Path, absent: set[str], error: str, says: str
) -> None:
    made = make_ledger(tmp_path / "site", runs=(Run(rounds=1),))
    pdf = ["--pdf", str(tmp_path / "page.pdf")] if "weasyprint" in absent else []
    code = LACKING.replace("{absent!r}", repr(absent)).replace("{error}", error)
    words = [str(made.folder), "--out", str(tmp_path / "page.html"), *pdf]
    ended = subprocess.run(
        [sys.executable, "-c", code, "audit", "report", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert says in ended.stderr
    assert not (tmp_path / "page.html").exists()
