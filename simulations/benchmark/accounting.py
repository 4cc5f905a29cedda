"""Rows: epsilon of equal and of different rounds, noise for an epsilon, and rounds left."""

import itertools
from collections.abc import Callable

from client.third_opinion import opacus_opinion
from common.accounting import Spent, calibrate, schedule, spent
from common.mechanism import Composed, Event, Gaussian, PoissonSampled, Repeated
from common.privacy_filter import Budget, rounds_left
from common.renyi import foreign
from simulations.benchmark.clock import Timing, Work, alternate
from simulations.benchmark.rows import Row

ROUNDS, RATE, DELTA = 1_000, 0.05, 1e-5
DIFFERENT = 60
FINE = 1e-4
"""Grid of the plain PLD that stands beside."""


def accounting_rows(*, turns: int, quick: bool = False) -> list[Row]:
    """Seconds for epsilon beside Opacus PRV and, unless quick, a plain PLD on a fine grid."""
    # Another noise each time: equal questions are answered from memory.
    tiny = (i * 1e-6 for i in itertools.count())
    return [
        _epsilon_row(
            f"Accounting: epsilon of {ROUNDS:,} equal rounds, PLD and RDP",
            lambda: equal_rounds(1.0 + next(tiny)),
            turns=turns,
            least=0.1,
            aim=0.05,
            fine=not quick,
        ),
        _epsilon_row(
            f"Accounting: epsilon of {DIFFERENT} rounds, noise and rate different in each",
            lambda: different_rounds(1.0 + next(tiny)),
            turns=min(turns, 2),
            least=3.0,
            aim=1.0,
            fine=not quick,
        ),
        _calibration_row(turns=turns),
        _rounds_row(turns=turns),
    ]


def equal_rounds(noise: float) -> Event:
    """The same step ROUNDS times."""
    return schedule(noise_multiplier=noise, sample_rate=RATE, steps=ROUNDS)


def different_rounds(noise: float) -> Event:
    """DIFFERENT steps, no two with the same noise or rate."""
    return Composed(
        events=tuple(
            PoissonSampled(
                sample_rate=0.01 + 0.004 * i,
                event=Gaussian(noise_multiplier=noise + 0.03 * i),
            )
            for i in range(DIFFERENT)
        )
    )


def _epsilon_row(
    name: str, make: Callable[[], Event], *, turns: int, least: float, aim: float, fine: bool
) -> Row:
    found: dict[str, float] = {}
    kept: list[Spent] = []

    def confed() -> None:
        kept.append(spent(make(), delta=DELTA))
        found["confed"] = kept[-1].epsilon

    def opacus() -> None:
        found["opacus"] = opacus_opinion(make(), DELTA)

    def plain() -> None:
        found["plain"] = _plain_epsilon(make())

    timings = alternate({"confed": confed}, turns=turns, warm=1)
    # The others take seconds a turn, so they get one.
    slow: dict[str, Work] = {"opacus": opacus, **({"plain": plain} if fine else {})}
    timings |= alternate(slow, turns=1, warm=0)
    return Row(
        name=name,
        measured=round(timings["confed"].median, 4),
        unit="s",
        comparison=_beside(timings, found, kept[-1]),
        least=least,
        aim=aim,
        detail={
            **{key: timing.plain() for key, timing in timings.items()},
            "epsilon": found,
            "rdp": kept[-1].rdp,
            "discretisation": kept[-1].discretisation,
            "error": kept[-1].error,
        },
    )


def _beside(timings: dict[str, Timing], found: dict[str, float], ours: Spent) -> str:
    text = (
        f"epsilon {found['confed']:.4f}, too high by {ours.error:.2g} at most; "
        f"Opacus PRV {timings['opacus'].median:.2f} s, {found['opacus']:.4f}"
    )
    if "plain" in timings:
        text += (
            f"; dp-accounting PLD at {FINE:g} {timings['plain'].median:.1f} s, {found['plain']:.4f}"
        )
    return text


def _calibration_row(*, turns: int) -> Row:
    target = (4.0 + i * 1e-6 for i in itertools.count())

    def work() -> float:
        return calibrate(epsilon=next(target), delta=DELTA, sample_rate=RATE, steps=ROUNDS)

    timing = alternate({"calibration": work}, turns=turns, warm=1)["calibration"]
    return Row(
        name=f"Accounting: noise for epsilon 4 over {ROUNDS:,} rounds",
        measured=round(timing.median, 4),
        unit="s",
        detail={"calibration": timing.plain()},
    )


def _rounds_row(*, turns: int) -> Row:
    noise = (1.1 + i * 1e-6 for i in itertools.count())
    budget = Budget(epsilon=8.0, delta=DELTA)

    def work() -> int:
        one = PoissonSampled(sample_rate=RATE, event=Gaussian(noise_multiplier=next(noise)))
        return rounds_left(budget, Repeated(count=100, event=one), one, adaptive=False)

    timing = alternate({"rounds": work}, turns=turns, warm=1)["rounds"]
    return Row(
        name="Accounting: how many more rounds fit epsilon 8, after 100",
        measured=round(timing.median, 4),
        unit="s",
        least=1.0,
        aim=0.3,
        detail={"rounds": timing.plain()},
    )


def _plain_epsilon(event: Event) -> float:
    from dp_accounting import pld  # noqa: PLC0415

    accountant = pld.PLDAccountant(value_discretization_interval=FINE)
    return float(accountant.compose(foreign(event)).get_epsilon(DELTA))
