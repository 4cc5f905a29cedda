import ast
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from common.randomness import Randomness
from simulations.seeded import CLAIM, SeededRandomness


def drawn(**changed: object) -> np.ndarray:
    where = {"seed": 7, "site": "north", "round_number": 3, "purpose": "noise", **changed}
    source: Randomness = SeededRandomness(**where)  # type: ignore[arg-type]
    return source.normal(1000)


def test_the_same_seed_site_round_and_purpose_repeat_bit_for_bit() -> None:
    np.testing.assert_array_equal(drawn(), drawn())


@pytest.mark.parametrize(
    "changed",
    [{"seed": 8}, {"site": "south"}, {"round_number": 4}, {"purpose": "sample"}, {"seed": -7}],
)
def test_any_change_gives_another_stream(changed: dict[str, object]) -> None:
    assert np.intersect1d(drawn(), drawn(**changed)).size == 0


def test_names_that_run_together_do_not_collide() -> None:
    pairs = product(['a","b', "a", 'a"', "ab"], ["b", 'b","', ""])
    firsts = [drawn(site=site, purpose=purpose)[0] for site, purpose in pairs]
    assert len(set(firsts)) == len(firsts)


def test_samples_repeat_as_well() -> None:
    first, second = (
        SeededRandomness(seed=1, site="s", round_number=0, purpose="sample") for _ in range(2)
    )
    np.testing.assert_array_equal(first.poisson_sample(500, 0.25), second.poisson_sample(500, 0.25))


def test_the_claim_says_that_there_is_none() -> None:
    assert CLAIM == "seeded noise: no privacy claim"


def test_no_deployed_package_can_reach_the_seeded_source() -> None:
    root = Path(__file__).parents[2]
    for path in [p for d in ("common", "client", "server") for p in (root / d).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert not any(name.split(".")[0] == "simulations" for name in names), path
