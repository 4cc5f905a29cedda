import dataclasses
import pickle
from collections.abc import Callable

import numpy as np
import pytest

from client.session import _SESSIONS
from client.site import SiteRecords
from common.caps import SiteCaps
from common.errors import ConfigError, OrderError, RefusedError
from common.plan import RunPlan
from common.randomness import SecureRandomness
from common.textpath import ActivationStore
from common.wire import Tensors
from simulations.engines import ENGINES, InProcessEngine, Job, NoiseSource, make_engine
from simulations.seeded import SeededRandomness
from tests.models import run_plan, site_of

SITES = (
    site_of("north"),
    site_of("south", seed=1),
    site_of("east", domain="bank", items=20, seed=2),
    site_of("west", domain="bank", items=20, seed=3),
)
STORE = ActivationStore()


def run(
    plan: RunPlan,
    sites: tuple[SiteRecords, ...] = SITES,
    *,
    seed: int | None = 1,
    workers: int = 1,
    on_round: Callable[[int, Tensors], None] | None = None,
) -> Tensors:
    job = Job(plan=plan, sites=sites, noise_seed=seed, store=STORE, on_round=on_round)
    return InProcessEngine(workers=workers).run(job)


def same(one: Tensors, two: Tensors) -> bool:
    return set(one) == set(two) and all(np.array_equal(one[k], two[k]) for k in one)


def test_seeded_noise_repeats_a_run_bit_for_bit_whatever_the_threads() -> None:
    first = run(run_plan())
    assert all(value.any() for value in first.values())
    for workers in (1, 4):
        assert same(run(run_plan(), workers=workers), first)


def test_the_order_of_sites_changes_no_bit() -> None:
    assert same(run(run_plan(), SITES[::-1]), run(run_plan()))


def test_another_noise_seed_and_secure_noise_give_other_adapters() -> None:
    first = run(run_plan())
    assert not same(run(run_plan(), seed=2), first)
    secure = [run(run_plan(), seed=None) for _ in range(2)]
    assert not same(*secure)


def test_micro_batches_change_no_result_beyond_rounding() -> None:
    one, all_at_once = (
        run(run_plan(federation={"micro_batch": size, "strategy": "fedavg"})) for size in (1, 500)
    )
    for name, value in one.items():
        np.testing.assert_allclose(all_at_once[name], value, rtol=1e-3, atol=1e-5)


def test_every_round_is_watched_and_the_last_is_the_result() -> None:
    seen: list[tuple[int, Tensors]] = []
    result = run(run_plan(), on_round=lambda n, t: seen.append((n, t)))
    assert [number for number, _ in seen] == [0, 1, 2]
    assert same(seen[-1][1], result)
    assert not same(seen[1][1], result)


def test_a_site_that_refuses_does_not_end_the_run_and_does_not_count() -> None:
    # No borrowed maps: which domain may borrow follows from the subjects declared at the start.
    plan = run_plan(federation={"strategy": "fedavg"}, recommender={"parts": "text,gate,map,bias"})
    strict = dataclasses.replace(SITES[1], caps=SiteCaps(noise_multiplier=50.0))
    result = run(plan, (SITES[0], strict, *SITES[2:]))
    assert same(result, run(plan, (SITES[0], *SITES[2:])))
    assert not same(result, run(plan))


def test_a_consortium_in_which_everybody_refuses_ends_with_one_line() -> None:
    strict = tuple(dataclasses.replace(s, caps=SiteCaps(noise_multiplier=50.0)) for s in SITES)
    with pytest.raises(RefusedError, match="Expected answers of 2 sites") as error:
        run(run_plan(), strict)
    assert "\n" not in str(error.value)


def test_a_domain_alone_gets_the_adapter_of_its_own_sites() -> None:
    alone = run(run_plan(), SITES[:2])
    together = run(run_plan())
    assert set(alone) < set(together)
    of_two = {"map.bank", "gate.bank", "bias.bank", "borrow.bank", "borrow.care"}
    assert set(together) - set(alone) == of_two


def test_sessions_are_forgotten_at_the_end_of_a_run() -> None:
    before = set(_SESSIONS)
    run(run_plan())
    assert set(_SESSIONS) == before


def test_a_run_that_ends_early_says_so() -> None:
    def stop(number: int, adapter: Tensors) -> None:
        if number == 1:
            raise KeyboardInterrupt

    before = set(_SESSIONS)
    with pytest.raises(KeyboardInterrupt):
        run(run_plan(), on_round=stop)
    assert set(_SESSIONS) == before
    from simulations.engines import _Watch

    watch = _Watch(None)
    watch(1, {"mixer": np.zeros(1, np.float32)})
    with pytest.raises(OrderError, match="Expected 2 rounds"):
        watch.result(run_plan())


def test_a_noise_source_is_seeded_by_site_and_round_or_secure() -> None:
    source = pickle.loads(pickle.dumps(NoiseSource(seed=3)))  # noqa: S301
    assert isinstance(source("a", 1), SeededRandomness)
    assert np.array_equal(source("a", 1).normal(9), NoiseSource(seed=3)("a", 1).normal(9))
    for other in (source("b", 1), source("a", 2), NoiseSource(seed=4)("a", 1)):
        assert not np.isin(other.normal(9), source("a", 1).normal(9)).any()
    assert isinstance(NoiseSource(seed=None)("a", 1), SecureRandomness)


def test_engines_are_made_by_name() -> None:
    for name, kind in ENGINES.items():
        assert isinstance(make_engine(name), kind)
    with pytest.raises(ConfigError, match="in-process or flower"):
        make_engine("spark")
