import logging
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.app import build as build_client
from client.session import close_sessions
from client.site import SiteRecords
from common.adapter import load_adapter
from common.errors import ConfigError, SecurityRefused
from common.plan import EvaluationPlan, RunPlan
from common.recommender import is_text
from common.signing import SigningKey
from common.wire import Tensors
from server.admission import Member
from server.app import build, initial_adapter
from server.heads import HeadBook
from server.membership import find_members
from server.options import plan_from_run_config
from simulations.grid import InProcessGrid
from simulations.ledgers import MemoryLedgers
from simulations.sites import MemorySites
from tests.models import backbone_of, run_plan, site_of

RUN = 9_000_002
CARE = [site_of("north"), site_of("south", seed=1)]
BANK = [site_of("east", domain="bank", items=20), site_of("west", domain="bank", items=20, seed=2)]


def client_of(*sites: SiteRecords) -> ClientApp:
    return build_client(MemorySites(sites), permits=MemoryLedgers())


def grid_of(sites: list[SiteRecords], app: ClientApp | None = None) -> InProcessGrid:
    client = app if app is not None else client_of(*sites)
    return InProcessGrid(client, nodes=len(sites), run_id=RUN, workers=1)


def context_of(**config: object) -> Context:
    return Context(
        run_id=RUN, node_id=0, node_config={}, state=RecordDict(), run_config=dict(config)
    )


def members_of(records: list[SiteRecords], *, sites: int = 1) -> dict[int, Member]:
    return find_members(grid_of(records), run_plan(), {"south": 2.5}, sites=sites)


def test_members_are_known_by_what_they_say_and_weighed_by_contract() -> None:
    found = members_of([BANK[0], *CARE], sites=3)
    assert [m.identity.site for m in found.values()] == ["east", "north", "south"]
    assert [m.weight for m in found.values()] == [1.0, 1.0, 2.5]
    assert all(node == m.node for node, m in found.items())


def test_two_nodes_of_one_name_are_refused() -> None:
    with pytest.raises(SecurityRefused, match="same name"):
        members_of([CARE[0], CARE[0]])


def test_two_catalogs_in_one_domain_are_refused() -> None:
    with pytest.raises(SecurityRefused, match="one catalog in domain care"):
        members_of([CARE[0], site_of("other", items=20)])


def test_fewer_sites_than_the_contract_asks_for_are_refused() -> None:
    plan = run_plan(federation={"round_timeout": 0.2})
    with pytest.raises(ConfigError, match="at least 3 sites, got 2"):
        find_members(grid_of(CARE), plan, {}, sites=3)


def test_the_first_adapter_is_zero_and_holds_each_domains_own_tensors() -> None:
    members = members_of([*CARE, *BANK])
    plan = run_plan()
    tensors = initial_adapter(plan, members.values(), backbone_of("bert"))
    assert tensors["bias.care"].shape == (24,)
    assert tensors["bias.bank"].shape == (20,)
    assert {"map.care", "map.bank", "gate.care", "gate.bank", "mixer"} <= set(tensors)
    assert not any(value.any() for value in tensors.values())
    plain = run_plan(recommender={"variant": "plain"})
    with_a = initial_adapter(plain, members.values(), backbone_of("bert"))
    assert all(value.any() == ("lora_A" in name) for name, value in with_a.items())
    again = initial_adapter(plain, members.values(), backbone_of("bert"))
    assert all(np.array_equal(again[k], v) for k, v in with_a.items())


def test_a_run_watches_every_round_and_writes_its_adapter(tmp_path: Path) -> None:
    seen: list[tuple[int, Tensors]] = []
    plan, out = run_plan(), tmp_path / "out" / "adapter.safetensors"
    app = build(
        plan,
        lambda n, t: seen.append((n, {k: v.copy() for k, v in t.items()})),
        backbone_of("bert"),
    )
    grid = grid_of([*CARE, *BANK])
    try:
        app(grid, context_of(sites=4, out=str(out)))
    finally:
        grid.close()
        close_sessions(RUN)
    assert [n for n, _ in seen] == [0, 1, 2]
    assert not any(v.any() for v in seen[0][1].values())
    for name, value in seen[2][1].items():
        assert np.isfinite(value).all()
        assert not np.array_equal(value, seen[1][1][name])
    tensors, manifest = load_adapter(out, backbone_sha256=backbone_of("bert").digest)
    assert all(np.array_equal(tensors[k], v) for k, v in seen[2][1].items())
    assert manifest.catalogs == {"care": CARE[0].catalog.digest, "bank": BANK[0].catalog.digest}
    assert manifest.plan == plan.with_domains(
        {
            "care": sum(s.declared_subjects for s in CARE),
            "bank": sum(s.declared_subjects for s in BANK),
        }
    )


def test_sites_that_fail_or_lie_do_not_end_a_run() -> None:
    plan = run_plan(federation={"rounds": 3, "text_rounds": 1})
    honest = client_of(*CARE, *BANK)

    def act(message: Message, context: Context) -> Message:
        node = int(context.node_config["partition-id"])
        if message.metadata.message_type == "train" and node == 0:
            raise RuntimeError("the process died")
        reply = honest(message, context)
        if message.metadata.message_type == "train" and node == 2:
            return Message(RecordDict(), reply_to=message)
        return reply

    seen: list[int] = []
    app = build(plan, lambda n, t: seen.append(n), backbone_of("bert"))
    grid = grid_of([*CARE, *BANK], act)  # type: ignore[arg-type]
    try:
        app(grid, context_of(sites=4))
    finally:
        grid.close()
        close_sessions(RUN)
    assert seen == [0, 1, 2, 3]


def test_a_flat_run_configuration_becomes_a_plan() -> None:
    plan = plan_from_run_config(
        {
            "sites": 4,
            "out": "here",
            "seed": 7,
            "privacy.epsilon": 2.0,
            "privacy.max-grad-norm": 0.5,
            "federation.rounds": 9,
            "recommender.top-layers": 2,
        }
    )
    assert plan.seed == 7
    assert (plan.privacy.epsilon, plan.privacy.max_grad_norm) == (2.0, 0.5)
    assert (plan.federation.rounds, plan.recommender.top_layers) == (9, 2)
    assert plan_from_run_config({}) == RunPlan()


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"privacy.epsilom": 1.0}, "epsilon"),
        ({"federation.rounds": "9"}, "rounds"),
        ({"privacy.private": 1}, "private"),
        ({"rounds": 9}, "rounds"),
    ],
)
def test_a_wrong_run_configuration_gets_one_line(config: dict[str, object], names: str) -> None:
    with pytest.raises(ConfigError, match=names) as error:
        plan_from_run_config(config)
    assert "\n" not in str(error.value)


def test_lora_does_not_move_after_its_rounds_in_a_whole_run() -> None:
    plan = run_plan(federation={"rounds": 3, "text_rounds": 1})
    seen: list[Tensors] = []
    app = build(plan, lambda n, t: seen.append(dict(t)), backbone_of("bert"))
    grid = grid_of(CARE)
    try:
        app(grid, context_of(sites=2))
    finally:
        grid.close()
        close_sessions(RUN)
    for name, value in seen[1].items():
        stands = np.array_equal(value, seen[3][name])
        assert stands == is_text(name), name


def test_noised_evaluations_are_averaged_by_domain_and_paid_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    evaluation = EvaluationPlan(every=2, noise_multiplier=5.0)
    plan = run_plan(federation={"rounds": 4}).model_copy(update={"evaluation": evaluation})
    heads = HeadBook(SigningKey.generate())
    app = build(plan, backbone=backbone_of("bert"), heads=heads)
    grid = grid_of([*CARE, *BANK])
    try:
        with caplog.at_level(logging.INFO, logger="confed.server"):
            app(grid, context_of(sites=4))
    finally:
        grid.close()
        close_sessions(RUN)
    said = [record.getMessage() for record in caplog.records if "noised" in record.getMessage()]
    assert [text.split(":")[0] for text in said] == ["round 2"] * 6 + ["round 4"] * 6
    assert sum("care/ndcg@10" in text for text in said) == 2
    assert not any(
        record.levelno >= logging.WARNING
        for record in caplog.records
        if record.name == "confed.server"
    )
