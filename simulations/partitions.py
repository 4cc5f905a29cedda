"""How a domain's subjects are split over its sites: alike by hash, or unlike in three known ways.

A site of a simulation only; records are the researcher's own.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.catalog import Catalog
from common.errors import ConfigError
from common.interactions import Interactions
from common.limits import LIMITS

PARTITIONS: Final = ("hash", "dirichlet", "size", "time")
DRAWS: Final = 200
"""Dirichlet splits drawn before it is said that no site can be kept above the floor."""
WHAT_HELPS: Final = {
    "dirichlet": "raise --alpha or set --sites lower",
    "size": "set --sites lower",
    "time": "set --sites lower",
}


def partition(
    name: str,
    records: Interactions,
    catalog: Catalog,
    *,
    sites: int,
    alpha: float,
    seed: int,
) -> NDArray[np.int64]:
    """Number of the site of each subject, int64 (subjects), from 0.

    Args:
        name: `dirichlet`, `size` or `time`.
        records: of the whole domain.
        catalog: of the domain; `dirichlet` reads its categories.
        sites: how many.
        alpha: concentration of `dirichlet`; small values make sites unlike.
        seed: of the draws.

    Raises:
        ConfigError: no such split, or a site would fall below the floor of subjects.
    """
    draw = np.random.default_rng([seed, sites, PARTITIONS.index(name) if name in PARTITIONS else 0])
    if name == "dirichlet":
        of_subject = by_category(main_category(records, catalog), sites, alpha=alpha, draw=draw)
    elif name == "size":
        of_subject = by_size(len(records), sites, draw=draw)
    elif name == "time":
        of_subject = by_time(records, sites)
    else:
        raise ConfigError(f"Expected a partition ({', '.join(PARTITIONS)}), got {name}.")
    if smallest(of_subject, sites) < LIMITS.subjects_floor:
        raise ConfigError(
            f"Expected at least {LIMITS.subjects_floor} subjects at each of {sites} sites with "
            f"partition {name}, got fewer; {WHAT_HELPS[name]}."
        )
    return of_subject


def smallest(of_subject: NDArray[np.int64], sites: int) -> int:
    """Subjects of the smallest site."""
    return int(np.bincount(of_subject, minlength=sites).min())


def by_category(
    category: NDArray[np.int64], sites: int, *, alpha: float, draw: np.random.Generator
) -> NDArray[np.int64]:
    """Subjects of each category dealt by shares from Dirichlet(alpha) (Hsu et al. 2019).

    The first draw that leaves every site the floor of subjects is taken, or else the last one.

    Args:
        category: of each subject, int64 (subjects).
        sites: how many.
        alpha: concentration, positive.
        draw: random numbers.
    """
    of_subject = np.zeros(len(category), dtype=np.int64)
    for _ in range(DRAWS):
        for one in np.unique(category):
            members = np.flatnonzero(category == one)
            shares = draw.dirichlet(np.full(sites, alpha))
            of_subject[members] = draw.choice(sites, size=len(members), p=shares)
        if smallest(of_subject, sites) >= LIMITS.subjects_floor:
            break
    return of_subject


def by_size(subjects: int, sites: int, *, draw: np.random.Generator) -> NDArray[np.int64]:
    """Sites whose sizes follow Zipf's law: the k-th has 1/k of the first one's subjects."""
    shares = 1 / np.arange(1, sites + 1)
    ends = np.round(np.cumsum(shares / shares.sum()) * subjects).astype(np.int64)
    of_place = np.searchsorted(ends, np.arange(subjects), side="right")
    of_subject = np.empty(subjects, dtype=np.int64)
    of_subject[draw.permutation(subjects)] = np.minimum(of_place, sites - 1)
    return of_subject


def by_time(records: Interactions, sites: int) -> NDArray[np.int64]:
    """Equal parts in the order of each subject's first interaction; ties in file order."""
    first = records.times[records.offsets[:-1]]
    of_subject = np.empty(len(records), dtype=np.int64)
    order = np.argsort(first, kind="stable")
    of_subject[order] = np.arange(len(records)) * sites // max(len(records), 1)
    return of_subject


def main_category(records: Interactions, catalog: Catalog) -> NDArray[np.int64]:
    """Number of the item category that each subject takes most, int64 (subjects).

    Categories stand in the order of their names; the first of equals is taken.
    """
    names, of_item = np.unique(np.asarray(catalog.categories, dtype=object).astype(str),
                               return_inverse=True)  # fmt: skip
    owner = np.repeat(np.arange(len(records)), records.counts)
    flat = owner * len(names) + of_item.reshape(-1)[records.items]
    counted = np.bincount(flat, minlength=len(records) * len(names))
    main: NDArray[np.int64] = counted.reshape(len(records), len(names)).argmax(axis=1)
    return main
