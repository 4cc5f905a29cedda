"""One round between a server and sites that are late, repeat themselves, lie or stay away."""

import logging
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message

from common.wire import Answer, Said, pack_answer, unpack_answer, unpack_order
from server.exchange import QuorumMissed
from tests.server.consortium import SHAPES, Round, full, round_of


def answers(asked: Round, number: int = 1, /, **values: float) -> list[Message]:
    """One answer of each named site, the same value in every number."""
    orders = asked.orders(number)
    return [asked.signer(s).answer(orders[s], full(value)) for s, value in values.items()]


def last_codes(asked: Round, number: int) -> dict[str, int]:
    return {s: unpack_order(o.content)[0].last for s, o in asked.orders(number).items()}


def require_moved(asked: Round, replies: list[Message], value: float, number: int = 1) -> None:
    for name, moved in asked.moved(replies, number).items():
        np.testing.assert_allclose(moved, value, rtol=1e-5, atol=1e-7, err_msg=name)


def test_a_duplicate_answer_adds_nothing() -> None:
    asked = round_of(3, quorum=1)
    a, b, c = answers(asked, s0=0.3, s1=0.0, s2=0.0)
    require_moved(asked, [a, b, a, c, a], 0.1)
    assert not asked.strategy.offences


def test_the_first_answer_of_a_site_counts_and_a_second_one_is_not_looked_at() -> None:
    asked = round_of(3, quorum=1)
    a, b, c = answers(asked, s0=0.3, s1=0.0, s2=0.0)
    order = asked.orders()["s0"]
    other = Message(pack_answer(Answer(round=1, update=full(0.9), lines=b"junk\n")), reply_to=order)
    require_moved(asked, [a, other, b, c], 0.1)


def test_a_bad_answer_and_then_a_good_one_of_the_same_site_counts_once() -> None:
    asked = round_of(3, quorum=1)
    a, b, c = answers(asked, s0=0.3, s1=0.0, s2=0.0)
    bad = Message(Error(code=1, reason="x"), reply_to=asked.orders()["s0"])
    require_moved(asked, [bad, a, b, c], 0.1)


def replayed(before: Message, order: Message, *, number: int) -> Message:
    """The update of an earlier round, sent again in answer to a later order."""
    old = unpack_answer(before.content)
    return Message(
        pack_answer(Answer(round=number, update=old.update, lines=old.lines)), reply_to=order
    )


@pytest.mark.parametrize("number", [1, 2], ids=["its own round", "the round asked for"])
def test_a_replay_of_an_earlier_rounds_update_adds_nothing(number: int) -> None:
    asked = round_of(3, quorum=1)
    before = answers(asked, s0=0.3, s1=0.3, s2=0.3)
    asked.moved(before)
    _, b, c = answers(asked, 2, s0=0.3, s1=0.1, s2=0.1)
    replay = replayed(before[0], asked.orders(2)["s0"], number=number)
    require_moved(asked, [replay, b, c], 0.1, 2)
    code = Said.ROUND if number == 1 else Said.LEDGER
    assert last_codes(asked, 3) == {"s0": code, "s1": Said.ADMITTED, "s2": Said.ADMITTED}


def test_an_earlier_update_under_lines_that_show_another_release_adds_nothing() -> None:
    asked = round_of(3, quorum=1)
    asked.moved(answers(asked, s0=0.3, s1=0.3, s2=0.3))
    a, b, c = answers(asked, 2, s0=0.2, s1=0.1, s2=0.1)
    paid = unpack_answer(a.content).lines  # round 2 is paid for, by other bytes
    told = Answer(round=2, update=full(0.3), lines=paid)
    require_moved(asked, [Message(pack_answer(told), reply_to=asked.orders(2)["s0"]), b, c], 0.1, 2)
    assert last_codes(asked, 3)["s0"] == Said.LEDGER


def test_the_answer_of_a_stranger_counts_for_nobody() -> None:
    asked = round_of(3, quorum=1)
    a, b, c = answers(asked, s0=0.3, s1=0.1, s2=0.1)
    del asked.strategy.members[1000]
    require_moved(asked, [a, b, c], 0.1)
    assert not asked.strategy.offences


# Codes, offences, suspension


def refuse(asked: Round, number: int, *sites: str) -> None:
    """A round in which these sites answer with a NaN and the others well."""
    orders = asked.orders(number)
    replies = []
    for site, order in orders.items():
        value = np.nan if site in sites else 0.1
        replies.append(asked.signer(site).answer(order, full(value)))
    asked.moved(replies, number)


def test_a_site_hears_the_code_in_its_next_order_and_forgets_it_when_it_mends() -> None:
    asked = round_of(3, quorum=1)
    assert set(last_codes(asked, 1).values()) == {Said.ADMITTED}
    refuse(asked, 1, "s1")
    assert last_codes(asked, 2) == {"s0": 0, "s1": Said.NOT_FINITE, "s2": 0}
    refuse(asked, 2)
    assert set(last_codes(asked, 3).values()) == {Said.ADMITTED}


def test_a_site_is_left_out_after_as_many_offences_as_the_plan_says(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = round_of(3, quorum=1, suspend_after=2)
    with caplog.at_level(logging.WARNING, logger="confed.server"):
        for number in (1, 2, 3):
            assert set(asked.orders(number)) == ({"s0", "s1", "s2"} if number < 3 else {"s0", "s2"})
            refuse(asked, number, "s1")
    said = [record.getMessage() for record in caplog.records]
    assert [text for text in said if "suspended" in text] == [
        "site s1 is suspended after 2 offences"
    ]
    assert sum("site s1: NOT_FINITE" in text for text in said) == 2


def test_a_site_that_cannot_answer_is_no_offender() -> None:
    asked = round_of(3, quorum=1, suspend_after=1)
    for number in (1, 2, 3):
        orders = asked.orders(number)
        assert set(orders) == {"s0", "s1", "s2"}
        silent = Message(Error(code=1004, reason="REFUSED"), reply_to=orders["s0"])
        asked.moved([silent, asked.signer("s1").answer(orders["s1"], full(0.1))], number)
    assert last_codes(asked, 4)["s0"] == Said.NONE


def test_a_site_cannot_write_into_the_servers_log(caplog: pytest.LogCaptureFixture) -> None:
    asked = round_of(3, quorum=1)
    order = asked.orders()["s0"]
    evil: dict[str, Any] = {"x\nWARNING site s1 is suspended": np.ones(1, np.float64)}
    text = Error(code=7, reason="fine\nWARNING site s2 is suspended")
    with caplog.at_level(logging.WARNING, logger="confed.server"):
        asked.moved(
            [
                asked.signer("s0").answer(order, evil),
                Message(text, reply_to=asked.orders()["s1"]),
                asked.signer("s2").answer(asked.orders()["s2"], full(0.1)),
            ]
        )
    assert len(caplog.records) == 2
    assert not any(
        "\n" in record.getMessage() or "suspended" in record.getMessage()
        for record in caplog.records
    )


# Quorum, drop-outs, trimming


@pytest.mark.parametrize(
    ("sites", "federation", "quorum"),
    [
        (1, {}, 1),
        (4, {}, 2),
        (5, {"aggregation": "mean"}, 3),
        (9, {"tolerate": 3, "aggregation": "trimmed-mean"}, 7),  # 2f + 1
        (20, {"tolerate": 2}, 10),
        (4, {"quorum": 3}, 3),
        (4, {"quorum": 9}, 4),  # never more than there are
        (7, {"tolerate": 2, "aggregation": "trimmed-mean"}, 5),
    ],
)
def test_the_quorum_is_half_of_the_sites_and_what_a_robust_rule_needs(
    sites: int, federation: dict[str, Any], quorum: int
) -> None:
    assert round_of(sites, **federation).strategy.quorum() == quorum


def test_a_missed_quorum_moves_nothing_and_the_same_answers_can_come_again() -> None:
    asked = round_of(4, quorum=3)
    orders = asked.orders()
    replies = {s: asked.signer(s).answer(orders[s], full(0.1)) for s in ("s0", "s1")}
    with pytest.raises(
        QuorumMissed, match="Expected answers of 3 sites at least to round 1, got 2"
    ):
        asked.strategy.aggregate_train(1, list(replies.values()))
    assert not asked.strategy.offences
    late = asked.signer("s2").answer(asked.orders()["s2"], full(0.1))
    require_moved(asked, [*replies.values(), late], 0.1)


def trimmed(values: list[float], count: int) -> float:
    return float(np.mean(sorted(values)[count : len(values) - count]))


def test_with_two_of_nine_gone_two_on_each_side_are_still_trimmed() -> None:
    """A count, not a share: 2 of 7 are as hostile as 2 of 9."""
    asked = round_of(9, tolerate=2, aggregation="trimmed-mean")
    values = {"s0": 0.3, "s1": -0.3, "s2": 0.01, "s3": 0.02, "s4": 0.03, "s5": 0.3, "s6": 0.25}
    wanted = trimmed(list(values.values()), 2)
    require_moved(asked, answers(asked, **values), wanted)  # s7 and s8 do not answer
    assert abs(wanted - trimmed(list(values.values()), 1)) > 0.001


def test_with_fewer_than_two_f_and_one_answers_the_round_is_not_closed() -> None:
    asked = round_of(9, tolerate=2, aggregation="trimmed-mean")
    with pytest.raises(QuorumMissed, match="5 sites at least to round 1, got 4"):
        asked.moved(answers(asked, **{f"s{i}": 0.1 for i in range(4)}))


def test_two_hostile_sites_inside_the_bound_move_a_trimmed_mean_no_further_than_the_honest() -> (
    None
):
    asked = round_of(9, tolerate=2, aggregation="trimmed-mean")
    values = {f"s{i}": 0.01 * i for i in range(7)} | {"s7": 0.3, "s8": 0.3}
    moved = asked.moved(answers(asked, **values))
    assert all((v <= 0.06 + 1e-6).all() and (v >= 0.0).all() for v in moved.values())


def test_refused_answers_do_not_count_for_the_quorum() -> None:
    asked = round_of(3, quorum=3)
    orders = asked.orders()
    replies = [asked.signer(s).answer(o, full(0.1)) for s, o in orders.items() if s != "s1"]
    replies.append(asked.signer("s1").answer(orders["s1"], full(np.nan)))
    with pytest.raises(QuorumMissed, match="got 2"):
        asked.moved(replies)


# What is sent


def test_an_order_expires_with_its_round_and_names_run_and_receipts() -> None:
    asked = round_of(3, quorum=1, round_timeout=12.5)
    asked.moved(answers(asked, s0=0.1, s1=0.1, s2=0.1))
    for site, message in asked.orders(2).items():
        order, tensors = unpack_order(message.content)
        assert message.metadata.ttl == 12.5
        assert (order.round, order.run, order.plan) == (2, "1", asked.plan)
        assert {r.site for r in order.receipts} == {"s0", "s1", "s2"}
        mine = next(r for r in order.receipts if r.site == site)
        assert asked.signer(site).ledger.knows(mine.seq, mine.head)
        assert {n: v.shape for n, v in tensors.items()} == SHAPES


def test_an_order_holds_nothing_that_a_site_has_sent_but_heads() -> None:
    """Sites see one another's hashes, never another's lines or update."""
    asked = round_of(3, quorum=1)
    asked.moved(answers(asked, s0=0.1, s1=0.2, s2=0.3))
    (order,) = [o for s, o in asked.orders(2).items() if s == "s0"]
    assert set(order.content.keys()) == {"adapter", "order", "heads"}
    assert set(order.content["heads"].keys()) == {"receipts"}
