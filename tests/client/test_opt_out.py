import dataclasses
import hashlib
import stat
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.opt_out import LIST_NAME, NOBODY, SALT_NAME, add_opt_out, read_opt_outs
from client.session import Session
from client.site import SiteRecords
from common.entries import NO_HASH, parse_line
from common.errors import ConfigError, DataError, SecurityRefused
from common.ledger import Ledger
from common.plan import RunPlan
from common.randomness import SecureRandomness
from common.site_ledger import open_ledger, start_ledger
from common.textpath import ActivationStore
from common.verification import verify
from common.wire import Order, Tensors
from simulations.ledgers import caps_for
from tests.children import ended, fork
from tests.models import backbone_of, model_of, run_plan, site_of

STORE = ActivationStore()
QUIET = {"noise_multiplier": 1e-2, "sample_rate": 1.0, "max_grad_norm": 1.0}
"""Everybody is drawn and the noise is far below one subject's clipped gradient."""


def test_without_a_list_nobody_has_left(tmp_path: Path) -> None:
    assert read_opt_outs(tmp_path) == NOBODY
    assert NOBODY.commitment == NO_HASH


def test_a_subject_is_on_the_list_once_and_the_files_are_the_owners_alone(tmp_path: Path) -> None:
    one = add_opt_out(tmp_path, " subject-7\n")
    again = add_opt_out(tmp_path, "subject-7")
    two = add_opt_out(tmp_path, "Müller 8")
    assert one == again
    assert two == read_opt_outs(tmp_path)
    assert two.subjects == {"subject-7", "Müller 8"}
    assert one.commitment != two.commitment
    assert (tmp_path / LIST_NAME).read_text() == "Müller 8\nsubject-7\n"
    for name in (LIST_NAME, SALT_NAME):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_the_commitment_tells_neither_who_left_nor_how_many(tmp_path: Path) -> None:
    """Without the salt, every id of a site could be tried."""
    found = add_opt_out(tmp_path / _made(tmp_path, "a"), "subject-7")
    other = add_opt_out(tmp_path / _made(tmp_path, "b"), "subject-7")
    assert found.commitment != other.commitment
    assert found.commitment != hashlib.sha256(b"subject-7").hexdigest()
    assert len((tmp_path / "a" / SALT_NAME).read_bytes()) == 32
    assert "subject-7" not in repr(found)


def _made(folder: Path, name: str) -> str:
    (folder / name).mkdir()
    return name


@given(ids=st.lists(st.text(min_size=1, max_size=20), max_size=5))
def test_whatever_was_accepted_is_found_among_the_sites_subjects(
    tmp_path_factory: pytest.TempPathFactory, ids: list[str]
) -> None:
    folder, taken = tmp_path_factory.mktemp("site"), []
    for one in ids:
        try:
            add_opt_out(folder, one)
        except DataError as error:
            assert "\n" not in str(error)
        else:
            taken.append(one.strip())
    everybody = tuple(dict.fromkeys([*taken, "who stays"]))
    positions = read_opt_outs(folder).positions(everybody)
    assert positions.tolist() == list(range(len(everybody) - 1))


@pytest.mark.parametrize("subject", ["", "  ", "a\nb", "a\tb", "x" * 257, "a\u2028b", "\0"])
def test_what_is_no_id_is_refused_without_repeating_it(tmp_path: Path, subject: str) -> None:
    with pytest.raises(DataError, match="Expected one subject id"):
        add_opt_out(tmp_path, subject)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", [LIST_NAME, SALT_NAME])
def test_a_list_of_which_a_part_is_gone_is_not_an_empty_one(tmp_path: Path, missing: str) -> None:
    add_opt_out(tmp_path, "subject-7")
    (tmp_path / missing).unlink()
    with pytest.raises(ConfigError, match=f"{missing} is missing"):
        read_opt_outs(tmp_path)


def test_a_list_written_by_hand_is_refused_until_the_command_salts_it(tmp_path: Path) -> None:
    (tmp_path / LIST_NAME).write_bytes("\ufeffsubject-1\r\nsubject-2\r\n".encode())
    with pytest.raises(ConfigError, match="confed site opt-out"):
        read_opt_outs(tmp_path)
    found = add_opt_out(tmp_path, "subject-3")
    assert found.subjects == {"subject-1", "subject-2", "subject-3"}


def test_a_first_opt_out_that_was_cut_short_is_no_list(tmp_path: Path) -> None:
    (tmp_path / LIST_NAME).write_bytes(b"")
    assert read_opt_outs(tmp_path) == NOBODY
    assert add_opt_out(tmp_path, "subject-3").subjects == {"subject-3"}


def test_a_list_that_is_no_text_is_refused(tmp_path: Path) -> None:
    add_opt_out(tmp_path, "subject-7")
    (tmp_path / LIST_NAME).write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_opt_outs(tmp_path)


def test_a_folder_that_is_not_there_is_a_line_about_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="write into"):
        add_opt_out(tmp_path / "nowhere", "subject-7")


def test_ten_processes_that_add_at_once_lose_nobody(tmp_path: Path) -> None:
    def add(process: int) -> None:
        for number in range(5):
            add_opt_out(tmp_path, f"subject-{process}-{number}")

    children = [fork(partial(add, process)) for process in range(10)]
    assert [ended(child) for child in children] == [0] * 10
    assert len(read_opt_outs(tmp_path).subjects) == 50


# A run at a site


class Run:
    """A site with a ledger in a folder, and a run in which everybody's item bias can be seen."""

    def __init__(self, folder: Path) -> None:
        # A seldom item tells who was in the batch: the bias of that item moves only through them.
        self.plan = run_plan(
            recommender={"objective": "rating", "top_layers": 0, "parts": "bias"},
            privacy=QUIET,
            federation={"rounds": 4, "text_rounds": 0},
        )
        self.folder = folder
        self.records = with_a_lone_subject(site_of(), folder)
        start_ledger(folder, site="north", caps=caps_for(self.plan))
        self.session = self.opened()

    @property
    def ledger(self) -> Ledger:
        return open_ledger(self.folder, site="north")

    @property
    def data(self) -> bytes:
        return (self.folder / "ledger.jsonl").read_bytes()

    def opened(self) -> Session:
        return Session(
            "run",
            self.records,
            self.plan,
            backbone=backbone_of("bert"),
            store=STORE,
            permits=self.ledger,
        )

    def lone_moved(self, number: int) -> bool:
        """Whether round `number` moved the bias of the item that one subject alone has."""
        order, adapter = Order(round=number, plan=self.plan), adapter_of(self.plan)
        update = self.session.train(order, adapter, lambda _site, _round: SecureRandomness()).update
        bias = np.abs(update["bias.care"])
        others = np.delete(bias, LONE_ITEM)
        assert others.max() > 0.003  # those that stay are in every batch
        return bool(bias[LONE_ITEM] > 0.003)


LONE_ITEM, LONE_SUBJECT = 23, "subject-7"


def with_a_lone_subject(records: SiteRecords, folder: Path) -> SiteRecords:
    old = records.interactions
    items, values = old.items.copy(), old.values.copy()
    items[items == LONE_ITEM] = 0
    at = old.subject_ids.index(LONE_SUBJECT)
    items[old.offsets[at] : old.offsets[at + 1]] = LONE_ITEM
    values[old.offsets[at] : old.offsets[at + 1]] = 5.0
    changed = dataclasses.replace(old, items=items, values=values)
    return dataclasses.replace(records, interactions=changed, ledger=folder)


def adapter_of(plan: RunPlan) -> Tensors:
    return {k: v.numpy() for k, v in model_of(plan.recommender, seed=None).adapter().items()}


@pytest.fixture()
def run(tmp_path: Path) -> Run:
    torch.set_num_threads(1)
    return Run(tmp_path / "ledger")


def test_a_subject_who_leaves_mid_run_is_in_no_batch_from_the_next_round_on(run: Run) -> None:
    assert run.lone_moved(1)
    spent = run.ledger.spent()
    found = add_opt_out(run.folder, LONE_SUBJECT)
    assert not run.lone_moved(2)
    assert not run.lone_moved(3)
    run.session = run.opened()  # the process starts again
    assert not run.lone_moved(4)
    assert run.ledger.spent().epsilon > spent.epsilon  # what was spent stays spent, and grows

    entries = [parse_line(line).entry for line in run.data.splitlines()]
    assert [e.kind for e in entries if e.kind in {"reserve", "opt-out"}] == [
        "reserve",
        "opt-out",
        "reserve",
        "reserve",
        "reserve",
    ]
    named = [e.details["opt_outs"] for e in entries if e.kind == "reserve"]
    assert named == [NO_HASH] + [found.commitment] * 3
    assert LONE_SUBJECT.encode() not in run.data
    verdict = verify(run.data, None)
    assert verdict.passed
    assert verdict.state.opt_out_entries == 1


def test_the_list_is_read_anew_each_round_and_each_change_is_one_entry(run: Run) -> None:
    assert run.lone_moved(1)
    add_opt_out(run.folder, "subject-9")
    assert run.lone_moved(2)
    add_opt_out(run.folder, LONE_SUBJECT)
    assert not run.lone_moved(3)
    assert verify(run.data, None).state.opt_out_entries == 2


def test_an_answered_round_goes_out_again_as_it_was(run: Run) -> None:
    """Who left after the release cannot be taken out of what was sent."""
    assert run.lone_moved(1)
    add_opt_out(run.folder, LONE_SUBJECT)
    assert run.lone_moved(1)
    assert len(run.ledger.state().reserved) == 1


def test_a_list_that_is_gone_stops_training_and_spends_nothing(run: Run) -> None:
    add_opt_out(run.folder, LONE_SUBJECT)
    assert not run.lone_moved(1)
    (run.folder / LIST_NAME).unlink()
    before = run.data
    with pytest.raises(ConfigError, match="bring it back"):
        run.lone_moved(2)
    assert run.data == before


def test_list_and_salt_gone_and_the_process_new_bring_nobody_back(run: Run) -> None:
    add_opt_out(run.folder, LONE_SUBJECT)
    assert not run.lone_moved(1)
    (run.folder / LIST_NAME).unlink()
    (run.folder / SALT_NAME).unlink()
    run.session, before = run.opened(), run.data
    with pytest.raises(SecurityRefused, match="bring it back"):
        run.lone_moved(2)
    assert run.data == before


def test_everybody_who_leaves_leaves_noise_alone(run: Run) -> None:
    for subject in run.records.interactions.subject_ids:
        add_opt_out(run.folder, subject)
    order, adapter = Order(round=1, plan=run.plan), adapter_of(run.plan)
    update = run.session.train(order, adapter, lambda _s, _r: SecureRandomness()).update
    bias = np.abs(update["bias.care"])
    assert 0 < bias.max() < 0.003
