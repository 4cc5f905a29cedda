import random
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.errors import ConfigError, OrderError, SecurityRefused
from server.aggregation import RULES, default_rule, make_aggregator, require_rule

Update = dict[str, np.ndarray]
BOUND = 1e6
MEANS = ("mean", "inverse-variance")
ROBUST = tuple(rule for rule in RULES if rule not in MEANS)
KEPT_UNDER_SHIFT = tuple(rule for rule in RULES if rule != "norm-bounded")
MIDDLES = ("trimmed-mean", "median", "multi-krum", "geometric-median")

NUMBERS = st.floats(-1000, 1000, width=32)
UPDATE = st.fixed_dictionaries(
    {"map": hnp.arrays(np.float32, (2, 3), elements=NUMBERS)},
    optional={
        "bias.care": hnp.arrays(np.float32, 4, elements=NUMBERS),
        "bias.bank": hnp.arrays(np.float32, 2, elements=NUMBERS),
    },
)
SITE = st.tuples(UPDATE, st.floats(0.01, 100), st.floats(0.01, 100))
SITES = st.lists(SITE, min_size=1, max_size=8)


def aggregate(
    rule: str,
    updates: Mapping[str, Update],
    *,
    weights: Mapping[str, float] | None = None,
    variances: Mapping[str, float] | None = None,
    tolerate: int = 2,
    bound: float = BOUND,
) -> Update:
    aggregator = make_aggregator(rule, tolerate=tolerate, bound=bound)
    for site, update in updates.items():
        aggregator.add(
            site,
            update,
            weight=(weights or {}).get(site, 1.0),
            variance=(variances or {}).get(site, 1.0),
        )
    return aggregator.result()


def of(rule: str, drawn: Sequence[tuple[Update, float, float]], order: Sequence[int]) -> Update:
    return aggregate(
        rule,
        {f"site-{i}": drawn[i][0] for i in order},
        weights={f"site-{i}": drawn[i][1] for i in order},
        variances={f"site-{i}": drawn[i][2] for i in order},
    )


def rows(*values: Sequence[float]) -> dict[str, Update]:
    return {f"site-{i}": {"map": np.array(v, np.float32)} for i, v in enumerate(values)}


# ---- every rule


@pytest.mark.parametrize("rule", RULES)
@given(drawn=SITES, seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_the_order_of_sites_changes_no_bit(rule: str, drawn: list, seed: int) -> None:
    order = list(range(len(drawn)))
    random.Random(seed).shuffle(order)
    one, two = of(rule, drawn, range(len(drawn))), of(rule, drawn, order)
    assert list(one) == list(two)
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)


@pytest.mark.parametrize("rule", RULES)
@given(drawn=SITES)
@settings(max_examples=30, deadline=None)
def test_each_tensor_that_a_site_sent_has_one_float64_result_of_its_shape(
    rule: str, drawn: list
) -> None:
    found = of(rule, drawn, range(len(drawn)))
    assert set(found) == {name for update, _, _ in drawn for name in update}
    for name, value in found.items():
        assert value.dtype == np.float64
        assert value.shape == next(u[name].shape for u, _, _ in drawn if name in u)


@pytest.mark.parametrize("rule", RULES)
@given(update=UPDATE, times=st.integers(1, 7))
@settings(max_examples=20, deadline=None)
def test_sites_that_agree_get_what_they_sent(rule: str, update: dict, times: int) -> None:
    found = aggregate(rule, {f"site-{i}": update for i in range(times)})
    for name, value in found.items():
        np.testing.assert_allclose(value, update[name].astype(np.float64), rtol=1e-12, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
@given(drawn=SITES)
@settings(max_examples=30, deadline=None)
def test_a_result_stays_between_the_smallest_and_the_largest(rule: str, drawn: list) -> None:
    for name, value in of(rule, drawn, range(len(drawn))).items():
        held = np.stack([u[name].astype(np.float64) for u, _, _ in drawn if name in u])
        if rule == "norm-bounded":  # shortening moves towards zero
            held = np.concatenate([held, np.zeros_like(held[:1])])
        assert (value >= held.min(0) - 1e-5).all()
        assert (value <= held.max(0) + 1e-5).all()


@pytest.mark.parametrize("rule", KEPT_UNDER_SHIFT)
@given(
    values=hnp.arrays(np.float32, (9, 5), elements=st.integers(-100, 100)),
    shift=st.integers(-1000, 1000),
)
@settings(max_examples=30, deadline=None)
def test_updates_moved_together_move_the_result_as_far(
    rule: str, values: np.ndarray, shift: int
) -> None:
    here = aggregate(rule, rows(*values))["map"]
    there = aggregate(rule, rows(*(values + np.float32(shift))))["map"]
    np.testing.assert_allclose(there, here + shift, atol=1e-4)


@pytest.mark.parametrize("rule", RULES)
@given(drawn=SITES, power=st.integers(-30, 30))
@settings(max_examples=20, deadline=None)
def test_only_the_ratio_of_weights_matters(rule: str, drawn: list, power: int) -> None:
    scaled = [(u, w * 2.0**power, v * 2.0**power) for u, w, v in drawn]
    one, two = of(rule, drawn, range(len(drawn))), of(rule, scaled, range(len(drawn)))
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_domains_do_not_mix_and_share_what_both_sent(rule: str) -> None:
    updates = {
        f"{domain}-{i}": {
            "map": np.ones(2, np.float32),
            f"bias.{domain}": np.full(3, value, np.float32),
        }
        for domain, value in (("care", 4), ("bank", 7))
        for i in range(3)
    }
    found = aggregate(rule, updates)
    np.testing.assert_allclose(found["bias.care"], [4, 4, 4])
    np.testing.assert_allclose(found["bias.bank"], [7, 7, 7])
    np.testing.assert_allclose(found["map"], [1, 1])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_a_bad_number_is_refused_by_site_and_leaves_no_trace(rule: str, bad: float) -> None:
    good = rows([1, 2], [2, 2], [3, 2], [4, 3], [5, 3])
    aggregator = make_aggregator(rule, tolerate=1, bound=BOUND)
    for site, update in good.items():
        aggregator.add(site, update, weight=1.0, variance=1.0)
    spoilt = {"map": np.array([1, bad], np.float32), "bias": np.ones(1, np.float32)}
    with pytest.raises(SecurityRefused, match="from site hostile") as refused:
        aggregator.add("hostile", spoilt, weight=1.0, variance=1.0)
    assert "\n" not in str(refused.value)
    found, wanted = aggregator.result(), aggregate(rule, good, tolerate=1)
    assert list(found) == ["map"]
    assert found["map"].tobytes() == wanted["map"].tobytes()
    aggregator.add("hostile", good["site-0"], weight=1.0, variance=1.0)  # not taken for a second


@pytest.mark.parametrize("rule", RULES)
def test_another_shape_is_refused_and_leaves_no_trace(rule: str) -> None:
    aggregator = make_aggregator(rule, tolerate=1, bound=BOUND)
    aggregator.add("a", {"map": np.ones((2, 1), np.float32)}, weight=1.0, variance=1.0)
    with pytest.raises(SecurityRefused, match=r"shape \(2, 1\)"):
        aggregator.add("b", {"map": np.ones(2, np.float32)}, weight=1.0, variance=1.0)
    assert aggregator.result()["map"].tolist() == [[1], [1]]


@pytest.mark.parametrize("rule", RULES)
def test_a_second_update_of_a_site_and_a_result_of_nothing_are_order_errors(rule: str) -> None:
    aggregator = make_aggregator(rule, tolerate=1, bound=BOUND)
    with pytest.raises(OrderError, match="at least one update"):
        aggregator.result()
    aggregator.add("a", {"map": np.ones(2, np.float32)}, weight=1.0, variance=1.0)
    with pytest.raises(OrderError, match="one update of site a"):
        aggregator.add("a", {"map": np.ones(2, np.float32)}, weight=1.0, variance=1.0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("weight", [0.0, -1.0, np.nan, np.inf])
def test_a_weight_or_variance_that_is_no_positive_number_is_refused(
    rule: str, weight: float
) -> None:
    aggregator = make_aggregator(rule, tolerate=1, bound=BOUND)
    with pytest.raises(ConfigError):
        aggregator.add("a", {"map": np.ones(2, np.float32)}, weight=weight, variance=weight)


@pytest.mark.parametrize("rule", RULES)
def test_an_update_changed_after_it_was_added_changes_nothing(rule: str) -> None:
    aggregator = make_aggregator(rule, tolerate=1, bound=BOUND)
    update = {"map": np.ones(2, np.float32)}
    aggregator.add("a", update, weight=2.0, variance=1.0)
    assert update["map"].tolist() == [1, 1]
    update["map"][:] = 9
    assert aggregator.result()["map"].tolist() == [1, 1]


# ---- hostile sites


def hostile_among_honest(
    rule: str,
    honest: np.ndarray,
    hostile: np.ndarray,
    *,
    weight: float = 1.0,
    bound: float = 9e29,
) -> np.ndarray:
    # Hostile sites come first by name, so that no tie goes to an honest one by luck.
    updates = {f"a-{i}": {"map": row} for i, row in enumerate(hostile)}
    weights = dict.fromkeys(updates, weight)
    updates |= {f"b-{i}": {"map": row} for i, row in enumerate(honest)}
    return aggregate(rule, updates, weights=weights, tolerate=len(hostile), bound=bound)["map"]


SIZES = st.floats(-(2.0**98), 2.0**98, width=32)
ATTACKS = st.one_of(
    hnp.arrays(np.float32, (2, 4), elements=SIZES),
    hnp.arrays(np.float32, (1, 4), elements=SIZES).map(lambda row: np.repeat(row, 2, axis=0)),
)


@pytest.mark.parametrize("rule", ROBUST)
@given(
    honest=hnp.arrays(np.float32, (5, 4), elements=st.floats(-1, 1, width=16)),
    hostile=ATTACKS,
    weight=st.sampled_from([0.1, 1.0, 30.0]),
)
@settings(max_examples=80, deadline=None)
def test_hostile_updates_of_any_size_move_a_robust_rule_by_a_bounded_amount(
    rule: str, honest: np.ndarray, hostile: np.ndarray, weight: float
) -> None:
    found = hostile_among_honest(rule, honest, hostile, weight=weight)
    if rule in {"trimmed-mean", "median"}:
        assert (found >= honest.min(0) - 1e-6).all()
        assert (found <= honest.max(0) + 1e-6).all()
        return
    centre = honest.astype(np.float64).mean(0)
    radius = np.linalg.norm(honest - centre, axis=1).max()
    # Lemma 2.1 of Minsker 2015 for the geometric median with a share of 2 / 7; a row that Krum
    # selects is within sqrt(neighbours) diameters of an honest one; cut rows are no longer than
    # an honest one.
    share = 2 / 7
    reach = {
        "geometric-median": radius * 2 * (1 - share) / (1 - 2 * share),
        "multi-krum": radius * (1 + 2 * np.sqrt(3)),
        "norm-bounded": 2 * np.linalg.norm(honest, axis=1).max(),
    }[rule]
    assert np.linalg.norm(found - centre) <= reach * 1.001 + 1e-4


@pytest.mark.parametrize("rule", MEANS)
@pytest.mark.parametrize("size", [1e3, 1e9, 1e20])
def test_one_hostile_update_moves_the_plain_mean_without_bound(rule: str, size: float) -> None:
    found = hostile_among_honest(
        rule, np.zeros((9, 4), np.float32), np.full((1, 4), size, np.float32), bound=2 * size
    )
    np.testing.assert_allclose(found, size / 10, rtol=1e-6)


@pytest.mark.parametrize("rule", MIDDLES)
def test_a_tenfold_sign_flip_of_two_in_ten_leaves_the_direction_of_the_honest(rule: str) -> None:
    rng = np.random.default_rng(3)
    truth = rng.standard_normal(2000)
    honest = (truth + rng.standard_normal((8, 2000))).astype(np.float32)
    flipped = -10 * (truth + rng.standard_normal((2, 2000))).astype(np.float32)
    found = hostile_among_honest(rule, honest, flipped)
    plain = hostile_among_honest("mean", honest, flipped, bound=1e4)
    wanted = honest.mean(0)
    assert cosine(found, wanted) > 0.9
    assert cosine(plain, wanted) < 0


def test_norm_bounding_takes_the_size_out_of_a_sign_flip_though_not_the_sign() -> None:
    rng = np.random.default_rng(3)
    truth = rng.standard_normal(2000)
    honest = (truth + rng.standard_normal((8, 2000))).astype(np.float32)
    flipped = -10 * (truth + rng.standard_normal((2, 2000))).astype(np.float32)
    assert cosine(hostile_among_honest("norm-bounded", honest, flipped), honest.mean(0)) > 0.9


def cosine(one: np.ndarray, two: np.ndarray) -> float:
    return float(one @ two / np.linalg.norm(one) / np.linalg.norm(two))


@pytest.mark.parametrize("answered", [9, 8, 7])
def test_with_drop_outs_two_are_still_trimmed(answered: int) -> None:
    rng = np.random.default_rng(answered)
    values = rng.standard_normal((answered, 50)).astype(np.float32)
    values[:2] = 1e5
    found = aggregate("trimmed-mean", rows(*values), tolerate=2)["map"]
    wanted = np.sort(values.astype(np.float64), axis=0)[2 : answered - 2].mean(0)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert np.abs(found).max() < 4


def test_a_fraction_of_the_same_sites_would_have_kept_an_attacker() -> None:
    # Two of nine as a share trims one of seven; the second attacker then moves the mean.
    values = np.zeros((7, 1), np.float32)
    values[:2] = 1e5
    share = np.sort(values, axis=0)[int(2 / 9 * 7) : 7 - int(2 / 9 * 7)].mean()
    assert share > 1e4
    assert aggregate("trimmed-mean", rows(*values), tolerate=2)["map"] == 0


@pytest.mark.parametrize("rule", ROBUST)
def test_a_tensor_that_one_site_sent_is_that_sites(rule: str) -> None:
    found = aggregate(rule, rows([3, -4]), tolerate=2)["map"]
    np.testing.assert_allclose(found, [3, -4])


@pytest.mark.parametrize("seed", range(6))
def test_distances_are_those_of_all_tensors_that_the_same_sites_sent(seed: int) -> None:
    # Each hostile tensor alone is close to the others; the update as a whole is not.
    rng = np.random.default_rng(seed)
    updates = {
        f"site-{i}": {f"part-{j}": rng.normal(size=4).astype(np.float32) for j in range(50)}
        for i in range(8)
    }
    updates["site-0"] = {name: value + np.float32(0.9) for name, value in updates["site-0"].items()}
    aggregator = make_aggregator("multi-krum", tolerate=1, bound=BOUND)
    for site, update in updates.items():
        aggregator.add(site, update, weight=1.0, variance=1.0)
    honest = [updates[f"site-{i}"]["part-0"] for i in range(1, 8)]
    np.testing.assert_allclose(aggregator.result()["part-0"], np.mean(honest, axis=0), rtol=1e-5)


# ---- the choice of a rule


@pytest.mark.parametrize("rule", ROBUST)
@pytest.mark.parametrize("tolerate", [1, 2, 5])
def test_a_robust_rule_needs_two_f_and_three_sites(rule: str, tolerate: int) -> None:
    needed = 2 * tolerate + 3
    require_rule(rule, sites=needed, tolerate=tolerate)
    with pytest.raises(ConfigError, match=f"at least {needed} sites.*got {needed - 1}") as refused:
        require_rule(rule, sites=needed - 1, tolerate=tolerate)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("rule", MEANS)
def test_a_mean_takes_any_number_of_sites(rule: str) -> None:
    require_rule(rule, sites=1, tolerate=3)


@pytest.mark.parametrize(
    ("sites", "tolerate", "rule"),
    [
        (7, 2, "agreement"),
        (6, 2, "mean"),
        (5, 1, "agreement"),
        (4, 1, "mean"),
        (50, 0, "mean"),
    ],
)
def test_the_default_is_agreement_where_enough_sites_take_part(
    sites: int, tolerate: int, rule: str
) -> None:
    assert default_rule(sites, tolerate) == rule
    require_rule(rule, sites=sites, tolerate=tolerate)


def test_an_unknown_rule_is_refused_with_the_one_that_was_meant() -> None:
    for refuse in (
        lambda: require_rule("trimed-mean", sites=9, tolerate=2),
        lambda: make_aggregator("trimed-mean", tolerate=2, bound=1.0),
    ):
        with pytest.raises(ConfigError, match=r"did you mean trimmed-mean\?"):
            refuse()
    with pytest.raises(ConfigError, match="0 or more"):
        require_rule("mean", sites=9, tolerate=-1)


@pytest.mark.parametrize("bound", [0.0, -1.0, np.nan, np.inf])
@pytest.mark.parametrize("rule", RULES)
def test_a_bound_that_is_no_length_is_refused(rule: str, bound: float) -> None:
    with pytest.raises(ConfigError, match="length bound"):
        make_aggregator(rule, tolerate=1, bound=bound)


# ---- the plain mean


@given(SITES)
@settings(max_examples=50, deadline=None)
def test_the_mean_is_the_weighted_one_over_the_sites_that_sent_the_tensor(drawn: list) -> None:
    for name, value in of("mean", drawn, range(len(drawn))).items():
        held = [(u[name].astype(np.float64), w) for u, w, _ in drawn if name in u]
        wanted = sum(u * w for u, w in held) / sum(w for _, w in held)
        np.testing.assert_allclose(value, wanted, rtol=1e-12, atol=BOUND * 2.0**-43)
