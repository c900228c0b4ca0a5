"""Events: written with the change that they announce, delivered at least once, in order per subject.

`emit` belongs into the transaction of the change; nothing else publishes. Delivery is a workflow for each subscriber
that calls `deliver`: its cursor moves over the outbox and leaves an undelivered row for each event that it is to hear;
the row goes when the event is delivered. Of a subject only the first row is tried: when it fails, the others wait
behind it, so that order holds, and other subjects go on.
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime, timedelta

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
from activities.deliveries import Deliver, Later, Misconfigured, Undeliverable
from rules.subscriptions import CYCLES, KEYS, accepts, retry_in_s, subscriptions
from schema import wire
from schema.messages.events import (
    DeadLetterDropped,
    EventData,
    PersonActed,
)
from schema.messages.ledger import EntryKind
from schema.messages.outbox import DeliveryState, Event, SubscriberStatus, Undelivered
from schema.messages.platform import Platform
from schema.tables.events import CursorRow, EventRow, UndeliveredRow

# What is in flight when a worker dies is delivered again: at most this many events of each subject in flight.
BATCH = 100
# A subscriber that takes nothing fills this many rows; then its cursor stands, and the outbox itself is the queue.
BACKLOG = 10_000
# Subjects that are delivered at the same time.
CONCURRENCY = 16
# The outbox is read this often while slow deliveries are under way.
POLL_S = 0.25
# After so long nothing more is begun, so that what was begun ends well within the activity's timeout.
WORK_S = 20.0
HEARTBEAT_S = 1.0
log = structlog.get_logger()


def emit(session: Session, data: EventData, subject: str, key: str, at: datetime) -> None:
    """Announce a change, in its own transaction; the same key announces once for each type of event."""
    # Sequence numbers must become visible in order, or a cursor could pass an event that commits later.
    lock(session, "event")
    type, body = data.type.value, data.model_dump(mode="json")
    row = {"key": f"{type}:{key}", "type": type, "subject": subject, "at": at, "data": body}
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
    """Give a new subscriber its cursor: at the end of the outbox, or where it is built in, before the first event."""
    with database.transaction() as session:
        newest = session.exec(select(func.max(EventRow.sequence))).one() or 0
        row = {"subscriber": subscriber, "sequence": 0 if subscriber in (CYCLES, KEYS) else newest}
        insert_new(session, CursorRow, [row], returning="subscriber")


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
        if subscriber not in self._subscriptions:
            return None
        clock = _Clock()
        chains = await asyncio.to_thread(self._next, subscriber, clock.now)
        if chains:
            delivered = 0
            try:
                async with self._open(subscriber) as deliver, _heartbeats():
                    delivered = await self._hand_over(subscriber, clock, chains, deliver)
            except Misconfigured as mistake:
                # Recorded as any other failure: people see it in `events list`, and not only in the web UI.
                failed = [(chain[:1], mistake) for chain in chains]
                await asyncio.to_thread(self._record, subscriber, failed, clock.now)
            if clock.overtime:
                return delivered
        line, wait_s = await asyncio.to_thread(self._waiting, subscriber, clock.now)
        raise ApplicationError(
            line, next_retry_delay=timedelta(seconds=wait_s), category=ApplicationErrorCategory.BENIGN
        )

    async def _hand_over(self, subscriber: str, clock: "_Clock", chains: list[list[Event]], deliver: Deliver) -> int:
        """Deliver each chain until its first failure, and begin further ones while slow ones are under way."""
        delivered = 0

        async def follow(chain: list[Event]) -> tuple[list[Event], Exception | None]:
            """What was delivered of the chain, and why the next event of it was not."""
            for number, event in enumerate(chain):
                if clock.overtime or activity.is_worker_shutdown():
                    return chain[:number], None
                try:
                    await deliver(event)
                except Exception as error:  # noqa: BLE001  (whatever it is, it must not hold up other subjects)
                    return chain[: number + 1], error
                log.info("event.delivered", subscriber=subscriber, type=event.type.value, subject=event.subject)
            return chain, None

        flying: dict[asyncio.Task[tuple[list[Event], Exception | None]], str] = {}
        try:
            while chains or flying:
                flying |= {asyncio.create_task(follow(chain)): chain[0].subject for chain in chains}
                await asyncio.wait(flying, timeout=POLL_S)
                # All that has landed is recorded at once: a commit takes longer than many a delivery.
                landed = [task.result() for task in flying if task.done()]
                flying = {task: subject for task, subject in flying.items() if not task.done()}
                delivered += await asyncio.to_thread(self._record, subscriber, landed, clock.now) if landed else 0
                going_on = not clock.overtime and not activity.is_worker_shutdown()
                busy = frozenset(flying.values())
                chains = await asyncio.to_thread(self._next, subscriber, clock.now, busy) if going_on else []
        finally:
            for task in flying:
                task.cancel()
        return delivered

    def _next(self, subscriber: str, now: datetime, busy: frozenset[str] = frozenset()) -> list[list[Event]]:
        """Chains of events that are due, one for each subject that is not busy, for as many subjects as have room."""
        chains = self._due(subscriber, now, busy)
        full = len(chains) == CONCURRENCY - len(busy) or sum(map(len, chains)) == BATCH
        # While the rows keep everybody busy they stay few, and few rows are fast to look through.
        return chains if full or not self._take(subscriber, now) else self._due(subscriber, now, busy)

    def _due(self, subscriber: str, now: datetime, busy: frozenset[str]) -> list[list[Event]]:
        due = col(UndeliveredRow.dead_at).is_(None), col(UndeliveredRow.due_at) <= now
        with self._database.reading() as session:
            heads = _heads(subscriber).where(*due, col(UndeliveredRow.subject).not_in(busy))
            oldest = heads.order_by(col(UndeliveredRow.due_at), col(UndeliveredRow.sequence))
            subjects = {row.subject for row in session.exec(oldest.limit(CONCURRENCY - len(busy)))}
            rows = (
                select(EventRow)
                .join(UndeliveredRow, col(EventRow.sequence) == col(UndeliveredRow.sequence))
                .where(UndeliveredRow.subscriber == subscriber, col(UndeliveredRow.subject).in_(subjects))
                .order_by(col(EventRow.sequence))
            )
            chains: dict[str, list[Event]] = defaultdict(list)
            for event in _events(session.exec(rows.limit(BATCH))):
                chains[event.subject].append(event)
        return list(chains.values())

    def _take(self, subscriber: str, now: datetime) -> bool:
        """Move the cursor, while there is room: what the subscriber hears becomes an undelivered row, due at once.

        False where nothing was taken.
        """
        subscription = self._subscriptions[subscriber]
        with self._database.reading() as session:
            cursor = session.get(CursorRow, subscriber)
            newest = session.exec(select(func.max(EventRow.sequence))).one() or 0
            waiting = select(func.count()).where(UndeliveredRow.subscriber == subscriber)
            if cursor is not None and (cursor.sequence >= newest or session.exec(waiting).one() > BACKLOG - BATCH):
                return False
        if cursor is None:
            _subscribe(self._database, subscriber)
        with self._database.transaction() as session:
            lock(session, f"cursor:{subscriber}")
            cursor = session.get_one(CursorRow, subscriber)
            wanted = col(EventRow.type).in_([type.value for type in subscription.types])
            accepted: list[Event] = []
            while not accepted and cursor.sequence < newest:
                # Not what was announced since `newest` was read: the cursor could not pass it, and it would come twice.
                window = col(EventRow.sequence) > cursor.sequence, col(EventRow.sequence) <= newest
                after = select(EventRow).where(*window, wanted)
                fresh = _events(session.exec(after.order_by(col(EventRow.sequence)).limit(BATCH)))
                cursor.sequence = fresh[-1].sequence if len(fresh) == BATCH else newest
                accepted = [event for event in fresh if accepts(subscription, event)]
            new = {"subscriber": subscriber, "attempts": 0, "error": "", "due_at": now}
            rows = [new | {"sequence": event.sequence, "subject": event.subject} for event in accepted]
            insert_new(session, UndeliveredRow, rows, returning="sequence")
        return bool(accepted)

    def _record(self, subscriber: str, landed: Sequence[tuple[list[Event], Exception | None]], now: datetime) -> int:
        """What became of chains: all of each is delivered, but for the last event where there is an error; how many."""
        had = [event.sequence for tried, error in landed for event in (tried[:-1] if error else tried)]
        with self._database.transaction() as session:
            of_subscriber = col(UndeliveredRow.subscriber) == subscriber
            session.execute(delete(UndeliveredRow).where(of_subscriber, col(UndeliveredRow.sequence).in_(had)))
            for tried, error in landed:
                row = session.get(UndeliveredRow, (subscriber, tried[-1].sequence)) if error else None
                if error is not None and row is not None:  # unless a person dropped it meanwhile
                    self._fail(row, error, now)
        return len(had)

    def _fail(self, row: UndeliveredRow, error: Exception, now: datetime) -> None:
        row.attempts += 1
        row.error = (" ".join(str(error).split()) or type(error).__name__)[:500]
        row.failed_at = row.failed_at or now
        retry_for = timedelta(seconds=self._subscriptions[row.subscriber].retry_for_s)
        if isinstance(error, Undeliverable) or now - row.failed_at >= retry_for:
            row.dead_at = now
        else:
            asked_s = error.after_s if isinstance(error, Later) else 0.0
            row.due_at = now + timedelta(seconds=max(retry_in_s(row.attempts, random.random()), asked_s))
        facts = row.model_dump(include={"subscriber", "subject", "sequence", "attempts", "error"})
        log.warning("event.dead" if row.dead_at else "event.failed", **facts)

    def _waiting(self, subscriber: str, now: datetime) -> tuple[str, float]:
        """What the subscriber waits for, in a line, and for how many seconds at most."""
        with self._database.reading() as session:
            failed = _heads(subscriber).where(col(UndeliveredRow.attempts) > 0)
            heads = session.exec(failed.order_by(col(UndeliveredRow.failed_at).desc()).limit(10 * BATCH)).all()
        line = f"waiting for events for {subscriber}"
        if not heads:
            return line, self._poll_s
        dead = sum(row.dead_at is not None for row in heads)
        line += f"; {len(heads) - dead} subjects are tried again, {dead} wait for a person; lately: {heads[0].error}"
        due_s = min(((row.due_at - now).total_seconds() for row in heads if row.dead_at is None), default=self._poll_s)
        return line, max(0.1, min(self._poll_s, due_s))


class _Clock:
    """The server's time and not this machine's: where time is simulated, retries are due in simulated time."""

    def __init__(self) -> None:
        self._seconds = asyncio.get_running_loop().time
        self._began = self._seconds()
        self._started = activity.info().started_time

    @property
    def now(self) -> datetime:
        return self._started + timedelta(seconds=self._seconds() - self._began)

    @property
    def overtime(self) -> bool:
        return self._seconds() - self._began > WORK_S


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
    of_subscriber = UndeliveredRow.subscriber == subscriber
    first = select(func.min(UndeliveredRow.sequence)).where(of_subscriber).group_by(UndeliveredRow.subject)
    return select(UndeliveredRow).where(of_subscriber, col(UndeliveredRow.sequence).in_(first))


def _events(rows: Iterable[EventRow]) -> list[Event]:
    return [Event.model_validate(row.model_dump()) for row in rows]


def undelivered(database: Database) -> list[Undelivered]:
    """What subscribers have not had because it failed, or waits behind such a one; in order."""
    found = []
    heads: dict[tuple[str, str], UndeliveredRow] = {}
    with database.reading() as session:
        rows = session.exec(
            select(UndeliveredRow, EventRow.type)
            .join(EventRow, col(EventRow.sequence) == col(UndeliveredRow.sequence))
            .order_by(col(UndeliveredRow.subscriber), col(UndeliveredRow.sequence))
        ).all()
    for row, type in rows:
        head = heads.setdefault((row.subscriber, row.subject), row)
        if head.attempts == 0:
            continue  # about to be tried for the first time
        state = DeliveryState.RETRYING if head.dead_at is None else DeliveryState.DEAD
        state = state if row is head else DeliveryState.PARKED
        found.append(Undelivered.model_validate(row.model_dump() | {"type": type, "state": state}))
    return found


def subscribers(database: Database, platform: Platform) -> list[SubscriberStatus]:
    """How far each declared subscriber is; one that the bus has not started yet has no cursor, and is left out."""
    late = undelivered(database)
    states = [(letter.subscriber, letter.state) for letter in late]
    errors = {letter.subscriber: letter.error for letter in late if letter.state is not DeliveryState.PARKED}
    found = []
    with database.reading() as session:
        for name, subscription in subscriptions(platform).items():
            cursor = session.get(CursorRow, name)
            if cursor is not None:
                types = col(EventRow.type).in_([type.value for type in subscription.types])
                ahead = session.exec(select(func.count()).where(col(EventRow.sequence) > cursor.sequence, types)).one()
                taken = session.exec(select(func.count()).where(UndeliveredRow.subscriber == name)).one()
                counts = {state.value: states.count((name, state)) for state in DeliveryState}
                behind = ahead + taken - sum(counts.values())
                status = SubscriberStatus(subscriber=name, behind=max(0, behind), **counts, error=errors.get(name, ""))
                found.append(status)
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
        act = DeadLetterDropped(subscriber=subscriber, sequence=sequence, who=who, why=why)
        key = f"drop:{subscriber}:{sequence}:{at.isoformat()}"
        ledger.append(session, EntryKind.PERSON_ACTED, key, row.subject, at, act)
        emit(session, PersonActed(act=act), row.subject, key, at)
    return True
