"""Events: written with the change that they announce, and what subscribers have not had of them, for people.

Plain functions; `emit` belongs into the transaction of the change, and nothing else publishes. `activities.event_bus`
delivers what is written here.
"""

from collections import Counter
from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import func, update
from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar

from activities import ledger
from activities.database import Database, insert_new, lock
from rules.subscriptions import CYCLES, KEYS, subscriptions
from schema.messages.events import DeadLetterDropped, EventData, PersonActed
from schema.messages.ledger import EntryKind
from schema.messages.outbox import DeliveryState, Event, SubscriberStatus, Undelivered
from schema.messages.platform import Platform
from schema.tables.events import CursorRow, EventRow, UndeliveredRow


def emit(session: Session, data: EventData, subject: str, key: str, at: datetime) -> None:
    """Announce a change, in its own transaction; the same key announces once for each type of event."""
    # Sequence numbers must become visible in order, or a cursor could pass an event that commits later.
    lock(session, "event")
    event_type = data.type.value
    body = data.model_dump(mode="json")
    row = {"key": f"{event_type}:{key}", "type": event_type, "subject": subject, "at": at, "data": body}
    insert_new(session, EventRow, [row], returning="key")


def subscribe(database: Database, subscriber: str) -> None:
    """Give a new subscriber its cursor: at the end of the outbox, or where it is built in, before the first event."""
    with database.transaction() as session:
        start = 0 if subscriber in (CYCLES, KEYS) else newest_sequence(session)
        row = {"subscriber": subscriber, "sequence": start}
        insert_new(session, CursorRow, [row], returning="subscriber")


def heads(subscriber: str) -> SelectOfScalar[UndeliveredRow]:
    """The first row of each subject: the others are parked behind it."""
    of_subscriber = UndeliveredRow.subscriber == subscriber
    first = select(func.min(UndeliveredRow.sequence)).where(of_subscriber).group_by(UndeliveredRow.subject)
    return select(UndeliveredRow).where(of_subscriber, col(UndeliveredRow.sequence).in_(first))


def events_of(rows: Iterable[EventRow]) -> list[Event]:
    return [Event.model_validate(row.model_dump()) for row in rows]


def newest_sequence(session: Session) -> int:
    return session.exec(select(func.max(EventRow.sequence))).one() or 0


def undelivered_count(session: Session, subscriber: str) -> int:
    return session.exec(select(func.count()).where(UndeliveredRow.subscriber == subscriber)).one()


def undelivered(database: Database) -> list[Undelivered]:
    """The events that could not be delivered, and those parked behind them, in order for each subscriber."""
    with database.reading() as session:
        typed = select(UndeliveredRow, EventRow.type).join(EventRow, col(EventRow.sequence) == UndeliveredRow.sequence)
        in_order = typed.order_by(col(UndeliveredRow.subscriber), col(UndeliveredRow.sequence))
        rows = session.exec(in_order).all()
    letters = []
    heads_by_subject: dict[tuple[str, str], UndeliveredRow] = {}
    for row, type in rows:
        # In order, so the first row of a subject is the one that is tried.
        head = heads_by_subject.setdefault((row.subscriber, row.subject), row)
        if head.attempts == 0:
            continue  # about to be tried for the first time
        state = _delivery_state(row) if row is head else DeliveryState.PARKED
        letters.append(Undelivered.model_validate(row.model_dump() | {"type": type, "state": state}))
    return letters


def _delivery_state(head: UndeliveredRow) -> DeliveryState:
    return DeliveryState.RETRYING if head.dead_at is None else DeliveryState.DEAD


def subscribers(database: Database, platform: Platform) -> list[SubscriberStatus]:
    """How far each declared subscriber is; one that the bus has not started yet has no cursor, and is left out."""
    letters = undelivered(database)
    counts = Counter((letter.subscriber, letter.state) for letter in letters)
    errors = {letter.subscriber: letter.error for letter in letters if letter.state is not DeliveryState.PARKED}
    statuses = []
    with database.reading() as session:
        for name, subscription in subscriptions(platform).items():
            cursor = session.get(CursorRow, name)
            if cursor is None:
                continue
            types = col(EventRow.type).in_([type.value for type in subscription.types])
            ahead = session.exec(select(func.count()).where(col(EventRow.sequence) > cursor.sequence, types)).one()
            by_state = {state.value: counts[name, state] for state in DeliveryState}
            behind = ahead + undelivered_count(session, name) - sum(by_state.values())
            status = SubscriberStatus(subscriber=name, behind=max(0, behind), **by_state, error=errors.get(name, ""))
            statuses.append(status)
    return statuses


def redrive(database: Database, subscriber: str | None, subject: str | None, at: datetime) -> int:
    """Try again, from now on and as if for the first time, what failed; how many dead letters that sets going."""
    chosen = []
    if subscriber is not None:
        chosen.append(col(UndeliveredRow.subscriber) == subscriber)
    if subject is not None:
        chosen.append(col(UndeliveredRow.subject) == subject)
    with database.transaction() as session:
        dead = select(func.count()).where(*chosen, col(UndeliveredRow.dead_at).is_not(None))
        count = session.exec(dead).one()
        fresh = {"attempts": 0, "due_at": at, "failed_at": None, "dead_at": None}
        session.execute(update(UndeliveredRow).where(*chosen).values(**fresh))
    return count


def drop(database: Database, subscriber: str, sequence: int, who: str, why: str, at: datetime) -> bool:
    """Give up a dead letter, on the record; what is parked behind it goes on. False where there is no such one."""
    with database.transaction() as session:
        row = session.get(UndeliveredRow, (subscriber, sequence))
        if row is None or row.dead_at is None:
            return False
        session.delete(row)
        act = DeadLetterDropped(subscriber=subscriber, sequence=sequence, who=who, why=why)
        key = f"drop:{subscriber}:{sequence}:{at.isoformat()}"
        ledger.append(session, EntryKind.PERSON_ACTED, key, row.subject, at, act)
        emit(session, PersonActed(act=act), row.subject, key, at)
    return True
