"""A site's part in one run: everything that is built once and used in every round.

Sessions live in a table of this module, because Flower's simulation engine loads the app anew for
each message and keeps imported modules. Sensitive: everything but the update that leaves.
"""

import hashlib
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from client.egress import pass_out, pass_out_figures
from client.evaluation import noised_figures
from client.opt_out import NOBODY, OptOuts, read_opt_outs
from client.permits import Permits, PermitSource
from client.site import RandomnessSource, SiteRecords, check_caps
from client.training import Mechanism, SiteTrainer
from common.adapter import tensors_sha256
from common.backbone import Backbone, load_backbone
from common.bounds import update_bound
from common.errors import PrivacyRefused, SecurityRefused
from common.grant import Grant
from common.held_out import HeldOut
from common.interactions import Interactions, require_subjects
from common.ledger import PlanRequest
from common.plan import RecommenderPlan, RunPlan
from common.receipts import Receipt, require_same_heads
from common.recommender import Recommender, is_text
from common.spending import events_of, noise_of
from common.splits import leave_one_out
from common.textpath import ActivationStore, TextVectors
from common.windows import history_texts, training_windows
from common.wire import Answer, Evaluation, Order, Tensors, figures_payload, to_payload


class Session:
    """One site in one run.

    Args:
        run: name of the run.
        records: the site.
        plan: of the run; checked against the site's caps.
        backbone: the frozen model, shared by every session of this process.
        store: of activations.
        permits: the site's ledger.

    Raises:
        PrivacyRefused: the plan asks for more than the site allows, or than is left.
        ConfigError: the plan's privacy part does not hold together.
    """

    def __init__(
        self,
        run: str,
        records: SiteRecords,
        plan: RunPlan,
        *,
        backbone: Backbone,
        store: ActivationStore,
        permits: Permits,
    ) -> None:
        self.run, self.records, self.plan, self.permits = run, records, plan, permits
        # The declared number, which is public: the real one would show in what is refused.
        self.noise_multiplier = noise_of(plan, subjects=records.declared_subjects)
        check_caps(plan, self.noise_multiplier, records.caps)
        require_subjects(records.interactions)
        permits.plan(self._request(backbone))
        self._lock = threading.Lock()
        split = leave_one_out(records.interactions) if plan.evaluations else None
        held_in = records.interactions if split is None else split.test_history
        self._trainer = _trainer(records, held_in, plan, backbone, store)
        self._held_out = (
            None
            if split is None
            else HeldOut(records.catalog, split, plan.recommender, backbone=backbone, store=store)
        )
        self._opt_outs: OptOuts = NOBODY
        self._acknowledged = -1

    def _request(self, backbone: Backbone) -> PlanRequest:
        plan = self.plan
        return PlanRequest(
            run=self.run,
            events=events_of(plan, self.noise_multiplier) if plan.privacy.private else {},
            max_grad_norm=plan.privacy.max_grad_norm,
            plan_sha256=hashlib.sha256(plan.to_json().encode()).hexdigest(),
            backbone_sha256=backbone.digest,
            catalog_sha256=self.records.catalog.digest,
        )

    def train(self, order: Order, adapter: Tensors, randomness: RandomnessSource) -> Answer:
        """The answer to one round, through the egress gate.

        A round that was answered before is answered with the same bytes, which cost nothing.

        Raises:
            PrivacyRefused: over the budget, or not in the plan.
            SecurityRefused: an adapter with other tensors than the plan's or not finite, or
                receipts for a ledger that is not this one.
        """
        with self._lock:
            payload, released, lines = self._paid(
                order,
                adapter,
                randomness,
                purpose="train",
                work=lambda grant: to_payload(self._update(order, adapter, grant)),
            )
            return Answer(
                round=order.round, update=self._out(order, payload, released), lines=lines
            )

    def evaluate(self, order: Order, adapter: Tensors, randomness: RandomnessSource) -> Evaluation:
        """Noised sums over the subjects' held-out items, through the egress gate.

        Raises:
            PrivacyRefused, SecurityRefused: as `train`; also where the plan evaluates nothing.
        """
        held_out, every = self._held_out, self.plan.evaluation.every
        if held_out is None or order.round % every:
            raise PrivacyRefused("Expected a round in which the plan evaluates, got another.")

        def work(grant: Grant) -> bytes:
            left_out = self._opt_outs.positions(self.records.interactions.subject_ids)
            return figures_payload(noised_figures(held_out, _tensors(adapter), grant, left_out))

        with self._lock:
            payload, released, lines = self._paid(
                order, adapter, randomness, purpose="evaluate", work=work
            )
            figures = pass_out_figures(payload, released=released)
            return Evaluation(round=order.round, figures=figures, lines=lines)

    def _paid(
        self,
        order: Order,
        adapter: Tensors,
        randomness: RandomnessSource,
        *,
        purpose: str,
        work: Callable[[Grant], bytes],
    ) -> tuple[bytes, str, bytes]:
        """Reserve, work, release; the payload, its released hash and the ledger's new lines."""
        self._admit(adapter)
        receipt = self._check_receipts(order.receipts)
        number = order.round // (self.plan.evaluation.every if purpose == "evaluate" else 1)
        model = _model(order, adapter)
        payload = self.permits.stored(
            run=self.run, number=number, model_sha256=model, purpose=purpose
        )
        if payload is None:
            self._leave_out_opt_outs()
            grant = self.permits.reserve(
                run=self.run,
                number=number,
                model_sha256=model,
                randomness=randomness(f"{self.records.name}{_MARK[purpose]}", order.round),
                purpose=purpose,
                receipt=self._new(receipt),
            )
            payload = work(grant)
            released = self.permits.release(grant, payload)
        else:
            released = hashlib.sha256(payload).hexdigest()
        return payload, released, self.permits.lines_after(-1 if receipt is None else receipt.seq)

    def _update(self, order: Order, adapter: Tensors, grant: Grant) -> Tensors:
        update = self._trainer.update(
            _tensors(adapter),
            train_text=order.round <= self.plan.federation.text_rounds,
            public_seed=self.plan.seed * 1_000_003 + order.round,
            grant=grant,
        )
        return {name: value.numpy() for name, value in update.items()}

    def _out(self, order: Order, payload: bytes, released: str) -> Tensors:
        train_text = order.round <= self.plan.federation.text_rounds
        shapes = {
            name: tuple(p.shape)
            for name, p in self._trainer.model.trainable()
            if train_text or not is_text(name)
        }
        bound = update_bound(
            self.plan,
            noise_multiplier=self.noise_multiplier,
            size=sum(int(np.prod(s)) for s in shapes.values()),
            expected=self._trainer.mechanism.expected_batch_size,
        )
        return pass_out(payload, released=released, shapes=shapes, bound=bound)

    def _admit(self, adapter: Tensors) -> None:
        shapes = self._trainer.model.read_shapes()
        if {name: value.shape for name, value in adapter.items()} != shapes:
            raise SecurityRefused("Expected the plan's tensors in the adapter, got others.")
        if not all(np.isfinite(value).all() for value in adapter.values()):
            raise SecurityRefused("Expected finite numbers in the adapter, got others.")

    def _check_receipts(self, receipts: tuple[Receipt, ...]) -> Receipt | None:
        """The server's receipt for this site.

        A ledger that lacks what the server has seen is an old backup or a fork.
        """
        if not receipts:
            return None
        require_same_heads(receipts)
        mine = next((r for r in receipts if r.site == self.records.name), None)
        if mine is not None and not self.permits.knows(mine.seq, mine.head):
            raise SecurityRefused(
                "Expected the ledger that the server has seen, got another: an old backup or a "
                "fork; bring the newest ledger back."
            )
        return mine

    def _new(self, receipt: Receipt | None) -> dict[str, Any] | None:
        """What the ledger keeps of a receipt that it does not hold yet."""
        if receipt is None or receipt.seq <= self._acknowledged:
            return None
        self._acknowledged = receipt.seq
        return receipt.details()

    def _leave_out_opt_outs(self) -> None:
        if self.records.ledger is None:
            return
        current = read_opt_outs(self.records.ledger)
        # Every round, and before the comparison: the ledger refuses a list that is gone.
        self.permits.opt_out(current.commitment)
        if current.commitment != self._opt_outs.commitment:
            positions = current.positions(self.records.interactions.subject_ids)
            self._trainer.leave_out(torch.from_numpy(positions))
            self._opt_outs = current


_MARK = {"train": "", "evaluate": "/evaluate"}
"""Seeded noise of an evaluation must not repeat that of the round's training."""


def _tensors(adapter: Tensors) -> dict[str, torch.Tensor]:
    """The adapter in arrays of our own: those of a message are read-only."""
    return {name: torch.from_numpy(np.array(value)) for name, value in adapter.items()}


def _model(order: Order, adapter: Tensors) -> str:
    """Hash of what is asked: round, plan and adapter."""
    body = f"{order.round}|{order.plan.to_json()}|{tensors_sha256(adapter)}"
    return hashlib.sha256(body.encode()).hexdigest()


def _trainer(
    records: SiteRecords,
    interactions: Interactions,
    plan: RunPlan,
    backbone: Backbone,
    store: ActivationStore,
) -> SiteTrainer:
    recommender, privacy = plan.recommender, plan.privacy
    windows = training_windows(
        interactions,
        windows=recommender.windows,
        history_items=recommender.history_items,
    )
    activations = store.texts(
        backbone,
        history_texts(windows.history, records.catalog, items=recommender.text_items),
        tokens=recommender.text_tokens,
        top_layers=recommender.top_layers,
    )
    model = Recommender(
        recommender,
        backbone=backbone,
        width=backbone.width,
        items=len(records.catalog),
        domain=records.domain,
    )
    space = store.item_space(backbone, records.catalog, tokens=recommender.item_tokens)
    return SiteTrainer(
        model=model,
        windows=windows,
        texts=TextVectors(activations, space.centre),
        vectors=space.vectors,
        mechanism=Mechanism(
            max_grad_norm=privacy.max_grad_norm,
            expected_batch_size=privacy.sample_rate * records.declared_subjects,
            micro_batch=plan.federation.micro_batch,
        ),
        learning_rate=plan.federation.client_learning_rate,
    )


_SESSIONS: dict[tuple[int, str], Session] = {}
_BACKBONES: dict[tuple[str, str, str], Backbone] = {}
_LOCK = threading.Lock()
_OPENING: dict[tuple[int, str], threading.Lock] = {}


def session_for(
    run: int,
    name: str,
    order: Order,
    *,
    open_site: Callable[[], SiteRecords],
    store: ActivationStore,
    permits: PermitSource,
) -> Session:
    """The session of a site in a run, opened at its first message.

    Raises:
        PrivacyRefused: the run has another plan, whose rounds would be paid for a second time.
    """
    key = (run, name)
    with _LOCK:
        lock = _OPENING.setdefault(key, threading.Lock())
    with lock:
        if key not in _SESSIONS:
            records = open_site()
            _SESSIONS[key] = Session(
                order.run,
                records,
                order.plan,
                backbone=backbone_for(order.plan.recommender),
                store=store,
                permits=permits(records, order.plan, order.run),
            )
        if (_SESSIONS[key].run, _SESSIONS[key].plan) != (order.run, order.plan):
            raise PrivacyRefused("Expected the plan of the run's first message, got another.")
        return _SESSIONS[key]


def close_sessions(run: int) -> None:
    """Forget every session of a run."""
    with _LOCK:
        for key in [k for k in _SESSIONS if k[0] == run]:
            del _SESSIONS[key]
            _OPENING.pop(key, None)


def backbone_for(plan: RecommenderPlan) -> Backbone:
    """The frozen backbone of a plan, loaded once a process."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    key = (plan.backbone, device, plan.dtype)
    with _LOCK:
        if key not in _BACKBONES:
            _BACKBONES[key] = load_backbone(plan.backbone, device=device, dtype=plan.dtype)
        return _BACKBONES[key]
