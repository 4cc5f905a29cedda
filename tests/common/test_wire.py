from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.errors import ConfedError, SecurityRefused
from common.limits import LIMITS
from common.plan import RunPlan
from common.wire import (
    Answer,
    Identity,
    Order,
    Tensors,
    pack_answer,
    pack_identity,
    pack_order,
    to_record,
    to_tensors,
    unpack_answer,
    unpack_identity,
    unpack_order,
)

TENSORS = st.dictionaries(
    st.text(min_size=1, max_size=12),
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=4, min_dims=0)),
    max_size=4,
)


@given(TENSORS, st.integers(1, 10_000))
@settings(max_examples=50, deadline=None)
def test_an_update_survives_the_wire_bit_for_bit(update: Tensors, number: int) -> None:
    answer = unpack_answer(pack_answer(Answer(round=number, update=update, lines=b"a\n")))
    assert (answer.round, answer.lines) == (number, b"a\n")
    found = answer.update
    assert set(found) == set(update)
    for name, value in update.items():
        assert found[name].tobytes() == value.tobytes()
        assert found[name].shape == value.shape


@given(TENSORS, st.integers(1, 10_000))
@settings(max_examples=20, deadline=None)
def test_an_order_survives_the_wire(adapter: Tensors, number: int) -> None:
    order = Order(round=number, plan=RunPlan())
    found, tensors = unpack_order(pack_order(order, to_record(adapter)))
    assert found == order
    assert set(tensors) == set(adapter)


def test_the_order_of_names_on_the_wire_is_always_the_same() -> None:
    one, two = np.zeros(1, np.float32), np.ones(1, np.float32)
    assert list(to_record({"b": one, "a": two})) == list(to_record({"a": two, "b": one}))


GOOD = to_record({"map": np.zeros((2, 2), np.float32)})


def order_with(**changed: Any) -> RecordDict:
    plan = RunPlan().to_json()
    whole = {
        "adapter": GOOD,
        "order": ConfigRecord({"round": 1, "plan": plan}),
        "heads": ConfigRecord({"receipts": []}),
    }
    return RecordDict({k: v for k, v in {**whole, **changed}.items() if v is not None})


def answer_with(**changed: Any) -> RecordDict:
    whole = {
        "update": GOOD,
        "answer": ConfigRecord({"round": 1}),
        "ledger": ConfigRecord({"lines": b""}),
    }
    return RecordDict({k: v for k, v in {**whole, **changed}.items() if v is not None})


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"update": GOOD}),
        answer_with(update=None),
        answer_with(answer=None),
        answer_with(ledger=None),
        answer_with(answer=ConfigRecord({})),
        answer_with(answer=ConfigRecord({"round": "1"})),
        answer_with(answer=ConfigRecord({"round": 1.0})),
        answer_with(answer=ConfigRecord({"round": 1, "loss": 0.3})),
        answer_with(answer=MetricRecord({"round": 1})),
        answer_with(update=ConfigRecord({})),
        answer_with(ledger=ConfigRecord({"lines": "text"})),
        answer_with(ledger=ConfigRecord({})),
        answer_with(ledger=MetricRecord({"lines": 1})),
        answer_with(metrics=MetricRecord({"num-examples": 812})),
    ],
    ids=range(15),
)
def test_an_answer_of_another_form_is_refused(content: RecordDict) -> None:
    with pytest.raises(SecurityRefused):
        unpack_answer(content)


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"adapter": GOOD}),
        order_with(order=ConfigRecord({"round": 1})),
        order_with(order=ConfigRecord({"plan": "{}", "round": "1"})),
        order_with(order=ConfigRecord({"plan": 3, "round": 1})),
        order_with(order=ConfigRecord({"plan": "{}", "round": 1, "q": 2})),
        order_with(order=GOOD),
        order_with(more=ConfigRecord()),
        order_with(order=ConfigRecord({"plan": "x", "round": 1})),
        order_with(heads=None),
        order_with(heads=ConfigRecord({})),
        order_with(heads=ConfigRecord({"receipts": ["junk"]})),
        order_with(heads=ConfigRecord({"receipts": ["[" * 100_000]})),
        order_with(heads=ConfigRecord({"receipts": ["[]"]})),
        order_with(heads=ConfigRecord({"receipts": ["{}"]})),
        order_with(heads=ConfigRecord({"receipts": [1, 2]})),
    ],
    ids=range(16),
)
def test_an_order_of_another_form_is_refused(content: RecordDict) -> None:
    with pytest.raises(ConfedError):
        unpack_order(content)


def junk(data: bytes, stype: str = "numpy.ndarray") -> Array:
    return Array(dtype="float32", shape=(2,), stype=stype, data=data)


def npy(value: Any, **kwargs: Any) -> bytes:
    import io

    stream = io.BytesIO()
    np.save(stream, value, **kwargs)
    return stream.getvalue()


@pytest.mark.parametrize(
    "array",
    [
        junk(b""),
        junk(b"junk"),
        junk(b"\x93NUMPY" + b"\x01\x00\xff\xff"),
        junk(b"PK\x03\x04 not a zip"),
        junk(b"\x80\x04K\x01."),
        junk(npy(np.zeros(4, np.float32))[:-3]),
        junk(npy(np.zeros(4, np.float32)).replace(b"(4,)", b"(9**9,)")),
        junk(npy(np.zeros(4, np.float32)).replace(b"(4,), }   ", b"(10**15,), }"[:12])),
        junk(npy(np.array([{"a": 1}], dtype=object), allow_pickle=True)),
        junk(npy(np.zeros(2, np.float64))),
        junk(npy(np.zeros(2, np.int32))),
        junk(npy(np.zeros(2, ">f4"))),
        junk(npy(np.array(["x"]))),
        junk(npy(np.zeros(2, np.float32)), stype="torch.save"),
    ],
    ids=range(14),
)
def test_bytes_that_are_no_float32_array_are_refused_and_end_nothing(array: Array) -> None:
    record = ArrayRecord({"map": array})
    with pytest.raises(SecurityRefused) as error:
        to_tensors(record)
    assert "\n" not in str(error.value)


def test_a_name_of_the_other_side_is_shown_only_if_it_fits_in_a_line() -> None:
    for name in ("a\nb", "x" * 10_000, "\x1b[31m"):
        with pytest.raises(SecurityRefused) as error:
            to_tensors(ArrayRecord({name: junk(b"")}))
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 200


WHO = Identity(site="north", domain="care", items=3, catalog="ab" * 32, declared_subjects=900)


def test_an_identity_survives_the_wire() -> None:
    assert unpack_identity(pack_identity(WHO)) == WHO


@pytest.mark.parametrize(
    "changed",
    [
        {"site": 3},
        {"site": ""},
        {"site": "a\nb"},
        {"site": "a" * 1000},
        {"domain": None},
        {"catalog": b"ab"},
        {"items": 0},
        {"items": -1},
        {"items": True},
        {"items": 2.0},
        {"items": LIMITS.items + 1},
        {"declared_subjects": 0},
        {"declared_subjects": True},
        {"declared_subjects": 10**15},
        {"subjects": 812},
    ],
    ids=str,
)
def test_an_identity_out_of_bounds_is_refused(changed: dict[str, Any]) -> None:
    plain = {k: v for k, v in {**vars(WHO), **changed}.items() if v is not None}
    with pytest.raises(SecurityRefused):
        unpack_identity(RecordDict({"identity": ConfigRecord(plain)}))


def test_an_answer_without_an_identity_is_refused() -> None:
    for content in (RecordDict(), RecordDict({"identity": GOOD})):
        with pytest.raises(SecurityRefused):
            unpack_identity(content)
