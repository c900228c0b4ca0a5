"""Ledger: appends to the hash chain and reads it. It never changes an entry.

`append` belongs in the transaction of the change that it records; it is idempotent by the entry's key. In a transaction
of a database that has a person's signer (`Database.signer`), the person signs every entry.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session, col, select

from activities.database import SIGNER, Database, Signer, lock
from activities.reading import entries as entries
from rules import chain
from schema.canonical import canonical
from schema.messages.ledger import SIGNED, EntryKind
from schema.tables.ledger import LedgerRow

# Fields that were renamed after entries had been written: the chain keeps what was written.
RENAMED = {"way_back": "rollback_plan"}

M = TypeVar("M", bound=BaseModel)


def read(message: type[M], body: str) -> M:
    """An entry's body under today's field names; raises ValidationError where it is no such message."""

    def renamed(fields: dict[str, Any]) -> dict[str, Any]:
        return {RENAMED.get(name, name): value for name, value in fields.items()}

    try:
        content = json.loads(body, object_hook=renamed)
    except (ValueError, RecursionError):
        content = body  # damaged: validation raises
    return message.model_validate(content)


def recorded(session: Session, key: str) -> bool:
    """Whether an entry with this natural key is in the ledger."""
    return session.exec(select(LedgerRow.sequence).where(LedgerRow.key == key)).first() is not None


def append(
    session: Session, kind: EntryKind, key: str, subject: str, at: datetime, body: BaseModel | dict[str, Any]
) -> bool:
    """Add an entry under its natural key; False where it is there already."""
    lock(session, "ledger")
    if recorded(session, key):
        return False
    last = session.exec(select(LedgerRow).order_by(col(LedgerRow.sequence).desc()).limit(1)).first()
    content = body.model_dump(mode="json") if isinstance(body, BaseModel) else body
    fields: dict[str, Any] = {
        "sequence": last.sequence + 1 if last else 1,
        "key": key,
        "kind": kind.value,
        "subject": subject,
        "at": at.astimezone(UTC).isoformat(),
        "body": canonical(content).decode(),
        "previous": last.digest if last else chain.GENESIS,
    }
    signer: Signer | None = session.info.get(SIGNER)
    if signer is not None:
        fields["body"] = canonical(content | {SIGNED: signer(fields)}).decode()
    session.add(LedgerRow(**fields, digest=chain.digest(**fields)))
    session.flush()
    return True


def verify(database: Database) -> tuple[int, str, str | None]:
    """Recompute the whole chain: the number of entries, the head's digest, and where it breaks, or None."""
    head, sequence = chain.GENESIS, 0
    with database.reading() as session:
        sequences = session.exec(select(LedgerRow.sequence).order_by(col(LedgerRow.sequence))).all()

        def links() -> Iterator[dict[str, Any]]:
            nonlocal head, sequence
            # One by one: damage can make a text unreadable, and must not hide where it is.
            for sequence in sequences:
                row = session.exec(select(LedgerRow).where(LedgerRow.sequence == sequence)).one()
                head = row.digest
                yield row.model_dump()

        try:
            broken = chain.first_break(links())
        except (SQLAlchemyError, ValueError) as error:
            broken = f"entry {sequence} cannot be read: {error}"
        return len(sequences), head, broken
