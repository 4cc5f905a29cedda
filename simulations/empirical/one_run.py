"""The one-run audit's arithmetic: from right guesses about canaries to a lower bound on epsilon.

Source: Steinke, Nasr, Jagielski, "Privacy Auditing with One (1) Training Run", 2023 (Theorem 5.2,
and the procedure in its appendix). Pure: numbers in, numbers out.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import expit

from common.errors import ConfigError

BETA: Final = 0.05
"""Chance that the bound is wrong: its confidence is 1 - BETA."""
_LARGEST_EPSILON: Final = 60.0


def p_value(m: int, r: int, v: int, *, epsilon: float, delta: float) -> float:
    """Most likely an (epsilon, delta)-private mechanism lets `v` of `r` guesses be right.

    Args:
        m: canaries, each in or out by a fair coin.
        r: canaries guessed about; of the others the auditor abstains.
        v: right guesses.
        epsilon: of the claim that is tested.
        delta: of the claim that is tested.

    Returns:
        P[Binomial(r, q) >= v] + 2 m delta max_i P[v > Binomial(r, q) >= v - i] / i with
        q = e^epsilon / (1 + e^epsilon), at most 1.
    """
    _check(m, r, v, delta)
    q = float(expit(epsilon))
    by_luck = float(stats.binom.sf(v - 1, r, q))
    if v == 0 or delta == 0:
        return min(1.0, by_luck)
    below = np.cumsum(stats.binom.pmf(np.arange(v - 1, -1, -1), r, q))
    slack = float((below / np.arange(1, v + 1)).max())
    return min(1.0, by_luck + 2 * m * delta * slack)


def eps_lower(m: int, r: int, v: int, *, delta: float, beta: float = BETA) -> float:
    """Largest epsilon that `v` right guesses of `r` refute with confidence 1 - beta, 0 if none.

    Raises:
        ConfigError: not 0 <= v <= r <= m, or delta or beta outside [0, 1).
    """
    _check(m, r, v, delta)
    if not 0 < beta < 1:
        raise ConfigError(f"Expected beta in (0, 1), got {beta!r}.")
    low, high = 0.0, _LARGEST_EPSILON
    if p_value(m, r, v, epsilon=0.0, delta=delta) >= beta:
        return 0.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        refuted = p_value(m, r, v, epsilon=middle, delta=delta) < beta
        low, high = (middle, high) if refuted else (low, middle)
    return low


def right_guesses(
    scores: NDArray[np.float64], included: NDArray[np.bool_], guesses: int
) -> tuple[int, int]:
    """Guess the highest scores in and the lowest out, and count the right ones.

    Args:
        scores: (m).
        included: bool (m), the coins.
        guesses: r, half of them for each side; fixed before any score is seen.

    Returns:
        r and v.
    """
    half = guesses // 2
    order = np.argsort(scores, kind="stable")
    right = int(included[order[-half:]].sum()) + int((~included[order[:half]]).sum())
    return 2 * half, right


@dataclass(frozen=True, kw_only=True)
class StdTest:
    """Whether scores of canaries that were left out are as noisy as claimed.

    Attributes:
        ratio: standard deviation found over the one claimed.
        low: smallest ratio that passes.
        high: largest ratio that passes.
    """

    ratio: float
    low: float
    high: float

    @property
    def passed(self) -> bool:
        """Whether the ratio lies between the limits."""
        return self.low <= self.ratio <= self.high


def std_test(
    scores: NDArray[np.float64], *, claimed: float, slack: float = 0.0, false_alarm: float = 1e-6
) -> StdTest:
    """Test scores that are nothing but noise, mean 0, against the claimed standard deviation.

    The sum of squares over the claimed variance is chi-squared with as many degrees of freedom
    as scores, so the limits are exact.

    Args:
        scores: (n) of excluded canaries.
        claimed: standard deviation.
        slack: share of it that the product may add on top; it never takes any away.
        false_alarm: chance that a correct mechanism is accused.
    """
    n = len(scores)
    low, high = stats.chi2.ppf([false_alarm / 2, 1 - false_alarm / 2], n)
    return StdTest(
        ratio=math.sqrt(float(np.mean(np.square(scores)))) / claimed,
        low=math.sqrt(low / n),
        high=math.sqrt(high / n) * (1 + slack),
    )


def _check(m: int, r: int, v: int, delta: float) -> None:
    if not 0 <= v <= r <= m:
        raise ConfigError(f"Expected 0 <= right <= guesses <= canaries, got {v}, {r}, {m}.")
    if not 0 <= delta < 1:
        raise ConfigError(f"Expected delta in [0, 1), got {delta!r}.")
