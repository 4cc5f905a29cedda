"""The ledger rows of the bad-input list through `confed site` and `confed audit`.

One line, exit 2 or 3 (an audit that finds a fault ends with 1), ledger bytes unchanged.
"""

import fcntl
import json
import os
import shutil
from pathlib import Path

import pytest

from common import ledger_file
from common.caps import SiteCaps
from common.cli import main
from common.ledger import PlanRequest
from common.mechanism import Gaussian, PoissonSampled
from common.randomness import SecureRandomness
from common.signing import SigningKey
from common.site_ledger import open_ledger, start_ledger

STEP = PoissonSampled(sample_rate=0.25, event=Gaussian(noise_multiplier=2.0))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site with three rounds behind it."""
    folder = tmp_path_factory.mktemp("site") / "ledger"
    ledger = start_ledger(folder, site="north", caps=SiteCaps(epsilon=3.0, delta=1e-5))
    request = PlanRequest(
        run="1", events={"train": (STEP, 10)}, max_grad_norm=1.0, plan_sha256="1" * 64
    )
    ledger.plan(request)
    for number in (1, 2, 3):
        grant = ledger.reserve(
            run="1", number=number, model_sha256="2" * 64, randomness=SecureRandomness()
        )
        ledger.release(grant, b"payload")
    return folder


@pytest.fixture
def site(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "ledger"))


def said(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    return int(stopped.value.code or 0), shown.err or shown.out


def lines_of(site: Path) -> list[bytes]:
    return (site / "ledger.jsonl").read_bytes().splitlines(keepends=True)


def flipped(site: Path) -> None:
    data = bytearray((site / "ledger.jsonl").read_bytes())
    data[len(data) // 2] ^= 1
    (site / "ledger.jsonl").write_bytes(data)


def without_a_line(site: Path) -> None:
    lines = lines_of(site)
    (site / "ledger.jsonl").write_bytes(b"".join(lines[:3] + lines[4:]))


def unknown_event(site: Path) -> None:
    lines = lines_of(site)
    plain = json.loads(lines[2])
    plain["event"] = {"kind": "laplace", "module_name": "os", "scale": 1}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()
    (site / "ledger.jsonl").write_bytes(b"".join([*lines[:2], text + b"\n", *lines[3:]]))


def foreign_key(site: Path) -> None:
    (site / "signing-key.pem").unlink()
    SigningKey.generate().write(site / "signing-key.pem")


def readable_key(site: Path) -> None:
    (site / "signing-key.pem").chmod(0o644)


def no_key(site: Path) -> None:
    (site / "signing-key.pem").unlink()


def no_ledger(site: Path) -> None:
    (site / "ledger.jsonl").unlink()


def linked(site: Path) -> None:
    (site / "ledger.jsonl").rename(site / "elsewhere.jsonl")
    (site / "ledger.jsonl").symlink_to(site / "elsewhere.jsonl")


def not_text(site: Path) -> None:
    (site / "ledger.jsonl").write_bytes(b"\xff\xfe\x00junk\n")


DAMAGE = {
    flipped: (3, "entry"),
    without_a_line: (3, "entry 3"),
    unknown_event: (3, "entry 2"),
    foreign_key: (3, "signing key"),
    readable_key: (3, "chmod 600"),
    no_key: (2, "key file"),
    no_ledger: (2, "confed site init"),
    linked: (3, "plain file"),
    not_text: (3, "entry 0"),
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_site_is_refused_in_one_line_and_left_as_it_is(
    damage: object, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(site)  # type: ignore[operator]
    path = site / "ledger.jsonl"
    before = path.read_bytes() if path.exists() else b""
    status, told = said(capsys, "site", "budget", site)
    wanted, part = DAMAGE[damage]  # type: ignore[index]
    assert status == wanted, told
    assert told.startswith("confed: ") and told.count("\n") == 1, told
    assert part in told
    assert (path.read_bytes() if path.exists() else b"") == before


def test_a_torn_last_line_is_set_aside_and_kept_beside_the_ledger(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = site / "ledger.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole[-300:-40])
    status, told = said(capsys, "audit", "verify", site)
    assert status == 1 and "entry 8" in told
    assert said(capsys, "site", "budget", site)[0] == 0
    assert path.read_bytes() == whole
    assert any(p.read_bytes() == whole[-300:-40] for p in site.glob("torn-*"))


def test_a_plan_over_the_budget_says_needed_and_left(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (site / "ledger.jsonl").read_bytes()
    status, _ = said(
        capsys, "site", "plan", site, "--rounds", "500", "--noise-multiplier", "2.0", "--json"
    )
    assert status == 3
    with pytest.raises(SystemExit):
        main(["site", "plan", str(site), "--rounds", "500", "--noise-multiplier", "2.0"])
    told = capsys.readouterr().err
    assert "needed" in told and "left" in told and told.count("\n") == 1
    assert (site / "ledger.jsonl").read_bytes() == before


def test_a_second_process_on_one_ledger_waits_and_then_says_so(
    site: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_file, "LOCK_SECONDS", 0.3)
    number = os.open(site / "ledger.jsonl", os.O_RDWR)
    fcntl.flock(number, fcntl.LOCK_EX)
    try:
        status, told = said(capsys, "site", "budget", site)
    finally:
        os.close(number)
    assert status == 3
    assert "another process" in told
    assert said(capsys, "site", "budget", site)[0] == 0


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--max-epsilon", "0"), "epsilon"),
        (("--max-epsilon", "nan"), "epsilon"),
        (("--delta", "1"), "delta"),
        (("--max-clip", "0"), "max_grad_norm"),
        (("--max-rate", "1.5"), "sample rate"),
        (("--max-rounds", "0"), "rounds"),
        (("--least-noise", "-1"), "noise"),
    ],
)
def test_a_ledger_with_senseless_limits_is_not_made(
    words: tuple[str, str], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, told = said(capsys, "site", "init", tmp_path / "new", "--site", "north", *words)
    assert status in (2, 3)
    assert part in told and told.count("\n") == 1
    assert not (tmp_path / "new" / "ledger.jsonl").exists()


def test_a_site_name_that_is_a_sentence_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, told = said(capsys, "site", "init", tmp_path / "new", "--site", "Mrs Miller, E11")
    assert status == 2 and told.count("\n") == 1


def test_a_ledger_is_never_made_over_another(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (site / "ledger.jsonl").read_bytes()
    status, _ = said(capsys, "site", "init", site, "--site", "south")
    assert status in (2, 3)
    assert (site / "ledger.jsonl").read_bytes() == before
    assert open_ledger(site).state().site == "north"
