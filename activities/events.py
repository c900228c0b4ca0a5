"""Events: written with the change that they announce, delivered at least once, in order per subject.

`emit` belongs into the transaction of the change; nothing else publishes. Delivery is a workflow that calls `deliver`
with a subscriber's name: its cursor moves only after the subscriber has had the event.
"""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlmodel import Session, col, select
from temporalio import activity
from temporalio.client import Client
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from activities.database import Database, insert_new, lock
from rules.subscriptions import Subscriber, wanted
from schema import wire
from schema.messages.cycle import CycleRequest, workflow_id
from schema.messages.events import Event, EventType
from schema.messages.observatory import Anomaly
from schema.tables.events import CursorRow, EventRow

BATCH = 100
log = structlog.get_logger()


def emit(session: Session, type: EventType, subject: str, key: str, at: datetime, **data: Any) -> None:
    """Announce a change, in its own transaction; the same key announces once."""
    # Sequence numbers must become visible in order, or a cursor could pass an event that commits later.
    lock(session, "event")
    row = {"key": f"{type.value}:{key}", "type": type.value, "subject": subject, "at": at, "data": data}
    insert_new(session, EventRow, [row], returning="key")


class EventActivities:
    """Delivers the outbox."""

    def __init__(self, database: Database, client: Client, poll_s: float = 2.0) -> None:
        self._database = database
        self._client = client
        self._poll_s = poll_s
        self._deliveries: dict[Subscriber, Callable[[Event], Awaitable[None]]] = {Subscriber.CYCLES: self._start_cycle}

    @activity.defn
    async def deliver(self, subscriber: Subscriber) -> int:
        """Hand the next events to `subscriber` and move its cursor; while there are none, ask to be retried.

        The retries are not history, hold no slot and let simulated time skip.
        """
        events, newest = self._next(subscriber)
        for event in events:
            await self._deliveries[subscriber](event)
            self._advance(subscriber, event.sequence)
            log.info("event.delivered", subscriber=subscriber.value, type=event.type.value, subject=event.subject)
        if newest is None:
            raise ApplicationError(
                f"waiting for events for {subscriber.value}",
                next_retry_delay=timedelta(seconds=self._poll_s),
                category=ApplicationErrorCategory.BENIGN,
            )
        self._advance(subscriber, newest)
        return len(events)

    def _next(self, subscriber: Subscriber) -> tuple[list[Event], int | None]:
        """The wanted events among the next few, and the last sequence number looked at (None: nothing new)."""
        with self._database.reading() as session:
            cursor = session.get(CursorRow, subscriber.value)
            rows = session.exec(
                select(EventRow)
                .where(col(EventRow.sequence) > (cursor.sequence if cursor else 0))
                .order_by(col(EventRow.sequence))
                .limit(BATCH)
            ).all()
            events = [Event.model_validate(row.model_dump()) for row in rows]
        return [event for event in events if wanted(subscriber, event.type)], events[-1].sequence if events else None

    def _advance(self, subscriber: Subscriber, sequence: int) -> None:
        with self._database.transaction() as session:
            cursor = session.get(CursorRow, subscriber.value) or CursorRow(subscriber=subscriber.value)
            cursor.sequence = max(cursor.sequence, sequence)
            session.add(cursor)

    async def _start_cycle(self, event: Event) -> None:
        if event.data["attempt"] is None:
            return  # the platform only observes
        anomaly = Anomaly.model_validate(event.data["anomaly"])
        request = CycleRequest(request_id=event.key, anomaly=anomaly)
        await self._client.start_workflow(
            wire.IMPROVEMENT_CYCLE,
            request,
            id=workflow_id(anomaly.subject),
            task_queue=wire.TASK_QUEUE,
            # The id is the lock: a second observer of one anomaly joins the cycle that runs.
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            static_summary=f"Improvement cycle: {anomaly.metric} of {anomaly.task_type or 'the platform'}",
            static_details=anomaly.reason,
        )
