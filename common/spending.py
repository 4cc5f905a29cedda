"""From a run plan to its noise and its cost: the one place where plan and accounting meet."""

from common.accounting import PrivacyChoice, check_privacy
from common.mechanism import Composed, Event, Gaussian, PoissonSampled, Repeated
from common.plan import RunPlan


def noise_of(plan: RunPlan, *, subjects: int = 1) -> float:
    """The plan's noise multiplier, calibrated when it names an epsilon; 0 when not private.

    Args:
        plan: of the run.
        subjects: at the site, private, checked against delta; the server knows none and says 1.

    Raises:
        ConfigError: the privacy part does not hold together.
        PrivacyRefused: delta is too large for this many subjects, or noise is 0.
    """
    privacy = plan.privacy
    if not privacy.private:
        return 0.0
    count = plan.evaluations
    choice = PrivacyChoice(
        epsilon=privacy.epsilon,
        noise_multiplier=privacy.noise_multiplier,
        delta=privacy.delta,
        max_grad_norm=privacy.max_grad_norm,
        sample_rate=privacy.sample_rate,
        steps=plan.steps,
        sampling=privacy.sampling,
        besides=Repeated(count=count, event=evaluation_event(plan)) if count else None,
    )
    return check_privacy(choice, subjects=subjects)


def round_event(plan: RunPlan, noise_multiplier: float) -> Event:
    """What one round of training costs at one site."""
    gaussian = Gaussian(noise_multiplier=noise_multiplier)
    step = PoissonSampled(sample_rate=plan.privacy.sample_rate, event=gaussian)
    steps = plan.federation.local_steps
    return step if steps == 1 else Repeated(count=steps, event=step)


def evaluation_event(plan: RunPlan) -> Event:
    """What one federated evaluation costs at one site: everybody counts, so nothing is sampled."""
    return Gaussian(noise_multiplier=plan.evaluation.noise_multiplier)


def events_of(plan: RunPlan, noise_multiplier: float) -> dict[str, tuple[Event, int]]:
    """A private run's releases by purpose: the event of one, and how many."""
    events = {"train": (round_event(plan, noise_multiplier), plan.federation.rounds)}
    if plan.evaluations:
        events["evaluate"] = (evaluation_event(plan), plan.evaluations)
    return events


def cost_after(plan: RunPlan, noise_multiplier: float, rounds: int) -> Event:
    """Everything that a private run has done to a subject after so many rounds."""
    every = plan.evaluation.every
    done = {"train": rounds, "evaluate": rounds // every if every else 0}
    return Composed(
        events=tuple(
            Repeated(count=done[purpose], event=event)
            for purpose, (event, _) in events_of(plan, noise_multiplier).items()
            if done[purpose]
        )
    )
