from typing import Any

import pytest

from common.caps import SiteCaps, caps_from_plain
from common.errors import ConfigError


def test_caps_come_back_from_what_a_ledger_holds_but_for_the_one_that_is_not_in_it() -> None:
    caps = SiteCaps(
        epsilon=3.5,
        delta=1e-6,
        sample_rate=0.5,
        max_grad_norm=2.0,
        noise_multiplier=0.7,
        rounds=12,
        private_only=False,
    )
    assert "private_only" not in caps.plain()
    assert caps_from_plain(caps.plain()) == SiteCaps(**caps.plain())
    assert caps_from_plain(SiteCaps().plain()) == SiteCaps()


@pytest.mark.parametrize(
    "wrong",
    [
        {"epsilon": 0.0},
        {"epsilon": float("nan")},
        {"epsilon": float("inf")},
        {"delta": 0.0},
        {"delta": 1.0},
        {"max_grad_norm": 0.0},
        {"max_grad_norm": float("inf")},
        {"sample_rate": 0.0},
        {"sample_rate": 1.1},
        {"sample_rate": float("nan")},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": float("nan")},
        {"rounds": 0},
        {"rounds": 2.5},
    ],
    ids=str,
)
def test_a_cap_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="Expected"):
        caps_from_plain({**SiteCaps().plain(), **wrong})
