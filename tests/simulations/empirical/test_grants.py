import pytest

from common.errors import OrderError, PrivacyRefused
from common.grant import ReservedGrant
from common.randomness import SecureRandomness
from simulations.empirical.grants import reserved


def make(**changed: float) -> ReservedGrant:
    plain = {"noise_multiplier": 1.3, "sample_rate": 0.5, "steps": 2, "clip": 1.0}
    grant = reserved(**{**plain, **changed}, randomness=SecureRandomness())
    assert isinstance(grant, ReservedGrant)
    return grant


def test_a_noisy_update_is_paid_for_by_a_real_reservation() -> None:
    grant = make()
    assert (grant.noise_multiplier, grant.sample_rate, grant.steps) == (1.3, 0.5, 2)
    grant.sample(10)
    assert grant.noise(5).shape == (5,)
    grant.sample(10)
    with pytest.raises(OrderError):
        grant.sample(10)


def test_the_ledgers_caps_hold_for_an_audit_too() -> None:
    with pytest.raises(PrivacyRefused):
        make(noise_multiplier=0.001)
