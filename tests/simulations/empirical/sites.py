"""The audit's site with every kind of tensor, on the tests' tiny backbone."""

from common.plan import RecommenderPlan
from simulations.empirical.product import AuditSite
from simulations.empirical.sites import full_site
from tests.models import TARGETS, folder_of


def tiny_plan() -> RecommenderPlan:
    return RecommenderPlan(
        backbone=str(folder_of("bert")),
        dtype="float32",
        r=2,
        lora_alpha=4.0,
        target_modules=TARGETS["bert"],
        text_tokens=12,
        item_tokens=12,
        history_items=4,
    )


def tiny_site() -> AuditSite:
    return full_site(tiny_plan(), subjects=5)
