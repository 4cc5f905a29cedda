"""Every limit on input, in one frozen value, with units."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Upper and lower bounds that hold before anything is read, trained or sent."""

    file_bytes: int = 2 * 1024**3
    """Largest file read, bytes, after decompression."""
    decompression_ratio: float = 200.0
    """Largest ratio of decompressed to compressed bytes; a zip bomb is far above."""
    rows_per_subject: int = 10_000
    """Most interactions of one subject in a file."""
    subjects_floor: int = 20
    """Fewest subjects a site may train on."""
    declared_subjects: int = 1_000_000_000
    """Most subjects that a contract may name for a site."""
    items: int = 200_000
    """Most items in a catalog."""
    text_characters: int = 4_000
    """Longest item text kept, characters."""
    id_characters: int = 256
    """Longest item or subject id, characters."""
    rating_magnitude: float = 1e9
    """Largest absolute rating."""
    time_magnitude: float = 9e18
    """Largest absolute timestamp; nanoseconds since 1970 fit."""
    adapter_bytes: int = 512 * 1024**2
    """Largest adapter file or update, bytes."""
    rounds: int = 10_000
    """Most rounds of one run."""
    sites: int = 100_000
    """Most sites of a consortium."""
    ledger_bytes: int = 256 * 1024**2
    """Most bytes of a ledger in one message or file."""
    audit_json_bytes: int = 256 * 1024**2
    """Largest file of receipts or of audit results that is read, bytes."""


LIMITS = Limits()
