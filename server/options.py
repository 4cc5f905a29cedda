"""What the operator chooses in the run configuration besides the plan; sites are not told."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.plan import RunPlan, parse


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Folders and files of one run; empty for none.

    Attributes:
        out: adapter file to write, with its signed release beside it.
        sites: nodes to wait for.
        state: folder of the server's key, heads and checkpoints; without it nothing can be
            resumed, and an old ledger is noticed within the run alone.
        resume: whether to go on after the last round in `state`.
        public: folder of records that the consortium owns, for the choice of the best round.
        public_domain: domain of those records.
        contract: file that names the sites, their weights and keys; without it anybody may join.
        patience: rounds without a better one after which the run stops; 0 never.
    """

    out: str = ""
    sites: int = 1
    state: str = ""
    resume: bool = False
    public: str = ""
    public_domain: str = ""
    contract: str = ""
    patience: int = 0

    @property
    def folder(self) -> Path | None:
        """Folder of the server's state."""
        return Path(self.state) if self.state else None


def options_from_run_config(config: Mapping[str, Any]) -> ServerOptions:
    """The options in a flat run configuration, `public-domain = "care"` and so on.

    Raises:
        ConfigError: a value of another type or out of range, or one without what it needs.
    """
    given = {key.replace("-", "_"): value for key, value in config.items()}
    known = {
        field.name: type(getattr(ServerOptions(), field.name)) for field in fields(ServerOptions)
    }
    for name, kind in known.items():
        if name in given and type(given[name]) is not kind:
            raise ConfigError(
                f"Expected {name.replace('_', '-')} as {kind.__name__} in the run configuration, "
                f"got {type(given[name]).__name__}."
            )
    options = ServerOptions(**{name: given[name] for name in known if name in given})
    _require_sensible(options)
    return options


def _require_sensible(options: ServerOptions) -> None:
    if options.sites < 1 or options.patience < 0:
        raise ConfigError(
            "Expected sites of 1 or more and patience of 0 or more in the run configuration, got "
            f"{options.sites}, {options.patience}."
        )
    if options.patience and not options.public:
        raise ConfigError("Expected public, by which a round is better, beside patience.")
    if options.public and not options.public_domain:
        raise ConfigError("Expected public-domain beside public in the run configuration.")
    if options.resume and not options.state:
        raise ConfigError("Expected state, the folder to resume from, beside resume.")


def plan_from_run_config(config: Mapping[str, Any]) -> RunPlan:
    """The plan in a flat run configuration, `privacy.epsilon = 4.0` and so on.

    Raises:
        ConfigError: a key that no plan has, or a value out of range.
    """
    nested: dict[str, Any] = {}
    for key, value in config.items():
        if key.replace("-", "_") in _OPTIONS:
            continue
        *path, leaf = key.replace("-", "_").split(".")
        target = nested
        for part in path:
            target = target.setdefault(part, {})
        target[leaf] = value
    plan = parse(RunPlan, nested, where="run configuration")
    if not isinstance(plan, RunPlan):
        raise ConfigError("Expected a run plan in the run configuration.")
    return plan


_OPTIONS = frozenset(field.name for field in fields(ServerOptions))
