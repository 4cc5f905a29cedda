"""A synthetic consortium of hospitals and banks, so that everything runs without a file.

Nobody is in these data. The model is described in `common.synthetic_model`; the words and the
numbers of the two domains are in `common.synthetic_care` and `common.synthetic_bank`. The domains
share no rule about items; what they have in common is what people have in common, and the texts say
it: children are born, joints wear out, people travel, retire and need nursing.
"""

import re
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from common.catalog import ITEM_PREFIX, Catalog, write_catalog
from common.errors import ConfigError
from common.interactions import Interactions, from_rows, write_interactions
from common.synthetic_bank import BANK
from common.synthetic_care import CARE
from common.synthetic_model import EVERYDAY, Content, Item, Need, parse, simulate, stream

Domain = Literal["care", "bank"]
DOMAINS: dict[str, Content] = {"care": CARE, "bank": BANK}
SCENARIOS: dict[str, tuple[Domain, ...]] = {
    "care-and-bank": ("care", "bank"),
    "care": ("care",),
    "bank": ("bank",),
}
"""Domains of each scenario that can be generated."""

_CODES = {"care": 1, "bank": 2}
_START = 1_420_070_400  # 1 January 2015, Unix seconds
_DAY = 86_400
_YEAR = 365.25 * _DAY


@lru_cache(maxsize=8)
def make_domain(domain: Domain, *, seed: int) -> Catalog:
    """The catalog and knowledge graph of a domain; the seed shuffles the items' order.

    Raises:
        ConfigError: The domain is not one of care and bank.
    """
    content = _content(domain)
    items, needs = parse(content)
    order = _order(domain, seed)
    return Catalog(
        domain=domain,
        item_ids=tuple(_item_id(items[i]) for i in order),
        titles=tuple(items[i].title for i in order),
        texts=tuple(_text(content, items[i]) for i in order),
        categories=tuple(f"{content.kinds[items[i].kind]}|{items[i].group}" for i in order),
        triples=_triples(content, items, needs),
    )


def make_site(
    domain: Domain, *, site: int, subjects: int, seed: int
) -> tuple[Catalog, Interactions]:
    """The catalog of a domain and the records of one of its sites.

    Args:
        domain: "care" or "bank".
        site: Number of the site, from 0; sites share nobody.
        subjects: How many subjects.
        seed: Same seed, same records.

    Raises:
        ConfigError: The domain is unknown, or a number is out of range.
    """
    content = _content(domain)
    if subjects < 1 or site < 0 or seed < 0:
        raise ConfigError("Expected subjects >= 1, site >= 0 and seed >= 0, got less.")
    catalog = make_domain(domain, seed=seed)
    events = simulate(content, code=_CODES[domain], site=site, subjects=subjects, seed=seed)
    positions = np.argsort(np.asarray(_order(domain, seed)))
    days = np.floor(events.years * _YEAR / _DAY).astype(np.int64)
    interactions = from_rows(
        tuple(f"{domain}{site}-{number:06d}" for number in range(subjects)),
        subjects=events.subjects,
        items=positions[events.items].astype(np.int64),
        values=np.ones(days.size),
        times=_START + days * _DAY,
    )
    return catalog, interactions


def write_consortium(
    scenario: str, folder: Path, *, subjects: int, sites: int, seed: int
) -> list[Path]:
    """Write `folder`/DOMAIN/site-N/ for each site in the standard layout, and return the folders.

    Args:
        scenario: A key of `SCENARIOS`.
        folder: Empty or not there yet.
        subjects: Subjects a site.
        sites: Sites in all, dealt evenly to the domains.
        seed: Same seed, same files.

    Raises:
        ConfigError: The scenario is unknown, `folder` holds something, or sites cannot be dealt.
    """
    if scenario not in SCENARIOS:
        raise ConfigError(f"Expected a scenario of {', '.join(SCENARIOS)}, got another.")
    domains = SCENARIOS[scenario]
    if sites < len(domains):
        raise ConfigError(f"Expected at least {len(domains)} sites for {scenario}, got {sites}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"Expected an empty folder at {folder}, got one in use; name a new one.")
    written = []
    for site in range(sites):
        domain, number = domains[site % len(domains)], site // len(domains)
        catalog, interactions = make_site(domain, site=number, subjects=subjects, seed=seed)
        target = folder / domain / f"site-{number + 1}"
        write_catalog(catalog, target)
        write_interactions(interactions, catalog, target)
        written.append(target)
    return written


def _content(domain: str) -> Content:
    if domain not in DOMAINS:
        raise ConfigError(f"Expected a domain of {', '.join(DOMAINS)}, got another.")
    return DOMAINS[domain]


@lru_cache(maxsize=8)
def _order(domain: str, seed: int) -> tuple[int, ...]:
    """Order of the table's items in the catalog, so that a position tells nothing of the model."""
    count = len(parse(DOMAINS[domain])[0])
    return tuple(stream(seed, _CODES[domain]).permutation(count).tolist())


def _item_id(item: Item) -> str:
    return f"{item.kind}-{re.sub(r'[^a-z0-9]+', '-', item.title.lower()).strip('-')}"


def _text(content: Content, item: Item) -> str:
    return f"{content.kinds[item.kind]}: {item.title}. {item.sentence} {item.group}."


def _triples(
    content: Content, items: tuple[Item, ...], needs: tuple[Need, ...]
) -> tuple[tuple[str, str, str], ...]:
    """Public knowledge: what serves which need, in which group, and what leads to what."""
    anchors = {need.key: _anchor(content, items, need) for need in needs}
    found: dict[tuple[str, str, str], None] = {}
    for need in needs:
        for entry in need.entries:
            item = items[entry.item]
            node = ITEM_PREFIX + _item_id(item)
            found[node, content.group_relation, f"group:{item.group}"] = None
            if node != anchors[need.key] and need.key != EVERYDAY:
                found[node, content.relations[item.kind], anchors[need.key]] = None
        for child in need.leads:
            found[anchors[need.key], content.lead_relation, anchors[child]] = None
    return tuple(found)


def _anchor(content: Content, items: tuple[Item, ...], need: Need) -> str:
    """The node that stands for a need: its first diagnosis, or a goal of its own."""
    for entry in need.entries:
        if items[entry.item].kind == content.anchor_kind:
            return ITEM_PREFIX + _item_id(items[entry.item])
    return f"need:{need.key}"
