"""A small made-up shop in the standard layout of a data folder, and scenarios small enough."""

from pathlib import Path

import numpy as np
import polars as pl

WORDS = (
    *("wool", "scarf", "red", "tea", "cup", "lamp", "desk", "chair"),
    *("pear", "apple", "book", "pen", "ink", "soap", "towel"),
)
TINY = """
[[domains]]
name = "care"
sites = 2
subjects = 60
[[domains]]
name = "bank"
sites = 2
subjects = 60
[federation]
rounds = 2
text_rounds = 1
"""
"""Two hospitals and two banks of 60 synthetic subjects each, two rounds."""


def write_shop(
    folder: Path,
    *,
    subjects: int = 120,
    items: int = 40,
    least: int = 1,
    most: int = 6,
    parquet: bool = False,
    seed: int = 0,
) -> Path:
    """Write items, interactions with ratings from 1 to 5, and users with their ward."""
    folder.mkdir(parents=True)
    numbers = range(items)
    catalog = {
        "item_id": [f"i{k}" for k in numbers],
        "title": [f"{WORDS[k % 15]} {WORDS[(7 * k + 3) % 15]} {k}" for k in numbers],
        "text": [f"A {WORDS[k % 15]} with a {WORDS[(7 * k + 3) % 15]}" for k in numbers],
        "category": [f"{WORDS[k % 5]}|all" for k in numbers],
    }
    pl.DataFrame(catalog).write_csv(folder / "items.csv")
    rows = _interactions(subjects, items, (least, most), np.random.default_rng(seed))
    if parquet:
        rows.write_parquet(folder / "interactions.parquet")
    else:
        rows.write_csv(folder / "interactions.csv")
    users = {"user_id": [f"u{s}" for s in range(subjects)]}
    wards = {"ward": [f"ward {s % 3}" for s in range(subjects)]}
    pl.DataFrame(users | wards).write_csv(folder / "users.csv")
    return folder


def _interactions(
    subjects: int, items: int, lengths: tuple[int, int], rng: np.random.Generator
) -> pl.DataFrame:
    rows = []
    for subject in range(subjects):
        count = int(rng.integers(lengths[0], lengths[1] + 1))
        for time, item in enumerate(rng.permutation(items)[:count].tolist()):
            liked = 3 + 1.5 * (item % 3 == subject % 3) + rng.normal()
            rating = float(np.clip(round(liked), 1, 5))
            rows.append((f"u{subject}", f"i{item}", rating, 1000 + time))
    return pl.DataFrame(rows, schema=["user_id", "item_id", "rating", "timestamp"], orient="row")
