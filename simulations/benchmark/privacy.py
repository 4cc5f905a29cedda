"""Rows: secure noise and accounting."""

import itertools
from collections.abc import Callable

import numpy as np
import torch

from common.accounting import calibrate, schedule, spent
from common.randomness import SecureRandomness
from simulations.benchmark.clock import Work, alternate, threads
from simulations.benchmark.rows import Row

NORMALS = 1_000_000
ROUNDS, RATE, DELTA = 1_000, 0.05, 1e-5


def noise_row(*, turns: int) -> Row:
    """Normals a second on one core."""
    secure, plain = SecureRandomness(), np.random.default_rng()
    variants: dict[str, Work] = {
        "confed": lambda: secure.normal(NORMALS),
        "torch": lambda: torch.randn(NORMALS),
        "torch64": lambda: torch.randn(NORMALS, dtype=torch.float64),
        "numpy": lambda: plain.standard_normal(NORMALS),
    }
    with threads(1):
        timings = alternate(variants, turns=turns)
    rates = {name: NORMALS / t.median for name, t in timings.items()}
    return Row(
        name="Secure noise (ChaCha20, float64), normals a second on one core",
        measured=round(rates["confed"]),
        unit="/s",
        comparison=f"not secure: torch.randn {_millions(rates['torch'])} in float32, "
        f"{_millions(rates['torch64'])} in float64, NumPy {_millions(rates['numpy'])}",
        more_is_better=True,
        detail={name: t.plain() for name, t in timings.items()} | {"rates": rates},
    )


def accounting_rows(*, turns: int) -> list[Row]:
    """Seconds for the epsilon of 1,000 equal rounds, and for a calibration."""
    # Another noise each time: equal questions are answered from memory.
    noise = (1.0 + i * 1e-6 for i in itertools.count())
    target = (4.0 + i * 1e-6 for i in itertools.count())
    variants: dict[str, Work] = {
        "epsilon": lambda: _epsilon(next(noise)),
        "opacus": lambda: _opacus(next(noise)),
        "calibration": lambda: calibrate(
            epsilon=next(target), delta=DELTA, sample_rate=RATE, steps=ROUNDS
        ),
    }
    timings = alternate(variants, turns=turns, warm=1)
    detail = {name: t.plain() for name, t in timings.items()}
    return [
        Row(
            name=f"Accounting: epsilon of {ROUNDS:,} equal rounds, PLD and RDP",
            measured=round(timings["epsilon"].median, 4),
            unit="s",
            comparison=f"Opacus PRV {timings['opacus'].median:.2f} s",
            detail=detail,
        ),
        Row(
            name=f"Accounting: noise for epsilon 4 over {ROUNDS:,} rounds",
            measured=round(timings["calibration"].median, 4),
            unit="s",
            detail=detail,
        ),
    ]


def _epsilon(noise: float) -> float:
    event = schedule(noise_multiplier=noise, sample_rate=RATE, steps=ROUNDS)
    return spent(event, delta=DELTA).epsilon


def _opacus(noise: float) -> float:
    from opacus.accountants import PRVAccountant  # noqa: PLC0415

    accountant = PRVAccountant()
    accountant.history = [(noise, RATE, ROUNDS)]
    epsilon: Callable[..., float] = accountant.get_epsilon
    return epsilon(DELTA)


def _millions(rate: float) -> str:
    return f"{rate / 1e6:.0f} M/s"
