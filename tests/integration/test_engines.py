import dataclasses
from pathlib import Path

import numpy as np

from common.caps import SiteCaps
from common.textpath import ActivationStore
from common.wire import Tensors
from simulations.engines import FlowerEngine, InProcessEngine, Job
from tests.models import run_plan, site_of

SITES = (
    site_of("north"),
    site_of("south", seed=1),
    site_of("east", domain="bank", items=20, seed=2),
    dataclasses.replace(
        site_of("west", domain="bank", items=20, seed=3),
        caps=SiteCaps(noise_multiplier=50.0),  # refuses every round
    ),
)


def test_both_engines_give_the_same_adapter_bit_for_bit_and_survive_a_failing_site(
    tmp_path: Path,
) -> None:
    seen: dict[str, list[tuple[int, Tensors]]] = {"in-process": [], "flower": []}
    found: dict[str, Tensors] = {}
    for engine in (InProcessEngine(workers=2), FlowerEngine(workers=2)):
        watched = seen[engine.name]
        job = Job(
            plan=run_plan(),
            sites=SITES,
            noise_seed=1,
            store=ActivationStore(folder=tmp_path),
            on_round=lambda n, t, watched=watched: watched.append((n, t)),  # type: ignore[misc]
        )
        found[engine.name] = engine.run(job)
    one, two = found["in-process"], found["flower"]
    assert set(one) == set(two)
    for name, value in one.items():
        assert value.any()
        assert np.array_equal(value, two[name]), name
    assert [n for n, _ in seen["flower"]] == [n for n, _ in seen["in-process"]] == [0, 1, 2]
