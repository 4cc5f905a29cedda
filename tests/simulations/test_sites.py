import dataclasses
import stat
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from client.site import SiteRecords
from common.caps import SiteCaps
from simulations.sites import SIMULATED, FolderSites, MemorySites, read_site, write_site
from tests.models import site_of

SITES = (site_of("north"), site_of("east", domain="bank", items=20, seed=3))


def context_of(partition: int) -> Context:
    return Context(
        run_id=1,
        node_id=9,
        node_config={"partition-id": partition, "num-partitions": len(SITES)},
        state=RecordDict(),
        run_config={},
    )


def assert_same(found: SiteRecords, wanted: SiteRecords) -> None:
    for field in ("name", "domain", "declared_subjects", "caps"):
        assert getattr(found, field) == getattr(wanted, field)
    assert found.catalog.digest == wanted.catalog.digest
    mine, theirs = found.interactions, wanted.interactions
    assert mine.subject_ids == theirs.subject_ids
    for field in ("offsets", "items", "values", "times"):
        assert np.array_equal(getattr(mine, field), getattr(theirs, field)), field


@pytest.mark.parametrize("number", range(len(SITES)))
def test_a_site_on_disk_is_the_site_in_memory(number: int, tmp_path: Path) -> None:
    for i, site in enumerate(SITES):
        write_site(site, tmp_path, i)
    assert_same(FolderSites(tmp_path)(context_of(number)), SITES[number])
    assert_same(MemorySites(SITES)(context_of(number)), SITES[number])


def test_the_owners_caps_go_to_disk_too(tmp_path: Path) -> None:
    strict = dataclasses.replace(SITES[0], caps=SiteCaps(epsilon=0.5, noise_multiplier=2.0))
    write_site(strict, tmp_path, 3)
    assert read_site(tmp_path / "00003").caps == strict.caps


def test_records_on_disk_are_for_their_owner_alone(tmp_path: Path) -> None:
    write_site(SITES[0], tmp_path, 0)
    mode = (tmp_path / "00000" / "interactions.parquet").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600


def test_only_a_researchers_own_data_may_be_trained_without_privacy() -> None:
    assert not SIMULATED.private_only
    assert SiteCaps().private_only
    assert SiteCaps().noise_multiplier > 0
