"""The report: one page, nothing from outside, safe with hostile names, plain words."""

import dataclasses
import html
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from simulations.report import command, epsilon_words, render_report, write_report, write_run
from simulations.results import SCOPE, RunResult, SiteResult
from tests.simulations.runs import run, with_site_name

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Page(HTMLParser):
    """Collects what a browser would fetch, run and show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        wanted = ("src", "href", "xlink:href", "srcset", "data", "action")
        self.links += [value or "" for name, value in attrs if name in wanted]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page() -> str:
    return render_report(run(), files=("metrics.csv", "summary.json"))


def with_epsilon(result: RunResult, epsilon: float) -> RunResult:
    sites: tuple[SiteResult, ...] = tuple(
        dataclasses.replace(site, epsilon=epsilon) for site in result.sites
    )
    return dataclasses.replace(result, sites=sites)


def test_nothing_is_loaded_from_outside(page: str) -> None:
    links = Page(page).links
    assert links
    assert [link for link in links if re.match(r"(?!data:)[a-z]+:|//", link)] == []
    assert "url(http" not in page
    assert "@import" not in page


def test_no_script_is_in_the_page_and_none_may_run(page: str) -> None:
    assert "script" not in Page(page).tags
    assert "default-src 'none'" in page


def test_hostile_site_names_are_text() -> None:
    names = ("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "\"'><b>x", "--><svg>")
    calm = run("care")
    sites = tuple(
        dataclasses.replace(site, site=name) for site, name in zip(calm.sites, names, strict=True)
    )
    parsed = Page(render_report(dataclasses.replace(calm, sites=sites)))
    assert all(name in parsed.text for name in names)
    assert {"script", "img"}.isdisjoint(parsed.tags)
    assert parsed.tags.count("b") == Page(render_report(calm)).tags.count("b")


def test_hostile_settings_title_claim_and_domain_are_text() -> None:
    evil = "<script>alert(1)</script>"
    base = run("care")
    result = dataclasses.replace(
        base,
        title=evil,
        claim=evil,
        scenario=evil,
        settings={evil: evil},
        accounting={evil: evil},
        domains={evil: base.domains["care"]},
        intervals={evil: (0.0, 1.0)},
        transfer={evil: {"care": 0.1}},
    )
    assert "script" not in Page(render_report(result, files=(evil,))).tags


def test_the_page_says_scope_claim_settings_and_files(page: str) -> None:
    text = " ".join(Page(page).text.split())
    for words in (
        SCOPE,
        "seeded noise: no privacy claim",
        "subtract the noise",
        "FFA-LoRA, r=8",
        "every metric of every method",
        "confed simulate care-and-bank --seed 7",
        "cold subjects",
        "95% interval",
    ):
        assert words in text


def test_the_smaller_accountant_is_the_one_marked_as_reported(page: str) -> None:
    assert re.search(r"privacy loss distribution[^/]*</td><td>3\.987</td><td[^>]*>reported", page)
    other = dataclasses.replace(run(), accounting={"pld": 4.2, "rdp": 4.0821, "opacus": 4.1})
    assert re.search(r"Rényi[^/]*</td><td>4\.082</td><td[^>]*>reported", render_report(other))


def test_epsilon_is_explained_for_one_person() -> None:
    words = epsilon_words(with_epsilon(run(), 1.0))
    assert "one patient or customer" in words
    assert "at most 2.72" in words
    assert "1 in 100,000" in words


@pytest.mark.parametrize(("epsilon", "words"), [(math.inf, "without protection"), (800, "nothing")])
def test_an_epsilon_that_protects_nobody_is_called_so(epsilon: float, words: str) -> None:
    assert words in epsilon_words(with_epsilon(run(), epsilon))
    assert "noise added" not in render_report(with_epsilon(run("care"), math.inf))


def test_secret_noise_is_not_called_seeded() -> None:
    result = dataclasses.replace(run("care"), claim="every subject: (3.99, 1e-05)-DP")
    assert "subtract the noise" not in render_report(result)


def test_the_command_of_the_settings_wins_and_names_are_quoted() -> None:
    assert command(dataclasses.replace(run(), settings={"command": "confed simulate x"})) == (
        "confed simulate x"
    )
    assert "'a; rm b'" in command(dataclasses.replace(run(), scenario="a; rm b"))


def test_the_page_copes_without_baselines_curve_and_accounting() -> None:
    result = dataclasses.replace(
        run(methods=("federated",)), curve=(), accounting={}, settings={}, claim=""
    )
    parsed = Page(render_report(result))
    assert "—" in parsed.text
    assert "How the privacy was accounted" not in parsed.text
    assert parsed.tags.count("figure") == 2  # by round, and what hostile sites did


def test_a_run_without_sites_still_has_a_page() -> None:
    bare = dataclasses.replace(run(), sites=(), domains={}, transfer={}, curve=(), intervals={})
    assert "What was found" in render_report(bare)


def test_write_run_writes_all_and_the_page_lists_the_files(tmp_path: Path) -> None:
    paths = write_run(run("care"), tmp_path / "results" / "care")
    names = {path.name for path in paths}
    assert {"summary.json", "metrics.csv", "report.html", "methods.png"} <= names
    assert all(path.stat().st_size > 500 for path in paths)
    links = Page(paths[-1].read_text()).links
    assert names - {"report.html"} <= set(links)
    assert (tmp_path / "results" / "care" / "report.html").stat().st_size < 2_000_000


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_shows_the_page_without_errors(tmp_path: Path) -> None:
    path = write_report(with_site_name(run(), "<script>alert(1)</script>"), tmp_path)
    done = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    assert html.escape("<script>alert(1)</script>") in done.stdout
    assert Page(done.stdout).tags.count("svg") == 10
