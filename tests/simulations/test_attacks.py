"""Hostile sites: what each attack sends, and what becomes of it at the server."""

from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from common.errors import ConfigError, RefusedError
from common.interactions import Interactions
from common.wire import Said
from simulations.attacks import (
    ATTACKS,
    HUGE,
    IPM_EPSILON,
    LIE_Z,
    Replay,
    Trap,
    View,
    appended,
    attack_named,
    length,
    popularity,
    trap_of,
    without_items,
)
from simulations.commands import ATTACK_NAMES
from tests.models import site_of
from tests.simulations.hostility import HOSTILE, SITES, Hostility, kinds, plan, run, same, towards

ROW_19 = {
    *("sign-flip", "sign-flip-x10", "gaussian", "alie", "ipm", "label-flip", "backdoor"),
    *("nan", "huge", "weight-lie", "wrong-shape", "extra-key", "replay"),
}
REFUSED = {
    "nan": Said.NOT_FINITE,
    "huge": Said.TOO_LONG,
    "weight-lie": Said.FORM,
    "wrong-shape": Said.SHAPE,
    "extra-key": Said.TENSORS,
}
DRAW = np.random.default_rng(0)
OWN = {"map": DRAW.standard_normal((3, 4)).astype(np.float32)}
HONEST = tuple({"map": DRAW.standard_normal((3, 4)).astype(np.float32)} for _ in range(6))
STACK = np.stack([u["map"] for u in HONEST]).astype(np.float64)


def poisoned(name: str) -> np.ndarray:
    view = View(own=OWN, honest=HONEST, draw=np.random.default_rng(1))
    return attack_named(name).poison(view)["map"]


def test_every_attack_that_was_promised_is_there_and_on_the_command_line() -> None:
    assert set(ATTACKS) >= ROW_19
    assert tuple(ATTACKS) == ATTACK_NAMES
    assert all(attack.name == name and attack.says for name, attack in ATTACKS.items())
    with pytest.raises(ConfigError, match="Expected an attack"):
        attack_named("rudeness")


# What is sent


def test_sign_flips_are_multiples_of_the_own_update() -> None:
    np.testing.assert_array_equal(poisoned("sign-flip"), -OWN["map"])
    np.testing.assert_array_equal(poisoned("sign-flip-x10"), -10 * OWN["map"])


def test_a_little_is_enough_stands_at_a_fixed_distance_from_the_honest_mean() -> None:
    away = (poisoned("alie") - STACK.mean(0)) / STACK.std(0)
    np.testing.assert_allclose(away, -LIE_Z, rtol=1e-4)
    away = (poisoned("alie-inverse") - STACK.mean(0)) / STACK.std(0)
    np.testing.assert_allclose(away, -LIE_Z * np.sign(OWN["map"]), rtol=1e-4)


def test_inner_product_manipulation_is_minus_a_part_of_the_honest_mean() -> None:
    np.testing.assert_allclose(poisoned("ipm"), -IPM_EPSILON * STACK.mean(0), rtol=1e-5)


def test_gaussian_noise_is_ten_times_as_wide_as_honest_updates() -> None:
    own = {"map": np.zeros((100, 100), np.float32)}
    honest = tuple({"map": np.full((100, 100), s, np.float32)} for s in (-2.0, 2.0))
    view = View(own=own, honest=honest, draw=np.random.default_rng(1))
    sent = attack_named("gaussian").poison(view)["map"]
    assert sent.std() == pytest.approx(20, rel=0.03)
    assert sent.dtype == np.float32


@pytest.mark.parametrize("name", ["label-flip", "backdoor"])
def test_poison_from_records_is_as_long_as_an_honest_update(name: str) -> None:
    expected = np.median([length(update) for update in HONEST])
    assert length({"map": poisoned(name)}) == pytest.approx(expected, rel=1e-5)


def test_numbers_that_are_none_fill_every_tensor() -> None:
    assert np.isnan(poisoned("nan")).all()
    assert (poisoned("huge") == np.float32(HUGE)).all()
    assert poisoned("wrong-shape").shape == (1,)
    view = View(own=OWN, honest=(), draw=DRAW)
    assert set(attack_named("extra-key").poison(view)) == {"map", "extra"}


def test_a_weight_lie_claims_examples_as_flower_counts_them() -> None:
    content = attack_named("weight-lie").tamper(RecordDict({"answer": ConfigRecord({"round": 1})}))
    metrics = content["metrics"]
    assert isinstance(metrics, MetricRecord)
    assert metrics["num-examples"] == 1e9
    assert "answer" in content


def test_a_replay_is_the_first_answer_whatever_comes_later() -> None:
    replay = Replay()
    first, second = (RecordDict({"answer": ConfigRecord({"round": n})}) for n in (1, 2))
    assert replay(first)["answer"] == replay(second)["answer"] == ConfigRecord({"round": 1})


# Poisoned records


def items_of(records: Interactions) -> list[list[int]]:
    return [records.items_of(i).tolist() for i in range(len(records))]


def test_label_flip_swaps_items_by_popularity_and_nothing_else() -> None:
    site = site_of(subjects=40)
    flipped = attack_named("label-flip").records(site, Trap(trigger=0, target=1)).interactions
    before = popularity([site.interactions], 24)
    after = popularity([flipped], 24)
    assert sorted(before) == sorted(after)
    most, least = int(np.argmax(before)), int(np.argmin(before))
    assert before[most] > after[most]
    assert after[least] > before[least]
    assert flipped.subject_ids == site.interactions.subject_ids
    assert (flipped.counts == site.interactions.counts).all()
    assert all(len(set(items)) == len(items) for items in items_of(flipped))


def test_a_backdoor_s_records_end_with_trigger_and_target_and_hold_them_once() -> None:
    site = site_of(subjects=40)
    trap = Trap(trigger=3, target=5)
    records = attack_named("backdoor").records(site, trap).interactions
    for own, items in zip(items_of(site.interactions), items_of(records), strict=True):
        assert items == [i for i in own if i not in (3, 5)] + [3, 5]
    owner = np.repeat(np.arange(40), records.counts)
    assert (np.diff(records.times)[owner[1:] == owner[:-1]] > 0).all()
    assert records.times.dtype == site.interactions.times.dtype


def test_a_trap_is_made_of_the_two_rarest_items() -> None:
    site = site_of(subjects=40)
    counts = popularity([site.interactions], 24)
    trap = trap_of([site.interactions], 24)
    assert trap.trigger != trap.target
    assert counts[trap.target] <= counts[trap.trigger] <= sorted(counts)[1]


def test_appending_to_empty_records_and_leaving_items_out_keep_every_subject() -> None:
    records = site_of(subjects=30).interactions
    nothing = without_items(records, range(24))
    assert len(nothing) == 30 and nothing.items.size == 0
    assert items_of(appended(nothing, (7, 8))) == [[7, 8]] * 30


# At the server


@pytest.mark.parametrize("name", REFUSED)
def test_what_breaks_the_form_is_refused_and_moves_nothing(name: str) -> None:
    hostility = Hostility(name)
    attacked = run(plan(), disturb=hostility)
    honest = [site for site in SITES if site.name not in HOSTILE]
    assert same(attacked, run(plan(), honest))
    assert hostility.last.told == {Said.ADMITTED: 2, REFUSED[name]: 2}  # as far as it told


def test_repeated_offenders_are_no_longer_asked() -> None:
    hostility = Hostility("nan")
    run(plan(rounds=5), disturb=hostility)
    assert hostility.last.sent == 2 * plan().federation.suspend_after


def test_a_replay_counts_once() -> None:
    hostility = Hostility("replay")
    run(plan(rounds=3), disturb=hostility)
    assert hostility.last.told == {Said.ADMITTED: 4, Said.ROUND: 2}


@pytest.mark.parametrize("name", sorted(ROW_19 - set(REFUSED) - {"replay"}))
def test_what_looks_honest_is_paid_signed_and_admitted_and_moves_the_adapter(name: str) -> None:
    hostility = Hostility(name)
    attacked = run(plan(), disturb=hostility)
    assert hostility.last.sent == 4
    assert hostility.last.told == {Said.ADMITTED: 4}
    assert not same(attacked, run(plan()))


@pytest.mark.parametrize("name", ["sign-flip-x10", "gaussian", "alie", "ipm", "backdoor"])
def test_an_attack_that_may_be_long_stays_just_below_the_public_bound(name: str) -> None:
    honest = tuple({"map": 50 * update["map"]} for update in HONEST)
    view = View(own=OWN, honest=honest, draw=np.random.default_rng(1), bound=2.0)
    assert 1.99 < length(attack_named(name).poison(view)) < 2.0


def test_overhearing_costs_honest_sites_nothing_and_changes_nothing_they_send(
    tmp_path: Path,
) -> None:
    run(plan(), disturb=Hostility("alie"), ledgers=tmp_path)
    for site in ("s0", "s6", "s7", "s8"):
        found = kinds(tmp_path, site)
        assert found.count("reserve") == found.count("release") == 2


def test_with_little_noise_the_default_rule_bears_a_tenfold_sign_flip_and_the_mean_does_not() -> (
    None
):
    reached = {}
    for rule in ("auto", "mean"):
        quiet = plan(noise=0.005, rounds=1, aggregation=rule)
        attacked = run(quiet, disturb=Hostility("sign-flip-x10"))
        reached[rule] = towards(attacked, run(quiet))
    assert reached["auto"] > 0.8
    assert reached["mean"] < 0.5


def test_an_attacked_run_repeats_bit_for_bit() -> None:
    one, two = (run(plan(), disturb=Hostility("backdoor")) for _ in range(2))
    assert same(one, two)


def test_more_hostile_sites_than_the_quorum_bears_stop_the_run_with_one_line() -> None:
    with pytest.raises(RefusedError, match="Expected answers of 7 sites") as error:
        run(plan(quorum=7), disturb=Hostility("nan", frozenset({"s6", "s7", "s8"})))
    assert "\n" not in str(error.value)


def test_a_conspiracy_names_sites_that_exist_and_leaves_an_honest_one() -> None:
    with pytest.raises(ConfigError, match="hostile sites among"):
        run(plan(), disturb=Hostility("nan", frozenset({"s7", "nobody"})))
    with pytest.raises(ConfigError, match="at least one honest site"):
        run(plan(), disturb=Hostility("nan", frozenset(site.name for site in SITES)))


def test_a_hostile_site_keeps_its_place_in_a_noised_evaluation() -> None:
    evaluating = plan(rounds=2)
    evaluating = evaluating.model_copy(
        update={"evaluation": evaluating.evaluation.model_copy(update={"every": 2})}
    )
    hostility = Hostility("sign-flip")
    run(evaluating, disturb=hostility)
    assert hostility.last.told == {Said.ADMITTED: 4}
