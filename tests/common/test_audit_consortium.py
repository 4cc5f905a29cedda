"""Several ledgers: what their receipts say together, and what a person at several sites spends."""

from dataclasses import replace
from pathlib import Path

import pytest

from common.accounting import compose_sites, spent
from common.audit import LedgerInput, audit
from common.audit_consortium import event_spent
from common.mechanism import Composed
from common.receipts import Head, countersign
from common.signing import SigningKey
from tests.ledgers import CAPS, Made, Run, declare, make_consortium, make_ledger, one_round


def inputs(sites: list[Made]) -> list[LedgerInput]:
    return [LedgerInput(where=m.site, data=m.data, key=m.key.public) for m in sites]


def test_receipts_of_one_round_name_one_hash_and_it_is_computed_again(tmp_path: Path) -> None:
    sites, receipts = make_consortium(tmp_path, run=Run(rounds=3))
    found = audit(inputs(sites), receipts=receipts)
    assert found.passed
    assert (found.rounds_compared, found.rounds_recomputed) == (3, 3)
    # The last round's receipt stands in no ledger yet; the ones before are in every ledger.
    alone = audit(inputs(sites))
    assert (alone.rounds_compared, alone.rounds_recomputed) == (2, 2)
    some = audit(inputs(sites[:2]))
    assert (some.rounds_compared, some.rounds_recomputed) == (2, 0)


def test_a_server_that_shows_different_heads_is_named_in_every_ledger(tmp_path: Path) -> None:
    run, server = Run(rounds=2), SigningKey.generate()
    sites = [make_ledger(tmp_path / name, site=name, runs=()) for name in ("one", "two")]
    for made in sites:
        declare(made, run)
        one_round(made, run, 1)
    for i, made in enumerate(sites):
        # To each site the server shows another head of its neighbour.
        false = Head(site=sites[1 - i].site, seq=3, head=f"{i}" * 64)
        told = countersign([made.head, false], run=run.name, number=1, key=server)
        mine = next(receipt for receipt in told if receipt.site == made.site)
        one_round(made, run, 2, receipt=mine)
    found = audit(inputs(sites))
    assert [len(site.verdict.faults) for site in found.sites] == [0, 0]
    for site in found.sites:
        assert [(fault.seq, fault.code) for fault in site.faults] == [(4, "receipt")]
        assert "different heads" in site.faults[0].text


def test_sites_whose_ledger_is_missing_are_named(tmp_path: Path) -> None:
    sites, receipts = make_consortium(tmp_path, run=Run(rounds=2))
    found = audit(inputs(sites[:1]), receipts=receipts)
    assert set(found.strangers) == {made.site for made in sites[1:]}


def test_a_consortium_is_its_largest_site_or_the_composition_at_k_sites(tmp_path: Path) -> None:
    noises = {"a": 1.0, "b": 1.5, "c": 2.0}
    sites = [
        make_ledger(tmp_path / name, site=name, runs=(Run(noise=noise),))
        for name, noise in noises.items()
    ]
    found = audit(inputs(sites), sites_per_subject=2).together
    assert found is not None
    events = [event_spent(site.verdict) for site in audit(inputs(sites)).sites]
    expected = compose_sites(events, delta=CAPS.delta, sites_per_subject=2)
    assert found.disjoint == expected.disjoint == spent(events[0], delta=CAPS.delta)
    assert found.shared.epsilon == expected.shared.epsilon > found.disjoint.epsilon


def test_adaptive_sites_compose_by_the_filter_and_never_below_the_bounds(tmp_path: Path) -> None:
    runs = (Run(rounds=2), Run(name="run-2", rounds=2, noise=2.0))
    sites = [make_ledger(tmp_path / name, site=name, runs=runs) for name in ("a", "b")]
    found = audit(inputs(sites))
    together = found.together
    assert together is not None
    assert all(site.verdict.adaptive for site in found.sites)
    events = tuple(event_spent(site.verdict) for site in found.sites)
    fixed = spent(Composed(events=events), delta=CAPS.delta)
    assert together.shared.epsilon > fixed.epsilon
    assert "filter" in together.shared.accountant
    total = sum(site.verdict.spent.epsilon for site in found.sites)
    assert together.shared.epsilon < total


def test_adaptive_sites_of_different_orders_add_epsilons_and_deltas(tmp_path: Path) -> None:
    runs = (Run(rounds=1), Run(name="run-2", rounds=1, noise=2.0))
    budgets = {"a": CAPS, "b": replace(CAPS, epsilon=6.0)}
    sites = [make_ledger(tmp_path / n, site=n, runs=runs, caps=c) for n, c in budgets.items()]
    together = audit(inputs(sites)).together
    assert together is not None
    single = [site.verdict.spent for site in audit(inputs(sites)).sites]
    assert together.shared.epsilon == pytest.approx(sum(one.epsilon for one in single))
    assert together.shared.delta == pytest.approx(2e-5)
