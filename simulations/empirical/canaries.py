"""Tier B: canary subjects, in or out by a fair coin, and what a released update says of them.

Each canary pushes a direction of its own: its target's entry of the item bias and one entry of the
history map, which no other canary touches. So a canary's score is the update along its direction,
in clips: one if it is in, zero if not, plus the noise. The strongest adversary that the privacy
claim allows knows all of this but the coins and the noise.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.errors import ConfigError
from common.interactions import Interactions
from common.plan import RecommenderPlan
from common.windows import VIEWS
from simulations.empirical.one_run import StdTest, eps_lower, right_guesses, std_test
from simulations.empirical.product import (
    DOMAIN,
    AuditSite,
    Product,
    Step,
    noise_for,
    noise_slack,
    released_update,
    trainer_of,
)

DELTA: Final = 1e-5
CLIP: Final = 0.01
"""C of the audit, far below a canary's gradient (0.28): without the clip a canary shouts."""
GUESSES: Final = 0.1
"""Share of the canaries guessed about; near the best for noise of 0.3 to 1 times the claimed."""


@dataclass(frozen=True, kw_only=True)
class CanaryRun:
    """One update and what it told.

    Attributes:
        epsilon_probe: the claim.
        m: canaries.
        r: guesses.
        v: right ones.
        epsilon_hat: the lower bound.
        held_out: noise of the excluded canaries' scores against the claimed one.
        scores: (m), in clips.
        included: bool (m).
    """

    epsilon_probe: float
    m: int
    r: int
    v: int
    epsilon_hat: float
    held_out: StdTest
    scores: NDArray[np.float64]
    included: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Canaries:
    """m canaries on a grid: canary i has history item i // width and target item i.

    Attributes:
        count: m.
        width: d, at least the square root of m; the item vectors are d unit vectors in turn.
    """

    count: int
    width: int

    def site(self, included: NDArray[np.bool_]) -> AuditSite:
        """The site at which the included ones are."""
        who = np.flatnonzero(included)
        items = np.stack([self.count + who // self.width, who], axis=1).astype(np.int32)
        records = Interactions(
            subject_ids=tuple(f"canary-{i}" for i in who),
            offsets=np.arange(0, 2 * len(who) + 1, 2),
            items=items.ravel(),
            values=np.full(2 * len(who), 5, np.float32),
            times=np.tile(np.arange(2), len(who)),
        )
        return AuditSite(plan=_PLAN, records=records, vectors=self.vectors())

    def vectors(self) -> Tensor:
        """Targets take the unit vectors in turn; after them, one history item each."""
        axes = torch.eye(self.width)
        return torch.cat([axes[torch.arange(self.count) % self.width], axes])

    def scores(self, total: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """The released sum along each canary's direction (m)."""
        who = np.arange(self.count)
        columns = [k * self.width + who // self.width for k in range(VIEWS)]
        entries = total[f"map.{DOMAIN}"][(who % self.width)[None, :], np.stack(columns)]
        along_map: NDArray[np.float64] = entries.sum(0) / math.sqrt(VIEWS)
        return -(along_map + total[f"bias.{DOMAIN}"][who]) / math.sqrt(2)


_PLAN: Final = RecommenderPlan(
    objective="rating",
    parts="map,bias",
    top_layers=0,
    windows=1,
    history_items=1,
    history_scale=1.0,
    candidates=10**9,
)


def canaries_of(count: int) -> Canaries:
    """A grid of so many canaries.

    Raises:
        ConfigError: fewer than 100, of which 10 guesses could refute nothing.
    """
    if not 100 <= count <= 20_000:
        raise ConfigError(f"Expected 100 to 20000 canaries, got {count}; 1000 are usual.")
    return Canaries(count=count, width=math.ceil(math.sqrt(count)))


def guesses_of(count: int) -> int:
    """How many of `count` canaries are guessed about."""
    return 2 * round(GUESSES * count / 2)


def one_run(product: Product, canaries: Canaries, *, epsilon: float, seed: int) -> CanaryRun:
    """Flip the coins, make one update, guess.

    Args:
        product: what is audited.
        canaries: the grid.
        epsilon: the claim; the product's accountant turns it into noise for one step of rate 1.
        seed: of the coins; the noise is the product's own.
    """
    coins = np.random.default_rng([seed, round(1000 * epsilon)]).integers(0, 2, canaries.count)
    included = coins.astype(bool)
    noise = noise_for(epsilon, delta=DELTA)
    step = Step(
        noise_multiplier=noise,
        max_grad_norm=CLIP,
        expected_batch_size=canaries.count / 2,
        learning_rate=canaries.count / 2 / CLIP,
    )
    trainer = trainer_of(product, canaries.site(included), step)
    update = released_update(product, trainer, step)
    # Learning rate over batch size is 1 / C, so the update is the sum, in clips.
    scores = canaries.scores({name: -value.double().numpy() for name, value in update.items()})
    r, v = right_guesses(scores, included, guesses_of(canaries.count))
    return CanaryRun(
        epsilon_probe=epsilon,
        m=canaries.count,
        r=r,
        v=v,
        epsilon_hat=eps_lower(canaries.count, r, v, delta=DELTA),
        held_out=std_test(scores[~included], claimed=noise, slack=noise_slack(canaries.count / 2)),
        scores=scores,
        included=included,
    )
