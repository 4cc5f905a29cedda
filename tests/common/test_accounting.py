import logging
import math
import subprocess
import sys
import threading
import time
from itertools import pairwise
from typing import Any

import dp_accounting
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from common.accounting import (
    MIN_NOISE,
    TOLERANCE,
    Consortium,
    PrivacyChoice,
    calibrate,
    check_privacy,
    compose_sites,
    schedule,
    spent,
)
from common.errors import ConfigError, PrivacyRefused
from common.mechanism import Composed, Event, Gaussian, PoissonSampled, RepeatAndSelect, Repeated

DELTA = 1e-5


def epsilon(noise: float, rate: float, steps: int, delta: float = DELTA) -> float:
    return spent(
        schedule(noise_multiplier=noise, sample_rate=rate, steps=steps), delta=delta
    ).epsilon


def gaussian_delta(noise: float, epsilon: float) -> float:
    """Exact delta of one Gaussian release (Balle and Wang 2018, theorem 8)."""
    return float(
        norm.cdf(0.5 / noise - epsilon * noise)
        - math.exp(epsilon) * norm.cdf(-0.5 / noise - epsilon * noise)
    )


def test_the_reference_ledger_spends_6_877() -> None:
    # SECURITY, acceptance row 2.
    result = spent(schedule(noise_multiplier=1, sample_rate=256 / 5000, steps=400), delta=DELTA)
    assert result.pld == pytest.approx(6.877, abs=0.005)
    assert result.epsilon == result.pld < result.rdp
    # Never below: the same at a finer discretisation is a tighter upper bound of the same value.
    fine = dp_accounting.pld.PLDAccountant(value_discretization_interval=1e-4)
    fine.compose(
        dp_accounting.SelfComposedDpEvent(
            dp_accounting.PoissonSampledDpEvent(256 / 5000, dp_accounting.GaussianDpEvent(1)), 400
        )
    )
    assert fine.get_epsilon(DELTA) <= result.epsilon <= fine.get_epsilon(DELTA) + 5e-4
    assert result.discretisation == 1e-3
    assert 5e-4 < result.error < 0.07


# What dp-accounting 0.6.0 gave with its own PLD builder and its own choice of orders.
BEFORE = [
    (1.0, 256 / 5000, 400, 6.876760607972291, 7.6196627224758),
    (2.33, 0.25, 60, 3.9915135864847473, 4.3753589419595835),
    (7.41, 0.25, 60, 1.0007031486476115, 1.097496169851146),
    (60.0, 0.25, 60, 0.09944454371117314, 0.11172133022718223),
    (1.0, 0.01, 1000, 1.8289344124594729, 2.101366525420273),
    (1.08, 1.0, 1, 4.004956756963382, 4.329346318282029),
    (0.9, 0.002, 5000, 0.8800218436554373, 1.277753995981508),
    (0.5, 0.01, 100, 6.476229912993436, 8.034119713902147),
    (1.0, 0.05, 1000, 10.986901714112049, 12.016955906744293),
    (0.3, 0.1, 50, 72.97004707022015, 99.10385043361951),
    (1.0, 0.001, 100_000, 1.6380285586410235, 1.7854249444038008),
]


@pytest.mark.parametrize(("noise", "rate", "steps", "pld", "rdp"), BEFORE)
def test_quick_accounting_gives_the_figures_of_the_slow_one(
    noise: float, rate: float, steps: int, pld: float, rdp: float
) -> None:
    result = spent(schedule(noise_multiplier=noise, sample_rate=rate, steps=steps), delta=DELTA)
    assert result.pld == pytest.approx(pld, rel=4e-4)
    assert result.rdp <= rdp * (1 + 1e-9)
    assert result.rdp == pytest.approx(rdp, rel=6e-3)


def sixty() -> Composed:
    """Rounds of sixty different noises and rates."""
    return Composed(
        events=tuple(
            PoissonSampled(
                sample_rate=0.01 + 0.004 * i, event=Gaussian(noise_multiplier=1 + 0.03 * i)
            )
            for i in range(60)
        )
    )


def test_sixty_different_rounds_give_the_figures_of_a_fine_grid() -> None:
    result = spent(sixty(), delta=DELTA)
    # dp-accounting at 1e-4 took 11 s for it.
    assert 2.4379024 <= result.pld <= 2.4379024 + 5e-4
    assert result.rdp == pytest.approx(2.7057687292041113, rel=1e-9)
    assert 0 < result.error < 0.03


@pytest.mark.parametrize(
    "event",
    [
        schedule(noise_multiplier=1.0, sample_rate=0.05, steps=40),
        schedule(noise_multiplier=5.0, sample_rate=1.0, steps=3),
        Repeated(count=3, event=Gaussian(noise_multiplier=2.0)),
        sixty(),
    ],
)
def test_replacing_a_subject_costs_more_than_adding_or_removing_one(event: Event) -> None:
    removed = spent(event, delta=DELTA)
    replaced = spent(event, delta=DELTA, adjacency="replace-one")
    assert replaced.pld > removed.pld
    assert replaced.rdp > removed.rdp
    # Removing and then adding: group privacy of two bounds it from above.
    twice = spent(event, delta=DELTA / (1 + math.exp(removed.epsilon)) / 1.01)
    assert replaced.epsilon <= 2 * twice.epsilon + 1e-3


def test_replacing_a_subject_of_a_gaussian_is_twice_the_sensitivity() -> None:
    replaced = spent(Gaussian(noise_multiplier=4.0), delta=DELTA, adjacency="replace-one")
    halved = spent(Gaussian(noise_multiplier=2.0), delta=DELTA)
    assert replaced.pld == pytest.approx(halved.pld, abs=1e-4)
    assert replaced.rdp == pytest.approx(halved.rdp)


def test_another_adjacency_is_refused() -> None:
    with pytest.raises(ConfigError, match="adjacency to be one of add-or-remove, replace-one"):
        spent(Gaussian(noise_multiplier=1.0), delta=DELTA, adjacency="none")  # type: ignore[arg-type]


def test_a_selected_best_run_is_answered_by_rdp_alone_and_costs_less_than_all_runs() -> None:
    one = schedule(noise_multiplier=4.0, sample_rate=0.25, steps=60)
    best = spent(RepeatAndSelect(event=one, mean=10.0, shape=1.0), delta=DELTA)
    assert best.pld == best.error == math.inf
    assert best.discretisation == 0.0
    assert best.accountant.endswith("RDP")
    assert spent(one, delta=DELTA).rdp < best.epsilon < 3.1 * spent(one, delta=DELTA).rdp
    with_more = Composed(events=(RepeatAndSelect(event=one, mean=10.0, shape=1.0), one))
    assert spent(with_more, delta=DELTA).epsilon > best.epsilon


@pytest.mark.parametrize("noise", [1e-299, 1e-7, 1.1e6, 9e299])
def test_noise_that_floats_cannot_account_for_is_one_clear_line(noise: float) -> None:
    events: list[Event] = [
        Gaussian(noise_multiplier=noise),
        schedule(noise_multiplier=noise, sample_rate=0.5, steps=3),
        RepeatAndSelect(event=Gaussian(noise_multiplier=noise), mean=2.0, shape=1.0),
    ]
    for event in events:
        with pytest.raises(ConfigError, match="noise_multiplier from 1e-06 to 1e\\+06"):
            spent(event, delta=DELTA)
    with pytest.raises(ConfigError, match="noise_multiplier from 1e-06 to 1e\\+06"):
        check_privacy(choice(epsilon=None, noise_multiplier=noise), subjects=100)


def test_noise_at_the_ends_of_its_range_is_accounted_for() -> None:
    assert spent(schedule(noise_multiplier=1e-6, sample_rate=1e-9, steps=9), delta=DELTA).rdp > 1e6
    assert spent(schedule(noise_multiplier=1e6, sample_rate=1.0, steps=9), delta=DELTA).rdp < 1e-3


@pytest.mark.parametrize("noise", [0.5, 1.0, 3.0, 20.0])
def test_one_gaussian_release_is_an_upper_bound_close_to_the_exact_value(noise: float) -> None:
    result = epsilon(noise, 1.0, 1)
    assert gaussian_delta(noise, result) <= DELTA * (1 + 1e-9)
    assert gaussian_delta(noise, result * 0.999 - 1e-4) > DELTA


def test_the_smaller_of_both_bounds_is_published_with_its_name() -> None:
    result = spent(schedule(noise_multiplier=2, sample_rate=0.25, steps=60), delta=DELTA)
    assert result.epsilon == min(result.pld, result.rdp)
    assert result.accountant.startswith("dp-accounting 0.6")
    assert "PLD at 0.0" in result.accountant


def test_where_nothing_is_protected_rdp_alone_answers_and_says_so() -> None:
    result = spent(Repeated(count=100, event=Gaussian(noise_multiplier=0.05)), delta=DELTA)
    assert result.pld == math.inf
    assert result.epsilon == result.rdp > 1000
    assert result.accountant.endswith("RDP")


def test_nothing_done_spends_nothing() -> None:
    assert spent(Composed(events=()), delta=DELTA).epsilon == 0.0


def test_order_and_nesting_of_events_do_not_change_epsilon() -> None:
    a = PoissonSampled(sample_rate=0.1, event=Gaussian(noise_multiplier=1.0))
    b = PoissonSampled(sample_rate=0.2, event=Gaussian(noise_multiplier=2.0))
    flat = Composed(events=(a, b, a, b, a))
    nested = Composed(events=(Repeated(count=2, event=Composed(events=(b, a))), a))
    assert spent(flat, delta=DELTA) == spent(nested, delta=DELTA)


def test_a_thousand_reservations_are_accounted_at_once() -> None:
    one = PoissonSampled(sample_rate=0.01, event=Gaussian(noise_multiplier=1.0))
    whole = spent(Composed(events=(one,) * 1000), delta=DELTA)
    assert whole == spent(Repeated(count=1000, event=one), delta=DELTA)
    assert whole.epsilon == pytest.approx(1.829, abs=2e-3)


@given(
    noise=st.floats(0.8, 20),
    rate=st.floats(0.01, 1.0),
    steps=st.integers(1, 100),
)
@settings(max_examples=6, deadline=None)
def test_epsilon_grows_with_steps_and_rate_and_falls_with_noise(
    noise: float, rate: float, steps: int
) -> None:
    here = epsilon(noise, rate, steps)
    slack = here * 1e-3 + 1e-4
    assert epsilon(noise, rate, steps * 2) >= here - slack
    assert epsilon(noise, rate / 2, steps) <= here + slack
    assert epsilon(noise * 2, rate, steps) <= here + slack


def test_a_larger_delta_gives_a_smaller_epsilon() -> None:
    values = [epsilon(1.0, 0.05, 100, delta) for delta in (1e-8, 1e-6, 1e-4)]
    assert all(first > second for first, second in pairwise(values))


@pytest.mark.parametrize(
    ("target", "rate", "steps"),
    [(1, 0.25, 60), (4, 0.25, 60), (8, 0.25, 120), (0.1, 0.25, 60), (4, 1.0, 1), (2, 0.01, 1000)],
)
def test_calibration_never_exceeds_the_target_and_is_the_least_noise(
    target: float, rate: float, steps: int
) -> None:
    noise = calibrate(epsilon=target, delta=DELTA, sample_rate=rate, steps=steps)
    assert epsilon(noise, rate, steps) <= target
    assert epsilon(noise * (1 - TOLERANCE), rate, steps) > target


def test_a_target_that_protects_nothing_gets_the_floor() -> None:
    assert calibrate(epsilon=1e6, delta=DELTA, sample_rate=0.1, steps=1) == pytest.approx(MIN_NOISE)


def test_a_target_out_of_reach_is_refused() -> None:
    for target in (1e-9, 1e-300, 5e-324):
        with pytest.raises(ConfigError, match="within reach") as caught:
            calibrate(epsilon=target, delta=1e-12, sample_rate=1.0, steps=10_000)
        assert "\n" not in str(caught.value)


def test_disjoint_subjects_cost_the_largest_and_shared_ones_the_composition() -> None:
    sites = [schedule(noise_multiplier=s, sample_rate=0.25, steps=60) for s in (3.0, 4.0, 5.0)]
    both = compose_sites(sites, delta=DELTA)
    assert both.disjoint == spent(sites[0], delta=DELTA)
    assert both.shared == spent(Composed(events=tuple(sites)), delta=DELTA)
    assert both.sites_per_subject == 3
    two = compose_sites(sites, delta=DELTA, sites_per_subject=2)
    assert two.shared == spent(Composed(events=(sites[0], sites[1])), delta=DELTA)
    assert both.disjoint.epsilon < two.shared.epsilon < both.shared.epsilon


def test_two_sites_with_the_same_mechanism_cost_twice_the_steps() -> None:
    site = schedule(noise_multiplier=3.0, sample_rate=0.25, steps=60)
    both = compose_sites([site] * 8, delta=DELTA, sites_per_subject=2)
    assert both.shared.epsilon == pytest.approx(epsilon(3.0, 0.25, 120))


def test_too_many_choices_of_sites_are_bounded_by_all_of_them() -> None:
    sites: list[Event] = [
        schedule(noise_multiplier=3.0 + i, sample_rate=0.25, steps=10) for i in range(10)
    ]
    result: Consortium = compose_sites(sites, delta=DELTA, sites_per_subject=5)
    assert result.shared == spent(Composed(events=tuple(sites)), delta=DELTA)


@pytest.mark.parametrize("k", [0, 3])
def test_more_sites_than_there_are_is_refused(k: int) -> None:
    site = schedule(noise_multiplier=3.0, sample_rate=0.25, steps=60)
    with pytest.raises(ConfigError, match="sites per subject"):
        compose_sites([site, site], delta=DELTA, sites_per_subject=k)


def choice(**changed: Any) -> PrivacyChoice:
    usual: dict[str, Any] = {
        "epsilon": 4.0,
        "delta": DELTA,
        "max_grad_norm": 1.0,
        "sample_rate": 0.25,
        "steps": 60,
    }
    return PrivacyChoice(**{**usual, **changed})


def test_a_good_choice_gives_the_calibrated_noise() -> None:
    noise = check_privacy(choice(), subjects=2_000)
    assert noise == calibrate(epsilon=4.0, delta=DELTA, sample_rate=0.25, steps=60)


def test_noise_alone_is_taken_as_it_is() -> None:
    assert check_privacy(choice(epsilon=None, noise_multiplier=1.1), subjects=2_000) == 1.1


def test_noise_and_epsilon_that_agree_are_taken() -> None:
    noise = check_privacy(choice(), subjects=2_000)
    assert check_privacy(choice(noise_multiplier=noise), subjects=2_000) == noise


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"epsilon": 0}, "epsilon"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"epsilon": float("nan")}, "epsilon"),
        ({"epsilon": True}, "epsilon"),
        ({"epsilon": float("inf")}, "epsilon"),
        ({"epsilon": 10**400}, "epsilon"),
        ({"epsilon": 1e300}, "epsilon"),
        ({"epsilon": None}, "neither"),
        ({"delta": 0.0}, "delta"),
        ({"delta": 1.0}, "delta"),
        ({"delta": float("nan")}, "delta"),
        ({"max_grad_norm": 0.0}, "max_grad_norm"),
        ({"max_grad_norm": -1.0}, "max_grad_norm"),
        ({"max_grad_norm": float("inf")}, "max_grad_norm"),
        ({"max_grad_norm": True}, "max_grad_norm"),
        ({"sample_rate": 1.3}, "sample_rate"),
        ({"steps": 0}, "count"),
        ({"sampling": "shuffle"}, "shuffled"),
        ({"noise_multiplier": 1.0}, "agree"),
        ({"noise_multiplier": 5.0}, "agree"),
        ({"noise_multiplier": True}, "noise_multiplier"),
        ({"noise_multiplier": -1.0}, "noise_multiplier"),
        ({"noise_multiplier": 1.0, "epsilon": True}, "epsilon"),
    ],
)
def test_a_bad_choice_is_one_clear_line(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check_privacy(choice(**changed), subjects=2_000)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("Expected ")


@pytest.mark.parametrize("noise", [0, 0.0])
def test_no_noise_with_privacy_on_is_refused(noise: float) -> None:
    with pytest.raises(PrivacyRefused, match="above 0 with privacy on"):
        check_privacy(choice(epsilon=None, noise_multiplier=noise), subjects=2_000)


def test_a_delta_of_one_over_the_subjects_is_refused_without_naming_their_count() -> None:
    check_privacy(choice(delta=1e-5), subjects=99_999)
    with pytest.raises(PrivacyRefused, match="below 1 / subjects") as caught:
        check_privacy(choice(delta=1e-3), subjects=1_234)
    assert "1234" not in str(caught.value)


def test_orders_that_do_not_converge_say_nothing_and_other_threads_keep_their_warnings(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = logging.getLogger("absl")
    filters = list(log.filters)
    stop = threading.Event()

    def warn() -> None:
        while not stop.is_set():
            log.warning("from another thread")
            time.sleep(0.001)

    other = threading.Thread(target=warn)
    with caplog.at_level(logging.WARNING, logger="absl"):
        other.start()
        epsilon(0.7001, 0.25, 10)
        stop.set()
        other.join()
    assert {record.getMessage() for record in caplog.records} == {"from another thread"}
    assert log.filters == filters


def test_the_auditors_part_imports_no_torch_and_no_flower() -> None:
    code = (
        "import sys, common.accounting, common.mechanism, common.privacy_filter;"
        "print([m for m in ('torch','flwr','opacus','polars','transformers') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
