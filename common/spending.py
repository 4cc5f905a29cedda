"""From a run plan to its noise: the one place where plan and accounting meet."""

from common.accounting import PrivacyChoice, check_privacy
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
    choice = PrivacyChoice(
        epsilon=privacy.epsilon,
        noise_multiplier=privacy.noise_multiplier,
        delta=privacy.delta,
        max_grad_norm=privacy.max_grad_norm,
        sample_rate=privacy.sample_rate,
        steps=plan.steps,
        sampling=privacy.sampling,
    )
    return check_privacy(choice, subjects=subjects)
