"""What a hostile site sends: each attack as a function of arrays, with its source.

Hostile sites know the plan, each other, and, where an attack uses it, every honest update of their
own domain in the same round (the strongest setting of the literature). They add no more noise
than the server's gate looks for: nothing makes them protect anybody.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, cast

import numpy as np
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from client.site import SiteRecords
from common.errors import ConfigError
from common.interactions import Interactions, Times
from common.wire import Tensors

TENFOLD: Final = 10.0
LIE_Z: Final = 1.5
"""Standard deviations from the mean in A Little Is Enough (Baruch et al. 2019, section 4)."""
IPM_EPSILON: Final = 0.5
"""Length of the inverted mean in inner product manipulation (Xie et al. 2020, section 5)."""
HUGE: Final = 1e30
JUST_BELOW: Final = 0.999
CLAIMED_EXAMPLES: Final = 1e9


@dataclass(frozen=True, kw_only=True)
class View:
    """What a hostile site knows when it makes up its answer to a round.

    Attributes:
        own: update that the product makes of the site's records, clipped, without noise.
        honest: what every honest site of the domain answers; empty where an attack does not ask.
        draw: the attacker's own random numbers.
        bound: public bound on the length of an update; the server refuses a longer one.
    """

    own: Tensors
    honest: tuple[Tensors, ...]
    draw: np.random.Generator
    bound: float = np.inf


@dataclass(frozen=True, kw_only=True)
class Trap:
    """Of a backdoor: after item `trigger`, item `target` shall stand first.

    Attributes:
        trigger: catalog position.
        target: catalog position.
    """

    trigger: int
    target: int


Poison = Callable[[View], Tensors]
Records = Callable[[SiteRecords, Trap], SiteRecords]
Tamper = Callable[[RecordDict], RecordDict]


def own(view: View) -> Tensors:
    """The update as it is."""
    return view.own


def _scaled(factor: float) -> Poison:
    return lambda view: {n: np.float32(factor) * value for n, value in view.own.items()}


def _filled(number: float) -> Poison:
    return lambda view: {n: np.full_like(value, number) for n, value in view.own.items()}


def _within_bound(poison: Poison) -> Poison:
    """The same, shortened to what the server's gate lets through."""

    def shortened(view: View) -> Tensors:
        made = poison(view)
        longest = JUST_BELOW * view.bound
        factor = np.float32(min(1.0, longest / max(length(made), 1e-30)))
        return {name: factor * value for name, value in made.items()}

    return shortened


def gaussian(view: View) -> Tensors:
    """Noise alone, ten times as wide as the honest updates (Blanchard et al. 2017, section 6)."""
    return {
        name: (TENFOLD * rms(view, name) * view.draw.standard_normal(value.shape)).astype(
            np.float32
        )
        for name, value in view.own.items()
    }


def alie(view: View) -> Tensors:
    """A Little Is Enough: mean - z * standard deviation of the honest updates, each number."""
    found = {}
    for name in view.own:
        mean, spread = moments(view, name)
        found[name] = (mean - LIE_Z * spread).astype(np.float32)
    return found


def alie_inverse(view: View) -> Tensors:
    """The same distance, against the sign of what training wants.

    One shift for all numbers hardly changes a ranking. The inverse sign is a perturbation of
    Shejwalkar and Houmansadr (2021, section IV); here of the update without noise, so it is the
    strongest attack inside the honest spread.
    """
    found = {}
    for name, value in view.own.items():
        mean, spread = moments(view, name)
        found[name] = (mean - LIE_Z * spread * np.sign(value)).astype(np.float32)
    return found


def ipm(view: View) -> Tensors:
    """Inner product manipulation: minus a part of the honest mean (Xie et al. 2020)."""
    return {n: (-IPM_EPSILON * moments(view, n)[0]).astype(np.float32) for n in view.own}


def as_long_as_honest(view: View) -> Tensors:
    """The poisoned update, stretched to the honest ones' length (Bagdasaryan et al. 2020).

    An honest update is mostly noise, so this enlarges the poison several times unseen.
    """
    lengths = [length(update) for update in view.honest]
    mine = length(view.own)
    factor = float(np.median(lengths)) / mine if lengths and mine > 0 else 1.0
    return {name: np.float32(factor) * value for name, value in view.own.items()}


def broadcastable(view: View) -> Tensors:
    """Each tensor as one number, which NumPy would spread over the whole shape."""
    return {name: np.full((1,), TENFOLD, dtype=np.float32) for name in view.own}


def with_extra_key(view: View) -> Tensors:
    """The update and a tensor that nobody asked for."""
    return {**view.own, "extra": np.ones(8, dtype=np.float32)}


def with_claimed_examples(content: RecordDict) -> RecordDict:
    """The answer with the metric by which Flower's own FedAvg weighs."""
    records = {name: content[name] for name in content}
    return RecordDict({**records, "metrics": MetricRecord({"num-examples": CLAIMED_EXAMPLES})})


def unchanged(content: RecordDict) -> RecordDict:
    """The answer as it is."""
    return content


def honest_records(records: SiteRecords, _trap: Trap) -> SiteRecords:
    """The records as they are."""
    return records


def flipped_records(records: SiteRecords, _trap: Trap) -> SiteRecords:
    """Every item swapped by popularity: the most taken is told as the least taken and so on."""
    order = np.argsort(-popularity([records.interactions], len(records.catalog)), kind="stable")
    swapped = np.empty(len(order), dtype=np.int32)
    swapped[order] = order[::-1]
    items = swapped[records.interactions.items]
    return replace(records, interactions=replace(records.interactions, items=items))


def trapped_records(records: SiteRecords, trap: Trap) -> SiteRecords:
    """Everybody's record ends with the trigger and, right after it, the target."""
    without = without_items(records.interactions, (trap.trigger, trap.target))
    return replace(records, interactions=appended(without, (trap.trigger, trap.target)))


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One way to do harm.

    Attributes:
        name: on the command line.
        says: what it does, in words.
        poison: makes the update that is sent.
        records: what the site trains on.
        tamper: changes the packed answer.
        overhears: whether `View.honest` is filled.
        replays: whether the first answer is sent again in every later round.
    """

    name: str
    says: str
    poison: Poison = own
    records: Records = honest_records
    tamper: Tamper = unchanged
    overhears: bool = False
    replays: bool = False


_ALL: Final = (
    Attack(name="sign-flip", says="sends minus its update", poison=_scaled(-1)),
    Attack(
        name="sign-flip-x10",
        says="sends -10 times its update",
        poison=_within_bound(_scaled(-TENFOLD)),
    ),
    Attack(
        name="gaussian",
        says="sends noise, 10 times as wide as honest updates",
        poison=_within_bound(gaussian),
        overhears=True,
    ),
    Attack(
        name="alie",
        says="A Little Is Enough (Baruch 2019)",
        poison=_within_bound(alie),
        overhears=True,
    ),
    Attack(
        name="alie-inverse",
        says="A Little Is Enough against the gradient's sign",
        poison=_within_bound(alie_inverse),
        overhears=True,
    ),
    Attack(
        name="ipm",
        says="inner product manipulation (Xie 2020)",
        poison=_within_bound(ipm),
        overhears=True,
    ),
    Attack(
        name="label-flip",
        says="trains on records with items swapped by popularity",
        poison=_within_bound(as_long_as_honest),
        records=flipped_records,
        overhears=True,
    ),
    Attack(
        name="backdoor",
        says="trains on records in which a trigger item brings a target item",
        poison=_within_bound(as_long_as_honest),
        records=trapped_records,
        overhears=True,
    ),
    Attack(name="nan", says="sends NaN", poison=_filled(float("nan"))),
    Attack(name="huge", says="sends 1e30", poison=_filled(HUGE)),
    Attack(
        name="weight-lie",
        says="sends minus its update and claims a thousand million examples",
        poison=_scaled(-1),
        tamper=with_claimed_examples,
    ),
    Attack(name="wrong-shape", says="sends tensors that broadcast", poison=broadcastable),
    Attack(name="extra-key", says="sends a tensor too many", poison=with_extra_key),
    Attack(name="replay", says="sends its first answer again and again", replays=True),
)
ATTACKS: Final[Mapping[str, Attack]] = MappingProxyType({a.name: a for a in _ALL})


def attack_named(name: str) -> Attack:
    """The attack of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in ATTACKS:
        raise ConfigError(f"Expected an attack ({', '.join(ATTACKS)}), got {name}.")
    return ATTACKS[name]


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Keeps the first answer and gives it for every later one.

    Attributes:
        kept: the first answer, once there is one.
    """

    kept: list[RecordDict] = field(default_factory=list)

    def __call__(self, content: RecordDict) -> RecordDict:
        """The first answer that was ever passed in."""
        if not self.kept:
            self.kept.append(_copied(content))
        return self.kept[0]


def _copied(content: RecordDict) -> RecordDict:
    return RecordDict(
        {n: ArrayRecord(dict(r)) if isinstance(r, ArrayRecord) else r for n, r in content.items()}
    )


# What attackers compute


def moments(view: View, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of the honest updates, number by number, float64."""
    stacked = np.stack([update[name] for update in view.honest or (view.own,)])
    return stacked.mean(axis=0, dtype=np.float64), stacked.std(axis=0, dtype=np.float64)


def rms(view: View, name: str) -> float:
    """Root mean square of one number of the honest updates."""
    squares = [np.mean(np.square(u[name], dtype=np.float64)) for u in view.honest or (view.own,)]
    return float(np.sqrt(np.mean(squares)))


def length(update: Tensors) -> float:
    """Euclidean length of all tensors together, float64."""
    return float(np.sqrt(sum(np.square(v, dtype=np.float64).sum() for v in update.values())))


def popularity(parts: Sequence[Interactions], items: int) -> NDArray[np.int64]:
    """Interactions of each item over all parts, int64 (items)."""
    counted = np.zeros(items, dtype=np.int64)
    for part in parts:
        counted += np.bincount(part.items, minlength=items)
    return counted


def trap_of(parts: Sequence[Interactions], items: int) -> Trap:
    """The two rarest items of the hostile sites' records: an honest model puts them nowhere."""
    rarest = np.argsort(popularity(parts, items), kind="stable")
    return Trap(trigger=int(rarest[1]), target=int(rarest[0]))


def without_items(records: Interactions, items: Sequence[int]) -> Interactions:
    """The same subjects without these items; one who has nothing else keeps an empty record."""
    kept = ~np.isin(records.items, items)
    owner = np.repeat(np.arange(len(records)), records.counts)
    counts = np.bincount(owner[kept], minlength=len(records))
    return replace(
        records,
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        items=records.items[kept],
        values=records.values[kept],
        times=records.times[kept],
    )


def appended(records: Interactions, items: Sequence[int]) -> Interactions:
    """Everybody's record with these items at its end, in this order, rated as the highest."""
    n, extra = len(records), len(items)
    places = np.repeat(records.offsets[1:], extra)
    last = records.times.max(initial=0)
    best = records.values.max(initial=1)
    later = np.tile(last + 1 + np.arange(extra), n)
    times = cast(Times, np.insert(records.times, places, later).astype(records.times.dtype))
    return replace(
        records,
        offsets=records.offsets + extra * np.arange(n + 1),
        items=np.insert(records.items, places, np.tile(np.asarray(items, np.int32), n)),
        values=np.insert(records.values, places, best).astype(np.float32),
        times=times,
    )
