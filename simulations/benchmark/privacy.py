"""Row: secure noise."""

import numpy as np
import torch

from common.randomness import SecureRandomness
from simulations.benchmark.clock import Work, alternate, threads
from simulations.benchmark.rows import Row

NORMALS = 1_000_000


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


def _millions(rate: float) -> str:
    return f"{rate / 1e6:.0f} M/s"
