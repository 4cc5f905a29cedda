import pickle
from pathlib import Path

import pytest
import torch

from common.textpath import ActivationStore, TextActivations
from simulations.preload import PreloadedStore
from tests.models import backbone_of

TEXTS = ["w1; w2", "", "w3", "w4 w5 w6", "w1; w2", "w7"]
SETTINGS = {"tokens": 12, "top_layers": 2}


def pieces(made: TextActivations) -> list[tuple[list[float], list[float]]]:
    """Pooled and hidden values of each text, wherever they stand in the table."""
    assert made.hidden is not None
    found = []
    for place in made.row.tolist():
        if place < 0:
            found.append(([], []))
            continue
        span = made.hidden[made.offsets[place] : made.offsets[place + 1]]
        found.append((made.pooled[place].tolist(), span.flatten().tolist()))
    return found


@pytest.fixture
def store() -> PreloadedStore:
    made = PreloadedStore(None)
    made.preload(backbone_of("bert"), TEXTS, **SETTINGS)
    return made


@pytest.mark.parametrize("wanted", [TEXTS, TEXTS[::-1], ["w3", "", "w7"], ["w3", "w3"], [""]])
def test_a_preloaded_table_answers_like_a_fresh_store(
    store: PreloadedStore, wanted: list[str]
) -> None:
    given = store.texts(backbone_of("bert"), wanted, **SETTINGS)
    fresh = ActivationStore().texts(backbone_of("bert"), wanted, **SETTINGS)
    for (pooled, hidden), (pooled_2, hidden_2) in zip(pieces(given), pieces(fresh), strict=True):
        assert pooled == pytest.approx(pooled_2, abs=1e-5)
        assert hidden == pytest.approx(hidden_2, abs=1e-4)


def test_sites_share_the_table_and_nothing_is_encoded_twice(store: PreloadedStore) -> None:
    steps: list[int] = []
    given = [
        store.texts(backbone_of("bert"), texts, **SETTINGS, progress=steps.append)
        for texts in (["w3"], ["w7", "w1; w2"])
    ]
    assert steps == []
    assert given[0].hidden is given[1].hidden


def test_what_the_tables_lack_is_computed(store: PreloadedStore) -> None:
    steps: list[int] = []
    given = store.texts(backbone_of("bert"), ["w3", "w9 new"], **SETTINGS, progress=steps.append)
    assert sum(steps) == 2
    assert (given.row >= 0).all()


@pytest.mark.parametrize("other", [{"tokens": 8, "top_layers": 2}, {"tokens": 12, "top_layers": 1}])
def test_other_settings_are_another_table(store: PreloadedStore, other: dict[str, int]) -> None:
    steps: list[int] = []
    store.texts(backbone_of("bert"), ["w3"], **other, progress=steps.append)
    assert sum(steps) == 1


def test_another_backbone_is_another_table(store: PreloadedStore) -> None:
    given = store.texts(backbone_of("gpt2"), ["w3"], **SETTINGS)
    mine = store.texts(backbone_of("bert"), ["w3"], **SETTINGS)
    assert not torch.equal(given.pooled[given.row], mine.pooled[mine.row])


def test_another_process_gets_the_folder_and_not_the_tables(tmp_path: Path) -> None:
    made = PreloadedStore(tmp_path)
    made.preload(backbone_of("bert"), [f"w{n}" for n in range(50)], **SETTINGS)
    sent = pickle.dumps(made)
    assert len(sent) < 2_000
    arrived = pickle.loads(sent)  # noqa: S301  # our own bytes, as Ray sends them
    assert type(arrived) is ActivationStore
    assert arrived.folder == tmp_path
