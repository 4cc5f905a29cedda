"""Scenarios: which sites there are, where their records come from, and the run plan.

A scenario is a TOML file, one of those beside this module or the researcher's own.
"""

import difflib
import hashlib
import tomllib
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from client.site import SiteRecords, declared
from common.catalog import Catalog, read_catalog
from common.errors import ConfigError, DataError
from common.interactions import (
    Interactions,
    concatenate,
    read_interactions,
    read_subject_column,
    require_subjects,
    require_targets,
)
from common.limits import LIMITS
from common.plan import (
    EvaluationPlan,
    FederationPlan,
    Frozen,
    PrivacyPlan,
    RecommenderPlan,
    RunPlan,
    parse,
    require_text_layers,
)
from common.splits import LeaveOneOut, leave_one_out
from common.tables import child_folder
from simulations.partitions import partition
from simulations.sites import SIMULATED

DELTA_SHARE = 0.5
"""Most that delta times subjects may be where delta was nobody's choice."""


class DomainPlan(Frozen):
    """One domain of a scenario."""

    name: str = Field(min_length=1, max_length=40, pattern=r"^[a-z0-9][a-z0-9_-]*$")
    data: str = ""
    """Folder below --data; empty takes the domain's name, or --data itself for a single domain."""
    sites: int = Field(default=8, ge=1, le=10_000)
    at_most: bool = False
    """True: fewer sites where the subjects do not fill so many to the floor."""
    column: str = ""
    """Subject column that splits the sites; empty splits by hash."""
    partition: Literal["hash", "dirichlet", "size", "time"] = "hash"
    """How subjects are split over sites; `hash` keeps synthetic sites as they were made."""
    alpha: float = Field(default=0.3, gt=0, le=1e6)
    """Concentration of `dirichlet`: small values make sites unlike."""
    subjects: int = Field(default=600, ge=1, le=1_000_000)
    """Subjects of a synthetic site."""

    @model_validator(mode="after")
    def _one_split(self) -> Self:
        if self.column and self.partition != "hash":
            raise ValueError("expected a column or a partition to split the sites, got both")
        return self


class Scenario(Frozen):
    """A consortium and its plan."""

    title: str = ""
    real: bool = False
    """Made for records from files; without --data it does not run on the synthetic consortium."""
    seed: int = Field(default=1, ge=0, le=2**32 - 1)
    domains: list[DomainPlan] = Field(min_length=1, max_length=16)
    recommender: RecommenderPlan = RecommenderPlan()
    privacy: PrivacyPlan = PrivacyPlan(epsilon=4.0)
    federation: FederationPlan = FederationPlan()
    evaluation: EvaluationPlan = EvaluationPlan()

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        require_text_layers(self.recommender, self.federation)
        named = [domain.name for domain in self.domains]
        twice = sorted({name for name in named if named.count(name) > 1})
        if twice:
            raise ValueError(f"expected domains of different names, got {twice[0]} twice")
        return self

    def run_plan(self) -> RunPlan:
        """The plan that server and sites agree on."""
        return RunPlan(
            seed=self.seed,
            recommender=self.recommender,
            privacy=self.privacy,
            federation=self.federation,
            evaluation=self.evaluation,
        )


class Consortium:
    """All sites of a scenario with their leave-one-out splits.

    Attributes:
        names: of the sites, in order.
        catalogs: by domain.
        splits: by site.
        domain_of: domain by site.
        dropped: what reading left out, by domain, in words.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.catalogs: dict[str, Catalog] = {}
        self.splits: dict[str, LeaveOneOut] = {}
        self.domain_of: dict[str, str] = {}
        self.dropped: dict[str, str] = {}

    def add(self, name: str, domain: str, catalog: Catalog, interactions: Interactions) -> None:
        """Put one site in."""
        require_subjects(interactions)
        self.names.append(name)
        self.catalogs[domain] = catalog
        self.splits[name] = leave_one_out(interactions)
        self.domain_of[name] = domain

    def sites_of(self, domain: str) -> list[str]:
        """Names of a domain's sites."""
        return [name for name in self.names if self.domain_of[name] == domain]

    def records(self, name: str) -> SiteRecords:
        """What a site trains on: the training part of its split."""
        train = self.splits[name].train
        return SiteRecords(
            name=name,
            domain=self.domain_of[name],
            catalog=self.catalogs[self.domain_of[name]],
            interactions=train,
            declared_subjects=declared(len(train)),
            caps=SIMULATED,
        )

    def largest(self) -> int:
        """Subjects of the largest domain, all of its sites together."""
        sizes = {domain: 0 for domain in self.catalogs}
        for name in self.names:
            sizes[self.domain_of[name]] += len(self.splits[name].train)
        return max(sizes.values(), default=0)

    def overlap(self) -> int:
        """Most sites that one subject stands in."""
        ids = [i for name in self.names for i in self.splits[name].train.subject_ids]
        if len(self.catalogs) < 2:
            return 1
        _, counts = np.unique(np.asarray(ids), return_counts=True)
        return int(counts.max(initial=1))


def names() -> list[str]:
    """Scenarios that come with the package."""
    folder = files("simulations") / "scenarios"
    return sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith("toml"))


def load_scenario(given: str | None, data: Path | None) -> tuple[str, Scenario]:
    """The scenario of that name or file; without one, a folder alone is enough.

    Raises:
        ConfigError: no such scenario, or a wrong value in it.
    """
    if given is None:
        if data is None:
            given = "care-and-bank"
        else:
            name = data.resolve().name or "data"
            domains = [DomainPlan(name="records", at_most=True)]
            return name, Scenario(title=f"Records of {name}", domains=domains)
    path = Path(given)
    if given.endswith(".toml"):
        if not path.is_file():
            raise ConfigError(f"Expected a scenario file at {given}, found none; check the path.")
        return path.stem, _parse(path.read_bytes(), path.name)
    known = names()
    if given not in known:
        near = difflib.get_close_matches(given, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise ConfigError(
            f"Expected a scenario ({', '.join(known)}) or a file ending in .toml, got {given}{hint}"
        )
    inside = files("simulations") / "scenarios" / f"{given}.toml"
    return given, _parse(inside.read_bytes(), f"{given}.toml")


def _parse(content: bytes, where: str) -> Scenario:
    try:
        values = tomllib.loads(content.decode())
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: expected TOML in UTF-8, got other bytes.") from None
    except RecursionError:
        raise ConfigError(f"{where}: expected TOML, got values nested without end.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: expected TOML, got another text: {error}.") from None
    scenario = parse(Scenario, values, where=where)
    if not isinstance(scenario, Scenario):
        raise ConfigError(f"{where}: expected a scenario.")
    return scenario


def changed(scenario: Scenario, changes: dict[str, Any]) -> Scenario:
    """The scenario with values from the command line put in its sections."""
    values = scenario.model_dump()
    for section, pairs in changes.items():
        if isinstance(pairs, dict):
            values[section].update(pairs)
        else:
            values[section] = pairs
    new = parse(Scenario, values, where="command line")
    if not isinstance(new, Scenario):
        raise ConfigError("command line: expected a scenario.")
    return new


def open_consortium(scenario: Scenario, data: Path | None) -> Consortium:
    """Read or generate every site.

    Raises:
        ConfigError: the scenario's records come from files, and no folder is given.
        DataError: a file is missing or wrong.
        PrivacyRefused: a site has too few subjects.
        SecurityRefused: a domain's folder is not one plain name below `data`.
    """
    consortium = Consortium()
    if data is None:
        _require_synthetic(scenario)
        for domain in scenario.domains:
            _generate(consortium, domain, scenario.seed)
        return consortium
    folders = [_folder(scenario, domain, data) for domain in scenario.domains]
    for domain, folder in zip(scenario.domains, folders, strict=True):
        _read(consortium, domain, folder, scenario.seed)
    return consortium


def with_fitting_delta(scenario: Scenario, consortium: Consortium) -> Scenario:
    """The scenario with delta a power of ten lower until it is well below 1 / subjects."""
    delta = scenario.privacy.delta
    while delta * consortium.largest() >= DELTA_SHARE:
        delta /= 10
    return changed(scenario, {"privacy": {"delta": float(f"{delta:.0e}")}})


def _require_synthetic(scenario: Scenario) -> None:
    from common.synthetic import DOMAINS  # noqa: PLC0415

    for domain in scenario.domains:
        if scenario.real or domain.data or domain.name not in DOMAINS:
            raise ConfigError(
                f"Expected --data DIR with the records of domain {domain.name}, got none; "
                f"only {' and '.join(DOMAINS)} have synthetic records."
            )
        if domain.column:
            raise ConfigError(
                f"Expected no subject column with synthetic records, got {domain.column}; "
                "leave --site-column out or give --data DIR."
            )


def _folder(scenario: Scenario, domain: DomainPlan, data: Path) -> Path:
    several = len(scenario.domains) > 1
    name = domain.data or (domain.name if several else "")
    folder = child_folder(data, name) if name else data
    if not folder.is_dir():
        raise DataError(
            f"Expected a folder {name} with the records of domain {domain.name} in {data}, "
            "got none; give the folder above the domains' folders as --data."
        )
    return folder


def _generate(consortium: Consortium, domain: DomainPlan, seed: int) -> None:
    from common.synthetic import make_site  # noqa: PLC0415

    made = [
        make_site(
            domain.name,  # type: ignore[arg-type]
            site=number,
            subjects=domain.subjects,
            seed=seed,
        )
        for number in range(domain.sites)
    ]
    catalog, parts = made[0][0], [interactions for _, interactions in made]
    if domain.partition != "hash":
        whole = concatenate(parts)
        of_subject = _partitioned(domain, whole, catalog, seed)(domain.sites)
        parts = [whole.select(np.flatnonzero(of_subject == k)) for k in range(domain.sites)]
    for number, interactions in enumerate(parts):
        consortium.add(f"{domain.name}-{number + 1}", domain.name, catalog, interactions)


def _partitioned(
    domain: DomainPlan, interactions: Interactions, catalog: Catalog, seed: int
) -> Callable[[int], NDArray[np.int64]]:
    return lambda sites: partition(
        domain.partition, interactions, catalog, sites=sites, alpha=domain.alpha, seed=seed
    )


def _read(consortium: Consortium, domain: DomainPlan, folder: Path, seed: int) -> None:
    catalog = read_catalog(folder, domain=domain.name)
    interactions, report = read_interactions(folder, catalog)
    require_targets(interactions)
    consortium.dropped[domain.name] = (
        f"{report.dropped_unknown_items} rows of unknown items, "
        f"{report.dropped_duplicates} repeated rows dropped"
    )
    of_sites = (
        _numbers(domain, folder, interactions)
        if domain.partition == "hash"
        else _partitioned(domain, interactions, catalog, seed)
    )
    parts = _parts(domain, of_sites)
    if len(parts) < domain.sites:
        consortium.dropped[domain.name] += f"; {len(parts)} sites, as more would be too small"
    for label, members in parts:
        consortium.add(f"{domain.name}-{label}", domain.name, catalog, interactions.select(members))


def _parts(
    domain: DomainPlan, of_sites: Callable[[int], NDArray[np.int64]]
) -> list[tuple[str, NDArray[np.int64]]]:
    sites, number = domain.sites, of_sites(domain.sites)
    while domain.at_most and sites > 1 and _smallest(number, sites) < LIMITS.subjects_floor:
        sites -= 1
        number = of_sites(sites)
    width = len(str(sites))
    found = [(f"{k + 1:0{width}d}", np.flatnonzero(number == k)) for k in range(sites)]
    empty = [label for label, members in found if not len(members)]
    if empty:
        raise DataError(
            f"Expected subjects for {sites} sites in domain {domain.name}, "
            f"got none for {len(empty)} of them; set --sites lower."
        )
    return found


def _numbers(
    domain: DomainPlan, folder: Path, interactions: Interactions
) -> Callable[[int], NDArray[np.int64]]:
    """From a number of sites to the site of each subject."""
    if not domain.column:
        return lambda sites: hashed(interactions.subject_ids, sites)
    values = read_subject_column(folder, domain.column)
    column = [values.get(subject, "unknown") for subject in interactions.subject_ids]
    return lambda sites: group_values(column, sites)


def _smallest(number: NDArray[np.int64], sites: int) -> int:
    return int(np.bincount(number, minlength=sites).min())


def hashed(subject_ids: Sequence[str], sites: int) -> NDArray[np.int64]:
    """Site of each subject by a public hash of its id: the same id, the same site number."""
    digests = (hashlib.sha256(f"confed-site|{s}".encode()).digest()[:8] for s in subject_ids)
    return np.array([int.from_bytes(d, "big") % sites for d in digests], dtype=np.int64)


def group_values(values: Sequence[str], sites: int) -> NDArray[np.int64]:
    """Site of each subject by its column: whole values together, the largest first, balanced."""
    found, inverse, counts = np.unique(
        np.asarray(values, dtype=object).astype(str), return_inverse=True, return_counts=True
    )
    load = np.zeros(sites, dtype=np.int64)
    site_of = np.zeros(len(found), dtype=np.int64)
    for value in np.argsort(-counts, kind="stable"):
        site_of[value] = int(np.argmin(load))
        load[site_of[value]] += counts[value]
    return site_of[inverse.reshape(-1)]
