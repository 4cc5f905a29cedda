"""Interactions in compressed rows, against a plain-Python reading of the same file."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.catalog import Catalog
from common.errors import DataError, PrivacyRefused
from common.interactions import (
    Interactions,
    read_interactions,
    read_subject_column,
    require_labels,
    require_subjects,
    require_targets,
    subject_columns,
    write_interactions,
)
from common.limits import LIMITS
from common.splits import leave_one_out
from common.tables import open_table

HEADER = "user_id,item_id,rating,timestamp\n"
NAMES = tuple(f"i{n}" for n in range(5))
CATALOG = Catalog(domain="d", item_ids=NAMES, titles=NAMES, texts=NAMES, categories=NAMES)
ROWS = st.lists(
    st.tuples(
        st.sampled_from(["u", "v", "007", "w w"]),
        st.sampled_from([*NAMES, "stranger"]),
        st.integers(-4, 4),
        st.integers(-3, 3),
    ),
    max_size=30,
)


def read(folder: Path, *rows: str, header: str = HEADER) -> Interactions:
    (folder / "interactions.csv").write_text(header + "\n".join(rows) + "\n")
    return read_interactions(folder, CATALOG)[0]


def by_subject(interactions: Interactions) -> dict[str, list[tuple[int, float, float]]]:
    found = {}
    for number, subject in enumerate(interactions.subject_ids):
        part = slice(interactions.offsets[number], interactions.offsets[number + 1])
        columns = (interactions.items[part], interactions.values[part], interactions.times[part])
        found[subject] = list(zip(*(column.tolist() for column in columns), strict=True))
    return found


def plain(rows: list[tuple[str, str, int, int]]) -> dict[str, list[tuple[int, float, float]]]:
    """The definition, one row after the other."""
    found: dict[str, list[tuple[int, float, float]]] = {}
    first_seen = list(dict.fromkeys(row[0] for row in rows))
    for user, item, rating, time in sorted(rows, key=lambda row: row[3]):
        taken = found.setdefault(user, [])
        if item in NAMES and NAMES.index(item) not in {entry[0] for entry in taken}:
            taken.append((NAMES.index(item), float(rating), time))
    return {user: found[user] for user in first_seen if found[user]}


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS.filter(lambda rows: any(row[1] in NAMES for row in rows)))
def test_reading_agrees_with_the_definition_and_every_row_is_accounted_for(
    tmp_path: Path, rows: list[tuple[str, str, int, int]]
) -> None:
    lines = [",".join(map(str, row)) for row in rows]
    (tmp_path / "interactions.csv").write_text(HEADER + "\n".join(lines))
    found, report = read_interactions(tmp_path, CATALOG)
    expected = plain(rows)
    assert by_subject(found) == expected
    assert list(found.subject_ids) == list(expected)
    strangers = sum(row[1] not in NAMES for row in rows)
    assert report.dropped_unknown_items == strangers
    assert report.rows == len(rows)
    assert report.rows == report.interactions + strangers + report.dropped_duplicates
    assert report.subjects + report.dropped_subjects == len({row[0] for row in rows})


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS.filter(lambda rows: any(row[1] in NAMES for row in rows)))
def test_parquet_written_reads_back_the_same(
    tmp_path: Path, rows: list[tuple[str, str, int, int]]
) -> None:
    (tmp_path / "made").mkdir(exist_ok=True)
    first = read(tmp_path, *(",".join(map(str, row)) for row in rows))
    write_interactions(first, CATALOG, tmp_path / "made")
    again, report = read_interactions(tmp_path / "made", CATALOG)
    assert by_subject(again) == by_subject(first)
    assert again.subject_ids == first.subject_ids
    assert again.times.dtype == first.times.dtype
    assert report.rows == report.interactions


def test_dtypes_are_those_that_training_expects(tmp_path: Path) -> None:
    found = read(tmp_path, "u,i1,2.5,10", "u,i2,1,11")
    arrays = (found.offsets, found.items, found.values, found.times)
    assert [array.dtype.name for array in arrays] == ["int64", "int32", "float32", "int64"]
    assert read(tmp_path, "u,i1,1,0.5").times.dtype == np.float64


def test_without_a_rating_column_every_value_is_one(tmp_path: Path) -> None:
    found = read(tmp_path, "u,i1,3", "u,i2,4", header="user_id,item_id,timestamp\n")
    assert found.values.tolist() == [1.0, 1.0]


def test_further_columns_are_left_alone(tmp_path: Path) -> None:
    found = read(tmp_path, "org,u,i1,2,3", header="place,user_id,item_id,rating,timestamp\n")
    assert by_subject(found) == {"u": [(1, 2.0, 3)]}


def test_another_table_can_be_read_by_name(tmp_path: Path) -> None:
    (tmp_path / "more.csv").write_text(HEADER + "u,i4,1,1\n")
    assert read_interactions(tmp_path, CATALOG, name="more")[0].items.tolist() == [4]


def test_the_row_cap_counts_every_row_of_a_subject(tmp_path: Path) -> None:
    rows = ["u,i1,1,1"] * 3
    (tmp_path / "interactions.csv").write_text(HEADER + "\n".join(rows))
    limits = replace(LIMITS, rows_per_subject=3)
    assert len(read_interactions(tmp_path, CATALOG, limits=limits)[0]) == 1
    with pytest.raises(DataError, match="at most 2 rows"):
        read_interactions(tmp_path, CATALOG, limits=replace(LIMITS, rows_per_subject=2))


@given(picks=st.lists(st.integers(0, 3), max_size=8))
def test_select_gives_the_chosen_subjects_in_order(picks: list[int]) -> None:
    whole = Interactions(
        subject_ids=("a", "b", "c", "d"),
        offsets=np.array([0, 2, 2, 5, 6]),
        items=np.arange(6, dtype=np.int32),
        values=np.arange(6, dtype=np.float32),
        times=np.arange(6) * 10,
    )
    chosen = whole.select(picks)
    assert chosen.subject_ids == tuple("abcd"[pick] for pick in picks)
    for place, pick in enumerate(picks):
        assert chosen.items_of(place).tolist() == whole.items_of(pick).tolist()
    assert chosen.times.tolist() == [10 * item for item in chosen.items.tolist()]


def test_the_representation_shows_no_record(tmp_path: Path) -> None:
    found = read(tmp_path, "MARKER,i1,4321,1234567", "MARKER,i2,1,2")
    for shown in (found, leave_one_out(found), open_table(tmp_path, "interactions")):
        assert not any(mark in repr(shown) for mark in ("MARKER", "4321", "1234567"))


def test_items_of_is_a_view(tmp_path: Path) -> None:
    found = read(tmp_path, "u,i1,1,1", "u,i2,1,2")
    assert np.shares_memory(found.items_of(0), found.items)


def test_arrays_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    found = read(tmp_path, "u,i1,1,1", "v,i2,1,2")
    for change in (
        {"subject_ids": ("u",)},
        {"offsets": np.array([0, 2, 1])},
        {"offsets": np.array([0, 1, 3])},
        {"values": np.ones(1, np.float32)},
        {"times": np.ones(3, np.int64)},
    ):
        with pytest.raises(DataError, match="Expected"):
            replace(found, **change)


def test_a_written_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    write_interactions(read(tmp_path, "u,i1,1,1"), CATALOG, tmp_path / "made")
    assert (tmp_path / "made" / "interactions.parquet").stat().st_mode & 0o077 == 0


def test_a_subject_column_comes_from_users(tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text("user_id,age,place\n01,9,north\nv,8,\n")
    read(tmp_path, "01,i1,1,1,z", header="user_id,item_id,rating,timestamp,place\n")
    assert read_subject_column(tmp_path, "place") == {"01": "north", "v": "unknown"}
    assert subject_columns(tmp_path) == ("age", "place")


def test_a_subject_column_of_the_interactions_takes_the_most_frequent_value(tmp_path: Path) -> None:
    rows = ["u,i1,1,1,west", "u,i2,1,2,east", "v,i1,1,1,b", "u,i3,1,3,east", "v,i2,1,2,a"]
    read(tmp_path, *rows, header="user_id,item_id,rating,timestamp,place\n")
    found = read_subject_column(tmp_path, "place")
    assert found == {"u": "east", "v": "b"}
    assert list(found) == ["u", "v"]


@pytest.mark.parametrize("name", ["nowhere", "user_id", "timestamp"])
def test_a_column_that_tells_no_subjects_apart_is_refused_with_those_that_do(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "users.csv").write_text("user_id,age\nu,9\n")
    read(tmp_path, "u,i1,1,1")
    with pytest.raises(DataError, match="age"):
        read_subject_column(tmp_path, name)


def test_a_subject_who_stands_twice_in_users_is_refused(tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text("user_id,age\nu,9\nv,9\nu,8\n")
    with pytest.raises(DataError, match="row 3"):
        read_subject_column(tmp_path, "age")


def test_fewer_subjects_than_the_floor_are_refused_without_saying_how_many(tmp_path: Path) -> None:
    found = read(tmp_path, *(f"u{n},i1,1,1" for n in range(3)))
    require_subjects(found, floor=3)
    with pytest.raises(PrivacyRefused, match="at least 4 subjects") as error:
        require_subjects(found, floor=4)
    assert "3" not in str(error.value)


def test_nothing_to_predict_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 or more"):
        require_targets(read(tmp_path, "u,i1,1,1", "v,i1,1,1"))
    require_targets(read(tmp_path, "u,i1,1,1", "u,i2,1,1"))


def test_a_rating_that_is_no_label_is_refused_without_saying_which(tmp_path: Path) -> None:
    require_labels(read(tmp_path, "u,i1,0,1", "u,i2,1,1"))
    with pytest.raises(DataError, match="unknown label") as error:
        require_labels(read(tmp_path, "u,i1,0,1", "u,i2,7.25,1"))
    assert "7.25" not in str(error.value)
