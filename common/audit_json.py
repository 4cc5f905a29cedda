"""An audit as JSON: stable keys, documented in docs/audit.md; what is not finite is null."""

import math
from collections.abc import Mapping
from typing import Any, Final

from common.accounting import Spent
from common.audit import NO_CLAIM_FAULTS, NO_CLAIM_SEEDED, Audit, SiteAudit
from common.audit_consortium import Together
from common.caps import SiteCaps
from common.figures import small, upper
from common.mechanism import to_plain
from common.verification import RunFacts

VERSION: Final = 1


def to_json(audit: Audit) -> dict[str, Any]:
    """JSON-ready values of an audit."""
    return {
        "version": VERSION,
        "passed": audit.passed,
        "claim": claim_of(audit),
        "sites": [_site(site) for site in audit.sites],
        "consortium": None if audit.together is None else _together(audit.together),
        "receipts": {
            "server_keys": list(audit.servers),
            "rounds_compared": audit.rounds_compared,
            "rounds_recomputed": audit.rounds_recomputed,
            "sites_without_ledger": list(audit.strangers),
        },
    }


def claim_of(audit: Audit) -> str:
    """What may be said about privacy of the whole, in one line."""
    if audit.seeded:
        return NO_CLAIM_SEEDED
    if not audit.passed:
        return NO_CLAIM_FAULTS
    spent = audit.together.disjoint if audit.together else audit.sites[0].verdict.spent
    where = "at one site" if audit.together else "at this site"
    bound = f"({upper(spent.epsilon)}, {small(spent.delta)})"
    return f"every subject {where}: {bound}-differential privacy"


def _site(site: SiteAudit) -> dict[str, Any]:
    verdict, state = site.verdict, site.state
    return {
        "site": verdict.site,
        "ledger": site.where,
        "passed": site.passed,
        "faults": [{"entry": f.seq, "code": f.code, "text": f.text} for f in site.faults],
        "entries": verdict.entries,
        "head": verdict.head,
        "first_time": site.first_time,
        "last_time": state.time,
        "key": {"fingerprint": site.key.fingerprint, "public_key": site.key.hex},
        "keys_in_ledger": [key.fingerprint for key in state.keys],
        "unit": "subject",
        "adjacency": "add-or-remove",
        "claim": site.claim,
        "seeded_noise": verdict.seeded,
        "epsilon": {**spent_json(verdict.spent), "adaptive_plans": verdict.adaptive},
        "cohorts": {name: spent_json(spent) for name, spent in verdict.by_cohort.items()},
        "budget": _budget(state.caps, site.left),
        "runs": [_run(run) for run in verdict.runs],
        "receipts": {
            "in_ledger": verdict.receipts,
            "from_server": site.server_receipts,
            "newest_entry": None if site.newest_receipt < 0 else site.newest_receipt,
        },
        "opt_out_entries": state.opt_out_entries,
    }


def spent_json(spent: Spent) -> dict[str, Any]:
    """JSON-ready values of an epsilon."""
    return _finite(
        {
            "published": spent.epsilon,
            "pld": spent.pld,
            "rdp": spent.rdp,
            "delta": spent.delta,
            "accountant": spent.accountant,
            "discretisation": spent.discretisation,
            "error": spent.error,
        }
    )


def _budget(caps: SiteCaps, left: float) -> dict[str, Any]:
    return {**caps.plain(), "left": left}


def _run(run: RunFacts) -> dict[str, Any]:
    return {
        "run": run.run,
        "purpose": run.purpose,
        "planned": run.planned,
        "reserved": run.reserved,
        "released": run.released,
        "event": to_plain(run.event),
    }


def _together(together: Together) -> dict[str, Any]:
    return {
        "disjoint": spent_json(together.disjoint),
        "shared": spent_json(together.shared),
        "sites_per_subject": together.sites_per_subject,
        "sites": together.sites,
    }


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }
