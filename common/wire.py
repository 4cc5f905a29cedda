"""What travels between server and site, in Flower's records; the only module here that knows them.

Down: `adapter` (arrays), `order` (round, plan) and `heads` (the server's receipts for every site's
ledger). Up: `update` (arrays) or `figures` (noised sums of an evaluation), `answer`
(round) and `ledger` (the site's lines since its receipt).
A query is answered by `identity`: site, domain, catalog digest and size, declared number of
subjects, all public.
"""

import json
import math
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from io import BytesIO
from typing import Any, Final

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray
from safetensors.numpy import save

from common.entries import canonical, is_name
from common.errors import SecurityRefused
from common.limits import LIMITS
from common.plan import RunPlan, plan_from_json
from common.receipts import Receipt, receipt_from_plain

Tensors = dict[str, NDArray[np.float32]]
NUMPY = "numpy.ndarray"
"""How Flower names the serialisation of np.save."""
_plan = lru_cache(maxsize=16)(plan_from_json)


class Said(IntEnum):
    """The closed list of what became of an answer; the server tells a site no more."""

    ADMITTED = 0
    NONE = 2000
    FORM = 2001
    ROUND = 2002
    LEDGER = 2003
    TENSORS = 2004
    SHAPE = 2005
    NOT_FINITE = 2006
    TOO_LONG = 2007
    SUSPENDED = 2008
    TOO_SHORT = 2009


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the server asks of a site in one round.

    Attributes:
        round: number, from 1.
        plan: of the run.
        receipts: for every site's ledger, as the server last saw them.
        run: name of the run, the same after the server was started anew.
        last: what became of the site's last answer, a code of `Said`.
    """

    round: int
    plan: RunPlan
    receipts: tuple[Receipt, ...] = ()
    run: str = "run"
    last: int = 0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a site answers to an order.

    Attributes:
        round: number.
        update: new minus old adapter.
        lines: of the site's ledger after the one that its receipt in the order is for.
    """

    round: int
    update: Tensors
    lines: bytes = b""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Who answers, in public facts of the contract."""

    site: str
    domain: str
    items: int
    catalog: str
    declared_subjects: int


def pack_heads(receipts: tuple[Receipt, ...]) -> ConfigRecord:
    """The server's receipts; made once a round, it is the same for every site."""
    return ConfigRecord({"receipts": [json.dumps(r.plain()) for r in receipts]})


def pack_order(order: Order, adapter: ArrayRecord, heads: ConfigRecord | None = None) -> RecordDict:
    """The message body of a round; `heads` are the order's receipts, packed before."""
    config = ConfigRecord(
        {
            "run": order.run,
            "round": order.round,
            "plan": order.plan.to_json(),
            "last": int(order.last),
        }
    )
    packed = heads if heads is not None else pack_heads(order.receipts)
    return RecordDict({"adapter": adapter, "order": config, "heads": packed})


def unpack_order(content: RecordDict) -> tuple[Order, Tensors]:
    """Read a round's message.

    Raises:
        SecurityRefused: records or fields that do not belong there.
        ConfigError: not a plan.
    """
    if set(content.keys()) != {"adapter", "order", "heads"}:
        raise SecurityRefused("Expected the records adapter, order and heads in a round's message.")
    order, adapter, heads = content["order"], content["adapter"], content["heads"]
    if not isinstance(order, ConfigRecord) or not isinstance(adapter, ArrayRecord):
        raise SecurityRefused("Expected arrays in adapter and settings in order.")
    number, plan, run, last = (order.get(name) for name in ("round", "plan", "run", "last"))
    counted = isinstance(number, int) and isinstance(last, int)
    if not counted or not isinstance(plan, str) or not is_name(run) or len(order) != 4:
        raise SecurityRefused("Expected exactly a run, a round, a plan and a code in the order.")
    made = Order(
        round=int(number),  # type: ignore[arg-type]
        plan=_plan(plan),
        receipts=_receipts(heads),
        run=str(run),
        last=int(last),  # type: ignore[arg-type]
    )
    return made, to_tensors(adapter)


def _receipts(heads: object) -> tuple[Receipt, ...]:
    texts = heads.get("receipts") if isinstance(heads, ConfigRecord) else None
    if not isinstance(texts, list) or len(texts) > LIMITS.sites:
        raise SecurityRefused("Expected receipts in heads, got something else.")
    return tuple(receipt_from_plain(_object(text)) for text in texts)


def _object(text: object) -> dict[str, Any]:
    try:
        value = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise SecurityRefused("Expected receipts as JSON objects, got others.")
    return value


def pack_answer(answer: Answer) -> RecordDict:
    """The message body of an answer: the update, its round, and the ledger's new lines."""
    return RecordDict(
        {
            "update": to_record(answer.update),
            "answer": ConfigRecord({"round": answer.round}),
            "ledger": ConfigRecord({"lines": answer.lines}),
        }
    )


def unpack_answer(content: RecordDict) -> Answer:
    """Read an answer.

    Raises:
        SecurityRefused: anything but an update, its round and lines of a ledger.
    """
    if set(content.keys()) != {"update", "answer", "ledger"}:
        raise SecurityRefused("Expected the records update, answer and ledger in an answer.")
    update = content["update"]
    if not isinstance(update, ArrayRecord):
        raise SecurityRefused("Expected arrays in update, got something else.")
    number, lines = _number_and_lines(content)
    return Answer(round=number, update=to_tensors(update), lines=lines)


def _number_and_lines(content: RecordDict) -> tuple[int, bytes]:
    answer, ledger = content["answer"], content["ledger"]
    number = answer.get("round") if isinstance(answer, ConfigRecord) else None
    if not isinstance(number, int) or len(answer) != 1:
        raise SecurityRefused("Expected exactly a round in the answer.")
    lines = ledger.get("lines") if isinstance(ledger, ConfigRecord) else None
    if not isinstance(lines, bytes) or len(ledger) != 1 or len(lines) > LIMITS.ledger_bytes:
        raise SecurityRefused("Expected the lines of a ledger in an answer, got something else.")
    return number, lines


def pack_identity(identity: Identity) -> RecordDict:
    """The answer to a query."""
    return RecordDict({"identity": ConfigRecord(dict(vars(identity)))})


def unpack_identity(content: RecordDict) -> Identity:
    """Read the answer to a query.

    Raises:
        SecurityRefused: not an identity.
    """
    record = content.get("identity")
    if not isinstance(record, ConfigRecord):
        raise SecurityRefused("Expected an identity, got another record.")
    named = all(_is_name(record.get(key)) for key in ("site", "domain", "catalog"))
    counted = _is_count(record.get("items"), LIMITS.items) and _is_count(
        record.get("declared_subjects"), LIMITS.declared_subjects
    )
    if not named or not counted or len(record) != 5:
        raise SecurityRefused("Expected the five public facts of a site in an identity.")
    return Identity(**dict(record))  # type: ignore[arg-type]


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value.isprintable() and 0 < len(value) <= LIMITS.id_characters


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most


FIGURES: Final = ("subjects", "ndcg@10", "hit@10")
"""Every figure of an evaluation that may leave a site, each a noised sum over its subjects."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a site answers to an order to evaluate.

    Attributes:
        round: number.
        figures: noised sums, by FIGURES.
        lines: as of an answer.
    """

    round: int
    figures: dict[str, float]
    lines: bytes = b""


def pack_evaluation(evaluation: Evaluation) -> RecordDict:
    """The message body of an evaluation: noised sums, the round, and the ledger's new lines."""
    return RecordDict(
        {
            "figures": ConfigRecord({name: evaluation.figures[name] for name in FIGURES}),
            "answer": ConfigRecord({"round": evaluation.round}),
            "ledger": ConfigRecord({"lines": evaluation.lines}),
        }
    )


def unpack_evaluation(content: RecordDict) -> Evaluation:
    """Read an evaluation.

    Raises:
        SecurityRefused: anything but finite noised sums, the round and lines of a ledger.
    """
    if set(content.keys()) != {"figures", "answer", "ledger"}:
        raise SecurityRefused("Expected the records figures, answer and ledger in an evaluation.")
    figures = content["figures"]
    if not isinstance(figures, ConfigRecord) or set(figures) != set(FIGURES):
        raise SecurityRefused("Expected exactly the allowed figures in an evaluation.")
    values = {name: figures[name] for name in FIGURES}
    if not all(isinstance(v, float) and math.isfinite(v) for v in values.values()):
        raise SecurityRefused("Expected finite numbers in an evaluation.")
    number, lines = _number_and_lines(content)
    return Evaluation(round=number, figures=values, lines=lines)  # type: ignore[arg-type]


def figures_payload(figures: dict[str, float]) -> bytes:
    """An evaluation's figures as the bytes that a release in a ledger names."""
    return canonical({name: float(figures[name]) for name in FIGURES})


def to_payload(update: Tensors) -> bytes:
    """An update as the bytes that a release in a ledger names (safetensors, names sorted)."""
    return bytes(save({name: np.ascontiguousarray(update[name]) for name in sorted(update)}))


def to_record(tensors: Tensors) -> ArrayRecord:
    """Named float32 arrays as a Flower record, in the order of their names."""
    return ArrayRecord({name: _from_array(tensors[name]) for name in sorted(tensors)})


@lru_cache(maxsize=256)
def _npy_header(shape: tuple[int, ...]) -> bytes:
    """What np.save writes before the numbers of a float32 array of that shape."""
    buffer = BytesIO()
    described = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()


def _from_array(value: NDArray[np.float32]) -> Array:
    if value.dtype != np.dtype("<f4") or not value.flags.c_contiguous:
        return Array(value)
    # The bytes of np.save, written in one copy.
    data = b"".join((_npy_header(value.shape), value.data))
    return Array(dtype="float32", shape=value.shape, stype=NUMPY, data=data)


def to_tensors(record: ArrayRecord) -> Tensors:
    """A Flower record as named arrays.

    Raises:
        SecurityRefused: bytes that are no array, or an array that is not float32.
    """
    return {name: _to_array(name, array) for name, array in record.items()}


def _viewed(array: Array) -> NDArray[np.float32] | None:
    """The numbers where they lie, read-only, if the bytes are what `to_record` writes."""
    header = _npy_header(array.shape)
    size = math.prod(array.shape)
    if not array.data.startswith(header) or len(array.data) != len(header) + 4 * size:
        return None
    if array.stype != NUMPY:
        return None
    return np.frombuffer(array.data, np.dtype("<f4"), size, len(header)).reshape(array.shape)


def _to_array(name: str, array: Array) -> NDArray[np.float32]:
    # The other side wrote name, bytes and header; NumPy raises many kinds of error on junk.
    shown = name[:80] if name.isprintable() else "a tensor"
    try:
        value = _viewed(array)
        if value is None:
            value = array.numpy()
    except Exception as error:
        raise SecurityRefused(f"Expected {shown} as an array, got other bytes.") from error
    if not isinstance(value, np.ndarray) or value.dtype != np.float32:
        raise SecurityRefused(f"Expected {shown} as float32, got another type.")
    return value
