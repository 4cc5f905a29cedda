"""Realistic runs for the tests of what a researcher looks at."""

import dataclasses
import math
import random

from simulations.results import (
    METHODS,
    ByMethod,
    Damage,
    DomainResult,
    Outcome,
    Point,
    RunResult,
    SiteResult,
)

LEVELS = {
    "care": dict(zip(METHODS, (0.031, 0.217, 0.245, 0.281, 0.284, 0.319, 0.322), strict=True)),
    "bank": dict(zip(METHODS, (0.088, 0.141, 0.158, 0.171, 0.176, 0.203, 0.198), strict=True)),
    "retail": dict(zip(METHODS, (0.070, 0.029, 0.071, 0.078, 0.079, 0.086, 0.057), strict=True)),
}
SITES = {
    "care": ("St. Mary's General", "Riverside Children's", "Northgate", "University Hospital West"),
    "bank": ("Harbour Savings", "Mercantile", "Bank of the Hills", "Credit Union 7"),
    "retail": ("Kitchen & Co", "Farm Shop", "Corner", "Bakery"),
}


def metrics(domain: str, *, shift: float = 1.0, methods: tuple[str, ...] = METHODS) -> ByMethod:
    """Return every metric of the methods of a domain, scaled."""
    return {
        m: {
            "ndcg@10": LEVELS[domain][m] * shift,
            "ndcg@20": LEVELS[domain][m] * shift * 1.15,
            "recall@10": LEVELS[domain][m] * shift * 1.8,
            "hit_rate@10": LEVELS[domain][m] * shift * 1.8,
            "mrr@10": LEVELS[domain][m] * shift * 0.8,
        }
        for m in methods
    }


def site(name: str, domain: str, rng: random.Random, methods: tuple[str, ...]) -> SiteResult:
    """Return one site whose level and gain vary as real sites' do."""
    values = metrics(domain, shift=rng.uniform(0.92, 1.08), methods=methods)
    if "local" in values:
        values["local"] = {k: v * rng.uniform(0.86, 1.12) for k, v in values["local"].items()}
    return SiteResult(
        site=name,
        domain=domain,
        subjects=rng.randint(400, 4200),
        epsilon=rng.uniform(3.9, 3.99),
        delta=1e-5,
        noise_multiplier=3.07,
        sample_rate=0.25,
        metrics=values,
    )


def curve(domains: tuple[str, ...], rounds: int) -> tuple[Point, ...]:
    """Return a saturating learning curve from zero-shot to federated."""
    points = []
    for r in range(rounds + 1):
        done = 1 - math.exp(-4 * r / rounds)
        levels = {d: LEVELS[d] for d in domains}
        ndcg = {
            d: v["zero_shot"] + (v["federated"] - v["zero_shot"]) * done for d, v in levels.items()
        }
        points.append(Point(round=r, epsilon=3.99 * math.sqrt(r / rounds), ndcg=ndcg))
    return tuple(points)


def damage(*domains: str) -> Damage:
    """Return what two hostile sites did to the domains: a little, and everything to the mean."""
    whole = {d: LEVELS[d]["federated"] for d in domains}

    def outcome(name: str, rule: str, share: float) -> Outcome:
        ndcg = {d: share * value for d, value in whole.items()}
        curve = {r: {d: v * (0.4 + r / 100) for d, v in ndcg.items()} for r in range(0, 61, 5)}
        lost = {} if name == "undisturbed" else dict.fromkeys(domains, 1 - share)
        return Outcome(name=name, rule=rule, ndcg=ndcg, lost=lost, curve=curve)

    return Damage(
        kind="attack",
        name="sign-flip-x10",
        says="sends -10 times its update",
        sites=("Northgate", "Riverside Children's"),
        of=10,
        rate=0.0,
        outcomes=(
            outcome("undisturbed", "auto", 1.0),
            outcome("attack", "auto", 0.98),
            outcome("plain mean", "mean", 0.05),
        ),
    )


def run(
    *domains: str, methods: tuple[str, ...] = METHODS, sites: int = 4, seed: int = 7
) -> RunResult:
    """Return a run of the domains (care and bank when none is named)."""
    names, rng = domains or ("care", "bank"), random.Random(seed)
    both = {"local", "federated"} <= set(methods)
    extra = [f"{names[0]} site {i}" for i in range(4, sites)]
    return RunResult(
        scenario="-and-".join(names),
        title="Hospitals and banks, synthetic records",
        seed=seed,
        engine="in-process",
        rounds=60,
        seconds=118.4,
        peak_rss_mb=1432.0,
        sites=tuple(site(n, d, rng, methods) for d in names for n in SITES[d][:sites])
        + tuple(site(n, names[0], rng, methods) for n in extra),
        domains={
            d: DomainResult(
                metrics=metrics(d, methods=methods),
                slices={
                    "head items": metrics(d, shift=1.3, methods=methods),
                    "tail items": metrics(d, shift=0.4, methods=methods),
                    "cold subjects": metrics(d, shift=0.7, methods=methods),
                },
            )
            for d in names
        },
        transfer={a: {b: rng.uniform(-0.01, 0.06) for b in names} for a in names} if both else {},
        curve=curve(names, 60),
        claim="seeded noise: no privacy claim",
        settings={
            "backbone": "all-MiniLM-L6-v2",
            "adapter": "FFA-LoRA, r=8, lora_alpha=16, top 2 layers",
            "server optimiser": "FedAdam",
            "max_grad_norm": "1.0",
        },
        accounting={
            "pld": 3.9871,
            "rdp": 4.0823,
            "opacus": 3.9942,
            "consortium": 3.9871,
            "consortium_overlap": 5.9018,
            "overlap_sites": 2,
        },
        intervals={d: (0.011, 0.024) for d in names} if both else {},
        damage=damage(*names),
    )


def with_site_name(result: RunResult, name: str) -> RunResult:
    """Return the run with its first site renamed."""
    first = dataclasses.replace(result.sites[0], site=name)
    return dataclasses.replace(result, sites=(first, *result.sites[1:]))
