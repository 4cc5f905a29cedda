"""The public catalog of a domain: items with their texts, and the knowledge graph.

Public throughout: nothing here is computed from private records. An item's *position* in the
catalog is the index that every array of the project uses for it.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl

from common.errors import DataError
from common.limits import LIMITS, Limits
from common.tables import find_table, id_column, open_table, require_distinct, text_column

ITEM_COLUMNS = ("item_id", "title", "text", "category")
TRIPLE_COLUMNS = ("head", "relation", "tail")
ITEM_PREFIX = "item:"
"""How a node of the knowledge graph names an item of the catalog."""


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """The items of a domain, in their one order.

    Attributes:
        domain: Name of the domain, part of the digest.
        item_ids: Distinct ids, always text.
        titles: Short names, one an item.
        texts: What the backbone reads, one an item, never empty.
        categories: One an item, possibly empty; `|` separates levels.
        triples: Knowledge graph as (head, relation, tail); an item is written `item:<item_id>`.
    """

    domain: str
    item_ids: tuple[str, ...]
    titles: tuple[str, ...]
    texts: tuple[str, ...]
    categories: tuple[str, ...]
    triples: tuple[tuple[str, str, str], ...] = ()

    def __post_init__(self) -> None:
        count = len(self.item_ids)
        if not count:
            raise DataError("Expected a catalog with items, got an empty one.")
        if {len(self.titles), len(self.texts), len(self.categories)} != {count}:
            raise DataError("Expected one title, text and category for each item.")
        if len(self.positions) != count:
            raise DataError("Expected distinct item ids, got one twice; keep one row an item.")

    def __len__(self) -> int:
        return len(self.item_ids)

    @cached_property
    def positions(self) -> dict[str, int]:
        """Position of each item id."""
        return {item: position for position, item in enumerate(self.item_ids)}

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of domain, items in their order, and triples."""
        items = list(zip(self.item_ids, self.titles, self.texts, self.categories, strict=True))
        content = {"domain": self.domain, "items": items, "triples": self.triples}
        canonical = json.dumps(content, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def read_catalog(folder: Path, *, domain: str, limits: Limits = LIMITS) -> Catalog:
    """Read `items.*` and, where there is one, `kg.*`.

    An item without text is read by its title, one without a title by its id. Further columns are
    left alone.

    Raises:
        DataError: A file is missing or wrong, or the graph names an item that is not there.
        SecurityRefused: A file is a link, a pipe or too large.
    """
    table = open_table(folder, "items", limits=limits)
    frame = table.frame(ITEM_COLUMNS)
    if frame.height > limits.items:
        raise DataError(f"{table.name}: expected at most {limits.items} items, got more.")
    ids = id_column(table, frame, "item_id", limits=limits)
    require_distinct(table, ids, "item_id")
    titles = _or_else(text_column(table, frame, "title", limits=limits), ids)
    texts = _or_else(text_column(table, frame, "text", limits=limits), titles)
    return Catalog(
        domain=domain,
        item_ids=tuple(ids),
        titles=tuple(titles),
        texts=tuple(texts),
        categories=tuple(text_column(table, frame, "category", limits=limits)),
        triples=_read_triples(folder, ids, limits),
    )


def write_catalog(catalog: Catalog, folder: Path) -> None:
    """Write `items.csv` and, where there are triples, `kg.csv` into `folder`, creating it."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = (catalog.item_ids, catalog.titles, catalog.texts, catalog.categories)
    items = pl.DataFrame(dict(zip(ITEM_COLUMNS, columns, strict=True)))
    items.write_csv(folder / "items.csv")
    if catalog.triples:
        graph = pl.DataFrame(catalog.triples, schema=list(TRIPLE_COLUMNS), orient="row")
        graph.write_csv(folder / "kg.csv")


def _or_else(texts: pl.Series, fallback: pl.Series) -> pl.Series:
    blank = texts.str.strip_chars() == ""
    return texts.zip_with(~blank, fallback)


def _read_triples(
    folder: Path, item_ids: pl.Series, limits: Limits
) -> tuple[tuple[str, str, str], ...]:
    if find_table(folder, "kg") is None:
        return ()
    table = open_table(folder, "kg", limits=limits)
    frame = table.frame(TRIPLE_COLUMNS)
    nodes = {column: id_column(table, frame, column, limits=limits) for column in TRIPLE_COLUMNS}
    known = ITEM_PREFIX + item_ids
    for column in ("head", "tail"):
        named = nodes[column].str.starts_with(ITEM_PREFIX)
        stray = named & ~nodes[column].is_in(known.implode())
        if stray.any():
            raise DataError(
                f"{table.name}: expected {ITEM_PREFIX}<item_id> of items.csv in {column}, got an "
                f"unknown label in row {(stray.arg_max() or 0) + 1}."
            )
    return tuple(pl.DataFrame(nodes).iter_rows())
