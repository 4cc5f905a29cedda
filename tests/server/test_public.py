"""The best round by records that the consortium owns: its figures, early stop, resumed runs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.adapter import load_adapter, tensors_sha256
from common.catalog import write_catalog
from common.errors import ConfedError, ConfigError, DataError
from common.interactions import write_interactions
from common.release import read_release, release_path
from common.splits import leave_one_out
from common.textpath import ActivationStore
from server.checkpoint import Checkpoints
from server.options import ServerOptions
from server.public import PublicEvaluation, open_public
from server.rounds import no_phase
from simulations.evaluation import make_examiner, questions
from simulations.metrics import means, ranking_metrics
from tests.models import backbone_of, recommender_plan, records_of, site_of
from tests.server.consortium import RUN, SITES, Consortium, RoomyLedgers, Stopped, plan_of, stops_at

PUBLIC = site_of("public", subjects=60, seed=11)
CARE = SITES[:2]
CATALOGS = {"care": CARE[0].catalog.digest}
PLAN = plan_of(rounds=5, learning_rate=0.2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("public")
    write_catalog(PUBLIC.catalog, made)
    write_interactions(PUBLIC.interactions, PUBLIC.catalog, made)
    return made


def opened(folder: Path, **changed: Any) -> PublicEvaluation:
    plain: dict[str, Any] = {"backbone": backbone_of("bert"), "patience": 0, "catalogs": CATALOGS}
    plan = recommender_plan()
    return open_public(folder, changed.pop("domain", "care"), plan, **{**plain, **changed})


def scores_of(state: Path) -> dict[int, float]:
    found = Checkpoints(state / "checkpoints").newest()
    assert found is not None
    return {int(k): v for k, v in found.facts["public"]["scores"].items()}


def examined(adapters: Mapping[int, Any]) -> dict[int, float]:
    """NDCG@10 of each round by the researcher's own evaluation."""
    asked = questions({"public": leave_one_out(PUBLIC.interactions)}, len(PUBLIC.catalog))
    examiner = make_examiner(
        asked, PUBLIC.catalog, plan=PLAN.recommender, backbone=backbone_of("bert"),
        store=ActivationStore(),
    )  # fmt: skip
    return {
        number: means(ranking_metrics(examiner.top(value), asked.target))["ndcg@10"]
        for number, value in adapters.items()
        if number
    }


def test_the_best_round_by_the_public_records_is_released(folder: Path, tmp_path: Path) -> None:
    options = ServerOptions(
        out=str(tmp_path / "adapter.safetensors"),
        state=str(tmp_path / "state"),
        public=str(folder),
        public_domain="care",
    )
    made = Consortium(plan=PLAN, sites=CARE, options=options).adapters()
    wanted, scores = examined(made), scores_of(tmp_path / "state")
    assert scores == pytest.approx(wanted, abs=1e-6)
    best = min(scores, key=lambda n: (-scores[n], n))
    assert len(set(scores.values())) > 1
    told = read_release(release_path(Path(options.out)), None)
    assert (told["released_round"], told["rounds"]) == (best, 5)
    tensors, _ = load_adapter(Path(options.out))
    assert tensors_sha256(tensors) == tensors_sha256(made[best])


def run_until(
    root: Path, folder: Path, *, stop: tuple[str, int] | None = None, resume: bool = False
) -> tuple[str, dict[str, Any]]:
    """Hash of the released adapter and the release."""
    options = ServerOptions(
        out=str(root / "adapter.safetensors"), state=str(root / "state"), resume=resume,
        public=str(folder), public_domain="care", patience=1,
    )  # fmt: skip
    made = Consortium(
        plan=None if resume else plan_of(rounds=9, learning_rate=0.2),
        sites=CARE,
        options=options,
        permits=RoomyLedgers(root / "ledgers"),
        phase=no_phase if stop is None else stops_at(*stop),
    )
    made.run(RUN + resume)
    tensors, _ = load_adapter(Path(options.out))
    return tensors_sha256(tensors), read_release(release_path(Path(options.out)), None)


def test_a_run_that_stops_early_says_so_and_ends_the_same_when_it_is_resumed(
    folder: Path, tmp_path: Path
) -> None:
    wanted, told = run_until(tmp_path / "undisturbed", folder)
    assert told["ended"].startswith(f"stopped early after round {told['rounds']}")
    assert told["released_round"] == told["rounds"] - 1 < 8
    for place, phase in enumerate(("collect", "checkpoint")):
        root = tmp_path / str(place)
        with pytest.raises(Stopped):
            run_until(root, folder, stop=(phase, told["rounds"]))
        found, again = run_until(root, folder, resume=True)
        assert found == wanted
        assert {k: again[k] for k in ("ended", "rounds", "released_round")} == {
            k: told[k] for k in ("ended", "rounds", "released_round")
        }


def test_a_server_that_died_before_its_release_writes_it_and_runs_no_further_round(
    folder: Path, tmp_path: Path
) -> None:
    wanted, told = run_until(tmp_path, folder)
    for path in tmp_path.glob("adapter*"):
        path.unlink()
    before = {p: p.read_bytes() for p in tmp_path.glob("ledgers/*/ledger.jsonl")}
    found, again = run_until(tmp_path, folder, resume=True)
    assert (found, again["rounds"]) == (wanted, told["rounds"])
    assert {p: p.read_bytes() for p in before} == before


def test_killed_in_the_first_round_the_choice_begins_again(folder: Path, tmp_path: Path) -> None:
    wanted, _ = run_until(tmp_path / "undisturbed", folder)
    with pytest.raises(Stopped):
        run_until(tmp_path / "killed", folder, stop=("checkpoint", 1))
    assert run_until(tmp_path / "killed", folder, resume=True)[0] == wanted


def released(seed: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {"a": draw.standard_normal(3).astype(np.float32)}


def test_a_restored_choice_is_the_one_that_was_kept(folder: Path) -> None:
    public = opened(folder, patience=2)
    assert public.best() is None
    assert not public.stops(0)
    public.scores, public._best, public._best_round = {1: 0.2, 2: 0.1}, released(1), 1
    again = opened(folder, patience=2)
    again.restore(public.arrays(), json.loads(json.dumps(public.facts())))
    assert (again.scores, again.best_round) == (public.scores, 1)
    assert [again.stops(n) for n in (1, 2, 3)] == [False, False, True]
    fresh = opened(folder)
    fresh.restore({}, opened(folder).facts())
    assert fresh.best() is None


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"domain": "bank"}, "Expected public-domain among care, got bank"),
        ({"catalogs": {"care": "0" * 64}}, "Expected the sites' catalog of care"),
        ({"patience": -1}, "patience of 0 or more"),
    ],
)
def test_public_records_that_do_not_fit_are_refused(
    changed: dict[str, Any], says: str, folder: Path
) -> None:
    with pytest.raises(ConfigError, match=says):
        opened(folder, **changed)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folder of public records"):
        opened(tmp_path / "none")


def test_records_in_which_nobody_can_be_asked_are_refused(tmp_path: Path) -> None:
    write_catalog(PUBLIC.catalog, tmp_path)
    write_interactions(records_of([1] * 20), PUBLIC.catalog, tmp_path)
    with pytest.raises(DataError, match="an item to hold out"):
        opened(tmp_path)


def test_wrong_public_records_are_refused_before_any_site_spends(tmp_path: Path) -> None:
    write_catalog(site_of(items=20).catalog, tmp_path)
    write_interactions(site_of(items=20).interactions, site_of(items=20).catalog, tmp_path)
    options = ServerOptions(public=str(tmp_path), public_domain="care")
    ledgers = RoomyLedgers(tmp_path / "ledgers")
    with pytest.raises(ConfedError, match="catalog of care"):
        Consortium(plan=PLAN, sites=CARE, options=options, permits=ledgers).run()
    assert not (tmp_path / "ledgers").exists()
