"""The synthetic consortium: repeatable, in range, long-tailed, learnable, and different by site."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from common.catalog import read_catalog
from common.errors import ConfigError, OrderError
from common.interactions import Interactions, read_interactions
from common.splits import LeaveOneOut, leave_one_out
from common.synthetic import DOMAINS, Domain, make_domain, make_site, write_consortium
from common.synthetic_model import parse

BOTH = pytest.mark.parametrize("domain", get_args(Domain))


def dense(history: Interactions, items: int) -> NDArray[np.float64]:
    matrix = np.zeros((len(history), items))
    matrix[np.repeat(np.arange(len(history)), history.counts), history.items] = 1.0
    return matrix


def ndcg_at_10(scores: NDArray[np.float64], split: LeaveOneOut) -> float:
    ranked = np.where(dense(split.test_history, scores.shape[1]) > 0, -np.inf, scores)
    kept = split.test_target >= 0
    targets = ranked[np.arange(len(ranked)), split.test_target]
    ranks = (ranked > targets[:, None]).sum(axis=1)[kept]
    return float(np.where(ranks < 10, 1.0 / np.log2(ranks + 2.0), 0.0).mean())


@BOTH
def test_neighbours_beat_popularity_by_half_so_there_is_something_to_learn(domain: Domain) -> None:
    items = len(make_domain(domain, seed=0))
    splits = [
        leave_one_out(make_site(domain, site=site, subjects=1000, seed=0)[1]) for site in range(4)
    ]
    histories = [dense(split.test_history, items) for split in splits]
    seen = np.vstack(histories)
    popularity = seen.sum(axis=0)
    together = seen.T @ seen
    np.fill_diagonal(together, 0.0)
    near = together / np.sqrt(np.outer(popularity + 5.0, popularity + 5.0))
    popular = np.mean(
        [
            ndcg_at_10(np.tile(popularity, (len(h), 1)), s)
            for h, s in zip(histories, splits, strict=True)
        ]
    )
    neighbours = np.mean([ndcg_at_10(h @ near, s) for h, s in zip(histories, splits, strict=True)])
    assert 0.05 < popular < 0.2
    assert neighbours > 1.5 * popular


@BOTH
def test_the_same_seed_gives_the_same_records_and_another_does_not(domain: Domain) -> None:
    catalog, first = make_site(domain, site=1, subjects=50, seed=3)
    again_catalog, again = make_site(domain, site=1, subjects=50, seed=3)
    assert catalog.digest == again_catalog.digest
    assert first.items.tolist() == again.items.tolist()
    assert first.times.tolist() == again.times.tolist()
    for other in ({"site": 2, "seed": 3}, {"site": 1, "seed": 4}):
        assert make_site(domain, subjects=50, **other)[1].items.tolist() != first.items.tolist()


@BOTH
def test_every_subject_has_interactions_in_the_range_of_the_domain(domain: Domain) -> None:
    least, most = DOMAINS[domain].interactions
    for site in range(3):
        _, interactions = make_site(domain, site=site, subjects=400, seed=1)
        assert len(interactions) == 400
        assert interactions.counts.min() >= least
        assert interactions.counts.max() <= most
        assert np.median(interactions.counts) < most
    window = interactions.times.max() - interactions.times.min()
    assert 6 * 365 * 86_400 < window < 8.1 * 365.25 * 86_400


@BOTH
def test_popularity_has_a_long_tail(domain: Domain) -> None:
    catalog, interactions = make_site(domain, site=0, subjects=2000, seed=0)
    seen = np.sort(np.bincount(interactions.items, minlength=len(catalog)))[::-1]
    assert seen[: len(catalog) // 10].sum() > 0.25 * seen.sum()
    assert seen[0] > 10 * np.median(seen)
    assert (seen > 0).mean() > 0.95


@BOTH
def test_sites_differ_in_what_is_popular_more_than_chance_would(domain: Domain) -> None:
    items = len(make_domain(domain, seed=0))

    def shares(site: int, part: slice) -> NDArray[np.float64]:
        _, interactions = make_site(domain, site=site, subjects=1000, seed=0)
        half = interactions.select(list(range(1000))[part])
        return np.bincount(half.items, minlength=items) / half.items.size

    first, second = slice(0, 500), slice(500, 1000)
    chance = np.abs(shares(0, first) - shares(0, second)).sum()
    between = np.abs(shares(0, first) - shares(1, first)).sum()
    assert between > 1.3 * chance


def has(domain: Domain, title: str, sites: int = 4) -> NDArray[np.bool_]:
    catalog = make_domain(domain, seed=0)
    position = catalog.titles.index(title)
    parts = [make_site(domain, site=site, subjects=1000, seed=0)[1] for site in range(sites)]
    return np.concatenate([dense(part, len(catalog))[:, position] > 0 for part in parts])


@pytest.mark.parametrize(
    ("domain", "cause", "effect"),
    [
        ("care", "Type 2 diabetes", "Chronic kidney disease"),
        ("care", "Type 2 diabetes", "High blood pressure"),
        ("care", "Tobacco dependence", "Chronic obstructive pulmonary disease"),
        ("care", "Coronary artery disease", "Heart failure"),
        ("bank", "Child savings plan", "Pocket money card"),
        ("bank", "Fixed-rate mortgage", "Renovation loan"),
        ("bank", "Business account", "Payroll service"),
    ],
)
def test_what_leads_to_something_makes_it_more_frequent(
    domain: Domain, cause: str, effect: str
) -> None:
    first, then = has(domain, cause), has(domain, effect)
    assert then[first].mean() > 1.3 * then[~first].mean()


@BOTH
def test_the_catalog_is_whole_and_its_graph_names_known_items(domain: Domain) -> None:
    catalog = make_domain(domain, seed=0)
    low, high = {"care": (250, 300), "bank": (120, 200)}[domain]
    assert low <= len(catalog) <= high
    assert len(set(catalog.texts)) == len(catalog)
    assert all(title in text for title, text in zip(catalog.titles, catalog.texts, strict=True))
    assert {len(category.split("|")) for category in catalog.categories} == {2}
    nodes = {node for head, _, tail in catalog.triples for node in (head, tail)}
    named = {node.removeprefix("item:") for node in nodes if node.startswith("item:")}
    assert named == set(catalog.item_ids)


def test_medicines_treat_and_chapters_hold_and_diseases_lead() -> None:
    triples = set(make_domain("care", seed=0).triples)
    assert ("item:m-metformin", "treats", "item:d-type-2-diabetes") in triples
    assert ("item:d-asthma", "in_chapter", "group:Lungs and airways") in triples
    leads = ("item:d-type-2-diabetes", "raises_risk_of", "item:d-chronic-kidney-disease")
    assert leads in triples


def test_the_seed_shuffles_positions_but_not_words() -> None:
    first, second = make_domain("bank", seed=0), make_domain("bank", seed=1)
    assert first.item_ids != second.item_ids
    assert sorted(first.texts) == sorted(second.texts)


def test_subjects_of_different_sites_are_different_people() -> None:
    sites = [make_site("care", site=site, subjects=30, seed=0)[1] for site in range(3)]
    assert len({subject for site in sites for subject in site.subject_ids}) == 90


def test_files_hold_what_make_site_makes(tmp_path: Path) -> None:
    folders = write_consortium("care-and-bank", tmp_path / "out", subjects=40, sites=4, seed=2)
    assert [f"{f.parent.name}/{f.name}" for f in folders] == [
        "care/site-1",
        "bank/site-1",
        "care/site-2",
        "bank/site-2",
    ]
    catalog, made = make_site("bank", site=1, subjects=40, seed=2)
    found = read_catalog(folders[3], domain="bank")
    again, report = read_interactions(folders[3], found)
    assert found.digest == catalog.digest
    assert again.items.tolist() == made.items.tolist()
    assert again.times.tolist() == made.times.tolist()
    assert report.dropped_duplicates == 0


def test_a_folder_in_use_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="empty folder"):
        write_consortium("care", tmp_path, subjects=20, sites=1, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_unknown_domain_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="care, bank"):
        make_site("shop", site=0, subjects=1, seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "table",
    [
        "\n[a] G\nodds 0 age 1 1 leads b 1\nd0 =Nowhere\n",
        "\n[a] G\nodds 0 age 1 1 leads b 1\nd0 T | S.\n",
        "\n[b] G\nd0 T | S.\n[a] G\nodds 0 age 1 1 leads b 1\nd0 =T\n",
        "\n[a] G\nodds 0 age 1 1 traits unheard 1\nd0 T | S.\n",
    ],
)
def test_a_table_that_points_nowhere_or_backwards_is_refused(table: str) -> None:
    with pytest.raises(OrderError, match="Expected"):
        parse(replace(DOMAINS["care"], table=table))
