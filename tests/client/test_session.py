import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from client.permits import PermitSource
from client.session import Session, close_sessions, session_for
from client.site import SiteRecords
from common.caps import SiteCaps
from common.errors import ConfigError, PrivacyRefused, SecurityRefused
from common.ledger import Ledger
from common.plan import RunPlan
from common.randomness import Randomness, SecureRandomness
from common.textpath import ActivationStore
from common.wire import Order, Tensors, to_payload
from simulations.ledgers import MemoryLedgers
from simulations.seeded import SeededRandomness
from tests.models import backbone_of, model_of, noisy, recommender_plan, run_plan, site_of

STORE = ActivationStore()


def secure(site: str, number: int) -> Randomness:
    return SecureRandomness()


def session_of(
    plan: RunPlan, records: SiteRecords | None = None, permits: PermitSource | None = None
) -> Session:
    records = records if records is not None else site_of()
    return Session(
        "run",
        records,
        plan,
        backbone=backbone_of("bert"),
        store=STORE,
        permits=(permits or MemoryLedgers())(records, plan, "run"),
    )


def opened(run: int, name: str, plan: RunPlan, open_site: Callable[[], SiteRecords]) -> Session:
    permits = MemoryLedgers()
    order = Order(round=1, plan=plan)
    return session_for(run, name, order, open_site=open_site, store=STORE, permits=permits)


def adapter_of(plan: RunPlan) -> Tensors:
    return {k: v.numpy() for k, v in model_of(plan.recommender, seed=None).adapter().items()}


def ask(session: Session, number: int = 1, **changed: np.ndarray) -> Tensors:
    adapter = {**adapter_of(session.plan), **changed}
    return session.train(Order(round=number, plan=session.plan), adapter, secure).update


def test_every_round_of_the_plan_is_answered_with_the_adapters_tensors() -> None:
    session = session_of(run_plan())
    for number in (1, 2):
        update = ask(session, number)
        assert {k: v.shape for k, v in update.items()} == {
            k: v.shape for k, v in adapter_of(session.plan).items()
        }
        assert all(v.dtype == np.float32 and v.any() for v in update.values())


def test_lora_is_left_out_of_answers_after_the_text_rounds() -> None:
    session = session_of(run_plan(federation={"rounds": 3, "text_rounds": 1}))
    assert any(k.startswith("text.") for k in ask(session, 1))
    assert not any(k.startswith("text.") for k in ask(session, 3))


def test_borrowed_maps_come_down_and_never_go_up() -> None:
    plan = run_plan(recommender={"domains": "bank:100,care:90"})
    session = session_of(plan)
    borrowed = np.ones((32, 96), np.float32)
    update = ask(session, 1, **{"map.bank": borrowed})
    assert "map.bank" not in update
    assert update["borrow.care"].any()
    with pytest.raises(SecurityRefused):
        ask(session, 2)


@pytest.mark.parametrize("number", [0, -1, 3, 10**9])
def test_a_round_outside_of_the_plan_is_refused(number: int) -> None:
    with pytest.raises(PrivacyRefused, match="between 1 and 2"):
        ask(session_of(run_plan()), number)


def test_the_same_round_asked_twice_draws_no_second_noise() -> None:
    drawn: list[int] = []

    def counted(site: str, number: int) -> Randomness:
        drawn.append(number)
        return SecureRandomness()

    session = session_of(run_plan())
    order, adapter = Order(round=1, plan=session.plan), adapter_of(session.plan)
    first = session.train(order, adapter, counted)
    again = session.train(order, adapter, counted)
    assert to_payload(first.update) == to_payload(again.update)
    with pytest.raises(PrivacyRefused, match="another"):
        session.train(order, {k: v + 1 for k, v in adapter.items()}, counted)
    assert drawn == [1]


class Broken(SecureRandomness):
    """Fails when noise is drawn: after the reservation, before the release."""

    def normal(self, n: int) -> np.ndarray:
        raise RuntimeError("no entropy")


def test_a_round_that_failed_halfway_stays_paid_for_and_its_second_draw_is_paid_again() -> None:
    permits = MemoryLedgers()(site_of(), run_plan())
    assert isinstance(permits, Ledger)
    session = session_of(run_plan(), permits=lambda _records, _plan, _run: permits)
    order, adapter = Order(round=1, plan=session.plan), adapter_of(session.plan)
    with pytest.raises(RuntimeError):
        session.train(order, adapter, lambda _site, _round: Broken())
    assert len(permits.state().reserved) == 1
    assert session.train(order, adapter, secure)
    assert len(permits.state().reserved) == 2
    with pytest.raises(PrivacyRefused, match=r"needed .* left"):
        ask(session, 2)  # the budget was two rounds


def test_one_round_asked_many_times_at_once_draws_once_and_gives_the_same_bytes() -> None:
    session = session_of(run_plan())
    adapter = adapter_of(session.plan)

    def attempt(_: int) -> bytes:
        return to_payload(session.train(Order(round=1, plan=session.plan), adapter, secure).update)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(attempt, range(16)))) == 1


def test_rounds_asked_at_once_do_not_mix_their_adapters() -> None:
    plan = run_plan(federation={"rounds": 8, "text_rounds": 8})
    start = {k: torch.from_numpy(v) for k, v in adapter_of(plan).items()}
    adapters = {n: {k: v.numpy() for k, v in noisy(start, n).items()} for n in range(1, 9)}

    def seeded(site: str, number: int) -> Randomness:
        return SeededRandomness(seed=1, site=site, round_number=number, purpose="test")

    def answers(workers: int) -> list[Tensors]:
        session = session_of(plan)
        with ThreadPoolExecutor(workers) as pool:
            return list(
                pool.map(
                    lambda n: session.train(Order(round=n, plan=plan), adapters[n], seeded).update,
                    adapters,
                )
            )

    for one, two in zip(answers(1), answers(8), strict=True):
        assert all(np.array_equal(two[k], v) for k, v in one.items())


@pytest.mark.parametrize("change", ["extra", "missing", "shape", "nan"])
def test_an_adapter_that_is_not_the_plans_costs_no_round(change: str) -> None:
    session = session_of(run_plan())
    adapter = adapter_of(session.plan)
    name = next(n for n in adapter if n.startswith("map"))
    if change == "extra":
        adapter["more"] = np.zeros(1, np.float32)
    elif change == "missing":
        del adapter[name]
    elif change == "shape":
        adapter[name] = adapter[name][:1]
    else:
        adapter[name] = np.full_like(adapter[name], np.nan)
    with pytest.raises(SecurityRefused):
        session.train(Order(round=1, plan=session.plan), adapter, secure)
    assert ask(session, 1)


def test_the_update_starts_from_the_adapter_that_was_sent() -> None:
    plan = run_plan(privacy={"private": False, "noise_multiplier": None, "sample_rate": 1.0})
    there = {k: v.numpy() for k, v in noisy(model_of(plan.recommender).adapter(), 3).items()}

    def silent(adapter: Tensors) -> Tensors:
        session = session_of(plan)
        return session.train(Order(round=1, plan=plan), adapter, secure).update

    first, again, elsewhere = silent(there), silent(there), silent(adapter_of(plan))
    assert all(np.array_equal(first[k], again[k]) for k in first)
    assert not all(np.allclose(first[k], elsewhere[k]) for k in first)


BIG = site_of(subjects=40)
DEPLOYED = dataclasses.replace(BIG, caps=SiteCaps())


@pytest.mark.parametrize(
    ("privacy", "error", "match"),
    [
        ({"private": False, "noise_multiplier": None}, PrivacyRefused, "private"),
        ({"noise_multiplier": 0.0}, PrivacyRefused, "above 0"),
        ({"noise_multiplier": None, "epsilon": 10.5}, PrivacyRefused, "epsilon"),
        ({"noise_multiplier": 0.29}, PrivacyRefused, "epsilon|noise"),
        ({"noise_multiplier": 5.0, "delta": 2e-4}, PrivacyRefused, "delta"),
        ({"noise_multiplier": 5.0, "max_grad_norm": 11.0}, PrivacyRefused, "max_grad_norm"),
        ({"noise_multiplier": 5.0, "sampling": "shuffle"}, ConfigError, "poisson"),
        ({"noise_multiplier": 5.0, "epsilon": 0.5}, ConfigError, "agree"),
        ({"noise_multiplier": None, "epsilon": None}, ConfigError, "neither"),
        ({"noise_multiplier": 5.0, "max_grad_norm": 0.0}, ConfigError, "max_grad_norm"),
        ({"noise_multiplier": 5.0, "delta": 0.03}, PrivacyRefused, "subjects"),
    ],
)
def test_a_deployed_site_refuses_what_its_defaults_do_not_allow(
    privacy: dict[str, object], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        session_of(run_plan(privacy=privacy), DEPLOYED)


def test_a_deployed_site_trains_on_a_plan_within_its_defaults() -> None:
    assert ask(session_of(run_plan(privacy={"noise_multiplier": 2.0}), DEPLOYED))


def test_a_site_of_too_few_subjects_refuses() -> None:
    with pytest.raises(PrivacyRefused, match="at least 20 subjects"):
        session_of(run_plan(), site_of(subjects=19))


def test_what_is_refused_does_not_depend_on_the_real_number_of_subjects() -> None:
    """Else a server could find the exact count, one person more or less, by asking deltas."""
    for delta in np.geomspace(1 / 60, 1 / 20, 12):
        said = []
        for real in (30, 31, 59):
            records = dataclasses.replace(site_of(subjects=real), declared_subjects=40)
            try:
                session_of(run_plan(privacy={"delta": float(delta)}), records)
            except PrivacyRefused as refusal:
                said.append(str(refusal))
        assert len(said) in {0, 3}
        assert len(set(said)) <= 1


def test_the_denominator_is_the_declared_number_of_subjects() -> None:
    records = dataclasses.replace(site_of(subjects=37), declared_subjects=30)
    session = session_of(run_plan(privacy={"sample_rate": 0.2}), records)
    assert session._trainer.mechanism.expected_batch_size == pytest.approx(6.0)


def test_a_run_has_one_plan_at_a_site_and_its_rounds_are_not_sold_twice() -> None:
    plan = run_plan()
    other = plan.model_copy(update={"seed": 2})
    longer = run_plan(federation={"rounds": 3})
    try:
        session = opened(77, "1000", plan, site_of)
        assert opened(77, "1000", run_plan(), site_of) is session
        for changed in (other, longer):
            with pytest.raises(PrivacyRefused, match="plan"):
                opened(77, "1000", changed, site_of)
        assert opened(77, "1001", other, site_of) is not session
    finally:
        close_sessions(77)
    try:
        assert opened(77, "1000", other, site_of) is not session
    finally:
        close_sessions(77)


def test_one_site_opens_once_when_many_messages_come_at_once() -> None:
    times = []

    def open_site() -> SiteRecords:
        times.append(1)
        return site_of()

    plan = run_plan()
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: opened(78, "1", plan, open_site), range(8)))
    finally:
        close_sessions(78)
    assert len(times) == 1
    assert len({id(session) for session in found}) == 1


def test_a_site_that_could_not_open_is_opened_again_at_the_next_message() -> None:
    def broken() -> SiteRecords:
        raise ConfigError("no folder")

    plan = run_plan()
    try:
        with pytest.raises(ConfigError):
            opened(79, "1", plan, broken)
        assert opened(79, "1", plan, site_of)
    finally:
        close_sessions(79)


def test_sites_share_the_frozen_weights_and_nothing_that_is_trained() -> None:
    plan = run_plan()
    one, two = session_of(plan), session_of(plan, site_of("south", seed=1))
    first = {n: p for n, p in one._trainer.model.named_parameters()}
    for name, p in two._trainer.model.named_parameters():
        shared = p.data_ptr() == first[name].data_ptr()
        assert shared == (not p.requires_grad and "lora_A" not in name), name


def test_a_text_path_without_trainable_layers_trains_the_rest() -> None:
    plan = RunPlan(
        recommender=recommender_plan(top_layers=0),
        privacy=run_plan().privacy,
        federation=run_plan(federation={"text_rounds": 0}).federation,
    )
    update = ask(session_of(plan))
    assert update
    assert not any(torch.is_tensor(v) or k.startswith("text.") for k, v in update.items())
