"""Texts: stores a long value once, by the hash of its content, and reads it back. Functions, no activities.

A row of the table `parameter` refers to a long text, so that a prompt that is promoted, rolled back and promoted again
is one row. Proposals, designs, events and the ledger's entries keep the text itself: what is signed, hashed or chained
must be evidence without another table.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from schema.messages.base import Value, is_long
from schema.messages.texts import text_id

if TYPE_CHECKING:
    from sqlmodel import Session

    from activities.reading import Readable

# What a row holds in place of a long text: {"text": its content's hash}.
REFERENCE = "text"


def store(session: "Session", value: Value) -> Any:
    """What a row holds of a value. A long text is put into its table, once, and referred to; idempotent."""
    from activities.database import insert_new  # loads SQLAlchemy, which commands that only read do without
    from schema.tables.texts import TextRow

    if not isinstance(value, str) or not is_long(value):
        return value
    content_hash = text_id(value)
    insert_new(session, TextRow, [{"content_hash": content_hash, "text": value}], returning="content_hash")
    return {REFERENCE: content_hash}


def load(session: "Session", stored: Sequence[Any]) -> list[Value]:
    """The values that rows hold, in their order; raises ValueError where a text is gone."""
    from sqlmodel import col, select

    from schema.tables.texts import TextRow

    hashes = _hashes(stored)
    rows = session.exec(select(TextRow).where(col(TextRow.content_hash).in_(hashes))).all() if hashes else []
    texts = {row.content_hash: row.text for row in rows}
    return [_value(held, texts) for held in stored]


def read(readable: "Readable", stored: Sequence[Any]) -> list[Value]:
    """As `load`, for commands that read in plain SQL."""
    hashes = {f"h{number}": content_hash for number, content_hash in enumerate(_hashes(stored))}
    texts = dict[str, str]()
    if hashes:
        names = ", ".join(f":{name}" for name in hashes)
        rows = readable.rows(f'SELECT content_hash, text FROM "text" WHERE content_hash IN ({names})', **hashes)
        texts = {row["content_hash"]: row["text"] for row in rows}
    return [_value(held, texts) for held in stored]


def _hashes(stored: Iterable[Any]) -> list[str]:
    return sorted({held[REFERENCE] for held in stored if isinstance(held, dict)})


def _value(held: Any, texts: Mapping[str, str]) -> Value:
    if not isinstance(held, dict):
        value: Value = held
        return value
    content_hash = held[REFERENCE]
    text = texts.get(content_hash)
    if text is None:
        raise ValueError(f"expected the text {content_hash} in the table text, but it is gone")
    if text_id(text) != content_hash:
        raise ValueError(f"expected the text {content_hash} as it was stored, but it was altered")
    return text
