import json
import math
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError
from common.mechanism import (
    MAX_COUNT,
    MAX_DEPTH,
    MAX_SHAPE,
    Composed,
    Event,
    Gaussian,
    PoissonSampled,
    RepeatAndSelect,
    Repeated,
    from_plain,
    leaves,
    to_plain,
)

GAUSSIAN = Gaussian(noise_multiplier=1.5)
SAMPLED = PoissonSampled(sample_rate=0.25, event=GAUSSIAN)
PLAIN_GAUSSIAN = {"kind": "gaussian", "noise_multiplier": 1.5}

PLAIN_BEST = {"kind": "repeat-and-select", "event": PLAIN_GAUSSIAN, "mean": 10.0, "shape": 1.0}
KINDS = ["gaussian", "repeated", "composed", "poisson-sampled", "repeat-and-select"]

gaussians = st.builds(Gaussian, noise_multiplier=st.floats(1e-6, 1e6))
singles = gaussians | st.builds(PoissonSampled, sample_rate=st.floats(1e-9, 1.0), event=gaussians)
events = st.recursive(
    singles,
    lambda inner: (
        st.builds(Repeated, count=st.integers(1, MAX_COUNT), event=inner)
        | st.builds(Composed, events=st.lists(inner, max_size=3).map(tuple))
        | st.builds(
            RepeatAndSelect,
            event=inner,
            mean=st.floats(1, MAX_COUNT),
            shape=st.floats(0, MAX_SHAPE) | st.just(math.inf),
        )
    ),
    max_leaves=4,
).filter(lambda event: _levels(event) <= MAX_DEPTH)


def _levels(event: Event) -> int:
    return json.dumps(to_plain(event)).count("{")


@given(event=events)
def test_an_event_survives_json_unchanged(event: Event) -> None:
    text = json.dumps(to_plain(event), allow_nan=False)
    assert from_plain(json.loads(text)) == event


@given(event=singles)
def test_a_number_that_json_wrote_as_an_integer_reads_as_the_same_value(event: Event) -> None:
    assert from_plain({"kind": "gaussian", "noise_multiplier": 2}) == Gaussian(noise_multiplier=2.0)
    assert to_plain(from_plain({"kind": "gaussian", "noise_multiplier": 2})) == {
        "kind": "gaussian",
        "noise_multiplier": 2.0,
    }


def test_the_plain_form_is_canonical() -> None:
    assert to_plain(Composed(events=(Repeated(count=3, event=SAMPLED), GAUSSIAN))) == {
        "kind": "composed",
        "events": [
            {
                "kind": "repeated",
                "count": 3,
                "event": {"kind": "poisson-sampled", "sample_rate": 0.25, "event": PLAIN_GAUSSIAN},
            },
            PLAIN_GAUSSIAN,
        ],
    }


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["kind", "event", "events", "count", "noise_multiplier", "x"])
                | st.text(),
                inner | st.sampled_from(KINDS),
                max_size=4,
            )
        ),
    )
)
def test_any_other_value_is_refused_by_the_one_error(value: object) -> None:
    try:
        event = from_plain(value)
    except ConfigError:
        return
    assert from_plain(to_plain(event)) == event


BAD: list[Any] = [
    {"module_name": "os", "class_name": "system"},
    {"kind": "GaussianDpEvent", "module_name": "antigravity", "noise_multiplier": 1.0},
    {"kind": "gaussian", "module_name": "antigravity", "noise_multiplier": 1.0},
    {"kind": ["gaussian"], "noise_multiplier": 1.0},
    {"kind": "gaussian"},
    {"kind": "gaussian", "noise_multiplier": float("nan")},
    {"kind": "gaussian", "noise_multiplier": float("inf")},
    {"kind": "gaussian", "noise_multiplier": 10**400},
    {"kind": "gaussian", "noise_multiplier": True},
    {"kind": "gaussian", "noise_multiplier": "1.0"},
    {"kind": "gaussian", "noise_multiplier": 0},
    {"kind": "repeated", "count": 1.0, "event": PLAIN_GAUSSIAN},
    {"kind": "repeated", "count": True, "event": PLAIN_GAUSSIAN},
    {"kind": "repeated", "count": 0, "event": PLAIN_GAUSSIAN},
    {"kind": "repeated", "count": MAX_COUNT + 1, "event": PLAIN_GAUSSIAN},
    {"kind": "poisson-sampled", "sample_rate": 1.1, "event": PLAIN_GAUSSIAN},
    {"kind": "poisson-sampled", "sample_rate": 0.5, "event": {"kind": "composed", "events": []}},
    {"kind": "composed", "events": PLAIN_GAUSSIAN},
    {"kind": "composed", "events": [None]},
    {**PLAIN_BEST, "module_name": "antigravity"},
    {**PLAIN_BEST, "mean": float("nan")},
    {**PLAIN_BEST, "mean": 0.5},
    {**PLAIN_BEST, "mean": MAX_COUNT + 1},
    {**PLAIN_BEST, "mean": True},
    {**PLAIN_BEST, "shape": float("nan")},
    {**PLAIN_BEST, "shape": float("inf")},
    {**PLAIN_BEST, "shape": "gauss"},
    {**PLAIN_BEST, "shape": -0.1},
    {**PLAIN_BEST, "shape": MAX_SHAPE + 1},
    {**PLAIN_BEST, "shape": None},
    {**PLAIN_BEST, "event": {"kind": "repeat-and-select"}},
    {"kind": "repeat-and-select", "event": PLAIN_GAUSSIAN, "mean": 10.0},
    [PLAIN_GAUSSIAN],
    None,
]


@pytest.mark.parametrize("value", BAD, ids=lambda value: str(value)[:60])
def test_bad_stored_text_is_refused_and_imports_nothing(value: object) -> None:
    before = set(sys.modules)
    with pytest.raises(ConfigError) as caught:
        from_plain(value)
    assert "\n" not in str(caught.value)
    assert set(sys.modules) == before


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = dict(PLAIN_GAUSSIAN)
    for _ in range(levels - 1):
        value = {"kind": "composed", "events": [value]}
    return value


def test_eight_levels_are_read_and_nine_are_refused() -> None:
    assert to_plain(from_plain(nested(MAX_DEPTH))) == nested(MAX_DEPTH)
    with pytest.raises(ConfigError, match="at most 8 deep"):
        from_plain(nested(MAX_DEPTH + 1))


def test_ten_thousand_levels_are_refused_without_exhausting_the_stack() -> None:
    with pytest.raises(ConfigError, match="at most 8 deep"):
        from_plain(nested(10_000))


def test_an_event_too_deep_to_be_stored_cannot_be_made() -> None:
    event: Event = from_plain(nested(MAX_DEPTH))
    with pytest.raises(ConfigError, match="at most 8 deep"):
        Composed(events=(event,))
    with pytest.raises(ConfigError, match="at most 8 deep"):
        Repeated(count=2, event=event)


@pytest.mark.parametrize("noise", [0, -1.0, float("nan"), float("inf"), True, "1", None, 10**400])
def test_noise_that_is_none_is_refused(noise: Any) -> None:
    with pytest.raises(ConfigError, match="noise_multiplier"):
        Gaussian(noise_multiplier=noise)


@pytest.mark.parametrize("rate", [0, -0.1, 1.3, float("nan"), True, None])
def test_a_rate_outside_0_1_is_refused(rate: Any) -> None:
    with pytest.raises(ConfigError, match="sample_rate"):
        PoissonSampled(sample_rate=rate, event=GAUSSIAN)


@pytest.mark.parametrize("event", [None, "gaussian", SAMPLED])
def test_only_a_gaussian_can_be_sampled(event: Any) -> None:
    with pytest.raises(ConfigError, match="Gaussian"):
        PoissonSampled(sample_rate=0.5, event=event)


@pytest.mark.parametrize("count", [0, -1, 1.0, True, MAX_COUNT + 1, None])
def test_a_count_that_is_none_is_refused(count: Any) -> None:
    with pytest.raises(ConfigError, match="count"):
        Repeated(count=count, event=GAUSSIAN)


@pytest.mark.parametrize("events", [[GAUSSIAN], (GAUSSIAN, None), "xy"])
def test_a_composition_takes_a_tuple_of_events(events: Any) -> None:
    with pytest.raises(ConfigError):
        Composed(events=events)


def test_leaves_multiply_through_repetitions_and_add_up_over_compositions() -> None:
    inner = Composed(events=(Repeated(count=2, event=SAMPLED), GAUSSIAN))
    event = Composed(events=(Repeated(count=5, event=inner), SAMPLED))
    assert leaves(event) == {SAMPLED: 11, GAUSSIAN: 5}
    assert leaves(Composed(events=())) == {}


def test_a_selected_best_run_is_one_leaf_of_its_own() -> None:
    best = RepeatAndSelect(event=Repeated(count=60, event=SAMPLED), mean=10, shape=1)
    event = Composed(events=(Repeated(count=3, event=best), SAMPLED))
    assert leaves(event) == {best: 3, SAMPLED: 1}


@pytest.mark.parametrize(("shape", "written"), [(1, 1.0), (0.5, 0.5), (math.inf, "poisson")])
def test_a_selected_best_run_has_one_plain_form_without_infinity(
    shape: float, written: object
) -> None:
    best = RepeatAndSelect(event=GAUSSIAN, mean=10, shape=shape)
    assert to_plain(best) == {**PLAIN_BEST, "shape": written}
    assert from_plain(json.loads(json.dumps(to_plain(best), allow_nan=False))) == best


@pytest.mark.parametrize("mean", [0, 0.9, MAX_COUNT + 1, float("nan"), float("inf"), True, None])
def test_fewer_runs_than_one_are_refused(mean: Any) -> None:
    with pytest.raises(ConfigError, match="mean"):
        RepeatAndSelect(event=GAUSSIAN, mean=mean, shape=1.0)


@pytest.mark.parametrize("shape", [-1, MAX_SHAPE + 1, float("nan"), -math.inf, True, "1", None])
def test_a_shape_that_is_none_is_refused(shape: Any) -> None:
    with pytest.raises(ConfigError, match="shape"):
        RepeatAndSelect(event=GAUSSIAN, mean=2.0, shape=shape)


def test_a_selected_best_run_counts_as_a_level_of_depth() -> None:
    deepest: Event = from_plain(nested(MAX_DEPTH))
    with pytest.raises(ConfigError, match="at most 8 deep"):
        RepeatAndSelect(event=deepest, mean=2.0, shape=1.0)
    value: dict[str, Any] = dict(PLAIN_GAUSSIAN)
    for _ in range(MAX_DEPTH):
        value = {**PLAIN_BEST, "event": value}
    with pytest.raises(ConfigError, match="at most 8 deep"):
        from_plain(value)


def test_only_an_event_can_be_run_again_and_again() -> None:
    with pytest.raises(ConfigError, match="event"):
        RepeatAndSelect(event="gaussian", mean=2.0, shape=1.0)  # type: ignore[arg-type]
