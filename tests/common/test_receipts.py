import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import SecurityRefused
from common.receipts import (
    Head,
    Receipt,
    countersign,
    heads_sha256,
    receipt_from_plain,
    require_same_heads,
)
from common.signing import SigningKey

KEY = SigningKey.generate()
HEADS = tuple(Head(site=name, seq=i + 3, head=f"{i}" * 64) for i, name in enumerate("abc"))
RECEIPTS = countersign(HEADS, run="run-1", number=2, key=KEY)


def changed(receipt: Receipt, **values: Any) -> Receipt:
    return dataclasses.replace(receipt, **values)


def test_one_receipt_a_head_each_verifies_and_all_are_bound_together() -> None:
    assert [r.site for r in RECEIPTS] == ["a", "b", "c"]
    assert all(receipt.verifies() for receipt in RECEIPTS)
    assert {receipt.heads_sha256 for receipt in RECEIPTS} == {heads_sha256(reversed(HEADS))}
    require_same_heads(RECEIPTS)
    require_same_heads(reversed(RECEIPTS))


@pytest.mark.parametrize(
    "values",
    [
        {"site": "d"},
        {"run": "run-2"},
        {"round": 3},
        {"seq": 4},
        {"head": "f" * 64},
        {"heads_sha256": "f" * 64},
        {"server_key": SigningKey.generate().public.hex},
        {"signature": "0" * 128},
    ],
    ids=lambda v: next(iter(v)),
)
def test_a_changed_receipt_no_longer_verifies(values: dict[str, Any]) -> None:
    wrong = changed(RECEIPTS[0], **values)
    assert not wrong.verifies()
    with pytest.raises(SecurityRefused, match="signed together"):
        require_same_heads((wrong, *RECEIPTS[1:]))


def test_a_server_that_shows_other_heads_to_others_is_found_out() -> None:
    """Each half verifies by itself; only all of them together can be what was hashed."""
    other = Head(site="b", seq=9, head="e" * 64)
    shown = countersign((HEADS[0], other, HEADS[2]), run="run-1", number=2, key=KEY)
    require_same_heads(shown)
    for mixed in (
        (RECEIPTS[0], shown[1], RECEIPTS[2]),
        RECEIPTS[:2],
        (*RECEIPTS, shown[1]),
        (*RECEIPTS, RECEIPTS[0]),
    ):
        with pytest.raises(SecurityRefused, match="signed together"):
            require_same_heads(mixed)


def test_receipts_of_two_rounds_runs_or_keys_are_not_together() -> None:
    for run, number, key in (
        ("run-1", 3, KEY),
        ("run-2", 2, KEY),
        ("run-1", 2, SigningKey.generate()),
    ):
        others = countersign(HEADS, run=run, number=number, key=key)
        with pytest.raises(SecurityRefused, match="signed together"):
            require_same_heads((*RECEIPTS[:2], others[2]))


def test_no_receipt_is_nothing_to_refuse() -> None:
    require_same_heads(())


def test_a_receipt_comes_back_from_what_travels() -> None:
    assert [receipt_from_plain(receipt.plain()) for receipt in RECEIPTS] == list(RECEIPTS)
    assert set(RECEIPTS[0].details()) == {
        "round",
        "seq",
        "head",
        "heads_sha256",
        "server_key",
        "signature",
    }


@given(
    name=st.sampled_from(sorted(RECEIPTS[0].plain())),
    value=st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.text(max_size=130),
        st.just("zz" * 64),
        st.just(" " * 128),
        st.just("É" * 128),
        st.lists(st.integers(), max_size=2),
    ),
)
def test_any_value_in_a_receipt_is_refused_or_does_not_verify(name: str, value: object) -> None:
    if RECEIPTS[0].plain()[name] == value:
        return
    try:
        receipt = receipt_from_plain({**RECEIPTS[0].plain(), name: value})
    except SecurityRefused as error:
        assert "\n" not in str(error)
    else:
        assert not receipt.verifies()


def test_a_receipt_with_more_or_fewer_fields_is_refused() -> None:
    plain = RECEIPTS[0].plain()
    for wrong in ({**plain, "note": "x"}, {k: v for k, v in plain.items() if k != "run"}, {}):
        with pytest.raises(SecurityRefused, match="exactly the fields"):
            receipt_from_plain(wrong)
