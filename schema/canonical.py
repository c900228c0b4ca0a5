"""Canonical JSON: the one text of a value (RFC 8785). Everything that is hashed, signed or chained is this text."""

import hashlib
from typing import Any

import rfc8785


def canonical(content: Any) -> bytes:
    """The text, in UTF-8. Raises ValueError for what JSON cannot carry: NaN, infinity, integers over 2**53 - 1."""
    return rfc8785.dumps(content)


def content_hash(content: Any) -> str:
    """SHA-256 of the canonical JSON, in hexadecimal digits."""
    return hashlib.sha256(canonical(content)).hexdigest()
