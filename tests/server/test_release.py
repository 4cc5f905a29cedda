"""What a finished run says of itself: spent by every site's own ledger, signed by the server."""

import json
from pathlib import Path

import pytest

from client.app import build as build_client
from common.accounting import spent
from common.adapter import load_adapter, tensors_sha256
from common.randomness import Randomness, SecureRandomness
from common.release import read_release, release_path, require_released
from common.signing import read_public_key
from common.spending import cost_after, noise_of
from server.options import ServerOptions
from simulations.sites import MemorySites
from tests.models import run_plan
from tests.server.consortium import SITES, Consortium, RoomyLedgers, plan_of


def secure(_site: str, _round: int) -> Randomness:
    return SecureRandomness()


def finished(root: Path, *, seeded: bool = False) -> dict[str, object]:
    permits = RoomyLedgers(root / "ledgers")
    client = None
    if not seeded:
        client = build_client(MemorySites(SITES), randomness=secure, permits=permits)
    options = ServerOptions(out=str(root / "adapter.safetensors"), state=str(root / "state"))
    made = Consortium(plan=plan_of(), permits=permits, client=client, options=options).adapters()
    tensors, manifest = load_adapter(Path(options.out))
    assert tensors_sha256(tensors) == tensors_sha256(made[4])
    key = read_public_key(root / "state" / "public-key.pem")
    told = read_release(release_path(Path(options.out)), key)
    require_released(told, manifest)
    return told


def test_a_release_says_what_every_site_spent_by_its_own_ledger(tmp_path: Path) -> None:
    told = finished(tmp_path)
    plan = plan_of()
    cost = spent(cost_after(plan, noise_of(plan), 4), delta=1e-5).epsilon
    assert isinstance(told["sites"], list)
    assert [s["site"] for s in told["sites"]] == ["east", "north", "south", "west"]
    for site in told["sites"]:
        assert site["epsilon"] == pytest.approx(cost, rel=1e-6)
        assert site["delta"] == 1e-5
        lines = (tmp_path / "state" / "heads" / f"{site['site']}.jsonl").read_bytes()
        assert lines == (tmp_path / "ledgers" / site["site"] / "ledger.jsonl").read_bytes()
    assert (told["rounds"], told["released_round"], told["ended"]) == (4, 4, "after its last round")
    assert told["aggregation"] == "mean"
    assert told["catalogs"] == {s.domain: s.catalog.digest for s in SITES}


def test_seeded_noise_makes_no_claim(tmp_path: Path) -> None:
    told = finished(tmp_path, seeded=True)
    assert isinstance(told["sites"], list)
    assert {site["epsilon"] for site in told["sites"]} == {None}


def test_a_run_without_privacy_makes_no_claim(tmp_path: Path) -> None:
    plan = run_plan(privacy={"private": False, "noise_multiplier": None})
    options = ServerOptions(out=str(tmp_path / "a.safetensors"))
    Consortium(plan=plan, options=options).run()
    told = read_release(release_path(Path(options.out)), None)
    assert {site["epsilon"] for site in told["sites"]} == {None}
    assert "NaN" not in json.dumps(told)
