import signal
import threading
import time
from collections.abc import Callable

import pytest

from common.errors import ConfigError
from common.plan import FederationPlan, PrivacyPlan, RunPlan
from common.textpath import ActivationStore
from simulations.baselines import Baselines, parse_baselines
from simulations.evaluation import make_examiner, questions
from simulations.grades import Grades
from simulations.results import METHODS
from simulations.scenario import Consortium
from tests.models import backbone_of, catalog_of, recommender_plan, records_of


def plan_of(rounds: int) -> RunPlan:
    return RunPlan(
        recommender=recommender_plan(top_layers=0),
        privacy=PrivacyPlan(epsilon=8.0),
        federation=FederationPlan(rounds=rounds),
    )


def consortium_of(*domains: str) -> Consortium:
    made = Consortium()
    for number, domain in enumerate(domains):
        for site in (1, 2):
            records = records_of([3 + i % 4 for i in range(24)], seed=10 * number + site)
            made.add(f"{domain}-{site}", domain, catalog_of(24, domain=domain), records)
    return made


def baselines_of(consortium: Consortium, *, rounds: int = 2) -> tuple[Baselines, Grades]:
    plan, store = plan_of(rounds), ActivationStore()
    examiners = {
        domain: make_examiner(
            questions({n: consortium.splits[n] for n in consortium.sites_of(domain)}, 24),
            catalog,
            plan=plan.recommender,
            backbone=backbone_of("bert"),
            store=store,
        )
        for domain, catalog in consortium.catalogs.items()
    }
    made = Baselines(plan=plan, consortium=consortium, store=store, noise_seed=3)
    return made, Grades(examiners)


class Bar:
    """Counts what the work says it has done."""

    def __init__(self) -> None:
        self.total = 0
        self.done = 0
        self._lock = threading.Lock()

    def start(self, total: int) -> Callable[[int], None]:
        self.total += total
        return self.advance

    def advance(self, steps: int) -> None:
        with self._lock:
            self.done += steps


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("all", set(METHODS) - {"federated"}),
        ("none", set()),
        ("sasrec", {"sasrec"}),
        ("local, central ,popularity", {"local", "central", "popularity"}),
        ("federated,zero_shot", {"zero_shot"}),
    ],
)
def test_names_on_the_command_line_become_methods(given: str, found: set[str]) -> None:
    assert parse_baselines(given) == found


@pytest.mark.parametrize("given", ["", "ALL", "local,,central", "sas rec", "single"])
def test_a_name_that_is_none_is_refused_with_those_that_are(given: str) -> None:
    with pytest.raises(ConfigError, match="central_non_private, sasrec, got '"):
        parse_baselines(given)


def test_every_baseline_of_two_domains_is_run_and_the_bar_ends_full() -> None:
    made, grades = baselines_of(consortium_of("care", "bank"))
    bar = Bar()
    made.run(parse_baselines("local,central,central_non_private"), grades, bar.start)
    # Two rounds each: central twice, one domain alone twice, four sites.
    assert bar.total == bar.done == 2 * (2 + 2 + 4)
    for domain in ("care", "bank"):
        assert set(grades.domain(domain).metrics) == {"local", "central", "central_non_private"}
        site = grades.site(f"{domain}-1", domain)
        assert set(site) == {"local", "central", "central_non_private"}


def test_nothing_wanted_starts_no_bar() -> None:
    made, grades = baselines_of(consortium_of("care"))
    bar = Bar()
    made.run(frozenset({"zero_shot", "popularity"}), grades, bar.start)
    assert bar.total == 0
    assert set(grades.domain("care").metrics) == {"zero_shot", "popularity"}


def test_the_central_run_is_offered_everybody_s_records_once() -> None:
    consortium = consortium_of("care", "bank")
    made, _ = baselines_of(consortium)
    pooled = made._pooled("care")
    parts = [consortium.splits[name].train for name in ("care-1", "care-2")]
    assert (pooled.name, pooled.domain, pooled.declared_subjects) == ("care-all", "care", 48)
    assert len(pooled.interactions) == sum(map(len, parts))
    assert pooled.interactions.items.tolist() == [i for p in parts for i in p.items.tolist()]


def test_a_seed_repeats_every_baseline() -> None:
    found = []
    for _ in range(2):
        made, grades = baselines_of(consortium_of("care", "bank"))
        made.run(parse_baselines("local,central,sasrec"), grades, Bar().start)
        found.append([grades.domain(d) for d in ("care", "bank")])
    assert found[0] == found[1]


def test_an_error_in_one_baseline_ends_the_others_at_their_next_step() -> None:
    made, grades = baselines_of(consortium_of("care"), rounds=5_000)

    def start(_total: int) -> Callable[[int], None]:
        def advance(_steps: int) -> None:
            raise ConfigError("the bar broke")

        return advance

    before = time.monotonic()
    with pytest.raises(ConfigError, match="the bar broke"):
        made.run(frozenset({"local", "central"}), grades, start)
    assert time.monotonic() - before < 20
    assert not [t for t in threading.enumerate() if t.name.startswith("baseline")]


def test_an_interrupt_of_the_main_thread_ends_the_baselines() -> None:
    made, grades = baselines_of(consortium_of("care"), rounds=9_000)
    bar, main = Bar(), threading.get_ident()

    def interrupt() -> None:
        while bar.done < 3:
            time.sleep(0.01)
        # What `common.interruption` does: Polars has set SA_RESTART.
        signal.siginterrupt(signal.SIGINT, True)
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        made.run(frozenset({"local"}), grades, bar.start)
    assert bar.done < bar.total
    assert not [t for t in threading.enumerate() if t.name.startswith("baseline")]
