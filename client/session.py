"""A site's part in one run: everything that is built once and used in every round.

Sessions live in a table of this module, because Flower's simulation engine loads the app anew for
each message and keeps imported modules. Sensitive: everything but the update that leaves.
"""

import threading
from collections.abc import Callable

import numpy as np
import torch

from client.egress import pass_out, update_bound
from client.site import RandomnessSource, SiteRecords, check_caps
from client.training import Mechanism, SiteTrainer
from common.backbone import Backbone, load_backbone
from common.errors import PrivacyRefused, SecurityRefused
from common.interactions import require_subjects
from common.plan import RecommenderPlan, RunPlan
from common.recommender import Recommender, is_text
from common.spending import noise_of
from common.textpath import ActivationStore, TextVectors
from common.windows import history_texts, training_windows
from common.wire import Order, Tensors


class Session:
    """One site in one run.

    Args:
        records: the site.
        plan: of the run; checked against the site's caps.
        backbone: the frozen model, shared by every session of this process.
        store: of activations.

    Raises:
        PrivacyRefused: the plan asks for more than the site allows.
        ConfigError: the plan's privacy part does not hold together.
    """

    def __init__(
        self, records: SiteRecords, plan: RunPlan, *, backbone: Backbone, store: ActivationStore
    ) -> None:
        self.records, self.plan = records, plan
        # The declared number, which is public: the real one would show in what is refused.
        self.noise_multiplier = noise_of(plan, subjects=records.declared_subjects)
        check_caps(plan, self.noise_multiplier, records.caps)
        require_subjects(records.interactions)
        self._rounds: set[int] = set()
        self._lock = threading.Lock()
        self._trainer = _trainer(records, plan, self.noise_multiplier, backbone, store)

    def train(self, order: Order, adapter: Tensors, randomness: RandomnessSource) -> Tensors:
        """The update of one round, through the egress gate.

        Raises:
            PrivacyRefused: the round was already paid for, or is not in the plan.
            SecurityRefused: an adapter with other tensors than the plan's, or not finite.
        """
        with self._lock:
            self._admit(adapter)
            self._reserve(order.round)
            return self._train(order, adapter, randomness)

    def _train(self, order: Order, adapter: Tensors, randomness: RandomnessSource) -> Tensors:
        federation = self.plan.federation
        train_text = order.round <= federation.text_rounds
        update = self._trainer.update(
            {name: torch.from_numpy(np.array(value)) for name, value in adapter.items()},
            steps=federation.local_steps,
            train_text=train_text,
            public_seed=self.plan.seed * 1_000_003 + order.round,
            randomness=randomness(self.records.name, order.round),
        )
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
        arrays = {name: value.numpy() for name, value in update.items()}
        return pass_out(arrays, shapes=shapes, bound=bound)

    def _admit(self, adapter: Tensors) -> None:
        shapes = self._trainer.model.read_shapes()
        if {name: value.shape for name, value in adapter.items()} != shapes:
            raise SecurityRefused("Expected the plan's tensors in the adapter, got others.")
        if not all(np.isfinite(value).all() for value in adapter.values()):
            raise SecurityRefused("Expected finite numbers in the adapter, got others.")

    def _reserve(self, number: int) -> None:
        if not 1 <= number <= self.plan.federation.rounds or number in self._rounds:
            raise PrivacyRefused(
                f"Expected a new round between 1 and {self.plan.federation.rounds}, got "
                f"{number}: its noise would not be in the plan."
            )
        self._rounds.add(number)


def _trainer(
    records: SiteRecords,
    plan: RunPlan,
    noise_multiplier: float,
    backbone: Backbone,
    store: ActivationStore,
) -> SiteTrainer:
    recommender, privacy = plan.recommender, plan.privacy
    windows = training_windows(
        records.interactions,
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
            noise_multiplier=noise_multiplier,
            max_grad_norm=privacy.max_grad_norm,
            sample_rate=privacy.sample_rate,
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
    run: int, name: str, plan: RunPlan, open_site: Callable[[], SiteRecords], store: ActivationStore
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
            backbone = backbone_for(plan.recommender)
            _SESSIONS[key] = Session(records, plan, backbone=backbone, store=store)
        if _SESSIONS[key].plan != plan:
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
