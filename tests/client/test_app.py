import ast
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

import client.app
from client.app import Code, build, code_of
from client.session import close_sessions
from client.site import SiteRecords
from common.errors import (
    ConfedError,
    ConfigError,
    DataError,
    ModelError,
    OrderError,
    PrivacyRefused,
    SecurityRefused,
)
from common.plan import RunPlan
from common.randomness import Randomness, SecureRandomness
from common.wire import Order, pack_order, to_payload, to_record, unpack_answer, unpack_identity
from simulations.grid import InProcessGrid
from simulations.ledgers import MemoryLedgers
from tests.models import model_of, run_plan, site_of

MARKER = "subject-4711-has-diagnosis-E11"
RUN = 9_000_001
SITE = site_of()


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    close_sessions(RUN)


def send(app: ClientApp, kind: str, content: RecordDict) -> Message:
    grid = InProcessGrid(app, nodes=1, run_id=RUN, workers=1)
    try:
        (node,) = grid.get_node_ids()
        (reply,) = grid.send_and_receive(
            [Message(content=content, message_type=kind, dst_node_id=node)]
        )
        return reply
    finally:
        grid.close()


def order_of(plan: RunPlan, number: int = 1) -> RecordDict:
    tensors = {k: v.numpy() for k, v in model_of(plan.recommender, seed=None).adapter().items()}
    return pack_order(Order(round=number, plan=plan), to_record(tensors))


def everything_in(reply: Message) -> dict[str, object]:
    """Each leaf of a reply by its path: what the wire carries besides Flower's own envelope."""
    found: dict[str, object] = {}
    for name, record in reply.content.items():
        for key, value in record.items():
            found[f"{name}/{key}"] = value
    return found


def test_an_answer_holds_the_update_and_its_round_and_nothing_else() -> None:
    plan = run_plan()
    reply = send(build(lambda _: SITE, permits=MemoryLedgers()), MessageType.TRAIN, order_of(plan))
    assert not reply.has_error()
    leaves = everything_in(reply)
    tensors = {f"update/{name}" for name in model_of(plan.recommender).adapter()}
    assert set(leaves) == tensors | {"answer/round", "ledger/lines"}
    assert leaves["answer/round"] == 1
    kinds = [json.loads(line)["kind"] for line in leaves["ledger/lines"].splitlines()]  # type: ignore[attr-defined]
    assert kinds == ["genesis", "plan", "reserve", "release"]
    assert {type(r) for r in reply.content.values()} == {ArrayRecord, ConfigRecord}
    answer = unpack_answer(reply.content)
    assert answer.round == 1
    assert all(value.any() for value in answer.update.values())


def test_an_identity_holds_public_facts_and_nothing_else() -> None:
    reply = send(build(lambda _: SITE, permits=MemoryLedgers()), MessageType.QUERY, RecordDict())
    assert set(everything_in(reply)) == {
        f"identity/{key}" for key in ("site", "domain", "items", "catalog", "declared_subjects")
    }
    who = unpack_identity(reply.content)
    assert (who.site, who.domain, who.items) == ("north", "care", 24)
    assert who.catalog == SITE.catalog.digest


def raising(error: Exception) -> Callable[[Context], SiteRecords]:
    def open_site(context: Context) -> SiteRecords:
        raise error

    return open_site


@pytest.mark.parametrize("kind", [MessageType.TRAIN, MessageType.QUERY])
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError(MARKER), Code.CONFIGURATION),
        (DataError(MARKER), Code.DATA),
        (ModelError(MARKER), Code.MODEL),
        (PrivacyRefused(MARKER), Code.REFUSED),
        (SecurityRefused(MARKER), Code.REFUSED),
        (OrderError(MARKER), Code.INTERNAL),
        (ConfedError(MARKER), Code.INTERNAL),
        (ValueError(MARKER), Code.INTERNAL),
        (KeyError(MARKER), Code.INTERNAL),
        (MemoryError(MARKER), Code.INTERNAL),
        (RecursionError(MARKER), Code.INTERNAL),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_an_error_leaves_as_a_code_and_its_name_without_the_exceptions_text(
    kind: str, error: Exception, code: Code, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.CRITICAL):
        reply = send(build(raising(error)), kind, order_of(run_plan()))
    assert reply.has_error()
    assert (reply.error.code, reply.error.reason) == (code, code.name)
    assert not reply.has_content()
    assert MARKER not in repr(reply)
    assert MARKER not in repr(vars(reply))
    assert code_of(error) is code


def test_noise_that_fails_in_the_middle_of_training_leaves_as_a_code_too() -> None:
    class Failing(SecureRandomness):
        def normal(self, n: int) -> object:  # type: ignore[override]
            raise OSError(MARKER)

    def source(site: str, number: int) -> Randomness:
        return Failing()  # type: ignore[return-value]

    reply = send(
        build(lambda _: SITE, source, permits=MemoryLedgers()),
        MessageType.TRAIN,
        order_of(run_plan()),
    )
    assert (reply.error.code, reply.error.reason) == (Code.INTERNAL, "INTERNAL")


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"order": ConfigRecord({"round": 1, "plan": run_plan().to_json()})}),
        RecordDict({"adapter": ArrayRecord(), "order": ConfigRecord({"round": 1, "plan": "{"})}),
        RecordDict({"adapter": ArrayRecord(), "order": ConfigRecord({"round": 1, "plan": "["})}),
        RecordDict(
            {"adapter": ArrayRecord(), "order": ConfigRecord({"round": 1, "plan": "[" * 10**5})}
        ),
        RecordDict(
            {
                "adapter": ArrayRecord(),
                "order": ConfigRecord({"round": 1, "plan": "{}", "seed": 4}),
            }
        ),
    ],
)
def test_an_order_of_another_form_is_answered_by_a_code(content: RecordDict) -> None:
    reply = send(build(lambda _: SITE, permits=MemoryLedgers()), MessageType.TRAIN, content)
    assert reply.has_error()
    assert reply.error.reason in {"REFUSED", "CONFIGURATION", "INTERNAL"}


def test_the_second_order_for_a_round_gets_the_first_ones_bytes_over_the_wire() -> None:
    app, order = build(lambda _: SITE, permits=MemoryLedgers()), order_of(run_plan())
    first, again = (unpack_answer(send(app, MessageType.TRAIN, order).content) for _ in range(2))
    assert to_payload(first.update) == to_payload(again.update)
    assert first.lines == again.lines
    other = run_plan(federation={"rounds": 2, "text_rounds": 1})
    refused = send(app, MessageType.TRAIN, order_of(other))
    assert (refused.error.code, refused.error.reason) == (Code.REFUSED, "REFUSED")


def test_a_deployed_site_without_a_ledger_answers_no_order() -> None:
    reply = send(build(lambda _: SITE), MessageType.TRAIN, order_of(run_plan()))
    assert (reply.error.code, reply.error.reason) == (Code.CONFIGURATION, "CONFIGURATION")


def test_answers_of_two_runs_with_secure_noise_never_repeat() -> None:
    app, order = build(lambda _: SITE, permits=MemoryLedgers()), order_of(run_plan())
    one = unpack_answer(send(app, MessageType.TRAIN, order).content).update
    close_sessions(RUN)
    two = unpack_answer(send(app, MessageType.TRAIN, order).content).update
    for name in one:
        assert not (one[name] == two[name]).all()


def test_the_deployed_app_has_secure_noise_and_no_switch_for_another() -> None:
    source = Path(str(client.app.__file__)).read_text()
    assigned = [
        node.value
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "app"
    ]
    assert [ast.unparse(value) for value in assigned] == ["build()"]
    assert "seeded" not in source.lower()


@pytest.mark.parametrize("good", [True, False])
def test_a_site_that_asks_for_it_answers_and_refuses_at_a_fixed_time(good: bool) -> None:
    app = build((lambda _: SITE) if good else raising(DataError(MARKER)), permits=MemoryLedgers())
    app_context = Context(
        run_id=RUN, node_id=1, node_config={"reply-at": 0.5}, state=RecordDict(), run_config={}
    )
    content = order_of(run_plan())
    order = Message(content, dst_node_id=1, message_type=MessageType.TRAIN, ttl=4.0)
    start = time.monotonic()
    reply = app(order, app_context)
    assert time.monotonic() - start >= 2.0
    assert reply.has_error() == (not good)
