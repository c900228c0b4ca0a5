"""Events: written with the change that they announce, delivered at least once, in order per subject.

`emit` belongs into the transaction of the change; nothing else publishes. Delivery is a workflow for each subscriber
that calls `deliver`: the cursor moves over a batch once each of its events has been delivered or stands as an
undelivered row. A failed event is tried again; later ones of its subject are parked behind it, so that order holds,
and those of other subjects go on.
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Self

import structlog
from sqlalchemy import delete, func, update
from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar
from temporalio import activity
from temporalio.client import Client
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from activities import ledger
from activities.database import Database, insert_new, lock
from activities.deliveries import Deliver, Later, Undeliverable
from rules.subscriptions import CYCLES, Subscription, hears, retry_in_s, subscriptions
from schema import wire
from schema.messages.events import DeliveryState, Event, EventType, SubscriberStatus, Undelivered
from schema.messages.ledger import EntryKind
from schema.messages.platform import Platform
from schema.tables.events import CursorRow, EventRow, UndeliveredRow

# What is in flight when a worker dies is delivered again: at most this many events, and as many retries.
BATCH = 100
# A subscriber that takes nothing fills this many rows; then its cursor stands, and the outbox itself is the queue.
BACKLOG = 10_000
# Subjects that are delivered at the same time.
CONCURRENCY = 16
# What has been delivered is recorded this often, while slow deliveries are still under way.
RECORD_S = 0.25
# After so long nothing more is begun, so that what was begun ends well within the activity's timeout.
WORK_S = 20.0
HEARTBEAT_S = 1.0
log = structlog.get_logger()


def emit(session: Session, type: EventType, subject: str, key: str, at: datetime, **data: Any) -> None:
    """Announce a change, in its own transaction; the same key announces once."""
    # Sequence numbers must become visible in order, or a cursor could pass an event that commits later.
    lock(session, "event")
    row = {"key": f"{type.value}:{key}", "type": type.value, "subject": subject, "at": at, "data": data}
    insert_new(session, EventRow, [row], returning="key")


async def start_bus(client: Client, database: Database, platform: Platform) -> None:
    """One dispatcher for each subscriber; the id makes it one. A new subscriber hears what happens from now on."""
    for subscriber in subscriptions(platform):
        await asyncio.to_thread(_subscribe, database, subscriber)
        await client.start_workflow(
            wire.EVENT_BUS,
            subscriber,
            id=f"event-bus:{subscriber}",
            task_queue=wire.TASK_QUEUE,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            static_summary=f"Event bus: hands the outbox to {subscriber}",
        )


def _subscribe(database: Database, subscriber: str) -> None:
    """Give a new subscriber its cursor: at the end of the outbox. `cycles` was there before the first event."""
    with database.transaction() as session:
        newest = session.exec(select(func.max(EventRow.sequence))).one() or 0
        row = {"subscriber": subscriber, "sequence": 0 if subscriber == CYCLES else newest}
        insert_new(session, CursorRow, [row], returning="subscriber")


@dataclass(frozen=True)
class _Batch:
    """What to hand over: `chains` by subject, in order. `fresh` are the events between the cursor and `newest`."""

    cursor: int
    newest: int
    fresh: tuple[Event, ...]
    chains: tuple[tuple[Event, ...], ...]

    @classmethod
    def none(cls, cursor: int) -> Self:
        return cls(cursor, cursor, (), ())


class _Work:
    """One attempt at serving a subscriber."""

    def __init__(self, subscriber: str, subscription: Subscription) -> None:
        self.subscriber = subscriber
        self.subscription = subscription
        self.delivered = 0
        self._clock = asyncio.get_running_loop().time
        self._began = self._clock()
        self._started = activity.info().started_time
        self._stopping = activity.is_worker_shutdown

    @property
    def now(self) -> datetime:
        """The server's time and not this machine's: where time is simulated, retries are due in simulated time."""
        return self._started + timedelta(seconds=self._clock() - self._began)

    @property
    def overtime(self) -> bool:
        return self._clock() - self._began > WORK_S

    @property
    def goes_on(self) -> bool:
        return not self.overtime and not self._stopping()


class EventActivities:
    """Delivers the outbox."""

    def __init__(
        self,
        database: Database,
        platform: Platform,
        open_delivery: Callable[[str], AbstractAsyncContextManager[Deliver]],
        poll_s: float = 2.0,
    ) -> None:
        self._database = database
        self._subscriptions = subscriptions(platform)
        self._open = open_delivery
        self._poll_s = poll_s

    @activity.defn
    async def deliver(self, subscriber: str) -> int | None:
        """Hand `subscriber` what it has not had; None where nobody declares it any more.

        Once there is nothing more that it takes now, ask to be retried: that is not history, holds no slot, lets
        simulated time skip, and shows what is wrong in the web UI. After a long time of work, say how much was done.
        """
        subscription = self._subscriptions.get(subscriber)
        if subscription is None:
            return None
        work = _Work(subscriber, subscription)
        batch = await asyncio.to_thread(self._next, work)
        if batch.chains:
            async with self._open(subscriber) as deliver, _heartbeats():
                await self._hand_over(work, batch, deliver)
        elif batch.newest > batch.cursor:
            await asyncio.to_thread(self._record, work, batch, set(), {})
        if work.overtime:
            return work.delivered
        line, wait_s = await asyncio.to_thread(self._waiting, work)
        raise ApplicationError(
            line, next_retry_delay=timedelta(seconds=wait_s), category=ApplicationErrorCategory.BENIGN
        )

    async def _hand_over(self, work: _Work, batch: _Batch, deliver: Deliver) -> None:
        """Deliver each chain until its first failure, and go on with further ones while the slow ones are under way."""
        had: set[int] = set()
        failures: dict[int, Exception] = {}
        slots = asyncio.Semaphore(CONCURRENCY)

        async def follow(chain: Iterable[Event]) -> None:
            for event in chain:
                async with slots:
                    if not work.goes_on:
                        return
                    try:
                        await deliver(event)
                    except Exception as error:  # noqa: BLE001  (whatever it is, it must not hold up other subjects)
                        failures[event.sequence] = error
                        return
                    had.add(event.sequence)
                    log.info(
                        "event.delivered", subscriber=work.subscriber, type=event.type.value, subject=event.subject
                    )

        flying: dict[asyncio.Task[None], str] = {}
        try:
            while flying or batch.chains or batch.newest > batch.cursor:
                flying |= {asyncio.create_task(follow(chain)): chain[0].subject for chain in batch.chains}
                if flying:
                    await asyncio.wait(flying, timeout=RECORD_S)
                # Of one moment: a subject is busy until all that became of its chain has been recorded.
                landed = [task for task in flying if task.done()]
                done, failed = set(had), dict(failures)
                await asyncio.to_thread(self._record, work, batch, done, failed)
                work.delivered += len(done)
                had -= done
                for sequence in failed:
                    del failures[sequence]
                for task in landed:
                    del flying[task]
                busy = frozenset(flying.values())
                batch = await asyncio.to_thread(self._next, work, busy) if work.goes_on else _Batch.none(batch.newest)
        finally:
            for task in flying:
                task.cancel()

    def _next(self, work: _Work, busy: frozenset[str] = frozenset()) -> _Batch:
        """What is due again, and the next events after the cursor while there is room for them."""
        subscriber, subscription, room = work.subscriber, work.subscription, BATCH - len(busy)
        with self._database.reading() as session:
            cursor = session.get(CursorRow, subscriber)
            due = _due(session, subscriber, work.now, busy, room)
            fresh: tuple[Event, ...] = ()
            newest = cursor.sequence if cursor else 0
            waiting = select(func.count()).where(UndeliveredRow.subscriber == subscriber)
            if cursor and room > 0 and session.exec(waiting).one() <= BACKLOG - BATCH:
                wanted = col(EventRow.type).in_([type.value for type in subscription.types])
                after = select(EventRow).where(col(EventRow.sequence) > newest, wanted)
                fresh = _events(session.exec(after.order_by(col(EventRow.sequence)).limit(BATCH)))
                last = session.exec(select(func.max(EventRow.sequence))).one() or 0
                newest = fresh[-1].sequence if len(fresh) == BATCH else max(last, newest)
                fresh = tuple(event for event in fresh if hears(subscription, event))
            behind = col(UndeliveredRow.subject).in_({event.subject for event in fresh})
            blocked = set(
                session.exec(select(UndeliveredRow.subject).where(UndeliveredRow.subscriber == subscriber, behind))
            )
        if cursor is None:
            _subscribe(self._database, subscriber)
            return self._next(work, busy)
        chains: dict[str, list[Event]] = defaultdict(list)
        for event in (*due, *(event for event in fresh if event.subject not in blocked)):
            chains[event.subject].append(event)
        return _Batch(cursor.sequence, newest, fresh, tuple(map(tuple, chains.values())))

    def _record(self, work: _Work, batch: _Batch, had: set[int], failures: dict[int, Exception]) -> None:
        """Move the cursor over the batch; what the subscriber has not had becomes, or stays, an undelivered row."""
        subscriber, now = work.subscriber, work.now
        with self._database.transaction() as session:
            lock(session, f"cursor:{subscriber}")
            cursor = session.get_one(CursorRow, subscriber)
            if cursor.sequence != batch.cursor:
                # This attempt was given up for dead: what it has delivered, the other one delivers again.
                raise ApplicationError(f"expected to be the only one that serves {subscriber}, but another does")
            cursor.sequence = batch.newest
            mine = col(UndeliveredRow.subscriber) == subscriber
            session.execute(delete(UndeliveredRow).where(mine, col(UndeliveredRow.sequence).in_(had)))
            rows = [
                {"subscriber": subscriber, "sequence": e.sequence, "subject": e.subject}
                | {"attempts": 0, "error": "", "due_at": now}
                for e in batch.fresh
                if e.sequence not in had
            ]
            insert_new(session, UndeliveredRow, rows, returning="sequence")
            for sequence, error in failures.items():
                row = session.get(UndeliveredRow, (subscriber, sequence))
                if row is not None:  # unless a person dropped it meanwhile
                    self._fail(row, error, now)

    def _fail(self, row: UndeliveredRow, error: Exception, now: datetime) -> None:
        row.attempts += 1
        row.error = (" ".join(str(error).split()) or type(error).__name__)[:500]
        row.failed_at = row.failed_at or now
        retry_for = timedelta(seconds=self._subscriptions[row.subscriber].retry_for_s)
        if isinstance(error, Undeliverable) or now - row.failed_at >= retry_for:
            row.dead_at = now
        else:
            wait_s = retry_in_s(row.attempts, random.random())
            asked_s = error.after_s if isinstance(error, Later) else 0.0
            row.due_at = now + timedelta(seconds=max(wait_s, asked_s))
        log.warning(
            "event.dead" if row.dead_at else "event.failed",
            subscriber=row.subscriber,
            subject=row.subject,
            sequence=row.sequence,
            attempts=row.attempts,
            error=row.error,
        )

    def _waiting(self, work: _Work) -> tuple[str, float]:
        """What the subscriber waits for, in a line, and for how many seconds at most."""
        subscriber, now = work.subscriber, work.now
        with self._database.reading() as session:
            latest = _heads(subscriber).order_by(col(UndeliveredRow.failed_at).desc()).limit(10 * BATCH)
            heads = session.exec(latest).all()
        line = f"waiting for events for {subscriber}"
        if not heads:
            return line, self._poll_s
        dead = sum(row.dead_at is not None for row in heads)
        line += f"; {len(heads) - dead} subjects are tried again, {dead} wait for a person; lately: {heads[0].error}"
        due_s = min(((row.due_at - now).total_seconds() for row in heads if row.dead_at is None), default=self._poll_s)
        return line, max(0.1, min(self._poll_s, due_s))


@asynccontextmanager
async def _heartbeats() -> AsyncIterator[None]:
    """Tell the server that this worker lives, so that it notices soon when it does not."""

    async def beat() -> None:
        while True:
            activity.heartbeat()
            await asyncio.sleep(HEARTBEAT_S)

    beating = asyncio.create_task(beat())
    try:
        yield
    finally:
        beating.cancel()


# ---- what subscribers have not had, for the bus and for people


def _heads(subscriber: str) -> SelectOfScalar[UndeliveredRow]:
    """The first row of each subject: the others are parked behind it."""
    first = (
        select(func.min(UndeliveredRow.sequence))
        .where(UndeliveredRow.subscriber == subscriber)
        .group_by(UndeliveredRow.subject)
    )
    mine = UndeliveredRow.subscriber == subscriber
    return select(UndeliveredRow).where(mine, col(UndeliveredRow.sequence).in_(first))


def _due(session: Session, subscriber: str, now: datetime, busy: frozenset[str], room: int) -> tuple[Event, ...]:
    """Of at most `room` subjects whose first event is to be tried again: that one, and what is parked behind it."""
    due = col(UndeliveredRow.dead_at).is_(None), col(UndeliveredRow.due_at) <= now
    heads = session.exec(
        _heads(subscriber)
        .where(*due, col(UndeliveredRow.subject).not_in(busy))
        .order_by(col(UndeliveredRow.due_at))
        .limit(max(0, room))
    ).all()
    if not heads:
        return ()
    rows = (
        select(EventRow)
        .join(UndeliveredRow, col(EventRow.sequence) == col(UndeliveredRow.sequence))
        .where(UndeliveredRow.subscriber == subscriber, col(UndeliveredRow.subject).in_({row.subject for row in heads}))
        .order_by(col(EventRow.sequence))
        .limit(BATCH)
    )
    return _events(session.exec(rows))


def _events(rows: Iterable[EventRow]) -> tuple[Event, ...]:
    return tuple(Event.model_validate(row.model_dump()) for row in rows)


def outbox(database: Database, after: int | None = None, latest: int = BATCH) -> list[Event]:
    """Events in order: the next ones after a sequence number, or the latest."""
    known = col(EventRow.type).in_([type.value for type in EventType])
    with database.reading() as session:
        if after is None:
            newest = select(EventRow).where(known).order_by(col(EventRow.sequence).desc()).limit(latest)
            return list(_events(session.exec(newest)))[::-1]
        coming = select(EventRow).where(known, col(EventRow.sequence) > after).order_by(col(EventRow.sequence))
        return list(_events(session.exec(coming.limit(latest))))


def undelivered(database: Database) -> list[Undelivered]:
    """What subscribers have not had although their cursor has passed it, in order."""
    found = []
    blocked: set[tuple[str, str]] = set()
    with database.reading() as session:
        rows = session.exec(
            select(UndeliveredRow, EventRow.type)
            .join(EventRow, col(EventRow.sequence) == col(UndeliveredRow.sequence))
            .order_by(col(UndeliveredRow.subscriber), col(UndeliveredRow.sequence))
        ).all()
    for row, type in rows:
        state = DeliveryState.RETRYING if row.dead_at is None else DeliveryState.DEAD
        if (row.subscriber, row.subject) in blocked:
            state = DeliveryState.PARKED
        blocked.add((row.subscriber, row.subject))
        found.append(Undelivered.model_validate(row.model_dump() | {"type": type, "state": state}))
    return found


def subscribers(database: Database, platform: Platform) -> list[SubscriberStatus]:
    """How far each declared subscriber is; one that the bus has not started yet has no cursor, and is left out."""
    states = [(late.subscriber, late.state) for late in undelivered(database)]
    found = []
    with database.reading() as session:
        for name, subscription in subscriptions(platform).items():
            cursor = session.get(CursorRow, name)
            if cursor is not None:
                types = col(EventRow.type).in_([type.value for type in subscription.types])
                behind = select(func.count()).where(col(EventRow.sequence) > cursor.sequence, types)
                counts = {state.value: states.count((name, state)) for state in DeliveryState}
                found.append(SubscriberStatus(subscriber=name, behind=session.exec(behind).one(), **counts))
    return found


def redrive(database: Database, subscriber: str | None, subject: str | None, at: datetime) -> int:
    """Try again, from now on and as if for the first time, what failed; how many dead letters that sets going."""
    chosen = [col(UndeliveredRow.subscriber) == subscriber] if subscriber is not None else []
    chosen += [col(UndeliveredRow.subject) == subject] if subject is not None else []
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
        act = {"act": "drop", "subscriber": subscriber, "sequence": sequence, "who": who, "why": why}
        key = f"drop:{subscriber}:{sequence}:{at.isoformat()}"
        ledger.append(session, EntryKind.PERSON_ACTED, key, row.subject, at, act)
        emit(session, EventType.PERSON_ACTED, row.subject, key, at, act=act)
    return True
