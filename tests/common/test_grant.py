import ast
import copy
import dataclasses
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from common.errors import ConfigError, OrderError
from common.grant import LEDGER, Grant, ReservedGrant, steps_of
from common.mechanism import Composed, Event, Gaussian, PoissonSampled, RepeatAndSelect, Repeated
from common.randomness import SecureRandomness
from simulations.ledgers import MemoryStore
from tests.common.ledger_suite import CAPS, new_ledger, request, reserve

ROOT = Path(__file__).parents[2]
STEP = PoissonSampled(sample_rate=0.5, event=Gaussian(noise_multiplier=2.0))


def granted(event: Event) -> ReservedGrant:
    ledger = new_ledger(MemoryStore(), dataclasses.replace(CAPS, epsilon=9.0))
    ledger.plan(request(events={"train": (event, 1)}))
    return reserve(ledger)


def test_a_grant_is_made_by_a_ledger_and_nobody_else() -> None:
    for key in (None, object(), "ledger", True):
        with pytest.raises(OrderError, match="reserve first"):
            ReservedGrant(key, seq=2, head="0" * 64, event=STEP, randomness=SecureRandomness())
    with pytest.raises(TypeError):
        Grant()  # type: ignore[abstract]


def test_a_grant_claims_what_was_reserved() -> None:
    grant = granted(Repeated(count=3, event=STEP))
    assert (grant.noise_multiplier, grant.sample_rate, grant.steps) == (2.0, 0.5, 3)
    everybody = granted(Gaussian(noise_multiplier=4.0))
    assert (everybody.noise_multiplier, everybody.sample_rate, everybody.steps) == (4.0, 1.0, 1)
    assert everybody.sample(7).tolist() == list(range(7))


def test_more_steps_than_were_reserved_are_refused() -> None:
    grant = granted(Repeated(count=3, event=STEP))
    for _ in range(3):
        grant.sample(10)
        assert grant.noise(4).shape == (4,)
    for _ in range(2):
        with pytest.raises(OrderError, match="at most 3 steps"):
            grant.sample(10)


def test_noise_before_a_step_is_refused() -> None:
    with pytest.raises(OrderError, match="begun"):
        granted(STEP).noise(1)


def test_a_grant_is_neither_copied_nor_pickled() -> None:
    grant = granted(STEP)
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="never copied"):
            copied(grant)


def test_a_forked_process_does_not_draw_its_parents_noise_a_second_time() -> None:
    grant = granted(STEP)
    grant.sample(5)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, grant.noise(8).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    drawn = np.frombuffer(os.read(reading, 64))
    assert drawn.shape == (8,)
    assert not np.isin(drawn, grant.noise(8)).any()


@pytest.mark.parametrize(
    "event",
    [
        Composed(events=()),
        Composed(events=(STEP, Gaussian(noise_multiplier=2.0))),
    ],
)
def test_an_event_of_no_or_several_kinds_of_step_makes_no_grant(event: Event) -> None:
    with pytest.raises(ConfigError, match="one kind"):
        steps_of(event)


def test_an_event_that_no_training_loop_draws_makes_no_grant() -> None:
    best = RepeatAndSelect(event=STEP, mean=2.0, shape=1.0)
    with pytest.raises(ConfigError, match="Gaussian"):
        ReservedGrant(LEDGER, seq=2, head="0" * 64, event=best, randomness=SecureRandomness())


def _sources(*packages: str) -> dict[str, ast.Module]:
    found = {}
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            found[str(path.relative_to(ROOT))] = ast.parse(path.read_text())
    return found


def _names(tree: ast.Module) -> set[str]:
    return {
        name
        for node in ast.walk(tree)
        for name in (getattr(node, "id", ""), getattr(node, "attr", ""), getattr(node, "name", ""))
        if isinstance(name, str)
    }


def test_the_key_to_grants_is_in_the_ledgers_hand_alone() -> None:
    users = {
        path
        for path, tree in _sources("common", "client", "server", "simulations").items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "common.grant"
        if {alias.name for alias in node.names} & {"LEDGER", "*"}
    }
    assert users == {"common/ledger.py"}


def test_a_site_has_no_kind_of_grant_but_the_ledgers() -> None:
    """Noise without a reservation would need another subclass of Grant, or another source."""
    kinds = {
        node.name: path
        for path, tree in _sources("common", "client", "server").items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any("Grant" in ast.unparse(b) for b in node.bases)
    }
    assert kinds == {"ReservedGrant": "common/grant.py"}


def test_training_code_has_no_source_of_noise_but_its_grant() -> None:
    """No generator, no torch noise: `Grant.noise` is the one call that draws a normal."""
    forbidden = {
        "SecureRandomness",
        "normals",
        "Keystream",
        "randn",
        "normal",
        "normal_",
        "randn_like",
        "standard_normal",
        "default_rng",
        "laplace",
        "_generate_noise",
    }
    for path, tree in _sources("client").items():
        if path not in {"client/app.py"}:  # it hands the secure source to the ledger
            assert not _names(tree) & forbidden, path
    optimizer = _sources("client")["client/optimizer.py"]
    calls = [ast.unparse(n.func) for n in ast.walk(optimizer) if isinstance(n, ast.Call)]
    drawing = {call for call in calls if call.endswith("noise")}
    assert drawing == {"self.add_noise", "self._grant.noise"}
