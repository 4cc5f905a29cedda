"""What an epsilon means for one person, in words that are true for the number and no more.

Every sentence is an upper bound: chances are rounded up. A large epsilon is called what it is.
"""

import math
from dataclasses import dataclass
from typing import Final

PRIORS: Final = (0.01, 0.1, 0.5)
"""What somebody believed before: a suspicion, a guess, a toss of a coin."""
FALSE_ALARMS: Final = 0.01
_SURE: Final = (0.75, 0.95, 0.999)
"""Certainty that a toss of a coin can become, above which another caution is said."""
_CAUTIONS: Final = (
    "That is a narrow ceiling, for this person's presence in these records and nothing else.",
    "That is a limit, and not a narrow one: a mere guess may become a well-founded suspicion.",
    "That is a wide ceiling: on this number alone, somebody who was unsure may become nearly "
    "certain. What attacks were measured to reach is a separate question, and no guarantee.",
    "That is so wide that the number alone promises practically nothing to any one person: it "
    "does not rule out that somebody becomes certain.",
)


@dataclass(frozen=True, kw_only=True)
class Belief:
    """How far a belief that a person is among the records can move.

    Attributes:
        before: chance given to it at first.
        most: the most that it can become.
        least: the least.
    """

    before: float
    most: float
    least: float


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """An epsilon and delta in words.

    Attributes:
        sentence: what it means for one person.
        belief: the same as a change of belief.
        caution: how much that is.
        beliefs: for each of PRIORS.
        caught: of 100 people who are in the records, how many an accusation can hit that wrongly
            hits 1 of 100 who are not.
        exact: the definition, for a reader who wants it.
    """

    sentence: str
    belief: str
    caution: str
    beliefs: tuple[Belief, ...]
    caught: str
    exact: str


def meaning(epsilon: float, delta: float) -> Meaning:
    """Put an epsilon and delta into words."""
    if not math.isfinite(epsilon):
        return _unbounded()
    beliefs = tuple(_belief(prior, epsilon) for prior in PRIORS)
    half, suspicion = beliefs[-1], beliefs[0]
    rare = f"{chance(delta)}"
    return Meaning(
        sentence=(
            "Whatever anybody concludes from all that left the site, the chance that they come to "
            f"that conclusion is at most {factor(epsilon)} times what it would have been without "
            f"this one person's records, plus {rare}. That holds against any method, any computer "
            "and anything they know already."
        ),
        belief=(
            "Somebody who thought it as likely as not that this person is among the records can "
            f"end up {percent(half.most)} sure at most; somebody who gave it 1%, "
            f"{percent(suspicion.most)} at most (but for rare outcomes, {rare})."
        ),
        caution=_CAUTIONS[sum(half.most > sure for sure in _SURE)],
        beliefs=beliefs,
        caught=_caught(epsilon, delta),
        exact=(
            "Exactly: for every set of outcomes, its probability with the person is at most e^ε "
            "times its probability without, plus δ, and the other way round. After one outcome, "
            "the odds are more than 2·e^ε times those before with a chance of at most 2δ."
        ),
    )


def _unbounded() -> Meaning:
    return Meaning(
        sentence="Nothing bounds what anybody can conclude about one person.",
        belief="Somebody who was unsure whether a person is among the records may become certain.",
        caution=_CAUTIONS[-1],
        beliefs=tuple(Belief(before=prior, most=1.0, least=0.0) for prior in PRIORS),
        caught="Every person in the records may be found out.",
        exact="There is no finite ε.",
    )


def _belief(prior: float, epsilon: float) -> Belief:
    """Bayes' rule with the odds multiplied or divided by e^epsilon."""
    low = math.exp(-min(epsilon, 700.0))
    return Belief(
        before=prior,
        most=prior / (prior + (1 - prior) * low),
        least=prior * low / (1 - prior + prior * low),
    )


def _caught(epsilon: float, delta: float) -> str:
    """The region of an attacker's errors (Kairouz, Oh, Viswanath 2015): TPR <= e^eps FPR + delta.

    The other side of the region bounds it too: 1 - TPR >= e^-eps (1 - FPR - delta).
    """
    grown = math.exp(min(epsilon, 700.0))
    true = min(grown * FALSE_ALARMS + delta, 1 - (1 - FALSE_ALARMS - delta) / grown, 1.0)
    return (
        "A test that wrongly accuses 1 of 100 people who are not in the records can rightly find "
        f"at most {percent(true)} of those who are."
    )


def factor(epsilon: float) -> str:
    """e^epsilon, rounded up."""
    if epsilon > math.log(1e6):
        return "more than a million"
    grown = math.exp(epsilon)
    return f"{math.ceil(grown * 100) / 100:.2f}" if grown < 10 else f"{math.ceil(grown):,}"


def percent(share: float) -> str:
    """A share rounded up, with more decimals where it is nearly all."""
    if share > 0.99999:
        return "practically 100%"
    decimals = 1 if share <= 0.995 else 2 if share <= 0.9995 else 3
    shift = 10 ** (decimals + 2)
    return f"{math.ceil(share * shift - 1e-9) / shift:.{decimals}%}"


def percent_down(share: float) -> str:
    """A share rounded down, as a lower bound is."""
    digits = 1 if share >= 0.001 else 4
    shift = 10 ** (digits + 2)
    found = math.floor(share * shift + 1e-9) / shift
    return f"{found:.{digits}%}" if found else "practically 0%"


def chance(delta: float) -> str:
    """A delta as one in so many, never smaller than it is."""
    return f"a chance of 1 in {math.floor(1 / delta + 1e-6):,}" if delta > 0 else "no exception"
