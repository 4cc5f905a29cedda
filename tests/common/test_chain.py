"""The rules of a ledger, one broken at a time by somebody who holds the site's key."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.chain import Fault, State, advance, event_of, receipt_body, rotation_body
from common.entries import NO_HASH, Entry, Signed, parse_line, signed
from common.mechanism import Composed, Event, Gaussian, Leaf, PoissonSampled, Repeated, leaves
from common.signing import RECEIPT, ROTATION, SigningKey
from common.verification import verify
from tests.common.ledger_suite import CAPS, A, B, C

KEY, NEW, SERVER = (SigningKey.generate() for _ in range(3))
STEP = PoissonSampled(sample_rate=0.25, event=Gaussian(noise_multiplier=2.0))
NO_REPEAT = Composed(events=(STEP,))


class Writer:
    """Signs whatever it is told, in the right place unless told otherwise."""

    def __init__(self) -> None:
        self.state, self.lines = State(), b""

    def write(self, kind: str, *, key: SigningKey = KEY, **fields: Any) -> list[Fault]:
        made = signed(self.entry(kind, **fields), key)
        self.lines += made.line + b"\n"
        return advance(self.state, made)

    def entry(self, kind: str, **fields: Any) -> Entry:
        place = {"site": "clinic", "seq": self.state.seq + 1, "prev": self.state.head}
        return Entry(**{**place, "ts": "2026-03-02T08:00:00Z", "kind": kind, **fields})

    def good(self, *kinds: str) -> "Writer":
        for kind in kinds:
            assert not self.write(kind, **GOOD[kind]), kind
        return self


GENESIS = {
    "version": 1,
    "public_key": KEY.public.hex,
    "unit": "subject",
    "adjacency": "add-or-remove",
    "caps": CAPS.plain(),
    "order": 16.0,
    "cohort": "all",
}
PLAN = {
    "purposes": ["train"],
    "max_grad_norm": 1.0,
    "plan_sha256": A,
    "backbone_sha256": A,
    "catalog_sha256": A,
}
RESERVE = {
    "plan": 1,
    "purpose": "train",
    "cohorts": ["all"],
    "noise": "secure",
    "opt_outs": NO_HASH,
}
RELEASE = {"reserve": 2, "payload_sha256": C, "bytes": 9}
ROUND = {"run": "run-1", "round": 1, "model_sha256": B}


def schedule(event: Event = STEP, count: int = 4) -> Event:
    return Composed(events=(Repeated(count=count, event=event),))


GOOD: dict[str, dict[str, Any]] = {
    "genesis": {"details": GENESIS},
    "plan": {"run": "run-1", "event": schedule(), "details": PLAN},
    "reserve": {**ROUND, "event": STEP, "details": RESERVE},
    "release": {**ROUND, "details": RELEASE},
    "cohort": {"details": {"name": "b"}},
    "opt-out": {"details": {"commitment": C}},
}
Broken = Callable[[Writer], list[Fault]]


def after(*kinds: str, kind: str, **changed: Any) -> Broken:
    """Good entries, then one of `kind` with something changed."""

    def body(writer: Writer) -> list[Fault]:
        writer.good("genesis", *kinds)
        fields = {**GOOD[kind], **changed}
        if "change" in fields:
            fields["details"] = {**fields["details"], **fields.pop("change")}
        return writer.write(kind, **fields)

    return body


WEAK = PoissonSampled(sample_rate=0.25, event=Gaussian(noise_multiplier=0.4))
BROKEN: dict[str, tuple[str, Broken]] = {
    "another site": ("chain", after("plan", kind="reserve", site="other")),
    "an earlier time": ("chain", after("plan", kind="reserve", ts="2026-03-02T07:59:59Z")),
    "a number too many": ("chain", after("plan", kind="reserve", seq=3)),
    "another line before": ("chain", after("plan", kind="reserve", prev=A)),
    "another key": ("signature", after("plan", kind="reserve", key=NEW)),
    "a second genesis": ("order", after("plan", kind="genesis")),
    "a plan above the clip": ("caps", after(kind="plan", change={"max_grad_norm": 1.1})),
    "too many rounds": ("caps", after(kind="plan", event=schedule(count=101))),
    "too little noise": ("caps", after(kind="plan", event=schedule(WEAK))),
    "a plan that costs nothing": ("plan", after(kind="plan", event=schedule(Composed(events=())))),
    "a plan without rounds": ("plan", after(kind="plan", event=NO_REPEAT)),
    "a plan without an event": ("plan", after(kind="plan", event=None)),
    "more purposes than events": (
        "plan",
        after(kind="plan", change={"purposes": ["train", "evaluate"]}),
    ),
    "a plan without a run": ("plan", after(kind="plan", run="")),
    "two plans of one run": ("plan", after("plan", kind="plan")),
    "a reservation without a plan": ("plan", after(kind="reserve")),
    "of another run": ("plan", after("plan", kind="reserve", run="run-2")),
    "of another plan": ("plan", after("plan", kind="reserve", change={"plan": 0})),
    "of another event": (
        "plan",
        after("plan", kind="reserve", event=Gaussian(noise_multiplier=9.0)),
    ),
    "of no event": ("plan", after("plan", kind="reserve", event=None)),
    "of another purpose": ("plan", after("plan", kind="reserve", change={"purpose": "evaluate"})),
    "round 0": ("plan", after("plan", kind="reserve", round=0)),
    "a round after the last": ("plan", after("plan", kind="reserve", round=5)),
    "a cohort that is not there": (
        "order",
        after("plan", kind="reserve", change={"cohorts": ["x"]}),
    ),
    "other opt-outs": ("order", after("plan", kind="reserve", change={"opt_outs": A})),
    "a reservation after the release": (
        "order",
        after("plan", "reserve", "release", kind="reserve"),
    ),
    "a release without a reservation": ("order", after("plan", kind="release")),
    "a release of an entry that is none": (
        "order",
        after("plan", "reserve", kind="release", change={"reserve": 1}),
    ),
    "a release of another round": ("order", after("plan", "reserve", kind="release", round=2)),
    "a release of another run": ("order", after("plan", "reserve", kind="release", run="run-2")),
    "a release of another model": (
        "order",
        after("plan", "reserve", kind="release", model_sha256=C),
    ),
    "a second release": ("order", after("plan", "reserve", "release", kind="release")),
    "a cohort twice": ("order", after("cohort", kind="cohort")),
    "opt-outs taken back": (
        "order",
        after("opt-out", kind="opt-out", change={"commitment": NO_HASH}),
    ),
}


def test_the_good_entries_are_without_a_fault() -> None:
    writer = Writer().good("genesis", "plan", "reserve", "release", "cohort", "opt-out")
    assert verify(writer.lines, KEY.public).passed


@pytest.mark.parametrize("name", BROKEN)
def test_one_broken_rule_is_named_by_its_entry(name: str) -> None:
    code, broken = BROKEN[name]
    writer = Writer()
    faults = broken(writer)
    assert {(fault.seq, fault.code) for fault in faults} == {(writer.state.seq, code)}
    assert all(fault.text.startswith("expected") and "\n" not in fault.text for fault in faults)
    assert list(verify(writer.lines, KEY.public).faults) == faults


@pytest.mark.parametrize("kind", sorted(set(GOOD) - {"genesis"}))
def test_a_ledger_begins_with_a_genesis(kind: str) -> None:
    faults = Writer().write(kind, **GOOD[kind])
    assert {"order", "signature"} <= {fault.code for fault in faults}


def test_a_faulty_reservation_counts_all_the_same() -> None:
    """Noise may have been drawn for it."""
    counted = 0
    for name, (_, broken) in BROKEN.items():
        writer = Writer()
        broken(writer)
        last = parse_line(writer.lines.splitlines()[-1]).entry
        if last.kind == "reserve" and last.event is not None:
            counted += 1
            spent = writer.state.spent
            assert any(n >= 1 for each in spent.values() for n in each.values()), name
            assert writer.state.seq in writer.state.reserved, name
    assert counted > 10


def rotate(
    writer: Writer, new: SigningKey, *, key: SigningKey = KEY, **changed: Any
) -> list[Fault]:
    told = {"site": "clinic", "seq": writer.state.seq + 1, "prev": writer.state.head, **changed}
    proof = new.sign(ROTATION, rotation_body(**told)).hex()
    return writer.write(
        "key-rotate", key=key, details={"public_key": new.public.hex, "proof": proof}
    )


def test_after_a_rotation_only_the_new_key_signs() -> None:
    writer = Writer().good("genesis", "plan")
    assert not rotate(writer, NEW)
    assert not writer.write("cohort", key=NEW, details={"name": "b"})
    assert [f.code for f in writer.write("cohort", key=KEY, details={"name": "c"})] == ["signature"]
    assert writer.state.keys == [KEY.public, NEW.public]


@pytest.mark.parametrize("changed", [{"site": "other"}, {"seq": 9}, {"prev": A}])
def test_a_rotation_needs_the_new_keys_own_signature_for_this_place(
    changed: dict[str, Any],
) -> None:
    writer = Writer().good("genesis", "plan")
    assert [f.code for f in rotate(writer, NEW, **changed)] == ["signature"]
    assert writer.state.key == KEY.public
    assert not writer.write("cohort", details={"name": "b"})


def test_a_rotation_signed_by_the_new_key_alone_hands_nothing_over() -> None:
    writer = Writer().good("genesis", "plan")
    assert [f.code for f in rotate(writer, NEW, key=NEW)] == ["signature"]
    assert writer.state.key == KEY.public


def receipt(writer: Writer, **changed: Any) -> list[Fault]:
    told: dict[str, Any] = {"seq": 1, "head": writer.state.heads[1], "heads_sha256": A, **changed}
    number = told.pop("round", 1)
    signature = SERVER.sign(RECEIPT, receipt_body("clinic", "run-1", 1, told)).hex()
    details = {**told, "server_key": SERVER.public.hex, "signature": signature}
    return writer.write("receipt", run="run-1", round=number, details=details)


def test_a_receipt_names_this_ledgers_own_past() -> None:
    assert not receipt(Writer().good("genesis", "plan"))
    for changed in ({"head": A}, {"seq": 0}, {"seq": 2}, {"seq": 10_000_000}, {"round": 2}):
        faults = receipt(Writer().good("genesis", "plan"), **changed)
        assert [f.code for f in faults] == ["receipt"], changed


def test_plans_that_may_follow_results_are_told_apart_from_those_that_cannot() -> None:
    second: dict[str, Any] = {**GOOD["plan"], "run": "run-2"}
    paid: dict[str, Any] = {**GOOD["reserve"], "run": "run-2"}
    before = Writer().good("genesis", "plan", "reserve")
    assert not before.write("plan", **second)
    assert not before.write("reserve", **{**paid, "details": {**RESERVE, "plan": 3}})
    assert not before.state.adaptive  # nothing was released that it could follow

    declared = Writer().good("genesis", "plan", "reserve", "release")
    assert not declared.write("plan", **second)
    assert declared.state.adaptive

    chosen = Writer().good("genesis", "plan")
    assert not chosen.write("plan", **second)
    assert not chosen.write("reserve", **GOOD["reserve"])
    assert not chosen.write("release", **{**GOOD["release"], "details": {**RELEASE, "reserve": 3}})
    assert not chosen.state.adaptive
    assert not chosen.write("reserve", **{**paid, "details": {**RESERVE, "plan": 2}})
    assert chosen.state.adaptive


def test_a_plan_that_counts_beyond_all_bounds_is_over_the_budget_and_ends_no_audit() -> None:
    huge: Event = STEP
    for _ in range(4):
        huge = Repeated(count=10_000_000, event=huge)
    writer = Writer().good("genesis")
    writer.write("plan", run="run-1", event=schedule(huge), details=PLAN)
    writer.write("reserve", **{**GOOD["reserve"], "event": huge})
    found = verify(writer.lines, KEY.public)
    assert "budget" in {fault.code for fault in found.faults}


@given(
    counts=st.dictionaries(
        st.floats(0.5, 100).map(lambda n: Gaussian(noise_multiplier=n)), st.integers(1, 1000)
    )
)
def test_counted_releases_come_back_from_their_composition(counts: dict[Leaf, int]) -> None:
    assert leaves(event_of(counts)) == counts
    assert event_of(Counter(counts)) == event_of(dict(reversed(counts.items())))


def test_an_entry_cannot_be_moved_to_another_ledger_of_the_same_key() -> None:
    one, two = Writer().good("genesis", "plan"), Writer()
    two.write("genesis", details={**GENESIS, "cohort": "others"})
    moved: Signed = parse_line(one.lines.splitlines()[1])
    assert [fault.code for fault in advance(two.state, moved)] == ["chain"]
