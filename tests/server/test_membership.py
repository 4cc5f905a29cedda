import dataclasses
import logging
import time
from collections.abc import Callable, Iterable

import pytest
from flwr.app import ConfigRecord, Context, Error, Message
from flwr.clientapp import ClientApp

from client.site import SiteRecords
from common.errors import ConfigError, SecurityRefused
from server import membership
from server.admission import Member
from server.membership import QUERIES_MOST, Membership, find_members, require_began
from simulations.grid import FIRST_NODE, InProcessGrid
from tests.models import site_of
from tests.server.consortium import RUN, client_of, identity_of, plan_of, round_of

NORTH, SOUTH = site_of("north"), site_of("south", seed=1)


class Nodes(InProcessGrid):
    """A grid whose nodes come and go: only those in `here` are there."""

    def __init__(self, *sites: SiteRecords, app: ClientApp | None = None) -> None:
        client = app if app is not None else client_of(*sites)
        super().__init__(client, nodes=len(sites), run_id=RUN, workers=1)
        self.here = set(self._contexts)
        self.asked: list[int] = []

    def get_node_ids(self) -> Iterable[int]:
        return sorted(self.here)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        pushed = list(messages)
        self.asked += [m.metadata.dst_node_id for m in pushed]
        return super().push_messages(pushed)


def begun(grid: Nodes, *nodes: int) -> Membership:
    """A run that began with these nodes."""
    everybody, grid.here = grid.here, {FIRST_NODE + n for n in nodes}
    found = find_members(grid, plan_of(round_timeout=5.0), {"late": 3.0}, sites=len(nodes))
    grid.here, grid.asked = everybody, []
    return Membership(members=found, weights={"late": 3.0})


def refreshed(found: Membership, grid: Nodes) -> dict[str, int]:
    """Node by site after a look at who is there."""
    strategy = round_of(1).strategy
    strategy.members = found.members
    found.refresh(grid, strategy)
    assert strategy.members == found.members
    return {m.identity.site: node for node, m in found.members.items()}


def test_a_late_site_joins_with_its_contract_weight(caplog: pytest.LogCaptureFixture) -> None:
    late = site_of("late", seed=4)
    grid = Nodes(NORTH, SOUTH, late)
    found = begun(grid, 0, 1)
    with caplog.at_level(logging.INFO, logger="confed.server"):
        nodes = refreshed(found, grid)
    assert nodes["late"] == FIRST_NODE + 2
    assert found.members[FIRST_NODE + 2].weight == 3.0
    assert "site late joins" in caplog.text
    assert found.facts()[0]["site"] == "late"
    assert {facts["weight"] for facts in found.facts()} == {1.0, 3.0}


def test_nobody_new_means_nobody_is_asked() -> None:
    grid = Nodes(NORTH, SOUTH)
    found = begun(grid, 0, 1)
    refreshed(found, grid)
    assert grid.asked == []


def test_a_site_comes_back_under_another_node_when_its_old_one_is_gone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    grid = Nodes(NORTH, SOUTH, NORTH)
    found = begun(grid, 0, 1)
    grid.here = {FIRST_NODE + 1, FIRST_NODE + 2}
    with caplog.at_level(logging.INFO, logger="confed.server"):
        assert refreshed(found, grid) == {"south": FIRST_NODE + 1, "north": FIRST_NODE + 2}
    assert "site north is back" in caplog.text


def test_a_node_cannot_push_a_site_out_by_saying_its_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    grid = Nodes(NORTH, SOUTH, NORTH)
    found = begun(grid, 0, 1)
    for _ in range(QUERIES_MOST + 2):
        assert refreshed(found, grid)["north"] == FIRST_NODE
    assert "does not join: Expected one node of site north" in caplog.text
    grid.here = {FIRST_NODE + 1, FIRST_NODE + 2}  # it was the site itself, started anew
    assert refreshed(found, grid)["north"] == FIRST_NODE + 2


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (site_of("other", items=20), "catalog of domain care"),
        (site_of("other", domain="shop"), "a domain that the run began with"),
        (dataclasses.replace(NORTH, declared_subjects=1000), "public facts"),
    ],
)
def test_a_node_that_does_not_fit_the_run_does_not_join_and_is_asked_once(
    other: SiteRecords, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    grid = Nodes(NORTH, SOUTH, other)
    found = begun(grid, 0, 1)
    for _ in range(3):
        assert refreshed(found, grid) == {"north": FIRST_NODE, "south": FIRST_NODE + 1}
    assert caplog.text.count(says) == 1
    assert grid.asked == [FIRST_NODE + 2]


def failing(sites: list[SiteRecords], node: int, times: int) -> ClientApp:
    """An app whose node `node` fails so many times before it answers."""
    honest, left = client_of(*sites), [times]

    def act(message: Message, context: Context) -> Message:
        if context.node_id == node and left[0]:
            left[0] -= 1
            return Message(Error(code=1, reason="not yet"), reply_to=message)
        return honest(message, context)

    return act  # type: ignore[return-value]


def test_a_node_that_could_not_answer_is_asked_again_in_the_next_rounds() -> None:
    sites = [NORTH, SOUTH, site_of("late", seed=4)]
    grid = Nodes(*sites, app=failing(sites, FIRST_NODE + 2, QUERIES_MOST - 1))
    found = begun(grid, 0, 1)
    for _ in range(QUERIES_MOST - 1):
        assert set(refreshed(found, grid)) == {"north", "south"}
    assert set(refreshed(found, grid)) == {"north", "south", "late"}


def test_a_node_that_never_answers_does_not_hold_up_every_round() -> None:
    sites = [NORTH, SOUTH, site_of("late", seed=4)]
    grid = Nodes(*sites, app=failing(sites, FIRST_NODE + 2, 99))
    found = begun(grid, 0, 1)
    for _ in range(QUERIES_MOST + 3):
        refreshed(found, grid)
    assert grid.asked == [FIRST_NODE + 2] * QUERIES_MOST


# At the start


def test_a_node_that_is_no_site_is_left_out_and_the_others_begin(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sites = [NORTH, SOUTH]
    honest = client_of(*sites)

    def act(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        if context.node_id == FIRST_NODE:
            identity = reply.content["identity"]
            assert isinstance(identity, ConfigRecord)
            identity["domain"] = "care\nbank"
        return reply

    grid = Nodes(*sites, app=act)  # type: ignore[arg-type]
    found = find_members(grid, plan_of(), {}, sites=1)
    assert [m.identity.site for m in found.values()] == ["south"]
    assert "is left out: Expected the five public facts" in caplog.text


def test_the_server_waits_for_sites_and_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "WAIT_SAID", 0.1)
    monkeypatch.setattr(membership, "NODES_WAIT", 0.05)
    grid = Nodes(NORTH, SOUTH)
    arrives, everybody = time.monotonic() + 0.4, grid.here

    def there() -> set[int]:
        return everybody if time.monotonic() > arrives else {FIRST_NODE}

    grid.get_node_ids = there  # type: ignore[method-assign]
    found = find_members(grid, plan_of(round_timeout=30.0), {}, sites=2)
    assert len(found) == 2
    assert caplog.text.count("waiting for sites: 1 of 2 are here") == 1


# Resumed


def began_with(*changes: Callable[[dict[str, object]], object]) -> list[dict[str, object]]:
    members = [
        Member(node=1, identity=identity_of("a"), weight=2.0),
        Member(node=2, identity=identity_of("b", domain="bank")),
    ]
    facts = Membership(members={m.node: m for m in members}, weights={}).facts()
    for change in changes:
        change(facts[0])
    return facts


HERE = [
    Member(node=7, identity=identity_of("a"), weight=2.0),
    Member(node=8, identity=identity_of("b", domain="bank")),
]


def test_a_run_goes_on_with_the_sites_it_began_with_and_with_new_ones() -> None:
    require_began(HERE, began_with())
    require_began([*HERE, Member(node=9, identity=identity_of("c"))], began_with())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.update(weight=1.0), "the weight of site a"),
        (lambda f: f.update(declared_subjects=7), "public facts and the weight of site a"),
        (lambda f: f.update(catalog="cd"), "catalog of the checkpoint from site a"),
        (lambda f: f.update(items=9), "catalog of the checkpoint from site a"),
        (lambda f: f.update(domain="shop"), "domain and catalog of the checkpoint from site a"),
    ],
)
def test_a_run_does_not_go_on_with_a_site_that_changed(
    change: Callable[[dict[str, object]], object], says: str
) -> None:
    with pytest.raises(SecurityRefused, match=says):
        require_began(HERE, began_with(change))


def test_a_run_does_not_go_on_without_a_domain() -> None:
    with pytest.raises(ConfigError, match="a site of domain bank to resume with"):
        require_began(HERE[:1], began_with())
