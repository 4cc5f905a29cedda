import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp

from common.errors import ConfigError, RefusedError
from common.plan import RunPlan
from common.recommender import is_text
from common.signing import SigningKey
from common.wire import (
    Answer,
    Identity,
    Tensors,
    pack_answer,
    to_record,
    to_tensors,
    unpack_order,
)
from server.admission import Member
from server.heads import HeadBook
from server.strategy import LEARNING_RATES, ConsortiumStrategy, make_strategy, noise_power
from simulations.grid import FIRST_NODE, InProcessGrid
from tests.models import run_plan

SITES = {"a": "care", "b": "care", "c": "bank"}
SHAPES = {
    "text.layer.lora_B.weight": (3, 2),
    "mixer": (3, 4),
    "map.care": (4, 6),
    "map.bank": (4, 6),
    "gate.care": (1,),
    "gate.bank": (1,),
    "bias.care": (5,),
    "bias.bank": (3,),
}
STRATEGIES = [pytest.param(name) for name in LEARNING_RATES]
Reply = Callable[[int, Tensors], RecordDict]


def plan_of(strategy: str = "fedavg", **federation: Any) -> RunPlan:
    plain = {"rounds": 3, "text_rounds": 2, "strategy": strategy, "averaging": 0.0, "quorum": 1}
    plain |= {f"{kind}_gain": 1.0 for kind in ("text", "gate", "mixer", "bias")}
    return run_plan(
        # A clip so large that any finite answer may be an honest one.
        privacy={"private": False, "noise_multiplier": None, "max_grad_norm": 1e6},
        federation={**plain, **federation},
    )


def members_of(weights: dict[str, float] | None = None) -> dict[int, Member]:
    return {
        FIRST_NODE + i: Member(
            node=FIRST_NODE + i,
            identity=Identity(
                site=site, domain=domain, items=5, catalog="ab", declared_subjects=100
            ),
            weight=(weights or {}).get(site, 1.0),
        )
        for i, (site, domain) in enumerate(SITES.items())
    }


def initial_of(seed: int = 0) -> Tensors:
    draw = np.random.default_rng(seed)
    return {k: draw.standard_normal(s).astype(np.float32) for k, s in SHAPES.items()}


def strategy_of(plan: RunPlan, weights: dict[str, float] | None = None) -> ConsortiumStrategy:
    return made(plan, members_of(weights), initial_of())


def made(plan: RunPlan, members: dict[int, Member], initial: Tensors) -> ConsortiumStrategy:
    return make_strategy(plan, members, initial, heads=HeadBook(SigningKey.generate()), run="1")


@pytest.fixture
def grid() -> Iterator[InProcessGrid]:
    made = InProcessGrid(ClientApp(), nodes=len(SITES), run_id=5, workers=1)
    yield made
    made.close()


def orders(
    strategy: ConsortiumStrategy, grid: InProcessGrid, arrays: Tensors, number: int = 1
) -> list[Message]:
    return list(strategy.configure_train(number, to_record(arrays), ConfigRecord(), grid))


def answered(order: Message, value: float, **changed: Any) -> Message:
    """A good answer: `value` everywhere, whatever a test changes in it."""
    asked, tensors = unpack_order(order.content)
    text = asked.round <= asked.plan.federation.text_rounds
    update: dict[str, Any] = {
        k: np.full_like(v, value) for k, v in tensors.items() if text or not is_text(k)
    }
    update = {k: v for k, v in {**update, **changed}.items() if v is not None}
    return Message(pack_answer(Answer(round=asked.round, update=update)), reply_to=order)


def moved(
    strategy: ConsortiumStrategy, replies: list[Message], number: int = 1
) -> dict[str, np.ndarray]:
    sent = {k: v.copy() for k, v in strategy._sent.items()}
    record, metrics = strategy.aggregate_train(number, replies)
    assert metrics is None
    assert record is not None
    return {k: v - sent[k] for k, v in to_tensors(record).items()}


def test_each_site_is_sent_what_it_holds_and_no_other_domains_tensors(grid: InProcessGrid) -> None:
    for order in orders(strategy_of(plan_of()), grid, initial_of()):
        domain = list(SITES.values())[order.metadata.dst_node_id - FIRST_NODE]
        asked, tensors = unpack_order(order.content)
        assert set(tensors) == {
            name
            for name in SHAPES
            if name.endswith(f".{domain}") or "." not in name or is_text(name)
        }
        assert asked.round == 1
        assert order.metadata.ttl == plan_of().federation.round_timeout


def test_a_domain_is_sent_the_others_maps_and_does_not_send_them_back(grid: InProcessGrid) -> None:
    plan = plan_of(learning_rate=1.0).with_domains({"care": 100, "bank": 100})
    initial = {**initial_of(), "borrow.care": np.zeros((1, 1), np.float32)}
    initial["borrow.bank"] = np.zeros((1, 1), np.float32)
    strategy = made(plan, members_of(), initial)
    a, b, c = orders(strategy, grid, initial)
    assert {"map.care", "map.bank", "borrow.care"} <= set(unpack_order(a.content)[1])
    assert "borrow.bank" not in unpack_order(a.content)[1]
    good = [answered(o, 1.0, **{other: None}) for o, other in ((a, "map.bank"), (c, "map.care"))]
    found = moved(strategy, [*good, answered(b, 100.0)])  # b answers with a map not its own
    np.testing.assert_allclose(found["map.bank"], 1.0, rtol=1e-5)
    np.testing.assert_allclose(found["map.care"], 1.0, rtol=1e-5)


def test_updates_are_weighed_by_contract_and_not_by_what_a_site_says(grid: InProcessGrid) -> None:
    strategy = strategy_of(plan_of(learning_rate=1.0), {"a": 1.0, "b": 3.0, "c": 4.0})
    a, b, c = orders(strategy, grid, initial_of())
    found = moved(strategy, [answered(a, 1.0), answered(b, 2.0), answered(c, 4.0)])
    np.testing.assert_allclose(found["mixer"], (1 + 3 * 2 + 4 * 4) / 8, rtol=1e-5)
    np.testing.assert_allclose(found["map.care"], (1 + 3 * 2) / 4, rtol=1e-5)
    np.testing.assert_allclose(found["map.bank"], 4.0, rtol=1e-5)


def test_a_domains_bias_comes_from_its_own_sites_alone(grid: InProcessGrid) -> None:
    plan = plan_of(learning_rate=1.0, bias_gain=1.0)
    strategy = strategy_of(plan)
    a, b, c = orders(strategy, grid, initial_of())
    found = moved(strategy, [answered(a, 1.0), answered(b, 3.0), answered(c, 100.0)])
    np.testing.assert_allclose(found["bias.care"], 2.0, rtol=1e-5)
    np.testing.assert_allclose(found["bias.bank"], 100.0, rtol=1e-5)
    only_bank = strategy_of(plan)
    *_, c = orders(only_bank, grid, initial_of())
    found = moved(only_bank, [answered(c, 1.0)])
    assert not found["bias.care"].any()
    assert found["bias.bank"].all()


def junk(value: np.ndarray, data: bytes) -> Array:
    return Array(dtype="float32", shape=value.shape, stype="numpy.ndarray", data=data)


def spoilt(order: Message, kind: str) -> Message:
    """An answer that must not count."""
    asked, tensors = unpack_order(order.content)
    name = next(k for k in tensors if k.startswith("map"))
    shape = tensors[name].shape
    good = {k: np.full_like(v, 1e3) for k, v in tensors.items()}
    changed: dict[str, Any] = {
        "nan": {name: np.full(shape, np.nan, np.float32)},
        "inf": {name: np.full(shape, np.inf, np.float32)},
        "shape": {name: np.full(shape[::-1], 1e3, np.float32)},
        "broadcast": {name: np.full((1, 1), 1e3, np.float32)},
        "scalar": {name: np.array(1e3, np.float32)},
        "extra": {"more": np.ones(1, np.float32)},
        "foreign-bias": {"bias.other": np.ones(5, np.float32)},
        "missing": {name: None},
        "dtype": {name: np.full(shape, 1e3, np.float64)},
    }.get(kind)
    if changed is not None:
        return answered(order, 1e3, **changed)
    record, answer = to_record(good), ConfigRecord({"round": asked.round})
    whole = {"update": record, "answer": answer, "ledger": ConfigRecord({"lines": b""})}
    content = {
        "empty": RecordDict(),
        "late": pack_answer(Answer(round=asked.round + 1, update=good)),
        "stale": pack_answer(Answer(round=0, update=good)),
        "text-round": RecordDict({**whole, "answer": ConfigRecord({"round": "1"})}),
        "extra-field": RecordDict(
            {**whole, "answer": ConfigRecord({"round": 1, "num-examples": 9})}
        ),
        "extra-record": RecordDict({**whole, "metrics": MetricRecord({"loss": 0.1})}),
        "junk": RecordDict(
            {**whole, "update": ArrayRecord({k: junk(v, b"x") for k, v in good.items()})}
        ),
        "zip": RecordDict(
            {**whole, "update": ArrayRecord({k: junk(v, b"PK\3\4") for k, v in good.items()})}
        ),
    }
    if kind == "error":
        return Message(Error(code=1004, reason="REFUSED"), reply_to=order)
    if kind == "foreign":
        stranger = Message(order.content, dst_node_id=4242, message_type=MessageType.TRAIN)
        return Message(pack_answer(Answer(round=asked.round, update=good)), reply_to=stranger)
    return Message(content[kind], reply_to=order)


BAD = [
    "nan", "inf", "shape", "broadcast", "scalar", "extra", "foreign-bias", "missing", "dtype",
    "empty", "late", "stale", "text-round", "extra-field", "extra-record", "junk", "zip", "error",
    "foreign",
]  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_answer_that_is_not_as_asked_neither_counts_nor_ends_the_run(
    kind: str, strategy: str, grid: InProcessGrid
) -> None:
    plan, without = plan_of(strategy), strategy_of(plan_of(strategy))
    a, b, c = orders(without, grid, initial_of())
    wanted = moved(without, [answered(b, 1.0), answered(c, -2.0)])
    together = strategy_of(plan)
    a, b, c = orders(together, grid, initial_of())
    found = moved(together, [spoilt(a, kind), answered(b, 1.0), answered(c, -2.0)])
    assert any(v.any() for v in found.values())
    for name, value in wanted.items():
        assert np.array_equal(found[name], value), name


def test_an_answer_that_comes_twice_counts_once(grid: InProcessGrid) -> None:
    strategy = strategy_of(plan_of(learning_rate=1.0))
    a, b, c = orders(strategy, grid, initial_of())
    twice = [answered(a, 3.0), answered(b, 0.0), answered(c, 0.0), answered(a, 3.0)]
    found = moved(strategy, twice)
    np.testing.assert_allclose(found["mixer"], 1.0, rtol=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_round_without_any_good_answer_moves_nothing_and_says_so(
    strategy: str, grid: InProcessGrid
) -> None:
    made = strategy_of(plan_of(strategy))
    before = {k: v.copy() for k, v in made.released.items()}
    a, b, c = orders(made, grid, initial_of())
    for replies in ([], [spoilt(a, "nan"), spoilt(b, "error"), spoilt(c, "extra")]):
        with pytest.raises(RefusedError, match="round 1") as error:
            made.aggregate_train(1, replies)
        assert "\n" not in str(error.value)
    assert all(np.array_equal(made.released[k], v) for k, v in before.items())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_server_optimiser_moves_the_whole_adapter_the_updates_way(
    strategy: str, grid: InProcessGrid
) -> None:
    made, arrays = strategy_of(plan_of(strategy)), initial_of()
    for number in (1, 2):
        replies = [answered(o, 0.5) for o in orders(made, grid, arrays, number)]
        found = moved(made, replies, number)
        for name, value in found.items():
            assert (value > 0).all(), name
            assert np.isfinite(value).all()
            assert value.dtype == np.float32
        arrays = {k: arrays[k] + v for k, v in found.items()}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_after_the_text_rounds_lora_stands_still_on_the_server_too(
    strategy: str, grid: InProcessGrid
) -> None:
    made, arrays = strategy_of(plan_of(strategy, text_rounds=1)), initial_of()
    for number in (1, 2, 3):
        replies = [answered(o, 0.5) for o in orders(made, grid, arrays, number)]
        found = moved(made, replies, number)
        for name, value in found.items():
            assert bool(value.any()) == (number == 1 or not is_text(name)), (number, name)
        arrays = {k: arrays[k] + v for k, v in found.items()}


def test_lora_sent_after_the_text_rounds_does_not_count(grid: InProcessGrid) -> None:
    made = strategy_of(plan_of(text_rounds=1))
    order, *_ = orders(made, grid, initial_of(), 2)
    extra = {"text.layer.lora_B.weight": np.ones((3, 2), np.float32)}
    with pytest.raises(RefusedError):
        made.aggregate_train(2, [answered(order, 1.0, **extra)])


def test_kinds_of_tensors_move_by_their_own_learning_rates(grid: InProcessGrid) -> None:
    gains = {"text_gain": 2.0, "gate_gain": 3.0, "mixer_gain": 4.0, "bias_gain": 5.0}
    strategy = strategy_of(plan_of(learning_rate=0.5, **gains))
    found = moved(strategy, [answered(o, 1.0) for o in orders(strategy, grid, initial_of())])
    for name, value in found.items():
        gain = {**gains, "map_gain": 1.0}[f"{name.split('.')[0]}_gain"]
        np.testing.assert_allclose(value, 0.5 * gain, rtol=1e-4)


def test_what_is_released_is_the_average_of_the_iterates(grid: InProcessGrid) -> None:
    strategy, arrays = strategy_of(plan_of(averaging=0.9, learning_rate=1.0)), initial_of()
    replies = [answered(o, 1.0) for o in orders(strategy, grid, arrays)]
    record, _ = strategy.aggregate_train(1, replies)
    assert record is not None
    newest = to_tensors(record)
    for name, value in strategy.released.items():
        keep = 0.0 if is_text(name) else 0.1  # a short memory at the start
        wanted = keep * arrays[name] + (1 - keep) * newest[name]
        np.testing.assert_allclose(value, wanted, rtol=1e-5)


def test_a_site_that_is_not_there_is_not_asked(grid: InProcessGrid) -> None:
    strategy = strategy_of(plan_of())
    del grid._contexts[FIRST_NODE + 1]
    asked = {o.metadata.dst_node_id for o in orders(strategy, grid, initial_of())}
    assert asked == {FIRST_NODE, FIRST_NODE + 2}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_order_of_answers_changes_no_bit(strategy: str, grid: InProcessGrid) -> None:
    results = []
    for places in itertools.permutations(range(3)):
        made = strategy_of(plan_of(strategy))
        asked = orders(made, grid, initial_of())
        replies = [answered(o, 0.1 * 3**i) for i, o in enumerate(asked)]
        results.append(moved(made, [replies[i] for i in places]))
    for other in results[1:]:
        assert all(np.array_equal(other[k], v) for k, v in results[0].items())


def test_the_announced_power_of_the_noise_is_that_of_the_mean_update() -> None:
    plan = run_plan(
        privacy={"noise_multiplier": 2.0, "max_grad_norm": 0.5, "sample_rate": 0.25},
        federation={
            "strategy": "fedadam-mini",
            "local_steps": 3,
            "client_learning_rate": 0.7,
            "shrink": "mixer,map,bias",
        },
    )
    members = members_of({"a": 1.0, "b": 3.0, "c": 1.0})
    power = noise_power(made(plan, members, initial_of()))
    draw = np.random.default_rng(0)
    noise = draw.standard_normal((3, 3, 200_000)) * 2.0 * 0.5 * 0.7 / (0.25 * 100)
    site = noise.sum(1)
    assert power["mixer"] == pytest.approx(np.var((site[0] + 3 * site[1] + site[2]) / 5), rel=0.02)
    assert power["map.care"] == pytest.approx(np.var((site[0] + 3 * site[1]) / 4), rel=0.02)
    assert power["bias.bank"] == pytest.approx(np.var(site[2]), rel=0.02)


def test_plain_lora_is_aggregated_by_its_products_where_the_plan_says_so() -> None:
    plan = run_plan(
        recommender={"variant": "plain"},
        privacy={"private": False, "noise_multiplier": None, "max_grad_norm": 1e6},
        federation={"strategy": "fedavg", "learning_rate": 1.0, "lora_aggregation": "svd",
                    "averaging": 0.0, "aggregation": "mean"},
    )  # fmt: skip
    a, b = "text.layer.lora_A.weight", "text.layer.lora_B.weight"
    draw = np.random.default_rng(3)
    initial = {
        a: draw.standard_normal((2, 7)).astype(np.float32),
        b: np.zeros((5, 2), np.float32),
        "map.care": np.zeros((4, 6), np.float32),
    }
    care = {n: m for n, m in members_of().items() if m.identity.domain == "care"}
    strategy = made(plan, care, initial)
    grid = InProcessGrid(ClientApp(), nodes=2, run_id=5, workers=1)
    try:
        asked = orders(strategy, grid, initial)
    finally:
        grid.close()
    changes = [
        {n: draw.standard_normal(v.shape).astype(np.float32) for n, v in initial.items()}
        for _ in asked
    ]
    replies = [answered(o, 0.0, **c) for o, c in zip(asked, changes, strict=True)]
    record, _ = strategy.aggregate_train(1, replies)
    assert record is not None
    new = to_tensors(record)
    products = [
        (initial[b] + c[b]).astype(np.float64) @ (initial[a] + c[a]).astype(np.float64)
        for c in changes
    ]
    left, values, right = np.linalg.svd(np.mean(products, axis=0))
    wanted = left[:, :2] * values[:2] @ right[:2]
    np.testing.assert_allclose(new[b].astype(np.float64) @ new[a], wanted, atol=1e-5)


def test_a_domain_too_small_for_the_promised_number_of_hostile_sites_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plan = plan_of(tolerate=2)
    members = {
        FIRST_NODE + i: Member(
            node=FIRST_NODE + i,
            identity=Identity(
                site=f"s{i}",
                domain="care" if i < 7 else "bank",
                items=5,
                catalog="ab",
                declared_subjects=100,
            ),
        )
        for i in range(12)
    }
    with caplog.at_level("WARNING", logger="confed.server"):
        made(plan, members, initial_of())
    assert [record.getMessage() for record in caplog.records] == [
        "domain bank has 5 sites: its own tensors bear 1 hostile ones, not 2"
    ]


def nine(**changed: Any) -> dict[int, Member]:
    return {
        FIRST_NODE + i: Member(
            node=FIRST_NODE + i,
            identity=Identity(
                site=f"s{i}", domain="care", items=5, catalog="ab", declared_subjects=100
            ),
        )
        for i in range(9)
    }


@pytest.mark.parametrize(
    ("federation", "part"),
    [
        ({"quorum": 5, "aggregation": "trimmed-mean"}, "quorum of 7"),
        ({"lora_aggregation": "svd"}, "lora_aggregation = mean"),
        ({"aggregation": "median", "tolerate": 4}, "at least 11 sites"),
        ({"aggregation": "inverse-variance"}, "private plan"),
    ],
)
def test_a_rule_that_cannot_hold_its_promise_is_refused_at_the_start(
    federation: dict[str, Any], part: str
) -> None:
    with pytest.raises(ConfigError, match=part):
        made(plan_of(**{"quorum": 0, **federation}), nine(), initial_of())


def test_two_sites_that_send_nothing_do_not_end_a_run_of_eight() -> None:
    members = {node: member for node, member in nine().items() if node != FIRST_NODE}
    strategy = made(plan_of(quorum=0), members, initial_of())
    assert strategy.rule() == "agreement"
    assert strategy.quorum() == 5
