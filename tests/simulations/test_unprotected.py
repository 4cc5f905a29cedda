import ast
import hashlib
from pathlib import Path

import numpy as np

from common.ledger import PlanRequest
from common.randomness import SecureRandomness
from simulations.unprotected import FreeGrant, NoLedger
from tests.models import run_plan

ROOT = Path(__file__).parents[2]
PLAN = run_plan(
    privacy={"private": False, "noise_multiplier": None, "sample_rate": 0.5},
    federation={"rounds": 2, "text_rounds": 0, "local_steps": 3},
)


def test_a_free_grant_draws_as_it_was_told() -> None:
    grant = FreeGrant(SecureRandomness(), noise_multiplier=2.0, sample_rate=0.5, steps=4)
    assert (grant.noise_multiplier, grant.sample_rate, grant.steps) == (2.0, 0.5, 4)
    assert 300 < len(grant.sample(1000)) < 700
    assert abs(float(np.std(grant.noise(10_000))) - 1) < 0.05
    assert FreeGrant(SecureRandomness()).sample(5).tolist() == [0, 1, 2, 3, 4]


def test_a_run_without_privacy_draws_its_batches_and_claims_no_noise() -> None:
    permits = NoLedger(PLAN)
    permits.plan(PlanRequest(run="r", events={}, max_grad_norm=1.0, plan_sha256="0" * 64))
    asked = {"run": "r", "number": 1, "model_sha256": "0" * 64}
    grant = permits.reserve(**asked, randomness=SecureRandomness())  # type: ignore[arg-type]
    assert (grant.noise_multiplier, grant.sample_rate, grant.steps) == (0.0, 0.5, 3)
    assert permits.release(grant, b"update") == hashlib.sha256(b"update").hexdigest()
    assert permits.stored(**asked) is None  # type: ignore[arg-type]
    permits.opt_out("a" * 64)
    assert not permits.knows(0, "0" * 64)
    assert permits.lines_after(-1) == b""


def test_no_deployed_package_knows_of_grants_without_a_ledger() -> None:
    for package in ("common", "client", "server"):
        for path in (ROOT / package).rglob("*.py"):
            names = {
                getattr(node, "id", getattr(node, "attr", ""))
                for node in ast.walk(ast.parse(path.read_text()))
            }
            assert not names & {"FreeGrant", "NoLedger"}, path
