"""Event Bus: one long-running workflow per subscriber hands it the outbox, in order, at least once."""

from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy

with workflow.unsafe.imports_passed_through():
    from activities.event_bus import EventActivities

from schema import wire

# Nothing is begun after 20 s, and a delivery takes at most 20; a worker that dies in it is missed within 5.
LIMIT, SILENCE = timedelta(seconds=60), timedelta(seconds=5)
# Every wait for events is an attempt, so that after a failure the interval is always the longest.
SOON = RetryPolicy(initial_interval=timedelta(milliseconds=200), maximum_interval=timedelta(seconds=2))


@workflow.defn(name=wire.EVENT_BUS)
class EventBus:
    """Delivers until its history grows long, then continues as new: the cursor is in the database, nothing is lost.

    One call works for some time and waits for as long as it takes, so that history hardly grows with events.
    It ends when its subscriber is declared no more; declared again, delivery goes on where it stopped.
    """

    @workflow.run
    async def run(self, subscriber: str) -> None:
        while not workflow.info().is_continue_as_new_suggested():
            delivered = await workflow.execute_activity_method(
                EventActivities.deliver,
                subscriber,
                start_to_close_timeout=LIMIT,
                heartbeat_timeout=SILENCE,
                retry_policy=SOON,
                summary=f"hand events to {subscriber}",
            )
            if delivered is None:
                return
        workflow.continue_as_new(subscriber)
