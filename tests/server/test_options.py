from typing import Any

import pytest

from common.errors import ConfigError
from common.plan import RunPlan
from server.options import ServerOptions, options_from_run_config, plan_from_run_config


def test_a_run_configuration_without_options_has_the_defaults() -> None:
    assert options_from_run_config({"privacy.epsilon": 1.0}) == ServerOptions()
    assert ServerOptions().folder is None


def test_options_are_told_apart_from_the_plan() -> None:
    config = {
        "out": "a.safetensors", "sites": 3, "state": "s", "resume": True, "public": "p",
        "public-domain": "care", "patience": 4, "seed": 9,
    }  # fmt: skip
    found = options_from_run_config(config)
    assert found == ServerOptions(
        out="a.safetensors", sites=3, state="s", resume=True, public="p", public_domain="care",
        patience=4,
    )  # fmt: skip
    assert plan_from_run_config(config) == RunPlan(seed=9)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"sites": "3"}, "sites as int in the run configuration, got str"),
        ({"sites": True}, "sites as int in the run configuration, got bool"),
        ({"resume": 1}, "resume as bool"),
        ({"out": 5}, "out as str"),
        ({"public": "p"}, "public-domain beside public"),
        ({"resume": True}, "state, the folder to resume from"),
        ({"sites": 0}, "sites of 1 or more"),
        ({"sites": -3}, "sites of 1 or more"),
        ({"patience": -1}, "patience of 0 or more"),
        ({"patience": 3}, "public, by which a round is better"),
    ],
)
def test_a_wrong_option_is_one_line(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        options_from_run_config(config)
    assert "\n" not in str(error.value)
