import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.accounting import spent
from common.errors import ConfigError, PrivacyRefused
from common.mechanism import Gaussian, Leaf, PoissonSampled, Repeated, leaves
from common.plan import EvaluationPlan, FederationPlan, PrivacyPlan, RunPlan
from common.spending import cost_after, evaluation_event, events_of, noise_of, round_event


def plan_of(
    *, rounds: int = 10, steps: int = 1, every: int = 0, evaluation: float = 10.0, **privacy: object
) -> RunPlan:
    chosen = {"noise_multiplier": 2.0, "sample_rate": 0.5, **privacy}
    return RunPlan(
        privacy=PrivacyPlan(**chosen),  # type: ignore[arg-type]
        federation=FederationPlan(rounds=rounds, local_steps=steps),
        evaluation=EvaluationPlan(every=every, noise_multiplier=evaluation),
    )


STEP = PoissonSampled(sample_rate=0.5, event=Gaussian(noise_multiplier=2.0))


def test_a_round_is_as_many_sampled_steps_as_the_plan_has() -> None:
    assert round_event(plan_of(), 2.0) == STEP
    assert round_event(plan_of(steps=3), 2.0) == Repeated(count=3, event=STEP)


def test_an_evaluation_is_not_sampled() -> None:
    assert evaluation_event(plan_of(evaluation=10.0)) == Gaussian(noise_multiplier=10.0)


def test_a_plan_names_every_release_and_how_often() -> None:
    assert events_of(plan_of(), 2.0) == {"train": (STEP, 10)}
    both = events_of(plan_of(every=3), 2.0)
    assert both == {"train": (STEP, 10), "evaluate": (Gaussian(noise_multiplier=10.0), 3)}


@given(
    rounds=st.integers(1, 40), steps=st.integers(1, 5), every=st.integers(0, 12),
    done=st.integers(0, 40),
)  # fmt: skip
def test_the_cost_counts_every_step_and_every_evaluation_so_far(
    rounds: int, steps: int, every: int, done: int
) -> None:
    done = min(done, rounds)
    plan = plan_of(rounds=rounds, steps=steps, every=every)
    found = dict(leaves(cost_after(plan, 2.0, done)))
    wanted: dict[Leaf, int] = {}
    if done:
        wanted[STEP] = done * steps
    if every and done // every:
        wanted[Gaussian(noise_multiplier=10.0)] = done // every
    assert found == wanted


def test_after_the_last_round_the_cost_is_that_of_all_releases() -> None:
    plan = plan_of(every=3)
    whole = {
        leaf: count * times
        for event, times in events_of(plan, 2.0).values()
        for leaf, count in leaves(event).items()
    }
    assert dict(leaves(cost_after(plan, 2.0, 10))) == whole


@settings(max_examples=8, deadline=None)
@given(every=st.integers(0, 5), epsilon=st.floats(0.8, 6), steps=st.integers(1, 3))
def test_calibrated_noise_holds_the_epsilon_of_everything_that_is_released(
    every: int, epsilon: float, steps: int
) -> None:
    plan = plan_of(
        every=every, steps=steps, evaluation=40.0, noise_multiplier=None, epsilon=epsilon
    )
    cost = spent(cost_after(plan, noise_of(plan), 10), delta=1e-5).epsilon
    assert epsilon * 0.99 <= cost <= epsilon * (1 + 1e-6)


def test_evaluations_that_cost_more_than_epsilon_are_refused() -> None:
    plan = plan_of(every=1, evaluation=0.5, noise_multiplier=None, epsilon=0.5)
    with pytest.raises((ConfigError, PrivacyRefused)) as error:
        noise_of(plan)
    assert "\n" not in str(error.value)


def test_a_plan_without_privacy_has_no_noise() -> None:
    assert noise_of(plan_of(private=False, noise_multiplier=None)) == 0.0


@pytest.mark.parametrize(
    ("privacy", "error"),
    [
        ({"noise_multiplier": None}, ConfigError),
        ({"noise_multiplier": 0.0}, PrivacyRefused),
        ({"sampling": "shuffle"}, ConfigError),
        ({"noise_multiplier": 2.0, "epsilon": 0.01}, ConfigError),
        ({"delta": 0.5}, PrivacyRefused),
    ],
)
def test_a_privacy_part_that_does_not_hold_together_is_refused(
    privacy: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        noise_of(plan_of(**privacy), subjects=100)  # type: ignore[arg-type]
