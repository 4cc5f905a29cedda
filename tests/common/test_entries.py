import contextlib
import hashlib
import json
import math
import string
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.caps import SiteCaps
from common.entries import (
    KINDS,
    LINE_BYTES,
    NO_HASH,
    Entry,
    Signed,
    canonical,
    is_name,
    parse_line,
    signed,
)
from common.errors import ConfigError, SecurityRefused
from common.limits import LIMITS
from common.mechanism import Composed, Event, Gaussian, PoissonSampled, RepeatAndSelect, Repeated
from common.signing import SigningKey

KEY = SigningKey.generate()
LETTERS = string.ascii_letters + string.digits
HASHES = st.binary(min_size=32, max_size=32).map(bytes.hex)
SIGNATURES = st.binary(min_size=64, max_size=64).map(bytes.hex)
NAMES = st.builds(str.__add__, st.sampled_from(LETTERS), st.text(LETTERS + "._-", max_size=63))
COUNTS = st.integers(0, 10_000_000)
NUMBERS = st.floats(0, 2.0**53, exclude_max=True)
NOISES = st.floats(1e-3, 1e3)
GAUSSIANS = st.builds(Gaussian, noise_multiplier=NOISES)
RATES = st.floats(1e-6, 1)
LEAVES = st.one_of(GAUSSIANS, st.builds(PoissonSampled, sample_rate=RATES, event=GAUSSIANS))
EVENTS: st.SearchStrategy[Event] = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(Repeated, count=st.integers(1, 10_000_000), event=inner),
        st.builds(Composed, events=st.lists(inner, max_size=3).map(tuple)),
        st.builds(
            RepeatAndSelect,
            event=inner,
            mean=st.floats(1, 1e6),
            shape=st.one_of(st.just(math.inf), st.floats(0, 1000)),
        ),
    ),
    max_leaves=4,
)
CAPS = st.builds(
    lambda **values: SiteCaps(**values).plain(),
    epsilon=NUMBERS,
    delta=NUMBERS,
    sample_rate=NUMBERS,
    max_grad_norm=NUMBERS,
    noise_multiplier=NUMBERS,
    rounds=COUNTS,
)
DETAILS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "genesis": st.fixed_dictionaries(
        {
            "version": st.just(1),
            "public_key": HASHES,
            "unit": st.just("subject"),
            "adjacency": st.just("add-or-remove"),
            "caps": CAPS,
            "order": st.floats(1.1, 2000),
            "cohort": NAMES,
        }
    ),
    "plan": st.fixed_dictionaries(
        {
            "purposes": st.sampled_from([["train"], ["evaluate"], ["train", "evaluate"]]),
            "max_grad_norm": NUMBERS,
            "plan_sha256": HASHES,
            "backbone_sha256": HASHES,
            "catalog_sha256": HASHES,
        }
    ),
    "reserve": st.fixed_dictionaries(
        {
            "plan": COUNTS,
            "purpose": st.sampled_from(["train", "evaluate"]),
            "cohorts": st.lists(NAMES, min_size=1, max_size=3),
            "noise": st.sampled_from(["secure", "seeded"]),
            "opt_outs": HASHES,
        }
    ),
    "release": st.fixed_dictionaries(
        {
            "reserve": COUNTS,
            "payload_sha256": HASHES,
            "bytes": st.integers(0, LIMITS.adapter_bytes),
        }
    ),
    "cohort": st.fixed_dictionaries({"name": NAMES}),
    "opt-out": st.fixed_dictionaries({"commitment": HASHES}),
    "key-rotate": st.fixed_dictionaries({"public_key": HASHES, "proof": SIGNATURES}),
    "receipt": st.fixed_dictionaries(
        {
            "server_key": HASHES,
            "seq": COUNTS,
            "head": HASHES,
            "heads_sha256": HASHES,
            "signature": SIGNATURES,
        }
    ),
}


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    kind = draw(st.sampled_from(sorted(DETAILS)))
    when = draw(st.datetimes()).replace(microsecond=0)
    return Entry(
        site=draw(NAMES),
        seq=draw(COUNTS),
        prev=draw(HASHES),
        ts=when.isoformat() + "Z",
        kind=kind,
        run=draw(st.one_of(st.just(""), NAMES)),
        round=draw(COUNTS),
        event=draw(st.one_of(st.none(), EVENTS)),
        model_sha256=draw(HASHES),
        details=draw(DETAILS[kind]),
    )


ENTRY = Entry(
    site="clinic",
    seq=3,
    prev="1" * 64,
    ts="2026-03-02T08:00:00Z",
    kind="reserve",
    run="run-1",
    round=2,
    event=Repeated(
        count=2, event=PoissonSampled(sample_rate=0.25, event=Gaussian(noise_multiplier=1.5))
    ),
    model_sha256="2" * 64,
    details={
        "plan": 1,
        "purpose": "train",
        "cohorts": ["all"],
        "noise": "secure",
        "opt_outs": NO_HASH,
    },
)
SIGNED = signed(ENTRY, KEY)


def spelled(**changed: Any) -> bytes:
    """The canonical spelling of the example with other values."""
    return canonical({**json.loads(SIGNED.line), **changed})


def test_every_kind_has_its_generator() -> None:
    assert set(DETAILS) == set(KINDS)


@given(entry=entries())
def test_every_entry_comes_back_from_its_line_and_verifies(entry: Entry) -> None:
    line = signed(entry, KEY)
    back = parse_line(line.line)
    assert back.entry.plain() == entry.plain()
    assert back.entry.event == entry.event
    assert back == Signed(entry=back.entry, signature=line.signature, line=line.line)
    assert back.verifies(KEY.public)
    assert back.sha256 == hashlib.sha256(line.line).hexdigest()
    assert b"\n" not in line.line


@given(entry=entries())
def test_an_entry_has_one_spelling(entry: Entry) -> None:
    line = signed(entry, KEY).line
    values = json.loads(line)
    others = {
        json.dumps(values).encode(),
        json.dumps(values, separators=(",", ":"), sort_keys=False).encode() + b" ",
        json.dumps(dict(reversed(values.items())), separators=(",", ":")).encode(),
        b" " + line,
        line + b"\r",
        line.replace(b":", b": ", 1),
        line.decode().encode("utf-16"),
        b"\xef\xbb\xbf" + line,
        line[:-1] + b',"site":"x"}',
    }
    for other in others - {line}:
        with pytest.raises(SecurityRefused):
            parse_line(other)


@given(entry=entries(), data=st.data())
def test_a_flipped_byte_is_refused_or_no_longer_signed(entry: Entry, data: st.DataObject) -> None:
    line = bytearray(signed(entry, KEY).line)
    at = data.draw(st.integers(0, len(line) - 1))
    line[at] ^= data.draw(st.integers(1, 255))
    try:
        found = parse_line(bytes(line))
    except SecurityRefused as error:
        assert "\n" not in str(error)
    else:
        assert not found.verifies(KEY.public)


def test_every_flipped_byte_of_a_line_is_refused_or_no_longer_signed() -> None:
    for at in range(len(SIGNED.line)):
        for bit in (0x01, 0x20, 0x80):
            line = bytearray(SIGNED.line)
            line[at] ^= bit
            try:
                assert not parse_line(bytes(line)).verifies(KEY.public)
            except SecurityRefused:
                continue


@given(line=st.one_of(st.binary(max_size=300), st.text(max_size=100).map(str.encode)))
def test_any_bytes_are_an_entry_or_refused_and_nothing_else_is_raised(line: bytes) -> None:
    with pytest.raises(SecurityRefused):
        parse_line(line)


JSON_VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**53) + 1, 2**53 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=12),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(name=st.sampled_from(sorted(json.loads(SIGNED.line))), value=JSON_VALUES)
def test_any_value_in_any_field_is_refused_or_no_longer_signed(name: str, value: Any) -> None:
    if json.loads(SIGNED.line)[name] == value:
        return
    _no_longer_signed(spelled(**{name: value}))


@given(name=st.sampled_from(sorted(ENTRY.details)), value=JSON_VALUES)
def test_any_value_in_any_detail_is_refused_or_no_longer_signed(name: str, value: Any) -> None:
    if ENTRY.details[name] == value and type(ENTRY.details[name]) is type(value):
        return
    _no_longer_signed(spelled(details={**ENTRY.details, name: value}))


def _no_longer_signed(line: bytes) -> None:
    with contextlib.suppress(SecurityRefused):
        assert not parse_line(line).verifies(KEY.public)


@pytest.mark.parametrize(
    "changed",
    [
        {"site": "Mrs Miller"},
        {"site": ""},
        {"site": "a" * 65},
        {"site": "clinic\n"},
        {"site": "../up"},
        {"seq": -1},
        {"seq": 10_000_001},
        {"seq": True},
        {"seq": 1.5},
        {"prev": "A" * 64},
        {"prev": "1" * 63},
        {"ts": "2026-03-02 08:00:00Z"},
        {"ts": "2026-13-02T08:00:00Z"},
        {"ts": "2026-02-30T08:00:00Z"},
        {"ts": "٢٠٢٦-03-02T08:00:00Z"},
        {"ts": "2026-03-02T08:00:00Z\n"},
        {"ts": 5},
        {"kind": "refund"},
        {"kind": ["reserve"]},
        {"run": "a b"},
        {"round": -1},
        {"model_sha256": None},
        {"event": {"kind": "gaussian"}},
        {"event": {"kind": "os.system", "noise_multiplier": 1.0}},
        {"event": "gaussian"},
        {"details": None},
        {"details": []},
        {"details": {**ENTRY.details, "note": "patient 4711"}},
        {"details": {**ENTRY.details, "cohorts": []}},
        {"details": {**ENTRY.details, "cohorts": ["c"] * 65}},
        {"details": {**ENTRY.details, "noise": "none"}},
        {"extra": 1},
        {"signature": "0" * 127},
        {"signature": "F" * 128},
        {"signature": None},
    ],
    ids=str,
)
def test_a_field_out_of_range_is_refused_in_one_line_without_its_value(
    changed: dict[str, Any],
) -> None:
    with pytest.raises(SecurityRefused, match="Expected") as caught:
        parse_line(spelled(**changed))
    told = str(caught.value)
    assert "\n" not in told
    assert "4711" not in told
    assert "Miller" not in told


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"1" * 5000])
def test_a_number_that_json_has_no_one_spelling_for_is_refused(number: bytes) -> None:
    line = SIGNED.line.replace(b'"round":2', b'"round":' + number)
    assert line != SIGNED.line
    with pytest.raises(SecurityRefused):
        parse_line(line)


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 50_000,
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b'"\\ud800"',
        b"{" + SIGNED.line[1:-1] + b"," + SIGNED.line[1:],
        b" " * (LINE_BYTES + 1),
    ],
    ids=["deep list", "deep object", "lone surrogate", "every key twice", "too long"],
)
def test_hostile_json_is_refused(line: bytes) -> None:
    with pytest.raises(SecurityRefused):
        parse_line(line)


def test_an_event_nested_too_deep_is_refused() -> None:
    event: dict[str, Any] = {"kind": "gaussian", "noise_multiplier": 1}
    for _ in range(9):
        event = {"kind": "repeated", "count": 1, "event": event}
    with pytest.raises(SecurityRefused, match="deep"):
        parse_line(spelled(event=event))


def test_nothing_is_signed_that_no_reader_would_accept() -> None:
    wide = Composed(
        events=tuple(Gaussian(noise_multiplier=1 + i / 1e6) for i in range(2000)),
    )
    made = partial(Entry, site="clinic", seq=0, prev=NO_HASH, ts=ENTRY.ts)
    for entry in (
        made(kind="cohort", details={"name": "of Mrs Miller"}),
        made(kind="cohort", details={}),
        made(kind="opt-out", details={"commitment": "subject-7"}),
        made(kind="cohort", details={"name": "wide"}, event=wide),
        made(kind="cohort", details={"name": "much"}, event=Gaussian(noise_multiplier=1e20)),
        made(kind="plan", details={**_plan(), "max_grad_norm": 1e16}),
        made(kind="plan", details={**_plan(), "purposes": ["train", "train"]}),
        made(kind="plan", details={**_plan(), "purposes": [["train"]]}),
    ):
        with pytest.raises(ConfigError, match="Expected"):
            signed(entry, KEY)


def _plan() -> dict[str, Any]:
    names = ("plan_sha256", "backbone_sha256", "catalog_sha256")
    return {"purposes": ["train"], "max_grad_norm": 1.0, **dict.fromkeys(names, NO_HASH)}


def test_an_answer_as_large_as_an_adapter_may_be_can_be_recorded() -> None:
    details = {"reserve": 3, "payload_sha256": NO_HASH, "bytes": LIMITS.adapter_bytes}
    entry = Entry(site="clinic", seq=4, prev=NO_HASH, ts=ENTRY.ts, kind="release", details=details)
    assert parse_line(signed(entry, KEY).line).entry == entry


@given(name=st.text(max_size=70))
def test_a_name_holds_no_sentence(name: str) -> None:
    if is_name(name):
        assert name.isascii()
        assert not set(name) - set(LETTERS + "._-")
        assert len(name) <= 64
