"""Keys of the door: made, revoked and compared. Functions, no activities.

A key is `nautilus_`, its id and a secret of 256 random bits. The secret is shown once: the database has its SHA-256,
which is enough for a secret that no one can guess (a slow hash is for passwords). Every change is in the ledger.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlmodel import Session, col, select

from activities import ledger
from activities.database import Database
from activities.events import emit
from schema.messages.door import PLATFORM_SCOPES, DoorKey, Scope
from schema.messages.events import DoorKeyCreated, DoorKeyRevoked
from schema.messages.ledger import EntryKind
from schema.tables.identity import DoorKeyRow
from schema.tables.market import AgentRow

KEY = re.compile(r"nautilus_(?P<key_id>[0-9a-f]{12})_(?P<secret>[A-Za-z0-9_-]{43})")


class KnownKey(NamedTuple):
    """A key in force, and what its secret hashes to."""

    key: DoorKey
    secret_hash: str


def create_platform_key(
    database: Database, platform: str, scopes: Sequence[Scope], who: str, at: datetime
) -> tuple[DoorKey, str]:
    """A new key of a platform, and its text, which nobody can read again. Raises ValueError."""
    foreign = sorted(set(scopes) - set(PLATFORM_SCOPES))
    if foreign or not scopes:
        expected = f"expected scopes of a platform ({', '.join(PLATFORM_SCOPES)})"
        raise ValueError(f"{expected}, but {foreign[0] if foreign else 'none'} came")
    with database.transaction() as session:
        return _create(session, platform, tuple(dict.fromkeys(scopes)), who, at)


def create_agent_key(database: Database, agent_id: str, who: str, at: datetime) -> tuple[DoorKey, str]:
    """A new key of a registered agent, and its text, which nobody can read again. Raises ValueError."""
    with database.transaction() as session:
        if session.get(AgentRow, agent_id) is None:
            raise ValueError(
                f"expected a registered agent, but there is no {agent_id}; `nautilus agent register` adds one"
            )
        return _create(session, agent_id, (Scope.AGENTS,), who, at)


def _create(session: Session, holder: str, scopes: tuple[Scope, ...], who: str, at: datetime) -> tuple[DoorKey, str]:
    key = DoorKey(key_id=secrets.token_hex(6), holder=holder, scopes=scopes, created_at=at, created_by=who)
    secret = secrets.token_urlsafe(32)
    row = DoorKeyRow(**key.model_dump(mode="json", exclude={"created_at"}), created_at=at, secret_hash=_hash(secret))
    session.add(row)
    _record(session, DoorKeyCreated(holder=holder, scopes=scopes, who=who), key.key_id, at)
    return key, f"nautilus_{key.key_id}_{secret}"


def revoke(database: Database, key_id: str, who: str, why: str, at: datetime) -> DoorKey:
    """End a key: within seconds it opens nothing. Raises ValueError where no such key is in force."""
    with database.transaction() as session:
        row = session.get(DoorKeyRow, key_id, with_for_update=True)
        if row is None:
            raise ValueError(
                f"expected a key of the door, but there is no {key_id}; `nautilus door key list` shows them"
            )
        if row.revoked_at is not None:
            raise ValueError(f"expected a key in force, but {key_id} was revoked at {row.revoked_at:%Y-%m-%d %H:%M}Z")
        row.revoked_at = at
        session.add(row)
        _record(session, DoorKeyRevoked(holder=row.holder, who=who, why=why), key_id, at)
        return _key(row)


def _record(session: Session, change: DoorKeyCreated | DoorKeyRevoked, key_id: str, at: datetime) -> None:
    kind = EntryKind(change.type.value)
    ledger.append(session, kind, f"{kind.value}:{key_id}", key_id, at, change)
    emit(session, change, key_id, key_id, at)


def all_keys(session: Session) -> list[DoorKey]:
    """Every key that was ever made, the newest first."""
    newest_first = select(DoorKeyRow).order_by(col(DoorKeyRow.created_at).desc(), col(DoorKeyRow.key_id))
    return [_key(row) for row in session.exec(newest_first).all()]


def keys_in_force(database: Database) -> dict[str, KnownKey]:
    """The keys that open the door, by their ids."""
    with database.reading() as session:
        rows = session.exec(select(DoorKeyRow).where(col(DoorKeyRow.revoked_at).is_(None))).all()
    return {row.key_id: KnownKey(_key(row), row.secret_hash) for row in rows}


def matching(keys: Mapping[str, KnownKey], text: str) -> DoorKey | None:
    """The key in force whose text this is; None for any other text."""
    match = KEY.fullmatch(text)
    known = keys.get(match["key_id"]) if match else None
    if match is None or known is None:
        return None
    return known.key if hmac.compare_digest(_hash(match["secret"]), known.secret_hash) else None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _key(row: DoorKeyRow) -> DoorKey:
    return DoorKey.model_validate(row.model_dump(exclude={"secret_hash"}))
