"""A site's own side of the contract: its records, its caps, and where they come from.

Sensitive: the interactions. Public: name, domain, catalog and the declared number of subjects.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flwr.app import Context

from common.accounting import spent
from common.caps import SiteCaps
from common.catalog import Catalog, read_catalog
from common.errors import ConfigError, PrivacyRefused
from common.interactions import Interactions, read_interactions, require_subjects
from common.plan import RunPlan
from common.randomness import Randomness
from common.spending import cost_after

DEFAULT_CAPS = SiteCaps()


@dataclass(frozen=True, kw_only=True)
class SiteRecords:
    """One site.

    Attributes:
        name: public name in the contract.
        domain: its domain.
        catalog: the domain's public catalog.
        interactions: private; what the site trains on.
        declared_subjects: public figure of the contract, the denominator of the mean.
        caps: of the site's owner.
        ledger: folder of the site's ledger and opt-outs; None where a simulation keeps them.
        made_up: whether the records are synthetic; each run then begins a ledger of its own.
    """

    name: str
    domain: str
    catalog: Catalog
    interactions: Interactions
    declared_subjects: int
    caps: SiteCaps = DEFAULT_CAPS
    ledger: Path | None = None
    made_up: bool = False

    def __post_init__(self) -> None:
        if self.declared_subjects < 1:
            raise ConfigError(
                f"Expected declared subjects of 1 or more, got {self.declared_subjects}."
            )


SiteSource = Callable[[Context], SiteRecords]
RandomnessSource = Callable[[str, int], Randomness]
"""From site name and round to the generator of that round's samples and noise."""


def declared(subjects: int) -> int:
    """A number of subjects rounded down to two digits, for a contract."""
    step = int(10 ** max(len(str(subjects)) - 2, 0))
    return max(subjects // step * step, 1)


def check_caps(plan: RunPlan, noise_multiplier: float, caps: SiteCaps) -> None:
    """Refuse a plan that asks for more than the owner allows.

    Raises:
        PrivacyRefused: names the cap.
    """
    privacy = plan.privacy
    if not privacy.private:
        if caps.private_only:
            raise PrivacyRefused("Expected a private plan, got private = false; this site refuses.")
        return
    event = cost_after(plan, noise_multiplier, plan.federation.rounds)
    asked = {
        "epsilon": spent(event, delta=privacy.delta).epsilon,
        "delta": privacy.delta,
        "sample_rate": privacy.sample_rate,
        "max_grad_norm": privacy.max_grad_norm,
    }
    for name, value in asked.items():
        if value > getattr(caps, name):
            raise PrivacyRefused(
                f"Expected {name} of at most {getattr(caps, name):g} at this site, "
                f"got a plan with {value:.4g}."
            )
    if noise_multiplier < caps.noise_multiplier:
        raise PrivacyRefused(
            f"Expected noise_multiplier of at least {caps.noise_multiplier:g} at this site, "
            f"got a plan with {noise_multiplier:.4g}."
        )


def open_configured_site(context: Context) -> SiteRecords:
    """The site that a node's own configuration names: `data`, `site`, `domain`, caps.

    A simulated partition without `data` gets its part of the built-in synthetic consortium.

    Raises:
        ConfigError: neither.
    """
    config = context.node_config
    if "data" in config:
        return _deployed(config)
    if "partition-id" in config:
        return _synthetic(int(config["partition-id"]), int(config["num-partitions"]))
    raise ConfigError(
        "Expected node_config with data, site, domain and declared-subjects, got none of them."
    )


def _deployed(config: dict[str, bool | float | int | str]) -> SiteRecords:
    missing = {"site", "domain", "declared-subjects"} - set(config)
    if missing:
        raise ConfigError(f"Expected {', '.join(sorted(missing))} in node_config, it is missing.")
    folder, domain = Path(str(config["data"])), str(config["domain"])
    catalog = read_catalog(folder, domain=domain)
    interactions, _ = read_interactions(folder, catalog)
    require_subjects(interactions)
    caps = SiteCaps(
        epsilon=float(config.get("max-epsilon", SiteCaps.epsilon)),
        delta=float(config.get("max-delta", SiteCaps.delta)),
        noise_multiplier=float(config.get("least-noise-multiplier", SiteCaps.noise_multiplier)),
    )
    return SiteRecords(
        name=str(config["site"]),
        domain=domain,
        catalog=catalog,
        interactions=interactions,
        declared_subjects=int(config["declared-subjects"]),
        caps=caps,
        ledger=Path(str(config["ledger"])) if "ledger" in config else None,
    )


def state_folder() -> Path:
    """Where a program keeps what outlives it (XDG Base Directory)."""
    home = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(home) / "confed"


def _synthetic(partition: int, partitions: int) -> SiteRecords:
    from common.synthetic import make_site  # noqa: PLC0415

    half = max(partitions // 2, 1)
    domain: Literal["care", "bank"] = "care" if partition < half else "bank"
    number = partition if partition < half else partition - half
    catalog, interactions = make_site(domain, site=number, subjects=600, seed=1)
    return SiteRecords(
        name=f"{domain}-{number + 1}",
        domain=domain,
        catalog=catalog,
        interactions=interactions,
        declared_subjects=declared(len(interactions)),
        ledger=state_folder() / "simulated",
        made_up=True,
    )
