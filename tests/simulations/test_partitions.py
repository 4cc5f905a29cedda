"""Splits of a domain's subjects: unlike in the way that was asked for, whole, and repeatable."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigError
from common.interactions import Interactions, from_rows
from common.synthetic import make_site
from simulations.partitions import (
    PARTITIONS,
    by_category,
    by_size,
    by_time,
    main_category,
    partition,
    smallest,
)
from simulations.scenario import DomainPlan, Scenario, open_consortium
from tests.models import catalog_of
from tests.simulations.shop import write_shop

CATALOG, RECORDS = make_site("care", site=0, subjects=600, seed=1)
UNLIKE = [name for name in PARTITIONS if name != "hash"]


def split(name: str, *, sites: int = 4, alpha: float = 0.3, seed: int = 1) -> np.ndarray:
    return partition(name, RECORDS, CATALOG, sites=sites, alpha=alpha, seed=seed)


def unevenness(of_subject: np.ndarray, sites: int) -> float:
    """Mean distance of a site's categories from everybody's, 0 to 1."""
    category = main_category(RECORDS, CATALOG)
    whole = np.bincount(category) / len(category)
    found = []
    for site in range(sites):
        own = np.bincount(category[of_subject == site], minlength=len(whole))
        found.append(np.abs(own / own.sum() - whole).sum() / 2)
    return float(np.mean(found))


@pytest.mark.parametrize("name", UNLIKE)
def test_every_subject_has_one_site_and_every_site_its_floor(name: str) -> None:
    of_subject = split(name)
    assert of_subject.shape == (600,)
    assert set(of_subject.tolist()) == {0, 1, 2, 3}
    assert smallest(of_subject, 4) >= 20


@pytest.mark.parametrize("name", UNLIKE)
def test_a_split_repeats_for_a_seed(name: str) -> None:
    assert (split(name) == split(name)).all()
    if name != "time":
        assert (split(name) != split(name, seed=2)).any()


def test_small_alpha_makes_sites_of_different_categories() -> None:
    alike, unlike = (unevenness(split("dirichlet", alpha=a), 4) for a in (1000.0, 0.2))
    assert alike < 0.2
    assert unlike > alike + 0.2


def test_sizes_follow_zipf() -> None:
    sizes = np.bincount(by_size(6000, 5, draw=np.random.default_rng(0)))
    np.testing.assert_allclose(sizes / sizes[0], 1 / np.arange(1, 6), rtol=0.01)


def test_by_size_deals_subjects_at_random() -> None:
    of_subject = by_size(1000, 3, draw=np.random.default_rng(0))
    assert 300 < np.flatnonzero(of_subject == 2).mean() < 700


def test_by_time_a_later_site_begins_after_an_earlier_one() -> None:
    of_subject = split("time")
    first = RECORDS.times[RECORDS.offsets[:-1]]
    for site in range(3):
        assert first[of_subject == site].max() <= first[of_subject == site + 1].min()
    assert np.bincount(of_subject).tolist() == [150] * 4


def rows(items: list[list[int]]) -> Interactions:
    flat = [(s, i, n) for s, own in enumerate(items) for n, i in enumerate(own)]
    subjects, chosen, times = (np.array(c, dtype=np.int64) for c in zip(*flat, strict=True))
    return from_rows(
        tuple(f"s{n}" for n in range(len(items))),
        subjects=subjects,
        items=chosen,
        values=np.ones(len(flat)),
        times=times,
    )


def test_the_main_category_is_the_one_taken_most_and_the_first_of_equals() -> None:
    catalog = dataclasses.replace(catalog_of(6), categories=("b", "b", "a", "a", "c", ""))
    found = main_category(rows([[0, 1, 2], [2, 3, 0], [0, 2], [5]]), catalog)
    names = sorted({"a", "b", "c", ""})
    assert [names[k] for k in found] == ["b", "a", "a", ""]


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=300),
    st.integers(1, 6),
    st.floats(0.05, 50),
)
@settings(max_examples=30, deadline=None)
def test_any_split_by_category_gives_every_subject_a_site(
    categories: list[int], sites: int, alpha: float
) -> None:
    draw = np.random.default_rng(0)
    found = by_category(np.array(categories), sites, alpha=alpha, draw=draw)
    assert found.shape == (len(categories),)
    assert ((found >= 0) & (found < sites)).all()


@given(st.integers(1, 400), st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_any_split_by_size_and_time_gives_every_subject_a_site(subjects: int, sites: int) -> None:
    draw = np.random.default_rng(0)
    records = rows([[0]] * subjects)
    for found in (by_size(subjects, sites, draw=draw), by_time(records, sites)):
        assert found.shape == (subjects,)
        assert ((found >= 0) & (found < sites)).all()


@pytest.mark.parametrize(
    ("name", "sites", "alpha", "hint"),
    [
        ("dirichlet", 25, 0.01, "raise --alpha"),
        ("size", 25, 1.0, "--sites lower"),
        ("time", 31, 1.0, "--sites lower"),
    ],
)
def test_a_site_below_the_floor_is_refused_in_one_line(
    name: str, sites: int, alpha: float, hint: str
) -> None:
    with pytest.raises(ConfigError, match="Expected at least 20 subjects") as error:
        split(name, sites=sites, alpha=alpha)
    assert hint in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="Expected a partition"):
        split("whim")


# In a scenario


@pytest.mark.parametrize("name", UNLIKE)
def test_synthetic_sites_are_dealt_anew_and_lose_nobody(name: str) -> None:
    domain = DomainPlan(name="care", sites=4, subjects=80, partition=name)
    found = open_consortium(Scenario(domains=[domain]), None)
    ids = [i for n in found.names for i in found.splits[n].train.subject_ids]
    assert found.names == ["care-1", "care-2", "care-3", "care-4"]
    assert len(ids) == len(set(ids)) == 320
    if name == "size":
        assert len(found.splits["care-1"].train) > 2 * len(found.splits["care-4"].train)


@pytest.mark.parametrize("name", UNLIKE)
def test_the_records_of_a_folder_are_dealt_as_asked(tmp_path: Path, name: str) -> None:
    folder = write_shop(tmp_path / "shop", subjects=200)
    domain = DomainPlan(name="shop", sites=3, partition=name, alpha=5.0)
    found = open_consortium(Scenario(domains=[domain]), folder)
    assert sum(len(found.splits[n].train) for n in found.names) == 200
    hashed = DomainPlan(name="shop", sites=3)
    other = open_consortium(Scenario(domains=[hashed]), folder)
    first = found.splits[found.names[0]].train.subject_ids
    assert set(first) != set(other.splits[other.names[0]].train.subject_ids)


def test_a_column_and_a_partition_are_not_both() -> None:
    with pytest.raises(ValueError, match="got both"):
        DomainPlan(name="shop", column="ward", partition="time")
