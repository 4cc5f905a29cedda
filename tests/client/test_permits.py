"""A deployed site's ledger, and what leaves a site that holds one."""

import dataclasses
import json
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_to_proto

from client.app import build
from client.opt_out import add_opt_out
from client.permits import deployed_permits
from client.session import Session, close_sessions
from client.site import SiteRecords
from common.entries import parse_line
from common.errors import ConfedError, ConfigError, SecurityRefused
from common.ledger import Ledger
from common.ledger_file import KEY_NAME, LEDGER_NAME
from common.plan import EvaluationPlan, RunPlan
from common.randomness import SecureRandomness
from common.receipts import Head, Receipt, countersign
from common.signing import SigningKey
from common.site_ledger import start_ledger
from common.textpath import ActivationStore
from common.verification import verify
from common.wire import Order, Tensors, pack_order, to_record
from simulations.grid import InProcessGrid
from simulations.ledgers import caps_for
from tests.models import backbone_of, model_of, run_plan, site_of

RUN = 9_000_003
STORE = ActivationStore()
SERVER = SigningKey.generate()
PLAN = run_plan(federation={"rounds": 3, "text_rounds": 1})


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    close_sessions(RUN)


def started(folder: Path, records: SiteRecords | None = None, plan: RunPlan = PLAN) -> SiteRecords:
    records = records if records is not None else site_of()
    start_ledger(folder, site="north", caps=caps_for(plan))
    return dataclasses.replace(records, ledger=folder)


def permits_of(records: SiteRecords) -> Ledger:
    return deployed_permits(records, PLAN, "run")


def session_of(records: SiteRecords) -> Session:
    return Session(
        "run", records, PLAN, backbone=backbone_of("bert"), store=STORE, permits=permits_of(records)
    )


def adapter_of(plan: RunPlan) -> Tensors:
    return {k: v.numpy() for k, v in model_of(plan.recommender, seed=None).adapter().items()}


def ask(session: Session, number: int, *receipts: Receipt) -> bytes:
    order = Order(round=number, plan=session.plan, receipts=receipts)
    adapter = adapter_of(session.plan)
    return session.train(order, adapter, lambda _site, _round: SecureRandomness()).lines


def receipts_for(*heads: Head, number: int = 1, key: SigningKey = SERVER) -> tuple[Receipt, ...]:
    return countersign(heads, run="run", number=number, key=key)


def head_of(ledger: Ledger) -> Head:
    state = ledger.state()
    return Head(site=state.site, seq=state.seq, head=state.head)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# Whose ledger


def test_a_site_without_a_ledger_is_told_to_name_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Expected ledger in node_config"):
        permits_of(site_of())
    with pytest.raises(ConfigError, match="confed site init"):
        permits_of(dataclasses.replace(site_of(), ledger=tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_the_ledger_of_another_site_or_under_another_key_is_refused(tmp_path: Path) -> None:
    records = started(tmp_path)
    with pytest.raises(ConfigError, match="another site's"):
        permits_of(dataclasses.replace(records, name="south"))
    (tmp_path / KEY_NAME).unlink()
    SigningKey.generate().write(tmp_path / KEY_NAME)
    before = contents(tmp_path)
    with pytest.raises(SecurityRefused, match="signing key"):
        permits_of(records)
    assert contents(tmp_path) == before


def test_a_key_that_others_may_read_stops_the_site(tmp_path: Path) -> None:
    records = started(tmp_path)
    (tmp_path / KEY_NAME).chmod(0o640)
    with pytest.raises(SecurityRefused, match="chmod 600"):
        permits_of(records)


# Old backups and forks (the server's receipts)


def test_a_receipt_for_the_ledgers_past_is_kept_and_the_round_goes_on(tmp_path: Path) -> None:
    records = started(tmp_path)
    session = session_of(records)
    ask(session, 1)
    (receipt,) = receipts_for(head_of(permits_of(records)))
    lines = ask(session, 2, receipt)
    kinds = [parse_line(line).entry.kind for line in lines.splitlines()]
    assert kinds == ["receipt", "reserve", "release"]
    found = verify((tmp_path / LEDGER_NAME).read_bytes(), None, receipts=[receipt.plain()])
    assert found.passed
    assert found.receipts == 1


@pytest.mark.parametrize("goes_on", [0, 1], ids=["an old backup", "a fork of the same length"])
def test_a_ledger_that_lacks_what_the_server_has_seen_spends_nothing(
    tmp_path: Path, goes_on: int
) -> None:
    records = started(tmp_path)
    permits_of(records).plan(session_of(records)._request(backbone_of("bert")))
    backup = (tmp_path / LEDGER_NAME).read_bytes()
    ask(session_of(records), 1)
    receipts = receipts_for(head_of(permits_of(records)))
    (tmp_path / LEDGER_NAME).write_bytes(backup)
    session = session_of(records)
    for number in range(goes_on):
        ask(session, number + 1)
    before = contents(tmp_path)
    with pytest.raises(SecurityRefused, match="an old backup or a fork"):
        ask(session, goes_on + 1, *receipts)
    assert contents(tmp_path) == before
    data = (tmp_path / LEDGER_NAME).read_bytes()
    found = verify(data, None, receipts=[r.plain() for r in receipts])
    assert [fault.code for fault in found.faults] == ["receipt"]


def test_receipts_that_were_not_signed_together_are_refused(tmp_path: Path) -> None:
    records = started(tmp_path)
    session = session_of(records)
    ask(session, 1)
    mine = head_of(permits_of(records))
    other = Head(site="south", seq=4, head="a" * 64)
    together, apart = receipts_for(mine, other), receipts_for(mine)
    forged = dataclasses.replace(together[0], round=2)
    before = contents(tmp_path)
    for shown in ((together[0],), (apart[0], together[1]), (forged, together[1])):
        with pytest.raises(SecurityRefused, match="signed together"):
            ask(session, 2, *shown)
    assert contents(tmp_path) == before
    ask(session, 2, *together)


# What leaves, and what a ledger and a log say


def with_markers(folder: Path) -> tuple[SiteRecords, list[str]]:
    """1,000 strings nobody may see: subject ids, and names, texts and ids of items."""
    records = site_of(subjects=800, items=50)
    marks = [f"Q{i:04d}MARKER" for i in range(1000)]
    catalog = dataclasses.replace(
        records.catalog,
        item_ids=tuple(marks[800:850]),
        titles=tuple(
            f"{m} {t}" for m, t in zip(marks[850:900], records.catalog.titles, strict=True)
        ),
        texts=tuple(f"note {m}" for m in marks[900:950]),
        categories=tuple(marks[950:1000]),
    )
    interactions = dataclasses.replace(records.interactions, subject_ids=tuple(marks[:800]))
    changed = dataclasses.replace(records, catalog=catalog, interactions=interactions)
    return started(folder, changed, MARKED), marks


MARKED = run_plan(federation={"rounds": 4, "text_rounds": 2}).model_copy(
    update={"evaluation": EvaluationPlan(every=1, noise_multiplier=20.0)}
)


def order_of(plan: RunPlan, number: int, **changed: object) -> RecordDict:
    order = Order(round=number, plan=plan)
    content = pack_order(order, to_record(adapter_of_site(plan)))
    for name, value in changed.items():
        content[name] = value  # type: ignore[assignment]
    return content


def adapter_of_site(plan: RunPlan) -> Tensors:
    model = model_of(plan.recommender, items=50, seed=None)
    return {k: v.numpy() for k, v in model.adapter().items()}


def send(app: ClientApp, kind: str, content: RecordDict) -> Message:
    grid = InProcessGrid(app, nodes=1, run_id=RUN, workers=1)
    try:
        (node,) = grid.get_node_ids()
        message = Message(content=content, message_type=kind, dst_node_id=node)
        (reply,) = grid.send_and_receive([message])
        return reply
    finally:
        grid.close()


def on_the_wire(reply: Message) -> bytes:
    """Every byte of an answer: Flower's message, and the arrays and settings in it."""
    said = message_to_proto(reply).SerializeToString() if reply.has_error() else b""
    for record in reply.content.values() if reply.has_content() else ():
        for key, value in record.items():
            data = getattr(value, "data", value)
            said += key.encode() + (data if isinstance(data, bytes) else repr(data).encode())
    return said


def test_no_marker_of_a_thousand_is_on_the_wire_in_the_ledger_the_log_or_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records, marks = with_markers(tmp_path)
    app = build(lambda _context: records)
    orders = [
        (MessageType.QUERY, RecordDict()),
        (MessageType.TRAIN, order_of(MARKED, 1)),
        (MessageType.EVALUATE, order_of(MARKED, 1)),
        (MessageType.TRAIN, order_of(MARKED, 1)),  # again, from what was kept
        (MessageType.TRAIN, order_of(MARKED, 99)),
        (MessageType.TRAIN, order_of(MARKED, 2, adapter=ArrayRecord())),
        (MessageType.TRAIN, order_of(MARKED, 2, heads=ConfigRecord({"receipts": ["{}"]}))),
        (MessageType.TRAIN, RecordDict()),
        (MessageType.TRAIN, order_of(MARKED, 2)),
    ]
    with caplog.at_level(logging.DEBUG):
        replies = [send(app, kind, content) for kind, content in orders]
        add_opt_out(tmp_path, marks[3])
        replies.append(send(app, MessageType.TRAIN, order_of(MARKED, 3)))
        (tmp_path / "opt-outs.salt").unlink()
        replies.append(send(app, MessageType.TRAIN, order_of(MARKED, 4)))
    answered = [not reply.has_error() for reply in replies]
    assert answered == [True] * 4 + [False] * 4 + [True] * 2 + [False]

    wire = b"".join(map(on_the_wire, replies))
    ledger = (tmp_path / LEDGER_NAME).read_bytes()
    formatter = logging.Formatter()
    log = "\n".join(formatter.format(record) for record in caplog.records).encode()
    kept = b"".join((tmp_path / "outbox" / p.name).read_bytes() for p in _files(tmp_path))
    for said in (wire, ledger, log, kept):
        assert said
        assert b"MARKER" not in said
    assert verify(ledger, None).passed
    assert b"MARKER" in "".join(marks).encode()


def _files(folder: Path) -> list[Path]:
    return sorted((folder / "outbox").iterdir())


def test_no_marker_is_in_what_is_raised_for_bad_subjects_and_opt_outs(tmp_path: Path) -> None:
    records, marks = with_markers(tmp_path)
    add_opt_out(tmp_path, marks[0])
    (tmp_path / "opt-outs.txt").write_bytes(marks[0].encode() + b"\xff")
    errors = []
    for call in (
        lambda: add_opt_out(tmp_path, f"{marks[1]}\n{marks[2]}"),
        lambda: add_opt_out(tmp_path, marks[1]),
        lambda: ask(session_of(records), 1),
        lambda: permits_of(records).add_cohort(f"of {marks[3]}"),
        lambda: permits_of(records).opt_out(marks[4]),
    ):
        try:
            call()
        except ConfedError as error:
            errors.append("".join(traceback.format_exception(error)))
    assert len(errors) == 5
    assert "MARKER" not in "".join(line for text in errors for line in text.splitlines()[-1:])


def test_an_answer_holds_allow_listed_fields_alone(tmp_path: Path) -> None:
    records, _ = with_markers(tmp_path)
    app = build(lambda _context: records)
    trained = send(app, MessageType.TRAIN, order_of(MARKED, 1))
    evaluated = send(app, MessageType.EVALUATE, order_of(MARKED, 1))
    always = {"answer/round", "ledger/lines"}
    assert fields(trained) == always | {f"update/{name}" for name in adapter_of_site(MARKED)}
    figures = {"figures/subjects", "figures/ndcg@10", "figures/hit@10"}
    assert fields(evaluated) == always | figures
    for line in (tmp_path / LEDGER_NAME).read_bytes().splitlines():
        assert set(json.loads(line)) == ENTRY_FIELDS


def fields(reply: Message) -> set[str]:
    return {f"{name}/{key}" for name, record in reply.content.items() for key in record}


ENTRY_FIELDS = set(
    "site seq prev ts kind run round event model_sha256 details signature".split()  # noqa: SIM905
)
