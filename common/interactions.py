"""Private records of a site: who had which item when, in compressed rows.

Everything here is sensitive. Counts in a `ReadReport` are for the site's own eyes and are never
sent; errors name a row, never a cell.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from common.catalog import Catalog
from common.errors import DataError, PrivacyRefused
from common.limits import LIMITS, Limits
from common.tables import (
    Table,
    find_table,
    id_column,
    number_column,
    open_table,
    require_distinct,
    text_column,
)

Times = NDArray[np.int64] | NDArray[np.float64]
COLUMNS = ("user_id", "item_id", "timestamp")
UNKNOWN = "unknown"
"""Value of a subject whose cell is empty."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Interactions:
    """Interactions in compressed rows: those of subject i stand at offsets[i]:offsets[i+1].

    Inside a subject they are ordered by time, ties in file order, and no item occurs twice. The
    representation is without content, so that no log or trace shows a record.

    Attributes:
        subject_ids: n distinct ids.
        offsets: int64[n+1], from 0 to the number of interactions.
        items: int32[m], positions in the catalog.
        values: float32[m], ratings, 1 where the data have none.
        times: int64[m] or float64[m], in the file's unit (Unix seconds, or any order).
    """

    subject_ids: tuple[str, ...]
    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    values: NDArray[np.float32]
    times: Times

    def __post_init__(self) -> None:
        total = self.items.size
        if self.offsets.size != len(self.subject_ids) + 1:
            raise DataError("Expected one offset more than subjects.")
        if self.offsets[0] != 0 or self.offsets[-1] != total or (np.diff(self.offsets) < 0).any():
            raise DataError("Expected offsets that rise from 0 to the number of interactions.")
        if self.values.size != total or self.times.size != total:
            raise DataError("Expected one value and one time for each interaction.")

    def __len__(self) -> int:
        return len(self.subject_ids)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Interactions of each subject, int64[n]."""
        return np.diff(self.offsets)

    def items_of(self, subject: int) -> NDArray[np.int32]:
        """Items of subject number `subject`, oldest first; a view."""
        return self.items[self.offsets[subject] : self.offsets[subject + 1]]

    def select(self, indices: NDArray[np.integer] | list[int]) -> "Interactions":
        """The subjects at `indices`, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        rows = _rows(self.offsets[chosen], self.counts[chosen])
        return Interactions(
            subject_ids=tuple(self.subject_ids[i] for i in chosen.tolist()),
            offsets=_offsets(self.counts[chosen]),
            items=self.items[rows],
            values=self.values[rows],
            times=self.times[rows],
        )

    def trimmed(self, lengths: NDArray[np.int64]) -> "Interactions":
        """The same subjects, each with its `lengths[i]` oldest interactions."""
        rows = _rows(self.offsets[:-1], lengths)
        return Interactions(
            subject_ids=self.subject_ids,
            offsets=_offsets(lengths),
            items=self.items[rows],
            values=self.values[rows],
            times=self.times[rows],
        )


def concatenate(parts: Sequence[Interactions]) -> Interactions:
    """The subjects of all parts, in their order; a subject of two parts stands twice."""
    return Interactions(
        subject_ids=tuple(i for part in parts for i in part.subject_ids),
        offsets=_offsets(np.concatenate([part.counts for part in parts])),
        items=np.concatenate([part.items for part in parts]),
        values=np.concatenate([part.values for part in parts]),
        times=np.concatenate([part.times for part in parts]),
    )


@dataclass(frozen=True, kw_only=True)
class ReadReport:
    """What reading found; exact counts, for the site alone, never sent.

    Attributes:
        rows: Rows in the file.
        subjects: Subjects kept.
        interactions: Interactions kept.
        dropped_unknown_items: Rows whose item is not in the catalog.
        dropped_duplicates: Rows that repeat an item of the same subject; the first is kept.
        dropped_subjects: Subjects of whom no known item is left.
    """

    rows: int
    subjects: int
    interactions: int
    dropped_unknown_items: int
    dropped_duplicates: int
    dropped_subjects: int


def read_interactions(
    folder: Path, catalog: Catalog, *, limits: Limits = LIMITS, name: str = "interactions"
) -> tuple[Interactions, ReadReport]:
    """Read `interactions.*`: user_id, item_id, timestamp and, where there is one, rating.

    Subjects keep the order in which they first occur.

    Args:
        folder: A data folder.
        catalog: Its catalog; interactions with other items are counted and dropped.
        limits: Bounds on the input.
        name: Table to read, without its suffix.

    Raises:
        DataError: The file is missing, wrong, or holds no known item.
        SecurityRefused: It is a link, a pipe, too large or a decompression bomb.
    """
    table = open_table(folder, name, limits=limits)
    frame = table.frame(COLUMNS, ("rating",))
    users = id_column(table, frame, "user_id", limits=limits)
    items = id_column(table, frame, "item_id", limits=limits)
    times = number_column(table, frame, "timestamp", magnitude=limits.time_magnitude)
    values = np.ones(frame.height)
    if "rating" in frame.columns:
        rated = number_column(table, frame, "rating", magnitude=limits.rating_magnitude)
        values = rated.astype(np.float64)
    subjects = users.unique(maintain_order=True)
    codes = _codes(users, subjects)
    _require_cap(table, codes, limits)
    positions = _codes(items, pl.Series(catalog.item_ids))
    known = np.flatnonzero(positions >= 0)
    if not known.size:
        raise DataError(f"{table.name}: expected items of the catalog, got none; check item_id.")
    interactions = from_rows(
        tuple(subjects),
        subjects=codes[known],
        items=positions[known],
        values=values[known],
        times=times[known],
    )
    return interactions, _report(codes.size, known.size, len(subjects), interactions)


def _require_cap(table: Table, codes: NDArray[np.int64], limits: Limits) -> None:
    if np.bincount(codes).max() > limits.rows_per_subject:
        raise DataError(
            f"{table.name}: expected at most {limits.rows_per_subject} rows a subject, got more: "
            "keep the latest, or check user_id."
        )


def _report(rows: int, known: int, subjects: int, kept: Interactions) -> ReadReport:
    return ReadReport(
        rows=rows,
        subjects=len(kept),
        interactions=kept.items.size,
        dropped_unknown_items=rows - known,
        dropped_duplicates=known - kept.items.size,
        dropped_subjects=subjects - len(kept),
    )


def _codes(ids: pl.Series, vocabulary: pl.Series) -> NDArray[np.int64]:
    """Position of each id in the vocabulary, -1 where it is not in it."""
    found = ids.cast(pl.Enum(vocabulary), strict=False).to_physical().cast(pl.Int64)
    return found.fill_null(-1).to_numpy().astype(np.int64, copy=False)


def from_rows(
    subject_ids: tuple[str, ...],
    *,
    subjects: NDArray[np.int64],
    items: NDArray[np.int64],
    values: NDArray[np.float64],
    times: Times,
) -> Interactions:
    """Compressed rows of loose ones: ordered by time, the first of each (subject, item) kept.

    Args:
        subject_ids: Ids; a subject without a row is left out.
        subjects: Number of the subject of each row, int64[m].
        items: Catalog position of each row, int64[m], not negative.
        values: Rating of each row, float64[m].
        times: Time of each row; ties keep the order of the rows.
    """
    order = np.lexsort((times, subjects))
    pairs = subjects[order] * (items.max(initial=0) + 1) + items[order]
    rows = order[np.sort(np.unique(pairs, return_index=True)[1])]
    present, counts = np.unique(subjects[rows], return_counts=True)
    return Interactions(
        subject_ids=tuple(subject_ids[i] for i in present.tolist()),
        offsets=_offsets(counts.astype(np.int64)),
        items=items[rows].astype(np.int32),
        values=values[rows].astype(np.float32),
        times=times[rows],
    )


def write_interactions(interactions: Interactions, catalog: Catalog, folder: Path) -> None:
    """Write `interactions.parquet` into `folder`, creating it, readable by its owner alone."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = interactions.counts
    subjects = pl.Series(interactions.subject_ids, dtype=pl.String)
    frame = pl.DataFrame(
        {
            "user_id": subjects.gather(np.repeat(np.arange(len(interactions)), counts)),
            "item_id": pl.Series(catalog.item_ids).gather(interactions.items.astype(np.int64)),
            "rating": interactions.values,
            "timestamp": interactions.times,
        }
    )
    path = folder / "interactions.parquet"
    path.touch(mode=0o600)
    frame.write_parquet(path)


def read_subject_column(folder: Path, column: str, *, limits: Limits = LIMITS) -> dict[str, str]:
    """One value a subject, from `users.*`, or from a column of `interactions.*`.

    In the interactions a subject may have several values: the most frequent one is taken, the
    first to occur among equals. An empty cell reads `unknown`.

    Raises:
        DataError: Neither file has the column, or `users.*` names a subject twice.
    """
    for name in ("users", "interactions"):
        if find_table(folder, name) is not None:
            table = open_table(folder, name, limits=limits)
            if column in table.columns and column not in (*COLUMNS, "rating"):
                return _subject_values(table, column, limits)
    names = ", ".join(subject_columns(folder, limits=limits)) or "none"
    raise DataError(f"{folder.name}: expected one of the subject columns {names}; got another.")


def subject_columns(folder: Path, *, limits: Limits = LIMITS) -> tuple[str, ...]:
    """Columns of `users.*` and `interactions.*` by which subjects can be told apart into sites."""
    found: dict[str, None] = {}
    for name in ("users", "interactions"):
        if find_table(folder, name) is not None:
            found |= dict.fromkeys(open_table(folder, name, limits=limits).columns)
    return tuple(column for column in found if column not in (*COLUMNS, "rating"))


def _subject_values(table: Table, column: str, limits: Limits) -> dict[str, str]:
    frame = table.frame(("user_id", column))
    users = id_column(table, frame, "user_id", limits=limits)
    if table.name.startswith("users."):
        require_distinct(table, users, "user_id")
    values = text_column(table, frame, column, limits=limits).str.strip_chars().replace("", UNKNOWN)
    pairs = pl.DataFrame({"user": users, "value": values}).with_row_index("row")
    counted = pairs.group_by("user", "value").agg(pl.len(), pl.col("row").min())
    best = counted.sort("len", "row", descending=[True, False]).unique("user", keep="first")
    ordered = best.join(pairs.unique("user", keep="first").select("user", first="row"), on="user")
    chosen = ordered.sort("first")
    return dict(zip(chosen["user"], chosen["value"], strict=True))


def require_subjects(interactions: Interactions, *, floor: int = LIMITS.subjects_floor) -> None:
    """Refuse to train on fewer subjects than the floor.

    Raises:
        PrivacyRefused: There are fewer; the message does not say how many.
    """
    if len(interactions) < floor:
        raise PrivacyRefused(
            f"Expected at least {floor} subjects at a site, got fewer: a smaller group cannot hide "
            "one person; pool sites or wait for more records."
        )


def require_targets(interactions: Interactions) -> None:
    """Refuse data in which nobody has anything to predict.

    Raises:
        DataError: No subject has two interactions.
    """
    if not (interactions.counts >= 2).any():
        raise DataError("Expected subjects with 2 or more distinct items, got none; check user_id.")


def require_labels(interactions: Interactions, allowed: tuple[float, ...] = (0.0, 1.0)) -> None:
    """Refuse values that are no label of a classification objective.

    Raises:
        DataError: A value is not among `allowed`.
    """
    if not np.isin(interactions.values, np.asarray(allowed, dtype=np.float32)).all():
        labels = ", ".join(f"{label:g}" for label in allowed)
        raise DataError(f"Expected ratings among the labels {labels}, got an unknown label.")


def _offsets(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(counts, dtype=np.int64)))


def _rows(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Row numbers of runs that start at `starts` and are `counts` long, without a loop."""
    ends = np.cumsum(counts, dtype=np.int64)
    total = int(ends[-1]) if ends.size else 0
    shifts: NDArray[np.int64] = np.repeat(starts - (ends - counts), counts)
    return np.arange(total, dtype=np.int64) + shifts
