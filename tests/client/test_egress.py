import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.egress import pass_out
from common.bounds import largest_batch, update_bound
from common.errors import SecurityRefused
from common.wire import Tensors, to_payload
from tests.models import run_plan

SHAPES = {"map": (3, 4), "bias.care": (5,)}


def good() -> Tensors:
    return {name: np.full(shape, 0.1, np.float32) for name, shape in SHAPES.items()}


def out(update: Tensors, *, bound: float) -> Tensors:
    payload = to_payload(update)
    released = hashlib.sha256(payload).hexdigest()
    return pass_out(payload, released=released, shapes=SHAPES, bound=bound)


def test_an_allowed_update_passes_unchanged() -> None:
    passed = out(good(), bound=1.0)
    assert set(passed) == set(SHAPES)
    assert all((v == np.float32(0.1)).all() for v in passed.values())


def test_other_bytes_than_those_released_stay_at_the_site() -> None:
    payload = to_payload(good())
    released = hashlib.sha256(payload).hexdigest()
    changed = to_payload({**good(), "map": np.full((3, 4), 0.2, np.float32)})
    for other in (changed, payload + b" ", payload[:-1], b""):
        with pytest.raises(SecurityRefused, match="released"):
            pass_out(other, released=released, shapes=SHAPES, bound=1.0)


@pytest.mark.parametrize("junk", [b"", b"junk", b"\x80\x04K\x01.", bytes(100)])
def test_released_bytes_that_hold_no_tensors_stay_at_the_site(junk: bytes) -> None:
    with pytest.raises(SecurityRefused, match="tensors"):
        pass_out(junk, released=hashlib.sha256(junk).hexdigest(), shapes=SHAPES, bound=1.0)


@pytest.mark.parametrize(
    "changed",
    [
        {"loss": np.zeros(1, np.float32)},
        {"map": None},
        {"map": np.zeros((4, 3), np.float32)},
        {"map": np.zeros((1, 3, 4), np.float32)},
        {"bias.care": np.zeros((), np.float32)},
        {"map": np.zeros((3, 4), np.float64)},
        {"map": np.zeros((3, 4), np.float16)},
        {"map": np.zeros((3, 4), np.int32)},
        {"map": np.full((3, 4), np.nan, np.float32)},
        {"bias.care": np.array([0, 0, np.inf, 0, 0], np.float32)},
        {"bias.care": np.array([0, 0, 0, 0, -np.inf], np.float32)},
        {"bias.care": np.full(5, 0.5, np.float32)},
        {"map": np.full((3, 4), 3e38, np.float32)},
    ],
    ids=[
        "extra", "missing", "transposed", "broadcastable", "scalar", "float64", "float16", "int",
        "nan", "inf", "minus-inf", "long", "huge",
    ],
)  # fmt: skip
def test_what_is_not_allowed_stays_at_the_site(changed: dict[str, np.ndarray | None]) -> None:
    update = {k: v for k, v in {**good(), **changed}.items() if v is not None}
    with pytest.raises(SecurityRefused) as refusal:
        out(update, bound=1.0)
    assert "\n" not in str(refusal.value)
    assert "0.5" not in str(refusal.value)


@given(st.floats(0, 2.0**66, width=32))
@settings(max_examples=50)
def test_an_update_passes_exactly_up_to_the_bound(size: float) -> None:
    update = {"map": np.zeros((3, 4), np.float32), "bias.care": np.zeros(5, np.float32)}
    update["map"][1, 2] = size
    if size <= 7.5:
        out(update, bound=7.5)
    else:
        with pytest.raises(SecurityRefused, match="longer"):
            out(update, bound=7.5)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("expected", [2.0, 40.0, 1e5])
def test_no_sum_of_clipped_gradients_and_its_noise_is_longer_than_the_bound(
    steps: int, expected: float
) -> None:
    plan = run_plan(
        privacy={"noise_multiplier": 3.0, "max_grad_norm": 0.5},
        federation={"local_steps": steps, "client_learning_rate": 0.7},
    )
    size, draw = 2000, np.random.default_rng(0)
    bound = update_bound(plan, noise_multiplier=3.0, size=size, expected=expected)
    most = largest_batch(expected)
    for _ in range(50):
        noise = sum(np.linalg.norm(draw.standard_normal(size)) for _ in range(steps))
        charged = 3.0 * 0.5 * (1 + 1e-6 * most)
        assert 0.7 * (steps * most * 0.5 + charged * noise) / expected < bound
    alone = 0.7 * steps * (most * 0.5 + charged * np.sqrt(size)) / expected
    assert bound < 1.5 * alone  # tight enough to be worth a gate
