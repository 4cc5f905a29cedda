from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigError, DataError, PrivacyRefused, SecurityRefused
from common.interactions import from_rows
from common.spending import noise_of
from common.synthetic import make_domain
from simulations.scenario import (
    Consortium,
    DomainPlan,
    Scenario,
    changed,
    group_values,
    hashed,
    load_scenario,
    names,
    open_consortium,
    with_fitting_delta,
)
from tests.simulations.shop import write_shop

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"


def shop_scenario(*domains: DomainPlan) -> Scenario:
    return Scenario(domains=list(domains or (DomainPlan(name="shop", sites=2),)))


def test_the_packaged_scenarios_are_those_that_were_promised() -> None:
    assert names() == [
        "care-and-bank",
        "care-and-bank-real",
        "diabetes130",
        "food-kitchen",
        "ten-hospitals",
    ]


@pytest.mark.parametrize("name", names())
def test_a_packaged_scenario_is_whole_private_and_within_its_promise(name: str) -> None:
    found, scenario = load_scenario(name, None)
    plan = scenario.run_plan()
    assert found == name
    assert scenario.title
    from_files = scenario.real or all(domain.data for domain in scenario.domains)
    assert from_files == (name not in {"care-and-bank", "ten-hospitals"})
    assert plan.privacy.private
    assert plan.privacy.epsilon is not None and plan.privacy.epsilon <= 8
    assert noise_of(plan) > 0
    assert [d.sites for d in scenario.domains] == {
        "care-and-bank": [3, 3],
        "care-and-bank-real": [4, 4],
        "diabetes130": [8],
        "food-kitchen": [4, 4],
        "ten-hospitals": [10],
    }[name]


def test_without_words_the_synthetic_consortium_runs() -> None:
    assert load_scenario(None, None) == load_scenario("care-and-bank", None)


def test_a_folder_alone_makes_a_scenario_of_eight_sites_named_after_it(tmp_path: Path) -> None:
    name, scenario = load_scenario(None, tmp_path / "shop" / ".." / "shop")
    assert name == "shop"
    assert [(d.name, d.sites) for d in scenario.domains] == [("records", 8)]


def test_values_from_the_command_line_stand_over_the_scenario_s() -> None:
    _, scenario = load_scenario("care-and-bank", None)
    new = changed(scenario, {"seed": 9, "privacy": {"epsilon": 1.0}, "federation": {"rounds": 7}})
    assert (new.seed, new.privacy.epsilon, new.federation.rounds) == (9, 1.0, 7)
    assert new.privacy.delta == scenario.privacy.delta
    assert new.domains == scenario.domains
    assert new.run_plan().seed == 9
    with pytest.raises(ConfigError, match=r"command line: federation\.rounds"):
        changed(scenario, {"federation": {"rounds": 0}})


@given(st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=60), st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_a_subject_s_site_depends_on_its_id_alone(ids: list[str], sites: int) -> None:
    whole = hashed(ids, sites)
    assert ((whole >= 0) & (whole < sites)).all()
    assert hashed(ids[::-1], sites).tolist() == whole[::-1].tolist()
    assert [int(hashed([i], sites)[0]) for i in ids] == whole.tolist()


def test_hashing_fills_the_sites_evenly() -> None:
    counts = np.bincount(hashed([f"subject {n}" for n in range(8000)], 8))
    assert counts.min() > 900 and counts.max() < 1100


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=200), st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_a_column_s_values_stay_together_and_fill_the_sites(values: list[str], sites: int) -> None:
    number = group_values(values, sites)
    where = {value: {int(n) for v, n in zip(values, number, strict=True) if v == value}
             for value in set(values)}  # fmt: skip
    assert all(len(found) == 1 for found in where.values())
    assert len(set(number.tolist())) == min(sites, len(set(values)))
    # The largest group first, each to the emptiest site: no site is above the others by more
    # than the largest group.
    load = np.bincount(number, minlength=sites)
    assert load.max() - load.min() <= max(Counter(values).values())


def test_synthetic_sites_are_different_hospitals_of_one_catalog() -> None:
    plan = [DomainPlan(name="care", sites=2, subjects=40), DomainPlan(name="bank", subjects=30)]
    found = open_consortium(Scenario(domains=plan), None)
    assert found.names[:2] == ["care-1", "care-2"]
    assert len(found.names) == 2 + 8
    assert found.sites_of("care") == ["care-1", "care-2"]
    first, second = (found.records(name) for name in found.sites_of("care"))
    assert first.catalog is found.catalogs["care"]
    assert (len(first.interactions), first.declared_subjects, first.domain) == (40, 40, "care")
    assert not set(first.interactions.subject_ids) & set(second.interactions.subject_ids)
    assert found.overlap() == 1


def test_a_site_trains_on_everything_but_the_last_two_items(tmp_path: Path) -> None:
    folder = write_shop(tmp_path / "shop", least=4, most=4)
    found = open_consortium(shop_scenario(), folder)
    for name in found.names:
        assert (found.records(name).interactions.counts == 2).all()
        assert (found.splits[name].test_target >= 0).all()


def test_the_sites_of_a_folder_share_nobody_and_lose_nobody(tmp_path: Path) -> None:
    found = open_consortium(shop_scenario(), write_shop(tmp_path / "shop"))
    parts = [set(found.splits[name].train.subject_ids) for name in found.names]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 120
    assert found.dropped == {"shop": "0 rows of unknown items, 0 repeated rows dropped"}


def test_the_same_people_in_two_domains_are_seen_as_such(tmp_path: Path) -> None:
    for name, seed in (("food", 1), ("kitchen", 2)):
        write_shop(tmp_path / name, seed=seed)
    plan = [DomainPlan(name="food", sites=2), DomainPlan(name="kitchen", sites=2)]
    found = open_consortium(Scenario(domains=plan), tmp_path)
    assert found.overlap() == 2
    assert len(found.catalogs["food"]) == 40


def test_a_folder_given_by_name_is_found_below_data(tmp_path: Path) -> None:
    write_shop(tmp_path / "a shop")
    plan = DomainPlan(name="food", data="a shop", sites=1)
    assert open_consortium(shop_scenario(plan), tmp_path).names == ["food-1"]
    with pytest.raises(DataError, match="Expected a folder other"):
        open_consortium(shop_scenario(DomainPlan(name="food", data="other")), tmp_path)
    with pytest.raises(SecurityRefused, match="one plain folder name"):
        open_consortium(shop_scenario(DomainPlan(name="food", data="../shop")), tmp_path)


def test_a_site_below_the_floor_is_refused_without_its_number(tmp_path: Path) -> None:
    folder = write_shop(tmp_path / "shop")
    users = pl.DataFrame(
        {"user_id": [f"u{n}" for n in range(120)], "ward": ["a"] * 7 + ["b"] * 113}
    )
    users.write_csv(folder / "users.csv")
    with pytest.raises(PrivacyRefused) as error:
        open_consortium(shop_scenario(DomainPlan(name="shop", sites=2, column="ward")), folder)
    assert "7" not in str(error.value)


def test_more_sites_than_values_of_the_column_are_refused(tmp_path: Path) -> None:
    folder = write_shop(tmp_path / "shop")
    with pytest.raises(DataError, match=r"got none for 2 of them; set --sites lower"):
        open_consortium(shop_scenario(DomainPlan(name="shop", sites=5, column="ward")), folder)


@pytest.mark.parametrize(("subjects", "sites"), [(100, 4), (50, 1), (25, 1), (400, 8)])
def test_few_subjects_of_a_folder_alone_make_fewer_sites(
    tmp_path: Path, subjects: int, sites: int
) -> None:
    folder = write_shop(tmp_path / "shop", subjects=subjects)
    _, scenario = load_scenario(None, folder)
    found = open_consortium(scenario, folder)
    sizes = [len(found.splits[name].train) for name in found.names]
    assert len(sizes) == sites
    assert sum(sizes) == subjects
    assert min(sizes) >= 20
    assert ("as more would be too small" in found.dropped["records"]) == (sites < 8)


@pytest.mark.parametrize(("subjects", "delta"), [(100, 1e-5), (16_773, 1e-5), (100_000, 1e-6)])
def test_delta_that_nobody_chose_stays_well_below_one_over_the_subjects(
    subjects: int, delta: float
) -> None:
    found = Consortium()
    records = from_rows(
        tuple(f"s{n}" for n in range(subjects)),
        subjects=np.arange(subjects),
        items=np.zeros(subjects, dtype=np.int64),
        values=np.ones(subjects),
        times=np.zeros(subjects, dtype=np.int64),
    )
    found.add("records-1", "records", make_domain("care", seed=1), records)
    assert found.largest() == subjects
    scenario = Scenario(domains=[DomainPlan(name="records")])
    assert with_fitting_delta(scenario, found).privacy.delta == delta


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data are not beside the repository")
def test_the_banks_of_berka_are_split_by_region_into_four() -> None:
    _, scenario = load_scenario("care-and-bank-real", None)
    bank = next(d for d in scenario.domains if d.name == "bank")
    found = open_consortium(shop_scenario(bank), REAL)
    sizes = [len(found.splits[name].train) for name in found.names]
    assert len(sizes) == 4
    assert sum(sizes) == 4_500
    assert min(sizes) > 900
