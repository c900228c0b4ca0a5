"""Canonical JSON: the one text of a value (RFC 8785). Everything that is hashed, signed or chained is this text."""

import hashlib
from typing import Any

from schema.extras import SIGNING, MissingExtra

try:
    import rfc8785
except ModuleNotFoundError:  # an agent that neither signs nor votes installs without it
    rfc8785 = None  # type: ignore[assignment]


def canonical(content: Any) -> bytes:
    """The text, in UTF-8. Raises ValueError for what JSON cannot carry: NaN, infinity, integers over 2**53 - 1."""
    if rfc8785 is None:
        raise MissingExtra("rfc8785", SIGNING)
    return rfc8785.dumps(content)


def content_hash(content: Any) -> str:
    """SHA-256 of the canonical JSON, in hexadecimal digits."""
    return hashlib.sha256(canonical(content)).hexdigest()
