import numpy as np
import torch

from simulations.empirical.product import AuditSite
from simulations.empirical.sites import (
    ITEMS,
    LOUD_ITEM,
    QUIET,
    ROWS,
    lone_targets,
    with_loud,
    with_rows,
    with_value,
    without_last,
)


def test_the_last_subject_is_the_special_one() -> None:
    site = with_rows(ROWS)
    assert len(site.records) == QUIET + 1
    assert site.records.counts[-1] == ROWS
    assert len(without_last(site).records) == QUIET


def test_only_the_loud_subject_has_the_loud_item() -> None:
    site = with_loud(1e30)
    assert np.count_nonzero(site.records.items == LOUD_ITEM) == 1
    assert site.records.items[-1] == LOUD_ITEM
    assert float(site.vectors[LOUD_ITEM].double().norm()) > 9e29
    assert torch.equal(site.vectors[:-1], with_loud(1.0).vectors[:-1])


def test_a_bad_value_is_in_the_last_subjects_record_alone() -> None:
    values = with_value(float("nan")).records.values
    assert np.isnan(values[-2:]).all()
    assert not np.isnan(values[:-2]).any()


def test_without_the_last_subject_the_others_are_the_same() -> None:
    def rows(site: AuditSite) -> list[int]:
        return without_last(site).records.items.tolist()

    assert rows(with_rows(ROWS)) == rows(with_loud(1.0)) == rows(with_value(1.0))


def test_everybody_has_a_target_of_its_own() -> None:
    site = lone_targets(7)
    assert site.records.items.tolist() == list(range(7))
    assert len(with_rows(3).vectors) == ITEMS
