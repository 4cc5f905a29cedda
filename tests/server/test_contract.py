from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from client.app import build as build_client
from client.session import close_sessions
from common.errors import ConfigError, SecurityRefused
from common.signing import SigningKey
from common.wire import Identity
from server.app import build
from server.contract import read_contract
from server.options import ServerOptions
from simulations.grid import InProcessGrid
from simulations.ledgers import FolderLedgers
from simulations.sites import MemorySites
from tests.models import backbone_of, run_plan, site_of

RUN = 9_000_077
SITES = (site_of("north"), site_of("south", seed=1))
KEY = SigningKey.generate().public.hex


def entry(name: str, **changed: object) -> str:
    values = {"domain": "care", "public_key": KEY, "declared_subjects": 30, **changed}
    lines = [f'name = "{name}"', *(f"{k} = {v!r}".replace("'", '"') for k, v in values.items())]
    return "\n".join(["[[sites]]", *lines, ""])


def written(folder: Path, *entries: str) -> Path:
    path = folder / "contract.toml"
    path.write_text("".join(entries))
    return path


def who(**changed: object) -> Identity:
    plain = {"site": "north", "domain": "care", "items": 24, "catalog": "ab" * 32}
    return Identity(**{**plain, "declared_subjects": 30, **changed})  # type: ignore[arg-type]


def test_a_contract_names_weights_and_keys(tmp_path: Path) -> None:
    contract = read_contract(written(tmp_path, entry("north", weight=2.5), entry("south")))
    assert contract.weights() == {"north": 2.5, "south": 1.0}
    assert {key.hex for key in contract.keys().values()} == {KEY}
    contract.require(who())


@pytest.mark.parametrize(
    "changed", [{"site": "west"}, {"domain": "bank"}, {"declared_subjects": 1}], ids=str
)
def test_who_is_not_in_it_or_says_other_facts_is_refused(
    changed: dict[str, object], tmp_path: Path
) -> None:
    with pytest.raises(SecurityRefused):
        read_contract(written(tmp_path, entry("north"))).require(who(**changed))


@pytest.mark.parametrize(
    ("entries", "part"),
    [
        ((), "sites"),
        ((entry("north"), entry("north")), "each once"),
        ((entry("Mrs Miller"),), "plain names"),
        ((entry("north", public_key="ab"),), "public key"),
        ((entry("north", weight=0),), "weight"),
        ((entry("north", weigth=1),), "did you mean weight"),
        (("not toml",), "TOML"),
    ],
    ids=range(7),
)
def test_a_contract_that_is_none_is_refused_in_one_line(
    entries: tuple[str, ...], part: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=part) as error:
        read_contract(written(tmp_path, *entries))
    assert "\n" not in str(error.value)


def run(folder: Path, contract: Path, sites: int) -> None:
    client = build_client(MemorySites(SITES), permits=FolderLedgers(folder / "ledgers"))
    options = ServerOptions(sites=sites, contract=str(contract))
    grid = InProcessGrid(client, nodes=2, run_id=RUN, workers=1)
    context = Context(run_id=RUN, node_id=0, node_config={}, state=RecordDict(), run_config={})
    try:
        build(run_plan(), backbone=backbone_of("bert"), options=options)(grid, context)
    finally:
        grid.close()
        close_sessions(RUN)


def keys_of(folder: Path) -> dict[str, str]:
    """Ledgers are begun by a first run without a contract; their keys go into it."""
    from common.site_ledger import open_ledger

    return {
        site.name: open_ledger(folder / "ledgers" / site.name).state().keys[0].hex for site in SITES
    }


def test_a_stranger_takes_no_part_and_a_key_that_is_not_the_contracts_does_not_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from common.site_ledger import start_ledger
    from simulations.ledgers import caps_for

    for site in SITES:
        start_ledger(tmp_path / "ledgers" / site.name, site=site.name, caps=caps_for(run_plan()))
    keys = keys_of(tmp_path)
    good = {name: entry(name, public_key=key) for name, key in keys.items()}
    with pytest.raises(ConfigError, match="at least 2 sites, got 1"):
        run(tmp_path, written(tmp_path, good["north"]), 2)
    caplog.clear()
    run(tmp_path, written(tmp_path, good["north"], entry("south")), 2)
    assert "another key" in caplog.text
    assert "south: LEDGER" in caplog.text
    assert "north: LEDGER" not in caplog.text
