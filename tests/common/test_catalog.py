"""The catalog: order, digest, and a round trip through its files."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.catalog import Catalog, read_catalog, write_catalog
from common.errors import DataError
from common.limits import LIMITS

HEADER = "item_id,title,text,category\n"
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=10)
IDS = WORDS.filter(lambda text: bool(text.strip()))


def catalog() -> Catalog:
    return Catalog(
        domain="care",
        item_ids=("b", "a"),
        titles=("B", "A"),
        texts=("text b", "text a"),
        categories=("x", ""),
        triples=(("item:b", "is_a", "thing"), ("item:a", "near", "item:b")),
    )


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    items=st.lists(st.tuples(IDS, IDS, IDS, WORDS), min_size=1, unique_by=lambda item: item[0]),
    nodes=st.lists(st.tuples(IDS, IDS), max_size=4),
)
def test_what_was_written_reads_back_the_same(
    tmp_path: Path, items: list[tuple[str, ...]], nodes: list[tuple[str, str]]
) -> None:
    ids, titles, texts, categories = (tuple(column) for column in zip(*items, strict=True))
    triples = tuple((f"item:{ids[0]}", relation, f"x{tail}") for relation, tail in nodes)
    (tmp_path / "kg.csv").unlink(missing_ok=True)
    written = Catalog(
        domain="d",
        item_ids=ids,
        titles=titles,
        texts=texts,
        categories=categories,
        triples=triples,
    )
    write_catalog(written, tmp_path)
    found = read_catalog(tmp_path, domain="d")
    assert found == written
    assert found.digest == written.digest


def test_positions_follow_the_order_of_the_file() -> None:
    assert catalog().positions == {"b": 0, "a": 1}
    assert len(catalog()) == 2


def test_the_digest_is_fixed_and_moves_with_every_part() -> None:
    first = catalog()
    assert first.digest == catalog().digest
    assert len(first.digest) == 64
    changed = [
        replace(first, domain="bank"),
        replace(first, item_ids=("b", "c")),
        replace(first, titles=("B", "X")),
        replace(first, texts=("text b", "X")),
        replace(first, categories=("", "x")),
        replace(first, triples=first.triples[:1]),
        replace(first, item_ids=("a", "b")),
    ]
    assert len({first.digest, *(other.digest for other in changed)}) == 8


def test_moving_a_letter_across_a_field_moves_the_digest() -> None:
    first = replace(catalog(), titles=("Bt", "A"), texts=("ext b", "text a"))
    assert first.digest != replace(catalog(), titles=("B", "A")).digest


def test_the_graph_is_optional_and_further_columns_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("price,item_id,title,text,category\n9,01,T,X,c\n")
    found = read_catalog(tmp_path, domain="d")
    assert (found.item_ids, found.titles, found.texts, found.categories, found.triples) == (
        ("01",),
        ("T",),
        ("X",),
        ("c",),
        (),
    )


def test_an_item_without_words_is_read_by_its_title_then_by_its_id(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text(HEADER + "i1,Name,,\ni2,,Words,\ni3,,,\n")
    found = read_catalog(tmp_path, domain="d")
    assert found.titles == ("Name", "i2", "i3")
    assert found.texts == ("Name", "Words", "i3")
    assert found.categories == ("", "", "")


def test_long_texts_are_cut_at_the_limit(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text(HEADER + f"i1,T,{'é' * 5000},c\n")
    assert len(read_catalog(tmp_path, domain="d").texts[0]) == LIMITS.text_characters


def test_a_catalog_over_the_item_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text(HEADER + "i1,T,X,c\ni2,T,X,c\n")
    with pytest.raises(DataError, match="at most 1 items"):
        read_catalog(tmp_path, domain="d", limits=replace(LIMITS, items=1))


@pytest.mark.parametrize("side", ["head", "tail"])
def test_a_graph_that_names_an_unknown_item_is_refused(tmp_path: Path, side: str) -> None:
    write_catalog(catalog(), tmp_path)
    row = {"head": "item:a", "relation": "r", "tail": "thing", side: "item:zz"}
    pl.DataFrame([row]).write_csv(tmp_path / "kg.csv")
    with pytest.raises(DataError, match=f"{side}, got an unknown label in row 1") as error:
        read_catalog(tmp_path, domain="d")
    assert "zz" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"item_ids": (), "titles": (), "texts": (), "categories": ()},
        {"item_ids": ("a", "a")},
        {"titles": ("only",)},
    ],
)
def test_a_catalog_that_does_not_fit_together_cannot_be_made(
    change: dict[str, tuple[str, ...]],
) -> None:
    with pytest.raises(DataError, match="Expected"):
        replace(catalog(), **change)  # type: ignore[arg-type]
