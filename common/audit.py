"""An audit of one site or a consortium: ledgers, keys and receipts in, one finding out.

Public: all of it. Pure: no file, no clock. (1) each ledger alone, with the server's receipts for
it (`common.verification`), (2) copies of one ledger against each other, (3) receipts of one round
against each other, (4) what a subject can have spent at several sites.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

from common.audit_consortium import Together, compose
from common.chain import Fault, Reserved, State
from common.entries import parse_line
from common.errors import SecurityRefused
from common.figures import small, upper
from common.receipts import Head, Receipt, heads_sha256
from common.signing import PublicKey
from common.verification import Verdict, verify

NO_CLAIM_SEEDED: Final = "no privacy claim: noise was drawn from a seed"
NO_CLAIM_FAULTS: Final = "no privacy claim: the ledger does not verify"


@dataclass(frozen=True, kw_only=True)
class LedgerInput:
    """One ledger as an auditor holds it.

    Attributes:
        where: path, for messages.
        data: the whole file.
        key: the site's first public key.
    """

    where: str
    data: bytes
    key: PublicKey


@dataclass(frozen=True, kw_only=True)
class SiteAudit:
    """What was found about one ledger.

    Attributes:
        where: path.
        verdict: of the ledger alone and the server's receipts for it.
        key: that it was checked with.
        faults: of the verdict and of every comparison, by entry.
        server_receipts: receipts for this site in the server's file.
        first_time: of the first entry; empty where it cannot be read.
        newest_receipt: largest entry number that a receipt covers; -1 when none does.
    """

    where: str
    verdict: Verdict
    key: PublicKey
    faults: tuple[Fault, ...]
    server_receipts: int
    first_time: str
    newest_receipt: int

    @property
    def name(self) -> str:
        """The site's name, or the file where no name could be read."""
        return self.verdict.site or self.where

    @property
    def state(self) -> State:
        """What the entries add up to."""
        return self.verdict.state

    @property
    def passed(self) -> bool:
        """Whether no fault was found."""
        return not self.faults

    @property
    def reservations(self) -> tuple[Reserved, ...]:
        """All of them, in order."""
        return tuple(self.state.reserved.values())

    @property
    def left(self) -> float:
        """Epsilon between what was spent and the budget, 0 when nothing is."""
        return max(self.state.caps.epsilon - self.verdict.spent.epsilon, 0.0)

    @property
    def claim(self) -> str:
        """What may be said about privacy, in one line."""
        if self.verdict.seeded:
            return NO_CLAIM_SEEDED
        if not self.passed:
            return NO_CLAIM_FAULTS
        spent = self.verdict.spent
        return f"every subject: ({upper(spent.epsilon)}, {small(spent.delta)})-differential privacy"


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What was found about all ledgers.

    Attributes:
        sites: one a ledger.
        together: of a subject at one and at several sites; None for a single ledger.
        servers: fingerprints of the server keys that any receipt names.
        rounds_compared: (run, round) pairs for which more than one site's receipt was compared.
        rounds_recomputed: of these, how many common hashes could be computed again from heads.
        strangers: sites that have receipts but no ledger here.
    """

    sites: tuple[SiteAudit, ...]
    together: Together | None
    servers: tuple[str, ...]
    rounds_compared: int
    rounds_recomputed: int
    strangers: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether no fault was found anywhere."""
        return all(site.passed for site in self.sites)

    @property
    def seeded(self) -> bool:
        """Whether any noise was seeded."""
        return any(site.verdict.seeded for site in self.sites)


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """A receipt, and the entry of a ledger that it is about."""

    ledger: int
    seq: int
    receipt: Receipt


Found = dict[int, list[Fault]]


def audit(
    ledgers: Sequence[LedgerInput],
    *,
    receipts: Sequence[Receipt] = (),
    server_keys: Sequence[PublicKey] = (),
    sites_per_subject: int | None = None,
) -> Audit:
    """Check ledgers alone and against each other.

    Args:
        ledgers: at least one.
        receipts: what the server kept, of any sites.
        server_keys: that a receipt of the server's file may be signed with; any when empty.
        sites_per_subject: the most sites that one subject may be at; all of them when None.

    Raises:
        ConfigError: `sites_per_subject` outside of 1 to the number of ledgers.
    """
    plain = [receipt.plain() for receipt in receipts]
    verdicts = [verify(one.data, one.key, receipts=plain) for one in ledgers]  # (1)
    found: Found = {i: list(verdict.faults) for i, verdict in enumerate(verdicts)}
    _compare_copies(verdicts, found)  # (2)
    shown = list(_shown(verdicts, receipts))
    _compare_servers(shown, server_keys, {receipt.run for receipt in receipts}, found)
    compared = _compare_rounds(verdicts, shown, found)  # (3)
    known = {verdict.site for verdict in verdicts}
    return Audit(
        sites=tuple(
            _site(ledgers[i], verdict, found[i], receipts) for i, verdict in enumerate(verdicts)
        ),
        together=compose(verdicts, sites_per_subject),  # (4)
        servers=tuple(sorted({_fingerprint(s.receipt.server_key) for s in shown})),
        rounds_compared=len(compared),
        rounds_recomputed=_recomputed(compared, receipts),
        strangers=tuple(sorted({r.site for r in receipts} - known)),
    )


def _site(
    given: LedgerInput, verdict: Verdict, faults: list[Fault], receipts: Sequence[Receipt]
) -> SiteAudit:
    mine = [receipt for receipt in receipts if receipt.site == verdict.site]
    covered = [receipt.seq for receipt in mine]
    covered += [int(entry.details["seq"]) for _, entry in verdict.state.receipts]
    return SiteAudit(
        where=given.where,
        verdict=verdict,
        key=given.key,
        faults=tuple(sorted(dict.fromkeys(faults), key=lambda fault: fault.seq)),
        server_receipts=len(mine),
        first_time=_first_time(given.data),
        newest_receipt=max(covered, default=-1),
    )


def _first_time(data: bytes) -> str:
    try:
        return parse_line(data.partition(b"\n")[0]).entry.ts
    except SecurityRefused:
        return ""


def _compare_copies(verdicts: Sequence[Verdict], found: Found) -> None:
    """Two ledgers with one genesis are copies of one: equal, or one is old, or forked."""
    for (i, one), (j, other) in combinations(enumerate(verdicts), 2):
        ours, theirs = one.state.heads, other.state.heads
        if not ours or not theirs or ours[0] != theirs[0] or ours == theirs:
            continue
        split = next((k for k, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), -1)
        if split >= 0:
            text = "expected one ledger of this genesis, got two that part here: this is a fork"
            for k in (i, j):
                found[k].append(Fault(seq=split, code="chain", text=text))
        else:
            short, length = (i, len(ours)) if len(ours) < len(theirs) else (j, len(theirs))
            text = f"expected entry {length}, which another copy here has: this is an old copy"
            found[short].append(Fault(seq=length, code="chain", text=text))


def _shown(verdicts: Sequence[Verdict], receipts: Sequence[Receipt]) -> Iterator[_Shown]:
    """Every receipt that is known of these ledgers, from the server's file and from inside."""
    for i, verdict in enumerate(verdicts):
        for receipt in receipts:
            if receipt.site == verdict.site:
                yield _Shown(ledger=i, seq=receipt.seq, receipt=receipt)
        for seq, entry in verdict.state.receipts:
            details: Mapping[str, Any] = entry.details
            inside = Receipt(site=entry.site, run=entry.run, round=entry.round, **details)
            yield _Shown(ledger=i, seq=seq, receipt=inside)


def _compare_servers(
    shown: Sequence[_Shown], server_keys: Sequence[PublicKey], runs: set[str], found: Found
) -> None:
    """A run has one server; other runs of a ledger may have had another."""
    expected = {key.hex for key in server_keys}
    for one in shown:
        known = one.receipt.run not in runs or one.receipt.server_key in expected
        if expected and not known:
            text = "expected a receipt by the server whose receipts were given, got another's"
            found[one.ledger].append(Fault(seq=one.seq, code="receipt", text=text))


Rounds = dict[tuple[str, int, str], list[_Shown]]


def _compare_rounds(verdicts: Sequence[Verdict], shown: Sequence[_Shown], found: Found) -> Rounds:
    """A server that shows different heads to different sites signs two hashes for one round."""
    rounds: Rounds = defaultdict(list)
    for one in shown:
        rounds[(one.receipt.run, one.receipt.round, one.receipt.server_key)].append(one)
    for (run, number, _), members in rounds.items():
        if len({member.receipt.heads_sha256 for member in members}) == 1:
            continue
        sites = sorted({verdicts[member.ledger].site for member in members})
        for member in members:
            text = (
                f"expected one hash of all heads after round {number} of {run} in the receipts of "
                f"{', '.join(sites)}, got several: the server shows different heads"
            )
            found[member.ledger].append(Fault(seq=member.seq, code="receipt", text=text))
    return {key: m for key, m in rounds.items() if len({one.ledger for one in m}) > 1}


def _recomputed(compared: Rounds, receipts: Sequence[Receipt]) -> int:
    """How many common hashes follow from the heads themselves, where all of them are here."""
    heads: dict[tuple[str, int, str], set[Head]] = defaultdict(set)
    known = [*receipts, *(one.receipt for members in compared.values() for one in members)]
    for r in known:
        head = Head(site=r.site, seq=r.seq, head=r.head)
        heads[(r.run, r.round, r.server_key)].add(head)
    return sum(
        heads_sha256(heads[key]) == members[0].receipt.heads_sha256
        for key, members in compared.items()
    )


def _fingerprint(key: str) -> str:
    return PublicKey.from_hex(key).fingerprint
