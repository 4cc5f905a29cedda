"""Every code of the gate by a real message of a site that signs what a test wants."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from common.plan import EvaluationPlan
from common.randomness import SecureRandomness
from common.signing import SigningKey
from common.spending import noise_of
from common.wire import (
    FIGURES,
    Answer,
    Evaluation,
    Said,
    Tensors,
    figures_payload,
    pack_answer,
    pack_evaluation,
    to_payload,
    to_record,
    unpack_answer,
    unpack_order,
)
from server.admission import Gate, Inadmissible, Member, length
from server.heads import HeadBook
from tests.server.consortium import (
    SHAPES,
    Round,
    Signer,
    exchange_plan,
    full,
    identity_of,
    round_of,
)


def admitted(asked: Round, reply: Message, *, number: int = 1, site: str = "s0") -> Tensors:
    member = next(m for m in asked.strategy.members.values() if m.identity.site == site)
    return asked.strategy.gate.admit(reply, member, number=number, shapes=SHAPES)


def refused(asked: Round, reply: Message, *, number: int = 1) -> Said:
    with pytest.raises(Inadmissible) as error:
        admitted(asked, reply, number=number)
    assert "\n" not in str(error.value)
    return error.value.code


def changed(**tensors: Any) -> dict[str, Any]:
    whole = {**full(0.1), **tensors}
    return {name: value for name, value in whole.items() if value is not None}


def test_an_honest_answer_is_admitted_as_it_was_sent() -> None:
    asked = round_of()
    draw = np.random.default_rng(1)
    update = {k: draw.normal(0, 0.1, s).astype(np.float32) for k, s in SHAPES.items()}
    found = admitted(asked, asked.signers[0].answer(asked.orders()["s0"], update))
    assert all(np.array_equal(found[name], value) for name, value in update.items())


MAP = SHAPES["map.care"]
BAD_UPDATES: dict[str, tuple[Said, dict[str, Any]]] = {
    "extra": (Said.TENSORS, changed(more=np.ones(1, np.float32))),
    "missing": (Said.TENSORS, changed(mixer=None)),
    "nothing": (Said.TENSORS, {}),
    "renamed": (Said.TENSORS, changed(mixer=None, mixer_=np.ones((3, 4), np.float32))),
    "transposed": (Said.SHAPE, {**full(0.1), "map.care": np.ones(MAP[::-1], np.float32)}),
    "broadcast": (Said.SHAPE, {**full(0.1), "map.care": np.ones((1, 1), np.float32)}),
    "scalar": (Said.SHAPE, changed(mixer=np.array(1.0, np.float32))),
    "empty": (Said.SHAPE, changed(mixer=np.zeros((0, 4), np.float32))),
    "float64": (Said.FORM, changed(mixer=np.ones((3, 4)))),
    "integers": (Said.FORM, changed(mixer=np.ones((3, 4), np.int32))),
    "nan": (Said.NOT_FINITE, changed(mixer=np.full((3, 4), np.nan, np.float32))),
    "inf": (Said.NOT_FINITE, changed(mixer=np.full((3, 4), -np.inf, np.float32))),
    "one nan": (Said.NOT_FINITE, {**full(0.0), "gate.care": np.array([np.nan], np.float32)}),
    "huge": (Said.TOO_LONG, changed(mixer=np.full((3, 4), 1e30, np.float32))),
    "largest": (Said.TOO_LONG, full(float(np.finfo(np.float32).max))),
    "long": (Said.TOO_LONG, full(5.0)),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_UPDATES)
def test_an_update_that_is_paid_for_and_is_not_as_asked_gets_its_code(kind: str) -> None:
    code, update = BAD_UPDATES[kind]
    asked = round_of()
    assert refused(asked, asked.signers[0].answer(asked.orders()["s0"], update)) is code


def bodies(asked: Round) -> dict[str, tuple[Said, RecordDict | Error]]:
    order = asked.orders()["s0"]
    good = asked.signers[0].answer(order, full(0.1)).content
    answer, ledger = good["answer"], good["ledger"]
    plain = dict(good.items())
    return {
        "error": (Said.NONE, Error(code=1004, reason="REFUSED")),
        "error with a text": (Said.NONE, Error(code=1, reason="patient 17 is ill")),
        "nothing": (Said.FORM, RecordDict()),
        "no ledger": (Said.FORM, RecordDict({"update": good["update"], "answer": answer})),
        "a metric": (Said.FORM, RecordDict({**plain, "loss": MetricRecord({"loss": 0.1})})),
        "a count": (
            Said.FORM,
            RecordDict({**plain, "answer": ConfigRecord({"round": 1, "num-examples": 9})}),
        ),
        "round as text": (Said.FORM, RecordDict({**plain, "answer": ConfigRecord({"round": "1"})})),
        "lines as text": (Said.FORM, RecordDict({**plain, "ledger": ConfigRecord({"lines": "x"})})),
        "arrays as settings": (Said.FORM, RecordDict({**plain, "update": ConfigRecord({})})),
        "settings as arrays": (Said.FORM, RecordDict({**plain, "answer": ArrayRecord({})})),
        "a later round": (Said.ROUND, RecordDict({**plain, "answer": ConfigRecord({"round": 2})})),
        "round 0": (Said.ROUND, RecordDict({**plain, "answer": ConfigRecord({"round": 0})})),
        "a huge round": (
            Said.ROUND,
            RecordDict({**plain, "answer": ConfigRecord({"round": 2**62})}),
        ),
        "no lines": (Said.LEDGER, RecordDict({**plain, "ledger": ConfigRecord({"lines": b""})})),
        "junk lines": (
            Said.LEDGER,
            RecordDict({**plain, "ledger": ConfigRecord({"lines": b"\xff\x00\n" * 5})}),
        ),
        "half of the lines": (
            Said.LEDGER,
            RecordDict({**plain, "ledger": ConfigRecord({"lines": ledger["lines"][:900]})}),  # type: ignore[index]
        ),
        "another update than the released one": (
            Said.LEDGER,
            RecordDict({**plain, "update": to_record(full(0.2))}),
        ),
    }


@pytest.mark.parametrize("kind", bodies(round_of()))
def test_a_message_that_is_no_answer_gets_its_code(kind: str) -> None:
    asked = round_of()
    code, content = bodies(asked)[kind]
    assert refused(asked, Message(content, reply_to=asked.orders()["s0"])) is code


def with_lines(order: Message, update: Tensors, lines: bytes) -> Message:
    number = unpack_order(order.content)[0].round
    told = Answer(round=number, update=update, lines=lines)
    return Message(pack_answer(told), reply_to=order)


def test_a_ledger_of_another_site_does_not_pay() -> None:
    asked = round_of()
    orders = asked.orders()
    others = unpack_answer(asked.signers[1].answer(orders["s1"], full(0.1)).content)
    assert refused(asked, with_lines(orders["s0"], full(0.1), others.lines)) is Said.LEDGER


def test_a_ledger_under_another_key_than_the_contracts_does_not_pay() -> None:
    asked = round_of(keys={"s0": SigningKey.generate().public})
    order = asked.orders()["s0"]
    assert refused(asked, asked.signers[0].answer(order, full(0.1))) is Said.LEDGER


def test_a_site_that_was_seen_is_not_impersonated_with_a_new_key() -> None:
    asked = round_of()
    orders = asked.orders()
    admitted(asked, asked.signers[0].answer(orders["s0"], full(0.1)))
    thief = Signer("s0", asked.plan)
    assert refused(asked, thief.answer(asked.orders(2)["s0"], full(0.1)), number=2) is Said.LEDGER
    owner = asked.signers[0].answer(asked.orders(2)["s0"], full(0.1))
    assert admitted(asked, owner, number=2)  # the thief left no trace


def test_lines_whose_signature_does_not_fit_do_not_pay() -> None:
    asked = round_of()
    order = asked.orders()["s0"]
    honest = unpack_answer(asked.signers[0].answer(order, full(0.1)).content)
    place = honest.lines.rindex(b'"sig":"') + 10 if b'"sig":"' in honest.lines else -20
    lines = bytearray(honest.lines)
    lines[place] = ord("0") if lines[place] != ord("0") else ord("1")
    assert refused(asked, with_lines(order, full(0.1), bytes(lines))) is Said.LEDGER
    assert admitted(asked, with_lines(order, full(0.1), honest.lines))  # nothing bad was kept


@pytest.mark.parametrize("name", ["run", "number", "purpose"])
def test_a_release_for_something_else_does_not_pay(name: str) -> None:
    asked = round_of()
    plan = asked.plan.model_copy(update={"evaluation": EvaluationPlan(every=1)})
    signer = Signer("s0", plan, run="2" if name == "run" else "1")
    purpose = "evaluate" if name == "purpose" else "train"
    signer.pays(to_payload(full(0.1)), 2 if name == "number" else 1, purpose=purpose)
    reply = with_lines(asked.orders()["s0"], full(0.1), signer.ledger.lines_after(-1))
    assert refused(asked, reply) is Said.LEDGER


def test_a_reservation_without_a_release_does_not_pay() -> None:
    asked = round_of()
    signer = asked.signers[0]
    signer.ledger.reserve(
        run="1", number=1, model_sha256="2" * 64, randomness=SecureRandomness()
    )  # fmt: skip
    reply = with_lines(asked.orders()["s0"], full(0.1), signer.ledger.lines_after(-1))
    assert refused(asked, reply) is Said.LEDGER


def test_every_code_but_the_one_for_no_message_at_all_is_met_here() -> None:
    met = {code for code, _ in BAD_UPDATES.values()}
    met |= {code for code, _ in bodies(round_of()).values()}
    assert met | {Said.ADMITTED, Said.SUSPENDED, Said.TOO_SHORT} == set(Said)


def test_an_update_without_the_plans_noise_is_refused_and_an_honest_one_never_is() -> None:
    gate, member = gate_of(400, noise_multiplier=1.5)
    shapes = {"map.care": (60, 70), "bias.care": (50,)}
    deviation, draw = np.sqrt(gate.variance(member.identity)), np.random.default_rng(5)

    def verdict(share: float) -> Said | None:
        update = {n: (share * deviation * draw.standard_normal(s)).astype(np.float32)
                  for n, s in shapes.items()}  # fmt: skip
        try:
            gate._whole(update, member, shapes)
        except Inadmissible as error:
            return error.code
        return None

    assert [verdict(1.0) for _ in range(300)] == [None] * 300
    assert verdict(0.8) is Said.TOO_SHORT
    assert verdict(0.0) is Said.TOO_SHORT


def gate_of(subjects: int, **privacy: Any) -> tuple[Gate, Member]:
    plan = exchange_plan()
    chosen = plan.privacy.model_copy(update=privacy)
    plan = plan.model_copy(update={"privacy": chosen})
    heads = HeadBook(SigningKey.generate())
    gate = Gate(plan=plan, run="1", heads=heads, noise_multiplier=noise_of(plan))
    return gate, Member(node=1, identity=identity_of("s0", subjects=subjects))


@pytest.mark.parametrize("subjects", [20, 1000])
@pytest.mark.parametrize("shapes", [{"bias": (1,)}, {"map": (30, 20), "bias": (100,)}])
def test_no_honest_update_of_ten_thousand_is_too_long(
    subjects: int, shapes: dict[str, tuple[int, ...]]
) -> None:
    """The worst honest case: all clipped gradients point the same way, into any batch drawn."""
    gate, member = gate_of(subjects, max_grad_norm=0.7)
    bound = gate.bound(member.identity, shapes)
    size = sum(int(np.prod(s)) for s in shapes.values())
    draw = np.random.default_rng(subjects)
    rate, clip = gate.plan.privacy.sample_rate, 0.7
    batch = draw.binomial(subjects, rate, 10_000)
    longest = 0.0
    for part in np.split(batch, 20):
        noise = draw.standard_normal((len(part), size)) * gate.noise_multiplier * clip
        noise[:, 0] += part * clip
        longest = max(longest, float(np.linalg.norm(noise, axis=1).max()) / (rate * subjects))
    assert longest < bound


def test_three_times_an_honest_update_of_a_large_site_is_refused() -> None:
    asked = round_of()
    large = dataclasses.replace(
        asked.strategy.members[1000], identity=identity_of("s0", subjects=20_000)
    )
    asked.strategy.members[1000] = large
    draw = np.random.default_rng(3)
    size = sum(int(np.prod(s)) for s in SHAPES.values())
    flat = draw.standard_normal(size) * 2.0 / 10_000
    flat[0] += 1.0  # every clipped gradient of the expected batch points the same way
    ends = np.cumsum([0, *(int(np.prod(s)) for s in SHAPES.values())])
    honest = {
        name: flat[a:b].reshape(shape).astype(np.float32)
        for (name, shape), a, b in zip(SHAPES.items(), ends[:-1], ends[1:], strict=True)
    }
    first = asked.signers[0].answer(asked.orders()["s0"], honest)
    assert admitted(asked, first)
    thrice = {name: 3 * value for name, value in honest.items()}
    again = asked.signers[0].answer(asked.orders(2)["s0"], thrice)
    assert refused(asked, again, number=2) is Said.TOO_LONG


def test_length_does_not_overflow_where_float32_would() -> None:
    assert length({"a": np.full(4, 1e30, np.float32)}) == pytest.approx(2e30)
    assert length({}) == 0.0


VALUES = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(max_size=9), st.binary(max_size=9),
    st.booleans(), st.lists(st.integers(0, 9), max_size=3),
)  # fmt: skip
RECORDS = st.one_of(
    st.dictionaries(st.text(max_size=6), VALUES, max_size=3).map(ConfigRecord),
    st.dictionaries(st.text(max_size=6), st.floats(), max_size=3).map(
        lambda values: MetricRecord({**values})
    ),
)
NAMES = st.sampled_from(["update", "answer", "ledger", "figures", "x"])


@settings(max_examples=150, deadline=None)
@given(records=st.dictionaries(NAMES, RECORDS, max_size=4))
def test_no_message_makes_the_gate_raise_anything_else(records: dict[str, Any]) -> None:
    gate, member = gate_of(100)
    order = ASKED.orders()["s0"]
    reply = Message(RecordDict(records), reply_to=order)
    with pytest.raises(Inadmissible):
        gate.admit(reply, member, number=1, shapes=SHAPES)
    with pytest.raises(Inadmissible):
        gate.admit_figures(reply, member, number=1)


ASKED = round_of()


# Evaluations


def evaluated(
    change: Callable[[Evaluation], Evaluation] | None = None, *, number: int = 2
) -> dict[str, float]:
    plan = exchange_plan().model_copy(
        update={"evaluation": EvaluationPlan(every=2, noise_multiplier=20.0)}
    )
    signer = Signer("s0", plan)
    figures = {name: 1.5 * place for place, name in enumerate(FIGURES)}
    signer.pays(figures_payload(figures), 1, purpose="evaluate")
    told = Evaluation(round=2, figures=figures, lines=signer.ledger.lines_after(-1))
    sent = told if change is None else change(told)
    gate = Gate(
        plan=plan, run="1", heads=HeadBook(SigningKey.generate()), noise_multiplier=noise_of(plan)
    )
    reply = Message(pack_evaluation(sent), reply_to=ASKED.orders()["s0"])
    member = Member(node=1, identity=identity_of("s0"))
    return gate.admit_figures(reply, member, number=number)


def test_an_evaluation_that_is_paid_for_is_admitted() -> None:
    assert evaluated() == {"subjects": 0.0, "ndcg@10": 1.5, "hit@10": 3.0}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda e: dataclasses.replace(e, figures={**e.figures, "hit@10": 3.5}), Said.LEDGER),
        (lambda e: dataclasses.replace(e, lines=b""), Said.LEDGER),
        (lambda e: dataclasses.replace(e, round=4), Said.ROUND),
        (lambda e: dataclasses.replace(e, figures={**e.figures, "hit@10": np.nan}), Said.FORM),
        (lambda e: dataclasses.replace(e, figures={**e.figures, "hit@10": "3"}), Said.FORM),
    ],
)
def test_another_evaluation_gets_its_code(
    change: Callable[[Evaluation], Evaluation], code: Said
) -> None:
    with pytest.raises(Inadmissible) as error:
        evaluated(change)
    assert error.value.code is code


def test_one_evaluation_does_not_count_for_the_next_round_too() -> None:
    with pytest.raises(Inadmissible) as error:
        evaluated(lambda e: dataclasses.replace(e, round=4), number=4)
    assert error.value.code is Said.LEDGER
