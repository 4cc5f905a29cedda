"""What a server says of the ledgers it has seen: countersigned heads, shown to every site.

Public: all of it. A receipt binds one site's head to the hash of everybody's heads of that round,
so that a server that shows different heads to different sites is found out by comparing two
ledgers, and an old backup or a fork by comparing a ledger with its receipts.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from common.chain import receipt_body, receipt_verifies
from common.entries import MAX_SEQ, canonical, is_name, is_sha, is_signature
from common.errors import SecurityRefused
from common.signing import RECEIPT, SigningKey


@dataclass(frozen=True, kw_only=True)
class Head:
    """The last line of a ledger.

    Attributes:
        site: whose.
        seq: number of the line.
        head: its SHA-256.
    """

    site: str
    seq: int
    head: str


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """A server's signature over a head.

    Attributes:
        site: whose head.
        run: in which it was shown.
        round: after which.
        seq: of the head.
        head: its SHA-256.
        heads_sha256: of all heads of that round.
        server_key: 64 hexadecimal digits.
        signature: 128 hexadecimal digits.
    """

    site: str
    run: str
    round: int
    seq: int
    head: str
    heads_sha256: str
    server_key: str
    signature: str

    def plain(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)

    def details(self) -> dict[str, Any]:
        """As a ledger's receipt entry holds it, with its round."""
        values = asdict(self)
        del values["site"], values["run"]
        return values

    def verifies(self) -> bool:
        """Whether the server key that is named signed it."""
        return receipt_verifies(self.site, self.run, self.round, asdict(self))


def heads_sha256(heads: Iterable[Head]) -> str:
    """Hash of everybody's heads, in the order of the sites' names."""
    ordered = sorted(heads, key=lambda head: head.site)
    return hashlib.sha256(canonical([asdict(head) for head in ordered])).hexdigest()


def countersign(
    heads: Iterable[Head], *, run: str, number: int, key: SigningKey
) -> tuple[Receipt, ...]:
    """One receipt a head, all of them bound together."""
    known = sorted(heads, key=lambda head: head.site)
    together = heads_sha256(known)
    made = []
    for head in known:
        told: dict[str, Any] = {"seq": head.seq, "head": head.head, "heads_sha256": together}
        signature = key.sign(RECEIPT, receipt_body(head.site, run, number, told)).hex()
        made.append(
            Receipt(
                site=head.site,
                run=run,
                round=number,
                server_key=key.public.hex,
                signature=signature,
                **told,
            )
        )
    return tuple(made)


def receipt_from_plain(values: Mapping[str, Any]) -> Receipt:
    """Read a receipt that travelled.

    Raises:
        SecurityRefused: other fields, or values out of range.
    """
    names = ("site", "run", "round", "seq", "head", "heads_sha256", "server_key", "signature")
    if set(values) != set(names):
        raise SecurityRefused("Expected exactly the fields of a receipt, got others.")
    counted = all(type(values[n]) is int and 0 <= values[n] <= MAX_SEQ for n in ("round", "seq"))
    hashed = all(is_sha(values[n]) for n in ("head", "heads_sha256", "server_key"))
    signature = is_signature(values["signature"])
    if not (
        counted and hashed and signature and is_name(values["site"]) and is_name(values["run"])
    ):
        raise SecurityRefused("Expected a receipt with names, counts and hashes, got others.")
    return Receipt(**{name: values[name] for name in names})


def require_same_heads(receipts: Iterable[Receipt]) -> None:
    """Refuse receipts that were not made together: the server may show others to others.

    Raises:
        SecurityRefused: a signature, a key or the common hash does not fit.
    """
    known = tuple(receipts)
    together = heads_sha256(Head(site=r.site, seq=r.seq, head=r.head) for r in known)
    same = {(r.server_key, r.run, r.round, r.heads_sha256) for r in known}
    if len(same) > 1 or any(r.heads_sha256 != together or not r.verifies() for r in known):
        raise SecurityRefused("Expected receipts of all heads signed together, got others.")
