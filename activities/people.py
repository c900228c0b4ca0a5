"""People: who may act, as `platform.toml` declares it; each change is in the ledger and announced.

The declaration is the authority and not the database: who can write to that must not be able to make a person.
"""

from datetime import datetime

from sqlmodel import Session, col, select

from activities import ledger
from activities.database import Database, lock
from activities.events import emit
from rules import acts, identity
from schema.messages.events import PeopleDeclared
from schema.messages.ledger import EntryKind
from schema.messages.people import People
from schema.messages.platform import Platform
from schema.tables.ledger import LedgerRow

SUBJECT = "people"


def declared(platform: Platform) -> People:
    """Who may act by this declaration."""
    return People(signed=platform.signed_acts, people=platform.people)


def declare(database: Database, platform: Platform, at: datetime) -> None:
    """Write to the ledger who may act, where that differs from what it has; idempotent.

    Raises ValueError for a key that is none.
    """
    people = declared(platform)
    for person in people.people:
        refusal = identity.key_refusal(person.public_key)
        if refusal is not None:
            raise ValueError(f"{person.name} in [[people]]: {refusal}")
    with database.reading() as session:
        if last_declared(session)[1] == people:
            return  # as at nearly every start: without the lock
    with database.transaction() as session:
        lock(session, "ledger")
        sequence, before = last_declared(session)
        if before != people:
            key = f"{SUBJECT}:{EntryKind.PEOPLE_DECLARED.value}:{sequence}"
            ledger.append(session, EntryKind.PEOPLE_DECLARED, key, SUBJECT, at, people)
            emit(session, PeopleDeclared(signed=people.signed, people=people.people), SUBJECT, key, at)


def last_declared(session: Session) -> tuple[int, People]:
    """The number of the ledger's last entry about people, and what it says; 0 and nobody where there is none."""
    entries = select(LedgerRow).where(LedgerRow.kind == EntryKind.PEOPLE_DECLARED.value)
    row = session.exec(entries.order_by(col(LedgerRow.sequence).desc()).limit(1)).first()
    return (row.sequence, ledger.read(People, row.body)) if row else (0, People())


def unproved(database: Database) -> list[str]:
    """A line for each act in the ledger that is not proved to be of the person whom it names; see `rules.acts`."""
    with database.reading() as session:
        rows = session.exec(select(LedgerRow).order_by(col(LedgerRow.sequence))).all()
        return list(acts.unproved(row.model_dump() for row in rows))
