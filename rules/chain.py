"""Chain: what makes the ledger evidence. Each entry's digest covers the entry and the digest before it.

SHA-256 over canonical JSON (RFC 8785). One digest that is kept elsewhere shows that nothing before it was changed or
removed (Haber & Stornetta 1991).
"""

from collections.abc import Iterable, Mapping
from typing import Any

from schema.canonical import content_hash

GENESIS = "0" * 64


def digest(*, sequence: int, key: str, kind: str, subject: str, at: str, body: str, previous: str) -> str:
    """The digest of one entry. `body` (canonical JSON) and `at` (ISO 8601, UTC) are hashed as they are stored."""
    fields = {"sequence": sequence, "key": key, "kind": kind, "subject": subject, "at": at, "body": body}
    return content_hash(fields | {"previous": previous})


def first_break(entries: Iterable[Mapping[str, Any]], previous: str = GENESIS, expected: int = 1) -> str | None:
    """Where a chain, oldest entry first, is broken; None where it holds.

    Each entry has the keyword arguments of `digest` and its stored `digest`. A part of a chain goes on from the digest
    `previous`, with the number `expected`.
    """
    for entry in entries:
        stored = entry["digest"]
        if entry["sequence"] != expected:
            return f"expected entry {expected}, but entry {entry['sequence']} came"
        if entry["previous"] != previous:
            return f"entry {expected} does not follow the entry before it"
        if digest(**{name: value for name, value in entry.items() if name != "digest"}) != stored:
            return f"entry {expected} ({entry['key']}) was changed: its digest does not match its content"
        previous, expected = stored, expected + 1
    return None
