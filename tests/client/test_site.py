import dataclasses
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from client.site import (
    SiteRecords,
    check_caps,
    declared,
    open_configured_site,
)
from common.caps import SiteCaps
from common.catalog import write_catalog
from common.errors import ConfigError, DataError, PrivacyRefused
from common.interactions import write_interactions
from tests.models import catalog_of, records_of, run_plan

OPEN = SiteCaps(epsilon=1e9, delta=0.5, sample_rate=1.0, max_grad_norm=1e9, noise_multiplier=0.0)
PLAN = run_plan(privacy={"noise_multiplier": 2.0, "delta": 1e-5, "sample_rate": 0.5})


@pytest.mark.parametrize(
    ("cap", "least_allowed", "just_refused"),
    [
        ("epsilon", 1.85, 1.8),
        ("delta", 1e-5, 0.99e-5),
        ("sample_rate", 0.5, 0.49),
        ("max_grad_norm", 1.0, 0.99),
        ("noise_multiplier", 2.0, 2.01),
    ],
)
def test_each_cap_alone_refuses_the_plan_that_goes_beyond_it(
    cap: str, least_allowed: float, just_refused: float
) -> None:
    check_caps(PLAN, 2.0, OPEN)
    check_caps(PLAN, 2.0, dataclasses.replace(OPEN, **{cap: least_allowed}))
    with pytest.raises(PrivacyRefused, match=f"Expected {cap} of at") as refusal:
        check_caps(PLAN, 2.0, dataclasses.replace(OPEN, **{cap: just_refused}))
    assert "\n" not in str(refusal.value)


def test_epsilon_is_that_of_the_whole_plan_not_of_a_round() -> None:
    caps = dataclasses.replace(OPEN, epsilon=3.0)
    check_caps(PLAN, 2.0, caps)
    longer = run_plan(federation={"rounds": 60, "text_rounds": 0})
    with pytest.raises(PrivacyRefused, match="epsilon"):
        check_caps(longer, 2.0, caps)
    deeper = run_plan(federation={"local_steps": 30})
    with pytest.raises(PrivacyRefused, match="epsilon"):
        check_caps(deeper, 2.0, caps)


def test_only_an_owner_who_says_so_allows_training_without_privacy() -> None:
    plan = run_plan(privacy={"private": False, "noise_multiplier": None})
    with pytest.raises(PrivacyRefused, match="private"):
        check_caps(plan, 0.0, SiteCaps())
    with pytest.raises(PrivacyRefused, match="private"):
        check_caps(plan, 0.0, OPEN)
    check_caps(plan, 0.0, dataclasses.replace(OPEN, private_only=False))


@given(st.integers(1, 10**9))
def test_a_declared_number_says_two_digits_and_is_never_above_the_real_one(subjects: int) -> None:
    said = declared(subjects)
    assert 0.9 * subjects < said <= subjects
    assert len(str(said).rstrip("0")) <= 2


@pytest.mark.parametrize("number", [0, -5])
def test_a_site_of_no_declared_subjects_is_refused(number: int) -> None:
    with pytest.raises(ConfigError, match="declared"):
        SiteRecords(
            name="a",
            domain="care",
            catalog=catalog_of(),
            interactions=records_of([2]),
            declared_subjects=number,
        )


def context_of(**config: object) -> Context:
    return Context(
        run_id=1,
        node_id=5,
        node_config=config,  # type: ignore[arg-type]
        state=RecordDict(),
        run_config={},
    )


def written(folder: Path, subjects: int = 25) -> Path:
    catalog = catalog_of()
    write_catalog(catalog, folder)
    write_interactions(records_of([1 + i % 4 for i in range(subjects)]), catalog, folder)
    return folder


def test_a_configured_node_reads_its_own_records_and_its_owners_caps(tmp_path: Path) -> None:
    site = open_configured_site(
        context_of(
            data=str(written(tmp_path)),
            site="north",
            domain="care",
            **{"declared-subjects": 20, "max-epsilon": 2.5, "least-noise-multiplier": 1.5},
        )
    )
    assert (site.name, site.domain, site.declared_subjects) == ("north", "care", 20)
    assert len(site.interactions) == 25
    assert site.caps == SiteCaps(epsilon=2.5, noise_multiplier=1.5)
    assert site.caps.private_only


@pytest.mark.parametrize("missing", ["site", "domain", "declared-subjects"])
def test_a_configured_node_without_its_contract_is_refused(tmp_path: Path, missing: str) -> None:
    config = {
        "data": str(tmp_path), "site": "a", "domain": "care", "declared-subjects": 20
    }  # fmt: skip
    del config[missing]
    with pytest.raises(ConfigError, match=missing):
        open_configured_site(context_of(**config))


def test_a_configured_node_with_too_few_subjects_or_no_files_is_refused(tmp_path: Path) -> None:
    config = {"site": "a", "domain": "care", "declared-subjects": 20}
    with pytest.raises(PrivacyRefused, match="at least 20"):
        open_configured_site(context_of(data=str(written(tmp_path / "few", 19)), **config))
    with pytest.raises(DataError):
        open_configured_site(context_of(data=str(tmp_path / "none"), **config))


def test_a_node_without_any_configuration_is_refused() -> None:
    with pytest.raises(ConfigError, match="node_config"):
        open_configured_site(context_of())


def test_a_simulated_partition_gets_its_part_of_the_synthetic_consortium() -> None:
    sites = [
        open_configured_site(context_of(**{"partition-id": i, "num-partitions": 4}))
        for i in range(4)
    ]
    assert [site.name for site in sites] == ["care-1", "care-2", "bank-1", "bank-2"]
    assert sites[0].catalog.digest == sites[1].catalog.digest != sites[2].catalog.digest
    assert sites[0].interactions.items.tolist() != sites[1].interactions.items.tolist()
    assert all(site.caps == SiteCaps() for site in sites)
