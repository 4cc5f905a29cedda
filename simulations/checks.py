"""What is refused before any long work: plan, output folder, sites and model, in this order."""

import os
from pathlib import Path

import numpy as np
from torch import nn

from client.session import backbone_for
from common.backbone import Backbone
from common.errors import ConfigError, DataError, ModelError, PrivacyRefused
from common.objectives import CLICK_THRESHOLD
from common.plan import RecommenderPlan, RunPlan
from common.recommender import KINDS, Recommender, trained_parts
from common.spending import noise_of
from server.aggregation import require_rule
from simulations.scenario import Consortium


def check_plan(plan: RunPlan) -> None:
    """Refuse a plan whose parts do not hold together.

    Raises:
        ConfigError: a value out of range, or parts that contradict each other.
        PrivacyRefused: no noise, though the plan is private.
    """
    noise_of(plan)
    trained_parts(plan.recommender)
    shrunk = {part.strip() for part in plan.federation.shrink.split(",") if part.strip()}
    if not shrunk <= set(KINDS):
        raise ConfigError(
            f"Expected shrink to name parts among {', '.join(KINDS)}, "
            f"got {plan.federation.shrink!r}."
        )


def check_out(out: Path) -> None:
    """Refuse a folder that cannot be made or written to; nothing is made yet.

    Raises:
        ConfigError: it is a file, below one, or not this user's to write.
    """
    nearest = next(p for p in (out, *out.resolve().parents) if os.path.lexists(p))
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(
            f"Expected a folder that can be written at --out {out}, got {nearest}, which cannot; "
            "give another folder."
        )


def check_sites(plan: RunPlan, consortium: Consortium, *, central: bool) -> None:
    """Refuse a delta that is too large for the subjects of a site, or of all of them together.

    Raises:
        PrivacyRefused: delta is 1 / subjects or more.
        ConfigError: an aggregation rule that needs more sites.
    """
    if plan.federation.aggregation != "auto":
        rule, sites = plan.federation.aggregation, len(consortium.names)
        require_rule(rule, sites=sites, tolerate=plan.federation.tolerate)
    for name in consortium.names:
        noise_of(plan, subjects=len(consortium.splits[name].train))
    if central and plan.privacy.private and plan.privacy.delta * consortium.largest() >= 1:
        raise PrivacyRefused(
            f"Expected delta below 1 / subjects of a whole domain for the central baseline, got "
            f"{plan.privacy.delta:g}; set a smaller delta, or leave central out of --baselines."
        )


def check_ratings(plan: RecommenderPlan, consortium: Consortium) -> None:
    """Refuse an objective that a domain's ratings say nothing about.

    Raises:
        DataError: names the domain and what its ratings must be.
    """
    if plan.objective == "ranking":
        return
    for domain in consortium.catalogs:
        splits = [consortium.splits[name] for name in consortium.sites_of(domain)]
        values = np.concatenate([s.test_history.values for s in splits])
        clicked = np.unique(values >= CLICK_THRESHOLD).size
        fits = values.min() >= 1 and values.max() <= 5 and np.unique(values).size > 1
        if not fits or (plan.objective == "click" and clicked < 2):
            raise DataError(
                f"Expected ratings from 1 to 5 in domain {domain} for objective {plan.objective}, "
                f"some of {CLICK_THRESHOLD:g} and more and some of less, got others; "
                "rescale the column rating, or use objective ranking."
            )


def check_model(plan: RecommenderPlan) -> None:
    """Load the backbone and refuse what the plan wants of it and it has not.

    Raises:
        ModelError: no such backbone, layer, target module or length of text.
        SecurityRefused: the backbone is a pickle, or not the pinned one.
    """
    backbone = backbone_for(plan)
    _check_layers(backbone, plan)
    _check_lengths(backbone, plan)
    model = Recommender(
        plan,
        backbone=backbone,
        width=backbone.width,
        items=1,
        domain=plan.domains.partition(":")[0],
    )
    if model.text is not None:
        _check_targets(model.text, plan)


def _check_layers(backbone: Backbone, plan: RecommenderPlan) -> None:
    if plan.top_layers > backbone.layers:
        raise ModelError(
            f"Expected top_layers of at most {backbone.layers} for backbone {backbone.name}, "
            f"got {plan.top_layers}."
        )


def _check_lengths(backbone: Backbone, plan: RecommenderPlan) -> None:
    most = getattr(backbone.model.config, "max_position_embeddings", None)
    for name in ("text_tokens", "item_tokens"):
        if isinstance(most, int) and getattr(plan, name) > most:
            raise ModelError(
                f"Expected {name} of at most {most} for backbone {backbone.name}, "
                f"got {getattr(plan, name)}."
            )


def _check_targets(text: nn.Module, plan: RecommenderPlan) -> None:
    """LoRA takes a list in which only some names exist without a word; here every name counts."""
    adapted = [name for name, module in text.named_modules() if hasattr(module, "lora_A")]
    for target in (name.strip() for name in plan.target_modules.split(",")):
        if not any(name.endswith(f".{target}") for name in adapted):
            raise ModelError(
                f"Expected linear layers of the backbone in target_modules, got {target!r}, which "
                "names none; look at the names in the model's own code."
            )
