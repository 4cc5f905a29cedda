import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from common.errors import ConfigError
from common.plan import (
    FederationPlan,
    PrivacyPlan,
    RecommenderPlan,
    RunPlan,
    parse,
    plan_from_json,
)


@given(
    st.builds(
        RunPlan,
        seed=st.integers(-(2**40), 2**40),
        recommender=st.builds(
            RecommenderPlan,
            backbone=st.text(max_size=20),
            r=st.integers(1, 256),
            lora_alpha=st.floats(1e-3, 1e3),
            top_layers=st.integers(1, 8),
            objective=st.sampled_from(["ranking", "click", "rating"]),
        ),
        privacy=st.builds(
            PrivacyPlan,
            epsilon=st.none() | st.floats(0.01, 10),
            noise_multiplier=st.none() | st.floats(0.1, 10),
            sample_rate=st.floats(1e-6, 1),
        ),
        federation=st.builds(
            FederationPlan,
            rounds=st.integers(1, 10_000),
            learning_rate=st.none() | st.floats(1e-6, 10),
            strategy=st.sampled_from(["fedadam", "fedavgm", "fedavg", "fedadam-mini"]),
        ),
    )
)
@settings(max_examples=60, deadline=None)
def test_a_plan_survives_the_wire_bit_for_bit(plan: RunPlan) -> None:
    text = plan.to_json()
    assert plan_from_json(text) == plan
    assert plan_from_json(text).to_json() == text
    assert json.loads(text) == plan.model_dump()


def values(**changed: Any) -> dict[str, Any]:
    plain: dict[str, Any] = RunPlan().model_dump()
    for path, value in changed.items():
        *parents, leaf = path.split("__")
        target = plain
        for parent in parents:
            target = target[parent]
        target[leaf] = value
    return plain


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"privacy__sample_rate": 0.0}, "sample_rate"),
        ({"privacy__sample_rate": 1.01}, "sample_rate"),
        ({"privacy__sample_rate": float("nan")}, "sample_rate"),
        ({"privacy__sample_rate": True}, "sample_rate"),
        ({"privacy__sample_rate": "0.5"}, "sample_rate"),
        ({"privacy__epsilon": float("inf")}, "epsilon"),
        ({"privacy__epsilon": True}, "epsilon"),
        ({"privacy__noise_multiplier": "1"}, "noise_multiplier"),
        ({"privacy__private": "no"}, "private"),
        ({"privacy__private": 0}, "private"),
        ({"federation__rounds": 0}, "rounds"),
        ({"federation__rounds": 10_001}, "rounds"),
        ({"federation__rounds": 2.5}, "rounds"),
        ({"federation__local_steps": 0}, "local_steps"),
        ({"federation__client_learning_rate": -1.0}, "client_learning_rate"),
        ({"federation__strategy": "krum"}, "strategy"),
        ({"federation__momentum": 1.0}, "momentum"),
        ({"recommender__objective": "regression"}, "objective"),
        ({"recommender__variant": "dora"}, "variant"),
        ({"recommender__r": 0}, "r"),
        ({"recommender__windows": 65}, "windows"),
        ({"recommender__lora_dropout": 0.1}, "lora_dropout"),
        ({"seed": "one"}, "seed"),
        ({"seed": None}, "seed"),
    ],
    ids=str,
)
def test_a_value_out_of_range_gets_one_line_that_names_its_key(
    changed: dict[str, Any], names: str
) -> None:
    with pytest.raises(ConfigError, match=names) as error:
        parse(RunPlan, values(**changed), where="run configuration")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("run configuration: ")


@pytest.mark.parametrize(
    ("path", "right"),
    [
        ("privacy__epsilom", "epsilon"),
        ("privacy__sampling_rate", "sample_rate"),
        ("federation__round", "rounds"),
        ("recommender__target_module", "target_modules"),
        ("recomender", "recommender"),
    ],
)
def test_a_misspelt_key_is_told_the_right_one(path: str, right: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean {right}"):
        parse(RunPlan, values(**{path: 1}), where="scenario")


def test_a_key_like_no_other_is_to_be_removed() -> None:
    with pytest.raises(ConfigError, match="unknown key zzz; remove it"):
        parse(RunPlan, values(zzz=1), where="scenario")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"plan"', '{"privacy": []}'])
def test_text_that_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        plan_from_json(text)
    assert "\n" not in str(error.value)


def test_text_nested_without_end_is_refused() -> None:
    with pytest.raises(ConfigError):
        plan_from_json("[" * 100_000)


def test_nan_in_a_plan_s_text_is_refused() -> None:
    text = RunPlan().to_json().replace('"epsilon":4.0', '"epsilon":NaN')
    assert "NaN" in text
    with pytest.raises(ConfigError, match="epsilon"):
        plan_from_json(text)


def test_text_rounds_without_a_trainable_layer_are_refused() -> None:
    with pytest.raises(ConfigError, match="top_layers"):
        parse(
            RunPlan,
            values(recommender__top_layers=0, federation__text_rounds=1),
            where="scenario",
        )


def test_a_plan_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        RunPlan().seed = 2  # type: ignore[misc]
    with pytest.raises(ValidationError):
        RunPlan().privacy.private = False  # type: ignore[misc]


def test_steps_are_those_of_the_whole_run() -> None:
    plan = RunPlan(federation=FederationPlan(rounds=7, local_steps=3))
    assert plan.steps == 21


def test_the_default_is_private_poisson_sampled_and_at_epsilon_four() -> None:
    privacy = RunPlan().privacy
    assert (privacy.private, privacy.sampling, privacy.epsilon) == (True, "poisson", 4.0)
    assert RunPlan().recommender.variant == "ffa"
