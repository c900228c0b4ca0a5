"""The event bus: delivers each event at least once, in order within its subject.

Delivery is a workflow for each subscriber that calls `deliver`: its cursor moves over the outbox and leaves an
undelivered row for each event that the subscriber accepts; the row goes when the event is delivered. Of a subject only
the first row is tried: when it fails, the others wait behind it, which keeps their order, and other subjects go on.
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime, timedelta
from typing import NamedTuple

import structlog
from sqlalchemy import bindparam, delete, exists, func
from sqlmodel import Session, col, select
from temporalio import activity
from temporalio.client import Client
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from activities.database import Database, insert_new, lock
from activities.deliveries import Deliver, Later, Misconfigured, Undeliverable
from activities.events import events_of, heads, newest_sequence, subscribe, undelivered_count
from rules.subscriptions import Subscription, accepts, retry_in_s, subscriptions
from schema import wire
from schema.messages.outbox import Event
from schema.messages.platform import Platform
from schema.tables.events import CursorRow, EventRow, UndeliveredRow

# What is in flight when a worker dies is delivered again: at most this many events of each subject in flight.
BATCH = 100
# A subscriber that fails has at most this many rows; then its cursor stays, and the outbox itself is the queue.
BACKLOG = 10_000
# Subjects that are delivered at the same time.
CONCURRENCY = 16
# The outbox is read this often while slow deliveries are under way.
POLL_S = 0.25
# After this time no delivery begins, so that those under way end well within the activity's timeout.
WORK_S = 20.0
HEARTBEAT_S = 1.0
log = structlog.get_logger()
# What a subscriber has read up to, the newest event, and whether anything is undelivered. Nearly every poll asks this
# and no more, so it is built once.
POSITION = select(
    CursorRow.sequence,
    select(func.max(EventRow.sequence)).scalar_subquery(),
    exists().where(col(UndeliveredRow.subscriber) == CursorRow.subscriber),
).where(CursorRow.subscriber == bindparam("subscriber"))


async def start_bus(client: Client, database: Database, platform: Platform) -> None:
    """Start one dispatcher for each subscriber, unless it runs. A new subscriber receives what happens from now on."""
    for subscriber in subscriptions(platform):
        await asyncio.to_thread(subscribe, database, subscriber)
        await client.start_workflow(
            wire.EVENT_BUS,
            subscriber,
            id=f"event-bus:{subscriber}",
            task_queue=wire.TASK_QUEUE,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            static_summary=f"Event bus: delivers the outbox to {subscriber}",
        )


class ChainResult(NamedTuple):
    """What became of a subject's events: those delivered, in order, and the one that failed, with its error."""

    delivered: list[Event]
    failed: Event | None = None
    error: Exception | None = None


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
        """Deliver to `subscriber` what is due; None where it is no longer declared.

        Where nothing more is due it asks to be retried: a retry is not history, holds no slot, lets simulated time
        skip, and shows what is wrong in the web UI. After WORK_S it returns how many events were delivered.
        """
        if subscriber not in self._subscriptions:
            return None
        if await asyncio.to_thread(self._is_idle, subscriber):
            raise _ask_again(f"waiting for events for {subscriber}", self._poll_s)
        clock = _Clock()
        chains = await asyncio.to_thread(self._next, subscriber, clock.now)
        if chains:
            delivered = await self._open_and_deliver(subscriber, clock, chains)
            if clock.overtime:
                return delivered
        raise await asyncio.to_thread(self._retry_later, subscriber, clock.now)

    async def _open_and_deliver(self, subscriber: str, clock: "_Clock", chains: list[list[Event]]) -> int:
        """Deliver these chains and what becomes due meanwhile; returns how many events were delivered."""
        try:
            async with self._open(subscriber) as deliver, _heartbeats():
                return await self._deliver_chains(subscriber, clock, chains, deliver)
        except Misconfigured as mistake:
            # Recorded like any other failure, so that `events list` shows it, and not only the web UI.
            failed = [ChainResult([], chain[0], mistake) for chain in chains]
            await asyncio.to_thread(self._record, subscriber, failed, clock.now)
            return 0

    async def _deliver_chains(
        self, subscriber: str, clock: "_Clock", chains: list[list[Event]], deliver: Deliver
    ) -> int:
        """Deliver each chain until its first failure, and begin further ones while slow ones are under way."""
        delivered = 0
        in_flight: dict[asyncio.Task[ChainResult], str] = {}  # the subject of each chain
        try:
            while chains or in_flight:
                for chain in chains:
                    task = asyncio.create_task(_follow(subscriber, chain, clock, deliver))
                    in_flight[task] = chain[0].subject
                delivered += await self._collect(subscriber, clock, in_flight)
                chains = []
                if clock.delivery_may_begin:
                    busy = frozenset(in_flight.values())
                    chains = await asyncio.to_thread(self._next, subscriber, clock.now, busy)
        finally:
            for task in in_flight:
                task.cancel()
        return delivered

    async def _collect(self, subscriber: str, clock: "_Clock", in_flight: dict[asyncio.Task[ChainResult], str]) -> int:
        """Take the chains that have ended out of `in_flight` and record them; how many events were delivered."""
        done, _ = await asyncio.wait(in_flight, timeout=POLL_S)
        if not done:
            return 0
        for task in done:
            del in_flight[task]
        # One transaction for all results: a commit takes longer than many a delivery.
        results = [task.result() for task in done]
        return await asyncio.to_thread(self._record, subscriber, results, clock.now)

    def _is_idle(self, subscriber: str) -> bool:
        """Whether nothing is undelivered, and no event is new."""
        with self._database.reading() as session:
            position = session.execute(POSITION, {"subscriber": subscriber}).first()
        if position is None:
            return False
        has_read, newest, is_waited_for = position
        return not is_waited_for and has_read >= (newest or 0)

    def _next(self, subscriber: str, now: datetime, busy: frozenset[str] = frozenset()) -> list[list[Event]]:
        """Chains of events that are due, one for each subject that is not busy, up to CONCURRENCY subjects in all."""
        chains = self._due(subscriber, now, busy)
        # The cursor moves only when there is too little to do: few undelivered rows are fast to query.
        is_full = len(chains) == CONCURRENCY - len(busy) or sum(map(len, chains)) == BATCH
        if not is_full and self._take(subscriber, now):
            chains = self._due(subscriber, now, busy)
        return chains

    def _due(self, subscriber: str, now: datetime, busy: frozenset[str]) -> list[list[Event]]:
        """Chains of undelivered events, oldest first, of the free subjects whose first row is due."""
        alive = col(UndeliveredRow.dead_at).is_(None)
        is_due = col(UndeliveredRow.due_at) <= now
        is_free = col(UndeliveredRow.subject).not_in(busy)
        due_heads = heads(subscriber).where(alive, is_due, is_free)
        first_due = due_heads.order_by(col(UndeliveredRow.due_at), col(UndeliveredRow.sequence))
        with self._database.reading() as session:
            rows = session.exec(first_due.limit(CONCURRENCY - len(busy)))
            subjects = {row.subject for row in rows}
            events = _undelivered_events(session, subscriber, subjects)
        chains: dict[str, list[Event]] = defaultdict(list)
        for event in events:
            chains[event.subject].append(event)
        return list(chains.values())

    def _take(self, subscriber: str, now: datetime) -> bool:
        """Read further events, and add an undelivered row, due at once, for each that the subscriber accepts.

        False where no row was added: there was nothing new, nothing that it accepts, or no room in its backlog.
        """
        with self._database.reading() as session:
            known = session.get(CursorRow, subscriber)
            newest = newest_sequence(session)
            has_read_all = known is not None and known.sequence >= newest
            if has_read_all or undelivered_count(session, subscriber) > BACKLOG - BATCH:
                return False
        if known is None:
            subscribe(self._database, subscriber)
        with self._database.transaction() as session:
            lock(session, f"cursor:{subscriber}")
            cursor = session.get_one(CursorRow, subscriber)
            accepted = _advance(session, cursor, self._subscriptions[subscriber], newest)
            new = {"subscriber": subscriber, "attempts": 0, "error": "", "due_at": now}
            rows = [dict(new, sequence=event.sequence, subject=event.subject) for event in accepted]
            insert_new(session, UndeliveredRow, rows, returning="sequence")
        return bool(accepted)

    def _record(self, subscriber: str, results: Sequence[ChainResult], now: datetime) -> int:
        """Delete the rows of what was delivered and record each failure; returns how many events were delivered."""
        delivered = [event.sequence for result in results for event in result.delivered]
        with self._database.transaction() as session:
            session.execute(
                delete(UndeliveredRow).where(
                    col(UndeliveredRow.subscriber) == subscriber, col(UndeliveredRow.sequence).in_(delivered)
                )
            )
            for result in results:
                if result.failed is None or result.error is None:
                    continue
                row = session.get(UndeliveredRow, (subscriber, result.failed.sequence))
                if row is not None:  # unless a person dropped it meanwhile
                    self._fail(row, result.error, now)
        return len(delivered)

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

    def _retry_later(self, subscriber: str, now: datetime) -> ApplicationError:
        """Ask to be retried when something may be due; the message says what the subscriber waits for."""
        failed = self._latest_failed(subscriber)
        line = f"waiting for events for {subscriber}"
        wait_s = self._poll_s
        if failed:
            retried = [row for row in failed if row.dead_at is None]
            dead = len(failed) - len(retried)
            line += f"; {len(retried)} subjects are tried again, {dead} wait for a person; lately: {failed[0].error}"
            due_s = min(((row.due_at - now).total_seconds() for row in retried), default=self._poll_s)
            wait_s = max(0.1, min(self._poll_s, due_s))
        return _ask_again(line, wait_s)

    def _latest_failed(self, subscriber: str) -> Sequence[UndeliveredRow]:
        """The first undelivered event of each subject where that has failed, the latest failure first."""
        failed_heads = heads(subscriber).where(col(UndeliveredRow.attempts) > 0)
        latest = failed_heads.order_by(col(UndeliveredRow.failed_at).desc()).limit(10 * BATCH)
        with self._database.reading() as session:
            return session.exec(latest).all()


def _ask_again(line: str, wait_s: float) -> ApplicationError:
    """What is raised in order to be retried after so long; the line says what is waited for."""
    delay = timedelta(seconds=wait_s)
    return ApplicationError(line, next_retry_delay=delay, category=ApplicationErrorCategory.BENIGN)


def _undelivered_events(session: Session, subscriber: str, subjects: Collection[str]) -> list[Event]:
    """The oldest undelivered events of these subjects."""
    undelivered = select(EventRow).join(UndeliveredRow, col(EventRow.sequence) == col(UndeliveredRow.sequence))
    wanted = undelivered.where(UndeliveredRow.subscriber == subscriber, col(UndeliveredRow.subject).in_(subjects))
    return events_of(session.exec(wanted.order_by(col(EventRow.sequence)).limit(BATCH)))


async def _follow(subscriber: str, chain: list[Event], clock: "_Clock", deliver: Deliver) -> ChainResult:
    """Deliver a subject's events one after the other, until one fails or no further delivery may begin."""
    for number, event in enumerate(chain):
        if not clock.delivery_may_begin:
            return ChainResult(chain[:number])
        try:
            await deliver(event)
        except Exception as error:  # noqa: BLE001  (no error may hold up other subjects)
            return ChainResult(chain[:number], event, error)
        log.info("event.delivered", subscriber=subscriber, type=event.type.value, subject=event.subject)
    return ChainResult(chain)


def _advance(session: Session, cursor: CursorRow, subscription: Subscription, newest: int) -> list[Event]:
    """Move a cursor to the next batch with an event that the subscriber accepts; those events."""
    accepted: list[Event] = []
    while not accepted and cursor.sequence < newest:
        batch = _next_batch(session, subscription, cursor.sequence, newest)
        # A batch that is not full holds all that is left.
        cursor.sequence = batch[-1].sequence if len(batch) == BATCH else newest
        accepted = [event for event in batch if accepts(subscription, event)]
    return accepted


def _next_batch(session: Session, subscription: Subscription, after: int, newest: int) -> list[Event]:
    """The next events of the subscription's types, up to BATCH of them.

    Nothing beyond `newest`: what was announced after that was read would be skipped, or come twice.
    """
    types = [type.value for type in subscription.types]
    sequence = col(EventRow.sequence)
    following = select(EventRow).where(sequence > after, sequence <= newest, col(EventRow.type).in_(types))
    return events_of(session.exec(following.order_by(sequence).limit(BATCH)))


class _Clock:
    """The server's time and not this machine's, so that retries are due in simulated time where time is simulated."""

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

    @property
    def delivery_may_begin(self) -> bool:
        return not self.overtime and not activity.is_worker_shutdown()


@asynccontextmanager
async def _heartbeats() -> AsyncIterator[None]:
    """Heartbeat while the context is open, so that the server notices soon when this worker dies."""

    async def beat() -> None:
        while True:
            activity.heartbeat()
            await asyncio.sleep(HEARTBEAT_S)

    heartbeat = asyncio.create_task(beat())
    try:
        yield
    finally:
        heartbeat.cancel()
