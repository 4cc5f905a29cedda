"""The latent model behind the synthetic consortium.

The model, for one domain (`Content`):

1. A subject has an age at entry and independent standard normal traits (care: frailty, lifestyle,
   …; bank: income, risk appetite, …).
2. A subject may have *needs* (care: conditions; bank: life stages and goals). Needs are drawn in
   the order of the table: the log-odds of need k are its odds + traits · loadings + the sum of
   `leads` from needs the subject already has + the site's case mix. So diabetes raises the odds
   of kidney disease, and a wedding those of a child. Onset age is normal around the need's age,
   earlier for a subject with a high first trait (frailty, income), and after the onsets that led
   to it. A need that would begin after the window is not there.
3. A need has a *course*: entries at stages 0 to 3. Each entry is taken with a probability that
   falls with its place in the list (a Zipf-like law), shifted by the site's formulary, and happens
   at onset + stage · pace + an exponential lag; the pace differs by subject. What lies before the
   window is known at entry with a probability that fades; what lies after it has not happened.
4. Everybody has some everyday items, most of them early, and a few incidental ones at random.

The record is the window of eight years, days resolution, with 5 to 25 (care) or 3 to 20 (bank)
interactions a subject. Sites differ in case mix, formulary and age. Everything is drawn from
`numpy.random.PCG64` streams seeded by (seed, domain) for the world and (seed, domain, site) for a
site, so a site does not change when others are added.

The table of a `Content` is read line by line:

    [key] Group                                  a need; the one called `everyday` is everybody's
    odds O age A SPREAD traits T X … leads K X … its parameters; leads point further down only
    d0 Title | Sentence.                         an entry: kind letter, stage, item
    m1 =Title                                    an item that another need introduced
"""

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from common.errors import OrderError

EVERYDAY = "everyday"
WINDOW_YEARS = 8.0
EVERYDAY_YEARS = 3.0
"""Everyday items begin within these years, most of them at once."""
CASE_MIX = (0.35, 0.45)
"""Mean and spread of a site's shift of the log-odds of a need."""


@dataclass(frozen=True, kw_only=True)
class Content:
    """What makes a domain: words, numbers and the table of needs."""

    domain: str
    kinds: dict[str, str]
    relations: dict[str, str]
    group_relation: str
    lead_relation: str
    anchor_kind: str
    traits: tuple[str, ...]
    ages: tuple[float, float, float, float]
    interactions: tuple[int, int]
    memory_years: float
    table: str = field(repr=False)

    def __hash__(self) -> int:
        return hash((self.domain, self.table))


@dataclass(frozen=True, kw_only=True)
class Item:
    """One item: its kind letter, words, and the group of the need that introduced it."""

    kind: str
    title: str
    sentence: str
    group: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An item in the course of a need."""

    item: int
    stage: int


@dataclass(frozen=True, kw_only=True)
class Need:
    """A latent condition or goal, see the module."""

    key: str
    group: str
    odds: float
    age: float
    spread: float
    traits: dict[str, float]
    leads: dict[str, float]
    entries: tuple[Entry, ...]


@dataclass(frozen=True, kw_only=True)
class Events:
    """Events of a site, one row each: subject number, item number, years since the window began."""

    subjects: NDArray[np.int64]
    items: NDArray[np.int64]
    years: NDArray[np.float64]


@lru_cache(maxsize=8)
def parse(content: Content) -> tuple[tuple[Item, ...], tuple[Need, ...]]:
    """Items and needs of a table, in its order.

    Raises:
        OrderError: The table points to an item or a need that is not there, or backwards.
    """
    blocks = [block.strip().splitlines() for block in content.table.split("\n[")[1:]]
    items: dict[str, Item] = {}
    for lines in blocks:
        group = lines[0].split("]")[1].strip()
        for line in lines[1:]:
            mark, rest = line.split(" ", 1)
            if mark != "odds" and not rest.startswith("="):
                title, sentence = (part.strip() for part in rest.split("|"))
                items[title] = Item(kind=mark[0], title=title, sentence=sentence, group=group)
    numbers = {title: number for number, title in enumerate(items)}
    needs = tuple(_need(lines, numbers) for lines in blocks)
    keys = [need.key for need in needs]
    for place, need in enumerate(needs):
        if not set(need.leads) <= set(keys[place + 1 :]) or not set(need.traits) <= set(
            content.traits
        ):
            raise OrderError(f"Expected leads of {need.key} further down and known traits.")
    return tuple(items.values()), needs


def _need(lines: list[str], numbers: dict[str, int]) -> Need:
    key, group = lines[0].split("]")
    words = lines[1].split() if lines[1].startswith("odds ") else []
    entries = []
    for line in lines[2 if words else 1 :]:
        mark, rest = line.split(" ", 1)
        title = rest.split("|")[0].strip().removeprefix("=")
        if title not in numbers:
            raise OrderError(f"Expected an item of the table, got {title}.")
        entries.append(Entry(item=numbers[title], stage=int(mark[1])))
    return Need(
        key=key,
        group=group.strip(),
        odds=float(words[1]) if words else 0.0,
        age=float(words[3]) if words else 0.0,
        spread=float(words[4]) if words else 0.0,
        traits=_pairs(words, "traits"),
        leads=_pairs(words, "leads"),
        entries=tuple(entries),
    )


def _pairs(words: list[str], name: str) -> dict[str, float]:
    """`name key number key number …` up to the next keyword."""
    if name not in words:
        return {}
    found: dict[str, float] = {}
    rest = words[words.index(name) + 1 :]
    for key, number in zip(rest[::2], rest[1::2], strict=False):
        if key in {"traits", "leads"}:
            break
        found[key] = float(number)
    return found


@dataclass(frozen=True, kw_only=True)
class Site:
    """How one site differs, and its subjects.

    Attributes:
        rng: The site's stream.
        ages: Age at entry, years, float64[n].
        traits: float64[n, traits].
        pace: Years from one stage to the next, float64[n].
        mix: Shift of the log-odds of each need.
    """

    rng: np.random.Generator
    ages: NDArray[np.float64]
    traits: NDArray[np.float64]
    pace: NDArray[np.float64]
    mix: NDArray[np.float64]


def stream(*keys: int) -> np.random.Generator:
    """The generator of these keys; different keys give independent streams."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(keys)))


def simulate(content: Content, *, code: int, site: int, subjects: int, seed: int) -> Events:
    """Events of `subjects` subjects of a site, unordered, possibly with repeats.

    Args:
        content: The domain.
        code: Number of the domain in the seed.
        site: Number of the site.
        subjects: How many subjects.
        seed: The consortium's seed.
    """
    _, needs = parse(content)
    place = _draw_site(content, stream(seed, code, 1 + site), subjects)
    popularity = _popularity(needs, stream(seed, code, 0), place.rng)
    onsets = _draw_onsets(content, needs, place)
    special = [
        _course(need, onsets[:, k] - place.ages, popularity[k], place, content.memory_years)
        for k, need in enumerate(needs)
        if need.key != EVERYDAY
    ]
    background = next(k for k, need in enumerate(needs) if need.key == EVERYDAY)
    return _complete(content, needs[background], special, popularity[background], place)


def _draw_site(content: Content, rng: np.random.Generator, subjects: int) -> Site:
    mean, spread, least, most = content.ages
    shift = rng.normal(0.0, 4.0)
    _, needs = parse(content)
    return Site(
        mix=rng.normal(*CASE_MIX, len(needs)),
        ages=np.clip(rng.normal(mean + shift, spread, subjects), least, most),
        traits=rng.normal(size=(subjects, len(content.traits))),
        pace=1.0 * np.exp(rng.normal(0.0, 0.35, subjects)),
        rng=rng,
    )


def _popularity(
    needs: tuple[Need, ...], world: np.random.Generator, site: np.random.Generator
) -> list[NDArray[np.float64]]:
    """Log-odds of each entry of each need: place in the list, the world's taste, the site's."""
    found = []
    for need in needs:
        count = len(need.entries)
        zipf = 2.0 - 1.3 * np.log(np.arange(1, count + 1))
        found.append(zipf + world.normal(0.0, 0.4, count) + site.normal(0.0, 0.5, count))
    return found


def _draw_onsets(content: Content, needs: tuple[Need, ...], place: Site) -> NDArray[np.float64]:
    """Age at the onset of each need, NaN where a subject has it not within the window."""
    subjects = place.ages.size
    onsets = np.full((subjects, len(needs)), np.nan)
    logits = place.mix + np.zeros((subjects, 1))
    earliest = np.zeros_like(logits)
    numbers = {need.key: k for k, need in enumerate(needs)}
    for k, need in enumerate(needs):
        if need.key == EVERYDAY:
            continue
        loads = np.array([need.traits.get(name, 0.0) for name in content.traits])
        logit = logits[:, k] + need.odds + place.traits @ loads
        age = place.rng.normal(need.age, need.spread, subjects) - 1.5 * place.traits[:, 0]
        age = np.maximum(age, earliest[:, k])
        has = place.rng.random(subjects) < 1.0 / (1.0 + np.exp(-logit))
        has &= age < place.ages + WINDOW_YEARS
        onsets[has, k] = age[has]
        for child, weight in need.leads.items():
            lag = place.rng.exponential(2.5, subjects)
            j = numbers[child]
            logits[has, j] += weight
            earliest[has, j] = np.maximum(earliest[has, j], (age + lag)[has])
    return onsets


def _course(
    need: Need,
    onset: NDArray[np.float64],
    popularity: NDArray[np.float64],
    place: Site,
    memory_years: float,
) -> Events:
    """Events of one need; `onset` is in years since the window began, NaN where it is absent."""
    subjects = np.flatnonzero(~np.isnan(onset))
    shape = (subjects.size, len(need.entries))
    stages = np.array([entry.stage for entry in need.entries])
    years = onset[subjects, None] + stages * place.pace[subjects, None]
    years = years + place.rng.exponential(0.25, shape)
    taken = place.rng.random(shape) < 1.0 / (1.0 + np.exp(-popularity))
    recalled = place.rng.random(shape) < np.exp(np.minimum(years, 0.0) / memory_years)
    taken &= recalled & (years < WINDOW_YEARS)
    years = np.where(years < 0.0, place.rng.random(shape) * 0.2, years)
    rows, columns = np.nonzero(taken)
    items = np.array([entry.item for entry in need.entries], dtype=np.int64)
    return Events(subjects=subjects[rows], items=items[columns], years=years[rows, columns])


def _complete(
    content: Content,
    everyday: Need,
    special: list[Events],
    popularity: NDArray[np.float64],
    place: Site,
) -> Events:
    """Add incidental and everyday items, and hold the number of interactions in its range."""
    least, most = content.interactions
    count = place.ages.size
    events = _join([*special, _incidental(content, place)])
    events = _distinct(events, len(parse(content)[0]))
    events = _thin(events, count, most - 3, place.rng)
    has = np.bincount(events.subjects, minlength=count)
    wanted = np.maximum(1 + place.rng.poisson(1.0, count), least - has)
    wanted = np.minimum(wanted, most - has)
    noise = place.rng.gumbel(size=(count, len(everyday.entries)))
    ranks = np.argsort(np.argsort(-(0.5 * popularity + noise), axis=1), axis=1)
    subjects, columns = np.nonzero(ranks < wanted[:, None])
    items = np.array([entry.item for entry in everyday.entries], dtype=np.int64)[columns]
    years = place.rng.random(subjects.size) ** 3 * EVERYDAY_YEARS
    return _join([events, Events(subjects=subjects, items=items, years=years)])


def _incidental(content: Content, place: Site) -> Events:
    """A few items without a reason: what makes records messy. Everyday items are not among them."""
    items, needs = parse(content)
    everyday = {entry.item for need in needs if need.key == EVERYDAY for entry in need.entries}
    choices = np.array([item for item in range(len(items)) if item not in everyday])
    subjects = np.repeat(np.arange(place.ages.size), place.rng.poisson(0.3, place.ages.size))
    return Events(
        subjects=subjects,
        items=place.rng.choice(choices, subjects.size),
        years=place.rng.random(subjects.size) * WINDOW_YEARS,
    )


def _join(parts: list[Events]) -> Events:
    return Events(
        subjects=np.concatenate([part.subjects for part in parts]),
        items=np.concatenate([part.items for part in parts]),
        years=np.concatenate([part.years for part in parts]),
    )


def _distinct(events: Events, items: int) -> Events:
    """The earliest event of each subject and item."""
    order = np.lexsort((events.years, events.subjects))
    pairs = (events.subjects * items + events.items)[order]
    return _take(events, order[np.unique(pairs, return_index=True)[1]])


def _thin(events: Events, subjects: int, most: int, rng: np.random.Generator) -> Events:
    """At most `most` events a subject, chosen at random."""
    order = np.lexsort((rng.random(events.subjects.size), events.subjects))
    counts = np.bincount(events.subjects, minlength=subjects)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    return _take(events, order[np.arange(order.size) - starts < most])


def _take(events: Events, rows: NDArray[np.int64]) -> Events:
    return Events(
        subjects=events.subjects[rows], items=events.items[rows], years=events.years[rows]
    )
