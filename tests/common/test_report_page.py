"""The report as a page: nothing from outside, hostile text is text, and it says what it must."""

import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from common.audit import Audit, LedgerInput, audit
from common.report_facts import Facts, SiteFacts
from common.report_page import Sources, render
from tests.common.test_report_content import check, empirical
from tests.ledgers import Made, Run, make_consortium, make_ledger

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """Collects what a browser would fetch, run and show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.shown: list[str] = []
        self._hidden = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._hidden += tag in ("style", "defs")
        wanted = ("src", "href", "xlink:href", "srcset", "data", "action")
        self.links += [value or "" for name, value in attrs if name in wanted]

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("style", "defs")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.shown.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.shown).split())


def sources(*sites: Made, **options: Any) -> Sources:
    found = audit([LedgerInput(where=m.site, data=m.data, key=m.key.public) for m in sites])
    made = datetime(2026, 3, 9, 12, 0, tzinfo=UTC)
    return Sources(audit=found, paths=["ledgers"], made=made, **options)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    folder = tmp_path_factory.mktemp("many")
    sites, receipts = make_consortium(folder, run=Run(rounds=4, evaluate=40.0))
    inputs = [LedgerInput(where=m.site, data=m.data, key=m.key.public) for m in sites]
    found: Audit = audit(inputs, receipts=receipts, sites_per_subject=2)
    return replace(sources(*sites), audit=found)


@pytest.fixture(scope="module")
def page(several: Sources) -> str:
    return render(several)


@pytest.mark.parametrize("paper", [False, True], ids=["screen", "paper"])
def test_nothing_is_loaded_from_outside(several: Sources, paper: bool) -> None:
    text = render(several, paper=paper)
    links = Page(text).links
    assert links
    assert [link for link in links if re.match(r"(?!data:)[a-z]+:|//", link)] == []
    assert "url(http" not in text
    assert "@import" not in text
    assert "script" not in Page(text).tags
    assert "default-src 'none'" in text


def test_the_page_says_what_a_report_has_to_say(page: str, several: Sources) -> None:
    shown = Page(page).text
    for words in (
        "What this means for one patient or customer",
        "Unit: the person",
        "one person added or removed",
        "dp-accounting",
        "a person at 2 sites",
        "plan against actual",
        "answered",
        "refused request writes nothing",
        "confed audit verify ledgers --sites-per-subject 2",
        "the server, the other sites and the network are not trusted",
        "NIST SP 800-226",
        "not run: run confed audit empirical",
        "Article 30",
        "Article 35",
        "to be filled in by the controller",
        "Opt-outs",
        "Software bundle",
        "2222222222222222",
        "cryptography",
        "What this report does not show",
        "Receipts of 4 rounds were compared between sites, and the common hash of 4",
    ):
        assert words in shown, words
    for site in several.audit.sites:
        assert site.key.fingerprint in shown
        assert site.verdict.head in shown


def test_every_picture_is_drawn_for_a_page_and_for_a_phone(page: str) -> None:
    assert Page(page).tags.count("svg") == 8
    assert Page(page).tags.count("figcaption") == 4


def test_on_paper_pictures_stand_once_and_have_colours_of_their_own(several: Sources) -> None:
    text = render(several, paper=True)
    assert Page(text).tags.count("svg") == 4
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert "var(--" not in drawn
    assert "prefers-color-scheme" not in text


def test_secret_noise_and_whole_ledgers_have_no_banner(page: str) -> None:
    assert 'role="alert"' not in page


def test_seeded_noise_is_said_on_top_in_red(tmp_path: Path) -> None:
    text = render(sources(make_ledger(tmp_path, runs=(Run(rounds=2),), seeded=True)))
    banner = text.index('class="banner"')
    assert banner < text.index("ε ≤")
    assert "No privacy claim." in text[banner : banner + 200]
    assert re.search(r"\.banner b \{ color: var\(--bad\)", text)
    assert "if the noise were secret" in Page(text).text


def test_faults_are_said_on_top_and_listed_by_entry(tmp_path: Path) -> None:
    made = make_ledger(tmp_path, runs=(Run(rounds=30, noise=3.0),))
    lines = made.data.splitlines(keepends=True)
    made.path.write_bytes(b"".join([*lines[:4], *lines[5:]]))
    text = render(sources(made))
    shown = Page(text).text
    assert "This ledger does not verify." in shown
    assert "Faults in the ledger of clinic-1" in shown
    assert "expected seq 4, got 5" in shown
    assert "more, which may follow from the first" in shown


@pytest.mark.parametrize("data", [b"", b"{}\n", b"\0\n"])
def test_a_ledger_of_nothing_still_has_a_report(tmp_path: Path, data: bytes) -> None:
    made = make_ledger(tmp_path, runs=())
    made.path.write_bytes(data)
    shown = Page(render(sources(made))).text
    assert "This ledger does not verify." in shown
    assert "nothing was planned" in shown


def test_a_ledger_that_spent_nothing_yet_has_a_report(tmp_path: Path) -> None:
    shown = Page(render(sources(make_ledger(tmp_path, runs=())))).text
    assert "ε ≤ 0.00" in shown
    assert "the ledger verifies" in shown


def test_hostile_facts_and_results_are_text(several: Sources) -> None:
    fields = {("controller", "name"): EVIL, ("assessment", "risks"): EVIL}
    facts = Facts(
        title=EVIL,
        bundle_sha256=EVIL,
        fields=fields,
        sites={"bank-1": SiteFacts(controller=EVIL, subjects=5)},
    )
    found = empirical(a=[check(EVIL, passed=False)], c=[{**check("x"), "figure": EVIL}])
    summary = {"domains": {EVIL: {"metrics": {}}}}
    hostile = replace(
        several,
        facts=facts,
        empirical={**found, "mechanism": EVIL},
        summary=summary,
        paths=[EVIL],
    )
    for paper in (False, True):
        parsed = Page(render(hostile, paper=paper))
        assert {"script", "img"}.isdisjoint(parsed.tags)
        assert parsed.text.count("alert(1)") >= 8


def test_what_the_controller_said_stands_in_its_place(several: Sources) -> None:
    facts = Facts(
        title="Follow-up care",
        fields={("processing", "retention"): "five years"},
        sites={"bank-1": SiteFacts(subjects=2100, opt_outs=7)},
    )
    text = render(replace(several, facts=facts))
    assert "<h1>Follow-up care</h1>" in text
    assert "five years" in text
    assert re.search(r"bank-1</td>.*?<td>0\.021</td>", text)
    assert re.search(r"bank-1</td><td>0</td><td>7</td>", text)


def test_measured_attacks_stand_beside_the_warning(several: Sources) -> None:
    found = empirical(b=[check("ε̂ at claimed ε = 1")])
    power = {"no_noise": 5.1, "correct": 0.4, "noise_share_caught": 0.55}
    probe = {"epsilon_probe": 1.0, "m": 1000, "r": 300, "v": [170, 181], "epsilon_hat": [0.1, 0.41]}
    found["tiers"]["b"]["probes"] = [{**probe, "power": power}]
    shown = Page(render(replace(several, empirical={**found, "confidence": 0.95}))).text
    for words in ("a lower bound is not a proof of privacy", "0.410", "181", "55% of the noise"):
        assert words in shown
    assert "confidence of one run 95%" in shown


def test_more_sites_than_colours_are_all_in_the_report(tmp_path: Path) -> None:
    sites = [
        make_ledger(tmp_path / f"s{i}", site=f"s{i}", runs=(Run(rounds=4, noise=2.0 + i / 10),))
        for i in range(8)
    ]
    text = render(sources(*sites))
    assert all(f">s{i}</td>" in text for i in range(8))
