"""Tier A: does one step do what its claim says? Noise, sensitivity, sampler, generator, in seconds.

Every limit is a number of standard errors or a probability, so a correct mechanism is accused
less than once in some ten thousand audits.
"""

import math
import time
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.plan import RecommenderPlan
from simulations.empirical import sites
from simulations.empirical.findings import Check, Tier
from simulations.empirical.generator import generator_checks
from simulations.empirical.product import (
    DOMAIN,
    AuditSite,
    Product,
    Step,
    released_sum,
    released_update,
    trainer_of,
)

DRAWS: Final = 200
"""Updates over which the noise of every tensor is measured."""
BATCHES: Final = 300
SIGMAS: Final = 4.5
"""Standard errors that a figure may be off."""
SLACK: Final = 1e-5
"""Relative: how much further than the clip one subject may move the sum."""
GROUPS: Final = 4
"""Groups of checks, for a progress bar."""
_NOISE: Final = 1.3
_SUBJECTS: Final = 120
_RATE: Final = 0.1
_CLIP: Final = 0.01
"""C of the sensitivity tests, so that every subject's gradient is far above it."""


def audit_plan(backbone: str = "minilm") -> RecommenderPlan:
    """A plan that trains every kind of tensor that one domain has."""
    return RecommenderPlan(backbone=backbone, dtype="float32", text_tokens=16, item_tokens=32)


def tier_a(
    product: Product,
    *,
    plan: RecommenderPlan | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Tier:
    """Run every mechanism test.

    Args:
        product: what is audited.
        plan: names the backbone and its LoRA; MiniLM when None.
        advance: told after each of the four groups.
    """
    began = time.perf_counter()
    site = sites.full_site(plan if plan is not None else audit_plan())
    checks: list[Check] = []
    ratios = noise_ratios(product, site)
    groups: tuple[Callable[[], tuple[Check, ...]], ...] = (
        lambda: noise_checks(ratios),
        lambda: sensitivity_checks(product),
        lambda: sampler_checks(product),
        lambda: generator_checks(product.randomness),
    )
    for group in groups:
        checks += group()
        advance()
    told = {name: round(found["ratio"], 5) for name, found in ratios.items()}
    return Tier(
        name="a",
        checks=tuple(checks),
        seconds=time.perf_counter() - began,
        figures={"noise_ratio": told},
    )


def noise_ratios(product: Product, site: AuditSite) -> dict[str, dict[str, float]]:
    """Noise of every trained tensor over the claimed one, from DRAWS updates of the same records.

    Each update is a restart of its own. What is taken off is the sum that the same step releases
    without noise.

    Returns:
        By tensor: `ratio`; `allowed`, how far from 1 it may be, max(1%, 4.5 / sqrt(2 n)) with n
        numbers; `repeats`, updates whose noise another update had too.
    """
    quiet = Step(noise_multiplier=0.0, train_text=True)
    loud = Step(noise_multiplier=_NOISE, train_text=True)
    trainer = trainer_of(product, site, quiet)
    total = released_update(product, trainer, quiet)
    squares, seen = dict.fromkeys(total, 0.0), {name: set[bytes]() for name in total}
    for _ in range(DRAWS):
        for name, value in released_update(product, trainer, loud).items():
            noise = (value - total[name]).double().numpy()
            squares[name] += float(np.square(noise).sum())
            seen[name].add(noise.tobytes())
    return {
        name: {
            "ratio": math.sqrt(squares[name] / (DRAWS * value.numel())) / _NOISE,
            "allowed": max(0.01, SIGMAS / math.sqrt(2 * DRAWS * value.numel())),
            "repeats": DRAWS - len(seen[name]),
        }
        for name, value in total.items()
    }


def noise_checks(ratios: dict[str, dict[str, float]]) -> tuple[Check, ...]:
    """Noise of the claimed size in every tensor, never the same twice."""
    worst = max(ratios, key=lambda name: abs(ratios[name]["ratio"] - 1) / ratios[name]["allowed"])
    within = sum(abs(r["ratio"] - 1) <= r["allowed"] for r in ratios.values())
    repeats = max(int(r["repeats"]) for r in ratios.values())
    found = ratios[worst]
    return (
        Check(
            name="noise std, worst tensor",
            figure=f"{found['ratio']:.4f}, {_short(worst)}",
            passes_at=f"1 ± {found['allowed']:.3f}",
            passed=abs(found["ratio"] - 1) <= found["allowed"],
        ),
        Check(
            name="noise on every tensor",
            figure=f"{within} of {len(ratios)}",
            passes_at=f"{len(ratios)} of {len(ratios)}",
            passed=within == len(ratios),
        ),
        Check(
            name="noise never repeats",
            figure=f"{repeats} of {DRAWS}",
            passes_at=f"0 of {DRAWS}",
            passed=repeats == 0,
        ),
    )


def sensitivity_checks(product: Product) -> tuple[Check, ...]:
    """One subject more, whatever its record, moves the sum by the clip at most."""
    return (
        _moved("subject with gradient x 1e30", product, sites.with_loud(1e30), least=0.9),
        _moved(f"subject of {sites.ROWS} rows", product, sites.with_rows(sites.ROWS), least=0.9),
        _moved("subject with NaN", product, sites.with_value(math.nan), least=0.0),
    )


def _moved(name: str, product: Product, site: AuditSite, *, least: float) -> Check:
    """How far the site's last subject moves the sum; a test that it does not reach is none."""
    limit = f"{least:g} to {1 + SLACK:.5f}" if least else f"≤ {1 + SLACK:.5f}"
    try:
        moved = float(
            np.linalg.norm(_flat(product, site) - _flat(product, sites.without_last(site)))
        )
    except Exception as error:  # whatever is raised is a signal about one person
        figure, passed = f"raised {type(error).__name__}", False
    else:
        figure, passed = (
            f"{moved:{'.5f' if moved < 1e4 else '.3g'}} clips",
            least <= moved <= 1 + SLACK,
        )
    return Check(name=name, figure=figure, passes_at=limit, passed=passed)


def _flat(product: Product, site: AuditSite) -> NDArray[np.float64]:
    """The clipped sum of a site, in clips, as one vector."""
    total = released_sum(product, site, Step(noise_multiplier=0.0, max_grad_norm=_CLIP))
    return np.concatenate([total[name].ravel() for name in sorted(total)]) / _CLIP


def sampler_checks(product: Product) -> tuple[Check, ...]:
    """Poisson sampling, seen through updates that tell who was in the batch."""
    seen = batches(product)
    count, subjects = seen.shape
    sizes = seen.sum(1).astype(float)
    variance = subjects * _RATE * (1 - _RATE)
    rate_error = float(seen.mean() - _RATE) / math.sqrt(_RATE * (1 - _RATE) / seen.size)
    ratio = float(sizes.var(ddof=1)) / variance
    # A binomial's kurtosis adds (1 - 6 q (1 - q)) / (N q (1 - q)) to a normal's 2 / (n - 1).
    spread = math.sqrt(2 / (count - 1) + (1 - 6 * _RATE * (1 - _RATE)) / (variance * count))
    lag, chained = _dependence(seen)
    return (
        Check(
            name="batch size, mean",
            figure=f"{sizes.mean():.2f} ({rate_error:+.1f} se)",
            passes_at=f"{subjects * _RATE:g} ± {SIGMAS} se",
            passed=abs(rate_error) <= SIGMAS,
        ),
        Check(
            name="batch size, variance",
            figure=f"{ratio:.3f} of Poisson's",
            passes_at=f"1 ± {SIGMAS * spread:.2f}",
            passed=abs(ratio - 1) <= SIGMAS * spread,
        ),
        Check(
            name="batches independent",
            figure=f"{chained:+.1f} se, lag {lag}",
            passes_at=f"± {SIGMAS} se",
            passed=abs(chained) <= SIGMAS,
        ),
    )


def batches(product: Product) -> NDArray[np.bool_]:
    """Who was in each of BATCHES batches, bool (batches, subjects)."""
    step = Step(noise_multiplier=0.0, max_grad_norm=100.0, sample_rate=_RATE)
    trainer = trainer_of(product, sites.lone_targets(_SUBJECTS), step)
    name = f"bias.{DOMAIN}"
    seen = [released_update(product, trainer, step)[name].numpy() != 0 for _ in range(BATCHES)]
    return np.stack(seen)


def _dependence(seen: NDArray[np.bool_]) -> tuple[int, float]:
    """The lag, up to an epoch, at which presence in two batches is correlated most.

    The sum of (x_t - q)(x_{t+lag} - q) over subjects and batches has mean 0 and variance
    (q (1 - q))^2 a term if batches are independent.

    Returns:
        The lag and its correlation in standard errors.
    """
    centred = seen - _RATE
    each = _RATE * (1 - _RATE)
    found = {}
    for lag in range(1, round(1 / _RATE) + 1):
        products = centred[lag:] * centred[:-lag]
        found[lag] = float(products.sum()) / (each * math.sqrt(products.size))
    worst = max(found, key=lambda lag: abs(found[lag]))
    return worst, found[worst]


def _short(name: str) -> str:
    """The first and last words of a tensor's name, as far as a table has room."""
    kind, _, rest = name.partition(".")
    return name if len(name) <= 14 else f"{kind}…{rest[-8:]}"
